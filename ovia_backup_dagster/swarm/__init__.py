"""Docker Swarm: the first implementation of ``restoration.service_manager``.

It imports ``core`` and no other package of this project. Dagster, PostgreSQL, settings, the terminal and the order of a
restore's steps do not belong here.
"""

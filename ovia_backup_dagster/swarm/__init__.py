"""Docker Swarm: the first implementation of ``restoration.service_manager``.

May import ``core`` and nothing else of ours. Dagster, PostgreSQL, settings and the terminal are not known here, nor in
which order a restore does all this.
"""

"""Restores that can be undone: planned, refused or confirmed, taken step by step, finished or put back.

``request`` is what a person asks, ``planner`` decides and refuses, ``runner`` is what the command line and Dagster
call, ``execution`` goes forward or back, and ``steps`` takes each step and puts it back. What is written down is
stated in ``restore_order``, ``journal`` and ``record``. SQL that is not about restores belongs into ``postgres``, and
what is about one orchestrator into a package of its own, such as ``swarm``.
"""

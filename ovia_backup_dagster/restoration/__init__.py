"""Restores that can be undone: planned, refused or confirmed, taken step by step, and finished or put back.

``request`` is what an operator asks for, ``planner`` decides and refuses, ``runner`` is the entry point of the command
line and Dagster, ``execution`` goes forward or back, and ``steps`` takes each step and puts it back. What is stored is
defined in ``restore_order``, ``journal`` and ``record``. SQL that is not about restores belongs in ``postgres``, and
code for one orchestrator in a package of its own, such as ``swarm``.
"""

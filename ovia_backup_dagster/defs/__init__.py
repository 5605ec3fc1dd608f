"""The Dagster surface: assets, checks, jobs, schedule, sensor.

Thin on purpose. What a backup is, how it is made and judged, lives in ``core`` and ``postgres``; a module here only
says when that happens, in which order, and what the UI shows of it. ``code_location`` puts one database's definitions
together; nothing in them is shared with another's.
"""

"""The Dagster definitions: assets, checks, jobs, schedules and a sensor.

These modules are thin on purpose. ``core`` and ``postgres`` define what a backup is, and how it is made and judged; the
modules here only decide when that happens, in which order, and what the UI shows. ``code_location`` builds all
definitions of one database; databases share no definitions.
"""

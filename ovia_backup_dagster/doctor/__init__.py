"""Checks everything that a backup depends on before anything fails, and says how to fix what is wrong.

``report`` defines an observation, each ``*_area`` checks one part, and ``examination`` puts them in order. No check
changes anything, and no module imports Dagster: ``defs.instance_report`` adds what only Dagster knows.
"""

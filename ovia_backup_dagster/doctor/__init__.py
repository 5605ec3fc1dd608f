"""Looks at everything a backup depends on before anything fails, and says how to correct what is not right.

``report`` says what an observation is, each ``*_area`` looks at one part, ``examination`` puts them in order. Nothing
here changes anything, and nothing here imports Dagster: what only Dagster knows, ``defs.instance_report`` adds.
"""

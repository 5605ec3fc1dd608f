"""Looks at everything a backup depends on before anything fails, and says how to mend what is not right.

``report`` says what a line is, the siblings look at one part each, ``examine`` puts them in order. Nothing here
changes anything, and nothing here imports Dagster: what only Dagster knows, ``defs.instance_report`` adds.
"""

"""Backups: names, manifests, verdicts, the catalog of the volume, and decisions about single backups.

No module here imports Dagster, Docker or psycopg, or reads the environment or the clock: ``now`` is an argument. So
each decision can be tested alone, and the command line works without Dagster.
"""

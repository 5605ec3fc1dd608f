"""Backups: names, manifests, verdicts, the catalog of the volume, and decisions about single backups.

Nothing here imports Dagster, Docker or psycopg, reads the environment, or asks the clock: ``now`` is an argument. So
each decision can be tested alone, and the command line works without Dagster.
"""

"""What a backup is: names, manifests, verdicts, the catalog on the volume, and the decisions about them.

Nothing here imports Dagster, Docker or psycopg, reads the environment, or asks the clock: ``now`` is an
argument. So each decision can be tested on its own, and the command line works when Dagster does not.
"""

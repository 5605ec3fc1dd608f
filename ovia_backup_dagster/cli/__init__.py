"""The command line ``ovia-backup``: one file per command. A command parses, calls one operation, and prints.

Nothing here imports Dagster, so that the commands work when Dagster does not.
"""

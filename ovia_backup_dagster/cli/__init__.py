"""The command line ``ovia-backup``: one file a verb. A verb parses, calls one operation, and prints.

Nothing here imports Dagster, so that it works on the day when Dagster does not.
"""

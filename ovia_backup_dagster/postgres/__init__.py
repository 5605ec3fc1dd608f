"""All that speaks to PostgreSQL: its client programs, and psycopg for short questions.

May import ``core`` and nothing else of ours. Dagster, settings and the terminal are not known here.
"""

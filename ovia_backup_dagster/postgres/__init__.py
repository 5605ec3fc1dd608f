"""Everything that talks to PostgreSQL: through its client programs, and through psycopg for short queries.

This room may import ``core`` and no other room. It does not know Dagster, the settings or the terminal.
"""

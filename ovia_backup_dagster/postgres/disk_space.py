"""Queries a server's free disk space, if the role may. This process seldom has access to the server's disk."""

from __future__ import annotations

import re

import psycopg

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect

_DF = re.compile(r"\s\d+\s+\d+\s+(\d+)\s+\d+%")


def free_bytes(server: Connection) -> int | None:
    """Free bytes on the disk of the server's data directory; ``None`` if the role may not query that.

    A superuser or a member of pg_execute_server_program may run ``df`` on the server.

    Raises:
        ServerError: the connection failed.
    """
    with connect(server) as session:
        try:
            # Rolled back, so nothing remains. The server runs programs in its data directory.
            with session.transaction(force_rollback=True):
                session.execute("CREATE TEMPORARY TABLE ovia_backup_df (line text) ON COMMIT DROP")
                session.execute("COPY ovia_backup_df FROM PROGRAM 'LC_ALL=C df -Pk .'")
                rows = session.execute("SELECT line FROM ovia_backup_df").fetchall()
        except psycopg.Error:
            return None
    found = [match for row in rows if (match := _DF.search(row["line"]))]
    return int(found[-1][1]) * 1024 if found else None

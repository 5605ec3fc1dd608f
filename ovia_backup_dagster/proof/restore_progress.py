"""How far a restore is, as the server that it fills sees it: bytes, tables, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import duration, human_bytes
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect

#: What a restored size must be of the expected one before it says anything about the time that is left.
_TELLING = 0.05
#: The server's own account of what it is at: the program's, asked for, would come between its errors.
_PROGRESS = """
    SELECT pg_database_size(current_database()) AS bytes,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_copy
                 WHERE datname = current_database() ORDER BY 1) AS loading,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_create_index
                 WHERE datname = current_database() ORDER BY 1) AS indexing
"""


def progress_teller(target: Connection, expected: int | None, log: Log) -> Callable[[], None]:
    """What tells how far a restore is: bytes, tables, and the seconds that are left if it goes on like this.

    Args:
        target: the database that is filled.
        expected: bytes that it will have in the end, as far as is known.
        log: told, whenever what is returned is called.
    """
    began = time.monotonic()

    def tell() -> None:
        try:
            with connect(target) as session:
                row = session.execute(_PROGRESS).fetchone()
        except BackupError:
            return  # pg_restore will say why
        assert row is not None
        size = row["bytes"]
        text = f"restored {human_bytes(size)}"
        if expected:
            text += f" of about {human_bytes(expected)}"
            if _TELLING * expected < size < expected:
                left = (time.monotonic() - began) * (expected - size) / size
                text += f", about {duration(timedelta(seconds=left))} left"
        for doing in ("loading", "indexing"):
            if row[doing]:
                text += f"; {doing} {', '.join(row[doing])}"
        log(text)

    return tell

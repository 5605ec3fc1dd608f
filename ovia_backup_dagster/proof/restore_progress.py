"""The progress of a restore, queried from the target server: bytes, tables and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import duration, human_bytes
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect

#: Fraction of the expected size from which the time left is estimated.
_TELLING = 0.05
#: The server is queried because pg_restore's own progress messages would mix with its errors.
_PROGRESS = """
    SELECT pg_database_size(current_database()) AS bytes,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_copy
                 WHERE datname = current_database() ORDER BY 1) AS loading,
           ARRAY(SELECT DISTINCT relid::regclass::text FROM pg_stat_progress_create_index
                 WHERE datname = current_database() ORDER BY 1) AS indexing
"""


def progress_teller(target: Connection, expected: int | None, log: Log) -> Callable[[], None]:
    """A function that logs the progress of a restore: bytes, tables, and the time left at the present rate.

    Args:
        target: the database that is filled.
        expected: its final size in bytes, if known.
        log: receives a line at each call of the returned function.
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

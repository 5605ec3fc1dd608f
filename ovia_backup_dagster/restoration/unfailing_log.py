"""A log for work that must not stop halfway because the reader of its output is gone."""

from __future__ import annotations

import contextlib

from ovia_backup_dagster.postgres.data_stream import Log


def never_failing(log: Log) -> Log:
    """What is told may not be read: the reader of a pipe is ended by the same Ctrl-C, a storage of logs may be away.

    That is no reason to leave anything half done.
    """

    def tell(text: str) -> None:
        with contextlib.suppress(Exception):
            log(text)

    return tell

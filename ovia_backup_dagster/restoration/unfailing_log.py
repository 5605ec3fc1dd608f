"""A log for work that must not stop halfway because the reader of its output is gone."""

from __future__ import annotations

import contextlib

from ovia_backup_dagster.postgres.data_stream import Log


def never_failing(log: Log) -> Log:
    """Wrap a log function so that it never raises, because an error in it must not leave work half done.

    For example, a Ctrl-C may also end the reader of a pipe, or the log storage may be unreachable.
    """

    def tell(text: str) -> None:
        with contextlib.suppress(Exception):
            log(text)

    return tell

"""Runs pg_dump into a file: in a snapshot that is shared, or one of its own; and says why it failed.

What is dumped with which options, and what becomes of the file, is decided in ``dump``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import (
    ArchiveDamagedError,
    ArchiveFormatError,
    LockTimeoutError,
    ProgramError,
    ServerDataError,
    ServerMemoryError,
    TooManyConnectionsError,
)
from ovia_backup_dagster.core.files import is_full, volume_error
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.postgres.archive import contents_list
from ovia_backup_dagster.postgres.computed_values import Recorder
from ovia_backup_dagster.postgres.large_rows import blame_large_rows
from ovia_backup_dagster.postgres.programs import Connection, Programs, messages, start
from ovia_backup_dagster.postgres.server_language import diagnose_program
from ovia_backup_dagster.postgres.stall import waits_for_lock, watch

#: What a message tells people to try again.
AGAIN = "ovia-backup dump"
#: Until a server has noticed that a session is over.
_MOMENT_SECONDS = 1.0
#: In what pg_dump prints of a query that failed, its own words, and so in English.
_QUERY_FAILED = "detail: Query was: "
_SET_SNAPSHOT = f"{_QUERY_FAILED}SET TRANSACTION SNAPSHOT "


class _SnapshotError(Exception):
    """pg_dump may have failed for the snapshot that it was given: a query did before it had written anything.

    It was led to another server, or our session was ended; or a table was dropped before pg_dump could lock it, for
    which there is more time than with a snapshot of its own.
    """


@dataclass(frozen=True, slots=True)
class PgDump:
    """One run of pg_dump, or two.

    Attributes:
        connection: what is dumped.
        programs: with what.
        options: pg_dump's, without the file, the database and the snapshot.
        variables: its environment.
        target: the file that it writes.
        lock: descriptor of the volume's lock, which it inherits.
        last_size_bytes: of the last dump, for the progress; 0 where there is none.
        log: told about progress.
        progress_seconds: how often.
    """

    connection: Connection
    programs: Programs
    options: tuple[str, ...]
    variables: Mapping[str, str]
    target: Path
    lock: int
    last_size_bytes: int
    log: Callable[[str], None]
    progress_seconds: float

    def has_begun(self) -> bool:
        """Whether pg_dump has begun to write: it does so with its snapshot taken and its tables locked."""
        with contextlib.suppress(OSError):
            return self.target.stat().st_size > 0
        return False

    def run(self, recorder: Recorder) -> tuple[str, ...]:
        """In the recorder's snapshot, if there is one; if that is what pg_dump fails on, without it.

        Returns:
            What pg_dump warned of.

        Raises:
            BackupError: why it failed; what it wrote is of no use.
        """
        snapshot = recorder.snapshot
        if snapshot is not None:
            try:
                return self._once(snapshot)
            except TooManyConnectionsError as error:
                why = error.account
            except _SnapshotError as error:
                why = error.args[0]
            self.log(f"pg_dump once more, in a snapshot of its own: {why}")
            recorder.give_up(why)
            time.sleep(_MOMENT_SECONDS)
        return self._once()

    def _once(self, snapshot: str | None = None) -> tuple[str, ...]:
        clock = time.monotonic()
        command = (
            self.programs.path("pg_dump"),
            *self.options,
            *(() if snapshot is None else (f"--snapshot={snapshot}",)),
            f"--dbname={self.connection.conninfo()}",
            f"--file={self.target}",
        )
        # The child inherits the lock: if this process is killed, nothing else writes until pg_dump has ended.
        watched = watch(self.programs, self.connection, retry=AGAIN)
        with start(command, variables=self.variables, pass_fds=(self.lock,), watch=watched) as child:
            code = child.wait(
                lambda: self.log(self._progress(time.monotonic() - clock)), poll_seconds=self.progress_seconds
            )
        if code != 0:
            # Whatever the failure, pg_dump exits 1 and leaves a file that may well pass --list.
            what = f"pg_dump of {self.connection} failed"
            error = diagnose_program(child.stderr, what=what, connection=self.connection, exit_code=code)
            early = _QUERY_FAILED in child.stderr and not self.has_begun()
            # What has a cause of its own, such as an administrator who cancels it, is none of the snapshot's.
            unexplained = type(error) is ProgramError or _SET_SNAPSHOT in child.stderr
            if early and snapshot is not None and unexplained:
                raise _SnapshotError(error.account)
            if isinstance(error, LockTimeoutError) and child.lock:
                raise waits_for_lock(type(error), what, child.lock, AGAIN)
            if isinstance(error, ServerDataError | ServerMemoryError):
                raise blame_large_rows(self.connection, error)
            raise error
        self._require_archive()
        return tuple(self.connection.redact(message) for message in messages(child.stderr))

    def _require_archive(self) -> None:
        """pg_dump may end with code 0 without having written all, or anything."""
        try:
            if not self.has_begun():
                raise ArchiveDamagedError("it wrote nothing", why="its file is empty")
            contents_list(self.programs, self.target)
        except (ArchiveDamagedError, ArchiveFormatError) as error:
            what = f"pg_dump of {self.connection} wrote no whole archive"
            if is_full(self.target.parent):
                raise volume_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what) from None
            raise ProgramError(
                what,
                why="it ended with code 0",
                said=error.reason,
                fix="try again: ovia-backup dump; df -h $BACKUP_DIR",
            ) from None

    def _progress(self, seconds: float) -> str:
        size = self.target.stat().st_size if self.target.exists() else 0
        line = f"{human_bytes(size)} after {seconds:.0f} s, {human_bytes(size / max(seconds, 0.001))}/s"
        if self.last_size_bytes:
            line += f", {100 * size / self.last_size_bytes:.0f} % of the last dump's size"
        return line

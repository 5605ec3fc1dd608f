"""Runs pg_dump into a file, in a shared snapshot or in its own, and finds out why it failed.

``dump`` decides what is dumped, with which options, and what happens to the file.
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

#: The command that messages advise for a retry.
AGAIN = "ovia-backup dump"
#: Time for the server to notice that a session has ended.
_MOMENT_SECONDS = 1.0
#: How pg_dump introduces a query that failed. pg_dump prints this itself, so it is always in English.
_QUERY_FAILED = "detail: Query was: "
_SET_SNAPSHOT = f"{_QUERY_FAILED}SET TRANSACTION SNAPSHOT "


class _SnapshotError(Exception):
    """pg_dump may have failed because of the shared snapshot: a query failed before it had written anything.

    pg_dump may have reached another server, or the exporting session may have ended. Or a table was dropped before
    pg_dump could lock it, which is likelier than with its own snapshot because more time passes.
    """


@dataclass(frozen=True, slots=True)
class PgDump:
    """One run of pg_dump, and a second one if the shared snapshot fails.

    Attributes:
        connection: to the database to dump.
        programs: the client programs.
        options: pg_dump's options, without file, database and snapshot.
        variables: pg_dump's environment.
        target: the file that pg_dump writes.
        lock: the descriptor of the volume's lock, which pg_dump inherits.
        last_size_bytes: the size of the last dump, for the progress; 0 if there is none.
        log: receives the progress.
        progress_seconds: how often to log progress.
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
        """Whether pg_dump has begun to write, which it does only after taking its snapshot and locking its tables."""
        with contextlib.suppress(OSError):
            return self.target.stat().st_size > 0
        return False

    def run(self, recorder: Recorder) -> tuple[str, ...]:
        """Run pg_dump in the recorder's snapshot, if there is one; and again without it if the snapshot was the cause.

        Returns:
            pg_dump's warnings.

        Raises:
            BackupError: pg_dump failed; the file that it wrote is useless.
        """
        snapshot = recorder.snapshot
        if snapshot is not None:
            try:
                return self._once(snapshot)
            except TooManyConnectionsError as error:
                why = error.account
            except _SnapshotError as error:
                why = error.args[0]
            self.log(f"running pg_dump once more, with its own snapshot: {why}")
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
        # The child inherits the lock: if this process is killed, no other run writes until pg_dump has ended.
        watched = watch(self.programs, self.connection, retry=AGAIN)
        with start(command, variables=self.variables, pass_fds=(self.lock,), watch=watched) as child:
            code = child.wait(
                lambda: self.log(self._progress(time.monotonic() - clock)), poll_seconds=self.progress_seconds
            )
        if code != 0:
            # On any failure, pg_dump exits with 1 and leaves a file that may still pass --list.
            what = f"pg_dump of {self.connection} failed"
            error = diagnose_program(child.stderr, what=what, connection=self.connection, exit_code=code)
            early = _QUERY_FAILED in child.stderr and not self.has_begun()
            # A failure with a known cause, such as a cancellation by an administrator, is not due to the snapshot.
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
        """Check the contents list: pg_dump may end with code 0 without having written everything, or anything."""
        try:
            if not self.has_begun():
                raise ArchiveDamagedError("it wrote nothing", why="its file is empty")
            contents_list(self.programs, self.target)
        except (ArchiveDamagedError, ArchiveFormatError) as error:
            what = f"pg_dump of {self.connection} wrote an incomplete archive"
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

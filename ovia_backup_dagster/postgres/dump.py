"""Makes a backup: pg_dump into a temporary file, its hash, its manifest, and the name it is published under.

Whether the dump is any good is not decided here (``verification``), nor how often it is tried again (the
caller's: an error says whether it is ``transient``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import (
    ArchiveDamagedError,
    ArchiveFormatError,
    BackupError,
    DiskFullError,
    LockTimeoutError,
    ProgramError,
    ServerDataError,
    ServerMemoryError,
    TooManyConnectionsError,
    VersionMismatchError,
)
from ovia_backup_dagster.core.files import as_volume_error, file_sha256, is_full, volume_error
from ovia_backup_dagster.core.human_text import human_bytes, joined
from ovia_backup_dagster.core.locking import require_still_there
from ovia_backup_dagster.core.manifest import Computed, DatabaseFacts, Manifest
from ovia_backup_dagster.core.publication import publish_backup
from ovia_backup_dagster.core.reserve import keep_reserve
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, facts_for_manifest
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.postgres.archive import contents_list
from ovia_backup_dagster.postgres.computed_values import MOST_BYTES, Recorder
from ovia_backup_dagster.postgres.large_rows import blame_large_rows
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture, messages, start
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.session import database_facts, effective_settings
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, unended
from ovia_backup_dagster.postgres.stall import waits_for_lock, watch
from ovia_backup_dagster.postgres.undumped_rows import undumped_or_why
from ovia_backup_dagster.postgres.watchdog import Watch

LOCK_WAIT_TIMEOUT_SECONDS = 300
PROGRESS_SECONDS = 10.0
MADE_BY = f"ovia-backup-dagster {__version__}"
_AGAIN = "ovia-backup dump"
_WARNINGS_LIMIT = 200
#: Until a server has noticed that a session is over.
_MOMENT_SECONDS = 1.0
_SNAPSHOT = "--snapshot="
#: In what pg_dump prints of a query that failed, its own words, and so in English.
_QUERY_FAILED = "detail: Query was: "
_SET_SNAPSHOT = f"{_QUERY_FAILED}SET TRANSACTION SNAPSHOT "
_GLOBALS_COMPLETE = b"\n-- PostgreSQL database cluster dump complete\n--\n\n"

Log = Callable[[str], None]


class _SnapshotError(Exception):
    """pg_dump may have failed for the snapshot that it was given: a query did before it had written anything.

    It was led to another server, or our session was ended; or a table was dropped before pg_dump could lock it, for
    which there is more time than with a snapshot of its own.
    """


@dataclass(frozen=True, slots=True)
class Dumper:
    """All that a dump depends on.

    Attributes:
        catalog: where it goes.
        connection: what is dumped.
        programs: with what.
        compression: ``auto``, or pg_dump's own spelling.
        lock_wait_timeout_seconds: how long pg_dump waits for a table that somebody has locked.
        most_bytes: how much of the source is read for hashes of what it computes; 0: nothing.
        published: called when a dump has its name, under the lock. Its ``BackupError`` fails nothing.
    """

    catalog: Catalog
    connection: Connection
    programs: Programs
    compression: str = "auto"
    lock_wait_timeout_seconds: float = LOCK_WAIT_TIMEOUT_SECONDS
    most_bytes: int = MOST_BYTES
    published: Callable[[], object] = lambda: None

    def dump(self, *, run_id: str | None = None, log: Log, progress_seconds: float = PROGRESS_SECONDS) -> Backup:
        """Make a daily backup. It appears under its name whole, or not at all.

        Args:
            run_id: Dagster's, for the manifest.
            log: told what happens, a line at a time.
            progress_seconds: how often progress is told.

        Raises:
            BackupError: one of its kinds; nothing is left behind, and no earlier backup was touched.
        """
        catalog = self.catalog
        catalog.prepare(Tier.DAILY)
        with (
            as_volume_error(f"cannot dump to {catalog.root}"),
            catalog.lock(
                f"dumping {self.connection.database}",
                datetime.now(UTC),
                lambda holder: log(f"waiting for {holder}"),
            ) as lock,
        ):
            for path in sweep_abandoned(catalog):
                log(f"removed what a crash had left: {path.name}")
            compression = self.programs.choose_compression(self.compression)
            # A pooler may call it otherwise; what it is asked for by is what its backups are called.
            facts = database_facts(self.connection).model_copy(
                update={"name": self.connection.database, "effective": effective_settings(self.connection)}
            )
            self._refuse_other_major(facts)
            before = self._previous()
            if before is not None:
                self._refuse_full_disk(before, log)
            started_at = datetime.now(UTC)
            name = catalog.free_name(started_at)
            temporary = catalog.temporary(name)
            with _removed(temporary):
                clock = time.monotonic()
                options = self._options(compression, facts.encoding)
                log(f"pg_dump of {self.connection} ({facts.server_version}), compression {compression}")
                variables = self._variables(facts)
                with Recorder(self.connection, lambda: _is_written(temporary), most_bytes=self.most_bytes) as recorder:
                    warnings = self._dump(recorder, options, variables, temporary, lock, before, log, progress_seconds)
                    computed = recorder.finish()
                log(_computed(computed))
                globals_sql, more_warnings = self._globals(facts.encoding, variables)
                made = {} if globals_sql is None else {GLOBALS: globals_sql}
                lost = tuple(undumped_or_why(self.connection))
                sha256 = file_sha256(temporary, sync=True)
                manifest = Manifest(
                    database=facts,
                    started_at=name.started_at,
                    finished_at=datetime.now(UTC),
                    seconds=round(time.monotonic() - clock, 3),
                    size_bytes=temporary.stat().st_size,
                    sha256=sha256,
                    compression=compression,
                    options=options,
                    session_options=SESSION_OPTIONS,
                    client_version=self.programs.version("pg_dump"),
                    warnings=(*lost, *warnings, *more_warnings)[:_WARNINGS_LIMIT],
                    undumped=lost,
                    globals_included=globals_sql is not None,
                    files=facts_for_manifest(made),
                    computed=computed,
                    run_id=run_id,
                    made_by=MADE_BY,
                )
                require_still_there(lock, catalog.root)
                backup = publish_backup(catalog, temporary, name, {**made, MANIFEST: manifest.to_json().encode()})
            keep_reserve(catalog.root)
            # The dump is published: nothing may fail it any more.
            with contextlib.suppress(BackupError):
                self.published()
        log(f"published {backup} ({human_bytes(backup.size_bytes)} in {manifest.seconds:.1f} s)")
        return backup

    def _options(self, compression: str, encoding: str) -> tuple[str, ...]:
        return (
            "--format=custom",
            f"--compress={compression}",
            # The role or the database may set a client_encoding that cannot hold the data.
            f"--encoding={encoding}",
            "--no-password",
            # It is fsynced here, after the hash has been taken from what was written.
            "--no-sync",
            f"--lock-wait-timeout={int(self.lock_wait_timeout_seconds * 1000)}",
        )

    def _variables(self, facts: DatabaseFacts) -> dict[str, str]:
        """For the sessions of client programs: what they write is what it is, and nothing ends them."""
        options = f"{SESSION_OPTIONS} {unended(facts.server_version_num)}"
        return {**self.connection.environment(), **in_english(self.connection, options)}

    def _dump(
        self,
        recorder: Recorder,
        options: tuple[str, ...],
        variables: dict[str, str],
        target: Path,
        lock: int,
        before: Backup | None,
        log: Log,
        progress_seconds: float,
    ) -> tuple[str, ...]:
        """In the recorder's snapshot, if there is one; if that is what pg_dump fails on, without it."""
        snapshot = recorder.snapshot
        if snapshot is not None:
            try:
                wanted = (*options, f"{_SNAPSHOT}{snapshot}")
                return self._run_pg_dump(wanted, variables, target, lock, before, log, progress_seconds)
            except TooManyConnectionsError as error:
                why = error.account
            except _SnapshotError as error:
                why = error.args[0]
            log(f"pg_dump once more, in a snapshot of its own: {why}")
            recorder.give_up(why)
            time.sleep(_MOMENT_SECONDS)
        return self._run_pg_dump(options, variables, target, lock, before, log, progress_seconds)

    def _run_pg_dump(
        self,
        options: tuple[str, ...],
        variables: dict[str, str],
        target: Path,
        lock: int,
        before: Backup | None,
        log: Log,
        progress_seconds: float,
    ) -> tuple[str, ...]:
        clock = time.monotonic()
        given_snapshot = any(option.startswith(_SNAPSHOT) for option in options)
        command = (
            self.programs.path("pg_dump"),
            *options,
            f"--dbname={self.connection.conninfo()}",
            f"--file={target}",
        )
        # The child inherits the lock: if this process is killed, nobody else writes until pg_dump has ended.
        with start(command, variables=variables, pass_fds=(lock,), watch=self._watch) as child:
            code = child.wait(
                lambda: log(_progress(target, time.monotonic() - clock, before)), poll_seconds=progress_seconds
            )
        if code != 0:
            # Whatever the failure, pg_dump exits 1 and leaves a file that may well pass --list.
            what = f"pg_dump of {self.connection} failed"
            error = diagnose_program(child.stderr, what=what, connection=self.connection, exit_code=code)
            early = _QUERY_FAILED in child.stderr and not _is_written(target)
            # What has a cause of its own, such as an administrator who cancels it, is none of the snapshot's.
            unexplained = type(error) is ProgramError or _SET_SNAPSHOT in child.stderr
            if early and given_snapshot and unexplained:
                raise _SnapshotError(error.account)
            if isinstance(error, LockTimeoutError) and child.lock:
                raise waits_for_lock(type(error), what, child.lock, _AGAIN)
            if isinstance(error, ServerDataError | ServerMemoryError):
                raise blame_large_rows(self.connection, error)
            raise error
        self._require_archive(target)
        return tuple(self.connection.redact(message) for message in messages(child.stderr))

    def _require_archive(self, target: Path) -> None:
        """pg_dump may end with code 0 without having written all, or anything."""
        try:
            if not target.exists() or target.stat().st_size == 0:
                raise ArchiveDamagedError("it wrote nothing", why="its file is empty")
            contents_list(self.programs, target)
        except (ArchiveDamagedError, ArchiveFormatError) as error:
            what = f"pg_dump of {self.connection} wrote no whole archive"
            if is_full(self.catalog.root):
                raise volume_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), what) from None
            raise ProgramError(
                what,
                why="it ended with code 0",
                said=error.reason,
                fix="try again: ovia-backup dump; df -h $BACKUP_DIR",
            ) from None

    @property
    def _watch(self) -> Watch:
        return watch(self.programs, self.connection, retry=_AGAIN)

    def _globals(self, encoding: str, variables: dict[str, str]) -> tuple[bytes | None, tuple[str, ...]]:
        """Roles without passwords. A dump without them is still a good dump: a failure is a warning."""
        try:
            command = (
                self.programs.path("pg_dumpall"),
                "--globals-only",
                "--no-role-passwords",
                f"--encoding={encoding}",
                "--no-password",
                # -l is read as a connection string, so it is given one.
                f"--database={self.connection.conninfo()}",
            )
            code, output, stderr = capture(command, variables=variables, watch=self._watch)
            if code != 0:
                raise diagnose_program(stderr, what="pg_dumpall failed", connection=self.connection, exit_code=code)
            if not output.endswith(_GLOBALS_COMPLETE):
                raise ProgramError(
                    "pg_dumpall did not print all roles",
                    why="it ended with code 0, and the line that it writes last is missing",
                    fix="see what it prints: pg_dumpall --globals-only --no-role-passwords",
                )
        except BackupError as error:
            return None, (f"roles are not saved: {error}",)
        return output, tuple(self.connection.redact(message) for message in messages(stderr))

    def _refuse_other_major(self, facts: DatabaseFacts) -> None:
        server, client = facts.server_version_num // 10000, self.programs.major("pg_dump")
        if server != client:
            raise VersionMismatchError(
                f"pg_dump {client} is not the version for {self.connection}",
                why=f"the server is PostgreSQL {server} ({facts.server_version})",
                fix=f"use PostgreSQL {server}'s client programs: set PG_BIN_DIR, or another image",
            )

    def _previous(self) -> Backup | None:
        now = datetime.now(UTC)
        for backup in self.catalog.newest_first(Tier.DAILY):
            if backup.started_at <= now + CLOCK_TOLERANCE and backup.state(now) in (State.PROVEN, State.UNPROVEN):
                return backup
        return None

    def _refuse_full_disk(self, before: Backup, log: Log) -> None:
        free = shutil.disk_usage(self.catalog.root).free
        if free < before.size_bytes:
            raise DiskFullError(
                f"the backup volume {self.catalog.root} has too little room for a dump",
                why=f"{human_bytes(free)} free, the last dump took {human_bytes(before.size_bytes)}",
                fix="make room: ovia-backup prune --dry-run; df -h $BACKUP_DIR",
            )
        if free < 2 * before.size_bytes:
            log(f"the backup volume is filling up: {human_bytes(free)} free, enough for one more dump of this size")


def _progress(target: Path, seconds: float, before: Backup | None) -> str:
    size = target.stat().st_size if target.exists() else 0
    line = f"{human_bytes(size)} after {seconds:.0f} s, {human_bytes(size / max(seconds, 0.001))}/s"
    if before is not None and before.size_bytes:
        line += f", {100 * size / before.size_bytes:.0f} % of the last dump's size"
    return line


def _is_written(target: Path) -> bool:
    """Whether pg_dump has begun to write: it does so with its snapshot taken and its tables locked."""
    with contextlib.suppress(OSError):
        return target.stat().st_size > 0
    return False


def _computed(found: Computed) -> str:
    if found.why:
        return f"generated columns and materialized views cannot be compared later: {found.why}"
    text = (
        f"hashed the generated columns of {len(found.tables):,} tables and {len(found.views):,} materialized views "
        f"({human_bytes(found.read_bytes)}, {found.seconds:.1f} s)"
    )
    left_out = [f"{name}: {why}" for name, why in sorted(found.left_out.items())]
    return f"{text}; left out: {joined(left_out)}" if left_out else text


@contextlib.contextmanager
def _removed(path: Path) -> Iterator[None]:
    """``path`` is gone afterwards, unless it was renamed."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()

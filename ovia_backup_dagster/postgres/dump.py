"""Makes a backup: runs pg_dump into a temporary file, hashes it, writes the manifest, and publishes both.

``dump_run`` runs pg_dump. ``verification`` decides whether the dump is good. The caller decides how often to retry: an
error states whether it is ``transient``.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import (
    BackupError,
    DiskFullError,
    ProgramError,
    VersionMismatchError,
)
from ovia_backup_dagster.core.files import as_volume_error, file_sha256
from ovia_backup_dagster.core.human_text import human_bytes, joined
from ovia_backup_dagster.core.locking import require_still_there
from ovia_backup_dagster.core.manifest import Computed, DatabaseFacts, Manifest, RecoveredTo
from ovia_backup_dagster.core.publication import publish_backup
from ovia_backup_dagster.core.reserve import keep_reserve
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, facts_for_manifest
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.postgres.computed_values import MOST_BYTES, Recorder, SnapshotAnchor
from ovia_backup_dagster.postgres.dump_run import AGAIN, PgDump
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture, messages
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.session import database_facts, effective_settings
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, unended
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.undumped_rows import undumped_or_why
from ovia_backup_dagster.postgres.versions import may_dump

LOCK_WAIT_TIMEOUT_SECONDS = 300
PROGRESS_SECONDS = 10.0
MADE_BY = f"ovia-backup-dagster {__version__}"
_WARNINGS_LIMIT = 200
_GLOBALS_COMPLETE = b"\n-- PostgreSQL database cluster dump complete\n--\n\n"

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Dumper:
    """Everything that a dump depends on.

    Attributes:
        catalog: the backups on the volume.
        connection: to the database to dump.
        programs: the client programs.
        compression: ``auto``, or pg_dump's own spelling.
        lock_wait_timeout_seconds: how long pg_dump waits for a table that another session has locked.
        most_bytes: how much of the source is read for hashes of computed values; 0 for none.
        anchor: makes the snapshot, if its last commit is to be known.
        recovered_to: the commit that the database was recovered to; ``None`` for the live database.
        published: called once the dump is published, under the lock. Its ``BackupError`` does not fail the dump.
    """

    catalog: Catalog
    connection: Connection
    programs: Programs
    compression: str = "auto"
    lock_wait_timeout_seconds: float = LOCK_WAIT_TIMEOUT_SECONDS
    most_bytes: int = MOST_BYTES
    anchor: SnapshotAnchor | None = None
    recovered_to: RecoveredTo | None = None
    published: Callable[[], object] = lambda: None

    def dump(self, *, run_id: str | None = None, log: Log, progress_seconds: float = PROGRESS_SECONDS) -> Backup:
        """Make a daily backup. It appears under its name complete, or not at all.

        Args:
            run_id: Dagster's run, for the manifest.
            log: receives what happens, line by line.
            progress_seconds: how often to log progress.

        Raises:
            BackupError: the dump failed; it left nothing behind and touched no earlier backup.
        """
        catalog = self.catalog
        catalog.ledger.require_key()
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
                log(f"removed a leftover of a crashed run: {path.name}")
            compression = self.programs.choose_compression(self.compression)
            # A pooler may map the database's name to another one; backups bear the name that was asked for.
            facts = database_facts(self.connection).model_copy(
                update={"name": self.connection.database, "effective": effective_settings(self.connection)}
            )
            self._refuse_other_major(facts)
            before = self._previous()
            if before is not None:
                self._refuse_full_disk(before, log)
            # A recovered database is as old as its last commit.
            started_at = self.recovered_to.committed_at if self.recovered_to else datetime.now(UTC)
            name = catalog.free_name(started_at)
            temporary = catalog.temporary(name)
            with _removed(temporary):
                clock = time.monotonic()
                options = self._options(compression, facts.encoding)
                log(f"pg_dump of {self.connection} ({facts.server_version}), compression {compression}")
                variables = self._variables(facts)
                pg_dump = PgDump(
                    connection=self.connection,
                    programs=self.programs,
                    options=options,
                    variables=variables,
                    target=temporary,
                    lock=lock,
                    last_size_bytes=before.size_bytes if before else 0,
                    log=log,
                    progress_seconds=progress_seconds,
                )
                held = pg_dump.has_begun
                with Recorder(self.connection, held, most_bytes=self.most_bytes, anchor=self.anchor) as recorder:
                    warnings = pg_dump.run(recorder)
                    computed = recorder.finish()
                log(_computed(computed))
                if (point := recorder.wal_point) is not None:
                    where = f"the commit at {point.lsn}, timeline {point.timeline}"
                    log(f"the dump ends with {where}" if point.lsn else f"no commit ends the dump exactly: {point.why}")
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
                    wal_point=point,
                    recovered_to=self.recovered_to,
                    run_id=run_id,
                    made_by=MADE_BY,
                )
                require_still_there(lock, catalog.root)
                backup = publish_backup(catalog, temporary, name, {**made, MANIFEST: manifest.to_json().encode()})
            keep_reserve(catalog.root)
            # The dump is published: nothing may fail it from here on.
            with contextlib.suppress(BackupError):
                self.published()
        log(f"published {backup} ({human_bytes(backup.size_bytes)} in {manifest.seconds:.1f} s)")
        return backup

    def _options(self, compression: str, encoding: str) -> tuple[str, ...]:
        return (
            "--format=custom",
            self.programs.compress_option(compression),
            # The role or the database may set a client_encoding that cannot represent the data.
            f"--encoding={encoding}",
            "--no-password",
            # The file is synced later by this process, when it hashes what was written.
            "--no-sync",
            f"--lock-wait-timeout={int(self.lock_wait_timeout_seconds * 1000)}",
        )

    def _variables(self, facts: DatabaseFacts) -> dict[str, str]:
        """The environment of client programs: it pins how values are written, and switches timeouts off."""
        options = f"{SESSION_OPTIONS} {unended(facts.server_version_num)}"
        return {**self.connection.environment(), **in_english(self.connection, options)}

    def _globals(self, encoding: str, variables: dict[str, str]) -> tuple[bytes | None, tuple[str, ...]]:
        """Dump the roles, without passwords. A dump without roles is still good, so a failure is only a warning."""
        try:
            command = (
                self.programs.path("pg_dumpall"),
                "--globals-only",
                "--no-role-passwords",
                f"--encoding={encoding}",
                "--no-password",
                # pg_dumpall parses -l (--database) as a connection string.
                f"--database={self.connection.conninfo()}",
            )
            code, output, stderr = capture(
                command, variables=variables, watch=watch(self.programs, self.connection, retry=AGAIN)
            )
            if code != 0:
                raise diagnose_program(stderr, what="pg_dumpall failed", connection=self.connection, exit_code=code)
            if not output.endswith(_GLOBALS_COMPLETE):
                raise ProgramError(
                    "pg_dumpall did not print all roles",
                    why="it ended with code 0, but the line that it writes last is missing",
                    fix="see what it prints: pg_dumpall --globals-only --no-role-passwords",
                )
        except BackupError as error:
            return None, (f"roles are not saved: {error}",)
        return output, tuple(self.connection.redact(message) for message in messages(stderr))

    def _refuse_other_major(self, facts: DatabaseFacts) -> None:
        server, client = facts.server_version_num // 10000, self.programs.major("pg_dump")
        if not may_dump(client, server):
            raise VersionMismatchError(
                f"pg_dump {client} is the wrong version for {self.connection}",
                why=f"the server is PostgreSQL {server} ({facts.server_version})",
                fix=f"use PostgreSQL {server}'s client programs: set PG_BIN_DIR, or use another image",
            )

    def _previous(self) -> Backup | None:
        now = datetime.now(UTC)
        for backup in self.catalog.newest_first(Tier.DAILY):
            if backup.started_at <= now + CLOCK_TOLERANCE and backup.state(now).may_be_good:
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
    """Remove ``path`` at the end of the block, unless it has been renamed."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()

"""The restore drill: restores a backup into a copy, and proves that the copy is what the backup said.

The order of events, and what each finding means. How it is done is the business of ``places``, ``roles``, ``restore``
and ``reread``; what is compared, that of ``core.comparison``; what is kept of it, that of ``core.drill``.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core import comparison
from ovia_backup_dagster.core.catalog import CLOCK_TOLERANCE, GLOBALS, Backup, Catalog, State
from ovia_backup_dagster.core.comparison import Unordered
from ovia_backup_dagster.core.drill import CopiedTable, DrillCheck, DrillFolder, Evidence, Line, Result
from ovia_backup_dagster.core.drill_page import page
from ovia_backup_dagster.core.errors import (
    BackupError,
    BackupNotFoundError,
    DiskFullError,
    DrillError,
    ExtensionMissingError,
    ProgramMissingError,
    ServerError,
)
from ovia_backup_dagster.core.files import explained, file_sha256
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.verdict import Check, Witness, judge
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres import own_check, roles
from ovia_backup_dagster.postgres.client import SESSION_OPTIONS, Connection, capture
from ovia_backup_dagster.postgres.control import control
from ovia_backup_dagster.postgres.datatext import Log, split_columns, text_of
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.places import (
    Copy,
    Source,
    drop_kept,
    remove_remains,
    scratch_database,
    scratch_name,
    server_programs,
    throwaway,
    usable,
)
from ovia_backup_dagster.postgres.reread import Reading, Rereader
from ovia_backup_dagster.postgres.restore import REFRESH, SURROUNDINGS, Restorer
from ovia_backup_dagster.postgres.session import connect, effective_options
from ovia_backup_dagster.postgres.verification import Verifier

MADE_BY = f"ovia-backup-dagster {__version__}"
#: Of the copy's size, for what a restore writes besides: temporary files of index builds, WAL.
_ROOM = 1.25
_ROOM_BYTES = 256 * 1024 * 1024
_EVIDENCE_BYTES = 8 * 1024 * 1024
_RECOVERY = ("hash", "roles", "restore", "materialized views", "analyze")
_SIZES = """
    SELECT convert_to(quote_ident(n.nspname) || '.' || quote_ident(c.relname),
                      CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE %s END) AS name,
           CASE c.relkind WHEN 'r' THEN pg_total_relation_size(c.oid) ELSE (
               SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_partition_tree(c.oid)
           ) END AS bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')
"""
_INVALID_INDEXES = """
    SELECT c.oid::regclass::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1
"""
_NOT_ENFORCED = """
    SELECT DISTINCT tgrelid::regclass::text AS name FROM pg_trigger
    WHERE tgisinternal AND tgconstraint <> 0 AND tgenabled <> 'O' ORDER BY 1
"""
_NOT_VALID = "SELECT count(*) AS number FROM pg_constraint WHERE NOT convalidated"


class Where(StrEnum):
    """Where a drill restores to."""

    AUTO = "auto"
    THROWAWAY = "throwaway"
    DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person chooses for one drill.

    Attributes:
        where: ``auto`` is a throwaway cluster, or the scratch database where server programs are missing and a
            server was named for it.
        jobs: how many entries pg_restore restores at a time; at least two.
        keep: leave the copy for a look, until the next drill.
    """

    where: Where = Where.AUTO
    jobs: int = 2
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Driller:
    """All that a drill depends on.

    Attributes:
        verifier: catalog, programs, and what a backup must hold.
        source: the database that is backed up; asked how it writes values, for a dump that does not say so itself.
        folder: where throwaway clusters are made.
        target: the server for scratch databases.
        target_is_named: whether somebody named that server, rather than it being the source's.
        own_check: a command, or an SQL file, to run on the copy; empty for none.
    """

    verifier: Verifier
    source: Connection
    folder: Path
    target: Connection
    target_is_named: bool = False
    own_check: str = ""

    @property
    def catalog(self) -> Catalog:
        return self.verifier.catalog

    def find(self, wanted: str, *, anywhere: bool = True) -> Backup:
        """The backup to drill; ``latest`` is the newest that is not known to be bad.

        Raises:
            BackupNotFoundError: there is none.
        """
        now = datetime.now(UTC)
        if wanted != "latest":
            return self.catalog.find(wanted, now, anywhere=anywhere)
        for backup in self.catalog.newest_first():
            in_past = backup.started_at <= now + CLOCK_TOLERANCE
            if in_past and backup.state(now) in (State.PROVEN, State.UNPROVEN):
                return backup
        raise BackupNotFoundError(
            "there is no backup to restore", why="none is proven or could be", fix="ovia-backup dump"
        )

    def drill(
        self, backup: Backup, choice: Choice, *, launched_by: str, run_id: str | None = None, log: Log
    ) -> Evidence:
        """Restore a backup and prove the copy. Whatever comes of it is written down in ``drills/``.

        Args:
            backup: as :meth:`find` found it.
            choice: where, and how.
            launched_by: who asked for it, for the evidence.
            run_id: Dagster's.
            log: told what happens.

        Raises:
            LockHeldError: another drill is under way.
            NotProvenError: the backup may still be being written.
            VolumeError: the evidence cannot be written.
        """
        catalog, now = self.catalog, datetime.now(UTC)
        backup = catalog.settled(backup, now, "ovia-backup drill")
        drills = self.drills
        with explained(f"cannot drill {backup}"):
            catalog.check()
            drills.prepare(now)
            self._refuse_full_volume()
            with drills.lock(backup, now), catalog.reading(backup), drills.under_way(backup, now) as started_at:
                drill = _Drill(self, backup, choice, started_at, log)
                drill.run()
                evidence = drill.evidence(launched_by, run_id)
                path = drills.write(evidence, page(evidence))
                if catalog.holds(backup):
                    drills.record(backup, evidence)
        verdict = "passed" if evidence.passed else "failed: " + "; ".join(evidence.failures)
        log(f"the drill of {backup} {verdict} ({sum(evidence.phases.values()):.1f} s); evidence: {path}")
        return evidence

    @property
    def drills(self) -> DrillFolder:
        """Where the evidence is."""
        return DrillFolder(self.catalog)

    def remove_copies(self, choice: Choice) -> list[str]:
        """Remove what was kept for a look, or left by a killed drill; returns what it was.

        Raises:
            BackupError: it cannot be removed, or is not ours.
        """
        if choice.where is Where.DATABASE:
            return [scratch_name(self.catalog.database)] if drop_kept(self.target, self.catalog.database) else []
        return [str(path) for path in remove_remains(server_programs(self.verifier.programs), self.folder)]

    def _refuse_full_volume(self) -> None:
        root = self.catalog.root
        free = shutil.disk_usage(root).free
        if free < _EVIDENCE_BYTES:
            raise DiskFullError(
                f"the backup volume {root} has no room for a drill's evidence",
                why=f"{human_bytes(free)} free",
                fix="make room: ovia-backup prune --dry-run; df -h $BACKUP_DIR",
            )


@dataclass(slots=True)
class _Drill:
    """One drill under way."""

    by: Driller
    backup: Backup
    choice: Choice
    started_at: datetime
    log: Log
    lines: list[Line] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    place: str = "nowhere"
    kept: str = ""
    error: BackupError | None = None
    witness: Witness | None = None
    found: Witness | None = None
    sha256: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    copy_bytes: int | None = None
    manifest: Manifest | None = None
    unsure: bool = False

    def run(self) -> None:
        """All of it. An error of ours ends it, and is part of the evidence."""
        try:
            self.manifest = self.backup.manifest
            # Before anything is read: it may take an hour until the disk is full.
            self._refuse_full_disk(self._source_bytes() or self.backup.size_bytes)
            witness = self._read_backup()
            if witness is None:
                return
            self._refuse_full_disk(max(witness.decoded_bytes, self._source_bytes() or 0))
            with self._copy() as copy:
                try:
                    self._restore_and_prove(copy, witness)
                except BackupError as error:
                    raise self._of_this_place(error, copy) from None
                if self.choice.keep:
                    self.kept = copy.look
                clock = time.monotonic()
            self.phases["removal"] = time.monotonic() - clock
        except BackupError as error:
            self.error = self._of_target(error)
            self.log(error.account)

    # ---- the backup

    def _read_backup(self) -> Witness | None:
        """What the backup holds: as read when it was verified, if the file is still that; else as it is read now."""
        backup, verifier = self.backup, self.by.verifier
        programs = verifier.programs
        self.versions["pg_restore"] = programs.version("pg_restore")
        with self._phase("hash"):
            wanted = self._sha256_then()
            if wanted is not None and backup.witness is not None:
                self.log(f"hashing {backup} ({human_bytes(backup.size_bytes)})")
                self.sha256 = file_sha256(backup.path)
                if self.sha256 == wanted:
                    self._add(DrillCheck.UNALTERED, [], passed=f"SHA-256 {wanted}")
                    self.witness = backup.witness
                    return self.witness
        with self._phase("verification"):
            verified = verifier.verify(backup, log=self.log)
        self.sha256 = verified.judgement.sha256
        wrong = [] if verified.judgement.intact else list(verified.judgement.reasons)
        self._add(
            DrillCheck.UNALTERED,
            wrong,
            passed=f"SHA-256 {self.sha256}, taken now" if wanted is None else f"SHA-256 {self.sha256}",
        )
        self.witness = verified.witness
        return self.witness

    def _sha256_then(self) -> str | None:
        if self.manifest is not None:
            return self.manifest.sha256
        return self.backup.judgement.sha256 if self.backup.judgement else None

    def _source_bytes(self) -> int | None:
        return self.manifest.database.size_bytes if self.manifest else None

    def _refuse_full_disk(self, copy_bytes: int) -> None:
        if self._where() is not Where.THROWAWAY:
            return  # the server will say so
        needed = needed_bytes(copy_bytes)
        folder, volume = self.by.folder, self.by.catalog.root
        with usable(folder):
            if folder.stat().st_dev == volume.stat().st_dev:
                needed += self.backup.size_bytes  # the next dump must still find room
            free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskFullError(
                f"{folder} has too little room for a copy",
                why=f"{human_bytes(free)} free, {human_bytes(needed)} needed",
                fix=f"make room: df -h {folder}; or set DRILL_DIR to a folder on a larger disk",
            )

    # ---- the copy

    def _where(self) -> Where:
        if self.choice.where is not Where.AUTO:
            return self.choice.where
        try:
            server_programs(self.by.verifier.programs)
        except ProgramMissingError:
            if self.by.target_is_named:
                return Where.DATABASE
        return Where.THROWAWAY

    def _copy(self) -> AbstractContextManager[Copy]:
        by, programs = self.by, self.by.verifier.programs
        facts = self.manifest.database if self.manifest else None
        if self._where() is Where.THROWAWAY:
            superuser = facts.bootstrap_superuser if facts else "postgres"
            name = facts.name if facts else self.backup.name.database
            return throwaway(programs, by.folder, name, superuser, keep=self.choice.keep, log=self.log)
        # A file that somebody renamed names another database than it holds.
        held = archives.database_of(archives.contents_list(programs, self.backup.path))
        names = frozenset({facts.name} if facts else {self.backup.name.database, held})
        source = Source(facts.system_identifier if facts else None, names)
        return scratch_database(by.target, by.catalog.database, source, keep=self.choice.keep, log=self.log)

    def _restore_and_prove(self, copy: Copy, witness: Witness) -> None:
        programs, archive = self.by.verifier.programs, self.backup.path
        self.place = copy.name
        self.log(f"restoring {self.backup} into: {copy.name}")
        listing = archives.contents_list(programs, archive)
        script = archives.database_text(programs, archive)
        notes: list[str] = []
        with connect(copy.server) as session:
            self.versions["copy"] = _one(session, "SELECT current_setting('server_version') AS one")
        self._prove_extensions_available(copy, witness)
        if copy.private:
            with self._phase("roles"):
                notes += self._make_roles(copy, archive)
        jobs = max(2, self.choice.jobs)
        restorer = Restorer(programs, copy.connection, copy.name, jobs, with_owners=copy.private)
        with self._phase("restore"):
            notes += copy.create(script)
            try:
                restorer.restore(archive, listing, self._source_bytes(), self.log)
            except BackupError as error:
                check = DrillCheck.EXTENSIONS if isinstance(error, ExtensionMissingError) else DrillCheck.RESTORED
                self._add(check, [error.account])
                raise
        self._add(DrillCheck.RESTORED, [], odd=notes, passed=f"{jobs} jobs, {self.phases['restore']:.1f} s, no error")
        with self._phase("materialized views"):
            self._prove_refreshed(restorer, archive, listing)
        self._prove_extensions(copy)
        reader = self._prove_equal(copy, witness, self._session_options(script), archives.encoding(script))
        with self._phase("analyze"):
            self._analyze(copy)
        with self._phase("negative control"):
            self._control(reader)
        if copy.private:
            for note in copy.configure(script):
                self.log(note)
        with self._phase("own check"):
            self._own_check(copy)

    def _of_target(self, error: BackupError) -> BackupError:
        """The error with advice about the variables that the target's server is named by."""
        if not (self.by.target_is_named and self._where() is Where.DATABASE and isinstance(error, ServerError)):
            return error
        fix = re.sub(r"\bPOSTGRES_", "RESTORE_POSTGRES_", error.fix)
        return type(error)(error.what, why=error.why, said=error.said, fix=fix)

    def _of_this_place(self, error: BackupError, copy: Copy) -> BackupError:
        """The error with advice about the copy's server, not the production server's."""
        if not copy.private or not isinstance(error, ServerError | DiskFullError):
            return error
        fix = f"df -h {self.by.folder}; dmesg | tail; then: ovia-backup drill {self.backup}"
        return DrillError(error.what, why=error.why, said=error.said, fix=fix)

    def _make_roles(self, copy: Copy, archive: Path) -> list[str]:
        path = self.backup.sidecar(GLOBALS)
        try:
            saved = path.read_bytes()
        except FileNotFoundError:
            made = roles.make_missing(copy.server, self.by.verifier.programs, archive)
            return [f"roles were not saved with this backup; made up: {', '.join(made)}"] if made else []
        except OSError as error:
            with explained(f"cannot read {path}"):
                raise error
        for note in roles.replay(copy.server, saved):
            self.log(f"roles: {note}")
        return []

    def _session_options(self, script: bytes) -> list[str]:
        """What decides how values are written: what the dump ran with; unknown, what it may have run with."""
        if self.manifest is not None:
            return [self.manifest.session_options]
        # The old script's dumps carry the source's settings: the server's, the database's or the role's.
        candidates = [archives.session_options(script), SESSION_OPTIONS]
        try:
            candidates.insert(0, effective_options(self.by.source))
        except BackupError as error:
            self.log(f"the source's time zone is not known: {error.account}")
            self.unsure = True
        return list(dict.fromkeys(candidates))

    # ---- the proof

    def _prove_extensions_available(self, copy: Copy, witness: Witness) -> None:
        """A missing extension is said as such, before a restore fails on it."""
        wanted = {entry.removeprefix("EXTENSION - ").rstrip() for entry in witness.contents if _is_extension(entry)}
        with connect(copy.server) as session:
            rows = session.execute("SELECT name FROM pg_available_extensions").fetchall()
        missing = sorted(wanted - {row["name"] for row in rows})
        if missing:
            error = ExtensionMissingError(
                f"the extension {', '.join(missing)} is not installed where the backup is restored to",
                why="the source has it, and the PostgreSQL here does not",
                fix="install its package beside the server programs in PG_BIN_DIR; or drill on a server that has it: "
                "ovia-backup drill --where database",
            )
            self._add(DrillCheck.EXTENSIONS, [error.account])
            raise error

    def _prove_extensions(self, copy: Copy) -> None:
        with connect(copy.connection) as session:
            rows = session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1").fetchall()
        here = {row["extname"]: row["extversion"] for row in rows}
        before = self.manifest.database.extensions if self.manifest else {}
        odd = [
            f"extension {name} is {here.get(name, 'missing')} in the copy and {version} in the source"
            for name, version in before.items()
            if here.get(name) != version
        ]
        listed = ", ".join(f"{name} {version}" for name, version in here.items())
        unknown = "" if self.manifest else "; the source's versions are not known"
        self._add(DrillCheck.EXTENSIONS, [], odd=odd, passed=f"{listed or 'none'}{unknown}")

    def _prove_refreshed(self, restorer: Restorer, archive: Path, listing: str) -> None:
        views = [entry for entry in archives.entries(listing) if entry.startswith(REFRESH)]
        odd = restorer.refresh(archive, listing) if views else []
        self._add(
            DrillCheck.MATERIALIZED_VIEWS,
            odd,
            passed=f"{len(views)} refreshed" if views else "there is none to refresh",
        )

    def _prove_equal(self, copy: Copy, witness: Witness, candidates: Sequence[str], encoding: str) -> Rereader:
        schema_options = ("--no-tablespaces", *(() if copy.private else ("--no-owner", "--no-privileges")))
        with self._phase("reading the copy"):
            programs = self.by.verifier.programs
            readers = [Rereader(programs, copy.connection, each, encoding, copy.folder) for each in candidates]
            reader, reading = self._read_copy(witness, readers, schema_options)
        found = self.found = reading.witness
        self._measure(copy, reader.encoding)
        with self._phase("comparison"):
            self._prove_tables(witness, found, reader)
            bad = comparison.sequence_differences(witness, found)
            self._add(DrillCheck.SEQUENCES, bad, passed=f"{len(found.sequences):,} sequences")
            bad = comparison.large_object_differences(witness.large_objects, found.large_objects)
            self._add(DrillCheck.LARGE_OBJECTS, bad, passed=f"{found.large_objects.count:,} large objects")
            schema = archives.schema_text(self.by.verifier.programs, self.backup.path, *schema_options)
            self._prove_contents(copy, witness, found, comparison.privilege_differences(schema, reading.schema))
            self._prove_structure(copy, witness, found, comparison.structure_differences(schema, reading.schema))
            odd = comparison.schema_differences(schema, reading.schema)
            self._add(DrillCheck.SCHEMA_TEXT, odd, passed="the same SQL")
            self._prove_expectations(found)
        return reader

    def _read_copy(
        self, witness: Witness, readers: Sequence[Rereader], schema_options: Sequence[str]
    ) -> tuple[Rereader, Reading]:
        """The copy as it is; read anew with other session options while that may explain what differs."""
        readings = []
        for reader in readers:
            reading = reader.read(*schema_options, log=self.log)
            unequal = len(comparison.unequal_tables(witness, reading.witness))
            readings.append((unequal, reader, reading))
            if not unequal:
                break
        _, reader, reading = min(readings, key=lambda read: read[0])
        return reader, reading

    def _prove_tables(self, witness: Witness, found: Witness, reader: Rereader) -> None:
        columns = {table.name: split_columns(table.columns) for table in witness.tables}
        again = {
            name: columns[name]
            for name in comparison.unequal_tables(witness, found)
            if comparison.comparable(name, witness, found, split_columns)
        }
        rows: dict[str, tuple[Unordered, Unordered]] = {}
        if again:
            self.log(f"comparing row by row, as the order may differ: {', '.join(again)}")
            before = archives.read_unordered(self.by.verifier.programs, self.backup.path, witness, again, self.log)
            after = reader.read_unordered(again, self.log)
            rows = {
                name: (
                    Unordered(before[name].rows, before[name].total),
                    Unordered(after[name].rows, after[name].total),
                )
                for name in again
            }
        bad, odd = comparison.table_differences(witness, found, rows)
        if bad and self.unsure:
            hint = (
                "the dump does not say in which time zone it was written, and the source could not be asked: it may be "
            )
            bad.insert(0, f"{hint}that alone")
        self._add(DrillCheck.TABLES, bad, odd=odd, passed=f"{found.rows:,} rows in {len(found.tables):,} tables")

    def _prove_contents(self, copy: Copy, witness: Witness, found: Witness, privileges: Sequence[str]) -> None:
        others = [
            line
            for line in self._contents_differences(copy, witness, found)
            if not comparison.is_structure(line.partition(": ")[2])
        ]
        left = sum(map(comparison.left_out, witness.contents))
        without = [f"{left} entries of publications and subscriptions left out, on purpose"] if left else []
        without += [] if copy.private else ["without owners and privileges, which a scratch database does not get"]
        entries = sum(not entry.startswith(REFRESH) for entry in found.contents)
        self._add(DrillCheck.CONTENTS, [*others, *privileges], passed="; ".join([f"{entries:,} entries", *without]))

    def _prove_structure(self, copy: Copy, witness: Witness, found: Witness, bound: Sequence[str]) -> None:
        wrong = [
            line
            for line in self._contents_differences(copy, witness, found)
            if comparison.is_structure(line.partition(": ")[2])
        ]
        with connect(copy.connection) as session:
            wrong += [f"index {row['name']} is not valid" for row in session.execute(_INVALID_INDEXES)]
            # No dump carries this: it is never so in the source's sense.
            wrong += [f"foreign keys of {row['name']} are not enforced" for row in session.execute(_NOT_ENFORCED)]
            not_valid = _one(session, _NOT_VALID)
        count = sum(map(comparison.is_structure, found.contents))
        so_before = f"; NOT VALID, as in the source: {not_valid}" if int(not_valid) else ""
        self._add(DrillCheck.STRUCTURE, [*wrong, *bound], passed=f"{count:,}, all valid{so_before}")

    def _contents_differences(self, copy: Copy, witness: Witness, found: Witness) -> list[str]:
        # What could not be refreshed is a finding of its own.
        before, after = ([e for e in w.contents if not e.startswith(REFRESH)] for w in (witness, found))
        return comparison.contents_differences(before, after, with_owners=copy.private)

    def _prove_expectations(self, found: Witness) -> None:
        expectations = self.by.verifier.expectations
        previous = self.by.catalog.proven_before(self.backup, datetime.now(UTC))
        before = (previous.path.name, previous.witness) if previous and previous.witness else None
        findings = judge(found, expectations=expectations, manifest=None, previous=before)
        expected = ", ".join(f"{name} {found.rows_of(name) or 0:,}" for name in expectations.tables)
        asked_for = expected or "BACKUP_EXPECTED_TABLES names none"
        lines = {
            DrillCheck.TABLES_PRESENT: (bool(expected), asked_for),
            DrillCheck.TABLES_HOLD_ROWS: (
                bool(expected) and expectations.require_rows,
                asked_for if expectations.require_rows else "BACKUP_REQUIRE_ROWS does not ask for rows",
            ),
            DrillCheck.ROWS_KEPT: (
                before is not None,
                f"compared with {previous}" if before else "there is no earlier proven backup to compare with",
            ),
        }
        for check, (made, text) in lines.items():
            wrong = [finding.text for finding in findings if finding.check == Check(check.value)]
            self._add(check, wrong, passed=text, result=Result.PASSED if made else Result.NOT_MADE)

    def _measure(self, copy: Copy, encoding: str) -> None:
        with connect(copy.connection) as session:
            self.copy_bytes = int(_one(session, "SELECT pg_database_size(current_database()) AS one"))
            self.sizes = {text_of(row["name"]): row["bytes"] for row in session.execute(_SIZES, [encoding])}

    def _analyze(self, copy: Copy) -> None:
        command = (
            self.by.verifier.programs.path("vacuumdb"),
            "--analyze-only",
            "--no-password",
            "--quiet",
            f"--jobs={max(2, self.choice.jobs)}",
            # -d is read as a connection string, so it is given one.
            f"--dbname={copy.connection.conninfo()}",
        )
        code, _, stderr = capture(command, variables=copy.connection.environment())
        what = f"ANALYZE of {copy.connection} failed"
        if code == 0:
            self._add(DrillCheck.ANALYZED, [], passed="done")
            return
        error = diagnose(stderr, what=what, connection=copy.connection, exit_code=code)
        self._add(DrillCheck.ANALYZED, [error.account])
        if isinstance(error, SURROUNDINGS):
            raise error

    def _control(self, reader: Rereader) -> None:
        assert self.found is not None
        if not self.found.rows:
            self._add(DrillCheck.CONTROL, [], passed="not possible: every table is empty", result=Result.NOT_MADE)
            return
        outcome = control(reader, self.found.tables)
        wrong = "no table let a row be deleted, so nobody knows whether a loss would be seen"
        if outcome.table:
            wrong = (
                f"a row of {outcome.table} was deleted in the copy, and the comparison did not notice: it sees nothing"
            )
        bad = [] if outcome.noticed else [wrong]
        self._add(DrillCheck.CONTROL, bad, passed=f"a row less in {outcome.table} was noticed")

    # ---- the user's own

    def _own_check(self, copy: Copy) -> None:
        own = self.by.own_check
        if not own:
            self._add(DrillCheck.OWN_CHECK, [], passed="DRILL_CHECK_COMMAND is not set", result=Result.NOT_MADE)
            return
        code = own_check.run(own, copy.connection, self.by.verifier.programs, self.log)
        # What it printed may be anything: it goes to the log, not into the evidence.
        wrong = [] if code == 0 else [f"DRILL_CHECK_COMMAND ended with code {code}; the log has what it printed"]
        self._add(DrillCheck.OWN_CHECK, wrong, passed="it ended with code 0")

    # ---- the record

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        clock = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - clock

    def _add(
        self,
        check: DrillCheck,
        wrong: Sequence[str],
        *,
        odd: Sequence[str] = (),
        passed: str = "",
        result: Result = Result.PASSED,
    ) -> None:
        """A line of the evidence: what is wrong, else what is odd, else how it passed."""
        if wrong:
            result = Result.ODD if check.is_odd else Result.FAILED
            text = comparison.shortened([*wrong, *odd])
        elif odd:
            result, text = Result.ODD, comparison.shortened(odd)
        else:
            text = passed
        self.lines.append(Line(check=check, result=result, text=text))
        self.log(f"{check.value}: {result.value}" + (f" ({text})" if text else ""))

    def evidence(self, launched_by: str, run_id: str | None) -> Evidence:
        """What is kept."""
        order = list(DrillCheck)
        made = sorted(self.lines, key=lambda line: order.index(line.check))
        failed = self.error is not None or any(line.result is Result.FAILED for line in made)
        manifest, found = self.manifest, self.found
        phases = {name: round(seconds, 3) for name, seconds in self.phases.items()}
        if manifest is not None:
            self.versions |= {"source": manifest.database.server_version, "pg_dump": manifest.client_version}
        elif self.witness is not None:
            self.versions["pg_dump"] = self.witness.archive_client
        return Evidence(
            started_at=self.started_at.replace(microsecond=0),
            finished_at=datetime.now(UTC).replace(microsecond=0),
            passed=not failed,
            database=self.by.catalog.database,
            backup=self.backup.path.name,
            tier=self.backup.tier.value,
            backup_started_at=self.backup.started_at,
            backup_bytes=self.backup.size_bytes,
            backup_sha256=self.sha256,
            manifest=manifest is not None,
            launched_by=launched_by,
            run_id=run_id,
            place=self.place,
            jobs=max(2, self.choice.jobs),
            versions=self.versions,
            lines=tuple(made),
            tables=tuple(
                CopiedTable(name=table.name, rows=table.rows, size_bytes=self.sizes.get(table.name, 0))
                for table in (found.tables if found else ())
            ),
            copy_bytes=self.copy_bytes,
            decoded_bytes=found.decoded_bytes if found else None,
            large_objects=found.large_objects.count if found else 0,
            phases=phases,
            recovery_seconds=None if failed else round(sum(phases.get(name, 0.0) for name in _RECOVERY), 3),
            error=self.error.account if self.error else "",
            fix=self.error.fix if self.error else "",
            kept=self.kept,
            made_by=MADE_BY,
        )


def needed_bytes(database_bytes: int) -> int:
    """Room that a copy of a database of that size takes while it is restored."""
    return int(database_bytes * _ROOM) + _ROOM_BYTES


def _is_extension(entry: str) -> bool:
    return entry.startswith("EXTENSION - ")


def _one(session: psycopg.Connection[dict[str, Any]], query: str) -> str:
    row = session.execute(query.encode()).fetchone()
    assert row is not None
    return str(next(iter(row.values())))

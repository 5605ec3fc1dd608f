"""The drill of point-in-time recovery: recovers a cluster to the commit that a dump ends with, and compares the two.

Dump and recovery are two independent witnesses of the same rows: one read them through SQL, the other copied files and
WAL. When they agree, both are proven. When they differ, the checksums of each say which one is damaged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, ProgramMissingError
from ovia_backup_dagster.core.files import as_volume_error, file_sha256, sync_folder, write_whole
from ovia_backup_dagster.core.human_text import some
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.drill.negative_control import control
from ovia_backup_dagster.pitr.archive import ClusterArchive, base_name
from ovia_backup_dagster.pitr.bases import BASE_DRILL, BaseBackup, BaseDrill
from ovia_backup_dagster.pitr.drill_subject import DrillSubject
from ovia_backup_dagster.pitr.recovered_cluster import RecoveredCluster, RecoveryOrder, recovered
from ovia_backup_dagster.pitr.recovery_evidence import DRILLS, RecoveryCheck, RecoveryEvidence, RecoveryFinding
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd, read_ends
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.sandbox import Limits
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.comparison import large_object_differences, sequence_differences, unequal_tables
from ovia_backup_dagster.proof.database_reader import CopyReader

_UNLOGGED = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence = 'u' AND c.relkind IN ('r', 'p')
"""
_STATUS = "SELECT pg_xact_status(%s::text::xid8) AS status"
_NEXT_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text AS xid"


@dataclass(frozen=True, slots=True)
class RecoveryDriller:
    """Everything that a drill depends on.

    Attributes:
        catalog: the dumps.
        archive: the cluster's files.
        programs: the client and server programs.
        folder: where the throwaway cluster is made.
        hours: how long a recovery may take.
    """

    catalog: Catalog
    archive: ClusterArchive
    programs: Programs
    folder: Path
    hours: float

    def drill(
        self, subject: DrillSubject, *, launched_by: str, run_id: str | None = None, log: Log
    ) -> RecoveryEvidence:
        """Recover, compare, and record the outcome, whatever it is.

        Raises:
            VolumeError: the evidence cannot be written.
        """
        started_at = datetime.now(UTC)
        order = RecoveryOrder(
            self.archive,
            subject.base,
            subject.timeline,
            Lsn.parse(subject.point.lsn),
        )
        drill = _Drill(self, subject, order, log)
        drill.run()
        evidence = RecoveryEvidence(
            started_at=started_at.replace(microsecond=0),
            finished_at=datetime.now(UTC).replace(microsecond=0),
            passed=drill.passed,
            database=self.catalog.database,
            base=subject.base.folder.name,
            base_sha256=subject.base.sha256,
            dump=subject.dump.path.name,
            dump_sha256=subject.manifest.sha256,
            timeline=subject.point.timeline,
            lsn=subject.point.lsn,
            committed_at=subject.point.committed_at or started_at,
            wal_bytes=order.wal_bytes,
            phases={name: round(seconds, 3) for name, seconds in drill.phases.items()},
            findings=tuple(sorted(drill.findings, key=lambda found: list(RecoveryCheck).index(found.check))),
            tables=len(subject.witness.tables),
            rows=subject.witness.rows,
            error=drill.error.account if drill.error else "",
            fix=drill.error.fix if drill.error else "",
            wrong=drill.wrong,
            launched_by=launched_by,
            run_id=run_id,
            made_by=f"ovia-backup-dagster {__version__}",
        )
        self._record(subject, evidence)
        verdict = "passed" if evidence.passed else "failed: " + "; ".join(evidence.failures())
        log(f"the recovery drill of base backup {subject.base} with {subject.dump} {verdict}")
        return evidence

    def _record(self, subject: DrillSubject, evidence: RecoveryEvidence) -> None:
        folder = self.archive.folder / DRILLS
        with as_volume_error(f"cannot write the evidence in {folder}"):
            folder.mkdir(mode=0o700, exist_ok=True)
            name = f"{base_name(evidence.started_at)}.json"
            write_whole(folder / name, evidence.model_dump_json(indent=1).encode())
            sync_folder(folder)
            if evidence.passed:
                statement = BaseDrill(base_sha256=subject.base.sha256, drilled_at=evidence.finished_at)
                write_whole(subject.base.folder / BASE_DRILL, statement.model_dump_json(indent=1).encode())
                sync_folder(subject.base.folder)


@dataclass(slots=True)
class _Drill:
    """One running drill."""

    by: RecoveryDriller
    subject: DrillSubject
    order: RecoveryOrder
    log: Log
    phases: dict[str, float] = field(default_factory=dict)
    findings: list[RecoveryFinding] = field(default_factory=list)
    error: BackupError | None = None
    wrong: str = ""

    @property
    def passed(self) -> bool:
        return self.error is None and all(found.passed is not False for found in self.findings)

    def run(self) -> None:
        by, subject = self.by, self.subject
        needed = subject.base.manifest.data_bytes + self.order.wal_bytes
        limits = Limits.of(by.folder, needed, by.hours * 3600)
        try:
            with recovered(by.programs, by.folder, self.order, limits=limits, hours=by.hours, log=self.log) as found:
                self.phases |= found.phases
                self._add(RecoveryCheck.REACHED, True, f"PostgreSQL stopped after {self.order.target}")
                self._both_sides(found)
                self._compare(found)
        except BackupError as error:
            self.error = error
            self.log(error.account)

    def _compare(self, found: RecoveredCluster) -> None:
        subject, manifest = self.subject, self.subject.manifest
        connection = found.connection(manifest.database.name)
        reader = CopyReader(
            self.by.programs, connection, manifest.session_options, manifest.database.encoding, folder=found.place
        )
        with self._phase("reading the copy"):
            witness = reader.read(log=self.log).witness
        unlogged = self._unlogged(connection)
        different = [name for name in unequal_tables(subject.witness, witness) if name not in unlogged]
        count = len({table.name for table in subject.witness.tables} - unlogged)
        left_out = f"; unlogged, and empty after a recovery: {some(sorted(unlogged))}" if unlogged else ""
        text = f"{count} tables, {subject.witness.rows:,} rows{left_out}"
        self._add(RecoveryCheck.TABLES, not different, f"{some(different)} differ" if different else text)
        objects = large_object_differences(subject.witness.large_objects, witness.large_objects)
        objects_text = f"{witness.large_objects.count:,} large objects"
        self._add(RecoveryCheck.LARGE_OBJECTS, not objects, objects[0] if objects else objects_text)
        self._sequences(witness)
        if different or objects:
            self.wrong = self._find_the_wrong_one()
        with self._phase("amcheck"):
            self._amcheck(connection)
        with self._phase("negative control"):
            self._control(reader, witness)

    def _sequences(self, witness: Witness) -> None:
        """A sequence is not part of a snapshot: pg_dump reads it later, and recovery may set it 32 ahead."""
        differences = sequence_differences(self.subject.witness, witness)
        missing = [line for line in differences if "missing" in line]
        text = f"{len(witness.sequences)} sequences" + (f", {len(differences)} at other values" if differences else "")
        self._add(RecoveryCheck.SEQUENCES, not missing, "; ".join(missing[:3]) if missing else text)

    def _both_sides(self, found: RecoveredCluster) -> None:
        """What was committed last is there, and what was committed next is not."""
        point = self.subject.point
        with connect(found.connection(self.subject.manifest.database.name)) as session:

            def status(xid: int) -> str:
                row = session.execute(_NEXT_XID).fetchone()
                newest = int(row["xid"]) if row else 0
                # The WAL has 32 bits of it.
                whole = (newest & ~0xFFFFFFFF) | xid
                whole -= (1 << 32) if whole > newest else 0
                if whole < 0 or whole >= newest:
                    return "unknown"
                done = session.execute(_STATUS, [str(whole)]).fetchone()
                return str(done["status"]) if done else "unknown"

            before = status(point.xid)
            self._add(
                RecoveryCheck.BEFORE, before == "committed", f"transaction {point.xid}, at {point.lsn}, is {before}"
            )
            following = self._commit_after()
            if following is None:
                self._add(RecoveryCheck.AFTER, None, "no later commit has arrived yet")
                return
            after = status(following.xid)
            text = f"transaction {following.xid}, committed at {following.lsn}, is {after}"
            self._add(RecoveryCheck.AFTER, after != "committed", text)

    def _commit_after(self) -> TransactionEnd | None:
        reader = WalReader(self.by.archive, self.by.programs)
        start = Lsn(self.order.target.bytes + 1)
        with contextlib.closing(read_ends(reader, self.order.timeline, start)) as ends:
            return next((each for each in ends if each.committed), None)

    @staticmethod
    def _unlogged(connection: Connection) -> set[str]:
        with connect(connection) as session:
            return {row["name"] for row in session.execute(_UNLOGGED)}

    def _amcheck(self, connection: Connection) -> None:
        programs = self.by.programs
        try:
            path = programs.path("pg_amcheck")
        except ProgramMissingError:
            self._add(RecoveryCheck.AMCHECK, None, "pg_amcheck is not installed")
            return
        # Without an argument it checks the database of its environment.
        options = ("--heapallindexed", "--install-missing", "--no-password")
        command = programs.confined((path, *options), server=connection)
        code, output, stderr = capture(command, variables=connection.environment())
        said = [line for line in (output.decode("utf-8", "replace") + stderr).splitlines() if line.strip()]
        if code and any("is not available" in line or "could not open extension" in line for line in said):
            self._add(RecoveryCheck.AMCHECK, None, "the extension amcheck is not installed here")
        else:
            self._add(RecoveryCheck.AMCHECK, code == 0, " / ".join(said[:2]) if code else "every heap and B-tree index")

    def _control(self, reader: CopyReader, witness: Witness) -> None:
        if not witness.rows:
            self._add(RecoveryCheck.CONTROL, None, "not possible: every table is empty")
            return
        outcome = control(reader, witness.tables, "")
        text = f"the deletion of a row in {outcome.table} was " + ("noticed" if outcome.noticed else "not noticed")
        self._add(RecoveryCheck.CONTROL, outcome.noticed, text if outcome.table else "no table let a row be deleted")

    def _find_the_wrong_one(self) -> str:
        """Which of the two is damaged, by its own checksums."""
        subject, wrong = self.subject, []
        if file_sha256(subject.dump.path) != subject.manifest.sha256:
            wrong.append(f"the dump {subject.dump} is not what was written")
        base = _bad_files(subject.base)
        wrong += [f"base backup {subject.base}: {name} is not what was written" for name in base]
        if wrong:
            return "; ".join(wrong)
        return (
            "neither the dump nor the base backup was altered: a table may have been rewritten or emptied while the "
            "dump began, which no snapshot shows; drill again with the next dump, and if it differs again, report it"
        )

    def _add(self, check: RecoveryCheck, passed: bool | None, text: str) -> None:
        self.findings.append(RecoveryFinding(check=check, passed=passed, text=text))
        self.log(f"{check}: {'not made' if passed is None else 'passed' if passed else 'FAILED'} ({text})")

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        clock = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - clock


def _bad_files(base: BaseBackup) -> list[str]:
    return [name for name, facts in base.manifest.files.items() if file_sha256(base.folder / name) != facts.sha256]

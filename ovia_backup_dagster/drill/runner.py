"""The restore drill: restores a backup into a copy, proves that the copy equals the backup, and removes it.

This module holds the order of a drill's steps, and the checks that only a drill makes: the negative control and the
user's own check. ``placement`` chooses the place, ``containment`` confines the backup's code, ``proof`` proves the
copy, and ``evidence`` defines the stored result.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster import __version__
from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import (
    BackupError,
    BackupNotFoundError,
    DiskFullError,
    DrillError,
    ServerError,
    StalledError,
)
from ovia_backup_dagster.core.files import as_volume_error
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.naming import is_utf8
from ovia_backup_dagster.core.write_permission import require_writable
from ovia_backup_dagster.drill.check_command import run_check_command
from ovia_backup_dagster.drill.containment import Containment
from ovia_backup_dagster.drill.drill_report import drill_page
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.drill.negative_control import control
from ovia_backup_dagster.drill.placement import Choice, Placement, Where
from ovia_backup_dagster.drill.throwaway_cluster import remove_remains, server_programs
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.secrets import Secrets
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.source_settings import take_out
from ovia_backup_dagster.proof.target import (
    Copy,
    drop_kept,
    explained_by_limits,
    scratch_name,
)

MADE_BY = f"ovia-backup-dagster {__version__}"
_EVIDENCE_BYTES = 8 * 1024 * 1024
_RECOVERY = ("hash", "roles", "restore", "materialized views", "analyze")


@dataclass(frozen=True, slots=True)
class Driller:
    """Everything that a drill depends on.

    Attributes:
        verifier: catalog, programs, and the expectations for a backup.
        source: the database that is backed up. Its settings are queried if the dump does not record how values were
            written.
        folder: where throwaway clusters are created.
        target: the server for scratch databases.
        target_is_named: whether the settings name that server; otherwise it is the source's.
        own_check: a command, or an SQL file, to run on the copy; empty for none.
        max_hours: how long a drill may take.
        secrets: removed from our environment before a drill starts any program.
    """

    verifier: Verifier
    source: Connection
    folder: Path
    target: Connection
    target_is_named: bool = False
    own_check: str = ""
    max_hours: float = 6.0
    secrets: Secrets = field(default_factory=Secrets)

    @property
    def catalog(self) -> Catalog:
        return self.verifier.catalog

    def find(self, wanted: str, *, anywhere: bool = True) -> Backup:
        """The backup to drill; ``latest`` is the newest that is not known to be bad.

        Raises:
            BackupNotFoundError: there is no such backup; or its path is not UTF-8, so no record could name it.
        """
        now = datetime.now(UTC)
        if wanted != "latest":
            found = self.catalog.find(wanted, now, anywhere=anywhere)
            _refuse_unspeakable(found.path)
            return found
        for backup in self.catalog.newest_first():
            in_past = backup.started_at <= now + CLOCK_TOLERANCE
            if in_past and backup.is_vouched and backup.state(now).may_be_good:
                return backup
        raise BackupNotFoundError(
            "there is no backup to restore", why="none is verified or could be", fix="ovia-backup dump"
        )

    def drill(
        self, backup: Backup, choice: Choice, *, launched_by: str, run_id: str | None = None, log: Log
    ) -> Evidence:
        """Restore a backup and prove the copy. Any outcome is recorded in ``drills/``.

        Args:
            backup: as :meth:`find` found it.
            choice: the place and the options.
            launched_by: a schedule, a person or the Dagster UI, for the evidence.
            run_id: Dagster's.
            log: receives progress lines.

        Raises:
            LockHeldError: another drill is running.
            NotVerifiedError: the backup may still be being written.
            VolumeError: the evidence cannot be written.
        """
        self.secrets.forget()
        catalog, now = self.catalog, datetime.now(UTC)
        backup = catalog.settled(backup, now, "ovia-backup drill")
        drills = self.drills
        with as_volume_error(f"cannot drill {backup}"):
            if catalog.holds(backup):
                require_writable(catalog.folder(backup.tier))
            drills.prepare(now)
            self._refuse_full_volume()
            with drills.lock(backup, now), catalog.reading(backup), drills.under_way(backup, now) as started_at:
                drill = _Drill(self, backup, choice, started_at, log)
                drill.run()
                evidence = drill.evidence(launched_by, run_id)
                path = drills.write(evidence, drill_page(evidence))
                if catalog.holds(backup):
                    drills.record(backup, evidence)
                    if not catalog.ledger.can_record:
                        log(f"the drill does not make {backup} proven: BACKUP_SIGNING_KEY_FILE is not set")
        verdict = "passed" if evidence.passed else "failed: " + "; ".join(evidence.failures)
        log(f"the drill of {backup} {verdict} ({sum(evidence.phases.values()):.1f} s); evidence: {path}")
        return evidence

    @property
    def drills(self) -> DrillFolder:
        """The folder of the evidence."""
        return DrillFolder(self.catalog)

    def remove_copies(self, choice: Choice) -> list[str]:
        """Remove copies that were kept for inspection, or left by a killed drill; returns their names.

        Raises:
            BackupError: a copy cannot be removed, or no drill made it.
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
    """One running drill."""

    by: Driller
    backup: Backup
    choice: Choice
    started_at: datetime
    log: Log
    proof: Proof = field(init=False)
    placement: Placement = field(init=False)
    containment: Containment = field(init=False)
    place: str = "nowhere"
    kept: str = ""
    error: BackupError | None = None

    def __post_init__(self) -> None:
        by = self.by
        self.proof = Proof(by.verifier, by.source, self.backup, self.log, jobs=self.choice.jobs)
        self.placement = Placement(
            self.proof.contents, self.choice, by.folder, by.target, by.target_is_named, by.max_hours
        )
        self.containment = Containment(self.proof, by.drills.path)

    def run(self) -> None:
        """Do the whole drill. A ``BackupError`` ends it, and becomes part of the evidence."""
        try:
            proof = self.proof
            proof.read_manifest()
            if self.placement.where is Where.THROWAWAY:
                self.containment.refuse_unconfined()
            # Checked before anything is read: on a full disk, the drill would fail only after an hour.
            self.placement.refuse_full_disk(proof.contents.source_bytes or self.backup.size_bytes)
            witness = proof.read_backup()
            if witness is None:
                return
            self.placement.refuse_full_disk(self.placement.copy_bytes)
            with self.placement.copy(self.log) as copy:
                try:
                    self._restore_and_prove(copy)
                except BackupError as error:
                    raise self._of_this_place(error, copy) from None
                if self.choice.keep:
                    self.kept = copy.look
                clock = time.monotonic()
            proof.phases["removal"] = time.monotonic() - clock
        except BackupError as error:
            self.error = error
            self.log(error.account)

    def _restore_and_prove(self, copy: Copy) -> None:
        proof = self.proof
        self.place = copy.name
        with proof.phase("walls"):
            self.containment.prove(copy)
        self.containment.refuse_untrusted(copy, trusted=self.choice.trust_archive)
        proof.restore(copy)
        reader = proof.prove(copy)
        proof.analyze(copy)
        with proof.phase("negative control"):
            self._control(reader)
        take_out(copy)
        if copy.private:
            for note in copy.configure(proof.contents.script):
                self.log(note)
        with proof.phase("own check"):
            self._own_check(copy)
        proof.list_unmade(Stage.DRILL)

    def _of_this_place(self, error: BackupError, copy: Copy) -> BackupError:
        """The error with advice for the copy's server instead of the production server's."""
        error = explained_by_limits(error, copy)
        if not copy.private or not isinstance(error, ServerError | DiskFullError | StalledError):
            return error
        again = f"ovia-backup drill {self.by.catalog.word(self.backup)}"
        folder = shell_word(str(self.by.folder))
        fix = f"df -h {folder}, or set DRILL_DIR to a folder on a larger disk; dmesg | tail; then: {again}"
        return DrillError(error.what, why=error.why, said=error.said, fix=fix)

    def _control(self, reader: CopyReader) -> None:
        found = self.proof.found
        assert found is not None
        if not found.rows:
            self.proof.add(Check.CONTROL, [], passed="not possible: every table is empty", result=Result.NOT_MADE)
            return
        outcome = control(reader, found.tables, self.proof.restoration.settings.options)
        wrong = "no table let a row be deleted, so it is unknown whether the comparison would notice a loss"
        if outcome.table:
            wrong = f"a row of {outcome.table} was deleted in the copy, and the comparison did not notice it"
        bad = [] if outcome.noticed else [wrong]
        self.proof.add(Check.CONTROL, bad, passed=f"the deletion of a row in {outcome.table} was noticed")

    # ---- the user's own check

    def _own_check(self, copy: Copy) -> None:
        own = self.by.own_check
        if not own:
            self.proof.add(Check.OWN_CHECK, [], passed="DRILL_CHECK_COMMAND is not set", result=Result.NOT_MADE)
            return
        code = run_check_command(own, copy.connection, self.by.verifier.programs, self.by.secrets, self.log)
        # Its output may hold anything: it goes to the log, not into the evidence.
        wrong = [] if code == 0 else [f"DRILL_CHECK_COMMAND ended with code {code}; the log has what it printed"]
        self.proof.add(Check.OWN_CHECK, wrong, passed="it ended with code 0")

    # ---- the record

    def evidence(self, launched_by: str, run_id: str | None) -> Evidence:
        """The evidence of this drill."""
        proof, found = self.proof, self.proof.found
        failed = self.error is not None or proof.failed
        phases = proof.seconds
        return Evidence(
            started_at=self.started_at.replace(microsecond=0),
            finished_at=datetime.now(UTC).replace(microsecond=0),
            passed=not failed,
            database=self.by.catalog.database,
            backup=self.backup.path.name,
            tier=self.backup.tier.value,
            backup_path="" if self.by.catalog.holds(self.backup) else str(self.backup.path),
            backup_started_at=self.backup.started_at,
            backup_bytes=self.backup.size_bytes,
            backup_sha256=proof.contents.sha256,
            manifest=proof.contents.manifest is not None,
            launched_by=launched_by,
            run_id=run_id,
            place=self.place,
            jobs=proof.jobs,
            versions=proof.versions,
            lines=proof.lines_in_order,
            tables=proof.tables,
            copy_bytes=proof.copy_bytes,
            decoded_bytes=found.decoded_bytes if found else None,
            large_objects=found.large_objects.count if found else 0,
            phases=phases,
            recovery_seconds=None if failed else round(sum(phases.get(name, 0.0) for name in _RECOVERY), 3),
            error=self.error.account if self.error else "",
            fix=self.error.fix if self.error else "",
            kept=self.kept,
            confinement=self.containment.text,
            made_by=MADE_BY,
        )


def _refuse_unspeakable(path: Path) -> None:
    """Refuse a path that is not UTF-8: the outcome could not be recorded in the end."""
    if not is_utf8(str(path)):
        raise BackupNotFoundError(
            f"{shell_word(str(path))} cannot be used under this name",
            why="it is not UTF-8, and no record could name it",
            fix=f"rename it: mv {shell_word(str(path))} NEW.dump",
        )

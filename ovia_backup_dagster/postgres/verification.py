"""Verifies a backup: whether the file is the one that was written, decodes completely, and has the expected contents.

The order matters: the hash is checked before any client program opens the file. The outcome goes into the
verified sidecar. A verdict is about the backup. If none can be reached (pg_restore is missing, the disk cannot
be read), an error is raised and nothing is recorded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.backup_statements import record_acceptance, record_hold, record_judgement
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import (
    ArchiveDamagedError,
    BackupError,
    BackupNotFoundError,
    NotVerifiedError,
    VolumeError,
)
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.core.statement_coverage import Covered
from ovia_backup_dagster.core.verdict import (
    Acceptance,
    Expectations,
    Finding,
    Hold,
    HoldCause,
    Judgement,
    Witness,
    judge,
    lost_rows,
)
from ovia_backup_dagster.postgres.archive import read_archive
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster.postgres.secrets import Secrets
from ovia_backup_dagster.postgres.source_change import strangeness

#: How long the last dump before a loss of rows, or before a dump of another source, is held, unless a person accepts
#: the change.
HOLD = timedelta(days=30)

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of one verification.

    Attributes:
        backup: the backup in its new state, with its new judgement.
        judgement: good or bad, and the findings.
        witness: the archive's contents; ``None`` if it could not be decoded.
        previous: the verified backup before it, with which its rows are compared.
    """

    backup: Backup
    judgement: Judgement
    witness: Witness | None
    previous: Backup | None


@dataclass(frozen=True, slots=True)
class Verifier:
    """Everything that verification depends on.

    Attributes:
        catalog: the backups on the volume.
        programs: for pg_restore.
        expectations: what a backup must contain.
        secrets: are removed from our environment before a program parses an archive.
        went_live_on: returns the system identifier of the cluster on which the last restore went live, if there is one.
    """

    catalog: Catalog
    programs: Programs
    expectations: Expectations
    secrets: Secrets = field(default_factory=Secrets)
    went_live_on: Callable[[], str | None] = lambda: None

    def verify(self, backup: Backup, *, run_id: str | None = None, log: Log) -> Verified:
        """Read one backup completely, judge it, and record the judgement beside it.

        For a file outside the volume, nothing is recorded.

        Raises:
            NotVerifiedError: the backup may still be being written, or changed while it was read.
            BackupError: no verdict could be reached.
        """
        return self._verify(backup, self.expectations, run_id, log)

    def verify_unverified(
        self, *, besides: Backup | None = None, run_id: str | None = None, log: Log
    ) -> list[Verified]:
        """Verify, oldest first, each settled backup without a verdict, such as the old script's dumps at first sight.

        The expectations for today's database do not apply to a dump without a manifest, which may be older than a
        table. ``besides`` is left out. If no verdict can be reached on a backup, that is logged and it stays
        unverified.
        """
        outcomes = []
        for backup in reversed(self.catalog.backups()):
            if backup == besides or backup.state(datetime.now(UTC)) is not State.UNVERIFIED:
                continue
            expectations = self.expectations if backup.sidecar(MANIFEST).exists() else Expectations()
            try:
                outcomes.append(self._verify(backup, expectations, run_id, log))
            except BackupError as error:
                log(f"{backup} stays unverified: {error}")
        return outcomes

    def accept(self, backup: Backup, *, by: str, run_id: str | None = None, log: Log) -> Verified:
        """Accept a backup of another source than those before it, and judge it again.

        From then on, later backups are compared with it, and the holds that it caused are released. If it is not of
        another source, only a verdict is recorded.

        Args:
            by: the person who accepts it.

        Raises:
            BackupNotFoundError: it is not on the volume.
            NotVerifiedError, BackupError: as for :meth:`verify`.
        """
        catalog = self.catalog
        if not catalog.holds(backup):
            raise BackupNotFoundError(f"{backup} is not on the volume {catalog.root}", fix="ovia-backup list")
        backup = catalog.refresh(backup)
        strange = backup.judgement.strange if backup.judgement else ()
        if not strange:
            verified = self.verify(backup, run_id=run_id, log=log)
            backup, strange = verified.backup, verified.judgement.strange
            if not strange:
                return verified
        now = datetime.now(UTC)
        acceptance = Acceptance(
            covered=backup.unit.covered if backup.unit else None,
            at=now,
            by=by,
            system_identifier=backup.system_identifier,
            found=strange,
        )
        with catalog.lock(f"accepting {backup}", now):
            backup = record_acceptance(catalog, backup, acceptance)
        log(f"{backup} is accepted by {by}: {'; '.join(strange)}")
        verified = self.verify(backup, run_id=run_id, log=log)
        if verified.judgement.good:
            self._release(verified.backup)
        return verified

    def _release(self, accepted: Backup) -> None:
        now = datetime.now(UTC)
        with self.catalog.lock(f"releasing what was held because of {accepted}", now):
            for backup, hold in self.catalog.held(now):
                if hold.cause is HoldCause.OTHER_SOURCE and backup.started_at < accepted.started_at:
                    record_hold(self.catalog, backup, hold.model_copy(update={"released_at": now}))

    def _verify(self, backup: Backup, expectations: Expectations, run_id: str | None, log: Log) -> Verified:
        catalog = self.catalog
        self.secrets.forget()
        clock = time.monotonic()
        backup = catalog.settled(backup, datetime.now(UTC), "ovia-backup verify")
        previous = catalog.verified_before(backup, datetime.now(UTC))
        findings, manifest, sha256 = self._check_file(backup, log)
        witness: Witness | None = None
        if not findings:
            try:
                witness = read_archive(self.programs, backup.path, log)
            except ArchiveDamagedError as error:
                findings = (Finding(check=Check.DECODES, text=error.account),)
            else:
                before = (previous.path.name, previous.witness) if previous and previous.witness else None
                findings = judge(witness, expectations=expectations, manifest=manifest, previous=before)
                findings += self._other_source(backup, witness, before)
                if backup.manifest_trouble:
                    # The manifest recorded pg_dump's warnings.
                    findings += (Finding(check=Check.NO_WARNINGS, text=backup.manifest_trouble),)
        judgement = Judgement(
            covered=Covered(archive_sha256=sha256, manifest_sha256=backup.manifest_sha256),
            at=datetime.now(UTC),
            good=all(finding.check.is_odd for finding in findings),
            findings=findings,
            size_bytes=backup.size_bytes,
            mtime_ns=backup.mtime_ns,
            sha256=sha256,
            seconds=round(time.monotonic() - clock, 3),
            previous=previous.path.name if previous else None,
            run_id=run_id,
        )
        if catalog.holds(backup) and not catalog.ledger.can_record:
            log(f"the verdict on {backup} is not recorded: BACKUP_SIGNING_KEY_FILE is not set")
        elif catalog.holds(backup):
            backup = self._record(backup, judgement, witness, previous)
        verdict = "verified" if judgement.good else "bad: " + "; ".join(judgement.reasons)
        log(f"{backup} is {verdict} ({judgement.seconds:.1f} s)")
        return Verified(backup, judgement, witness, previous)

    def _record(self, backup: Backup, judgement: Judgement, witness: Witness | None, previous: Backup | None) -> Backup:
        catalog = self.catalog
        with catalog.lock(f"recording the verdict on {backup}", judgement.at):
            now = catalog.refresh(backup)
            if (now.size_bytes, now.mtime_ns) != (backup.size_bytes, backup.mtime_ns):
                raise NotVerifiedError(
                    f"{backup} changed while it was read",
                    why="another program writes it",
                    fix=f"wait, then: ovia-backup verify {catalog.word(backup)}",
                )
            # Before the verdict: from then on pruning may act.
            if judgement.strange and previous is not None:
                self._hold_against(previous, backup, judgement)
            elif judgement.good and witness is not None and previous is not None and backup.acceptance is None:
                self._hold(previous, witness, backup, judgement.at)
            return record_judgement(catalog, now, judgement, witness if judgement.good else None)

    def _check_file(self, backup: Backup, log: Log) -> tuple[tuple[Finding, ...], Manifest | None, str | None]:
        # Raises for a manifest of a newer release, which says nothing about the archive.
        manifest = backup.manifest
        first = backup.verification.judgements[0] if backup.verification else None
        if manifest is not None:
            sha256, since = manifest.sha256, "when it was written"
        elif backup.stated_sha256 is not None:
            sha256, since = backup.stated_sha256, "when it was adopted"
        elif first is not None and (first.size_bytes, first.mtime_ns) == (backup.size_bytes, backup.mtime_ns):
            sha256, since = first.sha256 or "", f"when it was first read ({first.at:%Y-%m-%d})"
        else:
            sha256, since = "", ""
        if backup.contradictions:
            findings = (
                Finding(check=Check.MATCHES_MANIFEST, text=f"{backup}: {text}") for text in backup.contradictions
            )
            return tuple(findings), manifest, None
        log(f"hashing {backup} ({human_bytes(backup.size_bytes)})")
        found = file_sha256(backup.path)
        if sha256 and found != sha256:
            text = f"{backup} was altered: its SHA-256 is {found[:16]}…, it was {sha256[:16]}… {since}"
            return (Finding(check=Check.MATCHES_MANIFEST, text=text),), manifest, found
        altered = tuple(Finding(check=Check.MATCHES_MANIFEST, text=text) for text in self.altered_files(backup))
        return altered, manifest, found

    def altered_files(self, backup: Backup) -> tuple[str, ...]:
        """Alterations of the files that were made with a backup's archive; on the volume, none may be missing."""
        return backup.altered_files(complete=self.catalog.holds(backup))

    def _other_source(
        self, backup: Backup, witness: Witness, previous: tuple[str, Witness] | None
    ) -> tuple[Finding, ...]:
        """Findings that the backup is of another source than earlier ones; none if it was ever verified or accepted."""
        # A person named a file outside the volume, and knows its source.
        if not self.catalog.holds(backup) or backup.acceptance is not None or backup.once_verified:
            return ()
        known = self.catalog.identified_before(backup, datetime.now(UTC))
        meant = None
        with contextlib.suppress(BackupError):  # an unreadable record is ignored
            meant = self.went_live_on()
        texts = strangeness(
            witness,
            backup.system_identifier,
            previous=previous,
            known=(known.path.name, known.system_identifier) if known and known.system_identifier else None,
            meant=(meant,),
        )
        return tuple(Finding(check=Check.SOURCE, text=text) for text in texts)

    def _hold_against(self, previous: Backup, backup: Backup, judgement: Judgement) -> None:
        """Hold the last verified dump before one of another source, unless it is held already or was released."""
        try:
            hold = previous.hold
        except VolumeError:
            return  # a hold that cannot be read is in force
        now = judgement.at
        if hold is None or (hold.cause is HoldCause.LOST_ROWS and not hold.in_force(now)):
            reason = f"the last before {backup}, which is of another source: {'; '.join(judgement.strange)}"
            record_hold(self.catalog, previous, Hold(until=now + HOLD, cause=HoldCause.OTHER_SOURCE, reason=reason))

    def _hold(self, previous: Backup, witness: Witness, backup: Backup, now: datetime) -> None:
        """Hold the dump before a loss of rows, unless one from before an earlier loss in the same table is held.

        Otherwise a table that is emptied every other day would keep half of all dumps.
        """
        if previous.witness is None or self._has_hold(previous, now):
            return
        before = previous.witness.rows_by_table()
        lost = lost_rows(before, witness.rows_by_table())
        for _, held in self.catalog.held(now):
            lost = {table: text for table, text in lost.items() if held.tables.get(table, 0) * 2 < before[table]}
        if lost:
            reason = f"the last before rows were lost in {backup}: {'; '.join(lost.values())}"
            tables = {table: before[table] for table in lost}
            record_hold(self.catalog, previous, Hold(until=now + HOLD, tables=tables, reason=reason))

    @staticmethod
    def _has_hold(backup: Backup, now: datetime) -> bool:
        """Whether the backup is held, or ever was because of lost rows, which is not repeated."""
        try:
            hold = backup.hold
        except VolumeError:
            return True  # a hold that cannot be read is in force
        return hold is not None and (hold.cause is HoldCause.LOST_ROWS or hold.in_force(now))

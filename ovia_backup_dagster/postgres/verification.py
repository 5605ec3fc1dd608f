"""Verifies a backup: is the file what was written, does all of it decode, does it hold what it should?

The order matters: the hash is checked before any client program opens the file. The outcome goes into the
verified sidecar. A verdict is about the backup; when it cannot be reached (no pg_restore, a disk that does
not read) an error is raised and nothing is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.catalog import HELD, MANIFEST, Backup, Catalog, State
from ovia_backup_dagster.core.errors import ArchiveDamagedError, BackupError, NotProvenError
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.manifest import Manifest
from ovia_backup_dagster.core.verdict import (
    Check,
    Expectations,
    Finding,
    Hold,
    Judgement,
    Witness,
    judge,
    lost_rows,
)
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.postgres.archive import read_archive
from ovia_backup_dagster.postgres.client import Programs

#: How long the last dump before a loss of rows is kept, unless somebody says that the loss was meant.
HOLD = timedelta(days=30)

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of one verification.

    Attributes:
        backup: as it is now, with its new judgement.
        judgement: good or bad, and the findings.
        witness: what the archive holds; ``None`` when it could not be decoded.
        previous: the proven backup before it, which rows are compared with.
    """

    backup: Backup
    judgement: Judgement
    witness: Witness | None
    previous: Backup | None


@dataclass(frozen=True, slots=True)
class Verifier:
    """All that verification depends on.

    Attributes:
        catalog: where the backups are.
        programs: pg_restore is used.
        expectations: what a backup must hold.
    """

    catalog: Catalog
    programs: Programs
    expectations: Expectations

    def verify(self, backup: Backup, *, run_id: str | None = None, log: Log) -> Verified:
        """Read all of one backup, judge it, and write the judgement down beside it.

        A file outside the volume is judged, and nothing is written.

        Raises:
            NotProvenError: it may still be being written, or changed while it was read.
            BackupError: no verdict could be reached.
        """
        return self._verify(backup, self.expectations, run_id, log)

    def verify_unproven(self, *, besides: Backup | None = None, run_id: str | None = None, log: Log) -> list[Verified]:
        """Verify, oldest first, each settled backup that has no verdict yet: the old script's, on first sight.

        What is expected of today's database is not asked of a dump without a manifest, which may be older than a
        table. ``besides`` is left out. One that no verdict can be reached on is said so, and stays unproven.
        """
        outcomes = []
        for backup in reversed(self.catalog.backups()):
            if backup == besides or backup.state(datetime.now(UTC)) is not State.UNPROVEN:
                continue
            expectations = self.expectations if backup.sidecar(MANIFEST).exists() else Expectations()
            try:
                outcomes.append(self._verify(backup, expectations, run_id, log))
            except BackupError as error:
                log(f"{backup} stays unproven: {error}")
        return outcomes

    def _verify(self, backup: Backup, expectations: Expectations, run_id: str | None, log: Log) -> Verified:
        catalog = self.catalog
        clock = time.monotonic()
        backup = catalog.settled(backup, datetime.now(UTC), "ovia-backup verify")
        previous = catalog.proven_before(backup, datetime.now(UTC))
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
        judgement = Judgement(
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
        if catalog.holds(backup):
            backup = self._record(backup, judgement, witness, previous)
        verdict = "proven" if judgement.good else "bad: " + "; ".join(judgement.reasons)
        log(f"{backup} is {verdict} ({judgement.seconds:.1f} s)")
        return Verified(backup, judgement, witness, previous)

    def _record(self, backup: Backup, judgement: Judgement, witness: Witness | None, previous: Backup | None) -> Backup:
        catalog = self.catalog
        with catalog.lock(f"recording the verdict on {backup}", judgement.at):
            now = catalog.refresh(backup)
            if (now.size_bytes, now.mtime_ns) != (backup.size_bytes, backup.mtime_ns):
                raise NotProvenError(
                    f"{backup} changed while it was read",
                    why="another program writes it",
                    fix=f"wait, then: ovia-backup verify {catalog.word(backup)}",
                )
            if judgement.good and witness is not None and previous is not None:
                # Before the verdict: from then on pruning may act.
                self._hold(previous, witness, backup, judgement.at)
            return catalog.record(now, judgement, witness if judgement.good else None)

    def _check_file(self, backup: Backup, log: Log) -> tuple[tuple[Finding, ...], Manifest | None, str | None]:
        # One that cannot be read raises: it may be a newer program's, and says nothing about the archive.
        manifest = backup.manifest
        first = backup.verification.judgements[0] if backup.verification else None
        if manifest is not None:
            size, sha256, since = manifest.size_bytes, manifest.sha256, "when it was written"
        elif first is not None and (first.size_bytes, first.mtime_ns) == (backup.size_bytes, backup.mtime_ns):
            size, sha256, since = first.size_bytes, first.sha256 or "", f"when it was first read ({first.at:%Y-%m-%d})"
        else:
            size, sha256, since = backup.size_bytes, "", ""
        if backup.size_bytes != size:
            text = f"{backup} is {backup.size_bytes:,} bytes long; it was {size:,} {since}"
            return (Finding(check=Check.MATCHES_MANIFEST, text=text),), manifest, None
        log(f"hashing {backup} ({human_bytes(backup.size_bytes)})")
        found = file_sha256(backup.path)
        if sha256 and found != sha256:
            text = f"{backup} was altered: its SHA-256 is {found[:16]}…, it was {sha256[:16]}… {since}"
            return (Finding(check=Check.MATCHES_MANIFEST, text=text),), manifest, found
        return (), manifest, found

    def _hold(self, previous: Backup, witness: Witness, backup: Backup, now: datetime) -> None:
        """Keep the dump before a loss of rows, unless one from before an earlier loss of the same is kept already.

        A table that is emptied every other day would otherwise hold half of all dumps.
        """
        if previous.witness is None or previous.sidecar(HELD).exists():
            return
        before = previous.witness.rows_by_table()
        lost = lost_rows(before, witness.rows_by_table())
        for held in self.catalog.held(now):
            lost = {table: text for table, text in lost.items() if held.tables.get(table, 0) * 2 < before[table]}
        if lost:
            reason = f"the last before rows were lost in {backup}: {'; '.join(lost.values())}"
            tables = {table: before[table] for table in lost}
            self.catalog.set_hold(previous, Hold(until=now + HOLD, tables=tables, reason=reason))

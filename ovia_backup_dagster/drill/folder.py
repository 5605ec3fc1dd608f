"""``drills/`` on the backup volume: the evidence of each drill, when drills became due, and the running drill.

``evidence`` defines the content of evidence; ``runner`` runs a drill.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.backup_statements import record_drill
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import DrillError, DrillOverdueError, VolumeError
from ovia_backup_dagster.core.files import (
    NOTE_BYTES,
    TEMPORARY,
    as_volume_error,
    exists,
    is_folder,
    read_small,
)
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.core.layout import DRILLS
from ovia_backup_dagster.core.locking import lock_holder, volume_lock
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.core.record_folder import RECORD, RecordFolder
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.verdict import DrillRecord
from ovia_backup_dagster.core.write_permission import make_writable
from ovia_backup_dagster.drill.evidence import Evidence, evidence_filename

_EVIDENCE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{6}_.*\.json", re.DOTALL)
#: Prefix of the file that notes when a database's drills became due: written once, when its first backup is made.
_SINCE = ".since-"
#: Prefix of the file that marks a running drill; a killed drill leaves it.
_UNDER_WAY = ".under-way-"


@dataclass(frozen=True, slots=True)
class DrillStanding:
    """The state of the drills.

    Attributes:
        last: the newest drill.
        last_passed: the newest drill that passed.
        due: the time by which a drill must have passed (UTC); ``None`` if unknown.
        trouble: the error that deserves an alert.
    """

    last: Evidence | None
    last_passed: Evidence | None
    due: datetime | None
    trouble: DrillError | None

    def text(self, now: datetime) -> str:
        """One sentence for a person."""
        if self.last_passed is None:
            return "no restore drill has passed yet" + (f"; one is due by {self.due:%Y-%m-%d}" if self.due else "")
        age = duration(now - self.last_passed.started_at)
        return f"the last restore drill that passed was {age} ago, of {self.last_passed.backup}"


def judge_drills(
    newest_first: Iterable[Evidence], since: datetime | None, max_age: timedelta, now: datetime
) -> DrillStanding:
    """Judge whether the drills are in order.

    Args:
        newest_first: their evidence; read only up to the newest drill that passed.
        since: when drills became due (UTC), if known.
        max_age: the maximum age of the last drill that passed.
        now: the present (UTC).
    """
    last: Evidence | None = None
    last_passed: Evidence | None = None
    for evidence in newest_first:
        last = last or evidence
        if evidence.passed:
            last_passed = evidence
            break
    began = last_passed.started_at if last_passed else since
    due = began + max_age if began else None
    trouble = last.trouble if last else None
    if trouble is None and due is not None and now > due:
        never = (
            "no restore drill has ever passed"
            if last_passed is None
            else (f"the last restore drill that passed is {duration(now - last_passed.started_at)} old")
        )
        trouble = DrillOverdueError(
            f"{never}, more than {duration(max_age)}",
            why="restore_drill_schedule is off, or its runs do not end: does the Dagster daemon run?",
            fix="launch restore_drill_job in the Dagster UI, or run: ovia-backup drill",
        )
    return DrillStanding(last, last_passed, due, trouble)


class DrillFolder(RecordFolder):
    """``drills/`` on the backup volume.

    Args:
        catalog: the catalog of that volume.
    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, DRILLS)
        self._under_way = self.path / f"{_UNDER_WAY}{encode_database(catalog.database)}"
        self._since = self.path / f"{_SINCE}{encode_database(catalog.database)}"

    def prepare(self, now: datetime) -> None:
        """Create the folder, and note when drills became due.

        Raises:
            VolumeError: the folder cannot be created.
        """
        make_writable(self.path)
        if self.since() is None:  # the note is missing, or does not contain an instant
            self._note_instant(self._since, now)

    def lock(self, backup: Backup, now: datetime) -> AbstractContextManager[int]:
        """Hold the lock that allows one drill at a time. Dumps and other work do not wait for it.

        Raises:
            LockHeldError: another drill is running.
        """
        return volume_lock(self.path, purpose=f"the restore drill of {backup}", now=now)

    @contextlib.contextmanager
    def under_way(self, backup: Backup, now: datetime) -> Iterator[datetime]:
        """Mark a drill as running during the block; yields an instant for its name, now or soon, that is still unused.

        Removes temporary files that a killed drill left. A drill that is killed in the block cannot report that, but
        its mark remains. The caller holds the lock.
        """
        named = backup if self._catalog.holds(backup) else backup.path
        with as_volume_error(f"cannot use the folder {self.path}"):
            for path in self.path.glob(f".*{TEMPORARY}"):
                if not is_folder(path):
                    path.unlink(missing_ok=True)
            while exists(self.path / f"{evidence_filename(now, backup.path.name)}{RECORD}"):
                now += timedelta(seconds=1)
            self._catalog.write(self._under_way, os.fsencode(f"{now.isoformat()} {named}"))
        try:
            yield now
        finally:
            with contextlib.suppress(OSError):
                self._under_way.unlink()

    def _killed(self) -> DrillError | None:
        """The error for a drill that was killed before it wrote its evidence; it remains until another drill ends."""
        try:
            began, _, backup = os.fsdecode(read_small(self._under_way, NOTE_BYTES)).partition(" ")
        except (OSError, VolumeError):
            return None
        if lock_holder(self.path) is not None:
            return None  # the holder may be that drill, which still runs
        if self._has_evidence_of(began, Path(backup).name):
            return None  # it was killed after writing its evidence, which counts
        return DrillError(
            f"the restore drill of {backup} did not end",
            why=f"it began {began}, and was killed: memory ran out, or its container or the machine was stopped",
            fix=f"dmesg | tail; then: ovia-backup drill {shell_word(backup)}",
        )

    def _has_evidence_of(self, began: str, backup: str) -> bool:
        """Whether there is evidence of the backup's drill that began at an instant (UTC, ISO 8601)."""
        try:
            instant = datetime.fromisoformat(began).replace(microsecond=0)
        except ValueError:
            return False
        since = takewhile(lambda evidence: evidence.started_at >= instant, self.newest_first())
        return any(evidence.started_at == instant and evidence.backup == backup for evidence in since)

    def record(self, backup: Backup, evidence: Evidence) -> Backup:
        """Record a drill in the backup's sidecar, for retention; returns the backup in its new state.

        Raises:
            VolumeError: the record cannot be written.
        """
        record = DrillRecord(
            at=evidence.started_at,
            passed=evidence.passed,
            size_bytes=backup.size_bytes,
            mtime_ns=backup.mtime_ns,
            covered=replace(backup.unit, archive_sha256=evidence.backup_sha256).covered if backup.unit else None,
            evidence=f"{evidence.filename}{RECORD}",
        )
        return record_drill(self._catalog, backup, record, self.path)

    def since(self) -> datetime | None:
        """When drills became due (UTC); ``None`` if that was not noted."""
        return self._noted_instant(self._since)

    def write(self, evidence: Evidence, page: str) -> Path:
        """Write a drill's evidence and its page; returns the evidence's path.

        Raises:
            VolumeError, DiskFullError: the volume refused, or the evidence exists already.
        """
        return self._write_once(evidence.filename, evidence, page)

    def newest_first(self) -> Iterator[Evidence]:
        """The drills of this database, newest first. Evidence that cannot be parsed is left out.

        Raises:
            VolumeError: the folder or a file cannot be read. A missing folder counts as empty.
        """
        for evidence in self._read(Evidence, self._paths(_EVIDENCE.fullmatch)):
            if evidence.database == self._catalog.database:
                yield evidence

    def standing(self, max_age: timedelta, now: datetime) -> DrillStanding:
        """:func:`judge_drills` for this folder; a killed drill is trouble, too."""
        found = judge_drills(self.newest_first(), self.since(), max_age, now)
        return replace(found, trouble=found.trouble or self._killed())

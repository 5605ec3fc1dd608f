"""What a restore drill found, how that is kept, and what follows from it.

A drill's evidence is a file in ``drills/`` that is written once and never changed; its page for people is rendered
from it by ``drill_page``. How a copy is made and proven is the business of ``postgres``, how it is compared that of
``comparison``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime

from ovia_backup_dagster.core.catalog import Backup, Catalog
from ovia_backup_dagster.core.errors import (
    BackupError,
    DrillError,
    DrillOverdueError,
    StrangeFileError,
    VolumeError,
)
from ovia_backup_dagster.core.files import (
    NOTE_BYTES,
    TEMPORARY,
    WITNESS_BYTES,
    exists,
    explained,
    is_folder,
    read_small,
    sync_folder,
)
from ovia_backup_dagster.core.folders import make_writable
from ovia_backup_dagster.core.locking import lock_holder, volume_lock
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.naming import SUFFIX, encode_database
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.verdict import DrillRecord
from ovia_backup_dagster.core.words import duration

FOLDER = "drills"
_SUFFIX = ".json"
_PAGE = ".md"
_NAME_LENGTH = 160
_EVIDENCE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{6}_.*\.json", re.DOTALL)
#: Since when a database's drills are due: written once, when its first backup is made.
_SINCE = ".since-"
#: Which drill is under way; what a killed one leaves.
_UNDER_WAY = ".under-way-"


class DrillCheck(StrEnum):
    """What a drill proves, in this order. The value is the name of the asset check, too."""

    UNALTERED = "archive_is_what_was_written"
    CONTAINED = "drill_contained"
    FUNCTIONS = "functions_gain_no_rights"
    EXTENSIONS = "extensions_as_in_source"
    ROLES = "roles_as_saved"
    RESTORED = "restored_without_errors"
    TABLES = "rows_and_content_equal"
    SEQUENCES = "sequences_equal"
    LARGE_OBJECTS = "large_objects_equal"
    CONTENTS = "contents_equal"
    STRUCTURE = "constraints_and_indexes_as_in_source"
    SCHEMA_TEXT = "schema_text_equal"
    MATERIALIZED_VIEWS = "materialized_views_refreshed"
    COMPUTED = "computed_values_equal"
    TABLES_PRESENT = "expected_tables_present"
    TABLES_HOLD_ROWS = "expected_tables_hold_rows"
    ROWS_KEPT = "tables_kept_their_rows"
    ANALYZED = "analyzed"
    CONTROL = "negative_control"
    OWN_CHECK = "own_check_passes"

    @property
    def is_odd(self) -> bool:
        """Whether a finding is odd (the data is proven) rather than bad."""
        return self in (
            DrillCheck.FUNCTIONS,
            DrillCheck.SCHEMA_TEXT,
            DrillCheck.MATERIALIZED_VIEWS,
            DrillCheck.ROWS_KEPT,
        )

    @property
    def description(self) -> str:
        """What a person needs to know about the check, in a sentence."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    DrillCheck.UNALTERED: "Size and SHA-256 of the file are those taken when it was written.",
    DrillCheck.CONTAINED: "What the backup contains ran confined: from inside, nothing outside could be read, written, "
    "reached or signalled.",
    DrillCheck.FUNCTIONS: "No function of a role that is no superuser is run as one, on a server that others use.",
    DrillCheck.EXTENSIONS: "The source's extensions are there; another version of one is odd.",
    DrillCheck.ROLES: "Roles, with what they may do, are those that were saved. Another setting or comment is odd.",
    DrillCheck.RESTORED: "pg_restore restored all of it and met no error.",
    DrillCheck.TABLES: "Every table was read back: its rows and their content are the backup's. Another order is odd.",
    DrillCheck.SEQUENCES: "Every sequence stands where it stood.",
    DrillCheck.LARGE_OBJECTS: "Every large object is there, with its content, its privileges and its comment.",
    DrillCheck.CONTENTS: "Every object of the backup is in the copy, with its owner and privileges, and no other.",
    DrillCheck.STRUCTURE: "Constraints, indexes, triggers, policies and views are the backup's, and valid.",
    DrillCheck.SCHEMA_TEXT: "Objects have the same SQL. PostgreSQL writes some back differently: odd, not wrong.",
    DrillCheck.MATERIALIZED_VIEWS: "All that were populated were refreshed. If not, the data is proven all the same.",
    DrillCheck.COMPUTED: "Generated columns hold what they held in the source. Another content of a materialized view, "
    "which may have been stale there, is odd.",
    DrillCheck.TABLES_PRESENT: "The tables named in BACKUP_EXPECTED_TABLES are in the copy.",
    DrillCheck.TABLES_HOLD_ROWS: "Those tables hold rows, where BACKUP_REQUIRE_ROWS asks for it.",
    DrillCheck.ROWS_KEPT: "No table is gone or has less than half the rows of the proven backup before it.",
    DrillCheck.ANALYZED: "The copy has statistics, without which it would be slow.",
    DrillCheck.CONTROL: "One row was deleted in the copy, and the comparison noticed: it can see.",
    DrillCheck.OWN_CHECK: "DRILL_CHECK_COMMAND, run on the copy, ended with code 0.",
}


class Result(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    ODD = "odd"
    FAILED = "failed"
    NOT_MADE = "not made"


class Line(Sidecar):
    """One check with its result, in words for a person."""

    check: DrillCheck
    result: Result
    text: str


class CopiedTable(Sidecar):
    """A table of the copy: its rows, and its bytes on disk with indexes and TOAST."""

    name: str
    rows: int
    size_bytes: int


class Evidence(Sidecar):
    """One drill.

    Attributes:
        started_at, finished_at: UTC.
        passed: the backup is proven to restore.
        database: the source's name.
        backup: the file's name; ``tier`` its folder; ``backup_path`` where it stands, if not on the volume.
        backup_started_at: when the dump began (UTC).
        backup_bytes, backup_sha256: of the archive.
        manifest: whether the backup has one; the old script's have none.
        launched_by: a schedule, a person, or the Dagster UI; ``run_id`` Dagster's.
        place: where it was restored: ``throwaway cluster``, or ``database x on host:port``.
        jobs: how many at a time pg_restore did.
        versions: of what took part.
        lines: the checks, in order.
        tables: of the copy.
        copy_bytes: ``pg_database_size`` of the copy.
        decoded_bytes: length of the data as text.
        large_objects: how many.
        phases: name -> seconds, in order.
        recovery_seconds: of them, what a restore takes: the recovery time to expect.
        error: why it could not go on, and ``fix`` what to do; empty when it could.
        kept: how to look at the copy, if it was kept.
        confinement: how what the backup contains was kept from the rest of the machine; empty in older evidence.
    """

    version: Literal[1] = 1
    started_at: AwareDatetime
    finished_at: AwareDatetime
    passed: bool
    database: str
    backup: str
    tier: str
    backup_path: str = ""
    backup_started_at: AwareDatetime
    backup_bytes: int
    backup_sha256: str | None
    manifest: bool
    launched_by: str
    run_id: str | None = None
    place: str
    jobs: int
    versions: dict[str, str]
    lines: tuple[Line, ...]
    tables: tuple[CopiedTable, ...] = ()
    copy_bytes: int | None = None
    decoded_bytes: int | None = None
    large_objects: int = 0
    phases: dict[str, float]
    recovery_seconds: float | None = None
    error: str = ""
    fix: str = ""
    kept: str = ""
    confinement: str = ""
    made_by: str

    @property
    def rows(self) -> int:
        """Rows in all tables of the copy."""
        return sum(table.rows for table in self.tables)

    @property
    def filename(self) -> str:
        """Its name in ``drills/``, without an ending."""
        return _filename(self.started_at, self.backup)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it did not pass."""
        found = tuple(line.text for line in self.lines if line.result is Result.FAILED)
        return (*found, self.error) if self.error and self.error not in found else found

    @property
    def _failures_by_check(self) -> tuple[str, ...]:
        named = tuple(f"{line.check}: {line.text}" for line in self.lines if line.result is Result.FAILED)
        texts = {line.text for line in self.lines if line.result is Result.FAILED}
        return (*named, self.error) if self.error and self.error not in texts else named

    @property
    def oddities(self) -> tuple[str, ...]:
        """What was odd."""
        return tuple(line.text for line in self.lines if line.result is Result.ODD)

    @property
    def trouble(self) -> DrillError | None:
        """Why it did not pass, as an error; ``None`` when it did."""
        if self.passed:
            return None
        again = f"ovia-backup drill {shell_word(self.backup_path or self.backup)}"
        return DrillError(
            f"the restore drill of {self.backup} failed",
            why="; ".join(self._failures_by_check),
            fix=self.fix or f"read $BACKUP_DIR/{FOLDER}/{self.filename}{_PAGE}; mend it; then: {again}",
        )


def _filename(started_at: datetime, backup: str) -> str:
    # A backup from elsewhere may have any name, of any length.
    name = encode_database(backup.removesuffix(SUFFIX))[:_NAME_LENGTH]
    return f"{started_at.astimezone(UTC):%Y-%m-%d_%H%M%S}_{name}"


@dataclass(frozen=True, slots=True)
class DrillStanding:
    """How the drills stand.

    Attributes:
        last: the newest drill.
        last_passed: the newest that passed.
        due: by when one must have passed (UTC); ``None`` when nobody can tell yet.
        trouble: what deserves an alert.
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


def standing(
    newest_first: Iterable[Evidence], since: datetime | None, max_age: timedelta, now: datetime
) -> DrillStanding:
    """Judge the drills.

    Args:
        newest_first: their evidence; read only as far as the newest that passed.
        since: since when drills are due (UTC), if that is known.
        max_age: the last that passed must not be older.
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


class DrillFolder:
    """``drills/`` on the backup volume.

    Args:
        catalog: of that volume.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.path = catalog.root / FOLDER
        self._under_way = self.path / f"{_UNDER_WAY}{encode_database(catalog.database)}"
        self._since = self.path / f"{_SINCE}{encode_database(catalog.database)}"

    def prepare(self, now: datetime) -> None:
        """Make the folder, and note since when drills are due.

        Raises:
            VolumeError: it cannot be made.
        """
        make_writable(self.path)
        with explained(f"cannot use the folder {self.path}"):
            if self.since() is None:  # or what stands there is no instant
                self._catalog.write(self._since, f"{now.isoformat()}\n".encode())

    def lock(self, backup: Backup, now: datetime) -> AbstractContextManager[int]:
        """One drill at a time. Others than drills are not held up.

        Raises:
            LockHeldError: another drill is under way.
        """
        return volume_lock(self.path, purpose=f"the restore drill of {backup}", now=now)

    @contextlib.contextmanager
    def under_way(self, backup: Backup, now: datetime) -> Iterator[datetime]:
        """While the block runs, a drill does; yields the instant, now or soon, that evidence is free at.

        Sweeps what a killed drill left of its writing. One that is killed in the block can say nothing itself, but
        leaves word that it began. Under the lock only.
        """
        named = backup if self._catalog.holds(backup) else backup.path
        with explained(f"cannot use the folder {self.path}"):
            for path in self.path.glob(f".*{TEMPORARY}"):
                if not is_folder(path):
                    path.unlink(missing_ok=True)
            while exists(self.path / f"{_filename(now, backup.path.name)}{_SUFFIX}"):
                now += timedelta(seconds=1)
            self._catalog.write(self._under_way, os.fsencode(f"{now.isoformat()} {named}"))
        try:
            yield now
        finally:
            with contextlib.suppress(OSError):
                self._under_way.unlink()

    def _killed(self) -> DrillError | None:
        """What there is to say of a drill that was killed, until another one has ended."""
        try:
            began, _, backup = os.fsdecode(read_small(self._under_way, NOTE_BYTES)).partition(" ")
        except (OSError, VolumeError):
            return None
        if lock_holder(self.path) is not None:
            return None  # it may be that one, still at work
        return DrillError(
            f"the restore drill of {backup} did not come to its end",
            why=f"it began {began}, and was killed: memory ran out, or its container or the machine was stopped",
            fix=f"dmesg | tail; then: ovia-backup drill {shell_word(backup)}",
        )

    def record(self, backup: Backup, evidence: Evidence) -> Backup:
        """Note a drill beside the backup, for retention; returns the backup as it is now.

        Raises:
            VolumeError: it cannot be written.
        """
        record = DrillRecord(
            at=evidence.started_at,
            passed=evidence.passed,
            size_bytes=backup.size_bytes,
            mtime_ns=backup.mtime_ns,
            covered=replace(backup.unit, archive_sha256=evidence.backup_sha256).covered if backup.unit else None,
            evidence=f"{evidence.filename}{_SUFFIX}",
        )
        return self._catalog.record_drill(backup, record, self.path)

    def since(self) -> datetime | None:
        """Since when drills are due; ``None`` when it was not noted."""
        with contextlib.suppress(OSError, ValueError, VolumeError):
            found = datetime.fromisoformat(read_small(self._since, NOTE_BYTES).decode().strip())
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        return None

    def write(self, evidence: Evidence, page: str) -> Path:
        """Write a drill down, with its page; returns the evidence's path.

        Raises:
            VolumeError, DiskFullError: the volume refused, or there is such evidence already.
        """
        path = self.path / f"{evidence.filename}{_SUFFIX}"
        with explained(f"cannot write {path}"):
            if exists(path):
                raise VolumeError(f"{path} exists already", why="evidence is never rewritten", fix=f"read {path}")
            self._catalog.write(path, evidence.to_json().encode())
            self._catalog.write(path.with_suffix(_PAGE), page.encode())
            sync_folder(self.path)
        return path

    def newest_first(self) -> Iterator[Evidence]:
        """The drills of this database. What cannot be understood is left out.

        Raises:
            VolumeError: the folder or a file cannot be read. A folder that is not there is empty.
        """
        with explained(f"cannot list {self.path}", passing=FileNotFoundError):
            try:
                names = sorted((name for name in os.listdir(self.path) if _EVIDENCE.fullmatch(name)), reverse=True)
            except FileNotFoundError:
                return
        for name in names:
            try:
                text = read_small(self.path / name, WITNESS_BYTES)
            except (FileNotFoundError, StrangeFileError):
                continue  # a folder, a link, a FIFO: not ours, and the doctor names it
            with contextlib.suppress(BackupError):
                evidence = parse_sidecar(Evidence, text, name)
                if evidence.database == self._catalog.database:
                    yield evidence

    def standing(self, max_age: timedelta, now: datetime) -> DrillStanding:
        """:func:`standing` of this folder."""
        found = standing(self.newest_first(), self.since(), max_age, now)
        return replace(found, trouble=found.trouble or self._killed())

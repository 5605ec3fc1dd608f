"""The evidence of a restore drill: its content, how it is stored, and whether it deserves an alert.

A drill's evidence is a file in ``drills/`` that is written once and never changed; ``drill_report`` makes a page for
people of it. ``proof`` makes and compares the copy.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime

from ovia_backup_dagster.core.errors import DrillError
from ovia_backup_dagster.core.layout import DRILLS
from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.core.naming import SUFFIX, encode_database
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.proof.check_results import CheckResult, CopiedTable, Result

_PAGE = ".md"
_NAME_LENGTH = 160


class Evidence(Sidecar):
    """The evidence of one drill.

    Attributes:
        started_at, finished_at: UTC.
        passed: the backup is proven to restore.
        database: the source's name.
        backup: the file's name; ``tier`` its folder; ``backup_path`` its path, if it is not on the volume.
        backup_started_at: when the dump began (UTC).
        backup_bytes, backup_sha256: of the archive.
        manifest: whether the backup has a manifest; dumps of the old script have none.
        launched_by: a schedule, a person, or the Dagster UI; ``run_id`` is Dagster's.
        place: the target of the restore: ``throwaway cluster``, or ``database x on host:port``.
        jobs: how many entries pg_restore restored at a time.
        versions: program or server -> version.
        lines: the checks, in order.
        tables: of the copy.
        copy_bytes: ``pg_database_size`` of the copy.
        decoded_bytes: length of the data as text.
        large_objects: how many.
        phases: name -> seconds, in order.
        recovery_seconds: the sum of the phases that a restore has, too: the recovery time to expect.
        error: why the drill could not go on, and ``fix`` what to do; empty if it went on to its end.
        kept: the command that connects to the copy, if it was kept.
        confinement: how the code in the backup was confined; empty in older evidence.
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
    lines: tuple[CheckResult, ...]
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
        """The name of its files in ``drills/``, without the suffix."""
        return evidence_filename(self.started_at, self.backup)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the drill did not pass."""
        found = tuple(line.text for line in self.lines if line.result is Result.FAILED)
        return (*found, self.error) if self.error and self.error not in found else found

    @property
    def _failures_by_check(self) -> tuple[str, ...]:
        named = tuple(f"{line.check}: {line.text}" for line in self.lines if line.result is Result.FAILED)
        texts = {line.text for line in self.lines if line.result is Result.FAILED}
        return (*named, self.error) if self.error and self.error not in texts else named

    @property
    def oddities(self) -> tuple[str, ...]:
        """The texts of the odd findings."""
        return tuple(line.text for line in self.lines if line.result is Result.ODD)

    @property
    def trouble(self) -> DrillError | None:
        """Why the drill did not pass, as an error; ``None`` if it passed."""
        if self.passed:
            return None
        again = f"ovia-backup drill {shell_word(self.backup_path or self.backup)}"
        return DrillError(
            f"the restore drill of {self.backup} failed",
            why="; ".join(self._failures_by_check),
            fix=self.fix or f"read $BACKUP_DIR/{DRILLS}/{self.filename}{_PAGE}; fix the cause; then: {again}",
        )


def evidence_filename(started_at: datetime, backup: str) -> str:
    """The name of a drill's evidence, without the suffix."""
    # A backup from outside the volume may have any name, of any length.
    name = encode_database(backup.removesuffix(SUFFIX))[:_NAME_LENGTH]
    return f"{started_at.astimezone(UTC):%Y-%m-%d_%H%M%S}_{name}"

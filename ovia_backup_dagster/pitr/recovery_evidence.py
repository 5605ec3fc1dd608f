"""What a drill of point-in-time recovery found: ``pitr/<system identifier>/drills/<UTC>.json``. Pure.

``recovery_drill`` makes it; ``bases`` has the statement that it leaves beside the base backup.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Literal, Self

from pydantic import AwareDatetime

from ovia_backup_dagster.core.errors import DrillError
from ovia_backup_dagster.core.manifest import Sidecar

#: The folder of the evidence, in the cluster's.
DRILLS = "drills"


class RecoveryCheck(StrEnum):
    """A check of a recovered cluster, in the order in which evidence lists them.

    Attributes:
        description: what it shows, for people.
    """

    description: str

    def __new__(cls, name: str, description: str) -> Self:
        check = str.__new__(cls, name)
        check._value_ = name
        check.description = description
        return check

    REACHED = "recovered_to_the_commit", "PostgreSQL's recovery stopped right after the commit that the dump ends with."
    BEFORE = "commit_before_is_there", "The last transaction that the dump has is committed in the recovered cluster."
    AFTER = "commit_after_is_not_there", "The transaction that was committed next is not."
    TABLES = "tables_equal_the_dump", "Every table has the dump's rows, byte for byte, except unlogged tables."
    LARGE_OBJECTS = "large_objects_equal_the_dump", "Every large object has the dump's content."
    SEQUENCES = (
        "sequences_of_the_dump",
        "Every sequence exists. Its value may differ, because it is not part of a snapshot.",
    )
    AMCHECK = "heap_and_indexes_agree", "pg_amcheck found every heap sound, and every row in its B-tree indexes."
    CONTROL = "negative_control", "A row was deleted in the copy, and the comparison noticed it."


class RecoveryFinding(Sidecar):
    """The outcome of one check.

    Attributes:
        passed: ``None`` if the check was not made.
        text: what was found, or why it was not made.
    """

    check: RecoveryCheck
    passed: bool | None
    text: str


class RecoveryEvidence(Sidecar):
    """One drill of point-in-time recovery.

    Attributes:
        started_at, finished_at: UTC.
        passed: whether every check that was made passed, and the recovery reached its target.
        base: the base backup, by its folder's name; ``base_sha256`` is of its ``base.json``.
        dump, dump_sha256: the dump that was compared.
        timeline, lsn: the commit that was recovered to; ``committed_at``, when it was made (UTC).
        wal_bytes: how much WAL was replayed.
        phases: how long each part took, in seconds.
        findings: the checks.
        error, fix: why it ended early, and the next command.
        wrong: if dump and recovery differ, which of the two is damaged, by its own checksums.
        launched_by: a schedule, a person or the Dagster UI.
        run_id: Dagster's.
    """

    version: Literal[1] = 1
    started_at: AwareDatetime
    finished_at: AwareDatetime
    passed: bool
    database: str
    base: str
    base_sha256: str
    dump: str
    dump_sha256: str
    timeline: int
    lsn: str
    committed_at: AwareDatetime
    wal_bytes: int
    phases: dict[str, float]
    findings: tuple[RecoveryFinding, ...]
    tables: int = 0
    rows: int = 0
    error: str = ""
    fix: str = ""
    wrong: str = ""
    launched_by: str
    run_id: str | None = None
    made_by: str

    @property
    def replay_seconds_per_gigabyte(self) -> float | None:
        """How long the replay of 1 GB of WAL took; ``None`` if too little was replayed to say."""
        replay = self.phases.get("replay")
        return replay / (self.wal_bytes / 1e9) if replay and self.wal_bytes > 1e8 else None

    @property
    def trouble(self) -> DrillError | None:
        """The error to report; ``None`` if the drill passed."""
        if self.passed:
            return None
        return DrillError(
            f"base backup {self.base} is not proven by {self.dump}",
            why="; ".join((*self.failures(), *filter(None, [self.wrong]))),
            fix=self.fix or "ovia-backup recovery-window; ovia-backup wal verify; ovia-backup pitr-drill",
        )

    def failures(self) -> Iterator[str]:
        """Why it did not pass."""
        yield from (f"{found.check}: {found.text}" for found in self.findings if found.passed is False)
        if self.error:
            yield self.error

"""The data of each step in a restore's journal: one model a step, without behaviour.

A value that is not set is not written. A step that no pure module asks about has its model in its own module of
``steps``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.proof.check_results import CheckResult, CopiedTable
from ovia_backup_dagster.restoration.restore_order import Step


class StepData(Sidecar):
    """What any step may carry, and the end of the restore.

    Attributes:
        step: the word of the step that it is about.
        notes: what a person should know.
        error, fix: why it failed, and what to do.
    """

    step: ClassVar[str] = ""

    notes: tuple[str, ...] = ()
    error: str = ""
    fix: str = ""


class DrillData(StepData):
    """Attributes:
    evidence: the name of the drill's evidence.
    """

    step = Step.DRILL

    evidence: str = ""


class StopData(StepData):
    """Attributes:
    replicas: of each service, as they were before; ``None`` where a person stops them.
    """

    step = Step.STOP

    replicas: dict[str, int] | None = None


class DropData(StepData):
    """Attributes:
    properties: of the database that is dropped, as ``database_settings`` writes them.
    dropped_subscriptions: name -> slot, of those that it had.
    """

    step = Step.DROP

    properties: str = ""
    dropped_subscriptions: dict[str, str | None] = Field(default_factory=dict)


class Proven(Sidecar):
    """What the proof of a restored database found; the lines, tables and phases are those of a drill.

    Attributes:
        lines: the checks, in order.
        tables: rows and bytes of each.
        phases: name -> seconds.
        versions: of what took part.
        database_bytes: ``pg_database_size``.
        lost: what a damaged backup did not give.
    """

    lines: tuple[CheckResult, ...] = ()
    tables: tuple[CopiedTable, ...] = ()
    phases: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    database_bytes: int | None = None
    lost: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(table.rows for table in self.tables)


class RestoreData(StepData):
    """Attributes:
    made: the OID of the database that was made, once it was proven.
    proven: what the proof found.
    """

    step = Step.RESTORE

    made: int | None = None
    proven: Proven | None = None


class SwapData(StepData):
    """Attributes:
    live_oid, incoming_oid: what tells, after a kill, which of both databases is live.
    subscriptions: those that were enabled in the live database.
    counters: what the server had counted of writes in the incoming one.
    interruption_seconds: how long no session was let in.
    sessions_cut: how many were ended for it.
    was_live: on the way back: what was to be live has been.
    aside: on the way back: what that is called from then on.
    stays: the same, where it was not this program that put it aside; empty when it is gone.
    aside_subscriptions: those that were enabled in it.
    """

    step = Step.SWAP

    live_oid: int | None = None
    incoming_oid: int | None = None
    subscriptions: tuple[str, ...] = ()
    counters: dict[str, Any] = Field(default_factory=dict)
    interruption_seconds: float | None = None
    sessions_cut: int | None = None
    was_live: bool = False
    aside: str = ""
    stays: str | None = None
    aside_subscriptions: tuple[str, ...] = ()

    @property
    def oids(self) -> tuple[int, int] | None:
        """Of the live database and the incoming one before the swap; ``None`` before it was begun."""
        if self.live_oid is None or self.incoming_oid is None:
            return None
        return self.live_oid, self.incoming_oid


class NameData(StepData):
    """Nothing but notes."""

    step = Step.NAME


class MigrateData(StepData):
    """Attributes:
    runs: what tells the run that is begun from earlier ones, as the service manager says it.
    """

    step = Step.MIGRATE

    runs: dict[str, Any] | None = None


class StartData(StepData):
    """Nothing but notes."""

    step = Step.START


class HealthData(StepData):
    """Nothing but notes."""

    step = Step.HEALTH

"""The data of each step in a restore's journal: one model for each step, without behaviour.

A value that is not set is not written. If no pure module reads a step's data, the model is in the step's own module of
``steps``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.proof.check_results import CheckResult, CopiedTable
from ovia_backup_dagster.restoration.restore_order import Step


class StepData(Sidecar):
    """Data that any step may have, and the end of the restore.

    Attributes:
        step: the word of the step.
        notes: texts for the operator.
        error, fix: why the step failed, and what to do.
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
    replicas: service -> its replicas before the restore; ``None`` if an operator stops the services.
    """

    step = Step.STOP

    replicas: dict[str, int] | None = None


class DropData(StepData):
    """Attributes:
    properties: of the dropped database, as ``database_settings`` writes them.
    dropped_subscriptions: name -> slot, of the dropped database's subscriptions.
    """

    step = Step.DROP

    properties: str = ""
    dropped_subscriptions: dict[str, str | None] = Field(default_factory=dict)


class Proven(Sidecar):
    """The result of comparing a restored database with its backup; lines, tables and phases are as in a drill.

    Attributes:
        lines: the checks, in order.
        tables: rows and bytes of each.
        phases: name -> seconds.
        versions: program or server -> version.
        database_bytes: ``pg_database_size``.
        lost: what could not be restored from a damaged backup.
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
    made: the OID of the restored database, once it passed its checks.
    proven: the results of the checks.
    """

    step = Step.RESTORE

    made: int | None = None
    proven: Proven | None = None


class SwapData(StepData):
    """Attributes:
    live_oid, incoming_oid: these tell, after a kill, which of the two databases is live.
    subscriptions: those that were enabled in the live database.
    counters: the server's write counters of the incoming database.
    interruption_seconds: how long the swap kept new sessions out.
    sessions_cut: how many sessions were terminated for it.
    was_live: when put back: whether the incoming database was live for a while.
    aside: when put back: the name of that database from then on.
    stays: the same, if an operator renamed that database; empty if it is gone.
    aside_subscriptions: those that were enabled in that database.
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
        """The OIDs of the live and the incoming database before the swap; ``None`` if no swap was begun."""
        if self.live_oid is None or self.incoming_oid is None:
            return None
        return self.live_oid, self.incoming_oid


class NameData(StepData):
    """Nothing but notes."""

    step = Step.NAME


class MigrateData(StepData):
    """Attributes:
    runs: the service manager's data that distinguishes this run from earlier ones.
    """

    step = Step.MIGRATE

    runs: dict[str, Any] | None = None


class StartData(StepData):
    """Nothing but notes."""

    step = Step.START


class HealthData(StepData):
    """Nothing but notes."""

    step = Step.HEALTH

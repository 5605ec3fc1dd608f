"""What is asked of a restore, decided to the last name before anything is touched; and the words of its steps.

What was done of it belongs to ``journal``, how a step is taken and in which order a restore begins now to ``steps``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.core.naming import SUFFIX, encode_database

_NAME_LENGTH = 160


class Mode(StrEnum):
    """How a backup gets to its place."""

    SWAP = "swap"
    DROP = "drop"
    NEW = "new"
    UNDO = "undo"


class StopServices(StrEnum):
    """When the services that write to the database are stopped."""

    AT_SWAP = "at-swap"
    FIRST = "first"


class Step(StrEnum):
    """The words that a journal has for the steps of version 1, which other modules name.

    A step that comes later has its word in its own module of ``steps``: a journal may hold words that are not here.
    """

    DRILL = "drill"
    STOP = "stop services"
    DROP = "drop database"
    RESTORE = "restore"
    SWAP = "swap"
    NAME = "name"
    MIGRATE = "migrate"
    START = "start services"
    HEALTH = "health"


#: Frozen: the order of steps of version 0.1.0, whose orders do not say theirs. A restore that it began is finished so,
#: whatever ``steps.registry`` says by then; a change here would take steps of a killed restore twice, or not at all.
_VERSION_1 = {
    Mode.SWAP: (Step.RESTORE, Step.STOP, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.DROP: (Step.DRILL, Step.STOP, Step.DROP, Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.NEW: (Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.UNDO: (Step.STOP, Step.SWAP, Step.START, Step.HEALTH),
}


def _steps_of_version_1(order: dict[str, Any]) -> tuple[str, ...]:
    """The steps of an order that does not say them. Frozen, as the table is."""
    steps = list(_VERSION_1[order["mode"]])
    if order["stop_services"] is StopServices.FIRST and Step.STOP in steps:
        steps.remove(Step.STOP)
        steps.insert(0, Step.STOP)
    unneeded = {
        Step.NAME: not order["takes_name"],
        Step.STOP: not order["services"],
        Step.START: not order["services"],
        Step.MIGRATE: not order["migrate"],
        Step.HEALTH: not order["health_url"],
    }
    return tuple(step.value for step in steps if not unneeded.get(step, False))


class Order(Sidecar):
    """One restore, decided to the last name before anything is touched.

    Attributes:
        started_at: UTC.
        database: the live database.
        backup, backup_path, backup_started_at: the file's name, where it stands, and when the dump began; none of an
            undo.
        host, port: of the server.
        system_identifier: the server's; ``None`` where it may not be asked.
        incoming: what the database is called that is to be live, until it is; with ``new``, the one that is made.
        takes_name: it is given the live database's name in the end, as there is none any more, or not yet.
        incoming_oid, live_oid: what tells, after a kill, which of both is live; ``None`` for one not made yet.
        kept: what the live database is called afterwards.
        jobs: how many entries pg_restore restores at a time.
        stop_services: when.
        services: those that write, with how many replicas they are to have afterwards; ``None``: as before.
        migrate: the one-shot service that migrates; empty for none.
        health_url: what is to answer in the end, without what is secret in it; empty for nothing.
        auto_undo: whether to swap back when it does not.
        subscriptions: of an undo, those that were disabled in the database that is to be live again.
        new_host: the server is not the one that was backed up; roles, owner and settings come from the backup.
        create_roles: make the roles that the server lacks, from those saved with the backup.
        privileged_roles: of those, the ones that get all that they had, power over others included.
        even_if_damaged: restore what can be, prove nothing.
        steps: the words of what there is to do, in order, as they were when it was decided: it is finished in that
            order, whichever version does so.
        launched_by, run_id: who asked for it; Dagster's run.
    """

    version: Literal[1] = 1
    mode: Mode
    started_at: AwareDatetime
    database: str
    backup: str = ""
    backup_path: str = ""
    backup_started_at: AwareDatetime | None = None
    host: str
    port: int
    system_identifier: str | None = None
    incoming: str
    takes_name: bool = False
    incoming_oid: int | None = None
    live_oid: int | None = None
    kept: str = ""
    jobs: int = 1
    stop_services: StopServices = StopServices.AT_SWAP
    services: dict[str, int | None] = Field(default_factory=dict)
    migrate: str = ""
    health_url: str = ""
    auto_undo: bool = False
    subscriptions: tuple[str, ...] = ()
    new_host: bool = False
    create_roles: bool = False
    privileged_roles: tuple[str, ...] = ()
    even_if_damaged: bool = False
    steps: tuple[str, ...] = Field(default_factory=_steps_of_version_1)
    launched_by: str
    run_id: str | None = None
    made_by: str

    @property
    def becomes(self) -> str:
        """What the restored database is called in the end."""
        return self.incoming if self.mode is Mode.NEW and not self.takes_name else self.database

    @property
    def filename(self) -> str:
        """Its name in ``restores/``, without an ending."""
        return _filename(self.started_at, self.backup or f"{self.database}_{self.mode}")

    @property
    def place(self) -> str:
        """The server, for people."""
        return f"{self.host}:{self.port}"


def _filename(at: datetime, name: str) -> str:
    # A backup from elsewhere may have any name, of any length.
    encoded = encode_database(name.removesuffix(SUFFIX))[:_NAME_LENGTH]
    return f"{stamp(at)}_{encoded}"


def stamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d_%H%M%S}"

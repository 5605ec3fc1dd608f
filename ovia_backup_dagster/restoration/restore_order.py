"""The order of a restore: every decision and name, fixed before anything is touched; and the words of its steps.

``journal`` records which steps were taken. ``steps`` defines how a step is taken, and the steps of a new restore.
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
    """How the restored database becomes live."""

    SWAP = "swap"
    DROP = "drop"
    NEW = "new"
    UNDO = "undo"


class StopServices(StrEnum):
    """When the services that write to the database stop."""

    AT_SWAP = "at-swap"
    FIRST = "first"


class Step(StrEnum):
    """The journal's words for the steps of version 1.

    A later step defines its word in its own module of ``steps``, so a journal may hold words that are not listed here.
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


#: Frozen: the steps of version 0.1.0, whose orders do not store them. A restore that it began is finished in this
#: sequence, whatever ``steps.registry`` holds now. A change would repeat or skip steps of a killed restore.
_VERSION_1 = {
    Mode.SWAP: (Step.RESTORE, Step.STOP, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.DROP: (Step.DRILL, Step.STOP, Step.DROP, Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.NEW: (Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.UNDO: (Step.STOP, Step.SWAP, Step.START, Step.HEALTH),
}


def _steps_of_version_1(order: dict[str, Any]) -> tuple[str, ...]:
    """The steps of an order that does not store them. Frozen, like the table."""
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
    """One restore: every decision and name, fixed before anything is touched.

    Attributes:
        started_at: UTC.
        database: the live database.
        backup, backup_path, backup_started_at: the file's name, its path, and when the dump began; unset for an undo.
        host, port: of the server.
        system_identifier: the server's; ``None`` if the role may not query it.
        incoming: the name of the restored database until it is live; with ``new``, its final name.
        takes_name: it gets the live database's name at the end, because no database has that name then.
        incoming_oid, live_oid: these tell, after a kill, which database is live; ``None`` before it is created.
        kept: the name of the old live database afterwards.
        jobs: how many entries pg_restore restores at a time.
        stop_services: when services stop.
        services: service that writes to the database -> its replicas afterwards; ``None`` for as before.
        migrate: the one-shot migration service; empty for none.
        health_url: the health check at the end, without its secrets; empty for none.
        auto_undo: whether to swap back if the check fails.
        subscriptions: for an undo, those disabled in the database that becomes live again.
        new_host: the server is not the one that was backed up; roles, owner and settings come from the backup.
        create_roles: create roles that the server lacks, from those saved with the backup.
        privileged_roles: those of the created roles that also get their privileged attributes and memberships.
        even_if_damaged: restore whatever can be read, without the checks.
        tables: those to copy from the restored database into the live one; empty for none.
        steps: the words of the steps, in order, as planned. Any version finishes the restore in that order.
        launched_by, run_id: who started it; Dagster's run.
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
    tables: tuple[str, ...] = ()
    steps: tuple[str, ...] = Field(default_factory=_steps_of_version_1)
    launched_by: str
    run_id: str | None = None
    made_by: str

    @property
    def becomes(self) -> str:
        """The final name of the restored database."""
        return self.incoming if self.mode is Mode.NEW and not self.takes_name else self.database

    @property
    def tables_schema(self) -> str:
        """The schema of the live database that receives the tables."""
        return f"restored_{self.started_at.astimezone(UTC):%Y%m%d_%H%M%S}"

    @property
    def filename(self) -> str:
        """Its file name in ``restores/``, without a suffix."""
        return _filename(self.started_at, self.backup or f"{self.database}_{self.mode}")

    @property
    def place(self) -> str:
        """The server, for people."""
        return f"{self.host}:{self.port}"


def _filename(at: datetime, name: str) -> str:
    # A backup from outside the volume may have any name, of any length.
    encoded = encode_database(name.removesuffix(SUFFIX))[:_NAME_LENGTH]
    return f"{stamp(at)}_{encoded}"


def stamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d_%H%M%S}"

"""Checks that refuse to begin or continue any restore: the wrong server, an outdated plan, no room for the journal.

Obstacles to the restore of one particular backup are found by ``preflight``, before there is a plan.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ovia_backup_dagster.core.errors import DiskFullError, RestoreRefusedError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect, other_database, system_identifier
from ovia_backup_dagster.restoration.request import command_to_give_up, command_to_repeat
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.swap import database_state

_JOURNAL_BYTES = 8 * 1024 * 1024


def is_elsewhere(target: Connection, order: Order) -> bool:
    """Whether the restore began on another server, whose databases of the same names are different ones.

    Raises:
        ServerError: no connection, or it broke.
    """
    here = _system_identifier(target)
    if here is not None and order.system_identifier is not None:
        return here != order.system_identifier
    return (target.host, target.port) != (order.host, order.port)


def refuse_other_server(target: Connection, order: Order) -> None:
    """Refuse a restore that began on another server.

    Raises:
        RestoreRefusedError: it began on another server.
    """
    if not is_elsewhere(target, order):
        return
    raise RestoreRefusedError(
        f"{target.host}:{target.port} is not the server on which the {order.mode} of {order.database} began",
        why=f"that was {order.place}, with system identifier {order.system_identifier or 'unknown'}; this is "
        f"{_system_identifier(target) or 'unknown'}",
        fix="set RESTORE_POSTGRES_HOST and POSTGRES_HOST, POSTGRES_PORT as they were then; then try again; or, if "
        f"that server is gone for good: {command_to_give_up(order)}",
    )


def refuse_stale(target: Connection, order: Order) -> None:
    """Refuse early if the live database is not the planned one: the swap or drop would notice only hours later.

    Raises:
        RestoreRefusedError: the live database is not the one in the plan.
    """
    found = database_state(target, order.database)
    if order.becomes == order.database and order.live_oid != (found.oid if found.exists else None):
        raise RestoreRefusedError(
            f"nothing was done: database {order.database} is not the one that was planned for",
            why="it was dropped, created or renamed since, perhaps by another restore",
            fix="see what was done meanwhile: ovia-backup restore --history; then begin again: "
            + command_to_repeat(order),
        )


def refuse_full_volume(root: Path) -> None:
    """Refuse if there is no room for a journal.

    Raises:
        DiskFullError: the backup volume has no room for a journal.
    """
    free = shutil.disk_usage(root).free
    if free < _JOURNAL_BYTES:
        raise DiskFullError(
            f"the backup volume {root} has no room for a restore's journal",
            why=f"{human_bytes(free)} free",
            fix="make room: ovia-backup prune --dry-run; df -h $BACKUP_DIR",
        )


def _system_identifier(target: Connection) -> str | None:
    with connect(other_database(target, target.database)) as session:
        return system_identifier(session)

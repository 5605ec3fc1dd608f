"""Databases that restores have replaced. They can be swapped back until they are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.errors import BackupError, RestoreRefusedError
from ovia_backup_dagster.core.naming import before_at
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.session import connect, other_database
from ovia_backup_dagster.proof.target import drop_database
from ovia_backup_dagster.restoration.subscriptions import drop_subscriptions
from ovia_backup_dagster.restoration.swap import obstacles

_DATABASES = """
    SELECT datname AS name,
           CASE WHEN has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
                THEN pg_database_size(oid) END AS size_bytes
    FROM pg_database WHERE datname ~ '_before_[0-9]{14}$'
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A database that was replaced.

    Attributes:
        at: when the name was chosen (UTC); the swap may have been hours later.
        size_bytes: on the server's disk; ``None`` if the role may not query it.
    """

    name: str
    at: datetime
    size_bytes: int | None


def kept(server: Connection, database: str) -> list[Kept]:
    """The databases that restores of this database have replaced, newest first.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(other_database(server, database)) as session:
        rows = session.execute(_DATABASES).fetchall()
    found = [
        Kept(row["name"], at, row["size_bytes"]) for row in rows if (at := before_at(row["name"], database)) is not None
    ]
    return sorted(found, key=lambda each: each.at, reverse=True)


def replaced_database(found: Sequence[Kept], name: str) -> Kept:
    """The replaced database with this name.

    Raises:
        RestoreRefusedError: there is none with this name; the message lists the existing ones.
    """
    for each in found:
        if each.name == name:
            return each
    raise RestoreRefusedError(
        f"nothing was done: {name} is not the name of a kept database",
        why=f"kept: {', '.join(each.name for each in found) or 'none'}",
        fix="see what there is: ovia-backup undo-restore --list",
    )


def way_back(found: Sequence[Kept], name: str) -> str:
    """The command that swaps back to the kept database with this name; it leaves out the name of the newest."""
    return "ovia-backup undo-restore" + (f" --kept {shell_word(name)}" if name != found[0].name else "")


def drop_replaced(server: Connection, database: str, name: str) -> list[str]:
    """Drop a database that a restore has replaced, and terminate the sessions in it.

    Args:
        server: as its owner or a superuser.
        database: the live database that was restored.
        name: the replaced database.

    Returns:
        What is left to do on other servers: the slots of its subscriptions, to be dropped on their publishers.

    Raises:
        RestoreRefusedError: no restore of this database gives such a name, or the database cannot be dropped now.
        ServerError: it does not exist, this role does not own it, or there is no connection, or it broke.
    """
    if before_at(name, database) is None:
        raise RestoreRefusedError(
            f"database {name} is not dropped",
            why=f"no restore of {database} has kept it: those are called {database}_before_ and a time",
            fix="see what there is: ovia-backup undo-restore --list",
        )
    # Read the slots first: only the subscriptions know them.
    for obstacle in obstacles(server, name, mode_needs_swap=False):
        raise obstacle
    slots = drop_subscriptions(server, name)
    left = [f"drop on its publisher: replication slot {slot}" for slot in slots]
    try:
        with connect(other_database(server, database)) as session:
            drop_database(session, name, must_exist=True)
    except BackupError as error:
        raise type(error)(error.what, why=error.why, said=error.said, fix="; ".join([error.fix, *left])) from None
    return left

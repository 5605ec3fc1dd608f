"""A database's subscriptions: disabled before another database takes its place, and removed before it is dropped.

A renamed database keeps applying its subscriptions, and a dropped one leaves slots on the publishers, which then keep
WAL forever. A restored database has none: a restore leaves subscriptions out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect, other_database

_SUBSCRIPTIONS = """
    SELECT s.subname AS name, s.subenabled AS enabled, s.subslotname AS slot
    FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = %s ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subscription.

    Attributes:
        enabled: whether it is being applied.
        slot: its slot's name on the publisher; ``None`` without one.
    """

    name: str
    enabled: bool
    slot: str | None


def subscriptions_of(server: Connection, database: str) -> list[Subscription]:
    """The database's subscriptions. The database need not accept connections.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(other_database(server, database)) as session:
        return [Subscription(**row) for row in session.execute(_SUBSCRIPTIONS, [database])]


def disable_subscriptions(server: Connection, database: str) -> list[str]:
    """Disable the database's subscriptions; returns the names of those that were enabled.

    A disabled subscription's slot still keeps WAL on its publisher.

    Raises:
        ServerError: another role owns them, no connection, or it broke.
    """
    enabled = [subscription.name for subscription in subscriptions_of(server, database) if subscription.enabled]
    _alter(server, database, enabled, "ALTER SUBSCRIPTION {} DISABLE")
    return enabled


def enable_subscriptions(server: Connection, database: str, names: Iterable[str]) -> None:
    """Enable the subscriptions that were disabled. Those that were dropped since are skipped.

    Raises:
        ServerError: another role owns one, no connection, or it broke.
    """
    stopped = {each.name for each in subscriptions_of(server, database) if not each.enabled}
    _alter(server, database, [name for name in names if name in stopped], "ALTER SUBSCRIPTION {} ENABLE")


def drop_subscriptions(server: Connection, database: str) -> list[str]:
    """Drop the database's subscriptions; returns their slots' names, to be dropped on the publishers.

    The publishers are not contacted: they may be gone.

    Raises:
        ServerError: another role owns them, no connection, or it broke.
    """
    found = subscriptions_of(server, database)
    names = [subscription.name for subscription in found]
    for form in (
        "ALTER SUBSCRIPTION {} DISABLE",
        "ALTER SUBSCRIPTION {} SET (slot_name = NONE)",
        "DROP SUBSCRIPTION {}",
    ):
        _alter(server, database, names, form)
    return [subscription.slot for subscription in found if subscription.slot]


def _alter(server: Connection, database: str, names: list[str], form: str) -> None:
    if not names:
        return  # opens no session: the database may not accept connections
    with connect(server.to(database)) as session:
        for name in names:
            session.execute(sql.SQL(form).format(sql.Identifier(name)))

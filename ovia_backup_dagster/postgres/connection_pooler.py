"""Checks that a session is one of the server itself, not of a connection pooler in front of it.

A backup needs sessions that persist: settings that hold, an exported snapshot, a lock that ends with its session. A
pooler (PgBouncer, Odyssey, Pgpool-II, pgcat) shares its own server sessions among clients and may ignore a client's
startup options. So this system never reads through one. The check relies on no product's name: :func:`option` sets a
value at the start of the session, and :func:`require_real` checks that the value is in effect, that a setting outlasts
a statement, and that every answer comes from the same server process, the one that accepted the session. ``session``
makes the connection.
"""

from __future__ import annotations

import secrets
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import PoolerError
from ovia_backup_dagster.postgres.programs import Connection

#: Custom settings, which any role may set: one at the start of the session, one within it.
_ASKED, _SET = "ovia_backup.asked", "ovia_backup.set"
#: The later statements must find what the first one set: in a pool, another process may answer each of them.
_BEGIN = f"SELECT pg_backend_pid() AS pid, current_setting('{_ASKED}', true) AS asked, set_config('{_SET}', %s, false)"
_AGAIN = f"SELECT pg_backend_pid() AS pid, current_setting('{_SET}', true) AS set"
_TIMES = 2
NEXT = "set {by_host} and the port to those of the server itself, not of a pooler (PgBouncer)"


def new_token() -> str:
    """A value that no other session uses."""
    return secrets.token_hex(8)


def option(token: str) -> str:
    """The part of ``PGOPTIONS`` that sets the token."""
    return f"-c {_ASKED}={token}"


def require_real(session: psycopg.Connection[dict[str, Any]], connection: Connection, token: str) -> None:
    """Raise an error if a pooler answers; called before any other query of the session.

    Args:
        session: an autocommit session that was started with :func:`option`.
        connection: for the error.
        token: the value that :func:`option` set.

    Raises:
        PoolerError: it is a pooler's session.
        psycopg.Error: the server, or the pooler, refused to answer.
    """
    first = session.execute(_BEGIN, [token]).fetchone()
    assert first is not None
    why = ""
    # A proxy that does not support cancelling queries reports no process ID.
    if session.info.backend_pid not in (0, first["pid"]):
        why = "the process that answers is not the one that accepted the session"
    if first["asked"] != token:
        why = "the settings passed at the start of the session are not in effect"
    for _ in range(_TIMES):
        again = session.execute(_AGAIN).fetchone()
        assert again is not None
        if again["pid"] != first["pid"]:
            why = "different server processes answer the queries of one session"
        elif again["set"] != token:
            why = "the session's settings are lost after the transaction"
    if why:
        raise PoolerError(
            f"{connection} is not reached directly: a connection pooler answers there",
            why=f"{why}; a backup needs one session throughout, and a restore needs locks that end with their session",
            fix=NEXT.format(by_host=connection.variables.host),
        )

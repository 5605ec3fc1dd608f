"""Whether a session is one of the server itself, rather than of a connection pooler in front of it.

A backup needs sessions that stay: settings that hold, an exported snapshot, a lock that ends with its session. A pooler
(PgBouncer, Odyssey, Pgpool-II, pgcat) keeps sessions of its own, lends them out, and may ignore what a client asks for
when it connects. So nothing is read through one. What it is recognised by holds for every pooler, by no product's name:
:func:`option` asks the server for something at the start of the session, and :func:`require_real` looks whether that is
in effect, whether what a session sets outlasts a statement, and whether the process that answers is always the same,
and the one that greeted us. How to connect is the business of ``session``.
"""

from __future__ import annotations

import secrets
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import PoolerError
from ovia_backup_dagster.postgres.programs import Connection

#: Custom settings, which any role may set: one at the start of the session, one in it.
_ASKED, _SET = "ovia_backup.asked", "ovia_backup.set"
#: What the first statement sets, the others must find: in a pool, each may be answered by another process.
_BEGIN = f"SELECT pg_backend_pid() AS pid, current_setting('{_ASKED}', true) AS asked, set_config('{_SET}', %s, false)"
_AGAIN = f"SELECT pg_backend_pid() AS pid, current_setting('{_SET}', true) AS set"
_TIMES = 2
NEXT = "set {by_host}, and the port, to the server itself: it must be reached without a pooler (PgBouncer)"


def new_token() -> str:
    """What no other session has asked for."""
    return secrets.token_hex(8)


def option(token: str) -> str:
    """What asks for it, in ``PGOPTIONS``."""
    return f"-c {_ASKED}={token}"


def require_real(session: psycopg.Connection[dict[str, Any]], connection: Connection, token: str) -> None:
    """Make sure of it, before anything else is asked.

    Args:
        session: autocommit, and begun with :func:`option`.
        connection: to what, for the error.
        token: as it was asked for.

    Raises:
        PoolerError: it is a pooler's session.
        psycopg.Error: the server, or the pooler, refused to answer.
    """
    first = session.execute(_BEGIN, [token]).fetchone()
    assert first is not None
    why = ""
    # A proxy that makes no promise about cancelling names no process.
    if session.info.backend_pid not in (0, first["pid"]):
        why = "the process that answers is not the one that the session began with"
    if first["asked"] != token:
        why = "the settings that a session is begun with are not in effect"
    for _ in range(_TIMES):
        again = session.execute(_AGAIN).fetchone()
        assert again is not None
        if again["pid"] != first["pid"]:
            why = "each question is answered by another process of the server"
        elif again["set"] != token:
            why = "what a session sets is forgotten after the transaction"
    if why:
        raise PoolerError(
            f"{connection} is not reached directly: a connection pooler answers there",
            why=f"{why}; a backup needs a session that lasts, and a restore locks that end with it",
            fix=NEXT.format(by_host=connection.variables.host),
        )

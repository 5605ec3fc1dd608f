"""Swaps a restored database with the live one, and back, by renaming both in one transaction.

A database can be renamed only while no session is in it. ``ALTER DATABASE ... RENAME`` takes the lock that every new
session needs, and waits a moment for the sessions in the database. In that moment a second session terminates them, so
no client can connect in between. Only the renames are committed: if any process is killed at any time, the names are
all old or all new, and no database is left closed to its users.

Database-level settings belong to ``database_settings``, replication into the database to ``subscriptions``, write
counters to ``activity``, and the databases that a swap leaves behind to ``replaced_databases``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.errors import DatabaseInUseError, DatabaseMissingError, RestoreRefusedError
from ovia_backup_dagster.core.human_text import some
from ovia_backup_dagster.postgres.advisory_lock import AdvisoryLock
from ovia_backup_dagster.postgres.programs import APPLICATION, Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier, sql_string
from ovia_backup_dagster.postgres.session import DURABLY, connect, other_database

T = TypeVar("T")
DEADLINE_SECONDS = 30.0
#: How often sessions are ended while the server waits for the database to be empty.
_POLL_SECONDS = 0.005
#: The longest time that a busy server takes to end a session whose client has closed it.
_CLOSING_SECONDS = 2.0
_SHOWN = 5
#: Serializes swaps. The server may still run the swap of a killed client; a query for its outcome waits for it.
_ALONE = AdvisoryLock("ovia-backup swap", "the renaming of databases by a restore")
_PATIENCE = f"SET lock_timeout = '{DEADLINE_SECONDS:.0f}s'"
#: New sessions wait while the rename waits for its lock (for example, for a CREATE DATABASE ... TEMPLATE of it).
_HASTE = "SET lock_timeout = '2s'"
#: The swap must survive a crash, together with everything that was committed before it with synchronous_commit = off. A
#: role whose commits also wait for a standby keeps its setting.
_DURABLE = """
    SELECT set_config(name, 'local', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'
"""
_DATABASE = """
    SELECT d.oid::bigint AS oid, pg_get_userbyid(d.datdba) AS owner, d.datistemplate AS template,
           d.datallowconn AS open, d.datconnlimit = -2 AS invalid,
           CASE WHEN has_database_privilege(d.oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')
                THEN pg_database_size(d.oid) END AS size_bytes,
           me.rolsuper OR pg_has_role(d.datdba, 'USAGE') AND pg_has_role(d.datdba, 'SET') AS ours
    FROM pg_database d, pg_roles me WHERE d.datname = %s AND me.rolname = current_user
"""
_ROLE = """
    SELECT pg_is_in_recovery() AS standby, rolsuper OR rolcreatedb AS creates_databases,
           rolname AS acting, session_user AS connected
    FROM pg_roles WHERE rolname = current_user
"""
#: The server itself ends autovacuum for a rename. A role that may not see a process's kind recognizes autovacuum by its
#: missing role: all other processes (walsenders, workers of queries and of subscriptions) have one.
#: pg_signal_backend terminates no superuser's session.
_SESSIONS = """
    SELECT a.pid, coalesce(a.usename, '') AS "user", coalesce(nullif(a.application_name, ''), a.backend_type, '')
           AS application, coalesce(host(a.client_addr), '') AS client, coalesce(a.state, '') AS state,
           me.rolsuper OR NOT r.rolsuper AND (pg_has_role('pg_signal_backend', 'USAGE') OR pg_has_role(r.oid, 'USAGE'))
           AS endable
    FROM pg_stat_activity a LEFT JOIN pg_roles r ON r.oid = a.usesysid, pg_roles me
    WHERE me.rolname = current_user AND a.datid = ANY (%s::oid[])
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker' AND (a.usesysid IS NOT NULL OR me.rolsuper)
      AND a.pid <> pg_backend_pid()
    ORDER BY a.backend_start
"""
#: In the select list: as a WHERE condition, the planner could evaluate it first and end every session of the server.
_END = f"SELECT pid, pg_terminate_backend(pid) FROM ({_SESSIONS}) AS s WHERE endable"  # noqa: S608
_PREPARED = "SELECT gid, owner, prepared FROM pg_prepared_xacts WHERE database = %s ORDER BY prepared"
_SLOTS = "SELECT slot_name AS name, active FROM pg_replication_slots WHERE database = %s AND NOT temporary ORDER BY 1"
#: {0} is the live database, {1} the incoming one, {2} the name under which the live one is kept. A renamed database
#: stays locked until the transaction ends, so only the first rename of each waits. COMMIT is in the same message as the
#: renames that interrupt clients: the server receives all of it, or nothing.
_CLAIM = sql.SQL("BEGIN; ALTER DATABASE {1} RENAME TO {2}")
_SWAP = sql.SQL(
    "ALTER DATABASE {0} RENAME TO {1}; ALTER DATABASE {2} RENAME TO {0}; ALTER DATABASE {1} RENAME TO {2}; COMMIT"
)
_NAME = sql.SQL("ALTER DATABASE {} RENAME TO {}")
_NAMES = "SELECT oid::bigint AS oid, datname AS name FROM pg_database WHERE oid = ANY (%s::oid[])"


@dataclass(frozen=True, slots=True)
class ClientSession:
    """A session in a database, without its query.

    Attributes:
        user: the role.
        application: its application name, or else its backend type.
        client: its address; empty for a local socket.
        state: as in ``pg_stat_activity``. All but the user is empty if the role may not see it.
        endable: whether this role may terminate it.
    """

    user: str
    application: str
    client: str
    state: str
    endable: bool

    def __str__(self) -> str:
        details = ", ".join(part for part in (self.application, self.client, self.state) if part)
        return f"{self.user or 'the server'} ({details})" if details else self.user


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """The current state of a database.

    Attributes:
        exists: whether it exists; if not, all else is empty.
        owner: its owner's name.
        size_bytes: on the server's disk; ``None`` if the role may not query it.
        oid: identifies it on its server, whatever its name is.
        invalid: whether an interrupted DROP DATABASE has left it unusable.
        sessions: the sessions in it, oldest first.
    """

    exists: bool
    owner: str = ""
    size_bytes: int | None = None
    oid: int = 0
    invalid: bool = False
    sessions: tuple[ClientSession, ...] = ()


@dataclass(frozen=True, slots=True)
class Swapped:
    """The effects of a swap.

    Attributes:
        seconds: from the end of the first session until the new database accepted sessions.
        cut: how many sessions were terminated.
    """

    seconds: float
    cut: int


def database_state(server: Connection, database: str) -> DatabaseState:
    """Query the current state of a database.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(other_database(server, database)) as session:
        row = session.execute(_DATABASE, [database]).fetchone()
        if row is None:
            return DatabaseState(exists=False)
        sessions = _sessions(session, row["oid"])
        return DatabaseState(True, row["owner"], row["size_bytes"], row["oid"], row["invalid"], sessions)


def obstacles(server: Connection, database: str, *, mode_needs_swap: bool = True) -> list[RestoreRefusedError]:
    """Why this role cannot rename or drop the database; empty if it can.

    The role must be a superuser; or have CREATEDB, the owner's rights (membership with INHERIT and SET), and
    pg_signal_backend if sessions of other roles must be terminated.

    Args:
        server: as the role that will rename or drop it.
        database: need not exist.
        mode_needs_swap: the database is to be renamed and kept; otherwise it is to be dropped.

    Raises:
        ServerError: no connection, or it broke.
    """
    found: list[RestoreRefusedError] = []

    def refuse(what: str, why: str, fix: str) -> None:
        found.append(RestoreRefusedError(what, why=why, fix=fix))

    name = sql_identifier(database)
    with connect(other_database(server, database)) as session:
        role = session.execute(_ROLE).fetchone()
        assert role is not None  # a session always has a role
        acting, connected = role["acting"], role["connected"]
        me, instead = sql_identifier(acting), ""
        if acting != connected:
            # ALTER ROLE ... SET role: the session has the acting role's rights.
            instead = f", as which role {connected} acts, since its setting role says so"
        if role["standby"]:
            refuse(
                f"the server at {server.host}:{server.port} is a standby",
                "it replays its primary's WAL, and nothing can be restored into it",
                f"set {server.variables.host} to the primary",
            )
            return found
        if not role["creates_databases"]:
            refuse(
                f"role {acting} may not create or rename a database{instead}",
                "it does not have CREATEDB",
                f"as a superuser: ALTER ROLE {me} CREATEDB; or set RESTORE_POSTGRES_USER to a role that may",
            )
        row = session.execute(_DATABASE, [database]).fetchone()
        if row is None:
            return found
        if not row["ours"]:
            refuse(
                f"database {database} belongs to {row['owner']}",
                f"role {acting} does not have its rights{instead}",
                f"as a superuser: GRANT {sql_identifier(row['owner'])} TO {me} WITH INHERIT TRUE, SET TRUE; or name a "
                "role that has: RESTORE_POSTGRES_USER",
            )
        if row["template"]:
            refuse(
                f"database {database} is a template",
                "new databases are made from it, and a server needs its own",
                f"if it is not meant to be one: ALTER DATABASE {name} IS_TEMPLATE false",
            )
        if mode_needs_swap and row["invalid"]:
            refuse(
                f"database {database} cannot be used any more",
                "a DROP DATABASE of it was interrupted",
                f"DROP DATABASE {name}; then restore into a new one of that name",
            )
        elif mode_needs_swap and not row["open"]:
            refuse(
                f"database {database} accepts no connections",
                "its connections were disabled (ALLOW_CONNECTIONS false)",
                f"once you know why: ALTER DATABASE {name} ALLOW_CONNECTIONS true",
            )
        in_database = f"psql --dbname={shell_word(database)}"
        for prepared in session.execute(_PREPARED, [database]):
            gid = sql_string(prepared["gid"])
            refuse(
                f"database {database} has the prepared transaction {prepared['gid']}",
                f"{prepared['owner']} has neither committed it nor rolled it back since "
                f"{prepared['prepared']:%Y-%m-%d %H:%M} UTC, and it holds the database",
                f"ask what it belongs to; then, in the database: COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid} "
                f"({in_database})",
            )
        for slot in session.execute(_SLOTS, [database]):
            stop = "stop its consumer, then: " if slot["active"] else ""
            refuse(
                f"database {database} has the logical replication slot {slot['name']}",
                "what is read through it would go on being the old database's, or be lost with it",
                f"{stop}SELECT pg_drop_replication_slot({sql_string(slot['name'])}); its consumer must start again "
                "after the restore",
            )
        stay = _staying(session, row["oid"])
        if stay:
            refuse(
                f"role {server.user} may not end sessions in database {database}: {some(stay)}",
                "to end other roles' sessions takes pg_signal_backend; to end a superuser's takes a superuser",
                f"end them; or, as a superuser: GRANT pg_signal_backend TO {me}; or name a superuser: "
                "RESTORE_POSTGRES_USER",
            )
    return found


def swap_databases(
    server: Connection,
    live: str,
    incoming: str,
    kept: str,
    *,
    oids: tuple[int, int] | None = None,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Swapped:
    """Rename ``live`` to ``kept`` and ``incoming`` to ``live``, both or neither, and terminate every session in both.

    New sessions can begin in both databases as soon as the swap is done. If a session cannot be terminated, the swap
    is tried again; each try keeps new sessions waiting for up to five seconds.

    Args:
        server: as a role that has no :func:`obstacles`.
        live: the name that clients use.
        incoming: the database that takes its place.
        kept: the name of the old live database afterwards.
        oids: the expected OIDs of ``live`` and ``incoming``; another swap may have changed them.
        deadline_seconds: no further try begins after this time.

    Raises:
        DatabaseInUseError: sessions stayed in one of the databases; nothing is changed.
        DatabaseMissingError: ``live`` or ``incoming`` does not exist, or has another OID.
        BackupError: the server refused, and nothing is changed; or the connection broke: ask :func:`swap_outcome`.
    """
    with _sessions_of_ours(other_database(server, live, incoming)) as (renaming, ending):
        found = [_oid(ending, server, name) for name in (live, incoming)]
        for name, here, wanted in zip((live, incoming), found, oids or found, strict=True):
            if here != wanted:
                raise _missing(server, name)
        names = tuple(map(sql.Identifier, (live, incoming, kept)))

        def rename(cut: set[int]) -> Swapped:
            # The incoming database may be busy for a while (autovacuum visits new tables); the live one is untouched.
            _rename(renaming, _CLAIM.format(*names), ending, found[1], cut)
            began = time.monotonic()
            _rename(renaming, _SWAP.format(*names), ending, found[0], cut)
            return Swapped(time.monotonic() - began, len(cut))

        return _insist(rename, renaming, ending, live, found, deadline_seconds)


def give_name(server: Connection, database: str, name: str, *, oid: int) -> None:
    """Rename ``database`` to a name that no database has, and terminate every session in it.

    Args:
        server: as a role that has no :func:`obstacles`.
        database: the database to rename.
        name: its name afterwards.
        oid: the expected OID of ``database``.

    Raises:
        DatabaseInUseError, DatabaseMissingError: as :func:`swap_databases`; nothing is changed.
        BackupError: the server refused, and nothing is changed; or the connection broke: ask :func:`is_called`.
    """
    with _sessions_of_ours(other_database(server, database, name)) as (renaming, ending):
        if _oid(ending, server, database) != oid:
            raise _missing(server, database)
        statement = _NAME.format(sql.Identifier(database), sql.Identifier(name))

        def rename(cut: set[int]) -> None:
            _rename(renaming, statement, ending, oid, cut)

        _insist(rename, renaming, ending, database, [oid], DEADLINE_SECONDS)


def is_called(server: Connection, name: str, oid: int) -> bool:
    """Whether the database with this OID has the name. Waits for a rename that the server still runs.

    Raises:
        LockTimeoutError: another rename is still running.
    """
    return names_by_oid(server, [oid]).get(oid) == name


def swap_outcome(server: Connection, live: str, oids: tuple[int, int]) -> Literal["before", "after", "torn"]:
    """The outcome of a swap whose client was lost. Waits for a swap that the server still runs.

    Args:
        server: any role.
        live: as passed to :func:`swap_databases`.
        oids: of ``live`` and ``incoming`` before the swap.

    Returns:
        ``before``: the old database has the name ``live``; ``after``: the new one has it; ``torn``: neither has it. The
        state of the other database does not matter.

    Raises:
        LockTimeoutError: another swap is under way.
    """
    called = names_by_oid(server, oids)
    if called.get(oids[0]) == live:
        return "before"
    return "after" if called.get(oids[1]) == live else "torn"


def names_by_oid(server: Connection, oids: Iterable[int]) -> dict[int, str]:
    """The present names of databases by their OIDs, once no swap is running; without those that are gone.

    Raises:
        LockTimeoutError: a swap is still running.
    """
    with connect(other_database(server)) as session:
        session.execute(_PATIENCE)
        _ALONE.take(session)
        return {row["oid"]: row["name"] for row in session.execute(_NAMES, [list(oids)])}


@contextmanager
def _sessions_of_ours(
    server: Connection,
) -> Iterator[tuple[psycopg.Connection[dict[str, Any]], psycopg.Connection[dict[str, Any]]]]:
    """Two sessions, one to rename and one to terminate others, while no other swap may run."""
    with connect(server) as renaming, connect(server) as ending:
        renaming.execute(DURABLY)
        renaming.execute(_PATIENCE)
        _ALONE.take(renaming)
        renaming.execute(_HASTE)
        yield renaming, ending


def _insist(
    rename: Callable[[set[int]], T],
    renaming: psycopg.Connection[Any],
    ending: psycopg.Connection[dict[str, Any]],
    database: str,
    oids: list[int],
    deadline_seconds: float,
) -> T:
    """Rename; try again until the deadline while sessions stay in a database."""
    deadline = time.monotonic() + deadline_seconds
    cut: set[int] = set()
    while True:
        try:
            return rename(cut)
        except (psycopg.errors.ObjectInUse, psycopg.errors.LockNotAvailable) as error:
            renaming.execute("ROLLBACK")
            if time.monotonic() > deadline:
                left = [s for oid in oids for s in _sessions(ending, oid)]
                raise DatabaseInUseError(
                    f"database {database} could not be renamed",
                    why=f"in use by {some(left)}" if left else "sessions come and go in it",
                    said=": ".join(filter(None, (error.diag.message_primary, error.diag.message_detail))),
                    fix="stop what uses it, and try again; nothing was changed",
                ) from None


def _rename(
    renaming: psycopg.Connection[Any],
    renames: sql.Composed,
    ending: psycopg.Connection[dict[str, Any]],
    oid: int,
    cut: set[int],
) -> None:
    """Rename, and terminate the database's sessions meanwhile."""
    with ThreadPoolExecutor(1) as other:
        renamed = other.submit(renaming.execute, renames)
        while not renamed.done():
            cut.update(row["pid"] for row in ending.execute(_END, [[oid]]))
            wait([renamed], _POLL_SECONDS)
        renamed.result()


def _oid(session: psycopg.Connection[dict[str, Any]], server: Connection, database: str) -> int:
    row = session.execute(_DATABASE, [database]).fetchone()
    if row is None:
        raise _missing(server, database)
    return int(row["oid"])


def _missing(server: Connection, database: str) -> DatabaseMissingError:
    return DatabaseMissingError(
        f"there is no {server.to(database)} any more",
        why="it was dropped, renamed or replaced meanwhile",
        fix=f"list the databases: psql -h {shell_word(server.host)} -p {server.port} -l",
    )


def _sessions(session: psycopg.Connection[dict[str, Any]], oid: int) -> tuple[ClientSession, ...]:
    rows = session.execute(_SESSIONS, [[oid]])
    return tuple(ClientSession(r["user"], r["application"], r["client"], r["state"], bool(r["endable"])) for r in rows)


def _staying(session: psycopg.Connection[dict[str, Any]], oid: int) -> list[ClientSession]:
    """Sessions that this role may not terminate, except our own that were just closed, such as one of the dump role."""
    until = time.monotonic() + _CLOSING_SECONDS
    while True:
        stay = [each for each in _sessions(session, oid) if not each.endable]
        if not any(each.application == APPLICATION for each in stay) or time.monotonic() > until:
            return stay
        time.sleep(_POLL_SECONDS)

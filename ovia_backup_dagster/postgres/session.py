"""Short questions to a server, through psycopg: what database is this?

Bulk work belongs to the client programs (``programs``, ``dump``). Nothing here changes the server.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Dumper, Loader
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.sql import Composable

from ovia_backup_dagster.core.errors import BackupError, MomentaryError, ProgramError
from ovia_backup_dagster.core.manifest import DatabaseFacts
from ovia_backup_dagster.postgres import collations, connection_pooler, passfile, programs
from ovia_backup_dagster.postgres.connection_refusal import LET_IN, refusal
from ovia_backup_dagster.postgres.diagnosis import diagnose_error, diagnose_sqlstate
from ovia_backup_dagster.postgres.programs import KEEPALIVES, Connection
from ovia_backup_dagster.postgres.secrets import ENVIRONMENT
from ovia_backup_dagster.postgres.server_messages import raw_text
from ovia_backup_dagster.postgres.session_settings import (
    DECIDING,
    SESSION_OPTIONS,
    UNSET,
    WRITABLE,
    pg_options,
    read_options,
    unended,
)
from ovia_backup_dagster.postgres.translation import SEVERITY

T = TypeVar("T")
#: The server itself ends an ordinary question after a minute: one that is not even answered so is silent.
ANSWER_SECONDS = 90.0
#: What may take long on a server that is well: it waits for a checkpoint, and removes large files.
LONG_SECONDS = 3600.0
#: A database's owner may put a schema of his own before what is built in, and a superuser who asks there for the time
#: would run his function. What a client says outranks what the database or the role is set to.
BUILT_IN = "-c search_path=pg_catalog,pg_temp"
#: A date style, a timeout or quotes of the role's or the database's own would break our short questions; and copies are
#: made by a role that may be set to read only. The last that is said of a setting counts: these two timeouts are ours.
_OPTIONS = f"{SESSION_OPTIONS} {unended()} -c statement_timeout=60s -c lock_timeout=10s {BUILT_IN} {WRITABLE}"

#: A client that is gone without a word, and the locks it held, are noticed by the server as soon as the server by us.
_NOTICED = " ".join(
    f"-c tcp_{name}={KEEPALIVES[name]}" for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")
)

#: A server may be set to forget, in a crash, what it has told us is done; what a journal then says is done must be.
DURABLY = "SET synchronous_commit = on"

#: Stands for a value that is left out.
HIDDEN = "********"
#: English, where the server speaks another language and the role may ask. Names with their schema: some sessions are
#: without ``_BUILT_IN``.
_ENGLISH = """
    SELECT pg_catalog.set_config('lc_messages', 'C', false)
    WHERE pg_catalog.current_setting('lc_messages') OPERATOR(pg_catalog.!~) '^(C|POSIX|en)'
      AND pg_catalog.has_parameter_privilege('lc_messages', 'SET')
"""
#: One row where that is so, also once it was done.
MAY_ENGLISH = """
    SELECT 1 FROM pg_catalog.pg_settings
    WHERE name OPERATOR(pg_catalog.=) 'lc_messages' AND reset_val OPERATOR(pg_catalog.!~) '^(C|POSIX|en)'
      AND pg_catalog.has_parameter_privilege('lc_messages', 'SET')
"""

#: Settings whose values change what a dump or a restore does, and hold no secret.
_HARMLESS = re.compile(
    r"timezone|datestyle|intervalstyle|bytea_output|lc_\w+|extra_float_digits|search_path|client_encoding"
    r"|standard_conforming_strings|default_(?:tablespace|text_search_config|toast_compression|transaction_\w+)"
    r"|\w+_timeout|work_mem|maintenance_work_mem|row_security|role|jit|check_function_bodies|xml\w+",
    re.IGNORECASE,
)
_FACTS = """
    SELECT d.datname AS name,
           current_setting('server_version') AS server_version,
           current_setting('server_version_num')::int AS server_version_num,
           pg_get_userbyid(10) AS bootstrap_superuser,
           pg_get_userbyid(d.datdba) AS owner,
           pg_encoding_to_char(d.encoding) AS encoding,
           d.datcollate AS "collate",
           d.datctype AS ctype,
           CASE d.datlocprovider WHEN 'i' THEN 'icu' ELSE 'libc' END AS locale_provider,
           pg_database_size(d.oid) AS size_bytes
    FROM pg_database d WHERE d.datname = current_database()
"""
_AS_IT_IS = "SELECT name, setting FROM pg_settings WHERE lower(name) = ANY (%s) ORDER BY 1"
_SETTINGS = """
    SELECT coalesce(pg_get_userbyid(nullif(s.setrole, 0)), '') AS role, s.setconfig AS settings
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
    WHERE d.datname = current_database() ORDER BY 1
"""


class _Session(psycopg.Connection[dict[str, Any]]):
    """A session that waits only so long for an answer: what the server promises to end is of no use if it is silent."""

    answer_seconds = ANSWER_SECONDS

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False
    ) -> psycopg.Cursor[dict[str, Any]]:
        """As psycopg's; names and values are UTF-8 also in a session that converts nothing, not ASCII."""
        if isinstance(query, Composable) and _converts_nothing(self):
            query = query.as_bytes(None)
        return super().execute(query, params, prepare=prepare, binary=binary)

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(_answered(gen, self.answer_seconds), interval, timeout)
        except _SilenceError:
            self.pgconn.finish()  # nothing more is asked in it: not even to roll back
            raise


class _SilenceError(psycopg.OperationalError):
    pass


class _LenientText(Loader):
    """Text as UTF-8, as all of it is that can be: what is none stays distinct, and can be shown and written down.

    Roles' and databases' names belong to the cluster, whose databases need not agree about an encoding.
    """

    def load(self, data: Buffer) -> str:
        return raw_text(bytes(data))


class _AnyText(Dumper):
    """Text as UTF-8, of a type that the server infers."""

    def dump(self, obj: str) -> bytes:
        return obj.encode()


def _converts_nothing(session: psycopg.Connection[Any]) -> bool:
    return session.info.parameter_status("client_encoding") == "SQL_ASCII"


def _take_any_text(session: psycopg.Connection[Any]) -> None:
    for kind in ("text", "name", "varchar", "bpchar"):
        session.adapters.register_loader(kind, _LenientText)
    # Such a server converts nothing, and to any other encoding it refuses what is no text in it.
    if session.info.parameter_status("server_encoding") == "SQL_ASCII":
        session.execute("SET client_encoding = 'SQL_ASCII'")
        session.adapters.register_dumper(str, _AnyText)


def _answered(gen: PQGen[T], seconds: float) -> PQGen[T]:
    """Pass on what libpq waits for, until nothing has come for too long."""
    answer = None
    heard = time.monotonic()
    while True:
        try:
            wanted = next(gen) if answer is None else gen.send(answer)
        except StopIteration as end:
            return cast("T", end.value)
        answer = yield wanted
        if answer:
            heard = time.monotonic()
        elif time.monotonic() - heard >= seconds:
            raise _SilenceError(f"no answer from the server for {seconds:.0f} s")


def be_patient(session: psycopg.Connection[Any], seconds: float = LONG_SECONDS) -> None:
    """From here on an answer may take so long."""
    if isinstance(session, _Session):
        session.answer_seconds = seconds


@contextmanager
def connect(
    connection: Connection, options: str = _OPTIONS, *, answer_seconds: float | None = None
) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """An autocommit session.

    Args:
        connection: to what.
        options: the session's ``PGOPTIONS``.
        answer_seconds: how long the server may be silent, from the first word on; ``None``: the usual time.

    Raises:
        ServerSilentError: it took the connection, and then did not answer in time; the session is gone.
        PasswordMissingError: PGPASSFILE names what would be waited for without end.
        PoolerError: a connection pooler answers there.
        ServerError: another of its kinds, with the cause.
    """
    answer_seconds = ANSWER_SECONDS if answer_seconds is None else answer_seconds
    what = f"no connection to {connection}"
    token = connection_pooler.new_token()
    asked = f"{options} {_NOTICED} {connection_pooler.option(token)}"
    passfile.refuse_strange(connection)
    try:
        session = _opened(connection, asked, answer_seconds)
    except (psycopg.Error, UnicodeError) as error:
        raise _turned_away(error, what, connection, asked, answer_seconds) from None
    try:
        with _unended(session, connection, asked, token) as session:
            # A failure is known by its SQLSTATE; this is for the words that people are shown.
            if session.info.server_version >= 150000:
                session.execute(_ENGLISH)
            _take_any_text(session)
            yield session
    except (psycopg.Error, UnicodeError) as error:
        raise diagnose_error(error, what=f"a question to {connection} failed", connection=connection) from None


def _unended(session: _Session, connection: Connection, asked: str, token: str) -> _Session:
    """The session, once it is a real one, and no timeout ends it: one holds a drill's lock and says nothing for hours.

    Raises:
        PoolerError, psycopg.Error: it is none; it is closed then.
    """
    # Not as options at first: older servers know no such, and refuse the session.
    later = unended(session.info.server_version, since=1)
    try:
        try:
            connection_pooler.require_real(session, connection, token)
            for name in read_options(later):
                session.execute(f"SET {name} = 0".encode())
        except psycopg.OperationalError as error:
            # One may be so short that this came too late, and that the server's word of it was lost.
            if not (later and session.broken) or isinstance(error, _SilenceError):
                raise
            session.close()
            session = _opened(connection, f"{asked} {later}", session.answer_seconds)
            connection_pooler.require_real(session, connection, token)
    except BaseException:
        session.close()
        raise
    return session


def _opened(connection: Connection, options: str, answer_seconds: float) -> _Session:
    with _only_our_environment(connection):
        target = _target(connection, options, answer_seconds)
        session = _Session.connect(target, autocommit=True, row_factory=dict_row)
    session.answer_seconds = answer_seconds
    return session


def _target(connection: Connection, options: str, answer_seconds: float) -> str:
    return make_conninfo(
        connection.conninfo(),
        host=connection.host,  # psycopg itself resolves it, and does not see the environment then
        port=connection.port,
        # Never in this process's environment, not for a moment: a thread may start a program in it.
        password=connection.password.get_secret_value() if connection.password else None,
        client_encoding="UTF8",  # some server encodings have no codec here
        options=options,
        connect_timeout=_connect_seconds(answer_seconds),
    )


def _connect_seconds(answer_seconds: float) -> int:
    return math.ceil(min(programs.CONNECT_TIMEOUT_SECONDS, answer_seconds))


def _turned_away(
    error: psycopg.Error | UnicodeError, what: str, connection: Connection, options: str, answer_seconds: float
) -> BackupError:
    """What it means that there is no session: in libpq's words, or else by what the server answers to one more try."""
    found = diagnose_error(error, what=what, connection=connection)
    if type(found) is not ProgramError or not SEVERITY.search(str(error)):
        return found
    with _only_our_environment(connection):
        answer = refusal(_target(connection, options, answer_seconds), _connect_seconds(answer_seconds))
    if answer is None:
        return found
    if answer is LET_IN:
        return MomentaryError(
            what,
            why="the server turned this session away, and lets the next one in: what was in the way has passed",
            said=found.said,
            fix="retry",
        )
    return diagnose_sqlstate(answer.sqlstate, str(error), routine=answer.routine, what=what, connection=connection)


def other_database(server: Connection, *databases: str) -> Connection:
    """To a database that is there on every server and is neither the server's nor one of these.

    Nobody can rename the one he is in; and that of a restore's server, the live one, may be gone.
    """
    return server.to("template1" if "postgres" in (server.database, *databases) else "postgres")


def database_facts(connection: Connection) -> DatabaseFacts:
    """What a manifest records about the source.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(connection) as session:
        facts = session.execute(_FACTS).fetchone()
        assert facts is not None  # one is always connected to a database that exists
        settings = {row["role"]: tuple(map(_without_secret, row["settings"])) for row in session.execute(_SETTINGS)}
        extensions = {
            row["extname"]: row["extversion"]
            for row in session.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
        }
        return DatabaseFacts(
            **facts,
            system_identifier=system_identifier(session),
            settings=settings,
            extensions=extensions,
            collation_versions=collations.versions(session),
        )


def _without_secret(setting: str) -> str:
    name = setting.partition("=")[0]
    return setting if _HARMLESS.fullmatch(name) else f"{name}={HIDDEN}"


def system_identifier(session: psycopg.Connection[dict[str, Any]]) -> str | None:
    """What tells one cluster from another; ``None`` where the role may not see it."""
    try:
        row = session.execute("SELECT system_identifier::text AS id FROM pg_control_system()").fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return row["id"] if row else None


def effective_options(connection: Connection) -> str:
    """How a dump by this role writes values when nobody says otherwise, as ``PGOPTIONS``.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(connection, options=f"{BUILT_IN} {unended()}") as session:
        return pg_options({row["name"]: row["setting"] for row in session.execute(_AS_IT_IS, [list(UNSET)])})


@contextmanager
def _only_our_environment(connection: Connection) -> Iterator[None]:
    """For the moment of connecting, only our ``PG*`` variables are in this process's environment: libpq reads it.

    A stray ``PGHOSTADDR``, ``PGSERVICE`` or ``PGOPTIONS`` would lead the question to another server than the
    dump, whose environment is made from nothing.
    """
    wanted = connection.environment()
    wanted.pop("PGPASSWORD", None)
    with ENVIRONMENT:
        before = {name: value for name, value in os.environ.items() if name.startswith("PG")}
        try:
            for name in before:
                del os.environ[name]
            os.environ.update(wanted)
            yield
        finally:
            for name in wanted:
                os.environ.pop(name, None)
            os.environ.update(before)


_EFFECTIVE = "SELECT lower(name) AS name, setting FROM pg_settings WHERE lower(name) = ANY (%s) ORDER BY 1"


def effective_settings(connection: Connection) -> dict[str, str]:
    """What the settings that values may depend on are for this role, when no client says otherwise.

    Raises:
        ServerError: no connection, or it broke.
    """
    options = f"-c search_path=pg_catalog,pg_temp {unended()}"
    with connect(connection, options=options) as session:
        return {row["name"]: row["setting"] for row in session.execute(_EFFECTIVE, [list(DECIDING)])}

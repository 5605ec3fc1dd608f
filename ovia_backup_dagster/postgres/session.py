"""Opens sessions for short queries through psycopg, and asks for the facts about a database.

Bulk work belongs to the client programs (``programs``, ``dump``). This module changes nothing on the server.
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
#: The server ends an ordinary query after a minute (statement_timeout): a server that sends not even that is silent.
ANSWER_SECONDS = 90.0
#: For statements that may take long on a healthy server, because it waits for a checkpoint and removes large files.
LONG_SECONDS = 3600.0
#: A database's owner may put their own schema before pg_catalog, and a superuser's query there would run the owner's
#: functions. A client's startup option overrides the settings of the database and the role.
BUILT_IN = "-c search_path=pg_catalog,pg_temp"
#: The role's or the database's own date style, timeouts or quoting would break our short queries; and the role that
#: restores copies may be set to read-only. The last value of a setting counts, so these two timeouts are in effect.
_OPTIONS = f"{SESSION_OPTIONS} {unended()} -c statement_timeout=60s -c lock_timeout=10s {BUILT_IN} {WRITABLE}"

#: Lets the server notice a vanished client, and release its locks, as soon as we would notice a vanished server.
_NOTICED = " ".join(
    f"-c tcp_{name}={KEEPALIVES[name]}" for name in ("keepalives_idle", "keepalives_interval", "keepalives_count")
)

#: With synchronous_commit off, a crash may lose a commit that the server has confirmed, and that a journal records.
DURABLY = "SET synchronous_commit = on"

#: Replaces a value that is left out.
HIDDEN = "********"
#: Switches to English if the server speaks another language and the role may set that. The names are qualified because
#: some sessions do not use ``BUILT_IN``.
_ENGLISH = """
    SELECT pg_catalog.set_config('lc_messages', 'C', false)
    WHERE pg_catalog.current_setting('lc_messages') OPERATOR(pg_catalog.!~) '^(C|POSIX|en)'
      AND pg_catalog.has_parameter_privilege('lc_messages', 'SET')
"""
#: Returns one row if both hold, even after the switch.
MAY_ENGLISH = """
    SELECT 1 FROM pg_catalog.pg_settings
    WHERE name OPERATOR(pg_catalog.=) 'lc_messages' AND reset_val OPERATOR(pg_catalog.!~) '^(C|POSIX|en)'
      AND pg_catalog.has_parameter_privilege('lc_messages', 'SET')
"""

#: Settings that affect a dump or a restore and whose values contain no secret.
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
    """A session with a time limit for answers: the server's own timeouts are of no use if the server is silent."""

    answer_seconds = ANSWER_SECONDS

    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool = False
    ) -> psycopg.Cursor[dict[str, Any]]:
        """Like psycopg's method, but names and values are UTF-8, not ASCII, also in a session without conversion."""
        if isinstance(query, Composable) and _converts_nothing(self):
            query = query.as_bytes(None)
        return super().execute(query, params, prepare=prepare, binary=binary)

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(_answered(gen, self.answer_seconds), interval, timeout)
        except _SilenceError:
            self.pgconn.finish()  # send nothing more, not even a ROLLBACK
            raise


class _SilenceError(psycopg.OperationalError):
    pass


class _LenientText(Loader):
    """Loads text as UTF-8; invalid bytes are escaped, so that the text stays distinct and can be shown and recorded.

    The names of roles and databases are shared by the cluster, whose databases may have different encodings.
    """

    def load(self, data: Buffer) -> str:
        return raw_text(bytes(data))


class _AnyText(Dumper):
    """Dumps text as UTF-8, with a type that the server infers."""

    def dump(self, obj: str) -> bytes:
        return obj.encode()


def _converts_nothing(session: psycopg.Connection[Any]) -> bool:
    return session.info.parameter_status("client_encoding") == "SQL_ASCII"


def _take_any_text(session: psycopg.Connection[Any]) -> None:
    for kind in ("text", "name", "varchar", "bpchar"):
        session.adapters.register_loader(kind, _LenientText)
    # An SQL_ASCII database converts nothing, and with any other client encoding the server refuses invalid text.
    if session.info.parameter_status("server_encoding") == "SQL_ASCII":
        session.execute("SET client_encoding = 'SQL_ASCII'")
        session.adapters.register_dumper(str, _AnyText)


def _answered(gen: PQGen[T], seconds: float) -> PQGen[T]:
    """Drive psycopg's generator, and raise an error if the server sends nothing for too long."""
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
    """Raise the session's time limit for answers."""
    if isinstance(session, _Session):
        session.answer_seconds = seconds


@contextmanager
def connect(
    connection: Connection, options: str = _OPTIONS, *, answer_seconds: float | None = None
) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """Open an autocommit session.

    Args:
        connection: the server, the database and the role.
        options: the session's ``PGOPTIONS``.
        answer_seconds: how long the server may be silent, also while connecting; ``None`` for the default.

    Raises:
        ServerSilentError: the server accepted the connection but did not answer in time; the session is closed.
        PasswordMissingError: PGPASSFILE names a file that libpq would wait for without end.
        PoolerError: a connection pooler answers there.
        ServerError: any other failure, with the cause.
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
            # Errors are recognized by SQLSTATE; English is for the messages shown to people.
            if session.info.server_version >= 150000:
                session.execute(_ENGLISH)
            _take_any_text(session)
            yield session
    except (psycopg.Error, UnicodeError) as error:
        raise diagnose_error(error, what=f"a question to {connection} failed", connection=connection) from None


def _unended(session: _Session, connection: Connection, asked: str, token: str) -> _Session:
    """Return the session after checking that no pooler answers, and switching off the timeouts that could end it.

    A session may hold a drill's lock and be idle for hours.

    Raises:
        PoolerError: a pooler answers; the session is closed.
        psycopg.Error: the server failed; the session is closed.
    """
    # Not as startup options at first: older servers do not know them and would refuse the session.
    later = unended(session.info.server_version, since=1)
    try:
        try:
            connection_pooler.require_real(session, connection, token)
            for name in read_options(later):
                session.execute(f"SET {name} = 0".encode())
        except psycopg.OperationalError as error:
            # A timeout may be so short that the SET came too late and the server's message was lost: connect again.
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
        host=connection.host,  # psycopg resolves the name itself, when the environment is no longer set
        port=connection.port,
        # Never in this process's environment, not even for a moment: another thread may start a program with it.
        password=connection.password.get_secret_value() if connection.password else None,
        client_encoding="UTF8",  # Python has no codec for some of the server's encodings
        options=options,
        connect_timeout=_connect_seconds(answer_seconds),
    )


def _connect_seconds(answer_seconds: float) -> int:
    return math.ceil(min(programs.CONNECT_TIMEOUT_SECONDS, answer_seconds))


def _turned_away(
    error: psycopg.Error | UnicodeError, what: str, connection: Connection, options: str, answer_seconds: float
) -> BackupError:
    """The error for a refused connection: by libpq's message, or else by the server's answer to one more attempt."""
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
            why="the server refused this session, but accepted the next one: the cause has passed",
            said=found.said,
            fix="retry",
        )
    return diagnose_sqlstate(answer.sqlstate, str(error), routine=answer.routine, what=what, connection=connection)


def identify_by_replication(connection: Connection, answer_seconds: float) -> str:
    """Open a session that replicates, as pg_receivewal does, and return the cluster's system identifier.

    Raises:
        psycopg.Error: the server refused, or did not answer in time; ``pitr.replication_refusals`` knows why.
    """
    with _only_our_environment(connection):
        target = make_conninfo(_target(connection, BUILT_IN, answer_seconds), replication="true")
        # Such a session takes only statements without parameters.
        session = _Session.connect(
            target, autocommit=True, row_factory=dict_row, cursor_factory=psycopg.ClientCursor[dict[str, Any]]
        )
    session.answer_seconds = answer_seconds
    with session:
        row = session.execute("IDENTIFY_SYSTEM").fetchone()
        assert row is not None  # it always answers
        return str(row["systemid"])


def other_database(server: Connection, *databases: str) -> Connection:
    """A connection to a database that every server has, other than the connection's own and the given ones.

    A session cannot rename the database that it is connected to. And during a restore, the connection's own database,
    the live one, may not exist.
    """
    return server.to("template1" if "postgres" in (server.database, *databases) else "postgres")


def database_facts(connection: Connection) -> DatabaseFacts:
    """The facts about the source that a manifest records.

    Raises:
        ServerError: the connection failed or broke.
    """
    with connect(connection) as session:
        facts = session.execute(_FACTS).fetchone()
        assert facts is not None  # the database of a session always exists
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
    """The cluster's unique system identifier; ``None`` if the role may not read it."""
    try:
        row = session.execute("SELECT system_identifier::text AS id FROM pg_control_system()").fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return row["id"] if row else None


def effective_options(connection: Connection) -> str:
    """The settings, as ``PGOPTIONS``, with which a dump by this role writes values if the client sets none.

    Raises:
        ServerError: the connection failed or broke.
    """
    with connect(connection, options=f"{BUILT_IN} {unended()}") as session:
        return pg_options({row["name"]: row["setting"] for row in session.execute(_AS_IT_IS, [list(UNSET)])})


@contextmanager
def _only_our_environment(connection: Connection) -> Iterator[None]:
    """While connecting, keep only our own ``PG*`` variables in this process's environment, which libpq reads.

    A stray ``PGHOSTADDR``, ``PGSERVICE`` or ``PGOPTIONS`` would lead the query to another server than the dump, whose
    environment contains only our variables.
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
    """The values, for this role, of the settings that data may depend on, if the client sets none.

    Raises:
        ServerError: the connection failed or broke.
    """
    options = f"-c search_path=pg_catalog,pg_temp {unended()}"
    with connect(connection, options=options) as session:
        return {row["name"]: row["setting"] for row in session.execute(_EFFECTIVE, [list(DECIDING)])}

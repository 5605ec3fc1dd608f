"""Where a backup is restored to: a throwaway cluster, a scratch database, or a database that goes live.

The first two are context managers: the block gets an empty database to fill, which is removed after the block in any
case. The next drill removes what a killed process left. ``drill.throwaway_cluster`` creates throwaway clusters. A
database that goes live outlasts this process; its creator records that it exists. ``copy_restoration`` and its callers
decide how the database is used.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import AdvisoryLockHeldError, BackupError, CopyError, DrillLimitError
from ovia_backup_dagster.postgres.advisory_lock import AdvisoryLock
from ovia_backup_dagster.postgres.data_stream import Log, decode_text, statements
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier, sql_string
from ovia_backup_dagster.postgres.sandbox import Limits, exceeded
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import DURABLY, be_patient, connect, other_database, system_identifier

SCRATCH_SUFFIX = "_restore_test"
_MAINTENANCE_DATABASE = "postgres"
#: The comment that marks a scratch database. A database that goes live keeps its own comment.
MARK = "ovia-backup: scratch copy of a restore drill"
#: CREATE DATABASE itself sets this limit, the comment follows a moment later. No other program uses the number.
_CONNECTION_LIMIT = 0x6F766961
_INVALID = -2
_FOUND = "SELECT oid::bigint AS oid, datconnlimit FROM pg_database WHERE datname = %s"
_CREATE = re.compile(rb'CREATE DATABASE ("(?:[^"]|"")*"|[^\s;"]+) ')
_NAME = rb'("(?:[^"]|"")*"|[^\s;"]+)'
#: Statements that contain the source database's name.
_CONFIGURE = re.compile(
    rb'(?:ALTER(?: ROLE (?:"(?:[^"]|"")*"|[^\s;"]+) IN)? DATABASE|COMMENT ON DATABASE'
    rb'|SECURITY LABEL FOR (?:"(?:[^"]|"")*"|[^\s;"]+) ON DATABASE|(?:GRANT|REVOKE) [A-Z, ]+ ON DATABASE) ' + _NAME
)
_TEMPLATE = re.compile(rb"\AALTER DATABASE .* IS_TEMPLATE = true;", re.DOTALL)
#: The role that granted the privileges that follow, if it was not the owner.
_AS = re.compile(rb"SET SESSION AUTHORIZATION " + _NAME + rb";")
_LOCALE = re.compile(rb" (?:LOCALE|LC_COLLATE|LC_CTYPE|LOCALE_PROVIDER|ICU_LOCALE|ICU_RULES) = (?:'(?:[^']|'')*'|\w+)")
#: SQLSTATEs with which ``createdb`` in dbcommands.c refuses a locale: missing, not ICU's, wrong encoding, or no ICU.
_LOCALE_REFUSED = ("42809", "22023", "0A000")
_TABLESPACE = re.compile(rb' TABLESPACE = ("(?:[^"]|"")*"|[^\s;"]+)')
_NAME_BYTES = 63


class Kind(Enum):
    """The purpose of a copy, which decides how much of the source it is given."""

    #: In a cluster of its own: it gets everything except entries that would connect to other servers.
    THROWAWAY = auto()
    #: On a server with roles of its own: without owners and privileges, and marked as a drill's.
    SCRATCH = auto()
    #: On such a server, to go live: it gets everything that the source has, with owners, or the restore fails.
    LIVE = auto()


@dataclass(frozen=True, slots=True)
class Copy:
    """An empty database to restore into.

    Attributes:
        connection: to the database, as a role that may do everything in it.
        server: to another database of its server.
        name: the place, for people.
        kind: its purpose.
        look: the command with which an operator connects to it.
        folder: a folder that is removed with it; ``None`` if there is only the database.
        limits: the resources that its server may use, if the server runs only for this copy.
        owner: its owner; empty for the role that creates it. Only the owner may create objects in schema ``public``.
    """

    connection: Connection
    server: Connection
    name: str
    kind: Kind
    look: str
    folder: Path | None = None
    limits: Limits | None = None
    owner: str = ""

    @property
    def private(self) -> bool:
        """Whether the server runs only for this copy, so that roles may be created."""
        return self.kind is Kind.THROWAWAY

    @property
    def with_owners(self) -> bool:
        """Whether the copy is given the source's owners and privileges."""
        return self.kind is not Kind.SCRATCH

    @property
    def live(self) -> bool:
        """Whether the copy is to go live: it gets the source's publications, and may not differ from the source."""
        return self.kind is Kind.LIVE

    def create(self, script: bytes) -> list[str]:
        """Create the database with the source's encoding and locale; returns the differences that were necessary.

        In another locale, text sorts and compares differently: acceptable for a drill, not for a live database.

        Args:
            script: the SQL that creates the archive's database.

        Raises:
            CopyError: a database of this name exists; or this one is to go live, and its locale is not installed here.
            BackupError: the database cannot be created.
        """
        notes = []
        with connect(self.server) as session:
            found = _create_statement(script, self.connection.database)
            if not self.private:
                _making(self.connection.database).take(session)
            if not self.private:
                found += f" CONNECTION LIMIT = {_CONNECTION_LIMIT}".encode()
            if self.owner:
                found += f" OWNER = {sql_identifier(self.owner)}".encode()
            try:
                session.execute(found)
            except psycopg.errors.DuplicateDatabase:
                raise CopyError(
                    f"{self.name} exists already",
                    why="this program did not create it, so it is left unchanged",
                    fix=f"restore under another name; or look what is in it: {self.look}",
                ) from None
            except psycopg.Error as error:
                said = said_by(error)
                if error.sqlstate not in _LOCALE_REFUSED:
                    raise
                if self.live:
                    raise CopyError(
                        f"{self.name} cannot be created with the source's locale",
                        why="the server it is restored to does not have it",
                        said=said,
                        fix="install it there, as root: localedef -i de_DE -f UTF-8 de_DE.UTF-8, by its own name; "
                        "restart the server; then try again",
                    ) from None
                session.execute(_LOCALE.sub(b"", found) + b" LOCALE = 'C'")
                notes.append(f"the copy has locale C, since the source's is not installed here: {said}")
            if self.kind is Kind.SCRATCH:
                comment = f"COMMENT ON DATABASE {sql_identifier(self.connection.database)} IS {sql_string(MARK)}"
                session.execute(comment.encode())
        return notes

    def drop(self, oid: int | None = None) -> None:
        """Drop the database of this name, if it exists, and terminate its sessions. For a copy that was to go live.

        Args:
            oid: drop the database with this OID even if it does not, or no longer, have this program's mark.

        Raises:
            CopyError: this program did not create the database.
            BackupError: the database cannot be dropped.
        """
        database = self.connection.database
        with connect(self.server) as session:
            _wait_until_made(session, database)
            row = session.execute(_FOUND, [database]).fetchone()
            if row is None:
                return
            # A database that an interrupted DROP DATABASE left is useless, so it may be dropped, too.
            if row["oid"] != oid and row["datconnlimit"] not in (_CONNECTION_LIMIT, _INVALID):
                raise CopyError(
                    f"{self.name} is not dropped",
                    why="it is neither the one that this restore made nor the one it was to replace: another session "
                    "created it meanwhile",
                    fix="see what there is: psql -l; if it is to stay, rename it: ALTER DATABASE "
                    f"{sql_identifier(database)} RENAME TO ...",
                )
            drop_database(session, database)

    def release(self) -> None:
        """Make the copy permanent: remove this program's mark, once the copy is complete and on disk.

        Raises:
            ServerError: no connection, or it broke.
        """
        with connect(self.server) as session:
            session.execute(DURABLY)
            session.execute(f"ALTER DATABASE {sql_identifier(self.connection.database)} CONNECTION LIMIT -1".encode())

    def configure(self, script: bytes, *, swapped: bool = False) -> list[str]:
        """Give the database the source's owner, rights, settings and comment; returns what could not be applied.

        Call this only after the restore: ``default_transaction_read_only`` would stop it.

        Args:
            script: the SQL that creates the archive's database.
            swapped: the database will be swapped with another one, which is impossible for a template.
        """
        notes = []
        name = sql_identifier(self.connection.database).encode()
        with connect(self.server) as session:
            grantor = b""
            for statement in statements(script):
                if match := _AS.match(statement):
                    grantor = match[1]
                elif statement.startswith(b"RESET SESSION AUTHORIZATION"):
                    grantor = b""
                elif (space := _TABLESPACE.search(statement)) and _CREATE.match(statement) and self.live:
                    notes.append(f"tablespace {decode_text(space[1])}: the database is in the server's default one")
                elif swapped and _TEMPLATE.search(statement):
                    notes.append("the source is a template, and this database is none: ALTER DATABASE ... IS_TEMPLATE")
                elif match := _CONFIGURE.match(statement):
                    ours = statement[: match.start(1)] + name + statement[match.end(1) :]
                    notes += _configured(session, ours, grantor)
        return notes


def _configured(session: psycopg.Connection[dict[str, Any]], statement: bytes, grantor: bytes) -> list[str]:
    """Run a statement about a database, as the grantor if there is one; returns why it failed."""
    is_grant = statement.startswith((b"GRANT ", b"REVOKE "))
    # Show only a setting's name: its value may be a secret.
    words = decode_text(statement).rstrip(";\n").split()
    what = " ".join(words if is_grant else words[:7] if statement.startswith(b"ALTER ROLE ") else words[:5])
    try:
        if grantor and is_grant:
            session.execute(b"SET ROLE " + grantor)
        # A prepared statement is a single one: no other can hide behind its semicolon.
        session.execute(statement, prepare=True)
    except psycopg.Error as error:
        if session.broken:
            raise
        by = f", by {decode_text(grantor)}" if grantor and is_grant else ""
        said = said_by(error) if is_grant else error.sqlstate
        return [f"the source's setting is not possible here: {what}{by} ({said})"]
    finally:
        if grantor and is_grant and not session.broken:
            session.execute("RESET ROLE")
    return []


@contextmanager
def scratch_database(server: Connection, database: str, source: Source, *, keep: bool, log: Log) -> Iterator[Copy]:
    """A database on a given server that exists only while the block runs.

    Args:
        server: where, as a role that may create databases.
        database: the source's name; the scratch database is called ``<database>_restore_test``.
        source: the database that must never be touched.
        keep: leave the copy for inspection, until the next drill.
        log: receives a line about what a killed drill left.

    Raises:
        CopyError: a database of this name exists and no drill made it, or it is the source.
        BackupError: the server refused.
    """
    name = scratch_name(database)
    maintenance = server.to(_MAINTENANCE_DATABASE)
    copy = Copy(
        server.to(name),
        maintenance,
        f"database {name} on {server.host}:{server.port}",
        Kind.SCRATCH,
        _psql(server.to(name)),
    )
    # The session holds the lock, so a killed drill's lock is released.
    with connect(maintenance) as session:
        source.refuse(session, name, copy.name)
        _take(session, name, copy.name)
        if _drop(session, name):
            log(f"dropped what an earlier drill had left: {copy.name}")
        kept = False
        try:
            yield copy
            kept = keep
        finally:
            if not kept:
                # A new session, because the server may have been restarted meanwhile.
                with signals_deferred(), contextlib.suppress(BackupError), connect(maintenance) as again:
                    _drop(again, name)


def live_copy(server: Connection, name: str, place: str) -> Copy:
    """A copy to create on a live server, which will go live.

    Args:
        server: the server, as a role that may create databases and give them to their owners.
        name: the database's name; no other session may use it.
        place: its name for people.
    """
    return Copy(server.to(name), other_database(server, name), place, Kind.LIVE, _psql(server.to(name)))


@dataclass(frozen=True, slots=True)
class Source:
    """A database that must never be restored into.

    Attributes:
        system_identifier: of its cluster; ``None`` if unknown: then any cluster may be the source's.
        databases: its name, or all possible names if it is uncertain.
    """

    system_identifier: str | None
    databases: frozenset[str]

    def refuse(self, session: psycopg.Connection[dict[str, Any]], target: str, place: str) -> None:
        """Refuse a target that is the source, whatever its host is called.

        Raises:
            CopyError: the target is the source, or may be.
        """
        if target not in self.databases:
            return
        here = system_identifier(session)
        if here is None or self.system_identifier is None or here == self.system_identifier:
            raise CopyError(
                f"{place} is the source of this backup",
                why=f"system identifier {here or 'unknown'}, the source's is {self.system_identifier or 'unknown'}",
                fix="restore on another server: RESTORE_POSTGRES_HOST=...; or into a throwaway cluster: "
                "ovia-backup drill --where throwaway",
            )


def scratch_name(database: str) -> str:
    """``<database>_restore_test``, shortened to the length that PostgreSQL allows."""
    room = _NAME_BYTES - len(SCRATCH_SUFFIX)
    return database.encode()[:room].decode("utf-8", "ignore") + SCRATCH_SUFFIX


def drop_kept(server: Connection, database: str) -> bool:
    """Drop a scratch database that a drill kept or left; returns ``False`` if there was none.

    Raises:
        CopyError: no drill made it, or it is in use.
    """
    name = scratch_name(database)
    with connect(server.to(_MAINTENANCE_DATABASE)) as session:
        _take(session, name, f"database {name} on {server.host}:{server.port}")
        return _drop(session, name)


def _take(session: psycopg.Connection[dict[str, Any]], name: str, place: str) -> None:
    try:
        AdvisoryLock(f"{MARK} {name}", "a drill").take_at_once(session)
    except AdvisoryLockHeldError as held:
        raise CopyError(f"{place} is in use", why=f"another drill restores into it: {held.why}", fix=held.fix) from None


def _making(name: str) -> AdvisoryLock:
    """The lock that the session which creates a database holds until it ends."""
    return AdvisoryLock(f"ovia-backup makes {name}", f"the making of database {name}")


def _drop(session: psycopg.Connection[dict[str, Any]], name: str) -> bool:
    """Drop the scratch database, if it exists and has a drill's mark."""
    _wait_until_made(session, name)
    row = session.execute(
        "SELECT shobj_description(oid, 'pg_database') AS mark, datconnlimit FROM pg_database WHERE datname = %s",
        [name],
    ).fetchone()
    if row is None:
        return False
    unfinished = row["mark"] is None and row["datconnlimit"] == _CONNECTION_LIMIT
    if row["mark"] != MARK and not unfinished:
        raise CopyError(
            f"database {name} exists and was not made by a drill",
            why="it lacks a drill's mark: an operator restored into it by hand, as the old runbook says, or it is used "
            "for something else",
            fix=f"if it is not needed: psql -c {shell_word(f'DROP DATABASE {sql_identifier(name)}')}; then try again",
        )
    drop_database(session, name)
    return True


def _wait_until_made(session: psycopg.Connection[dict[str, Any]], name: str) -> None:
    """Wait until the server has created a database for a client that is gone: only then is the database visible."""
    _making(name).wait_until_free(session)


def drop_database(session: psycopg.Connection[dict[str, Any]], name: str, *, must_exist: bool = False) -> None:
    """Drop a database, and terminate those of its sessions that this role may terminate."""
    be_patient(session)
    session.execute("SET statement_timeout = 0")  # DROP waits for a checkpoint, and removing large files takes long
    statement = f"DROP DATABASE {'' if must_exist else 'IF EXISTS '}{sql_identifier(name)}"
    try:
        session.execute(f"{statement} WITH (FORCE)".encode())
    except psycopg.errors.WrongObjectType:  # a template, like its source
        session.execute(f"ALTER DATABASE {sql_identifier(name)} IS_TEMPLATE false".encode())
        session.execute(f"{statement} WITH (FORCE)".encode())
    except psycopg.errors.InsufficientPrivilege as refused:
        # The server raises this for autovacuum, too, which has no role; without FORCE it ends autovacuum itself.
        try:
            session.execute(statement.encode())
        except psycopg.errors.ObjectInUse:
            raise refused from None


def _psql(connection: Connection) -> str:
    """The command with which an operator connects."""
    host, user, database = map(shell_word, (connection.host, connection.user, connection.database))
    return f"psql --host={host} --port={connection.port} --username={user} --dbname={database}"


def _create_statement(script: bytes, name: str) -> bytes:
    """The script's ``CREATE DATABASE``, for a database of another name, without its semicolon.

    Raises:
        CopyError: the script has none.
    """
    for statement in statements(script):
        if match := _CREATE.match(statement):
            options = _TABLESPACE.sub(b"", statement[match.end() :]).rstrip().removesuffix(b";")
            return b"CREATE DATABASE " + sql_identifier(name).encode() + b" " + options
    raise CopyError(
        "the archive does not say how its database was made",
        why=f"it has no CREATE DATABASE: {decode_text(script[:100])}",
        fix="report it, with the output of: pg_restore --create --schema-only --file=- FILE",
    )


#: File in a copy's folder: the limit that its server exceeded, if the server was ended for that.
EXCEEDED = "exceeded"
_OF_THE_DISK = ("free", "growth", "inodes")
_LOOK = (
    "look at the functions that the table's constraints, indexes and columns call (pg_restore --schema-only --file=- "
    "BACKUP); if they are sound: more room, memory or DRILL_MAX_HOURS"
)


def explained_by_limits(error: BackupError, copy: Copy) -> BackupError:
    """The error of a copy; replaced by the exceeded limit if its server was ended for that."""
    limit, took = exceeded(copy.folder / EXCEEDED, copy.limits) if copy.folder else ("", "")
    if not limit or isinstance(error, DrillLimitError):
        return error
    why, fix = "a function in the backup goes on without end, or the copy needs more than there is here", _LOOK
    if limit in _OF_THE_DISK and copy.limits:
        folder = shell_word(str(copy.limits.disk))
        why = "the disk is too small, others write to it, too, or a function in the backup fills it"
        fix = f"df -h {folder}, or set DRILL_DIR to a folder on a larger disk; if that is not it: {_LOOK}"
    what = f"the copy's server was ended: {took}"
    return DrillLimitError(what, why=f"{why}; then: {error.what}", said=error.said, fix=fix)

"""The roles that a backup's objects belong to, made in a server that nobody else uses.

From the globals that were saved beside the backup, or, for one without them, made up from what its restore asks for.
What is replayed whole is never run against a server that has roles of its own; there, the missing ones are made one
by one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import psycopg

from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.postgres.archive import contents_list, use_list
from ovia_backup_dagster.postgres.client import Connection, Programs, capture
from ovia_backup_dagster.postgres.datatext import statements, text_of
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.values import said_by

#: Nothing else of a globals file is run: it has no checksum, and could hold any SQL.
_ALLOWED = re.compile(rb"CREATE ROLE |ALTER ROLE |COMMENT ON ROLE |SECURITY LABEL ON ROLE |GRANT |REVOKE |SET ")
_OF_TABLESPACE = re.compile(rb"(?:CREATE|ALTER|COMMENT ON|(?:GRANT|REVOKE) [A-Z ,]+ ON) TABLESPACE ")
_OF_ROLE = re.compile(rb'(?:CREATE|ALTER) ROLE ("(?:[^"]|"")*"|[^\s;"]+)')
_COMMENT_ON_ROLE = re.compile(rb'(?:COMMENT|SECURITY LABEL .*?) ON ROLE ("(?:[^"]|"")*"|[^\s;"]+)')
#: ``GRANT group TO member``: the member is whose it is.
_MEMBER = re.compile(rb'GRANT (?:"(?:[^"]|"")*"|[^\s;"]+) TO ("(?:[^"]|"")*"|[^\s;"]+)')
_GIVEN_TO = re.compile(
    rb"\A(?:ALTER [^;]*? OWNER|ALTER DEFAULT PRIVILEGES FOR ROLE [^;]*? GRANT [^;]*?|GRANT [^;]*?)"
    rb' TO ("(?:[^"]|"")*"|[^\s;"]+)(?: WITH GRANT OPTION)?;?\s*\Z'
)
_PSEUDO_ROLES = ("all", "current_role", "current_user", "session_user")
#: A message does not double the quotes in a name.
_MISSING = re.compile(r'role "((?s:.*?))" does not exist')
_DATA = re.compile(r"(?:TABLE DATA|BLOBS|SEQUENCE SET|MATERIALIZED VIEW DATA|SUBSCRIPTION) ")
_PROBE = "ovia_drill_probe"
_ROUNDS = 20


def replay(server: Connection, globals_sql: bytes) -> list[str]:
    """Make the roles of a globals file, without tablespaces; returns what was left out, and why.

    The connecting role's own definition is left out: it could lock itself out.
    """
    own = {name.encode() for name in (server.user, sql_identifier(server.user), *_PSEUDO_ROLES)}
    notes = []
    with connect(server) as session:
        for statement in statements(globals_sql):
            role = _OF_ROLE.match(statement)
            if (role and (role[1] in own or role[1].lower() in own)) or _OF_TABLESPACE.match(statement):
                continue
            if not _ALLOWED.match(statement):
                notes.append(f"not a statement about roles, left out: {_head(statement)}")
                continue
            try:
                # Prepared, a statement is one: no other hides behind its semicolon.
                session.execute(statement, prepare=True)
            except psycopg.Error as error:
                notes.append(f"{_head(statement)}: {said_by(error)}")
        # A name can be written in more ways than are known here.
        me = sql_identifier(server.user)
        for own_again in ("RESET SESSION AUTHORIZATION", f"ALTER ROLE {me} LOGIN", f"ALTER ROLE {me} RESET ALL"):
            session.execute(own_again.encode())
    return notes


def make_missing(server: Connection, programs: Programs, archive: Path) -> list[str]:
    """Make each role that a restore of the archive asks for; returns their names.

    All but the data is restored into a database of its own, again and again, until no role is missing. They are
    superusers without login: an event trigger's owner must be one, and nobody else uses this server.

    Raises:
        BackupError: the server failed.
    """
    made: list[str] = []
    listing = contents_list(programs, archive)
    for _ in range(_ROUNDS):
        with connect(server) as session:
            session.execute(f"CREATE DATABASE {_PROBE} TEMPLATE template0".encode())
        probe = Connection(server.host, server.port, _PROBE, server.user)
        command = (programs.path("pg_restore"), "--no-password", "--no-tablespaces")
        try:
            with use_list(listing, lambda entry: _DATA.match(entry) is None) as chosen:
                _, _, stderr = capture(
                    (*command, chosen, f"--dbname={probe.conninfo()}", str(archive)),
                    variables=probe.environment(),
                    watch=watch(programs, probe, work_counts=True),
                )
        finally:
            with connect(server) as session:
                session.execute(f"DROP DATABASE {_PROBE} WITH (FORCE)".encode())
        missing = sorted(set(_MISSING.findall(stderr)) - set(made))
        if not missing:
            return made
        with connect(server) as session:
            for name in missing:
                session.execute(f"CREATE ROLE {sql_identifier(name)} SUPERUSER".encode())
        made += missing
    raise ProgramError(
        f"the roles that {archive.name} needs cannot be made",
        why=f"after {_ROUNDS} rounds there are still others: {', '.join(made[-3:])}",
        fix="save the roles beside it: pg_dumpall --globals-only --no-role-passwords > FILE.dump.globals.sql",
    )


def missing(server: Connection, globals_sql: bytes, schema: bytes | None) -> list[str]:
    """The roles of a globals file that the archive's schema names and the server lacks.

    Args:
        server: where the archive is to be restored.
        globals_sql: the roles that were saved beside the backup.
        schema: the SQL of the archive's schema, with owners and privileges; ``None`` for every role, whoever names it.

    Raises:
        ServerError: no connection.
    """
    with connect(server) as session:
        there = {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        return [
            name
            for name, quoted in _saved(globals_sql).items()
            if name not in there
            and (schema is None or re.search(rb"(?<![\w\"])" + re.escape(quoted) + rb"(?![\w\"])", schema))
        ]


def named(schema: bytes) -> set[str]:
    """The roles to which the SQL of an archive's schema gives objects and privileges."""
    found = (match[1] for statement in statements(schema) for match in _GIVEN_TO.finditer(statement))
    return {_unquoted(name) for name in found} - {"PUBLIC"}


def create(server: Connection, globals_sql: bytes, names: Collection[str]) -> list[str]:
    """Make these roles as they were saved, without passwords; returns what could not be, and who needs a password.

    Every other role of the server is left as it is: one that is saved as well is not changed.

    Raises:
        ServerError: no connection.
    """
    notes = []
    with connect(server) as session:
        saved = _saved(globals_sql)
        ours = {saved[name] for name in names if name in saved}
        for statement in statements(globals_sql):
            subject = _OF_ROLE.match(statement) or _COMMENT_ON_ROLE.match(statement) or _MEMBER.match(statement)
            if subject is None or subject[1] not in ours or _OF_TABLESPACE.match(statement):
                continue
            try:
                session.execute(statement, prepare=True)
            except psycopg.Error as error:
                notes.append(f"{_head(statement)}: {said_by(error)}")
        there = session.execute("SELECT rolname, rolcanlogin FROM pg_roles").fetchall()
        logins = [row["rolname"] for row in there if row["rolcanlogin"] and row["rolname"] in names]
    if logins:
        notes.append(f"no password is saved with a backup; set one for: {', '.join(sorted(logins))}")
    return notes


def _saved(globals_sql: bytes) -> dict[str, bytes]:
    """Name -> as the file writes it, of every role that a globals file makes."""
    found = {}
    for statement in statements(globals_sql):
        if statement.startswith(b"CREATE ROLE ") and (match := _OF_ROLE.match(statement)):
            found[_unquoted(match[1])] = match[1]
    return found


def _unquoted(quoted: bytes) -> str:
    name = text_of(quoted)
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _head(statement: bytes) -> str:
    return " ".join(text_of(statement).split()[:3])

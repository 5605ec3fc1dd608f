"""Creates the roles that own a backup's objects.

They are created from the globals that were saved with the backup; without these, from the role names that its restore
needs. A whole globals file is only run on a server that serves the copy alone; on any other server, missing roles are
created one by one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psycopg

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.postgres import globals_file as saved_globals
from ovia_backup_dagster.postgres.archive import argument, contents_list, encoding, in_utf8, use_list
from ovia_backup_dagster.postgres.data_stream import decode_text, statements
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, unended
from ovia_backup_dagster.postgres.stall import watch

#: Only these statements of a globals file are run: the file has no checksum, and could hold any SQL.
_ALLOWED = re.compile(rb"CREATE ROLE |ALTER ROLE |COMMENT ON ROLE |SECURITY LABEL |GRANT |REVOKE |(?:RE)?SET ")
_OF_TABLESPACE = re.compile(rb"(?:CREATE|ALTER|COMMENT ON|(?:GRANT|REVOKE) [A-Z ,]+ ON) TABLESPACE ")
_OF_ROLE = re.compile(rb'(?:CREATE|ALTER) ROLE ("(?:[^"]|"")*"|[^\s;"]+)')
_GIVEN_TO = re.compile(
    rb"\A(?:ALTER [^;]*? OWNER|ALTER DEFAULT PRIVILEGES FOR ROLE [^;]*? GRANT [^;]*?|GRANT [^;]*?)"
    rb' TO ("(?:[^"]|"")*"|[^\s;"]+)(?: WITH GRANT OPTION)?;?\s*\Z'
)
_PSEUDO_ROLES = ("all", "current_role", "current_user", "session_user")
#: The server's messages do not double the quotes in a name.
_MISSING = re.compile(r'role "((?s:.*?))" does not exist')
_DATA = re.compile(r"(?:TABLE DATA|BLOBS|SEQUENCE SET|MATERIALIZED VIEW DATA|SUBSCRIPTION) ")
#: Before PostgreSQL 16, CREATEROLE alone lets a role act for any other role.
_MAY_MAKE = """
    SELECT rolsuper OR rolcreaterole AND (
        current_setting('server_version_num')::int < 160000
        OR string_to_array(replace(current_setting('createrole_self_grant', true), ' ', ''), ',')
           @> ARRAY['set', 'inherit']) AS may
    FROM pg_roles WHERE rolname = current_user
"""
_PROBE = "ovia_drill_probe"
_ROUNDS = 20


def replay(server: Connection, globals_sql: bytes) -> list[str]:
    """Create the roles of a globals file, without tablespaces; returns the statements that were left out, and why.

    The definition of the connecting role is left out, because that role could lock itself out.
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
                # A prepared statement is a single one: no other can hide behind its semicolon.
                session.execute(statement, prepare=True)
            except psycopg.Error as error:
                notes.append(f"{_head(statement)}: {said_by(error)}")
        # A name can be written in more ways than this function recognizes.
        me = sql_identifier(server.user)
        for own_again in ("RESET SESSION AUTHORIZATION", f"ALTER ROLE {me} LOGIN", f"ALTER ROLE {me} RESET ALL"):
            session.execute(own_again.encode())
    return notes


def compare_roles(server: Connection, programs: Programs, globals_sql: bytes) -> tuple[list[str], list[str]]:
    """Compare a globals file with the server that it was replayed on; returns the bad and the odd differences.

    Raises:
        BackupError: the server's roles cannot be read.
    """
    command: tuple[str, ...] = (
        programs.path("pg_dumpall"),
        "--globals-only",
        "--no-role-passwords",
        f"--encoding={encoding(globals_sql)}",
        "--no-password",
        f"--database={server.conninfo()}",
    )
    # pg_dumpall runs pg_dump to get its version.
    command = programs.confined(command, server=server, forks=True)
    variables = {**server.environment(), "PGOPTIONS": f"{SESSION_OPTIONS} {unended()}"}
    code, made, stderr = capture(command, variables=variables)
    if code != 0:
        raise diagnose(stderr, what="reading the copy's roles failed", connection=server, exit_code=code)
    return saved_globals.role_differences(
        saved_globals.parse_globals(globals_sql), saved_globals.parse_globals(made), server.user
    )


def make_missing(server: Connection, programs: Programs, archive: Path) -> list[str]:
    """Create every role that a restore of the archive needs; returns their names.

    Restores everything but the data into a probe database, repeatedly, until no role is missing. The roles are
    superusers without login: an event trigger's owner must be a superuser, and this server serves only the copy.

    Raises:
        BackupError: the server failed.
    """
    made: list[str] = []
    listing = contents_list(programs, archive)
    for _ in range(_ROUNDS):
        with connect(server) as session:
            session.execute(f"CREATE DATABASE {_PROBE} TEMPLATE template0".encode())
        probe = server.to(_PROBE)
        command = (programs.path("pg_restore"), "--no-password", "--no-tablespaces")
        try:
            with use_list(listing, lambda entry: _DATA.match(entry) is None) as chosen:
                whole = (*command, chosen, f"--dbname={probe.conninfo()}", argument(archive))
                read = (archive, chosen.partition("=")[2])
                _, _, stderr = capture(
                    programs.confined(whole, read=read, server=probe),
                    variables={**probe.environment(), "PGOPTIONS": unended()},
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
        f"the roles that {archive.name} needs cannot be created",
        why=f"after {_ROUNDS} rounds there are still others: {', '.join(made[-3:])}",
        fix="drill on a server that has them: RESTORE_POSTGRES_HOST=... ovia-backup drill --where database",
    )


def missing(server: Connection, globals_sql: bytes, schema: bytes | None) -> list[str]:
    """The roles of a globals file that the archive's schema names and the server lacks.

    Args:
        server: where the archive is to be restored.
        globals_sql: the roles that were saved beside the backup.
        schema: the SQL of the archive's schema, with owners and privileges; ``None`` for all roles of the file.

    Raises:
        ServerError: no connection.
    """
    schema = None if schema is None else in_utf8(schema, encoding(schema))
    with connect(server) as session:
        there = {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        return [
            name
            for name, role in saved_globals.parse_globals(globals_sql).roles.items()
            if name not in there
            and (schema is None or re.search(rb"(?<![\w\"])" + re.escape(role.quoted) + rb"(?![\w\"])", schema))
        ]


def saved_superusers(backup: Backup) -> dict[str, bool]:
    """Role saved with a backup -> whether it was a superuser.

    Raises:
        VolumeError: the saved roles cannot be read.
    """
    found = saved_globals.parse_globals(backup.saved_roles() or b"").roles
    return {name: "SUPERUSER" in role.flags for name, role in found.items()}


def saved(globals_sql: bytes) -> list[str]:
    """The names of the roles that a globals file creates."""
    return list(saved_globals.parse_globals(globals_sql).roles)


def planned(
    server: Connection, globals_sql: bytes, schema: bytes | None, privileged: Collection[str]
) -> list[saved_globals.Making]:
    """How :func:`create` would create the :func:`missing` roles.

    Raises:
        ServerError: no connection.
    """
    names = missing(server, globals_sql, schema)
    return saved_globals.making(saved_globals.parse_globals(globals_sql), names, privileged)


def roles_named_in(schema: bytes) -> set[str]:
    """The roles to which the SQL of an archive's schema gives objects or privileges."""
    schema = in_utf8(schema, encoding(schema))
    found = (match[1] for statement in statements(schema) for match in _GIVEN_TO.finditer(statement))
    return {saved_globals.name_of(name) for name in found} - {"PUBLIC"}


def may_make(server: Connection) -> bool:
    """Whether this role can create roles and act for them, so that it can give restored objects to them.

    Raises:
        ServerError: no connection.
    """
    with connect(server) as session:
        row = session.execute(_MAY_MAKE).fetchone()
        return bool(row and row["may"])


def create(
    server: Connection, globals_sql: bytes, names: Collection[str], privileged: Collection[str] = ()
) -> list[str]:
    """Create roles as they were saved; returns notes: what they do not get, what failed, and which need a password.

    The file is only parsed, by a strict grammar: it may be forged, and others use this server. No role gets a password,
    and a role that is not in ``privileged`` gets no power over others (see :func:`globals_file.making`). Roles that
    exist on the server are not changed, even if they were saved, too.

    Args:
        server: where they are created.
        globals_sql: the roles that were saved with the backup.
        names: the roles to create.
        privileged: the roles that an operator has named.

    Raises:
        ServerError: no connection.
    """
    notes: list[str] = []
    read = saved_globals.parse_globals(globals_sql)
    plan = saved_globals.making(read, [name for name in names if name in read.roles], privileged)
    with connect(server) as session:
        # All roles must exist before one becomes a member of another.
        made = [each for each in plan if _executed(session, _create(each), f"CREATE ROLE {each.name}", notes)]
        for each in made:
            me = each.role.quoted
            for parameter, value in each.role.settings.items():
                _set(session, each, parameter, value, notes)
            if each.role.comment:
                _executed(session, b"COMMENT ON ROLE " + me + b" IS " + each.role.comment, "COMMENT ON ROLE", notes)
            for group, how in each.groups.items():
                grant = _grant(group, how, session.info.server_version)
                _executed(session, grant % me, f"GRANT {group} TO {each.name}", notes)
            for right in each.parameters:
                _executed(session, right.statement.encode(), right.statement, notes)
            if each.left_out:
                given = "; ".join(each.left_out)
                notes.append(
                    f"role {each.name} was not named, and is created without power over others; to give it: {given}"
                )
        notes += _not_granted(session, read, [each.name for each in made])
    if ignored := sorted(each.name for each in made if each.role.password):
        notes.append(f"the passwords that the saved roles have were not set: {', '.join(ignored)}")
    if logins := sorted(each.name for each in made if "LOGIN" in each.flags):
        notes.append(f"no password is saved with a backup; set one for: {', '.join(logins)}")
    return notes


def _not_granted(
    session: psycopg.Connection[dict[str, Any]], saved: saved_globals.Globals, made: Collection[str]
) -> list[str]:
    """Saved privileges on parameters that existing roles of the server lack. They are not granted."""
    lacking = []
    for grant in saved.parameters:
        whom = "public" if grant.grantee == saved_globals.PUBLIC else grant.grantee
        for privilege in grant.privileges if grant.grantee not in made else ():
            row = session.execute(
                "SELECT has_parameter_privilege(%s, %s, %s) AS has FROM (SELECT 1) AS one WHERE %s = 'public' "
                "OR EXISTS (SELECT FROM pg_roles WHERE rolname = %s)",
                [whom, saved_globals.name_of(grant.parameter), privilege, whom, whom],
            ).fetchone()
            if row is not None and not row["has"]:
                lacking.append(grant.statement)
                break
    given = "; ".join(lacking)
    return [f"roles that are there already are left as they are; to give what was saved: {given}"] if lacking else []


def _create(each: saved_globals.Making) -> bytes:
    """``CREATE ROLE`` from the parsed role. Defaults are left out: naming them may require a superuser."""
    words = sorted(each.flags - {"INHERIT"}) + (["NOINHERIT"] if "INHERIT" not in each.flags else [])
    words += [f"CONNECTION LIMIT {each.role.limit}"] if each.role.limit != -1 else []
    until = b" VALID UNTIL " + each.role.until if each.role.until else b""
    return b"CREATE ROLE " + each.role.quoted + b"".join(b" " + word.encode() for word in words) + until


def _grant(group: str, how: saved_globals.Membership, server_version: int) -> bytes:
    """``GRANT group TO %b``, with the options that the server knows."""
    options = ["ADMIN OPTION"] if how.admin else []
    if server_version >= 160000:
        options += [f"INHERIT {how.inherit}".upper()] if how.inherit is not None else []
        options += [f"SET {how.set}".upper()]
    group_sql = sql_identifier(group).replace("%", "%%")
    return f"GRANT {group_sql} TO %b{' WITH ' * bool(options)}{', '.join(options)}".encode()


def _set(
    session: psycopg.Connection[dict[str, Any]],
    each: saved_globals.Making,
    parameter: bytes,
    value: bytes,
    notes: list[str],
) -> None:
    """Set a parameter of a role. An untrusted role sets it itself: one that requires a superuser is then refused."""
    me = each.role.quoted
    what = f"setting {decode_text(parameter)} of role {each.name}"
    itself = not each.trusted and _executed(session, b"SET ROLE " + me, "", [])
    _executed(session, b"ALTER ROLE " + me + b" SET " + parameter + b" TO " + value, what, notes)
    if itself:
        session.execute("RESET ROLE")


def _executed(session: psycopg.Connection[dict[str, Any]], statement: bytes, what: str, notes: list[str]) -> bool:
    """Run a single statement, as a prepared one; returns whether it succeeded, and adds a note if not."""
    try:
        session.execute(statement, prepare=True)
    except psycopg.Error as error:
        if session.broken:
            raise
        notes.append(f"{what}: {said_by(error)}")
        return False
    return True


def _head(statement: bytes) -> str:
    return " ".join(decode_text(statement).split()[:3])

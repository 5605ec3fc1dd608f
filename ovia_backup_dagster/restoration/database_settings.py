"""Database-level settings (owner, rights, ``ALTER DATABASE`` settings, comment): read, stored, applied to a database.

pg_restore without ``--create`` restores none of these. Encoding and locale are chosen elsewhere, when the database is
created. All statements can be repeated. A setting that the role may not make, or that the server does not know, is
reported, and the others are applied.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import psycopg
from psycopg import sql
from pydantic import Field

from ovia_backup_dagster.core.errors import DatabaseMissingError
from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import connect, other_database
from ovia_backup_dagster.postgres.session_settings import UNLOGGED

#: Settings whose value is a list of identifiers, each quoted if needed. pg_dump has the same list; no catalog has it.
_LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
     "temp_tablespaces", "unix_socket_directories"}
)  # fmt: skip
_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|([^,\s"]+)')
_DATABASE = """
    SELECT pg_get_userbyid(d.datdba) AS owner, t.spcname AS tablespace,
           d.datconnlimit AS connection_limit, shobj_description(d.oid, 'pg_database') AS comment
    FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = %s
"""
_RIGHTS = """
    SELECT pg_get_userbyid(a.grantor) AS grantor, coalesce(pg_get_userbyid(nullif(a.grantee, 0)), '') AS grantee,
           a.privilege_type AS privilege, a.is_grantable AS grantable
    FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) WITH ORDINALITY a
    WHERE d.datname = %s ORDER BY a.ordinality
"""
_SETTINGS = """
    SELECT coalesce(pg_get_userbyid(nullif(s.setrole, 0)), '') AS role, s.setconfig AS settings
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = %s ORDER BY 1
"""
_LABELS = """
    SELECT l.provider, l.label FROM pg_shseclabel l JOIN pg_database d ON d.oid = l.objoid
    WHERE l.classoid = 'pg_database'::regclass AND d.datname = %s ORDER BY 1
"""


class Right(Sidecar):
    """One line of a database's access list.

    Attributes:
        grantee: a role; empty for ``PUBLIC``.
        grantable: ``WITH GRANT OPTION``.
    """

    grantor: str
    grantee: str
    privilege: str
    grantable: bool


class Properties(Sidecar):
    """Database-level settings.

    They may hold secrets: store them only where dumps are stored.

    Attributes:
        rights: in their order; the defaults if none were granted.
        connection_limit: -1 for none.
        settings: role ("" for all) -> ``name=value``, as the server keeps them.
        labels: provider -> security label.
    """

    owner: str
    rights: tuple[Right, ...]
    tablespace: str
    connection_limit: int
    comment: str | None
    settings: dict[str, tuple[str, ...]] = Field(repr=False)
    labels: dict[str, str]

    @classmethod
    def from_json(cls, text: str) -> Properties:
        """Parse the output of :meth:`to_json`."""
        return cls.model_validate_json(text)


def properties(server: Connection, database: str) -> Properties:
    """A database's properties.

    Raises:
        DatabaseMissingError: there is no such database.
        ServerError: no connection, or it broke.
    """
    with connect(other_database(server, database)) as session:
        return _read(session, server, database)


def carry_over(server: Connection, source: str, target: str) -> list[str]:
    """Apply one database's properties to another; returns what could not be applied, each with the reason.

    Raises:
        DatabaseMissingError: one of the databases does not exist.
        ServerError: no connection, or it broke.
    """
    return apply(server, properties(server, source), target)


def apply(server: Connection, wanted: Properties, target: str) -> list[str]:
    """Apply exactly these properties to a database; returns what could not be applied, each with the reason.

    Raises:
        DatabaseMissingError: there is no such database.
        ServerError: no connection, or it broke.
    """
    with connect(other_database(server, target)) as session:
        setting = _Setting(session, target)
        present = _read(session, server, target)
        setting.quietly(UNLOGGED)
        if present.owner != wanted.owner:
            setting.run(f"owner {wanted.owner}", "ALTER DATABASE {} OWNER TO {}", sql.Identifier(wanted.owner))
            present = _read(session, server, target)
        if set(present.rights) != set(wanted.rights):
            setting.rights(present, wanted)
        if present.connection_limit != wanted.connection_limit:
            limit = sql.Literal(wanted.connection_limit)
            setting.run("connection limit", "ALTER DATABASE {} CONNECTION LIMIT {}", limit)
        if present.comment != wanted.comment:
            setting.run("comment", "COMMENT ON DATABASE {} IS {}", sql.Literal(wanted.comment))
        for role in sorted({*present.settings, *wanted.settings}):
            if present.settings.get(role) != wanted.settings.get(role):
                setting.settings(role, wanted.settings.get(role, ()))
        for provider in sorted({*present.labels, *wanted.labels}):
            label = wanted.labels.get(provider)
            if present.labels.get(provider) != label:
                what = f"security label of {provider}"
                form = "SECURITY LABEL FOR {1} ON DATABASE {0} IS {2}"
                setting.run(what, form, sql.Identifier(provider), sql.Literal(label))
        if present.tablespace != wanted.tablespace:
            space = sql_identifier(wanted.tablespace)
            setting.notes.append(
                f"tablespace {wanted.tablespace}: database {target} is in {present.tablespace}; to move it, while "
                f"no session is in it: ALTER DATABASE {sql_identifier(target)} SET TABLESPACE {space}"
            )
        return setting.notes


class _Setting:
    """Applies properties to a database, and notes what could not be applied."""

    def __init__(self, session: psycopg.Connection[dict[str, Any]], database: str) -> None:
        self.session = session
        self.database = sql.Identifier(database)
        self.notes: list[str] = []

    def quietly(self, statements: str) -> None:
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self.session.execute(statements.encode())

    def run(self, what: str, form: str, *parts: sql.Composable, secret: str = "") -> bool:
        """Run one statement; the first placeholder of the form is the database."""
        try:
            self.session.execute(sql.SQL(form).format(self.database, *parts))
        except psycopg.Error as error:
            if self.session.broken:
                raise
            said = said_by(error)
            self.notes.append(f"{what}: {said.replace(secret, '********') if secret else said}")
            return False
        return True

    def settings(self, role: str, settings: tuple[str, ...]) -> None:
        whose = f"ALTER ROLE {sql_identifier(role)} IN DATABASE" if role else "ALTER DATABASE"
        form = "ALTER ROLE {1} IN DATABASE {0} " if role else "ALTER DATABASE {0} "
        name = sql.Identifier(role)
        self.run(f"{whose} RESET ALL", form + "RESET ALL", name)
        for setting in settings:
            parameter, _, value = setting.partition("=")
            self.run(
                f"{whose} SET {parameter}",
                form + "SET {2} TO {3}",
                name,
                sql.SQL(".").join(map(sql.Identifier, parameter.split("."))),
                sql.SQL(", ").join(map(sql.Literal, _elements(parameter, value))),
                secret=value,
            )

    def rights(self, present: Properties, wanted: Properties) -> None:
        """Revoke all rights and grant them again, each as the role that granted it."""
        for grantee in dict.fromkeys(right.grantee for right in present.rights):
            self.run(f"rights of {grantee or 'PUBLIC'}", "REVOKE ALL ON DATABASE {} FROM {} CASCADE", _grantee(grantee))
        # A grantor must first get the right that it grants.
        for right in sorted(wanted.rights, key=lambda right: right.grantor != wanted.owner):
            what = f"{right.privilege} for {right.grantee or 'PUBLIC'}"
            by_owner = right.grantor == wanted.owner
            if not by_owner and not self.run(what, "SET ROLE {1}", sql.Identifier(right.grantor)):
                continue
            option = sql.SQL("WITH GRANT OPTION" if right.grantable else "")
            privilege = sql.SQL(right.privilege)
            self.run(what, "GRANT {1} ON DATABASE {0} TO {2} {3}", privilege, _grantee(right.grantee), option)
            if not by_owner:
                self.session.execute("RESET ROLE")


def _grantee(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def _elements(parameter: str, value: str) -> list[str]:
    """A setting's value as ``SET`` takes it: the elements of a list one by one."""
    if parameter.lower() not in _LISTS:
        return [value]
    found = [bare or quoted.replace('""', '"') for quoted, bare in _ELEMENT.findall(value)]
    return found or [""]


def _read(session: psycopg.Connection[dict[str, Any]], server: Connection, database: str) -> Properties:
    row = session.execute(_DATABASE, [database]).fetchone()
    if row is None:
        raise DatabaseMissingError(
            f"there is no {server.to(database)}",
            why="it was dropped or renamed meanwhile",
            fix=f"list the databases: psql -h {shell_word(server.host)} -p {server.port} -l",
        )
    return Properties(
        **row,
        rights=tuple(Right.model_validate(right) for right in session.execute(_RIGHTS, [database])),
        settings={r["role"]: tuple(r["settings"]) for r in session.execute(_SETTINGS, [database])},
        labels={r["provider"]: r["label"] for r in session.execute(_LABELS, [database])},
    )

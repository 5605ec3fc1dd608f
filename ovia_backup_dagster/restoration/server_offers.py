"""Queries which of a backup's needs a server meets, and what the restoring role may create there.

Locales, collations and dictionaries are tried: an object of the kind is created in ``pg_temp``, in a transaction that
is rolled back, so the server itself opens the files and nothing stays. If the role may not create it, nothing is
reported. ``requirements`` decides what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from ovia_backup_dagster.postgres.collations import DEFAULT
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.server_messages import said_by
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.restoration.archive_requirements import unquoted
from ovia_backup_dagster.restoration.requirements import Definition, Extension, Needs, Offers, Sessions

Session = psycopg.Connection[dict[str, Any]]

_ROLE = """
    SELECT r.rolname AS name, r.rolsuper AS superuser, nullif(r.rolconnlimit, -1) AS limit,
           (SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid LIMIT 1) AS a_superuser,
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type IS NOT DISTINCT FROM 'client backend'
            OR backend_type IS NULL AND datid IS NOT NULL) AS taken,
           current_setting('max_connections')::int - CASE WHEN r.rolsuper THEN 0 ELSE
               current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0) END AS of_server
    FROM pg_roles r WHERE r.rolname = current_user
"""
#: Computed as in ``NLOCKENTS`` and ``InitializeMaxBackends`` of PostgreSQL 16.
_LOCKS = """
    SELECT current_setting('max_locks_per_transaction')::int AS each,
           current_setting('max_connections')::int + current_setting('autovacuum_max_workers')::int + 1
           + current_setting('max_worker_processes')::int + current_setting('max_wal_senders')::int
           + current_setting('max_prepared_transactions')::int AS slots
"""
_EXTENSIONS = """
    SELECT e.name, e.default_version AS default, array_agg(v.version) AS versions,
           bool_or(v.superuser AND NOT v.trusted) FILTER (WHERE v.version = e.default_version) AS superuser
    FROM pg_available_extensions e JOIN pg_available_extension_versions v USING (name)
    WHERE e.name = ANY (%s) GROUP BY 1, 2
"""
_STRANGERS = """
    SELECT rolname AS name, rolsuper AS superuser FROM pg_roles
    WHERE rolname = ANY (%s) AND NOT (pg_has_role(oid, 'SET') AND pg_has_role(oid, 'USAGE'))
"""
_MAY_PLACE = """
    SELECT pg_has_role(r.oid, o.oid, 'USAGE') AS may FROM pg_roles r, pg_roles o
    WHERE r.rolname = %s AND o.rolname = %s
"""
_MAY_NOT_SET = """
    SELECT name FROM pg_settings
    WHERE name = ANY (%s) AND context = 'superuser' AND NOT has_parameter_privilege(name, 'SET')
"""
_SYSTEM_COLLATIONS = """
    SELECT collname AS name, pg_collation_actual_version(oid) AS version FROM pg_collation
    WHERE collnamespace = 'pg_catalog'::regnamespace
    AND collencoding IN (-1, (SELECT encoding FROM pg_database WHERE datname = current_database()))
"""
#: A server without ICU has this collation in its catalog, too, but no version of it.
_HAS_ICU = "SELECT pg_collation_actual_version(oid) IS NOT NULL AS has FROM pg_collation WHERE collname = 'unicode'"
_VERSION = "SELECT pg_collation_actual_version('pg_temp.ovia'::regcollation) AS version"
_FOLDERS = "SELECT name, setting FROM pg_config WHERE name IN ('PKGLIBDIR', 'SHAREDIR')"
_IS_THERE = "SELECT size IS NOT NULL AS there FROM pg_stat_file(%s, true)"
_OWNER_OF_DATABASE = "pg_database_owner"
#: SQLSTATEs for a missing locale or dictionary file; any other error is about the trial itself.
_LACKING = ("22023", "F0000", "58P01")


def offers_of(server: Connection, needs: Needs, database_owner: str = "") -> Offers:
    """Query a server's offers.

    Args:
        server: a connection to a database other than the live one, as the role that restores.
        needs: the backup's needs.
        database_owner: the owner of the database to create; empty for the role that restores.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(server) as session:
        role = session.execute(_ROLE).fetchone()
        assert role is not None  # a session always has a role
        entries, slots = locks(session)
        superuser = bool(role["superuser"])
        system = {row["name"]: row["version"] for row in session.execute(_SYSTEM_COLLATIONS)}
        trial = _Trial(session, needs)
        return Offers(
            place=f"{server.host}:{server.port}",
            role=role["name"],
            superuser=superuser,
            a_superuser=role["a_superuser"] or "postgres",
            extensions={
                row["name"]: Extension(row["default"], tuple(row["versions"]), bool(row["superuser"]))
                for row in session.execute(_EXTENSIONS, [list(needs.extensions)])
            },
            settings=[row["name"] for row in session.execute(_MAY_NOT_SET, [list(needs.settings)])],
            strangers={
                row["name"]: bool(row["superuser"]) for row in session.execute(_STRANGERS, [list(needs.owners)])
            },
            closed=() if superuser else _closed(session, needs, database_owner or role["name"]),
            libraries=_libraries(session, needs) if superuser else (),
            dictionaries=trial.dictionaries(see_files=superuser),
            collations=trial.collations(),
            system_collations=needs.system_collations - system.keys(),
            locale=trial.locale(),
            locks=entries,
            lock_slots=slots,
            sessions=Sessions(role["limit"], role["of_server"], role["of_server"] - role["taken"]),
            versions=trial.versions
            | {f"pg_catalog.{_quote_ident(name)}": each for name, each in system.items() if each},
        )


def locks(session: Session) -> tuple[int, int]:
    """The number of locks that the server's lock table is sized for, and the number of possible transactions."""
    row = session.execute(_LOCKS).fetchone()
    assert row is not None  # it has no FROM
    return row["each"] * row["slots"], row["slots"]


def _quote_ident(name: str) -> str:
    """A name as ``quote_ident`` writes it."""
    plain = name.replace("_", "a").isalnum() and name.islower() and name.isascii() and not name[0].isdigit()
    return name if plain else '"' + name.replace('"', '""') + '"'


def _closed(session: Session, needs: Needs, database_owner: str) -> list[tuple[str, str]]:
    """Entries of ``placed`` whose role may not create objects in that schema before the grants are restored."""
    found = []
    for role, owner in sorted(needs.placed):
        of_schema = database_owner if owner == _OWNER_OF_DATABASE else owner
        row = session.execute(_MAY_PLACE, [role, of_schema]).fetchone()
        if row is not None and not row["may"]:
            found.append((role, of_schema))
    return found


def _libraries(session: Session, needs: Needs) -> list[str]:
    """Needed libraries that are not in PKGLIBDIR. A library with a path of its own is not checked here."""
    folder = _folders(session).get("PKGLIBDIR", "")
    names = [name for name in needs.libraries if name.removeprefix("$libdir/").replace("/", "") != ""]
    plain = [name for name in names if "/" not in name.removeprefix("$libdir/")]
    return [
        name
        for name in plain
        if folder and not any(_there(session, f"{folder}/{name.removeprefix('$libdir/')}{end}") for end in (".so", ""))
    ]


def _folders(session: Session) -> Mapping[str, str]:
    return {row["name"]: row["setting"] for row in session.execute(_FOLDERS)}


def _there(session: Session, path: str) -> bool:
    row = session.execute(_IS_THERE, [path]).fetchone()
    return bool(row and row["there"])


class _Trial:
    """Creates objects in rolled-back transactions to learn the server's errors."""

    def __init__(self, session: Session, needs: Needs) -> None:
        self.session = session
        self.needs = needs
        self.versions: dict[str, str] = {}
        row = session.execute(_HAS_ICU).fetchone()
        self._has_icu = row is None or bool(row["has"])

    def locale(self) -> str:
        locale = self.needs.locale
        if locale is None:
            return ""
        said = self._collation({"provider": "libc", "lc_collate": locale.collate, "lc_ctype": locale.ctype}, DEFAULT)
        if locale.provider == "icu" and not said:
            self.versions.pop(DEFAULT, None)
            said = self._collation({"provider": "icu", "locale": locale.icu}, DEFAULT)
        return said

    def collations(self) -> dict[str, str]:
        found = {}
        for each in self.needs.collations:
            if said := self._collation(each.options, each.name):
                found[each.name] = said
        return found

    def dictionaries(self, *, see_files: bool) -> dict[str, str]:
        found = {}
        for each in self.needs.dictionaries:
            template = each.options.get("TEMPLATE", "")
            if template.startswith("pg_catalog."):
                said = self._made("TEXT SEARCH DICTIONARY", _quoted(each, template), None)
            else:
                said = self._rules(each) if see_files else ""
            if said:
                found[each.name] = said
        return found

    def _rules(self, dictionary: Definition) -> str:
        """An extension's template cannot be tried; PostgreSQL's own extensions name the file in option ``rules``."""
        name = next((value for option, value in dictionary.options.items() if option.lower() == "rules"), "")
        path = f"{_folders(self.session).get('SHAREDIR', '')}/tsearch_data/{name}.rules"
        return f"there is no file {path}" if name and not _there(self.session, path) else ""

    def _collation(self, options: Mapping[str, str], name: str) -> str:
        if options.get("provider") == "icu" and not self._has_icu:
            return "this PostgreSQL was built without ICU"
        return self._made("COLLATION", [(option, sql.Literal(value)) for option, value in options.items()], name)

    def _made(self, kind: str, options: Iterable[tuple[str, sql.Composable]], name: str | None) -> str:
        pairs = (sql.SQL("{} = {}").format(sql.Identifier(option), value) for option, value in options)
        listed = sql.SQL(", ").join(pairs)
        try:
            with self.session.transaction(force_rollback=True):
                self.session.execute(sql.SQL("CREATE {} pg_temp.ovia ({})").format(sql.SQL(kind), listed))
                row = self.session.execute(_VERSION).fetchone() if name is not None else None
                if name is not None and row and row["version"]:
                    self.versions[name] = row["version"]
        except psycopg.Error as error:
            if self.session.broken:
                raise
            return said_by(error) if error.sqlstate in _LACKING else ""
        return ""


def _quoted(dictionary: Definition, template: str) -> list[tuple[str, sql.Composable]]:
    schema, _, name = template.partition(".")
    others = [(option, sql.Literal(value)) for option, value in dictionary.options.items() if option != "TEMPLATE"]
    return [("template", sql.Identifier(schema, unquoted(name))), *others]

"""Finds rows that no dump contains: rows that users wrote into an extension's tables, and that pg_dump does not save.

pg_dump saves an extension as ``CREATE EXTENSION``, and from its tables only the rows that the extension registers with
``pg_extension_config_dump``. Rows that the extension's script inserts come back with it; later rows do not.
"""

from __future__ import annotations

from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect

#: Rows that the extension's script inserted have the same xmin as the extension's objects: one transaction made both.
_TABLES = """
    SELECT e.extname AS extension, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
           u.condition, has_table_privilege(c.oid, 'SELECT') AS readable,
           ARRAY(SELECT DISTINCT m.xmin::text FROM pg_depend m WHERE m.refclassid = 'pg_extension'::regclass
                 AND m.refobjid = e.oid AND m.deptype = 'e') || e.xmin::text AS made_in
    FROM pg_extension e
    JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                    AND d.classid = 'pg_class'::regclass
    JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'r'
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN LATERAL unnest(e.extconfig, e.extcondition) AS u (oid, condition) ON u.oid = c.oid
    WHERE (u.condition IS NULL OR u.condition <> '') AND pg_relation_size(c.oid) > 0
    ORDER BY 1, 2
"""
_ROWS = "SELECT count(*) AS number FROM (SELECT FROM ONLY {0} WHERE xmin::text <> ALL (%s){1} LIMIT {2}) AS rows"
_MOST = 1_000_000
_SECONDS = 10


def undumped(connection: Connection) -> list[str]:
    """A line for each table of an extension that has rows which no dump contains.

    Raises:
        ServerError: the connection failed or broke.
    """
    with connect(connection) as session:
        session.execute(f"SET statement_timeout = '{_SECONDS}s'".encode())
        tables = session.execute(_TABLES).fetchall()
        return [line for table in tables for line in _of(session, table)]


def undumped_or_why(connection: Connection) -> list[str]:
    """Like :func:`undumped`, but an error becomes a line, too."""
    try:
        return undumped(connection)
    except BackupError as error:
        return [f"cannot tell whether extensions hold rows that no dump contains: {error.account}"]


def _of(session: psycopg.Connection[dict[str, Any]], table: dict[str, Any]) -> list[str]:
    name, condition = table["name"], table["condition"]
    what = f"table {name} of extension {table['extension']}"
    if not table["readable"]:
        return [] if condition else [f"{what} may hold rows that no dump contains: this role may not read it"]
    # The condition is trusted: pg_dump runs it, too, and the extension's author wrote it.
    rest = f" AND ctid NOT IN (SELECT ctid FROM ONLY {name} {condition})" if condition else ""  # noqa: S608
    query = _ROWS.format(name.replace("%", "%%"), rest.replace("%", "%%"), _MOST)
    try:
        row = session.execute(query.encode(), [table["made_in"]]).fetchone()
    except psycopg.Error as error:
        if session.broken:
            raise
        return [f"{what} may hold rows that no dump contains: it could not be searched ({error.sqlstate})"]
    number = row["number"] if row else 0
    if not number:
        return []
    why = "its own filter leaves them out" if condition else "the extension does not register it for dumps"
    return [f"{what}: {number:,} rows that did not come with it are in no dump: {why} (pg_extension_config_dump)"]

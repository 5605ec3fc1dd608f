"""Copies tables of a restored copy into a new schema of the live database, compares them, and tells what is missing.

The live database's own tables are only read. To merge the rows is a person's decision: ``TableCopied.insert`` is the
statement for it. ``steps.copy_tables`` decides when tables are copied, and what remains of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import CopyError, RestoreRefusedError
from ovia_backup_dagster.core.human_text import some
from ovia_backup_dagster.core.verdict import split_identifier
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import sql_identifier, sql_string
from ovia_backup_dagster.postgres.session import BUILT_IN, DURABLY, be_patient, connect
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS, WRITABLE, unended

#: Policies would hide rows without an error. Rows may take hours to copy; a lock that is not granted must end it.
_OPTIONS = (
    f"{SESSION_OPTIONS} {unended()} -c statement_timeout=0 -c lock_timeout=10s -c row_security=off {BUILT_IN} "
    f"{WRITABLE}"
)
Session = psycopg.Connection[dict[str, Any]]

_TABLES = """
    SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind = 'r' AS plain
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = %(name)s AND (%(schema)s = '' OR n.nspname = %(schema)s) AND c.relkind IN ('r', 'p', 'm')
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 2
"""
#: ``built_in``: the live database has the type, too, and no function of a user reads or writes it.
_COLUMNS = """
    SELECT a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attgenerated <> '' AS generated,
           t.typnamespace = 'pg_catalog'::regnamespace AND t.typname !~ '^_?reg' AS built_in,
           coalesce(a.attnum = ANY (i.indkey), false) AS key
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_READ = "COPY (SELECT {columns} FROM {table}) TO STDOUT"
#: The same for equal rows in any order. ``ROW`` writes each value with its type's output function, and no cast.
_DIGEST = """
    SELECT count(*) AS rows,
           sum(('x' || encode(substr(sha256(convert_to(ROW({columns})::text, {encoding})), 1, 8), 'hex'))::bit(64)
               ::bigint::numeric) AS digest
    FROM {table}
"""


@dataclass(frozen=True, slots=True)
class TableCopied:
    """A table that was copied.

    Attributes:
        name: qualified, as SQL takes it.
        rows: how many it had.
        missing: how many of them the live table lacks, by its primary key; ``None`` if that cannot be told.
        insert: the statement that inserts those; empty if the live database has no such table, or it has no key.
    """

    name: str
    rows: int
    missing: int | None
    insert: str


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    schema: str
    name: str
    plain: bool
    columns: Sequence[dict[str, Any]]

    @property
    def qualified(self) -> str:
        return _qualified(self.schema, self.name)

    @property
    def rows(self) -> str:
        # A plain table's children are tables of their own; a partitioned one has rows only in its partitions.
        return f"ONLY {self.qualified}" if self.plain else self.qualified


def parse_tables(given: Sequence[str]) -> tuple[str, ...]:
    """Table names as an operator gave them: ``people,"My Schema".orders`` -> each, once, in order."""
    found: list[str] = []
    for text in given:
        name, quoted = "", False
        for char in f"{text},":
            quoted ^= char == '"'
            if char == "," and not quoted:
                found.append(name.strip())
                name = ""
            else:
                name += char
    return tuple(dict.fromkeys(filter(None, found)))


def parts_of(name: str) -> tuple[str, str]:
    """Schema and table of a given name; the schema is empty if it is not given.

    Raises:
        RestoreRefusedError: it has more parts, or an empty one.
    """
    parts = split_identifier(name)
    if len(parts) > 2 or not all(parts):
        raise RestoreRefusedError(
            f"{name} is not the name of a table",
            why="a name is TABLE or SCHEMA.TABLE; capitals matter, and a dot or a comma in a name needs double quotes",
            fix="ovia-backup verify BACKUP lists the tables of a backup",
        )
    return (parts[0], parts[1]) if len(parts) == 2 else ("", parts[0])


def no_table(given: str, backup: str) -> RestoreRefusedError:
    """The error if a backup has no table of the given name."""
    return RestoreRefusedError(
        f"there is no table {given} in {backup}",
        why="it was created later, dropped earlier, or has another name",
        fix="ovia-backup verify BACKUP lists the tables of a backup",
    )


def copy_tables(
    copy: Connection, live: Connection, names: Sequence[str], schema: str, mark: str, owner: str, log: Log
) -> list[TableCopied]:
    """Copy tables into a new schema, all or none, and compare each with its original.

    Columns of built-in types keep them; others become text, so that no function of a user runs and no type is missing.

    Args:
        copy: the restored database.
        live: the live database.
        names: as :func:`parse_tables` returns them.
        schema: the new schema.
        mark: the comment that tells whose the schema is.
        owner: the role that may read the schema besides the restoring one.
        log: receives progress.

    Raises:
        RestoreRefusedError: there is no such table, or several, or a role lacks a right.
        CopyError: what arrived differs from its original; nothing is left.
        ServerError: a connection failed or broke; nothing is left.
    """
    with connect(copy, _OPTIONS) as source, connect(live, _OPTIONS) as target:
        for session in (source, target):
            be_patient(session)
        target.execute(DURABLY)
        tables = [_find(source, name) for name in names]
        with target.transaction():
            run(target, f"CREATE SCHEMA {sql_identifier(schema)}")
            run(target, f"COMMENT ON SCHEMA {sql_identifier(schema)} IS {sql_string(mark)}")
            copied = []
            for table in {each.oid: each for each in tables}.values():
                log(f"copying {table.qualified}")
                copied.append(_copy(source, target, table, schema))
            to = sql_identifier(owner)
            run(target, f"GRANT USAGE ON SCHEMA {sql_identifier(schema)} TO {to}")
            run(target, f"GRANT SELECT ON ALL TABLES IN SCHEMA {sql_identifier(schema)} TO {to}")
        return copied


def drop_schema(live: Connection, schema: str, mark: str) -> bool:
    """Drop the schema of copied tables if it has the mark; returns whether there was one."""
    with connect(live, _OPTIONS) as session:
        query = "SELECT 1 FROM pg_namespace WHERE nspname = %s AND obj_description(oid, 'pg_namespace') = %s"
        if session.execute(query, (schema, mark)).fetchone() is None:
            return False
        run(session, f"DROP SCHEMA {sql_identifier(schema)} CASCADE")
    return True


def run(session: Session, statement: str) -> None:
    session.execute(statement.encode())


def _find(source: Session, given: str) -> _Table:
    schema, name = parts_of(given)
    found = source.execute(_TABLES, {"schema": schema, "name": name}).fetchall()
    if not found:
        raise no_table(given, "the backup")
    if len(found) > 1:
        raise RestoreRefusedError(
            f"{given} is several tables: {some([_qualified(each['schema'], each['name']) for each in found])}",
            why="each has its schema",
            fix="name it with its schema: --tables SCHEMA.TABLE",
        )
    [row] = found
    columns = source.execute(_COLUMNS, (row["oid"],)).fetchall()
    return _Table(row["oid"], row["schema"], row["name"], row["plain"], columns)


def _qualified(schema: str, name: str) -> str:
    return f"{sql_identifier(schema)}.{sql_identifier(name)}"


def _copy(source: Session, target: Session, table: _Table, schema: str) -> TableCopied:
    new = _qualified(schema, table.name)
    if target.execute(_TABLES, {"schema": schema, "name": table.name}).fetchone():
        new = _qualified(schema, f"{table.schema}_{table.name}")  # two schemas have a table of this name
    types = ", ".join(
        f"{sql_identifier(each['name'])} {each['type'] if each['built_in'] else 'text'}" for each in table.columns
    )
    columns = ", ".join(sql_identifier(each["name"]) for each in table.columns)
    run(target, f"CREATE TABLE {new} ({types})")
    with (
        source.cursor().copy(_READ.format(columns=columns, table=table.rows).encode()) as rows,
        target.cursor().copy(f"COPY {new} FROM STDIN".encode()) as into,
    ):
        for block in rows:
            into.write(block)
    found = [_digest(source, table.rows, columns), _digest(target, new, columns)]
    if found[0] != found[1]:
        raise CopyError(
            f"{new} differs from {table.qualified} of the restored copy",
            why=f"{found[1][0]:,} rows of {found[0][0]:,}, or other values",
            fix="nothing was kept; look at the copy: ovia-backup restore BACKUP --mode new",
        )
    insert, missing = _merge(target, table, new)
    return TableCopied(table.qualified, found[0][0], missing, insert)


def _digest(session: Session, table: str, columns: str) -> tuple[int, Any]:
    # An SQL_ASCII database has no encoding to convert from.
    raw = session.info.parameter_status("server_encoding") == "SQL_ASCII"
    encoding = "'SQL_ASCII'" if raw else "'UTF8'"
    row = session.execute(_DIGEST.format(columns=columns, encoding=encoding, table=table).encode()).fetchone()
    assert row is not None
    return row["rows"], row["digest"]


def _merge(target: Session, table: _Table, new: str) -> tuple[str, int | None]:
    """The statement that inserts the rows that the live table lacks, and how many those are."""
    row = target.execute(_TABLES, {"schema": table.schema, "name": table.name}).fetchone()
    if row is None:
        return "", None
    live = {each["name"]: each for each in target.execute(_COLUMNS, (row["oid"],)).fetchall()}
    shared = [each["name"] for each in table.columns if each["name"] in live and not live[each["name"]]["generated"]]
    key = [name for name, each in live.items() if each["key"]]
    if not key or not set(key) <= set(shared):
        return "", None
    values = {name: f"r.{sql_identifier(name)}::{live[name]['type']}" for name in shared}
    same = " AND ".join(f"l.{sql_identifier(name)} = {values[name]}" for name in key)
    lacking = f"FROM {new} r WHERE NOT EXISTS (SELECT FROM {table.qualified} l WHERE {same})"
    names = ", ".join(map(sql_identifier, shared))
    into = f"INSERT INTO {table.qualified} ({names}) OVERRIDING SYSTEM VALUE"
    insert = f"{into} SELECT {', '.join(values.values())} {lacking}"
    if not all(live[name]["built_in"] for name in key):
        return insert, None
    with _attempted(target):
        found = target.execute(f"SELECT count(*) AS missing {lacking}".encode()).fetchone()
        return insert, found["missing"] if found else None
    return insert, None


@contextmanager
def _attempted(session: Session) -> Iterator[None]:
    """A question that may fail, such as for a lack of rights, without an end of the transaction."""
    try:
        with session.transaction():
            yield
    except (psycopg.errors.DataError, psycopg.errors.ProgrammingError):
        pass

"""The negative control of a drill: deletes a row in the copy, and checks that the comparison finds the difference.

A comparison that never finds a difference would pass every copy; the control shows that this one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from ovia_backup_dagster.core.verdict import TableWitness
from ovia_backup_dagster.postgres.data_stream import decode_text
from ovia_backup_dagster.postgres.session import BUILT_IN, connect
from ovia_backup_dagster.proof.database_reader import CopyReader

#: Names are bytes: Python may lack a codec for the encoding, and names in SQL_ASCII need not be text at all.
_NAMES = """
    SELECT convert_to(name, CASE stored WHEN 'SQL_ASCII' THEN stored ELSE %s END) AS dumped,
           convert_to(name, stored) AS "table",
           convert_to(coalesce(columns, ''), stored) AS columns,
           convert_to(coalesce(saved, ''), stored) AS saved,
           convert_to(coalesce(size, '0'), stored) AS size
    FROM (
        SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
               getdatabaseencoding()::text AS stored,
               columns, size,
               (SELECT u.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) AS u (oid, condition)
                WHERE u.oid = c.oid LIMIT 1) AS saved
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        CROSS JOIN LATERAL (
            SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS columns,
                   string_agg('coalesce(pg_column_size(' || quote_ident(a.attname) || '), 0)', ' + ') AS size
            FROM pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ) AS of_columns
        WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'pg_catalog'
    ) AS tables
"""
#: A small row among the table's first rows, because the row passes through this process. In bytes, because names need
#: not be text.
_SMALL = b"""
    SELECT tableoid, convert_to(ctid::text, 'SQL_ASCII') AS ctid
    FROM (SELECT tableoid, ctid, %s AS size FROM %s %s LIMIT %d) AS first ORDER BY size LIMIT 1
"""
_LOOKED_AT = 1000
#: The row is put back byte for byte. With any client encoding but SQL_ASCII (no conversion), the server would convert
#: the row, and refuse invalid text.
_AS_STORED = "SET client_encoding = 'SQL_ASCII'"
Session = psycopg.Connection[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Control:
    """The outcome of a negative control.

    Attributes:
        table: the table from which a row was deleted; empty if no table allowed it.
        noticed: whether reading the table again showed the difference.
    """

    table: str
    noticed: bool


def control(reader: CopyReader, tables: Iterable[TableWitness], filling: str) -> Control:
    """Delete a row of the smallest table that allows it, read the table again, and put the row back.

    Args:
        reader: reads the copy.
        tables: the copy's tables, as they were read; those without rows are skipped.
        filling: the ``PGOPTIONS`` that the copy was filled with: under other options, a CHECK may refuse the row.

    Raises:
        BackupError: the copy cannot be read.
    """
    filled = sorted((table for table in tables if table.rows), key=lambda table: (table.rows, table.name))
    with connect(reader.copy) as session, connect(reader.copy, f"{filling} {BUILT_IN}") as filler:
        for each in (session, filler):
            each.execute(_AS_STORED)
        names = _names(session, reader.encoding)
        for table in filled:
            name = names.get(table.name)
            row = _take_row(session, name) if name else None
            if name is None or row is None:
                continue  # a rule or a foreign key protects the row: try the next table
            after = reader.read_table(name.dumped)
            _put_back(filler, name, row)
            read = (after.rows, after.digest.hexdigest()) if after else None
            return Control(table.name, read != (table.rows, table.sha256))
    return Control("", noticed=False)


@dataclass(frozen=True, slots=True)
class _Name:
    """The names of a table and of its columns that hold data, in the bytes that each program expects.

    Attributes:
        dumped: the table's name as pg_dump writes it, in the dump's encoding.
        table, columns: as this session's SQL takes them.
        saved: the condition for rows that a dump contains, as ``WHERE ...``; empty for all rows. An extension's table
            may have one.
        size: an expression for a row's stored bytes, which does not read large values.
    """

    dumped: bytes
    table: bytes
    columns: bytes
    saved: bytes
    size: bytes


def _names(session: Session, encoding: str) -> dict[str, _Name]:
    """The names of all tables, by their name in a witness."""
    rows = session.execute(_NAMES, [encoding]).fetchall()
    return {decode_text(row["dumped"]): _Name(**row) for row in rows}


def _take_row(session: Session, name: _Name) -> bytes | None:
    """Delete a row; returns it as COPY writes it, or ``None`` if no row could be deleted."""
    # A partitioned table that is loaded through its root has its rows in the partitions, but is read by its own name.
    for target in (b"ONLY " + name.table, name.table):
        try:
            with session.transaction():
                _without_triggers(session)
                found = session.execute(_SMALL % (name.size, target, name.saved, _LOOKED_AT)).fetchone()
                if found is None:
                    continue
                where = b" WHERE tableoid = %d AND ctid = '%s'::tid" % (found["tableoid"], found["ctid"])
                query = b"COPY (SELECT " + name.columns + b" FROM " + target + where + b") TO STDOUT"
                with session.cursor().copy(query) as copied:
                    row = b"".join(map(bytes, copied))
                if session.execute(b"DELETE FROM " + target + where).rowcount == 1:
                    return row
        except psycopg.Error:
            continue
    return None


def _put_back(session: Session, name: _Name, row: bytes) -> None:
    columns = b" (" + name.columns + b")" if name.columns else b""
    with session.transaction():
        _without_triggers(session)
        with session.cursor().copy(b"COPY " + name.table + columns + b" FROM STDIN") as copied:
            copied.write(row)


def _without_triggers(session: Session) -> None:
    """Switch off triggers and foreign keys, if the role may, so that only the row itself changes."""
    with _permitted(session):
        session.execute("SET LOCAL session_replication_role = replica")


@contextmanager
def _permitted(session: Session) -> Iterator[None]:
    """Run the block in a savepoint; if this role lacks the privilege, the transaction goes on without the block."""
    try:
        with session.transaction():
            yield
    except psycopg.errors.InsufficientPrivilege:
        return

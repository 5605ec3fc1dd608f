"""Finds rows that no dump can contain: their text is longer than 1 GB, the most that PostgreSQL sends at once.

The server stores fields of up to 1 GB, and many in a row. As text, a bytea takes two bytes for each byte, and all
fields of a row must fit into one line of COPY (MaxAllocSize of memutils.h, StringInfo). pg_dump then fails with a
message that damaged data causes, too, and only the rows can tell which it is. Their lengths are stored separately, so
checking them does not read the large values.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import BackupError, RowTooLargeError
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect

#: MaxAllocSize in bytes, less the terminating zero byte.
MOST_BYTES = 0x3FFFFFFF - 1
#: A compressed value takes at least 1/255 of its size (lz4; pglz 1/91): a smaller TOAST table has no such field.
_LEAST_STORED_BYTES = MOST_BYTES // 2 // 255
_DUMP_SECONDS, _LOOK_SECONDS = 120.0, 10.0
_CANDIDATES = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
           array_agg(quote_ident(a.attname) ORDER BY a.attnum) AS columns,
           array_agg(coalesce(nullif(t.typbasetype, 0), t.oid) = 'bytea'::regtype ORDER BY a.attnum) AS binary
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND coalesce(nullif(t.typbasetype, 0), t.oid) IN ('bytea'::regtype, 'text'::regtype, 'varchar'::regtype)
      AND c.reltoastrelid <> 0 AND pg_relation_size(c.reltoastrelid) >= %s
    GROUP BY c.oid, 1 ORDER BY pg_relation_size(c.oid)
"""


@dataclass(frozen=True, slots=True)
class LargeRows:
    """A table that cannot be dumped.

    Attributes:
        table: its name, quoted if necessary.
        rows: how many rows are too large.
        longest: the column with the longest field, quoted if necessary.
        binary: whether that column is a bytea.
    """

    table: str
    rows: int
    longest: str
    binary: bool

    def __str__(self) -> str:
        rows = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        hold = "holds" if self.rows == 1 else "hold"
        doubled = ", in which each byte of a bytea takes two" if self.binary else ""
        what = f"{rows} of table {self.table} {hold} more than pg_dump can read, most of it in column {self.longest}"
        return f"{what}: the text of a row must be under 1 GB{doubled}"

    @property
    def fix(self) -> str:
        """The remedy, in words and SQL."""
        large, new = self.longest, sql_identifier("large_object")
        content = large if self.binary else f"convert_to({large}, 'UTF8')"
        least = MOST_BYTES // (2 if self.binary else 1) // 2
        update = f"UPDATE {self.table} SET {new} = lo_from_bytea(0, {content}), {large} = NULL"  # noqa: S608 - shown
        return (
            "split such a field into several rows, or turn it into a large object, which is dumped in pieces: "
            f"ALTER TABLE {self.table} ADD {new} oid; {update} WHERE octet_length({large}) > {least}; "
            "then: ovia-backup dump"
        )


def find_large_rows(connection: Connection, seconds: float = _LOOK_SECONDS) -> tuple[list[LargeRows], bool]:
    """The tables with rows that are too large, and whether all tables were checked in time.

    Only lengths are read, and only of tables whose TOAST table is large enough for such a field.

    Raises:
        ServerError: the connection failed or broke.
    """
    found: list[LargeRows] = []
    whole = True
    deadline = time.monotonic() + seconds
    with connect(connection) as session:
        for row in session.execute(_CANDIDATES, [_LEAST_STORED_BYTES]).fetchall():
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    return found, False
                session.execute(f"SET statement_timeout = {max(int(left * 1000), 1)}")
                large = _look(session, row["name"], list(zip(row["columns"], row["binary"], strict=True)))
            except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
                whole = False
            except psycopg.errors.InsufficientPrivilege:
                continue  # the check of privileges reports it
            else:
                found += [large] if large else []
    return found, whole


def _look(session: psycopg.Connection[dict[str, Any]], table: str, columns: list[tuple[str, bool]]) -> LargeRows | None:
    lengths = [f"coalesce(octet_length({name})::bigint{' * 2 + 3' if binary else ''}, 0)" for name, binary in columns]
    longest = ", ".join(f"max({length})" for length in lengths)
    query = (
        f"SELECT count(*) AS rows, ARRAY[{longest}] AS longest FROM ONLY {table} "  # noqa: S608 - quoted by the server
        f"WHERE {' + '.join(lengths)} + {len(columns)} > {MOST_BYTES}"
    )
    row = session.execute(query.encode()).fetchone()
    if row is None or not row["rows"]:
        return None
    name, binary = columns[row["longest"].index(max(row["longest"]))]
    return LargeRows(table, row["rows"], name, binary)


def blame_large_rows(connection: Connection, error: BackupError) -> BackupError:
    """Replace an error that may mean damaged data by :class:`RowTooLargeError` if the database has too large rows."""
    try:
        found, _ = find_large_rows(connection, _DUMP_SECONDS)
    except BackupError:
        return error
    if not found:
        return error
    more = f"; {len(found) - 1} more tables have such rows" if found[1:] else ""
    return RowTooLargeError(error.what, why=f"{found[0]}{more}", said=error.said, fix=found[0].fix)

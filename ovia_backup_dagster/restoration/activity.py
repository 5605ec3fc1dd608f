"""Recent writes to a database: row counts from the server's counters, and the newest values of its timestamp columns.

They tell an operator what a swap leaves behind. The figures are approximate: counters include rolled-back rows, do not
include rows that TRUNCATE removed, and idle sessions report with a delay of up to ten seconds.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect

_BUDGET_SECONDS = 10.0
_UNINDEXED_BYTES = 50_000_000
_LIKELY = re.compile(r"creat|updat|modif|insert|added|ingest|import|_at$", re.IGNORECASE)
#: A crash resets the counters. The reset time of pg_stat_archiver then changes, that of pg_stat_database does not.
_RESETS = """
    SELECT concat_ws(' ', (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()),
                     (SELECT stats_reset FROM pg_stat_archiver)) AS resets
"""
_COUNTERS = """
    SELECT format('%I.%I', schemaname, relname) AS "table", n_tup_ins AS ins, n_tup_upd AS upd, n_tup_del AS del
    FROM pg_stat_user_tables
"""
#: The timestamp columns, and whether an index gives the newest value quickly.
_COLUMNS = """
    SELECT n.nspname AS schema, c.relname AS "table", a.attname AS "column",
           EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
                   WHERE i.indrelid = c.oid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL
                   AND m.amname = 'btree') AS indexed,
           c.oid
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' AND a.attnum > 0
      AND NOT a.attisdropped AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype)
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
"""
#: Waits for locks on the table, as reading it does.
_SIZE = """
    SELECT coalesce((SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(%(oid)s)), pg_relation_size(%(oid)s))
           AS bytes
"""
#: Leaves out birthdays, infinities and appointments: only timestamps of when a row was written count.
_NEWEST = "SELECT max({column}) AS newest FROM {table} WHERE {column} BETWEEN '1970-01-01' AND now()"


class Counters(Sidecar):
    """Write counters at one moment.

    Attributes:
        resets: when they were last reset; if this has changed later, the counts since are unknown.
        tables: schema and name, as SQL takes them -> rows inserted, updated, deleted.
    """

    resets: str
    tables: dict[str, tuple[int, int, int]]

    @classmethod
    def from_json(cls, text: str) -> Counters:
        """Parse the output of :meth:`to_json`."""
        return cls.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of one table."""

    table: str
    inserted: int
    updated: int
    deleted: int


def written(server: Connection, database: str) -> Counters:
    """The current counters. Read before any client connects to a restored database, they are a complete baseline.

    Raises:
        ServerError: no connection, or it broke.
    """
    with connect(server.to(database)) as session:
        resets = session.execute(_RESETS).fetchone()
        assert resets is not None
        tables = {row["table"]: (row["ins"], row["upd"], row["del"]) for row in session.execute(_COUNTERS)}
        return Counters(resets=resets["resets"], tables=tables)


def written_since(server: Connection, database: str, baseline: Counters) -> list[Written] | None:
    """Rows written since the baseline, by table, most first; ``None`` if the server's counters were reset since.

    Tables that were dropped are left out.

    Raises:
        ServerError: no connection, or it broke.
    """
    now = written(server, database)
    if now.resets != baseline.resets:
        return None
    changes = {
        table: tuple(a - b for a, b in zip(counts, baseline.tables.get(table, (0, 0, 0)), strict=True))
        for table, counts in now.tables.items()
    }
    # A table that was created again under the same name counts from zero.
    changes = {table: now.tables[table] if min(change) < 0 else change for table, change in changes.items()}
    found = [Written(table, *change) for table, change in changes.items() if any(change)]
    return sorted(found, key=lambda each: (-each.inserted - each.updated - each.deleted, each.table))


def newest_timestamps(server: Connection, database: str, limit: int = 5) -> list[tuple[str, datetime]]:
    """The newest timestamps in columns that are cheap to query: indexed, or of a small table. Newest first.

    Timestamps in the server's future are left out. Columns without a time zone are read as UTC. Tables that are locked,
    that the role may not read, or that take too long are skipped. The query takes about ten seconds at most.

    Args:
        server: as a role that may read the tables.
        limit: how many timestamps.

    Returns:
        ``schema.table.column`` and its newest value, aware.

    Raises:
        ServerError: no connection, or it broke.
    """
    found = []
    deadline = time.monotonic() + _BUDGET_SECONDS
    with connect(server.to(database)) as session:
        session.execute("SET statement_timeout = '2s'; SET lock_timeout = '500ms'")
        columns = session.execute(_COLUMNS).fetchall()
        columns.sort(key=lambda c: (_LIKELY.search(c["column"]) is None, not c["indexed"], c["table"], c["column"]))
        for column in columns:
            if time.monotonic() > deadline:
                break
            table = sql.Identifier(column["schema"], column["table"])
            query = sql.SQL(_NEWEST).format(table=table, column=sql.Identifier(column["column"]))
            try:
                size = None if column["indexed"] else session.execute(_SIZE, {"oid": column["oid"]}).fetchone()
                if size and size["bytes"] > _UNINDEXED_BYTES:
                    continue
                row = session.execute(query).fetchone()
            except psycopg.Error:
                if session.broken:
                    raise
                continue
            if row and row["newest"]:
                at = row["newest"].replace(tzinfo=row["newest"].tzinfo or UTC)
                found.append((f"{column['schema']}.{column['table']}.{column['column']}", at))
    return sorted(found, key=lambda each: each[1], reverse=True)[:limit]

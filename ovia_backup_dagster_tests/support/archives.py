"""Rows and restored databases of an archive, read with PostgreSQL's own programs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg import sql

from ovia_backup_dagster.postgres.programs import Connection, Programs, capture


def rows_in(database: Connection) -> dict[str, int]:
    """The number of rows of each table that stores data, with the names that pg_dump uses."""
    query = """
        SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, n.nspname, c.relname,
               (SELECT p.partstrat FROM pg_partitioned_table p JOIN pg_inherits i ON i.inhparent = p.partrelid
                WHERE i.inhrelid = c.oid) AS strategy
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
    """
    with psycopg.connect(
        host=database.host, port=database.port, dbname=database.database, user=database.user
    ) as session:
        counts: dict[str, int] = {}
        for name, schema, table, strategy in session.execute(query).fetchall():
            # pg_dump loads partitions by a hash of an enum through their root.
            root = re.sub(r"_p\d+$", "", name) if strategy == "h" else name
            statement = sql.SQL("SELECT count(*) FROM ONLY {}").format(sql.Identifier(schema, table))
            row = session.execute(statement).fetchone()
            assert row is not None
            counts[root] = counts.get(root, 0) + row[0]
        return counts


def restored(source: Connection, dump: Path, name: str, programs: Programs) -> Connection:
    """Restore a dump into a new database with plain pg_restore."""
    target = replace(source, database=name)
    create = (programs.path("createdb"), "--template=template0", name)
    assert capture(create, variables=replace(source, database="postgres").environment())[0] == 0
    command = (programs.path("pg_restore"), "--exit-on-error", "--jobs=2", f"--dbname={name}", str(dump))
    code, _, stderr = capture(command, variables=source.environment())
    assert code == 0, stderr
    return target

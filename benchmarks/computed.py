"""(o): a dump that hashes generated columns and materialized views beside one that does not; and with none to hash."""

from __future__ import annotations

from pathlib import Path

import psycopg

from benchmarks.measure import Json, alternate, ratio, say, seconds, summary, target
from benchmarks.world import BIN, World
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.manifest import Computed
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.postgres.computed_values import MOST_BYTES
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs

#: A generated column on the table with most of the rows, and a materialized view with as many rows.
_MORE = """
    ALTER TABLE ask_messages ADD body_words int
        GENERATED ALWAYS AS (length(body) - length(replace(body, ' ', ''))) STORED;
    CREATE MATERIALIZED VIEW message_lengths AS
        SELECT id, length(body) AS length, md5(body) AS digest FROM ask_messages;
"""
#: Neither generated columns nor materialized views, with the same rows.
_NONE = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT oid::regclass AS name FROM pg_class WHERE relkind = 'm' LOOP
            EXECUTE format('DROP MATERIALIZED VIEW IF EXISTS %s CASCADE', found.name);
        END LOOP;
        FOR found IN SELECT attrelid::regclass AS name, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
                     WHERE attgenerated = 's' AND relkind IN ('r', 'p') AND NOT relispartition LOOP
            EXECUTE format('ALTER TABLE %s ALTER %I DROP EXPRESSION', found.name, found.attname);
        END LOOP;
    END $$
"""


def measure(world: World, megabytes: int) -> Json:
    """Five rounds of four sides."""
    plain = world.database(megabytes)
    with_some, with_none = (_copy(world, plain, name, sql) for name, sql in (("some", _MORE), ("none", _NONE)))
    sides = {
        "hashed": _Dump(world, with_some, MOST_BYTES),
        "unhashed": _Dump(world, with_some, 0),
        "nothing": _Dump(world, with_none, MOST_BYTES),
        "nothing_unhashed": _Dump(world, with_none, 0),
    }
    say("to warm up")
    for side in sides.values():
        side.run()
    samples = alternate({name: side.run for name, side in sides.items()})
    nothing = ratio(samples["nothing"], samples["nothing_unhashed"])
    ratios = {"hashed": ratio(samples["hashed"], samples["unhashed"]), "o": nothing}
    found = sides["hashed"].computed
    assert found is not None
    return {
        "database_bytes": world.size_bytes(with_some),
        "read_bytes": found.read_bytes,
        "hashing_seconds": found.seconds,
        "columns": sum(len(table.columns) for table in found.tables.values()),
        "views": len(found.views),
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "ratios": ratios,
        "targets": [
            target("o", "a dump with nothing to hash / one that does not look", nothing["median"], 1.03),
        ],
    }


class _Dump:
    """``Dumper.dump``, with its hash, roles and manifest."""

    def __init__(self, world: World, database: Connection, most_bytes: int) -> None:
        catalog = Catalog(Path(world.path("backups")), database.database)
        self.dumper = Dumper(catalog, database, Programs(BIN), most_bytes=most_bytes)
        self.computed: Computed | None = None

    def run(self) -> float:
        taken = seconds(lambda: self.dumper.dump(log=lambda _: None))
        for backup in self.dumper.catalog.backups():
            assert backup.manifest is not None
            self.computed = backup.manifest.computed
            remove_backup(self.dumper.catalog, backup)
        return taken


def _copy(world: World, plain: Connection, name: str, sql: str) -> Connection:
    name = f"{plain.database}_{name}"
    there = plain.to("postgres")
    with psycopg.connect(host=there.host, dbname=there.database, user=there.user, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE {plain.database} STRATEGY file_copy".encode())
    made = world.cluster.connection(name)
    with psycopg.connect(host=made.host, dbname=made.database, user=made.user, autocommit=True) as session:
        session.execute(sql.encode())
        session.execute("VACUUM ANALYZE")
    return made

"""Writes to a database, by the server's counters and by the newest timestamps in its columns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.restoration.activity import Counters, Written, newest_timestamps, written, written_since
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, running_cluster
from ovia_backup_dagster_tests.support.drilling import database


def test_writes_since_a_baseline_are_counted(server: PortCluster) -> None:
    with database(server, "written") as db:
        execute(db, 'CREATE TABLE "Odd ""t""" (n int)', "CREATE TABLE quiet (n int)", "INSERT INTO quiet VALUES (1)")
        baseline = Counters.from_json(written(db, "written").to_json())
        assert written_since(db, "written", baseline) == []
        execute(
            db,
            'INSERT INTO "Odd ""t""" SELECT generate_series(1, 5)',
            'UPDATE "Odd ""t""" SET n = 0 WHERE n < 3',
            'DELETE FROM "Odd ""t""" WHERE n = 5',
            "CREATE TABLE new AS SELECT 1",
        )
        assert written_since(db, "written", baseline) == [
            Written('public."Odd ""t"""', 5, 2, 1),
            Written("public.new", 1, 0, 0),
        ]
        execute(db, "SELECT pg_stat_reset()")
        assert written_since(db, "written", baseline) is None


def test_activity_is_unknown_after_a_crash(bin_dir: Path) -> None:
    with running_cluster(bin_dir) as cluster, database(cluster, "written") as db:
        execute(db, "CREATE TABLE t AS SELECT 1")
        baseline = written(db, "written")
        cluster.stop("immediate")
        cluster.start()
        assert written_since(db, "written", baseline) is None


def test_the_newest_past_timestamps_are_found(server: PortCluster) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with database(server, "newest") as db:
        with admin(server, "newest") as session:
            session.execute("CREATE TABLE people (created_at timestamptz, born timestamp, appointment timestamptz)")
            session.execute("CREATE INDEX ON people (created_at)")
            values = [now - timedelta(hours=1), datetime(1950, 1, 1), now + timedelta(days=1)]  # noqa: DTZ001
            session.execute("INSERT INTO people VALUES (%s, %s, %s)", values)
            session.execute("INSERT INTO people VALUES ('infinity', '-infinity', '4000-01-01 BC')")
            session.execute("CREATE TABLE parts (updated timestamp, n int) PARTITION BY LIST (n)")
            session.execute("CREATE TABLE part PARTITION OF parts DEFAULT")
            session.execute("INSERT INTO parts VALUES (%s, 1)", [(now - timedelta(hours=2)).replace(tzinfo=None)])
            session.execute("CREATE TABLE locked (at timestamptz)")
        with admin(server, "newest") as other, other.transaction():
            other.execute("LOCK TABLE locked")
            assert newest_timestamps(db, "newest") == [
                ("public.people.created_at", now - timedelta(hours=1)),
                ("public.parts.updated", now - timedelta(hours=2)),
            ]
        assert len(newest_timestamps(db, "newest", limit=1)) == 1

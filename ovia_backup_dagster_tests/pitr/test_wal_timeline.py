"""What a timeline tells of a real server's WAL is what the server did: which table, when, where, by whom."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import psycopg
import pytest
from psycopg.rows import dict_row

from ovia_backup_dagster.core.pitr_errors import ServerReplacedError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.relation_names import (
    RelationNames,
    record_relation_names,
    recorded_names,
    relations_folder,
)
from ovia_backup_dagster.pitr.wal_changes import ChangeKind
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster.pitr.wal_timeline import WalTimeline, WalTransaction
from ovia_backup_dagster_tests.conftest import PASSWORD, admin, free_port
from ovia_backup_dagster_tests.pitr.received_shop import SHOP, Committed, Shop
from ovia_backup_dagster_tests.support.command_line import InProcessCli

FILL = "SELECT g, 'x' FROM generate_series(1, 300) g"


def losses(timeline: WalTimeline) -> list[WalTransaction]:
    return [each for each in timeline.transactions if each.loses_rows]


def told(timeline: WalTimeline) -> list[str]:
    """The changes that lose rows, in the order of the WAL."""
    return [change.text for each in losses(timeline) for change in each.changes]


def the_loss(timeline: WalTimeline, truth: Committed) -> WalTransaction:
    """The only loss, which is where the server says."""
    (found,) = losses(timeline)
    assert (found.xid, found.time) == (truth.xid, truth.time)
    assert truth.has(found.lsn)
    return found


def make(shop: Shop, *tables: str) -> Lsn:
    """Make tables with rows; returns the position after them."""
    for table in tables:
        shop.run(f"CREATE TABLE {table} (id int PRIMARY KEY, note text)", f"INSERT INTO {table} {FILL}")
    return shop.here()


def test_drop_table_is_told_with_name_place_and_time(shop: Shop) -> None:
    start = make(shop, "dropped")
    names = shop.names()
    truth = shop.commit("DROP TABLE dropped")

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["DROP TABLE public.dropped"]
    assert found.records > 0
    assert found.gone_from == found.lsn


def test_drop_schema_names_its_tables(shop: Shop) -> None:
    shop.run("CREATE SCHEMA sales")
    start = make(shop, "sales.a", "sales.b")
    shop.run(
        "CREATE VIEW sales.v AS SELECT * FROM sales.a",
        "CREATE MATERIALIZED VIEW sales.m AS SELECT * FROM sales.b",
        "CREATE TABLE sales.c (id bigserial)",
        "CREATE TYPE sales.e AS ENUM ('x')",
    )
    names = shop.names()
    truth = shop.commit("DROP SCHEMA sales CASCADE")

    found = the_loss(shop.timeline(start, names), truth)

    assert {change.text for change in found.changes} == {f"DROP TABLE sales.{each}" for each in "abc"}


def test_truncate_of_several_tables_names_each(shop: Shop) -> None:
    start = make(shop, "emptied", "emptied_too")
    shop.run(
        "CREATE INDEX ON emptied USING hash (note)",
        "CREATE INDEX ON emptied USING brin (id)",
        "CREATE INDEX ON emptied USING gin (to_tsvector('simple', note))",
        "CREATE TABLE counted (id serial)",
        "INSERT INTO counted DEFAULT VALUES",
    )
    names = shop.names()
    truth = shop.commit("TRUNCATE emptied, emptied_too, counted RESTART IDENTITY")

    found = the_loss(shop.timeline(start, names), truth)

    tables = ("counted", "emptied", "emptied_too")
    assert sorted(change.text for change in found.changes) == [f"TRUNCATE public.{table}" for table in tables]


def test_truncate_again_is_named_by_its_later_file(shop: Shop) -> None:
    start = make(shop, "emptied_twice")
    shop.commit("TRUNCATE emptied_twice")
    shop.run(f"INSERT INTO emptied_twice {FILL}")
    truth = shop.commit("TRUNCATE emptied_twice", "INSERT INTO emptied_twice VALUES (1, 'new')")

    both = losses(shop.timeline(start, shop.names()))

    assert [change.text for each in both for change in each.changes] == [
        "TRUNCATE public.emptied_twice",
        "TRUNCATE public.emptied_twice (1 inserted)",
    ]
    assert truth.has(both[-1].lsn)


def test_truncate_in_savepoints_is_told_once(shop: Shop) -> None:
    start = make(shop, "saved")
    names = shop.names()
    truth = shop.commit("SAVEPOINT a", "TRUNCATE saved", "SAVEPOINT b", "TRUNCATE saved")

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["TRUNCATE public.saved"]


def test_mass_delete_is_told_with_its_rows(shop: Shop) -> None:
    start = make(shop, "thinned")
    names = shop.names()
    truth = shop.commit("DELETE FROM thinned WHERE id > 100")
    shop.commit("DELETE FROM thinned WHERE id > 90")

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["DELETE public.thinned (200 rows)"]


def test_delete_of_most_of_a_small_table_is_told(shop: Shop) -> None:
    shop.run("CREATE TABLE small (id int)", "INSERT INTO small SELECT generate_series(1, 40)", "ANALYZE small")
    start, names = shop.here(), shop.names()
    shop.commit("DELETE FROM small WHERE id <= 15")
    truth = shop.commit("DELETE FROM small WHERE id <= 38")

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["DELETE public.small (23 rows)"]


def test_delete_from_partitions_counts_as_one(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE parted (id int, note text) PARTITION BY RANGE (id)",
        *(
            f"CREATE TABLE parted_{n} PARTITION OF parted FOR VALUES FROM ({n * 60}) TO ({n * 60 + 60})"
            for n in range(3)
        ),
        "INSERT INTO parted SELECT g, 'x' FROM generate_series(0, 179) g",
    )
    start, names = shop.here(), shop.names()
    truth = shop.commit("DELETE FROM parted WHERE id < 150")

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["DELETE public.parted (150 rows)"]


def test_rows_that_move_to_another_partition_are_not_deleted(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE moving (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE moving_0 PARTITION OF moving FOR VALUES FROM (0) TO (1000)",
        "CREATE TABLE moving_1 PARTITION OF moving FOR VALUES FROM (1000) TO (2000)",
        "INSERT INTO moving SELECT generate_series(0, 299)",
    )
    start, names = shop.here(), shop.names()
    shop.commit("UPDATE moving SET id = id + 1000")

    assert told(shop.timeline(start, names)) == []


def test_drop_of_a_partition_and_of_all_is_told(shop: Shop) -> None:
    shop.run(
        "CREATE TABLE years (y int) PARTITION BY LIST (y)",
        "CREATE TABLE years_1 PARTITION OF years FOR VALUES IN (1)",
        "CREATE TABLE years_2 PARTITION OF years FOR VALUES IN (2)",
    )
    start, names = shop.here(), shop.names()
    shop.run("DROP TABLE years_1", "DROP TABLE years")

    assert told(shop.timeline(start, names)) == [
        "DROP TABLE public.years_1",
        "DROP TABLE public.years",
        "DROP TABLE public.years_2",
    ]


def test_rewrites_are_not_told_as_losses(shop: Shop) -> None:
    start = make(shop, "rewritten", "rewritten_empty")
    shop.run(
        "DELETE FROM rewritten_empty WHERE id < 10",
        "CREATE MATERIALIZED VIEW shown AS SELECT * FROM rewritten",
        "CREATE MATERIALIZED VIEW shown_empty AS SELECT * FROM rewritten WHERE false",
        "CREATE TABLE truly_empty (id int PRIMARY KEY, note text)",
        "CREATE INDEX ON rewritten USING brin (id)",
        "CREATE INDEX ON rewritten USING hash (id)",
    )
    start = shop.here()
    shop.run(
        "VACUUM FULL rewritten",
        "VACUUM FULL truly_empty",
        "CLUSTER rewritten USING rewritten_pkey",
        "REINDEX TABLE rewritten",
        "REINDEX TABLE CONCURRENTLY rewritten",
        "REINDEX TABLE truly_empty",
        "ALTER TABLE rewritten ADD COLUMN r float DEFAULT random()",
        "ALTER TABLE rewritten_empty ALTER COLUMN id TYPE bigint",
        "ALTER TABLE truly_empty ALTER COLUMN id TYPE bigint",
        "REFRESH MATERIALIZED VIEW shown",
        "REFRESH MATERIALIZED VIEW shown_empty",
        "VACUUM rewritten",
        "ANALYZE rewritten",
    )

    for names in (RelationNames(), shop.names()):
        found = shop.timeline(start, names)
        assert told(found) == []
        kinds = [change.kind for each in found.transactions for change in each.changes]
        assert kinds.count(ChangeKind.REWRITE) == 8, [each.text for each in found.transactions]


def test_what_makes_new_files_is_not_told_as_a_loss(shop: Shop, tmp_path: Path) -> None:
    start = make(shop, "placed")
    folder = shop.ground.cluster.folder / "tablespace"
    folder.mkdir()
    folder.chmod(0o777)
    shutil.chown(folder, shop.ground.cluster.data.owner())
    shop.run(
        f"CREATE TABLESPACE apart LOCATION '{folder}'",
        "CREATE TABLE placed_empty (id int)",
        "ALTER TABLE placed SET TABLESPACE apart",
        "ALTER TABLE placed_empty SET TABLESPACE apart",
        "CREATE SEQUENCE numbers",
        "ALTER SEQUENCE numbers RESTART",
        "DROP SEQUENCE numbers",
        "CREATE INDEX later ON placed (note)",
        "DROP INDEX later",
        "CREATE VIEW seen AS SELECT 1 AS one",
        "DROP VIEW seen",
        "CREATE MATERIALIZED VIEW derived AS SELECT 1 AS one",
    )
    shop.commit(
        "CREATE TABLE made_now (id int)", "TRUNCATE made_now", "INSERT INTO made_now VALUES (1)", "TRUNCATE made_now"
    )
    shop.commit("CREATE TABLE made_and_dropped (id int)", "DROP TABLE made_and_dropped")
    names = shop.names()
    shop.run("DROP MATERIALIZED VIEW derived")

    assert told(shop.timeline(start, names)) == []

    start = shop.here()
    shop.run("TRUNCATE placed")
    assert told(shop.timeline(start, names)) == ["TRUNCATE public.placed"]
    shop.run("DROP TABLE placed, placed_empty", "DROP TABLESPACE apart")


def test_temporary_tables_are_not_told(shop: Shop) -> None:
    start = shop.here()
    shop.run(
        "CREATE TEMPORARY TABLE own (id int PRIMARY KEY, note text)",
        f"INSERT INTO own {FILL}",
        "DELETE FROM own WHERE id > 10",
        "TRUNCATE own",
        "ALTER TABLE own ADD COLUMN more int",
        "DROP TABLE own",
    )
    shop.commit("CREATE TEMPORARY TABLE passing (id int) ON COMMIT DROP", "INSERT INTO passing VALUES (1)")

    assert shop.timeline(start).transactions == ()


def test_an_aborted_drop_is_not_told(shop: Shop) -> None:
    start = make(shop, "kept")
    names = shop.names()
    shop.run("BEGIN", "DROP TABLE kept", "ROLLBACK")
    shop.run("BEGIN", "DELETE FROM kept", "ROLLBACK")
    shop.commit("INSERT INTO kept VALUES (0, 'y')", "SAVEPOINT a", "TRUNCATE kept", "ROLLBACK TO a")
    shop.run("BEGIN", "DELETE FROM kept", "PREPARE TRANSACTION 'undone'", "ROLLBACK PREPARED 'undone'")

    assert shop.timeline(start, names).transactions == ()


def test_a_prepared_drop_is_told_when_it_commits(shop: Shop) -> None:
    start = make(shop, "prepared", "prepared_rows")
    names = shop.names()
    shop.run("BEGIN", "SAVEPOINT a", "DELETE FROM prepared_rows", "DROP TABLE prepared")
    xid = int(str(shop.value("SELECT pg_current_xact_id()")))
    shop.run("PREPARE TRANSACTION 'two: phases; rels: base/1/2'")
    assert told(shop.timeline(start, names)) == []

    before = shop.here()
    shop.run("COMMIT PREPARED 'two: phases; rels: base/1/2'")
    truth = shop.known(xid, before)

    found = the_loss(shop.timeline(start, names), truth)
    assert [change.text for change in found.changes] == [
        "DROP TABLE public.prepared",
        "DELETE public.prepared_rows (300 rows)",
    ]


def test_deletes_in_savepoints_belong_to_the_transaction(shop: Shop) -> None:
    start = make(shop, "nested")
    names = shop.names()
    parts = [f"DELETE FROM nested WHERE id BETWEEN {n * 30 + 1} AND {n * 30 + 30}" for n in range(5)]
    lost = ["SAVEPOINT lost", "DELETE FROM nested WHERE id > 200", "ROLLBACK TO lost"]
    truth = shop.commit(*(word for part in parts for word in ("SAVEPOINT s", part)), *lost)

    found = the_loss(shop.timeline(start, names), truth)

    assert [change.text for change in found.changes] == ["DELETE public.nested (150 rows)"]


def test_another_databases_drop_is_not_told(shop: Shop) -> None:
    start = shop.here()
    with admin(shop.ground.cluster, "postgres") as session:
        session.execute("CREATE TABLE elsewhere AS SELECT generate_series(1, 300) AS id")
        session.execute("DELETE FROM elsewhere")
        session.execute("DROP TABLE elsewhere")
    shop.receive()

    assert shop.timeline(start).transactions == ()
    everywhere = told(shop.timeline(start, database=None))
    assert [text.split()[0] for text in everywhere] == ["DELETE", "DROP"]


def test_a_dropped_database_is_told_from_where_its_files_go(shop: Shop) -> None:
    with admin(shop.ground.cluster) as session:
        session.execute("CREATE DATABASE doomed STRATEGY file_copy")
        row = session.execute("SELECT oid::int FROM pg_database WHERE datname = 'doomed'").fetchone()
        assert row is not None
        start = shop.here()
        session.execute("DROP DATABASE doomed")
    names = RelationNames(databases={"doomed": int(str(row[0]))})

    found = losses(shop.timeline(start, names, database=row[0]))

    assert [each.text for each in found] == ["DROP DATABASE doomed"]
    assert start < found[0].gone_from < found[0].lsn
    assert told(shop.timeline(start)) == []


def test_a_new_database_is_not_told_as_truncated(shop: Shop) -> None:
    with admin(shop.ground.cluster) as session:
        session.execute("CREATE DATABASE empty_tables")
        with admin(shop.ground.cluster, "empty_tables") as inside:
            inside.execute("CREATE TABLE without_rows (id int)")
        start = shop.here()
        session.execute("CREATE DATABASE copy_of_them TEMPLATE empty_tables STRATEGY wal_log")
    shop.receive()

    assert [each.text for each in shop.timeline(start, database=None).transactions] == ["DDL (database)"]


def test_a_dropped_table_is_named_by_a_record(shop: Shop) -> None:
    start = make(shop, "recorded")
    to = shop.ground.cluster.connection(SHOP)
    with psycopg.connect(
        host=to.host, port=to.port, dbname=SHOP, user=to.user, autocommit=True, row_factory=dict_row
    ) as session:
        now = datetime(2026, 11, 30, 10, 0, 0, tzinfo=UTC)
        path = record_relation_names(session, shop.archive, now)
        again = record_relation_names(session, shop.archive, now + timedelta(seconds=1))
        other = ClusterArchive(shop.archive.root, "1")
        with pytest.raises(ServerReplacedError, match="do not belong to the archive of 1"):
            record_relation_names(session, other, now)
    assert path == relations_folder(shop.archive) / f"2026-11-30_100000_{shop.database}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert again is None
    truth = shop.commit("DROP TABLE recorded")

    names = RelationNames.of(recorded_names(shop.archive))

    assert names.databases[SHOP] == shop.database
    assert the_loss(shop.timeline(start, names), truth).text == "DROP TABLE public.recorded"


def test_a_table_is_named_by_the_wal_itself(shop: Shop) -> None:
    make(shop, "never_recorded", "never_recorded_too")
    shop.run("CREATE MATERIALIZED VIEW never_recorded_view AS SELECT 1 AS one")
    shop.run("CHECKPOINT")
    start = shop.here()
    shop.run("DROP MATERIALIZED VIEW never_recorded_view", "DROP TABLE never_recorded", "TRUNCATE never_recorded_too")

    assert told(shop.timeline(start)) == ["DROP TABLE public.never_recorded", "TRUNCATE public.never_recorded_too"]


def test_a_table_without_a_name_is_told_by_number(shop: Shop) -> None:
    shop.run("CHECKPOINT", "CREATE TABLE first_on_its_page (id int)")
    start = make(shop, "nameless")
    oid = shop.value("SELECT 'nameless'::regclass::oid::int")
    truth = shop.commit("DROP TABLE nameless")

    found = the_loss(shop.timeline(start), truth)

    assert [(change.text, change.named) for change in found.changes] == [(f"DROP TABLE relation {oid}", False)]


def test_a_drop_beside_a_rewrite_is_told_once(shop: Shop) -> None:
    start = make(shop, "rewritten_beside", "dropped_beside")
    shop.run("BEGIN", "ALTER TABLE rewritten_beside ALTER COLUMN id TYPE bigint")
    with admin(shop.ground.cluster) as other:
        # The next change puts the page into the WAL, with the row of the copy that the rewrite made and dropped.
        other.execute("CHECKPOINT")
    xid = int(str(shop.value("SELECT pg_current_xact_id()")))
    shop.run("DROP TABLE dropped_beside")
    before = shop.here()
    shop.run("COMMIT")

    found = the_loss(shop.timeline(start), shop.known(xid, before))

    lost = [change.text for change in found.changes if change.kind.loses_rows]
    assert lost == ["DROP TABLE public.dropped_beside"]


def test_definitions_are_told_with_what_they_change(shop: Shop) -> None:
    start = make(shop, "defined")
    truth = shop.commit("ALTER TABLE defined ADD COLUMN more int")
    shop.commit("CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'")

    altered, created = shop.timeline(start, shop.names()).transactions

    assert truth.has(altered.lsn)
    assert altered.text == "DDL public.defined (column, relation)"
    assert created.text == "DDL (function)"


def test_every_commit_is_counted_in_its_minute(shop: Shop) -> None:
    start = make(shop, "busy")
    begun = shop.value("SELECT now()")
    for n in range(20):
        shop.commit(f"INSERT INTO busy VALUES ({1000 + n}, 'x')")
    for _ in range(3):
        shop.run("SELECT pg_logical_emit_message(true, 'ovia-backup', 'nonce')")
    with admin(shop.ground.cluster, "postgres") as session:
        session.execute("CREATE TABLE IF NOT EXISTS far (id int)")
    shop.run("SELECT pg_create_restore_point('counted: all')")

    found = shop.timeline(start)

    # One other commit is that of the test, which waits for the receiver.
    assert sum(minute.commits for minute in found.minutes) == 20
    assert sum(minute.beacons for minute in found.minutes) == 3
    assert sum(minute.others for minute in found.minutes) == 2
    assert isinstance(begun, datetime)
    assert found.minutes[0].start == begun.astimezone(UTC).replace(second=0, microsecond=0)
    assert [point.name for point in found.restore_points] == ["counted: all"]


def cli_of(shop: Shop, **settings: str) -> InProcessCli:
    own = {"POSTGRES_DB": SHOP, "POSTGRES_PASSWORD": PASSWORD, "BACKUP_TIMEZONE": "Asia/Tokyo", **settings}
    return InProcessCli(shop.ground.settings(shop.archive.root, **own))


def test_the_command_shows_what_happened(shop: Shop, tmp_path: Path) -> None:
    make(shop, '"told <by> [the] command"')
    lost = shop.commit('DELETE FROM "told <by> [the] command" WHERE id > 100')
    shop.run("SELECT pg_create_restore_point('after the loss')")
    shop.receive()
    svg = tmp_path / "timeline.svg"

    result = cli_of(shop)("wal", "timeline", "--svg", str(svg))
    code, data = cli_of(shop).json("wal", "timeline", "--around", f"{lost.time.isoformat()}", "--minutes", "1")

    assert result.returncode == code == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if "[the] command" in line and "DELETE" in line)
    clock = f"{lost.time:%H:%M:%S}.{lost.time.microsecond // 1000:03d}"
    assert line.split()[:4:3] == [clock, str(lost.xid)]
    assert "DELETE public.told <by> [the] command (200 rows)" in line
    assert "restore point after the loss" in result.stdout
    assert "--to before-last-drop" in result.stderr
    (found,) = [each for each in data["transactions"] if each["xid"] == lost.xid]
    assert found["time"] == lost.time.isoformat()
    assert lost.has(Lsn.parse(found["lsn"]))
    assert found["changes"][0]["deleted"] == 200
    assert "after the loss" in [point["name"] for point in data["restore_points"]]
    assert sum(minute["commits"] for minute in data["minutes"]) > 0

    titles = [element.text for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}title")]
    assert any(title and title.startswith(f"{clock} ") and "told <by> [the] command" in title for title in titles)
    assert any(title and title.endswith(" commits") for title in titles)


def test_the_command_needs_no_server(shop: Shop) -> None:
    make(shop, "remembered")
    to = shop.ground.cluster.connection(SHOP)
    with psycopg.connect(
        host=to.host, port=to.port, dbname=SHOP, user=to.user, autocommit=True, row_factory=dict_row
    ) as session:
        record_relation_names(session, shop.archive, datetime.now(UTC))
    shop.run("DROP TABLE remembered")
    shop.receive()

    result = cli_of(shop, POSTGRES_PORT=str(free_port()))("wal", "timeline", "--minutes", "5")

    assert result.returncode == 0, result.stderr
    assert "DROP TABLE public.remembered" in result.stdout
    assert "names of tables are those that were recorded" in result.stderr


def test_the_command_refuses_what_is_not_a_time(shop: Shop, tmp_path: Path) -> None:
    assert cli_of(shop)("wal", "timeline", "--around", "xid:1234").returncode == 2
    assert "in the future" in cli_of(shop)("wal", "timeline", "--around", "2999-01-01 10:00").stderr
    (tmp_path / "empty").mkdir()
    nothing = cli_of(shop, BACKUP_DIR=str(tmp_path / "empty"))("wal", "timeline")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no WAL was ever received" in nothing.stderr


def test_a_transaction_that_began_before_is_marked(shop: Shop) -> None:
    make(shop, "long_ago")
    names = shop.names()
    with admin(shop.ground.cluster, SHOP) as other:
        other.execute("BEGIN")
        other.execute("DELETE FROM long_ago WHERE id <= 20")
        start = shop.here()
        shop.run("CHECKPOINT", "DELETE FROM long_ago WHERE id > 150")
        other.execute("DELETE FROM long_ago WHERE id <= 150")
        other.execute("COMMIT")

    found = [(each.text, each.complete) for each in losses(shop.timeline(start, names))]

    # Of the second, only what followed is seen.
    text = "DELETE public.long_ago ({} rows)"
    assert found == [(text.format(150), True), (text.format(130), False)]

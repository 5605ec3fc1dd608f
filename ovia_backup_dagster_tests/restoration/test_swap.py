"""Two databases swap names completely or not at all, whichever sessions use them or are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ovia_backup_dagster.core.errors import DatabaseInUseError, DatabaseMissingError
from ovia_backup_dagster.core.naming import before_name
from ovia_backup_dagster.postgres.local_cluster import account_id
from ovia_backup_dagster.postgres.programs import Connection, capture
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import target
from ovia_backup_dagster.restoration import swap
from ovia_backup_dagster.restoration.replaced_databases import drop_replaced
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, free_port, running_cluster
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.support.drilling import as_role, database, one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import SECONDS, hammering

HOSTILE = ('quo"te; DROP', "apo'strophe", "Ünï cödé", " ", "new\nline", "per%cent %s", r"back\slash {0}", "x" * 63)


@pytest.fixture(scope="module")
def other(bin_dir: Path) -> Iterator[PortCluster]:
    """A server with prepared transactions and logical slots."""
    with running_cluster(bin_dir, wal_level="logical", max_prepared_transactions="5") as cluster:
        yield cluster


@contextmanager
def pair(cluster: PortCluster, live: str = "shop", incoming: str = "shop_new") -> Iterator[Connection]:
    """A live database and its replacement; the table t says which one a database is."""
    with database(cluster, live) as to, database(cluster, incoming) as new:
        execute(to, "CREATE TABLE t AS SELECT 'old' AS which")
        execute(new, "CREATE TABLE t AS SELECT 'new' AS which")
        try:
            yield to
        finally:
            with admin(cluster) as session:
                session.execute('DROP DATABASE IF EXISTS "kept" WITH (FORCE)')


def which(server: Connection) -> object:
    return one(server, "SELECT which FROM t")


def oids(server: Connection, *names: str) -> tuple[int, int]:
    first, second = (swap.database_state(server, name).oid for name in names)
    return first, second


def test_a_swap_and_its_undo(server: PortCluster) -> None:
    with pair(server) as live:
        before = oids(live, "shop", "shop_new")
        assert swap.swap_outcome(live, "shop", before) == "before"
        for _ in range(3):
            swap.swap_databases(live, "shop", "shop_new", "kept")
            assert which(live) == "new"
            assert swap.swap_outcome(live, "shop", before) == "after"
            swap.swap_databases(live, "shop", "kept", "shop_new")
            assert which(live) == "old"
            assert swap.swap_outcome(live, "shop", before) == "before"
        assert swap.swap_outcome(live, "shop", (1, 2)) == "torn"


def test_a_swap_outlasts_a_crash_of_the_server(bin_dir: Path) -> None:
    """With synchronous_commit off, the swap survives, and so do the rows that were committed before without a flush."""
    # With these settings no other process flushes the WAL in the meantime.
    with (
        running_cluster(bin_dir, synchronous_commit="off", wal_writer_delay="10s", checkpoint_timeout="1h") as cluster,
        pair(cluster) as live,
    ):
        before = oids(live, "shop", "shop_new")
        with connect(live.to("shop_new")) as session:
            session.execute("INSERT INTO public.t VALUES ('unflushed')")
        swap.swap_databases(live, "shop", "shop_new", "kept")
        cluster.stop("immediate")
        cluster.start()
        assert swap.swap_outcome(live, "shop", before) == "after"
        assert one(live, "SELECT string_agg(which, ' ' ORDER BY which) FROM t") == "new unflushed"


def test_reconnecting_clients_do_not_stop_a_swap(server: PortCluster) -> None:
    with pair(server) as live, hammering(live) as gaps, admin(server) as bystander:
        incoming, kept = "shop_new", "kept"
        for n in range(1, 5):
            time.sleep(0.1)
            done = swap.swap_databases(live, "shop", incoming, kept)
            assert which(live) == ("new" if n % 2 else "old")
            assert done.cut >= 1
            assert done.seconds < 5
            incoming, kept = kept, incoming
        # A session in another database is left alone.
        assert bystander.execute("SELECT 1").fetchone() == (1,)
        assert max(end - begin for begin, end in gaps) < 5


def test_a_session_that_is_busy_or_in_a_transaction_is_ended(server: PortCluster) -> None:
    with pair(server) as live, admin(server, "shop") as busy, admin(server, "shop_new") as looking:
        busy.execute("BEGIN; DELETE FROM t")
        assert swap.database_state(live, "shop").sessions[0].state == "idle in transaction"
        assert swap.swap_databases(live, "shop", "shop_new", "kept").cut == 2
        for session in (busy, looking):
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        assert one(live.to("kept"), "SELECT count(*) FROM t") == 1


def test_no_session_is_ended_before_the_copy_is_free(other: PortCluster) -> None:
    with pair(other) as live, admin(other, "shop") as client:
        execute(live.to("shop_new"), "BEGIN; INSERT INTO t VALUES ('x'); PREPARE TRANSACTION 'in the way'")
        try:
            with pytest.raises(DatabaseInUseError, match="prepared transaction"):
                swap.swap_databases(live, "shop", "shop_new", "kept", deadline_seconds=0)
            assert client.execute("SELECT which FROM t").fetchone() == ("old",)
        finally:
            execute(live.to("shop_new"), "ROLLBACK PREPARED 'in the way'")


@pytest.mark.parametrize("name", HOSTILE)
def test_databases_with_hostile_names_are_swapped(server: PortCluster, name: str) -> None:
    new = name[:50] + "/n"
    with pair(server, name, new) as live:
        swap.swap_databases(live, name, new, "kept")
        assert which(live) == "new"
        assert which(live.to("kept")) == "old"
        swap.swap_databases(live, name, "kept", new)
        assert which(live) == "old"


def test_the_postgres_database_can_be_swapped(other: PortCluster) -> None:
    with database(other, "incoming"):
        postgres = other.connection()
        try:
            swap.swap_databases(postgres, "postgres", "incoming", "kept")
            assert swap.database_state(postgres, "kept").exists
        finally:
            swap.swap_databases(postgres, "postgres", "kept", "incoming")


def test_names_that_are_missing_or_taken_change_nothing(server: PortCluster) -> None:
    with pair(server) as live:
        with pytest.raises(DatabaseMissingError):
            swap.swap_databases(live, "shop", "nowhere", "kept")
        with pytest.raises(Exception, match="already exists"):
            swap.swap_databases(live, "shop", "shop_new", "postgres")
        assert which(live) == "old"


@pytest.mark.exhaustive
def test_a_prepared_transaction_is_an_obstacle(other: PortCluster) -> None:
    with pair(other) as live:
        execute(live, "BEGIN; INSERT INTO t VALUES ('x'); PREPARE TRANSACTION 'it''s open'")
        (found,) = swap.obstacles(live, "shop")
        assert "ROLLBACK PREPARED 'it''s open'" in str(found)
        with pytest.raises(DatabaseInUseError, match="prepared transaction"):
            swap.swap_databases(live, "shop", "shop_new", "kept", deadline_seconds=0)
        assert which(live) == "old"
        execute(live, "ROLLBACK PREPARED 'it''s open'")
        assert not swap.obstacles(live, "shop")


def test_a_logical_slot_is_an_obstacle(other: PortCluster) -> None:
    with pair(other) as live:
        execute(live, "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
        (found,) = swap.obstacles(live, "shop")
        execute(live, found.fix.partition(";")[0])
        assert not swap.obstacles(live, "shop")


def test_templates_closed_and_invalid_ones_are_obstacles(server: PortCluster) -> None:
    with pair(server) as live:
        assert [found.what for found in swap.obstacles(live, "template1")] == ["database template1 is a template"]
        execute(live.to("postgres"), "ALTER DATABASE shop ALLOW_CONNECTIONS false")
        (found,) = swap.obstacles(live, "shop")
        execute(live.to("postgres"), found.fix.partition(": ")[2])
        execute(live.to("postgres"), "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'shop'")
        assert "cannot be used any more" in swap.obstacles(live, "shop")[0].what
        assert not swap.obstacles(live, "shop", mode_needs_swap=False)
        assert not swap.obstacles(live, "nowhere")
        assert not swap.database_state(live, "nowhere").exists


@pytest.mark.exhaustive
def test_the_remedies_give_a_role_the_rights_to_swap(server: PortCluster) -> None:
    boss = server.connection()
    execute(boss, "CREATE ROLE shopkeeper LOGIN", "CREATE ROLE mender LOGIN", "CREATE ROLE clerk LOGIN")
    try:
        with pair(server) as live:
            mender = as_role(live, "mender")
            execute(boss, "ALTER DATABASE shop OWNER TO shopkeeper", "ALTER DATABASE shop_new OWNER TO shopkeeper")
            for fixed in ("CREATEDB", 'GRANT "shopkeeper"'):
                found = swap.obstacles(mender, "shop")
                assert fixed in found[0].fix
                execute(boss, found[0].fix.partition("superuser: ")[2].partition(";")[0])
            assert not swap.obstacles(mender, "shop")
            clerk = psycopg.connect(host=live.host, port=live.port, dbname="shop", user="clerk")
            (found_one,) = swap.obstacles(mender, "shop")
            assert "clerk" in found_one.what
            with pytest.raises(DatabaseInUseError, match="clerk"):
                swap.swap_databases(mender, "shop", "shop_new", "kept", deadline_seconds=0)
            execute(boss, "GRANT pg_signal_backend TO mender")
            assert not swap.obstacles(mender, "shop")
            with clerk, as_owner(live) as keeper:
                assert swap.swap_databases(mender, "shop", "shop_new", "kept").cut == 2
                with pytest.raises(psycopg.OperationalError):
                    keeper.execute("SELECT 1")
            with admin(server, "shop"):
                assert "a superuser's" in swap.obstacles(mender, "shop")[0].why
    finally:
        execute(boss, "DROP ROLE mender, clerk, shopkeeper")


@contextmanager
def autovacuum_at_work(bin_dir: Path) -> Iterator[Connection]:
    """Autovacuum runs in the live database of a pair for minutes; yield a role that owns both databases.

    The role may not see what kind of process autovacuum is.
    """
    with (
        running_cluster(
            bin_dir,
            autovacuum_naptime="1s",
            autovacuum_vacuum_cost_delay="100ms",
            autovacuum_vacuum_cost_limit="1",
        ) as cluster,
        pair(cluster) as live,
    ):
        boss = live.to("postgres")
        execute(boss, "CREATE ROLE keeper LOGIN CREATEDB")
        for name in ("shop", "shop_new"):
            execute(boss, f"ALTER DATABASE {name} OWNER TO keeper")
        execute(live, "CREATE TABLE large AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g")
        execute(live, "DELETE FROM large WHERE g % 2 = 0")
        until(lambda: one(boss, _AT_WORK) == 1, 30)
        yield as_role(live, "keeper")


_AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker' AND datname = 'shop'"


def test_autovacuum_blocks_no_swap(bin_dir: Path) -> None:
    with autovacuum_at_work(bin_dir) as keeper:
        assert swap.database_state(keeper, "shop").sessions == ()
        assert swap.obstacles(keeper, "shop") == []
        swap.swap_databases(keeper, "shop", "shop_new", "kept")
        assert which(as_role(keeper.to("kept"), "postgres")) == "old"


@pytest.mark.exhaustive
@pytest.mark.parametrize("by", ["restore", "forget"])
def test_autovacuum_blocks_no_drop(bin_dir: Path, by: str) -> None:
    with autovacuum_at_work(bin_dir) as keeper:
        name = "shop"
        if by == "restore":
            target.live_copy(keeper, name, name).drop(swap.database_state(keeper, name).oid)
        else:
            name = before_name("shop", datetime(2026, 1, 1, tzinfo=UTC))
            execute(keeper.to("postgres"), f"ALTER DATABASE shop RENAME TO {name}")
            # Autovacuum was ended for the rename and soon returns. The role sees only that the process has no role.
            nobodys = f"SELECT count(*) FROM pg_stat_activity WHERE usesysid IS NULL AND datname = '{name}'"
            until(lambda: one(keeper.to("postgres"), nobodys) == 1, 30)
            drop_replaced(keeper, "shop", name)
        assert not swap.database_state(keeper, name).exists


def test_a_superusers_session_blocks_a_lesser_role(other: PortCluster) -> None:
    boss = other.connection()
    execute(boss, "CREATE ROLE keeper LOGIN CREATEDB")
    try:
        with pair(other) as live:
            execute(boss, "ALTER DATABASE shop OWNER TO keeper")
            to = f"host={live.host} port={live.port} user={live.user} dbname=shop replication=database"
            with psycopg.connect(to, autocommit=True):
                (found,) = swap.obstacles(as_role(live, "keeper"), "shop")
                assert "may not end sessions" in found.what
                assert [each.application for each in swap.database_state(live, "shop").sessions] == ["walsender"]
            until(lambda: swap.obstacles(as_role(live, "keeper"), "shop") == [], 10)
    finally:
        execute(boss, "DROP ROLE keeper")


def test_our_own_closing_session_blocks_no_rename(other: PortCluster) -> None:
    boss = other.connection()
    execute(boss, "CREATE ROLE keeper LOGIN CREATEDB")
    try:
        with pair(other) as live:
            execute(boss, "ALTER DATABASE shop OWNER TO keeper")
            until(lambda: swap.obstacles(as_role(live, "keeper"), "shop") == [], 10)
            with connect(live) as ours:
                # The client closes the session; the server has not ended it yet.
                closing = threading.Timer(0.3, ours.close)
                closing.start()
                assert swap.obstacles(as_role(live, "keeper"), "shop") == []
                closing.join()
            with connect(live):
                (found,) = swap.obstacles(as_role(live, "keeper"), "shop")
                assert "may not end sessions in database shop: postgres (ovia-backup" in found.what
            until(lambda: not swap.database_state(live, "shop").sessions, 10)
    finally:
        execute(boss, "DROP ROLE keeper")


def as_owner(live: Connection) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(host=live.host, port=live.port, dbname=live.database, user="shopkeeper")


def test_a_standby_is_an_obstacle(bin_dir: Path, other: PortCluster) -> None:
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
    standby = PortCluster(bin_dir, folder, port=port)
    try:
        source = other.connection()
        with open(other.data / "pg_hba.conf", "a", encoding="utf-8") as file:
            file.write("local replication all trust\n")
        execute(source, "SELECT pg_reload_conf()")
        command = (str(bin_dir / "pg_basebackup"), "-D", str(standby.data), "-R", "-c", "fast", "-X", "stream")
        code, _, said = capture(command, variables=source.environment())
        assert code == 0, said
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account_id(), -1)
        with open(standby.data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"port = {port}\nunix_socket_directories = '{folder}'\n")
        standby.start()
        (found,) = swap.obstacles(standby.connection(), "postgres")
        assert "is a standby" in found.what
    finally:
        standby.remove()


#: A program that sends itself SIGKILL before, amid or after the n-th statement that it sends.
_KILLED = """
import os, signal, sys, psycopg
from ovia_backup_dagster.core.naming import before_name
from ovia_backup_dagster.restoration import swap
from ovia_backup_dagster.postgres.programs import Connection
host, port, when, nth = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
execute, sent, renames = psycopg.Connection.execute, [], []
def killing(self, query, *args, **named):
    if sent[-2:] == [query, query]:  # ends sessions as often as there is time for: the third is as the second
        return execute(self, query, *args, **named)
    sent.append(query)
    if hasattr(query, "as_bytes"): renames.append(query)
    mine = len(sent) == nth
    if mine and when == "before": os.kill(os.getpid(), signal.SIGKILL)
    if when == "amid" and len(renames) == nth:  # sent, and never heard of again
        self.pgconn.send_query(query.as_bytes(self))
        os.kill(os.getpid(), signal.SIGKILL)
    result = execute(self, query, *args, **named)
    if mine and when == "after": os.kill(os.getpid(), signal.SIGKILL)
    return result
psycopg.Connection.execute = killing
swap.swap_databases(Connection(host, port, "shop", "postgres"), "shop", "shop_new", "kept")
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("busy", thinned([False, True]))
def test_a_killed_swap_is_complete_or_undone(server: PortCluster, busy: bool) -> None:
    with pair(server) as live:
        before = oids(live, "shop", "shop_new")
        seen = set()
        for nth in range(1, 30):
            # "After" a statement equals "before" the next one. With clients a round is slow: only "before" is tried.
            moments = ("before",) if busy else ("before", "after")
            for when in ("amid", *moments) if nth <= 2 else moments:
                command = (sys.executable, "-c", _KILLED, live.host, str(live.port), when, str(nth))
                if busy:
                    with hammering(live, 2):
                        code = subprocess.run(command, check=False, timeout=SECONDS).returncode
                else:
                    code = subprocess.run(command, check=False, timeout=SECONDS).returncode
                found = swap.swap_outcome(live, "shop", before)
                seen.add(found)
                # The live database is intact and accepts sessions at once.
                assert which(live) == {"before": "old", "after": "new"}[found]
                if found == "after":
                    assert which(live.to("kept")) == "old"
                    swap.swap_databases(live, "shop", "kept", "shop_new")
            if code == 0:
                break
        assert code == 0
        assert seen == {"before", "after"}


def test_a_query_waits_for_a_swap_in_progress(server: PortCluster) -> None:
    with pair(server) as live, admin(server, "shop"):
        before = oids(live, "shop", "shop_new")
        with admin(server) as left_over:
            left_over.execute("SELECT pg_advisory_lock(hashtextextended('ovia-backup swap', 0))")
            renames = sql.SQL("ALTER DATABASE shop RENAME TO kept; ALTER DATABASE shop_new RENAME TO shop")
            left_over.pgconn.send_query(renames.as_bytes(left_over))
            end = threading.Timer(0.5, _end_all, [live])
            end.start()
            answers: list[str] = []
            asking = threading.Thread(target=lambda: answers.append(swap.swap_outcome(live, "shop", before)))
            asking.start()
            while left_over.pgconn.is_busy():
                left_over.pgconn.consume_input()
            while left_over.pgconn.get_result():
                pass
            assert not answers
        asking.join(SECONDS)
        assert answers == ["after"]


def _end_all(live: Connection) -> None:
    execute(
        live.to("postgres"), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('shop', 'kept')"
    )

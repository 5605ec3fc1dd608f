"""Other faults during a restore: of the server, of the volume, while it is put back, and by other sessions.

After each fault, the live database is the intact old one or the proven new one, nothing that other sessions created is
gone, and the command that the error names finishes the restore.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from psycopg import sql

from ovia_backup_dagster.core.locking import volume_lock
from ovia_backup_dagster.postgres.local_cluster import account_id
from ovia_backup_dagster.postgres.programs import capture
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.restoration import swap
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.restore_order import Step
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.steps import forward, services
from ovia_backup_dagster.retention.promote_and_prune import prune
from ovia_backup_dagster.swarm import docker_api
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port, running_cluster
from ovia_backup_dagster_tests.faults.conftest import needs_root, place_for, rounds
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, free, tmpfs
from ovia_backup_dagster_tests.faults.harness import Ended, kill, until
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import (
    BACK,
    REPLICAS,
    SCHEMA,
    SINCE,
    SWAP,
    Site,
    Words,
    admin_of,
    admin_of_live,
    each_step,
    ended_as,
    execute_prepared,
    failed,
    hammering,
    kill_here,
    killed_at,
    site_on,
    sql_in_server,
    whole,
    with_services,
    written,
)


@pytest.fixture(scope="module")
def other(bin_dir: Path) -> Iterator[PortCluster]:
    """A server for these tests alone, which they kill and stop."""
    with running_cluster(
        bin_dir, max_prepared_transactions="5", wal_level="logical", synchronous_commit="off"
    ) as cluster:
        yield cluster


@contextmanager
def first(owner: object, method: str, action: Callable[[], object]) -> Iterator[None]:
    """In the block, a forked process runs the action just before it first calls the method."""
    original, counted = getattr(owner, method), count()

    def called(*arguments: object, **named: object) -> object:
        if next(counted) == 0:
            action()
        return original(*arguments, **named)

    with mock.patch.object(owner, method, called):
        yield


# ----------------------------------------------------------------------------------------- killed while putting back


#: The journal entries of putting back. If the new database was live, one more says so and names the database.
WAY_BACK: Words = ((JournalMark.PUTTING_BACK, None), (JournalMark.PUT_BACK, None))
WAY_BACK_OF_SWAPPED: Words = (WAY_BACK[0], (JournalMark.PUTTING_BACK, Step.SWAP), WAY_BACK[1])


@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize("before", thinned([True, False]), ids=["before", "after"])
@pytest.mark.parametrize(
    ("began", "again"),
    thinned(
        [
            pytest.param(step, again, marks=[] if again == 1 else [pytest.mark.exhaustive])
            for step, words in ((Step.STOP, WAY_BACK), (Step.SWAP, WAY_BACK), (Step.START, WAY_BACK_OF_SWAPPED))
            for again in range(len(words))
        ]
    ),
)
def test_a_killed_abort_can_be_finished(
    site: Site, tmp_path: Path, began: Step, again: int, before: bool, then: str
) -> None:
    """Once putting back has begun, both --resume and --abort finish it: the restore cannot go forward any more."""
    word = SWAP.index((JournalMark.BEGUN, began))
    way = WAY_BACK_OF_SWAPPED if began is Step.START else WAY_BACK
    with with_services(site, tmp_path) as (swarm, docker):
        with killed_at(word, before=False):
            assert swarm.restore().killed
        with killed_at(again, before=before):
            assert swarm.place.run("restore", "--abort").killed
        assert written(swarm) == SWAP[: word + 1] + way[: again + (not before)]
        whole(swarm)
        wanted = "old"
        if RestoreFolder(site.place.catalog).unfinished():
            nothing_began = again == 0 and before
            line = swarm.restore().refused()
            assert "--abort" in line
            assert ("--resume" in line) == nothing_began
            last = swarm.place.run("restore", then)
            assert last.code == 0, last.output
            wanted = "new" if nothing_began and then == "--resume" else "old"
        ended_as(swarm, wanted)
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert site.records[0].outcome == ("put back" if wanted == "old" else "done")
    assert len(site.databases) == 1 + (wanted == "new" or began is Step.START)


@pytest.mark.exhaustive
@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize(("owner", "method"), [(swap, "_rename"), (services, "_scale")], ids=["swap", "scale"])
def test_an_abort_killed_between_entries_can_be_finished(
    site: Site, tmp_path: Path, owner: object, method: str, then: str
) -> None:
    """Killed while it swaps back, and when the old database is live again but no service runs."""
    with with_services(site, tmp_path) as (swarm, docker):
        with killed_at(SWAP.index((JournalMark.BEGUN, Step.START)), before=False):
            assert swarm.restore().killed
        with first(owner, method, kill_here):
            assert swarm.place.run("restore", "--abort").killed
        assert docker.replicas == {**dict.fromkeys(REPLICAS, 0), "migrate": 1}
        assert whole(swarm) == ("new" if owner is swap else "old")
        last = swarm.place.run("restore", then)
        assert last.code == 0, last.output
        ended_as(swarm, "old")
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert len(site.databases) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize("word", thinned([2, 0, 1, 3]))
def test_after_a_killed_auto_undo_the_old_database_is_live(site: Site, tmp_path: Path, word: int, then: str) -> None:
    """The health check fails, also for a resume."""
    words: Words = ((JournalMark.FAILED, Step.HEALTH), *WAY_BACK_OF_SWAPPED)
    began = SWAP.index((JournalMark.BEGUN, Step.HEALTH)) + 1
    with with_services(site, tmp_path) as (swarm, docker), mock.patch.object(services, "_HEALTH_SECONDS", 0.1):
        red = swarm.with_settings(HEALTH_URL="http://127.0.0.1:1/health")
        with killed_at(began + word, before=False):
            assert red.restore("--auto-undo").killed
        assert written(red) == SWAP[:began] + words[: word + 1]
        if word + 1 < len(words):
            ended = red.place.run("restore", then)
            # A resume wanted the new database: it exits with 1 and says why that is not live.
            assert ended.code == (1 if then == "--resume" else 0), ended.output
            assert "was not healthy" in ended.output
            assert "or go back:" not in ended.output, ended.output  # an undo would swap it in again
        ended_as(red, "old")
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert site.records[0].outcome == "put back"
    assert len(site.databases) == 2


# ----------------------------------------------------------------------------------------- ended after the swap


@pytest.mark.parametrize(
    ("step", "number"),
    thinned([(Step.MIGRATE, signal.SIGINT), (Step.START, signal.SIGTERM), (Step.HEALTH, signal.SIGINT)]),
)
def test_ctrl_c_after_the_swap_puts_everything_back(
    site: Site, tmp_path: Path, step: Step, number: signal.Signals
) -> None:
    """The runbook promises this. The database that was live for a moment is kept."""
    with with_services(site, tmp_path) as (swarm, docker):
        with each_step(step, lambda: os.kill(os.getpid(), number)):
            ended = swarm.restore()
        assert ended.code == 128 + number, ended.output
        assert "for its outcome: ovia-backup restore --history" in ended.output
        ended_as(swarm, "old")
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    record = site.records[0]
    assert record.outcome == "put back"
    assert site.databases == sorted([site.live.database, record.kept])
    assert site.content(record.kept) == site.then


@pytest.mark.parametrize("of", thinned(["restore", "undo"]))
def test_interrupting_red_health_restores_what_was_live(site: Site, tmp_path: Path, of: str) -> None:
    with with_services(site, tmp_path) as (swarm, docker):
        command: tuple[str, ...] = ("restore", site.backup.path.name)
        if of == "undo":
            assert swarm.restore().code == 0
            command = ("undo-restore",)
        red = swarm.with_settings(HEALTH_URL="http://127.0.0.1:1/health")
        running = red.place.start(*command, "--yes-destroy", site.live.database)
        until(lambda: "is not healthy yet" in running.output)
        running.send(signal.SIGINT)
        ended = running.wait()
        assert (ended.code, "for its outcome: ovia-backup restore --history" in ended.output) == (130, True), (
            ended.output
        )
        ended_as(red, "old" if of == "restore" else "new")
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert len(site.databases) == 2


# ----------------------------------------------------------------------------------------- other sessions


def test_a_database_created_meanwhile_is_left_unchanged(site: Site) -> None:
    theirs = f"{site.live.database}_theirs"

    def make() -> None:
        sql_in_server(site, "CREATE DATABASE {}", theirs)
        execute(site.live.to(theirs), "CREATE TABLE precious (id int)")

    with first(Proof, "read_backup", make):
        ended = site.restore("--mode", "new", "--into", theirs)
    assert "exists already" in failed(site, ended)
    execute(site.live.to(theirs), "INSERT INTO precious VALUES (1)")
    ended_as(site, "old")


@pytest.mark.parametrize("then", thinned(BACK))
def test_a_database_created_after_a_kill_is_left_unchanged(site: Site, then: str) -> None:
    theirs = f"{site.live.database}_theirs"
    with killed_at(0, before=False):
        assert site.restore("--mode", "new", "--into", theirs).killed
    sql_in_server(site, "CREATE DATABASE {}", theirs)
    execute(site.live.to(theirs), "CREATE TABLE precious (id int)")
    site.place.run("restore", then)
    execute(site.live.to(theirs), "INSERT INTO precious VALUES (1)")
    ended_as(site, "old")


@pytest.mark.exhaustive
@pytest.mark.parametrize("word", thinned([5, 3, 4, 6, 7]))
def test_a_database_restored_by_hand_is_not_dropped(site: Site, word: int) -> None:
    """Mode drop, killed after the drop: one operator restores by hand with the runbook, another runs --resume."""
    with killed_at(word, before=False):
        assert site.restore("--mode", "drop").killed
    sql_in_server(site, "CREATE DATABASE {}", site.live.database)
    execute(site.live, "CREATE TABLE by_hand (id int)")
    line = site.place.run("restore", "--resume").refused()
    assert f"cannot be named {site.live.database}" in line
    assert "psql -l" in line
    execute(site.live, "INSERT INTO by_hand VALUES (1)")
    aside = f"{site.live.database}_by_hand"
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", site.live.database, aside)
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert site.content() == site.then
    execute(site.live.to(aside), "INSERT INTO by_hand VALUES (1)")


@pytest.mark.exhaustive
def test_a_drop_refuses_another_database_than_planned(site: Site) -> None:
    """Another restore swaps during the drill. The operator did not confirm the drop of the new live database."""

    def another() -> None:
        sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", site.live.database, f"{site.live.database}_old")
        sql_in_server(site, "CREATE DATABASE {} TEMPLATE {}", site.live.database, f"{site.live.database}_old")

    with each_step(Step.DRILL, another):
        ended = site.restore("--mode", "drop")
    assert "is not the one" in failed(site, ended)
    ended_as(site, "old")


@pytest.mark.exhaustive
@pytest.mark.parametrize("statement", ["DROP DATABASE {}", "ALTER DATABASE {} RENAME TO {}"])
def test_an_undo_without_its_kept_database_changes_nothing(site: Site, statement: str) -> None:
    assert site.restore().code == 0
    kept = site.records[0].kept
    away = [kept, f"{kept}_away"][: statement.count("{}")]
    with first(forward, "note", lambda: sql_in_server(site, statement, *away)):
        ended = site.undo()
    assert kept in failed(site, ended)
    ended_as(site, "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("then", thinned(BACK))
def test_if_the_new_database_is_dropped_the_old_stays_live(site: Site, then: str) -> None:
    with killed_at(3, before=False):
        assert site.restore().killed
    incoming = next(name for name in site.databases if name != site.live.database)
    sql_in_server(site, "DROP DATABASE {}", incoming)
    site.place.run("restore", then)
    ended_as(site, "old")
    assert site.restore().code == 0


@pytest.mark.exhaustive
def test_if_the_old_database_is_dropped_the_new_stays_live(site: Site) -> None:
    """The old database is dropped by hand before the swap is in the journal: only --resume can finish the restore."""
    with killed_at(4, before=True):
        assert site.restore().killed
    kept = next(name for name in site.databases if name != site.live.database)
    sql_in_server(site, "DROP DATABASE {}", kept)
    assert "--resume" in site.place.run("restore", "--abort").refused()
    ended = site.place.run("restore", "--resume")
    assert ended.code in (0, 1), ended.output
    ended_as(site, "new")


# ----------------------------------------------------------------------------------------- another server


@pytest.mark.parametrize("mode", thinned(["swap", "drop"]))
@pytest.mark.parametrize("then", thinned(BACK))
def test_another_server_is_refused_and_left_unchanged(site: Site, other: PortCluster, then: str, mode: str) -> None:
    with killed_at(2, before=False):
        assert site.restore("--mode", mode).killed
    journal = RestoreFolder(site.place.catalog).unfinished()
    assert journal is not None
    there = other.connection()
    elsewhere = site.with_settings(POSTGRES_PORT=str(there.port), POSTGRES_HOST=there.host)
    elsewhere.live = there.to(site.live.database)
    for name in {journal.order.incoming, site.live.database}:
        sql_in_server(elsewhere, "CREATE DATABASE {}", name)
    assert "is not the server" in elsewhere.place.run("restore", then).refused()
    assert len(elsewhere.databases) == len({journal.order.incoming, site.live.database})
    for name in {journal.order.incoming, site.live.database}:
        sql_in_server(elsewhere, "DROP DATABASE {}", name)
    assert site.place.run("restore", "--resume").code == 0
    ended_as(site, "new")


# ----------------------------------------------------------------------------------------- the server


@pytest.fixture
def fragile(other: PortCluster, bin_dir: Path, tmp_path: Path) -> Iterator[Site]:
    """A site on the server that tests may kill."""
    with site_on(other, bin_dir, tmp_path) as site:
        yield site


@contextmanager
def at_word(word: int, action: Callable[[], object]) -> Iterator[None]:
    """In the block, a forked process runs the action just after it wrote this entry (counted from 0) of its journal."""
    write, counted = Journal.write, count()

    def writing(self: Journal, mark: JournalMark, step: str | None = None, *data: StepData | None) -> None:
        write(self, mark, step, *data)
        if next(counted) == word:
            action()

    with mock.patch.object(Journal, "write", writing):
        yield


def ends_well(site: Site, ended: Ended, then: str) -> None:
    """Assert that all is whole after the server is back, at once or after the command that the error names."""
    assert "Traceback" not in ended.output
    whole(site)
    if RestoreFolder(site.place.catalog).unfinished() is None:
        ended_as(site, "new" if ended.code == 0 else "old")
        assert {record.kept for record in site.records if record.kept} <= set(site.databases)
        return
    assert "ovia-backup restore --abort" in ended.refused()
    last = site.place.run("restore", then)
    done = site.records[0].outcome == "done"
    assert last.code == (0 if done or then == "--abort" else 1), last.output
    ended_as(site, "new" if done else "old")


@pytest.mark.exhaustive
@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize("word", thinned([1, 4, 6, 0, 2, 3, 5]))
def test_after_a_kill_of_the_server_all_is_whole(
    fragile: Site, other: PortCluster, tmp_path: Path, word: int, then: str
) -> None:
    """At the journal entries from the restore to the finished swap."""
    with with_services(fragile, tmp_path) as (swarm, docker):
        with at_word(word, lambda: kill(other)):
            ended = swarm.restore()
        other.start()
        ends_well(swarm, ended, then)
        assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.exhaustive
@pytest.mark.parametrize("then", thinned(BACK))
def test_a_server_killed_in_the_swap_leaves_all_whole(
    fragile: Site, other: PortCluster, tmp_path: Path, then: str
) -> None:
    with with_services(fragile, tmp_path) as (swarm, docker):
        with first(swap, "_rename", lambda: kill(other)):
            ended = swarm.restore()
        assert "--resume" in ended.refused()
        other.start()
        ends_well(swarm, ended, then)
        ended_as(swarm, "old" if then == "--abort" else "new")
        assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.parametrize("then", thinned(BACK))
def test_a_server_killed_in_pg_restore_leaves_the_old_one(
    fragile: Site, other: PortCluster, tmp_path: Path, then: str
) -> None:
    """All rows are restored; pg_restore fills a materialized view for as long as the file ``hold`` exists."""
    execute(
        fragile.live,
        "CREATE MATERIALIZED VIEW long AS SELECT CASE WHEN pg_stat_file('hold', true) IS NULL THEN '' "
        "ELSE pg_sleep(60)::text END AS waited",
    )
    fragile.backup, fragile.now = fragile.place.chain(), fragile.content()
    hold = other.data / "hold"

    def filling() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname ~ '_restore_' AND query ~ '^REFRESH.*long'"
        with admin_of(fragile) as session:
            return bool(session.execute(query).fetchone() != (0,))

    with with_services(fragile, tmp_path) as (swarm, docker):
        hold.touch()
        try:
            arguments = ("--yes-destroy", fragile.live.database, "--stop-services", "first")
            running = swarm.place.start("restore", fragile.backup.path.name, *arguments)
            until(lambda: filling() or not running.running)
            assert docker.replicas["api"] == 0
            kill(other)
        finally:
            hold.unlink()
        ended = running.wait()
        other.start()
        assert whole(swarm) == "old"
        ends_well(swarm, ended, then)
        ended_as(swarm, "old")
        assert docker.replicas == {**REPLICAS, "migrate": 1}
    assert fragile.databases == [fragile.live.database]


@pytest.mark.exhaustive
@needs_root
def test_a_full_disk_of_the_server_leaves_the_old_database(bin_dir: Path, tmp_path: Path, site: Site) -> None:
    """The new database is removed, and the old one is unchanged."""
    execute(site.live, "CREATE TABLE filler AS SELECT repeat('x', 2000) || g AS t FROM generate_series(1, 20000) g")
    backup = site.place.chain()
    cluster = PortCluster(bin_dir, Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp")), port=free_port())
    with tmpfs(cluster.folder, 600 * MEGABYTE):
        cluster.folder.chmod(0o755)
        try:
            cluster = replace(cluster, settings={"port": str(cluster.port), "max_wal_size": "64MB"})
            cluster.create()
            cluster.start()
            there = cluster.connection(site.live.database)
            elsewhere = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port))
            elsewhere.live = there
            sql_in_server(elsewhere, "CREATE DATABASE {}", there.database)
            execute(there, "CREATE TABLE theirs (id int)")
            now = elsewhere.content()
            with each_step(Step.RESTORE, lambda: fill(cluster.data, 20 * MEGABYTE)):
                arguments = ("--new-host", "--yes-destroy", there.database)
                ended = elsewhere.place.run("restore", backup.path.name, *arguments)
            # Without room for its WAL, the server shuts down.
            assert "disk" in ended.output or "server was stopped" in ended.output, ended.output
            assert ended.code == 1
            (cluster.data / "ballast").unlink()
            if not cluster.running:
                cluster.start()
            if RestoreFolder(site.place.catalog).unfinished():
                assert "--abort" in ended.refused()
                assert elsewhere.place.run("restore", "--abort").code == 0
            assert elsewhere.databases == [there.database]
            assert elsewhere.content() == now
        finally:
            cluster.remove()
            cluster.folder.mkdir(exist_ok=True)


def fill(folder: Path, left: int) -> None:
    with open(folder / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free(folder) - left)


@pytest.mark.exhaustive
def test_a_restore_on_a_standby_is_refused(fragile: Site, other: PortCluster, bin_dir: Path) -> None:
    standby = PortCluster(bin_dir, Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp")), port=free_port())
    try:
        with open(other.data / "pg_hba.conf", "a", encoding="utf-8") as file:
            file.write("local replication all trust\n")
        execute(fragile.live, "SELECT pg_reload_conf()")
        program, source = str(bin_dir / "pg_basebackup"), other.connection()
        command = (program, "-D", str(standby.data), "-R", "-c", "fast", "-X", "stream")
        assert capture(command, variables=source.environment())[0] == 0
        for path in (standby.folder, *standby.folder.rglob("*")):
            os.chown(path, account_id(), -1)
        with open(standby.data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(f"port = {standby.port}\nunix_socket_directories = '{standby.folder}'\n")
        standby.start()
        there = fragile.with_settings(POSTGRES_HOST=str(standby.folder), POSTGRES_PORT=str(standby.port))
        assert "is a standby" in there.restore("--mode", "new", confirm=False).refused()
        assert "is a standby" in there.restore().refused()
        assert not list(there.place.root.glob("restores/*.journal"))
    finally:
        standby.remove()


@pytest.mark.exhaustive
@pytest.mark.parametrize("when", thinned([Step.RESTORE, Step.SWAP]))
def test_a_prepared_transaction_stops_the_swap(fragile: Site, when: Step) -> None:
    def prepare() -> None:
        execute_prepared(fragile)

    with mock.patch.dict(swap.swap_databases.__kwdefaults__, deadline_seconds=0.5), each_step(when, prepare):
        ended = fragile.restore()
    assert "prepared" in failed(fragile, ended)
    assert fragile.databases == [fragile.live.database]
    with admin_of_live(fragile) as session:
        session.execute("ROLLBACK PREPARED 'stays'")
    ended_as(fragile, "old")


@pytest.mark.exhaustive
def test_a_new_logical_slot_stops_the_swap(fragile: Site) -> None:
    def make() -> None:
        with admin_of_live(fragile) as session:
            session.execute("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")

    with each_step(Step.RESTORE, make):
        ended = fragile.restore()
    with admin_of_live(fragile) as session:
        session.execute("SELECT pg_drop_replication_slot('cdc')")
    assert "slot" in failed(fragile, ended)
    ended_as(fragile, "old")
    assert fragile.databases == [fragile.live.database]


# ----------------------------------------------------------------------------------------- subscriptions


SUBSCRIBE = "CREATE SUBSCRIPTION {} CONNECTION 'host=nowhere password=s3cret' PUBLICATION p WITH (connect = false)"


def subscribed(site: Site, *, refresh: bool = True) -> str:
    name = f"sub_{site.live.database}"
    execute(
        site.live,
        SUBSCRIBE.format(name),
        f"ALTER SUBSCRIPTION {name} SET (slot_name = '{name}')",
        f"ALTER SUBSCRIPTION {name} ENABLE",
    )
    return name


def enabled(site: Site) -> dict[str, bool]:
    query = "SELECT datname, subenabled FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE subname = %s"
    with admin_of(site) as session:
        return dict(session.execute(query, [f"sub_{site.live.database}"]).fetchall())


@pytest.mark.exhaustive
def test_subscriptions_stop_in_the_kept_one_and_resume_on_undo(site: Site) -> None:
    subscribed(site)
    try:
        assert site.restore().code == 0
        kept = site.records[0].kept
        assert enabled(site) == {kept: False}
        assert site.undo().code == 0
        assert enabled(site) == {site.live.database: True}
        text = "".join(path.read_text("utf-8") for path in site.place.root.glob("restores/*"))
        assert "s3cret" not in text
        assert site.undo().code == 0
        kept = site.records[0].kept
        assert enabled(site) == {kept: False}
        forgotten = site.place.run("undo-restore", "--forget", "--yes-destroy", kept)
        assert forgotten.code == 0, forgotten.output
        assert f"sub_{site.live.database}" in forgotten.output
        assert enabled(site) == {}
    finally:
        drop_subscription(site)


def drop_subscription(site: Site) -> None:
    for database in enabled(site):
        name = f"sub_{site.live.database}"
        execute(
            site.live.to(database),
            f"ALTER SUBSCRIPTION {name} DISABLE",
            f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)",
            f"DROP SUBSCRIPTION {name}",
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("word", [3, 4])
def test_subscriptions_go_on_after_an_abort(site: Site, word: int) -> None:
    subscribed(site)
    try:
        with killed_at(word, before=False):
            assert site.restore().killed
        assert site.place.run("restore", "--abort").code == 0
        assert enabled(site) == {site.live.database: True}
    finally:
        drop_subscription(site)


@pytest.mark.exhaustive
def test_a_subscription_dropped_meanwhile_does_not_swap_back(site: Site) -> None:
    subscribed(site)
    assert site.restore().code == 0
    drop_subscription(site)
    ended = site.undo()
    assert ended.code == 0, ended.output
    ended_as(site, "old")


@pytest.mark.exhaustive
def test_a_drop_names_the_slot_to_drop_on_the_publisher(site: Site) -> None:
    name = subscribed(site)
    ended = site.restore("--mode", "drop")
    assert ended.code == 0, ended.output
    assert f"replication slot {name}" in ended.output
    assert enabled(site) == {}
    assert site.content() == site.then


# ----------------------------------------------------------------------------------------- the volume


@pytest.mark.exhaustive
def test_a_full_journal_file_loses_nothing(bin_dir: Path, server: PortCluster, tmp_path: Path) -> None:
    with site_on(server, bin_dir, tmp_path) as site:
        for word in range(1, 5):
            with at_word(word, lambda site=site: full_for_good(site)):  # type: ignore[misc]
                ended = site.restore()
            assert "Traceback" not in ended.output
            if RestoreFolder(site.place.catalog).unfinished():
                assert "--abort" in ended.refused()
                whole(site)
                last = site.place.run("restore", "--abort")
                assert last.code == 0, last.output
            ended_as(site, "new" if ended.code == 0 else "old")
            if ended.code == 0:
                assert site.undo().code == 0
                ended_as(site, "old")


def full_for_good(site: Site) -> None:
    """Limit the file size in this process, so that its journal cannot grow; its output goes through a pipe instead."""
    size = max(path.stat().st_size for path in site.place.root.glob("restores/*.journal"))
    printing = subprocess.Popen(("cat",), stdin=subprocess.PIPE, stdout=1)
    assert printing.stdin is not None
    for descriptor in (1, 2):
        os.dup2(printing.stdin.fileno(), descriptor)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.exhaustive
@needs_root
def test_a_read_only_volume_refuses_restore_and_resume(bin_dir: Path, server: PortCluster, tmp_path: Path) -> None:
    root = tmp_path / "backups"
    with tmpfs(root, 64 * MEGABYTE), site_on(server, bin_dir, tmp_path) as site:
        with killed_at(3, before=False):
            assert site.restore().killed
        for options, works in (("remount,ro", False), ("remount,rw", True)):
            subprocess.run(("mount", "-o", options, str(root)), check=True)
            ended = site.place.run("restore", "--resume")
            assert "Traceback" not in ended.output
            assert (ended.code == 0) == works, ended.output
            if not works:
                assert "read-only" in ended.refused().lower()
                assert "is not finished" in site.restore().refused()
                assert whole(site) == "old"
        ended_as(site, "new")
        subprocess.run(("mount", "-o", "remount,ro", str(root)), check=True)
        assert "read-only" in site.restore().refused().lower()


@pytest.mark.parametrize("then", thinned(BACK))
@pytest.mark.parametrize(
    ("text", "said"),
    thinned(
        [
            (b"garbage\n", "cannot be understood"),
            (b'{"at": "2026-01-01T00:00:00Z", "mark": "of a newer version"}\n', "cannot be understood"),
            (b"\xff\xfe\0\n", "cannot be understood"),
        ]
    ),
)
def test_an_unreadable_journal_refuses_every_restore(site: Site, text: bytes, said: str, then: str) -> None:
    with killed_at(3, before=False):
        assert site.restore().killed
    path = next(site.place.root.glob("restores/*.journal"))
    whole_text = path.read_bytes()
    path.write_bytes(whole_text + text)
    for arguments in (("restore", then), ("restore", "latest", "--yes-destroy", site.live.database)):
        line = site.place.run(*arguments).refused()
        assert said in line
        assert "newer ovia-backup" in line
    assert site.place.run("undo-restore", "--list").output == "no database is kept\n"
    whole(site)
    path.write_bytes(whole_text + b'{"at": "2026-01-01T0')  # torn
    assert site.place.run("restore", then).code == 0
    ended_as(site, "old" if then == "--abort" else "new")


def test_a_backup_of_an_unfinished_restore_is_not_pruned(site: Site) -> None:
    with killed_at(0, before=False):
        assert site.restore().killed
    site.place.chain()
    policy = site.with_settings(BACKUP_DAILY_KEEP="1", BACKUP_WEEKLY_KEEP="1").place.system.policy
    in_three_days = datetime.now(UTC) + timedelta(days=3)
    assert f"daily/{site.backup}" in prune(site.place.catalog, policy, in_three_days).in_use
    assert site.place.run("restore", "--resume").code == 0
    ended_as(site, "new")
    assert f"daily/{site.backup}" in prune(site.place.catalog, policy, in_three_days).removed


# ----------------------------------------------------------------------------------------- names, rights, contents


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    thinned(
        ["with space and 'quote\"", "é" * 31, "ünïcode-Ω-データ", "a=b; --", "new\nline", "n" * 60, "Upper.Dot/Slash"],
    ),
)
def test_databases_with_hostile_names_are_restored(
    server: PortCluster, bin_dir: Path, tmp_path: Path, name: str
) -> None:
    with site_on(server, bin_dir, tmp_path, name) as site:
        ended = site.restore()
        assert ended.code == 0, ended.output
        assert site.content() == site.then
        kept = site.records[0].kept
        assert site.content(kept) == site.now
        assert len(kept.encode()) <= 63
        assert site.undo().code == 0
        assert site.content() == site.now
        assert site.place.run("undo-restore", "--forget", "--yes-destroy", site.records[0].kept).code == 0
        ended = site.restore("--mode", "drop")
        assert ended.code == 0, ended.output
        assert site.content() == site.then
        unconfirmed = site.restore(confirm=False).refused()
        word = unconfirmed.rpartition("--yes-destroy ")[2]
        assert subprocess.run(("bash", "-c", f"printf %s {word}"), capture_output=True, text=True).stdout == name
        with admin_of(site) as session:
            left = session.execute("SELECT datname FROM pg_database WHERE datname ~ '_(restore|before)_[0-9]{14}$'")
            for (each,) in left.fetchall():
                session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(each)))


@pytest.mark.exhaustive
def test_the_postgres_database_can_be_restored(other: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    place = place_for(other.connection("postgres"), bin_dir, tmp_path / "backups", tmp_path)
    execute(other.connection("postgres"), SCHEMA)
    site = Site(place, other.connection("postgres"), bin_dir, place.chain(), "", "")
    site.then = site.content()
    execute(site.live, SINCE)
    site.now = site.content()
    assert site.restore().code == 0
    assert site.content() == site.then
    assert site.undo().code == 0
    assert site.content() == site.now
    ended = site.restore("--mode", "drop")
    assert ended.code == 0, ended.output
    assert site.content() == site.then


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("rights", "said"), thinned([("NOCREATEDB", "CREATEDB"), ("CREATEDB", "does not have its rights")])
)
def test_a_role_without_the_rights_is_refused(site: Site, rights: str, said: str) -> None:
    role = f"weak_{site.live.database}"
    sql_in_server(site, f"CREATE ROLE {{}} LOGIN {rights}", role)
    try:
        weak = site.with_settings(RESTORE_POSTGRES_USER=role)
        for mode in ("swap", "drop"):
            refused = weak.restore("--mode", mode)
            assert refused.refused()
            assert said in refused.output
        # The rights that count are those of the role that `ALTER ROLE ... SET role` sets.
        sql_in_server(site, "GRANT pg_monitor TO {}", role)
        sql_in_server(site, "ALTER ROLE {} SET role = pg_monitor", role)
        refused = weak.restore()
        assert refused.refused()
        assert f"role pg_monitor may not create or rename a database, as which role {role} acts" in refused.output
        assert 'ALTER ROLE "pg_monitor" CREATEDB' in refused.output
        sql_in_server(site, "ALTER ROLE {} RESET role", role)
        # The role may create a database, but not give the objects in it to their owners.
        assert weak.restore("--mode", "new", confirm=False).code == 1
        assert site.databases == [site.live.database]
        ended_as(site, "old")
    finally:
        sql_in_server(site, "DROP ROLE {}", role)


@pytest.mark.exhaustive
def test_the_owner_with_createdb_may_restore(site: Site) -> None:
    role = f"owner_{site.live.database}"
    sql_in_server(site, "CREATE ROLE {} LOGIN CREATEDB", role)
    try:
        execute(
            site.live,
            f"ALTER TABLE people OWNER TO {role}",
            f"ALTER TABLE identities OWNER TO {role}",
            f"ALTER TABLE person_identity_links OWNER TO {role}",
            f"ALTER MATERIALIZED VIEW counted OWNER TO {role}",
        )
        sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, role)
        site.now = site.content()
        site.backup = site.place.chain()
        site.then = site.content()
        execute(site.live, "DELETE FROM people WHERE id = 1000")
        site.now = site.content()
        ended = site.with_settings(RESTORE_POSTGRES_USER=role).restore()
        assert ended.code == 0, ended.output
        ended_as(site, "new")
        assert site.with_settings(RESTORE_POSTGRES_USER=role).undo().code == 0
        ended_as(site, "old")
    finally:
        for name in site.databases:
            execute(site.live.to(name), f"REASSIGN OWNED BY {role} TO CURRENT_USER", f"DROP OWNED BY {role}")
        sql_in_server(site, "DROP ROLE {}", role)


def test_a_restore_makes_no_owner_a_superuser(site: Site) -> None:
    """A superuser's queries in the owner's database call the server's functions, not the owner's."""
    role = f"owner_{site.live.database}"
    sql_in_server(site, "CREATE ROLE {} LOGIN", role)
    sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, role)
    try:
        execute(
            replace(site.live, user=role),
            "CREATE SCHEMA evil",
            "CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN "
            f"IF current_setting('is_superuser') = 'on' THEN ALTER ROLE {role} SUPERUSER; END IF; "
            "RETURN pg_catalog.now(); END $$",
            f"ALTER DATABASE {site.live.database} SET search_path = evil, pg_catalog, public",
        )
        site.backup = site.place.chain()
        for ended in (site.restore("--plan", confirm=False), site.restore(), site.undo()):
            assert ended.code == 0, ended.output
        with admin_of(site) as session:
            found = session.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role]).fetchone()
        assert found == (False,)
    finally:
        for name in site.databases:
            sql_in_server(site, "DROP DATABASE {} WITH (FORCE)", name)
        sql_in_server(site, "DROP ROLE {}", role)


def test_databases_with_unusual_objects_are_restored(site: Site) -> None:
    """A view that cannot be refreshed, an event trigger, row security, odd names and extreme timestamps."""
    execute(
        site.live,
        "CREATE TABLE base (n int)",
        "INSERT INTO base VALUES (1)",
        "CREATE FUNCTION total() RETURNS bigint LANGUAGE sql AS 'SELECT sum(n) FROM base'",
        "CREATE MATERIALIZED VIEW cannot AS SELECT total() AS t",
        "CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no DDL here'; END $$",
        "ALTER TABLE people ENABLE ROW LEVEL SECURITY; ALTER TABLE people FORCE ROW LEVEL SECURITY",
        "CREATE POLICY no_one ON people USING (false)",
        'CREATE TABLE "odd ""name; DROP" ("when? ""really"" at" timestamptz, "ever" timestamp)',
        "INSERT INTO \"odd \"\"name; DROP\" VALUES ('infinity', '-infinity'), ('2999-01-01', '0044-03-15 BC')",
        "INSERT INTO \"odd \"\"name; DROP\" VALUES ('2026-05-05 05:05+05', '2026-06-06')",
        "CREATE EVENT TRIGGER no_ddl ON ddl_command_start EXECUTE FUNCTION forbid()",
    )
    site.backup = site.place.chain()
    site.then = site.content()
    execute(site.live, "DELETE FROM base")
    site.now = site.content()
    planned = site.restore("--plan", confirm=False)
    assert planned.code == 0, planned.output
    assert "2026-06-06" in planned.output
    assert "2999" not in planned.output
    ended = site.restore()
    assert "cannot be refreshed" in ended.output, ended.output
    assert ended.code == 0, ended.output
    assert RestoreFolder(site.place.catalog).unfinished() is None
    assert len(site.databases) == 2
    assert site.undo().code == 0
    assert site.content() == site.now


@pytest.mark.exhaustive
def test_reconnecting_clients_do_not_stop_a_restore(site: Site) -> None:
    with hammering(site.live):
        ended = site.restore()
        assert ended.code == 0, ended.output
        assert site.undo().code == 0
    ended_as(site, "old")
    assert max(record.interruption_seconds or 0 for record in site.records) < 1


@pytest.mark.exhaustive
@rounds(few=3, many=30)
@pytest.mark.parametrize("compression", thinned(["gzip:6", "zstd:3"]))
def test_a_backup_with_a_flipped_bit_never_goes_live(
    full_server: PortCluster, full_bin_dir: Path, tmp_path: Path, rng: Random, compression: str, times: int
) -> None:
    """What can be salvaged goes into a separate database, or the restore ends with an error."""
    with site_on(full_server, full_bin_dir, tmp_path) as site:
        site = site.with_settings(BACKUP_COMPRESSION=compression)
        site.backup = site.place.chain()
        content = site.backup.path.read_bytes()
        for number in range(times):
            at = rng.randrange(len(content))
            site.backup.path.chmod(0o600)
            site.backup.path.write_bytes(
                content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
            )
            ended = site.restore()
            assert ended.code == 1, (at, ended.output)
            assert "Traceback" not in ended.output, (at, ended.output)
            made = f"{site.live.database}_{number}"
            ended = site.restore("--mode", "new", "--into", made, "--even-if-damaged", confirm=False)
            assert "Traceback" not in ended.output, (at, ended.output)
            assert ended.code in (0, 1)
            assert (made in site.databases) == (ended.code == 0)
            if ended.code == 0:
                sql_in_server(site, "DROP DATABASE {}", made)
        assert site.content() == site.now
        assert site.databases == [site.live.database]


# ----------------------------------------------------------------------------------------- at the same time


@pytest.mark.exhaustive
def test_an_unfinished_restore_blocks_forget_and_undo(site: Site) -> None:
    assert site.restore().code == 0
    with killed_at(3, before=False):
        assert site.restore().killed
    before = site.databases
    kept, live = site.records[0].kept, site.live.database
    for options in (("--forget", "--yes-destroy", kept), ("--yes-destroy", live)):
        assert "--resume" in site.place.run("undo-restore", *options).refused()
    assert site.databases == before
    assert site.place.run("restore", "--resume").code == 0
    ended_as(site, "new")


@pytest.mark.exhaustive
def test_dump_drill_and_prune_succeed_during_a_restore(site: Site) -> None:
    done: list[str] = []

    def others() -> None:
        for command in (("dump",), ("verify", "latest"), ("drill", site.backup.path.name), ("prune",)):
            ended = site.place.run(*command)
            done.append(f"{command[0]} {ended.code}")
            if ended.code:
                print(ended.output)
        print(done)

    with each_step(Step.RESTORE, others):
        ended = site.restore()
    assert "['dump 0', 'verify 0', 'drill 0', 'prune 0']" in ended.output, ended.output
    assert ended.code == 0
    ended_as(site, "new")


@pytest.mark.exhaustive
def test_unknown_services_are_found_before_any_change(site: Site) -> None:
    nowhere = site.with_settings(
        SWARM_APP_SERVICES="ovia_ovia-api",
        SWARM_MIGRATE_SERVICE="ovia_migrate",
        HEALTH_URL="http://127.0.0.1:1/",
        SWARM_DOCKER_URL="tcp://127.0.0.1:1",
    )
    with mock.patch.object(docker_api, "PATIENCE_SECONDS", 0.0):
        for arguments in ((), ("--plan",)):
            line = nowhere.restore(*arguments).refused()
            assert "Docker does not answer at tcp://127.0.0.1:1" in line
            assert "--without-services" in line
    assert nowhere.restore("--without-services").code == 0
    with mock.patch.object(docker_api, "PATIENCE_SECONDS", 0.0):
        assert "Docker does not answer" in nowhere.undo().refused()
    assert nowhere.undo("--without-services").code == 0
    assert len(site.records) == 2


@pytest.mark.exhaustive
def test_a_restore_names_the_dump_that_holds_the_lock(site: Site) -> None:
    with volume_lock(site.place.root, purpose="a dump", now=datetime.now(UTC)):
        ended = site.restore()
    assert "a dump" in failed(site, ended)
    ended_as(site, "old")
    assert site.databases == [site.live.database]

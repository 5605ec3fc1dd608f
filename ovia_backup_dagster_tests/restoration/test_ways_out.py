"""Where a restore can neither go on nor be put back: what is live is not lost, and somebody can begin anew."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.core.catalog import GLOBALS, RESERVE, RESERVE_BYTES
from ovia_backup_dagster.core.restoration import Journal, Mark, Mode, Order, RestoreFolder, Step
from ovia_backup_dagster.restoration import plan, steps
from ovia_backup_dagster.restoration.plan import Wishes
from ovia_backup_dagster_tests.conftest import execute, running_cluster
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, free, tmpfs
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.postgres.drilling import one
from ovia_backup_dagster_tests.restoration.conftest import Site, admin_of, site_on
from ovia_backup_dagster_tests.restoration.test_faults import (
    admin_of_live,
    each_step,
    ended_as,
    execute_prepared,
    failed,
)
from ovia_backup_dagster_tests.restoration.test_killed import killed_at

RED = "http://127.0.0.1:1/health"


def drop_live(site: Site) -> None:
    with admin_of(site) as session:
        session.execute(f"DROP DATABASE {site.live.database} WITH (FORCE)")


# ------------------------------------------------------------------------------- a database that there was not before


def test_a_database_that_was_made_and_is_live_is_never_dropped(site: Site) -> None:
    """Killed while health is asked: users may have written for minutes."""
    drop_live(site)
    red = site.with_settings(HEALTH_URL=RED)
    with killed_at(3, before=False):
        assert red.restore("--new-host", confirm=False).killed
    execute(site.live, "INSERT INTO people (id, name) VALUES (7000, 'since')")
    line = red.restore().refused()
    assert "--resume" in line
    assert "--abort" not in line
    line = red.place.run("restore", "--abort").refused()
    assert "may have been written to" in line
    assert "--resume" in line
    with mock.patch.object(steps, "_HEALTH_SECONDS", 0.5):
        ended = red.place.run("restore", "--resume")
    assert "was not healthy" in failed(red, ended)
    assert one(site.live, "SELECT count(*) FROM people WHERE id = 7000") == 1
    assert RestoreFolder(site.place.catalog).unfinished() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nor_when_somebody_loses_patience(site: Site, number: signal.Signals) -> None:
    drop_live(site)
    red = site.with_settings(HEALTH_URL=RED)
    running = red.place.start("restore", site.backup.path.name, "--new-host")
    until(lambda: "is not healthy yet" in running.output)
    running.send(number)
    assert running.wait().code != 0
    assert site.content() == site.then
    assert "--resume" in red.restore().refused()


# ------------------------------------------------------------------------------------------------- mode drop


def test_a_drop_that_has_dropped_nothing_is_put_back(bin_dir: Path, tmp_path: Path) -> None:
    with (
        running_cluster(bin_dir, max_prepared_transactions="5") as cluster,
        site_on(cluster, bin_dir, tmp_path) as site,
    ):
        with each_step(Step.DROP, lambda: execute_prepared(site)):
            ended = site.restore("--mode", "drop")
        assert ended.code == 1
        assert "prepared" in ended.output
        assert site.records[0].outcome == "put back"
        with admin_of_live(site) as session:
            session.execute("ROLLBACK PREPARED 'stays'")
        ended_as(site, "old")


def test_a_backup_that_fails_after_the_drop_is_given_up_for_another(site: Site) -> None:
    other = site.place.chain()
    now = site.content()

    def damage() -> None:
        path = site.backup.path
        path.write_bytes(path.read_bytes()[:2000])

    with each_step(Step.RESTORE, damage):
        line = site.restore("--mode", "drop").refused()
    give_up = f"ovia-backup restore --abort --yes-destroy {site.live.database}"
    assert f"give this backup up, to restore another: {give_up}" in line
    assert "Next: ;" not in line
    assert "ovia-backup restore --resume" in line
    for command in (("--resume",), ("--abort",), ("--abort", "--yes-destroy", "another")):
        assert give_up in site.place.run("restore", *command).refused()
    ended = site.place.run("restore", "--abort", "--yes-destroy", site.live.database)
    assert f"database {site.live.database} was dropped" in failed(site, ended)
    assert site.records[0].outcome == "given up"
    assert site.databases == []
    ended = site.place.run("restore", other.path.name, "--new-host")
    assert ended.code == 0, ended.output
    assert site.content() == now


def test_what_can_be_put_back_is_not_given_up(site: Site) -> None:
    with killed_at(2, before=False):
        assert site.restore("--mode", "drop").killed
    ended = site.place.run("restore", "--abort", "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert site.records[0].outcome == "put back"
    ended_as(site, "old")


def test_a_drop_onto_a_new_host_takes_settings_from_the_backup(site: Site) -> None:
    name = site.live.database
    query = "SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = %s"

    def settings() -> int:
        with admin_of(site) as session:
            row = session.execute(query, [name]).fetchone()
            return int(row[0])

    before = settings()
    execute(site.live, f"ALTER DATABASE {name} SET work_mem = '5MB'")
    assert site.restore("--mode", "drop").code == 0
    assert settings() == before + 1
    assert site.restore("--mode", "drop", "--new-host").code == 0
    assert settings() == before


def test_roles_that_nobody_saved_are_asked_for_before_a_drop(site: Site) -> None:
    """The drill makes them up, in its own cluster; the live server must have them."""
    role = f"Owner of {site.live.database}"
    execute(site.live, f'CREATE ROLE "{role}"', f'ALTER TABLE people OWNER TO "{role}"')
    backup = site.place.chain()
    backup.sidecar(GLOBALS).unlink()
    try:
        execute(site.live, "ALTER TABLE people OWNER TO CURRENT_USER")
    finally:
        execute(site.live, f'DROP ROLE "{role}"')
    now = site.content()
    line = site.place.run("restore", backup.path.name, "--mode", "drop", "--yes-destroy", site.live.database).refused()
    assert f'CREATE ROLE "{role}"' in line
    assert site.content() == now
    assert site.records == []


@pytest.mark.parametrize(
    ("options", "drop"),
    [((), True), (("--mode", "drop"), False), (("--mode", "new"), False), (("--new-host",), False)],
)
def test_no_room_is_no_reason_to_advise_a_drop_where_nothing_was_to_be_replaced(
    site: Site, options: tuple[str, ...], drop: bool
) -> None:
    with mock.patch.object(plan, "free_bytes", return_value=-(10**12)):
        line = site.restore(*options).refused()
    assert "too little room" in line
    assert ("--mode drop" in line) == drop


# ------------------------------------------------------------------------------------------------- what is left


def test_what_was_live_and_was_put_back_is_a_kept_database(site: Site) -> None:
    """So that it is listed, and dropped when its time has come; a failed try must not fill the server for good."""
    red = site.with_settings(HEALTH_URL=RED)
    with mock.patch.object(steps, "_HEALTH_SECONDS", 0.5):
        assert "not healthy" in failed(red, red.restore("--auto-undo"))
    ended_as(site, "old")
    [aside] = [name for name in site.databases if name != site.live.database]
    assert f"what was live stays as {aside}" in site.records[0].notes
    assert aside in site.place.run("undo-restore", "--list").output
    assert site.content(aside) == site.then


@pytest.mark.parametrize("back", [False, True])
def test_a_database_made_anew_since_the_plan_is_not_replaced(site: Site, back: bool) -> None:
    """What was confirmed was another one."""
    if back:
        assert site.restore().code == 0
    restorations, now = site.place.system.restorations, datetime.now(UTC)
    planner = restorations.planner
    confirmed = planner.plan_undo("test", None, now) if back else planner.plan(Wishes(), "test", None, now)
    drop_live(site)
    with admin_of(site) as session:
        session.execute(f"CREATE DATABASE {site.live.database} TEMPLATE template0")
    record = restorations.run(confirmed, site.live.database, lambda _: None)
    assert "is not the one that" in record.error
    assert one(site.live, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    command = record.fix.rpartition("ovia-backup ")[2].split()
    ended = site.place.run(*command, "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert site.content() == (site.now if back else site.then)


# ------------------------------------------------------------------------------------------------- the journal


@needs_root
def test_the_journal_may_use_what_was_set_aside(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    with tmpfs(volume, 16 * MEGABYTE):
        (volume / "restores").mkdir()
        (volume / RESERVE).write_bytes(b"\0" * RESERVE_BYTES)
        order = Order(
            mode=Mode.SWAP,
            started_at=datetime(2026, 1, 2, tzinfo=UTC),
            database="ovia",
            host="h",
            port=1,
            incoming="ovia_restore",
            launched_by="a test",
            made_by="a test",
        )
        path = volume / "restores" / "x.journal"
        path.write_text(order.model_dump_json() + "\n", encoding="utf-8")
        journal = Journal.read(path)
        (volume / "filler").write_bytes(b"\0" * free(volume))
        journal.write(Mark.BEGUN, Step.START, text="x" * 100_000)
        assert not (volume / RESERVE).exists()
        assert [entry.step for entry in Journal.read(path).entries] == [Step.START]

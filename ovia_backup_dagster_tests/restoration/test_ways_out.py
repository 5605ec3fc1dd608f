"""Restores that can neither go on nor be put back: the live data is kept, and an operator can start again."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from unittest import mock

import click
import psycopg
import pytest

from ovia_backup_dagster.cli import restore_dialogue
from ovia_backup_dagster.core.errors import ReadOnlyVolumeError, RestoreError, RestoreRefusedError
from ovia_backup_dagster.core.naming import before_at
from ovia_backup_dagster.core.reserve import RESERVE, RESERVE_BYTES
from ovia_backup_dagster.postgres.programs import Connection, Variables
from ovia_backup_dagster.proof import target
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.restoration import preflight, runner, swap
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import StepData, SwapData
from ovia_backup_dagster.restoration.steps import back, drop_database, services, swap_step
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.subscriptions import drop_subscriptions
from ovia_backup_dagster.swarm import docker_api
from ovia_backup_dagster_tests.conftest import PortCluster, execute, running_cluster
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, free, tmpfs
from ovia_backup_dagster_tests.faults.harness import Ended, until
from ovia_backup_dagster_tests.restoration.docker_engine import engine
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import with_roles
from ovia_backup_dagster_tests.support.restoring import (
    Site,
    admin_of,
    admin_of_live,
    drop_live,
    each_step,
    ended_as,
    execute_prepared,
    failed,
    killed_at,
    site_on,
    sql_in_server,
)

TABLES = ("people", "identities", "person_identity_links")
RED = "http://127.0.0.1:1/health"


def give_up_line(site: Site) -> str:
    return f"ovia-backup restore --abort --yes-destroy {site.live.database}"


@contextmanager
def impatient() -> Iterator[None]:
    """In the block, a restore does not wait for a Docker that does not answer."""
    with (
        mock.patch.object(docker_api, "PATIENCE_SECONDS", 0.0),
        mock.patch.multiple(services, _STOP_SECONDS=0.5, _START_SECONDS=0.5, _MIGRATE_SECONDS=0.5),
    ):
        yield


def fail_it() -> None:
    raise RestoreError("it fails here")


# ------------------------------------------------------------------------------- a database that did not exist before


def test_a_restored_live_database_is_never_dropped(site: Site) -> None:
    """Killed during the health check: users may have written to the database for minutes."""
    drop_live(site)
    red = site.with_settings(HEALTH_URL=RED)
    with killed_at(5, before=False):
        assert red.restore("--new-host", confirm=False).killed
    execute(site.live, "INSERT INTO people (id, name) VALUES (7000, 'since')")
    line = red.restore().refused()
    assert "--resume" in line
    assert "--abort" not in line
    line = red.place.run("restore", "--abort").refused()
    assert "may have been written to" in line
    assert "--resume" in line
    with mock.patch.object(services, "_HEALTH_SECONDS", 0.5):
        ended = red.place.run("restore", "--resume")
    assert "was not healthy" in failed(red, ended)
    assert one(site.live, "SELECT count(*) FROM people WHERE id = 7000") == 1
    assert RestoreFolder(site.place.catalog).unfinished() is None


@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGTERM]))
def test_a_signal_during_red_health_keeps_the_database(site: Site, number: signal.Signals) -> None:
    drop_live(site)
    red = site.with_settings(HEALTH_URL=RED)
    running = red.place.start("restore", site.backup.path.name, "--new-host")
    until(lambda: "is not healthy yet" in running.output)
    running.send(number)
    assert running.wait().code != 0
    assert site.content() == site.then
    assert "--resume" in red.restore().refused()


# ------------------------------------------------------------------------------------------------- mode drop


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
def test_a_failed_backup_after_a_drop_is_given_up_for_another(site: Site) -> None:
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


@pytest.mark.exhaustive
def test_a_restore_that_can_be_put_back_is_not_given_up(site: Site) -> None:
    with killed_at(2, before=False):
        assert site.restore("--mode", "drop").killed
    ended = site.place.run("restore", "--abort", "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert site.records[0].outcome == "put back"
    ended_as(site, "old")


@pytest.mark.exhaustive
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


def test_unsaved_roles_are_required_before_a_drop(site: Site) -> None:
    """The drill creates missing roles in its own cluster; on the live server they must exist."""
    role = f"Owner of {site.live.database}"
    execute(site.live, f'CREATE ROLE "{role}"', f'ALTER TABLE people OWNER TO "{role}"')
    backup = site.place.chain()
    with_roles(backup, None)
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
def test_only_a_swap_without_room_advises_mode_drop(site: Site, options: tuple[str, ...], drop: bool) -> None:
    with mock.patch.object(preflight, "free_bytes", return_value=-(10**12)):
        line = site.restore(*options).refused()
    assert "too little room" in line
    assert ("--mode drop" in line) == drop


# ------------------------------------------------------------------------------------------------- kept databases


@pytest.mark.exhaustive
def test_a_database_put_aside_again_is_kept(site: Site) -> None:
    """It is recorded as kept, so that it is listed and later dropped: a failed restore must not fill the server."""
    red = site.with_settings(HEALTH_URL=RED)
    with mock.patch.object(services, "_HEALTH_SECONDS", 0.5):
        assert "not healthy" in failed(red, red.restore("--auto-undo"))
    ended_as(site, "old")
    [aside] = [name for name in site.databases if name != site.live.database]
    assert f"what was live stays as {aside}" in site.records[0].notes
    assert aside in site.place.run("undo-restore", "--list").output
    assert site.content(aside) == site.then


@pytest.mark.parametrize("back", thinned([False, True]))
def test_a_database_recreated_since_the_plan_is_not_replaced(site: Site, back: bool) -> None:
    """The operator confirmed the replacement of another database."""
    if back:
        assert site.restore().code == 0
    restorations, now = site.place.system.restorations, datetime.now(UTC)
    planner = restorations.planner
    confirmed = planner.plan_undo("test", None, now) if back else planner.plan(Wishes(), "test", None, now)
    drop_live(site)
    with admin_of(site) as session:
        session.execute(f"CREATE DATABASE {site.live.database} TEMPLATE template0")
    with pytest.raises(RestoreRefusedError, match="is not the one that was planned for") as refused:
        restorations.run(confirmed, site.live.database, lambda _: None)
    assert one(site.live, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    command = refused.value.fix.rpartition("ovia-backup ")[2].split()
    ended = site.place.run(*command, "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert site.content() == (site.now if back else site.then)


# ------------------------------------------------------------------------------- an operator ends it, or Docker is gone


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGTERM]))
def test_an_interrupted_restore_lists_what_is_left(site: Site, number: signal.Signals) -> None:
    """After the drop there is no way back, and the message must say what is left to do."""
    with each_step(Step.RESTORE, lambda: os.kill(os.getpid(), number)):
        ended = site.restore("--mode", "drop")
    assert ended.code == 1
    assert "is not finished" in ended.output
    assert ended.output.endswith("Next: ovia-backup restore --resume\n"), ended.output
    assert give_up_line(site) in ended.output
    assert site.place.run("restore", "--resume").code == 0
    ended_as(site, "new")


def test_an_interrupted_swap_is_put_back_completely(site: Site) -> None:
    with each_step(Step.SWAP, lambda: os.kill(os.getpid(), signal.SIGINT)):
        ended = site.restore()
    assert (ended.code, "for its outcome: ovia-backup restore --history" in ended.output) == (130, True), ended.output
    ended_as(site, "old")


@pytest.mark.exhaustive
@pytest.mark.parametrize("verb", thinned(["--resume", "--abort"]))
def test_without_docker_the_operator_scales_services(site: Site, tmp_path: Path, verb: str) -> None:
    gone = tmp_path / "gone"
    with engine(gone, api=2, ingest=1) as docker, impatient():
        swarm = site.with_settings(
            SWARM_APP_SERVICES="api,ingest", SWARM_MIGRATE_SERVICE="migrate", SWARM_DOCKER_URL=docker.url
        )
        docker.replicas["migrate"] = 0
        with each_step(Step.SWAP, gone.touch):
            line = swarm.restore().output
        assert "is not finished" in line
        assert "--without-services" in line
        assert "is not finished" in swarm.place.run("restore", verb).output
        ended = swarm.place.run("restore", verb, "--without-services")
        assert ended.code == 0, ended.output
        assert "to be started by hand: docker service scale api=2 ingest=1" in ended.output
        by_hand = "docker service update --detach --force --replicas 1 migrate"
        assert (by_hand in ended.output) == (verb == "--resume")
        ended_as(site, "new" if verb == "--resume" else "old")
        gone.unlink()
        assert docker.replicas == {"api": 0, "ingest": 0, "migrate": 0}


@pytest.mark.parametrize("verb", thinned(["--resume", "--abort"]))
def test_services_that_were_stopped_by_hand_are_not_forgotten(site: Site, tmp_path: Path, verb: str) -> None:
    """Their number of replicas is not recorded: when Docker is back, the operator is told to start them."""
    gone = tmp_path / "gone"
    with engine(gone, api=2) as docker, impatient():
        swarm = site.with_settings(SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url)
        with each_step(Step.RESTORE, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            assert swarm.restore().killed
        gone.touch()
        with each_step(Step.SWAP, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            assert swarm.place.run("restore", "--resume", "--without-services").killed
        gone.unlink()
        ended = swarm.place.run("restore", verb)
        assert ended.code == 0, ended.output
        assert "to be started by hand: docker service scale api=REPLICAS" in ended.output
        ended_as(site, "new" if verb == "--resume" else "old")


@pytest.mark.exhaustive
@pytest.mark.parametrize("step", thinned([Step.START, Step.SWAP]))
def test_one_refused_service_leaves_no_other_down(site: Site, tmp_path: Path, step: Step) -> None:
    """Docker refuses one service while the new database goes live, and while everything is put back."""
    with engine(tmp_path / "gone", a=1, b=2, c=3) as docker:
        docker.refused.add("a")
        swarm = site.with_settings(SWARM_APP_SERVICES="a,b,c", SWARM_DOCKER_URL=docker.url)
        with each_step(Step.SWAP, fail_it if step is Step.SWAP else bool):
            ended = swarm.restore()
        assert "is not finished" in ended.output
        assert "Docker refuses" in ended.output
        assert docker.replicas == {"a": 0, "b": 2, "c": 3}
        docker.refused.clear()
        assert swarm.place.run("restore", "--resume").code == (1 if step is Step.SWAP else 0)
        assert docker.replicas == {"a": 1, "b": 2, "c": 3}
        ended_as(site, "old" if step is Step.SWAP else "new")


@pytest.mark.exhaustive
@pytest.mark.parametrize("verb", thinned(["--resume", "--abort"]))
def test_a_migration_runs_once_and_ends_with_its_database(site: Site, tmp_path: Path, verb: str) -> None:
    """Killed while the migration runs: --resume waits for the migration, --abort ends it."""
    with engine(tmp_path / "gone", api=2, migrate=0) as docker:
        swarm = site.with_settings(
            SWARM_APP_SERVICES="api", SWARM_MIGRATE_SERVICE="migrate", SWARM_DOCKER_URL=docker.url
        )
        running = swarm.place.start("restore", site.backup.path.name, "--yes-destroy", site.live.database)
        until(lambda: docker.forced["migrate"] == 1)
        running.send(signal.SIGKILL)
        assert running.wait().killed
        assert docker.replicas == {"api": 0, "migrate": 1}
        if verb == "--resume":
            docker.complete.add("migrate")
        ended = swarm.place.run("restore", verb)
        assert ended.code == 0, ended.output
        assert docker.forced["migrate"] == 1
        assert docker.replicas == {"api": 2, "migrate": 1 if verb == "--resume" else 0}
        assert ("waiting for the run of migrate" in ended.output) == (verb == "--resume")
        assert ("migrate was ended" in ended.output) == (verb == "--abort")
        ended_as(site, "new" if verb == "--resume" else "old")


@pytest.mark.exhaustive
def test_a_copy_in_use_leaves_no_service_down(site: Site, tmp_path: Path) -> None:
    """A superuser's session is in the copy: the restoring role may not end it, and so cannot drop the copy."""
    role, held = f"owner_{site.live.database}", []

    def enter() -> None:
        name = next(name for name in site.databases if "_restore_" in name)
        held.append(psycopg.connect(host=site.live.host, port=site.live.port, user=site.live.user, dbname=name))

    sql_in_server(site, "CREATE ROLE {} LOGIN CREATEDB", role)
    try:
        execute(site.live, *(f"ALTER TABLE {name} OWNER TO {role}" for name in TABLES))
        execute(site.live, f"ALTER MATERIALIZED VIEW counted OWNER TO {role}")
        sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, role)
        site.backup, site.now = site.place.chain(), site.content()
        with engine(tmp_path / "gone", api=2) as docker, mock.patch.object(swap, "DEADLINE_SECONDS", 1.0):
            owned = site.with_settings(
                RESTORE_POSTGRES_USER=role, SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url
            )
            with each_step(Step.STOP, enter):
                error = failed(site, owned.restore())
            assert docker.replicas == {"api": 2}
        copy = next(name for name in site.databases if "_restore_" in name)
        assert site.databases == [site.live.database, copy]
        assert error
        drop = f'DROP DATABASE "{copy}" WITH (FORCE)'
        assert drop in " ".join(site.records[0].notes)
        assert drop in owned.place.run("doctor").output
        assert site.content() == site.now
        assert RestoreFolder(site.place.catalog).unfinished() is None
    finally:
        for name in site.databases:
            execute(site.live.to(name), f"REASSIGN OWNED BY {role} TO CURRENT_USER", f"DROP OWNED BY {role}")
        sql_in_server(site, "DROP ROLE {}", role)


# ----------------------------------------------------------------------------------------- a lost server


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", thinned(["drop", "swap"]))
def test_a_server_lost_in_a_restore_is_given_up_for_a_new_one(
    server: PortCluster, bin_dir: Path, tmp_path: Path, mode: str
) -> None:
    with running_cluster(bin_dir) as lost, site_on(lost, bin_dir, tmp_path, "ovia") as site:
        with killed_at(3, before=False):
            assert site.restore("--mode", mode).killed
        there = server.connection("ovia")
        new = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port), POSTGRES_USER=there.user)
        assert "--resume" in new.restore("--new-host").refused()
        for verb in ("--resume", "--abort"):
            assert f"gone for good: {give_up_line(site)}" in new.place.run("restore", verb).refused()
        ended = new.place.run("restore", "--abort", "--yes-destroy", "ovia")
        assert "is gone" in ended.output
        assert "--new-host" in ended.output
        assert new.restore("--new-host").code == 0
        new.live = there
        try:
            assert new.content() == site.then
        finally:
            sql_in_server(new, "DROP DATABASE {} WITH (FORCE)", "ovia")


# ------------------------------------------------------------------------------- databases that were live for a while


@pytest.mark.exhaustive
def test_an_undone_database_is_not_dropped_at_its_old_time(site: Site) -> None:
    """The drop was announced before the database was live again; it must be announced again for the writes since."""
    assert site.restore().code == 0
    kept = site.records[0].kept
    at = before_at(kept, site.live.database)
    assert at is not None
    RestoreFolder(site.place.catalog).announce(kept, at + timedelta(days=12, minutes=1))
    red = site.with_settings(HEALTH_URL=RED)
    with killed_at(2, before=False):
        assert red.undo().killed
    execute(site.live, "INSERT INTO people (id, name) VALUES (8000, 'after the undo')")
    with mock.patch.object(swap_step, "datetime", wraps=datetime) as clock:
        clock.now.return_value = at  # the same second as the first swap
        ended = site.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    aside = site.records[0].kept
    assert aside != kept
    assert aside in ended.output
    assert one(site.live.to(aside), "SELECT count(*) FROM people WHERE id = 8000") == 1
    told: list[str] = []

    def tell(title: str, _: str) -> bool:
        told.append(title)
        return True

    site.place.system.restorations.kept_databases.expire(
        timedelta(days=14), tell, at + timedelta(days=14), lambda _: None
    )
    assert told == [f"database {aside} will be dropped"]


@pytest.mark.exhaustive
def test_subscriptions_stop_with_a_database_and_return_with_it(site: Site) -> None:
    name = f"s_{site.live.database}"
    execute(
        site.live,
        f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p WITH (connect = false)",
        f"ALTER SUBSCRIPTION {name} ENABLE",
    )
    enabled = f"SELECT subenabled FROM pg_subscription WHERE subname = '{name}'"
    assert site.restore().code == 0
    assert one(site.live, enabled) is False
    with killed_at(2, before=False):
        assert site.with_settings(HEALTH_URL=RED).undo().killed
    assert one(site.live, enabled) is True
    assert site.place.run("restore", "--abort").code == 0
    assert one(site.live, enabled) is False
    assert site.undo().code == 0
    assert one(site.live, enabled) is True
    execute(site.live, f"ALTER SUBSCRIPTION {name} DISABLE", f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)")
    execute(site.live, f"DROP SUBSCRIPTION {name}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGKILL]))
def test_slots_of_a_dropped_database_are_always_named(site: Site, number: signal.Signals) -> None:
    name = f"s_{site.live.database}"
    execute(
        site.live,
        f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port=1' PUBLICATION p "
        f"WITH (connect = false, slot_name = 'its_slot')",
    )

    def dropped(server: Connection, database: str) -> list[str]:
        slots = drop_subscriptions(server, database)
        os.kill(os.getpid(), number)
        return slots

    with mock.patch.object(drop_database, "drop_subscriptions", dropped):
        site.restore("--mode", "drop")
    if number is signal.SIGINT:
        ended_as(site, "old")
        assert f"{name} (slot its_slot)" in " ".join(site.records[0].notes)
    else:
        ended = site.place.run("restore", "--resume")
        assert ended.code == 0, ended.output
        assert "replication slot its_slot" in ended.output
        ended_as(site, "new")


def test_without_a_live_database_the_error_names_a_rename(site: Site) -> None:
    assert site.restore().code == 0
    kept = site.records[0].kept
    drop_live(site)
    for line in (site.undo().refused(), site.restore().refused()):
        assert f'ALTER DATABASE "{kept}" RENAME TO "{site.live.database}"' in line
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", kept, site.live.database)
    assert site.content() == site.now


def test_a_damaged_copy_does_not_go_live(site: Site, bin_dir: Path) -> None:
    """Neither is it restored under the live name with --new-host."""
    content = site.backup.path.read_bytes()
    site.backup.path.write_bytes(content[: len(content) * 6 // 10])
    site.place.run("verify", site.backup.path.name)
    with running_cluster(bin_dir) as other:
        there = other.connection(site.live.database)
        new = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port), POSTGRES_USER=there.user)
        new.live = there
        damaged = ("--mode", "new", "--even-if-damaged", "--new-host")
        line = new.restore(*damaged, "--into", site.live.database).refused()
        assert "does not go live" in line
        ended = new.place.run(*shlex.split(line.rpartition("ovia-backup ")[2]))
        assert ended.code == 0, ended.output
        assert new.restore(*damaged).code == 0
        assert site.live.database not in new.databases
        assert len(new.databases) == 2


@pytest.mark.exhaustive
def test_one_undroppable_database_does_not_keep_the_others(site: Site) -> None:
    assert site.restore().code == 0
    assert site.restore().code == 0
    newest, oldest = (record.kept for record in site.records)
    in_three_days = datetime.now(UTC) + timedelta(days=3)
    folder = RestoreFolder(site.place.catalog)
    for name in (newest, oldest):
        folder.announce(name, in_three_days - timedelta(days=2))
    sql_in_server(site, "ALTER DATABASE {} IS_TEMPLATE true", newest)
    with pytest.raises(RestoreError, match="is a template"):
        site.place.system.restorations.kept_databases.expire(
            timedelta(days=1), lambda *_: True, in_three_days, lambda _: None
        )
    assert site.databases == [site.live.database, newest]
    sql_in_server(site, "ALTER DATABASE {} IS_TEMPLATE false", newest)


# ------------------------------------------------------------------------------------------------- the journal


@needs_root
def test_the_journal_may_use_the_reserve(tmp_path: Path) -> None:
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
        journal.write(JournalMark.BEGUN, Step.START, StepData(notes=("x" * 100_000,)))
        assert not (volume / RESERVE).exists()
        assert [entry.step for entry in Journal.read(path).entries] == [Step.START]


# ------------------------------------------------------------------------------------------------- no reader


def nobody_reads() -> None:
    """Send this process's output into a pipe without a reader, as in `ovia-backup ... | tee log` after tee ended."""
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (1, 2):
        os.dup2(writing, descriptor)


@pytest.mark.exhaustive
@pytest.mark.parametrize("interrupted", [True, False], ids=["by Ctrl-C", "by itself"])
def test_a_closed_pipe_stops_no_restore(site: Site, tmp_path: Path, interrupted: bool) -> None:
    """Ctrl-C ends the reader and puts the restore back; a reader that ends by itself does not stop the restore."""

    def act() -> None:
        nobody_reads()
        if interrupted:
            signal.raise_signal(signal.SIGINT)

    with engine(tmp_path / "gone", api=2) as docker, impatient():
        swarm = site.with_settings(SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url)
        with each_step(Step.SWAP, act):
            ended = swarm.restore()
        assert ended.code == 1
        assert "Traceback" not in ended.output
        assert docker.replicas == {"api": 2}
    ended_as(site, "old" if interrupted else "new")
    assert site.records[0].outcome == ("put back" if interrupted else "done")
    assert len(site.databases) == (1 if interrupted else 2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fails", thinned([True, False]))
def test_a_log_that_fails_stops_no_restore(site: Site, tmp_path: Path, fails: bool) -> None:
    """Dagster's log fails if its storage is unreachable. A restore that fails then is still put back."""
    away: list[bool] = []

    def log(_: str) -> None:
        if away:
            raise ConnectionError("the storage is away")

    def act() -> None:
        away.append(True)
        if fails:
            fail_it()

    with engine(tmp_path / "gone", api=2) as docker, impatient():
        swarm = site.with_settings(SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url)
        restorations = swarm.place.system.restorations
        planned = restorations.planner.plan(Wishes(), "a test", None, datetime.now(UTC))
        with each_step(Step.SWAP, act):
            record = restorations.run(planned, site.live.database, log)
        assert docker.replicas == {"api": 2}
    assert record.outcome == ("put back" if fails else "done")
    ended_as(site, "old" if fails else "new")


@pytest.mark.exhaustive
def test_a_defect_during_the_abort_lists_what_is_left(site: Site) -> None:
    def defect(_: Work) -> None:
        raise RuntimeError("this was not foreseen")

    with each_step(Step.SWAP, fail_it), mock.patch.object(back, "put_back", defect):
        line = site.restore().refused()
    assert "RuntimeError: this was not foreseen" in line
    assert "ovia-backup restore --abort" in line
    assert site.place.run("restore", "--abort").code == 0
    ended_as(site, "old")


@pytest.mark.exhaustive
def test_a_lost_terminal_puts_everything_back(site: Site) -> None:
    """SIGHUP comes twice, from the shell and from the kernel, and nothing can be printed any more."""
    put_back = back.put_back

    def lost() -> None:
        nobody_reads()
        signal.raise_signal(signal.SIGHUP)

    def lost_again(work: Work) -> object:
        signal.raise_signal(signal.SIGHUP)
        return put_back(work)

    with each_step(Step.SWAP, lost), mock.patch.object(back, "put_back", lost_again):
        ended = site.restore()
    assert ended.code == 128 + signal.SIGHUP
    ended_as(site, "old")
    assert site.databases == [site.live.database]


@pytest.mark.exhaustive
def test_a_restore_under_nohup_outlasts_its_terminal(site: Site) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with each_step(Step.SWAP, lambda: signal.raise_signal(signal.SIGHUP)):
            ended = site.restore()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.code == 0, ended.output
    ended_as(site, "new")


# ------------------------------------------------------------------------------- the volume fails after the swap


@contextmanager
def read_only_after(step: Step) -> Iterator[None]:
    """In the block, a forked process can no longer write its journal after it has taken, or failed, this step."""
    carry_out, write, failing = TakenStep.carry_out, Journal.write, threading.Event()

    def carrying_out(self: TakenStep) -> object:
        try:
            return carry_out(self)
        finally:
            if self.data.step == step:
                failing.set()

    def writing(self: Journal, mark: JournalMark, here: str | None = None, *data: StepData | None) -> None:
        if failing.is_set():
            raise ReadOnlyVolumeError("the journal cannot be written", fix="mount the volume again")
        write(self, mark, here, *data)

    with mock.patch.object(TakenStep, "carry_out", carrying_out), mock.patch.object(Journal, "write", writing):
        yield


@pytest.mark.exhaustive
@pytest.mark.parametrize("verb", thinned(["--resume", "--abort"]))
@pytest.mark.parametrize("step", thinned([Step.SWAP, Step.MIGRATE]))
def test_a_volume_failing_after_the_swap_stops_no_service(site: Site, tmp_path: Path, step: Step, verb: str) -> None:
    """Without a journal nothing is swapped back: the services use the new database, which is live and proven."""
    with engine(tmp_path / "gone", api=2, migrate=0) as docker, impatient():
        swarm = site.with_settings(SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url)
        if step is Step.MIGRATE:  # the migration fails, so that --auto-undo would swap back
            swarm = swarm.with_settings(SWARM_MIGRATE_SERVICE="migrate")
        with read_only_after(step):
            ended = swarm.restore("--auto-undo")
        assert "is not finished" in ended.output
        assert "mount the volume again; then: ovia-backup restore --resume" in ended.output
        assert docker.replicas["api"] == 2
        assert site.content() == site.then
        docker.complete.add("migrate")
        ended = swarm.place.run("restore", verb)
        assert ended.code == 0, ended.output
        assert docker.replicas["api"] == 2
        ended_as(site, "new" if verb == "--resume" else "old")


# ------------------------------------------------------------------------------- what a kept database is called


@pytest.mark.exhaustive
@pytest.mark.parametrize("undone", thinned([False, True]))
def test_a_put_aside_database_is_not_called_the_one_before(site: Site, undone: bool) -> None:
    """An undo to it brings back the data that was put aside, not the database before the restore."""
    red = site.with_settings(HEALTH_URL=RED)
    if undone:
        assert site.restore().code == 0
        with killed_at(2, before=False):
            assert red.undo().killed
        ended = site.place.run("restore", "--abort")
    else:
        with mock.patch.object(services, "_HEALTH_SECONDS", 0.5):
            ended = red.restore("--auto-undo")
    kept = site.records[0].kept
    what = "what was live before it" if undone else "what was restored"
    stays = f"{what}, and was live for a while, stays as "
    assert f"{stays}{kept}; to make it live again: ovia-backup undo-restore --kept {kept}\n" in ended.output
    text = next(path for path in site.place.root.glob("restores/*.md") if "put back" in path.read_text()).read_text()
    assert f"{stays[0].upper()}{stays[1:]}`{kept}`: `ovia-backup undo-restore --kept` and this name make it" in text
    for said in (text, ended.output):
        assert "database before" not in said
    live = site.content()
    ended = site.undo("--kept", kept)
    assert ended.code == 0, ended.output
    assert site.content() == (site.now if undone else site.then) != live
    assert f"the database before is kept: {site.records[0].kept}; to go back to it: ovia-backup undo" in ended.output


def test_after_an_auto_undo_the_error_advises_no_undo(site: Site) -> None:
    """The health error advised an undo; the auto-undo did it, in a process that was killed meanwhile."""
    red = site.with_settings(HEALTH_URL=RED)
    with mock.patch.object(services, "_HEALTH_SECONDS", 0.5), killed_at(8, before=False):
        assert red.restore("--auto-undo").killed
    ended = red.place.run("restore", "--resume")
    assert "was not healthy" in failed(site, ended)
    ended_as(site, "old")
    assert "go back" not in site.records[0].fix
    assert "go back" not in ended.output


# ------------------------------------------------------------------------------- names that were changed by hand


@pytest.mark.exhaustive
@pytest.mark.parametrize("by_hand", thinned([False, True]))
@pytest.mark.parametrize("undone", thinned([False, True]))
def test_a_swap_whose_databases_are_gone_is_given_up(site: Site, tmp_path: Path, undone: bool, by_hand: bool) -> None:
    """An operator created the live database by hand. Without giving up, no other restore could begin."""
    with engine(tmp_path / "gone", api=2) as docker, impatient():
        swarm = site.with_settings(SWARM_APP_SERVICES="api", SWARM_DOCKER_URL=docker.url)
        if undone:
            assert swarm.restore().code == 0
        with each_step(Step.SWAP, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            assert (swarm.undo() if undone else swarm.restore()).killed
        assert docker.replicas == {"api": 0}
        _, new = site.databases
        away = f"{site.live.database}_away"
        sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", new, away)
        drop_live(site)
        sql_in_server(site, "CREATE DATABASE {}", site.live.database)
        execute(site.live, "CREATE TABLE by_hand (id int)")
        for command in (("--resume",), ("--abort",), ("--abort", "--yes-destroy", "another")):
            line = swarm.place.run("restore", *command).refused()
            assert "neither the old nor the new database is called" in line
            assert give_up_line(site) in line
            assert "give" in line
        if by_hand:
            (tmp_path / "gone").touch()
            line = swarm.place.run(*shlex.split(give_up_line(site))[1:]).output
            assert f"{give_up_line(site)}; where Docker does not come back: the same with --without-services" in line
        hands = ("--without-services",) if by_hand else ()
        ended = swarm.place.run(*shlex.split(give_up_line(site))[1:], *hands)
        assert "is called" in failed(site, ended)
        (tmp_path / "gone").unlink(missing_ok=True)
        assert docker.replicas == {"api": 0 if by_hand else 2}
        assert ("to be started by hand: docker service scale api=2" in ended.output) == by_hand
        record = site.records[0]
        assert record.outcome == "given up"
        [text] = [text for path in site.place.root.glob("restores/*.md") if "given up" in (text := path.read_text())]
        for said in (ended.output, text, record.error):
            assert "dropped, and is gone" not in said
            assert "could not be made from" not in said
        now = "live before" if undone else "to be live"
        assert f"is called {away} now" in " ".join(record.notes), (now, record.notes)
        assert site.databases == [site.live.database, away]
        execute(site.live, "INSERT INTO by_hand VALUES (1)")
        docker.replicas["api"] = 2
        assert swarm.restore().code == 0
        assert site.content() == site.then


def test_a_torn_swap_can_be_repaired_by_renaming(site: Site) -> None:
    with killed_at(3, before=False):
        assert site.restore().killed
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", site.live.database, f"{site.live.database}_away")
    assert "neither the old nor" in site.place.run("restore", "--resume").refused()
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", f"{site.live.database}_away", site.live.database)
    ended = site.place.run(*shlex.split(give_up_line(site))[1:])  # puts back: the databases have their names again
    assert ended.code == 0, ended.output
    assert site.records[0].outcome == "put back"
    ended_as(site, "old")
    assert site.databases == [site.live.database]


@pytest.mark.exhaustive
def test_a_torn_swap_without_a_live_name_is_given_up(site: Site) -> None:
    with killed_at(3, before=False):
        assert site.restore().killed
    old, new = site.databases
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", old, f"{old}_away")
    ended = site.place.run(*shlex.split(give_up_line(site))[1:])
    assert f"what was live before is called {old}_away now" in ended.output
    assert f"what was to be live is called {new} now" in ended.output
    assert "restore BACKUP --new-host" in ended.output
    assert site.databases == [f"{old}_away", new]
    assert site.restore("--new-host", confirm=False).code == 0
    assert site.content() == site.then


@pytest.mark.parametrize("away", thinned([False, True]))
def test_a_manual_rename_keeps_the_live_database(site: Site, away: bool) -> None:
    """Killed after the swap; an operator swaps the names back by hand. The new database may have been written to."""
    red = site.with_settings(HEALTH_URL=RED)
    with killed_at(5, before=False):
        assert red.restore().killed
    execute(site.live, "INSERT INTO people (id, name) VALUES (7000, 'since the swap')")
    journal = RestoreFolder(site.place.catalog).unfinished()
    assert journal is not None
    order = journal.order
    stays = f"{site.live.database}_away" if away else order.incoming
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", site.live.database, stays)
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", order.kept, site.live.database)
    if away:
        with mock.patch.object(services, "_HEALTH_SECONDS", 0.5):
            line = red.place.run("restore", "--resume").refused()
        assert "what was live before was put back, by renaming" in line
        assert "Next: put everything back: ovia-backup restore --abort" in line
    ended = red.place.run("restore", "--abort")
    assert ended.code == 0, ended.output
    assert f"what was live for a while stays as {stays}" in ended.output
    assert "undo-restore --kept" not in ended.output  # undo-restore does not know this name
    ended_as(site, "old")
    assert one(site.live.to(stays), "SELECT count(*) FROM people WHERE id = 7000") == 1
    assert site.databases == sorted([site.live.database, stays])
    assert (
        stays not in site.place.system.restorations.kept_databases.copies_left()
    )  # the doctor does not advise to drop it
    [rename] = set(re.findall("ALTER DATABASE .* RENAME TO .*", ended.output))
    execute(site.live, rename)
    assert site.place.run("undo-restore", "--list").output.count("\n") == 1
    assert site.undo().code == 0
    assert one(site.live, "SELECT count(*) FROM people WHERE id = 7000") == 1


@pytest.mark.exhaustive
def test_renaming_back_by_hand_keeps_what_was_live(site: Site) -> None:
    """The journal has the name that the new database was to get when swapped back, but it never got it."""
    with killed_at(4, before=False):
        assert site.restore().killed
    with killed_at(1, before=False):
        assert site.place.run("restore", "--abort").killed
    journal = RestoreFolder(site.place.catalog).unfinished()
    assert journal is not None
    assert journal.data(SwapData).was_live
    order = journal.order
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", site.live.database, order.incoming)
    sql_in_server(site, "ALTER DATABASE {} RENAME TO {}", order.kept, site.live.database)
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert f"what was live for a while stays as {order.incoming}" in ended.output
    assert site.records[0].kept == order.incoming
    assert site.databases == [site.live.database, order.incoming]
    ended_as(site, "old")


# ------------------------------------------------------------------------------------ commands that can be pasted


def next_of(ended: Ended) -> str:
    """The last printed remedy."""
    return str(re.findall(r"Next: (.*)", ended.output)[-1])


def pasted(command: str, folder: Path) -> list[str]:
    """The arguments that bash parses from a command; assert that the command changes nothing in the folder."""
    before = sorted(folder.iterdir())
    script = f"ovia-backup() {{ printf '%s\\0' \"$@\"; }}; {command}"
    words = subprocess.run(("bash", "-c", script), cwd=folder, capture_output=True, check=True).stdout
    assert sorted(folder.iterdir()) == before
    return os.fsdecode(words).split("\0")[:-1]


@pytest.mark.parametrize(
    "name", ["$(touch pwned2).dump", "'; touch pwned; '.dump", "--help", "two  blanks and\na line.dump", "it's\t.dump"]
)
def test_the_advice_for_a_damaged_backup_can_be_pasted(site: Site, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "else where"
    folder.mkdir()
    damaged = folder / name
    damaged.write_bytes(site.backup.path.read_bytes()[:-500])
    ended = site.place.run("restore", str(damaged), "--new-host", "--yes-destroy", site.live.database)
    assert ended.code == 1
    [command] = re.findall(r"or: (ovia-backup restore .*)", next_of(ended))
    assert pasted(command, folder) == ["restore", str(damaged), "--mode", "new", "--even-if-damaged"]
    drilled = site.place.run("drill", str(damaged))
    assert drilled.code == 1
    assert site.content() == site.now
    for said in (next_of(drilled), site.place.run("status").output):
        for command in re.findall(r"then: (ovia-backup drill .*)", said):
            assert pasted(command, folder) == ["drill", str(damaged)]


@pytest.mark.exhaustive
def test_the_backup_of_a_damaged_copy_is_named_by_path(site: Site, tmp_path: Path) -> None:
    elsewhere = tmp_path / "$(touch pwned).dump"
    elsewhere.write_bytes(site.backup.path.read_bytes())

    prove = Proof.prove

    def of_a_loss(self: Proof, copy: target.Copy) -> CopyReader:
        execute(copy.connection, "DELETE FROM identities")
        return prove(self, copy)

    with mock.patch.object(Proof, "prove", of_a_loss):
        ended = site.place.run("restore", str(elsewhere), "--new-host", "--yes-destroy", site.live.database)
    [command] = re.findall(r"or see: (ovia-backup drill .*)", next_of(ended))
    assert pasted(command, tmp_path / "backups") == ["drill", str(elsewhere)]


# ------------------------------------------------------------------------------------ the role cannot log in


@pytest.mark.parametrize("password", ["", "wr0ng"])
def test_a_wrong_restore_password_names_its_own_variable(site: Site, password: str) -> None:
    role = f"restorer_{site.live.database}"
    sql_in_server(site, "CREATE ROLE {} LOGIN PASSWORD 'right'", role)
    try:
        settings = {"RESTORE_POSTGRES_HOST": "127.0.0.1", "RESTORE_POSTGRES_USER": role}
        his = site.with_settings(**settings, **({"RESTORE_POSTGRES_PASSWORD": password} if password else {}))
        for ended in (
            his.restore(),
            his.undo(),
            his.place.run("undo-restore", "--list"),
            his.place.run("drill", "--where", "database"),
            his.place.run("doctor"),
        ):
            [advice] = set(re.findall(r".*RESTORE_POSTGRES_PASSWORD_FILE.*", ended.output)) or [ended.output]
            assert ("set" if not password else f"compare RESTORE_POSTGRES_USER={role} and") in advice
            assert "RESTORE_POSTGRES_PASSWORD or RESTORE_POSTGRES_PASSWORD_FILE" in advice
            assert not re.search(r"PGPASSWORD|\bPOSTGRES_(USER|PASSWORD)", advice)
        elsewhere = his.with_settings(RESTORE_POSTGRES_HOST="no-such-host.invalid")
        assert ": RESTORE_POSTGRES_HOST is wrong" in elsewhere.restore().refused()
    finally:
        sql_in_server(site, "DROP ROLE {}", role)


def test_the_dump_roles_variables_are_named_if_it_restores(site: Site) -> None:
    assert site.place.system.restore_connection.variables == site.place.system.connection.variables == Variables()
    given = site.with_settings(RESTORE_POSTGRES_PASSWORD="x").place.system.restore_connection
    assert given.variables.password.startswith("RESTORE_POSTGRES_PASSWORD")
    assert given.variables.user == "POSTGRES_USER"


# ----------------------------------------------------------------------------------------- signals at the terminal


@pytest.mark.parametrize("number", thinned([signal.SIGINT, signal.SIGTERM]))
def test_a_signal_after_the_end_points_to_the_history(site: Site, number: signal.Signals) -> None:
    with mock.patch.object(restore_dialogue, "print_table", side_effect=lambda *_, **__: os.kill(os.getpid(), number)):
        ended = site.restore()
    assert ended.code == 128 + number
    assert "nothing is left unfinished" not in ended.output
    assert "for its outcome: ovia-backup restore --history" in ended.output.splitlines()[-1]
    assert site.content() == site.then
    assert site.place.run("restore", "--history").output.count("done") == 1


def test_interrupting_the_question_says_nothing_was_done(site: Site) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for end in (KeyboardInterrupt, EOFError):
        with (
            mock.patch.object(sys, "stdin", Terminal()),
            mock.patch.object(click.termui, "visible_prompt_func", side_effect=end),
        ):
            ended = site.restore(confirm=False)
        assert (ended.code, ended.output.splitlines()[-1]) == (1, "ovia-backup: nothing was done")
    assert site.records == []
    assert site.content() == site.now


# ------------------------------------------------------------------------------------------ refused at once


@pytest.mark.parametrize("name", ["x" * 64, "ü" * 32, "a\udcff"])
def test_an_impossible_database_name_is_refused_at_once(site: Site, name: str) -> None:
    line = site.restore("--mode", "new", "--into", name).refused()
    assert ("64 bytes, and PostgreSQL takes 63" if len(name) > 2 else "not UTF-8") in line
    assert site.databases == [site.live.database]


@pytest.mark.exhaustive
def test_the_cause_of_a_failed_abort_is_printed_once(site: Site) -> None:
    with killed_at(3, before=False):
        assert site.restore().killed
    away = site.with_settings(RESTORE_POSTGRES_HOST="/nowhere")
    with mock.patch.object(runner, "refuse_other_server"):
        line = away.place.run("restore", "--abort").refused()
    for parenthesis in re.findall(r"\([^()]*No such file[^()]*", line):
        assert line.count(parenthesis) == 1, line
    assert "No such file" in line
    assert site.place.run("restore", "--abort").code == 0


@pytest.mark.parametrize("command", ["restore", "drill"])
def test_a_file_name_that_is_not_utf8_is_refused_at_once(site: Site, tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad\udcff.dump"
    path.write_bytes(site.backup.path.read_bytes())
    line = site.place.run(command, str(path)).refused()
    assert "is not UTF-8" in line
    [there] = re.findall(r"rename it: mv (.*) NEW\.dump", line)
    assert pasted(f"ovia-backup {there}", tmp_path) == [str(path)]


@pytest.mark.parametrize(("form", "what"), [("plain", "a plain SQL dump"), ("tar", "a tar archive")])
@pytest.mark.parametrize("old", thinned([False, True]))
def test_another_dump_format_is_named_with_its_command(
    site: Site, tmp_path: Path, form: str, what: str, old: bool
) -> None:
    path = tmp_path / "it's another.dump"
    database = site.live.conninfo()
    subprocess.run(
        (site.bin_dir / "pg_dump", f"--format={form}", f"--file={path}", f"--dbname={database}"),
        env={**os.environ, **site.live.environment()},
        check=True,
    )
    if old:
        os.utime(path, (1.7e9, 1.7e9))
    line = site.place.run("restore", str(path)).refused()
    assert f"is {what}" in line
    assert "--even-if-damaged" not in line
    command = re.sub(r"^.*createdb NEW && (psql|pg_restore)", "ovia-backup", line)
    assert pasted(command, tmp_path)[-1].endswith(str(path))


@pytest.mark.parametrize(("content", "words"), [(b"", "failed before it began"), (b"\0" * 900, "was overwritten")])
def test_an_empty_or_zeroed_file_keeps_its_own_error(site: Site, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "nothing.dump"
    path.write_bytes(content)
    os.utime(path, (1.7e9, 1.7e9))
    assert words in site.place.run("restore", str(path)).refused()

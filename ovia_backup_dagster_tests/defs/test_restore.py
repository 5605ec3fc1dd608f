"""``restore_job``: what the UI launches is what the command line does, and refuses what it refuses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.test_utils import create_run_for_test
from psycopg import sql

from ovia_backup_dagster import cli
from ovia_backup_dagster.core.naming import before_name
from ovia_backup_dagster.core.restoration import Mode, StopServices
from ovia_backup_dagster.defs import restore
from ovia_backup_dagster.defs.configs import RestoreAction, RestoreConfig, RestoreMode
from ovia_backup_dagster.postgres.client import Connection
from ovia_backup_dagster.postgres.kept import kept
from ovia_backup_dagster.restoration.plan import Wishes
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import DAILY_JOB, KEPT_JOB, Location, retries
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.restoration.test_killed import killed_at

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

JOB = "restore_job"
OP = "restore"


def run(location: Location, **config: object) -> dg.ExecuteInProcessResult:
    return location.run(JOB, config={"ops": {OP: {"config": config}}})


def rows(database: Connection) -> int:
    with psycopg.connect(
        host=database.host, port=database.port, dbname=database.database, user=database.user
    ) as session:
        row = session.execute("SELECT count(*) FROM people").fetchone()
    assert row is not None
    return int(row[0])


def output(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    [event] = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_OUTPUT]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def refused(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    [event] = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_FAILURE]
    failed = event.step_failure_data.user_failure_data
    assert failed is not None
    assert failed.description is not None
    return failed.description


@pytest.fixture
def backed_up(location: Location, database: Connection, server: PortCluster):  # type: ignore[no-untyped-def]
    """A proven backup, and a live database that has changed since. What restores keep is dropped in the end."""
    assert location.run(DAILY_JOB).success
    execute(database, "TRUNCATE people CASCADE")
    yield location
    with admin(server) as session:
        for each in kept(database, database.database):
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(each.name)))


def test_the_launchpads_default_only_plans(backed_up: Location, database: Connection) -> None:
    result = run(backed_up)
    assert result.success
    assert "swap names" in str(output(result)["plan"])
    assert rows(database) == 0


def test_without_the_databases_name_nothing_is_done(backed_up: Location, database: Connection) -> None:
    assert "--yes-destroy" in refused(run(backed_up, action="restore"))
    assert "--yes-destroy" in refused(run(backed_up, action="restore", confirm="another"))
    assert "--yes-destroy" in refused(run(backed_up, action="restore", mode="drop"))
    assert rows(database) == 0
    assert kept(database, database.database) == []


def test_what_is_missing_is_said_as_the_launchpad_has_it(backed_up: Location, database: Connection) -> None:
    assert f"confirm: {database.database} in the launchpad" in refused(run(backed_up, action="restore"))


def test_a_restore_is_never_retried(backed_up: Location, database: Connection) -> None:
    """What it needs after a failure is a person, though what failed may pass."""
    folder = backed_up.system.restorations.folder
    folder.prepare()
    with folder.lock("another restore", datetime.now(UTC)):
        result = run(backed_up, action="restore", confirm=database.database)
    assert retries(result) == 0
    assert "another restore" in refused(result)


def test_nor_is_its_run_launched_anew_where_dagster_does_so(location: Location) -> None:
    """With the confirmation of another day's plan."""
    tags = run(location, action="restore").dagster_run.tags
    assert tags[MAX_RETRIES_TAG] == "0"
    retried = {"run_retries": {"enabled": True, "max_retries": 3}}
    with dg.DagsterInstance.ephemeral(settings=retried) as instance:

        def again(tags: Mapping[str, str]) -> bool:
            run = create_run_for_test(instance, JOB, status=dg.DagsterRunStatus.FAILURE, tags=tags)
            return bool(auto_reexecution_should_retry_run(instance, run, RunFailureReason.RUN_EXCEPTION))

        assert again({})
        assert not again(tags)


def test_undone_to_the_one_that_is_named(backed_up: Location, database: Connection) -> None:
    for _ in range(2):
        assert run(backed_up, action="restore", confirm=database.database).success
    newest, oldest = (each.name for each in kept(database, database.database))
    assert "nobody" in refused(run(backed_up, action="undo", kept="nobody", confirm=database.database))
    assert run(backed_up, action="undo", kept=oldest, confirm=database.database).success
    assert rows(database) == 0
    assert newest in [each.name for each in kept(database, database.database)]


def test_restored_and_undone(backed_up: Location, database: Connection) -> None:
    result = run(backed_up, action="restore", confirm=database.database)
    assert result.success, refused(result)
    assert rows(database) > 0
    shown = output(result)
    assert shown["outcome"] == "done"
    assert Path(str(shown["record"])).is_file()
    assert "rows_and_content_equal" in str(shown["page"])
    assert run(backed_up, action="undo", confirm=database.database).success
    assert rows(database) == 0
    # Whoever reaches the UI must not have any file of the host opened.
    assert "no backup called" in refused(run(backed_up, action="restore", backup="/etc/passwd"))
    assert "nothing to resume" in refused(run(backed_up, action="resume"))
    assert "nothing to abort" in refused(run(backed_up, action="abort"))


@pytest.mark.parametrize(("action", "outcome"), [("resume", "done"), ("abort", "put back")])
def test_what_a_killed_restore_had_begun_is_finished_or_put_back(
    backed_up: Location, database: Connection, bin_dir: Path, tmp_path: Path, action: str, outcome: str
) -> None:
    """Whoever had begun it: here the command line, whose process was killed when its copy was to go live."""
    place = place_for(database, bin_dir, backed_up.settings.backup_dir, tmp_path)
    with killed_at(3, before=False):
        assert place.run("restore", "latest", "--yes-destroy", database.database).killed
    folder = backed_up.system.restorations.folder
    assert folder.unfinished() is not None
    for instead in ("restore", "undo"):
        refused(run(backed_up, action=instead, confirm=database.database))
    assert rows(database) == 0
    result = run(backed_up, action=action)
    assert result.success, refused(result)
    assert output(result)["outcome"] == outcome
    assert folder.unfinished() is None
    assert next(folder.newest_first()).outcome == outcome
    assert (rows(database) > 0) == (action == "resume")
    found = [each.name for each in kept(database, database.database)]
    assert found == ([output(result)["kept"]] if action == "resume" else [])


def test_all_that_the_command_line_offers_the_launchpad_offers(new_location: NewLocation) -> None:
    """And what is wished there is what is planned: no option stays on the way."""
    config = RestoreConfig(
        action=RestoreAction.restore,
        confirm="sample",
        backup="a.dump",
        kept="sample_before",
        mode=RestoreMode.new,
        into="look",
        jobs=7,
        stop_services_first=True,
        replicas={"api": 2},
        new_host=True,
        create_roles=True,
        privileged_roles=["boss"],
        even_if_damaged=True,
        auto_undo=True,
        without_services=True,
    )
    default = RestoreConfig()
    assert [name for name in RestoreConfig.model_fields if getattr(config, name) == getattr(default, name)] == []
    system = new_location().system
    wishes = Wishes(
        backup="a.dump",
        anywhere=False,
        mode=Mode.NEW,
        into="look",
        jobs=7,
        stop_services=StopServices.FIRST,
        replicas={"api": 2},
        new_host=True,
        create_roles=True,
        privileged_roles=("boss",),
        even_if_damaged=True,
        auto_undo=True,
    )
    assert restore._wishes(config, system) == wishes
    assert [each.name for each in fields(Wishes) if getattr(wishes, each.name) == getattr(Wishes(), each.name)] == []
    # What is left as it is, the settings say, as on the command line.
    assert restore._wishes(default, system) == Wishes(anywhere=False, jobs=len(os.sched_getaffinity(0)))
    assert restore._wishes(default, new_location(RESTORE_JOBS="5").system).jobs == 5
    elsewhere = {
        "only_plan": "action",
        "resume": "action",
        "abort": "action",
        "confirmation": "confirm",
        "stop_services": "stop_services_first",
        "scale": "replicas",
    }
    # The records stand in each run's metadata; JSON is for programs.
    offered = {str(each.name) for each in cli.restore.params} - {"history", "as_json"}
    assert {elsewhere.get(name, name) for name in offered} == RestoreConfig.model_fields.keys() - {"kept"}


def test_what_is_kept_is_announced_and_then_dropped(
    backed_up: Location, database: Connection, server: PortCluster, new_location: NewLocation, people: Receiver
) -> None:
    """Its age is in its name: it becomes old by being renamed."""
    location = new_location(BACKUP_NOTIFY_URLS=people.url)
    assert run(location, action="restore", confirm=database.database).success

    def becomes(days: float) -> str:
        [now] = kept(database, database.database)
        name = before_name(database.database, datetime.now(UTC) - timedelta(days=days))
        with admin(server) as session:
            session.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(now.name), sql.Identifier(name))
            )
        return name

    def expire() -> list[str]:
        assert location.run(KEPT_JOB).success
        return [each.name for each in kept(database, database.database)]

    name = becomes(11)
    assert expire() == [name]
    assert people.titles == []
    name = becomes(100)
    # Announced first, however old it is; then it has a day.
    assert expire() == expire() == [name]
    assert people.titles == [f"Ovia backup: database {name} will be dropped"]
    [note] = (location.settings.backup_dir / "restores").glob(".announced-*")
    note.write_text((datetime.now(UTC) - timedelta(days=1, minutes=1)).isoformat())
    assert expire() == []
    assert people.titles[1:] == [f"Ovia backup: database {name} was dropped"]


def test_one_that_nobody_could_be_told_of_stays(backed_up: Location, database: Connection, server: PortCluster) -> None:
    assert run(backed_up, action="restore", confirm=database.database).success
    [now] = kept(database, database.database)
    name = before_name(database.database, datetime.now(UTC) - timedelta(days=100))
    with admin(server) as session:
        session.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(now.name), sql.Identifier(name))
        )
    for _ in range(2):
        assert backed_up.run(KEPT_JOB).success
    assert [each.name for each in kept(database, database.database)] == [name]
    assert not list((backed_up.settings.backup_dir / "restores").glob(".announced-*"))

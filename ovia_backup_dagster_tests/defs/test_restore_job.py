"""``restore_job`` does what the command line does, and refuses the same."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import RunFailureReason
from dagster._core.execution.api import execute_run
from dagster._core.execution.plan.resume_retry import ReexecutionStrategy
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import MAX_RETRIES_TAG, PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._core.test_utils import create_run_for_test, in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from psycopg import sql

from ovia_backup_dagster.cli.restore import restore_command
from ovia_backup_dagster.core.naming import before_name
from ovia_backup_dagster.defs import restore_job
from ovia_backup_dagster.defs.run_configs import RestoreAction, RestoreConfig, RestoreMode
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.replaced_databases import kept
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, StopServices
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import DAILY_JOB, KEPT_JOB, Location, retries, settle
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import killed_at
from ovia_backup_dagster_tests.support.signed_logs import key_settings

pytestmark = [
    pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning"),
    # Dagster's own code reads it when it loads a code location.
    pytest.mark.filterwarnings("ignore:Property `ScheduleDefinition.environment_vars`:DeprecationWarning"),
]

JOB = "restore_job"
OP = "restore"


def run(location: Location, **config: object) -> dg.ExecuteInProcessResult:
    return location.run(JOB, config={"ops": {OP: {"config": config}}})


def word(location: Location, action: str = "plan", **config: object) -> str:
    """The confirmation word that a plan with these options prints."""
    planned = run(location, action=action, **config)
    assert planned.success
    return str(output(planned)["confirm"])


def confirmed(location: Location, action: str, **config: object) -> dg.ExecuteInProcessResult:
    """Plan the action, then do it with the plan's word."""
    plan = {"restore": "plan", "undo": "plan_undo"}[action]
    return run(location, action=action, confirm=word(location, plan, **config), **config)


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


def refused(result: dg.ExecuteInProcessResult | dg.JobExecutionResult) -> str:
    assert not result.success
    [event] = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_FAILURE]
    failed = event.step_failure_data.user_failure_data
    assert failed is not None
    assert failed.description is not None
    return failed.description


@pytest.fixture
def backed_up(location: Location, database: Connection, server: PortCluster):  # type: ignore[no-untyped-def]
    """A verified backup, and a live database that changed since. What restores keep is dropped at the end."""
    assert location.run(DAILY_JOB).success
    execute(database, "TRUNCATE people CASCADE")
    yield location
    with admin(server) as session:
        for each in kept(database, database.database):
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(each.name)))


def test_the_launchpad_only_plans_by_default(backed_up: Location, database: Connection) -> None:
    result = run(backed_up)
    assert result.success
    assert "swap names" in str(output(result)["plan"])
    assert rows(database) == 0


def test_a_plan_shows_all_obstacles_and_fails(
    backed_up: Location, new_location: NewLocation, database: Connection, server: PortCluster
) -> None:
    """The failure's page shows the plan, its duration and what is lost; it gives no confirmation word."""
    role = f"weak_{database.database}"
    execute(database, f"CREATE ROLE {role} LOGIN", f"GRANT pg_read_all_data TO {role}")
    weak = new_location(RESTORE_POSTGRES_USER=role)
    try:
        for action in ("plan", "restore"):
            result = run(weak, action=action)
            line = refused(result)
            assert "2 obstacles stand in the way: 1. role " in line
            assert "--plan" not in line
            [event] = [e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_FAILURE]
            failed = event.step_failure_data.user_failure_data
            assert failed is not None
            shown = str(failed.metadata["plan"].value)
            for words in (
                "Obstacle 1 of 2: ",
                "it does not have CREATEDB. Next: as a superuser: ALTER ROLE ",
                "Obstacle 2 of 2: ",
                "does not have its rights. Next: as a superuser: GRANT ",
                "what was written since the backup, ",
            ):
                assert words in shown, shown
            assert re.search(r"time\W+unknown: no drill has passed yet", shown)
            assert plans(weak) == []
        assert rows(database) == 0
    finally:
        execute(database, f"DROP ROLE {role}")


def test_without_the_word_of_a_plan_nothing_is_done(backed_up: Location, database: Connection) -> None:
    for action in ("restore", "undo"):
        if action == "undo":
            assert confirmed(backed_up, "restore").success
            execute(database, "TRUNCATE people CASCADE")
        kept_before = kept(database, database.database)
        assert "no word was given" in refused(run(backed_up, action=action))
        # A copied text could carry the database's name, which would confirm it on any day.
        for typed in (database.database, "another", "../../daily", "x" * 500, "\udcff", f"{database.database}-x"):
            line = refused(run(backed_up, action=action, confirm=typed))
            assert "is not the word of a pending plan" in line
            assert "\n" not in line
            assert "action: plan (for an undo: plan_undo)" in line
        assert rows(database) == 0
        assert kept(database, database.database) == kept_before
    assert "no word was given" in refused(run(backed_up, action="restore", mode="drop"))


@pytest.mark.exhaustive
def test_the_word_of_a_plan_is_valid_once(backed_up: Location, database: Connection) -> None:
    given = word(backed_up)
    assert re.fullmatch(rf"{database.database}-\d{{8}}T\d{{6}}Z", given)
    [kept_plan] = plans(backed_up)
    assert kept_plan.stat().st_mode & 0o777 == 0o600
    assert run(backed_up, action="restore", confirm=given).success
    assert plans(backed_up) == []
    execute(database, "TRUNCATE people CASCADE")
    assert f"{given} is not the word of a pending plan" in refused(run(backed_up, action="restore", confirm=given))
    back = word(backed_up, "plan_undo")
    assert back != given
    assert run(backed_up, action="undo", confirm=back).success
    assert back in refused(run(backed_up, action="undo", confirm=back))


def plans(location: Location) -> list[Path]:
    return sorted((location.settings.backup_dir / "restores").glob(".plan-*"))


@pytest.mark.exhaustive
def test_a_word_is_valid_for_its_plans_options_only(backed_up: Location, database: Connection) -> None:
    """The error says what differs, and the word stays valid for its own plan."""
    given = word(backed_up)
    newer = backed_up.dump()
    for options, said in (
        ({}, f"backup: .*then, {newer} now"),
        ({"mode": "drop"}, "mode: swap then, drop now"),
        ({"auto_undo": True}, "auto_undo: False then, True now"),
        ({"jobs": 7}, "jobs: .* then, 7 now"),
        ({"create_roles": True}, "create_roles: False then"),
        ({"stop_services_first": True}, "stop_services: at-swap then, first now"),
    ):
        line = refused(run(backed_up, action="restore", confirm=given, **options))
        assert f"this is not what the plan {given} showed" in line
        assert re.search(said, line)
    assert rows(database) == 0
    backed_up.verify(newer)
    shown = next(b for b in backed_up.catalog.backups() if b.path != newer.path)
    # Nor is the word valid for another file of that name.
    settle(shown.path)
    line = refused(run(backed_up, action="restore", confirm=given, backup=shown.path.name))
    assert f"the file of {shown} is a different one now" in line
    os.utime(shown.path, ns=(shown.mtime_ns, shown.mtime_ns))
    result = run(backed_up, action="restore", confirm=given, backup=shown.path.name)
    assert result.success, refused(result)


@pytest.mark.exhaustive
def test_a_word_is_valid_for_its_plans_database_only(backed_up: Location, database: Connection) -> None:
    """For the database that was live at the plan, and for the kept one that the undo was to swap back."""
    given = word(backed_up)
    assert confirmed(backed_up, "restore").success
    assert "live_oid" in refused(run(backed_up, action="restore", confirm=given))
    first = word(backed_up, "plan_undo")
    assert confirmed(backed_up, "restore").success
    line = refused(run(backed_up, action="undo", confirm=first))
    assert "incoming: " in line
    assert "live_oid" in line
    assert rows(database) > 0


@pytest.mark.exhaustive
def test_a_word_expires_after_an_hour(backed_up: Location, database: Connection) -> None:
    given = word(backed_up)
    [plan] = plans(backed_up)
    content = json.loads(plan.read_text())
    for age in (timedelta(minutes=61), timedelta(minutes=-10)):
        content["shown_at"] = (datetime.now(UTC) - age).isoformat()
        plan.write_text(json.dumps(content))
        assert "is too old" in refused(run(backed_up, action="restore", confirm=given))
    content["shown_at"] = (datetime.now(UTC) - timedelta(minutes=59)).isoformat()
    plan.write_text(json.dumps(content))
    # The next plan sweeps old plan files, whatever they are.
    stale, link = plan.with_name(".plan-old"), plan.with_name(".plan-link")
    stale.write_text("?")
    settle(stale, timedelta(hours=2))
    link.symlink_to("/etc/passwd")
    os.utime(link, (0, 0), follow_symlinks=False)
    other = word(backed_up)
    assert other != given
    assert [path.name for path in plans(backed_up)] == sorted((plan.name, f".plan-{other}"))
    assert run(backed_up, action="restore", confirm=given).success


@pytest.mark.parametrize("what", thinned(["fifo", "link", "folder", "huge", "nonsense", "deep"], daily=2))
def test_a_forged_plan_is_refused_in_a_line(backed_up: Location, database: Connection, what: str) -> None:
    """The run does not hang, and follows no link."""
    given = word(backed_up)
    [plan] = plans(backed_up)
    content = plan.read_bytes()
    plan.unlink()
    if what == "fifo":
        os.mkfifo(plan)
    elif what == "link":
        plan.with_name("elsewhere").write_bytes(content)
        plan.symlink_to("elsewhere")
    elif what == "folder":
        plan.mkdir()
    else:
        forged = {"huge": content + b" " * 2**21, "nonsense": b"{}", "deep": b"[" * 100_000}
        plan.write_bytes(forged[what])
    line = refused(run(backed_up, action="restore", confirm=given))
    assert str(plan) in line or plan.name in line
    assert "\n" not in line
    assert rows(database) == 0


def test_plans_of_the_same_second_have_different_words(backed_up: Location, database: Connection) -> None:
    restorations = backed_up.system.restorations
    plan = restorations.planner.plan(Wishes(), "test", None, datetime.now(UTC))
    assert len({restorations.offer(plan) for _ in range(3)}) == 3


def test_a_restore_is_never_retried(backed_up: Location, database: Connection) -> None:
    """A restore that failed needs a person, even if the failure is transient."""
    folder, given = backed_up.system.restorations.folder, word(backed_up)
    with folder.lock("another restore", datetime.now(UTC)):
        result = run(backed_up, action="restore", confirm=given)
    assert retries(result) == 0
    assert "another restore" in refused(result)


def test_dagsters_run_retries_do_not_repeat_a_restore(location: Location) -> None:
    """A retry would use the confirmation of another day's plan."""
    tags = run(location, action="restore").dagster_run.tags
    assert tags[MAX_RETRIES_TAG] == "0"
    retried = {"run_retries": {"enabled": True, "max_retries": 3}}
    with dg.DagsterInstance.ephemeral(settings=retried) as instance:

        def again(tags: Mapping[str, str]) -> bool:
            run = create_run_for_test(instance, JOB, status=dg.DagsterRunStatus.FAILURE, tags=tags)
            return bool(auto_reexecution_should_retry_run(instance, run, RunFailureReason.RUN_EXCEPTION))

        assert again({})
        assert not again(tags)


@pytest.fixture
def reexecuted(
    backed_up: Location, disk_instance: dg.DagsterInstance
) -> Iterator[Callable[..., dg.JobExecutionResult]]:
    """Re-execute a run as the UI's "Re-execute all" does, and return the result."""
    backed_up.instance = disk_instance
    origin = LoadableTargetOrigin(module_name="ovia_backup_dagster.definitions", attribute="defs")
    with in_process_test_workspace(backed_up.instance, origin) as workspace:
        [location] = workspace.code_locations
        [repository] = location.get_repositories().values()

        def again(job: str, before: dg.ExecuteInProcessResult, **tags: str) -> dg.JobExecutionResult:
            parent = backed_up.instance.get_run_by_id(before.run_id)
            assert parent is not None
            made = backed_up.instance.create_reexecuted_run(
                request_context=workspace,
                parent_run=parent,
                code_location=location,
                remote_job=repository.get_full_job(job),
                strategy=ReexecutionStrategy.ALL_STEPS,
                use_parent_run_tags=True,
                extra_tags=tags,
            )
            return execute_run(InMemoryJob(backed_up.job(job)), made, backed_up.instance)

        yield again


@pytest.mark.exhaustive
def test_re_execution_does_not_change_the_live_database(
    backed_up: Location, database: Connection, reexecuted: Callable[..., dg.JobExecutionResult]
) -> None:
    """Not even if its word is still valid, as after a run that was refused."""
    given = word(backed_up)
    with backed_up.system.restorations.folder.lock("another restore", datetime.now(UTC)):
        failed = run(backed_up, action="restore", confirm=given)
    line = refused(reexecuted(JOB, failed))
    assert f"this run repeats run {failed.run_id}, and restore is never repeated" in line
    assert "Next: launch restore_job from its Launchpad, first with action: plan" in line
    assert "\n" not in line
    assert rows(database) == 0
    for action in ("undo", "resume", "abort", "restore"):
        mode = {"mode": "new"} if action == "restore" else {}
        assert f"and {action} is never repeated" in refused(reexecuted(JOB, run(backed_up, action=action, **mode)))
    # A plan changes nothing, so it may be repeated, and prints its own word.
    again = reexecuted(JOB, run(backed_up))
    assert again.success
    assert run(backed_up, action="restore", confirm=given).success


@pytest.mark.parametrize("tag", [PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG])
def test_a_run_tagged_as_repeated_changes_nothing(location: Location, tag: str) -> None:
    config = {"ops": {OP: {"config": {"action": "resume"}}}}
    line = refused(location.run(JOB, config=config, tags={tag: "another"}))
    assert "this run repeats run another" in line


@pytest.mark.exhaustive
def test_dropping_replaced_databases_may_be_repeated(
    backed_up: Location, database: Connection, reexecuted: Callable[..., dg.JobExecutionResult]
) -> None:
    """The job decides again, as it does every day on schedule, and drops only what was announced a day before."""
    assert confirmed(backed_up, "restore").success
    assert reexecuted(KEPT_JOB, backed_up.run(KEPT_JOB)).success
    assert len(kept(database, database.database)) == 1


@pytest.mark.exhaustive
def test_an_undo_swaps_to_the_named_database(backed_up: Location, database: Connection) -> None:
    for _ in range(2):
        assert confirmed(backed_up, "restore").success
    newest, oldest = (each.name for each in kept(database, database.database))
    for action in ("plan_undo", "undo"):
        assert "nobody" in refused(run(backed_up, action=action, kept="nobody"))
    # The word for the newest database is not valid for another.
    given = word(backed_up, "plan_undo")
    assert f"incoming: {newest} then, {oldest} now" in refused(
        run(backed_up, action="undo", kept=oldest, confirm=given)
    )
    assert confirmed(backed_up, "undo", kept=oldest).success
    assert rows(database) == 0
    assert newest in [each.name for each in kept(database, database.database)]


def test_a_restore_is_undone(backed_up: Location, database: Connection) -> None:
    result = confirmed(backed_up, "restore")
    assert result.success, refused(result)
    assert rows(database) > 0
    shown = output(result)
    assert shown["outcome"] == "done"
    assert Path(str(shown["record"])).is_file()
    assert "rows_and_content_equal" in str(shown["page"])
    assert "is live again" in str(output(run(backed_up, action="plan_undo"))["plan"])
    assert rows(database) > 0
    assert confirmed(backed_up, "undo").success
    assert rows(database) == 0
    # A user of the UI must not be able to open arbitrary files of the host.
    assert "no backup called" in refused(run(backed_up, action="restore", backup="/etc/passwd"))
    assert "nothing to resume" in refused(run(backed_up, action="resume"))
    assert "nothing to abort" in refused(run(backed_up, action="abort"))


def test_tables_are_copied_without_a_word(backed_up: Location, database: Connection) -> None:
    """They replace nothing."""
    result = run(backed_up, action="restore", tables=["people"])
    assert result.success, refused(result)
    assert rows(database) == 0
    page = str(output(result)["page"])
    assert "200 of them are missing now" in page
    assert "No other table was touched" in page
    both = run(backed_up, action="restore", tables=["people"], mode="drop")
    assert "are for whole databases, and exclude tables" in refused(both)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("action", "outcome"), thinned([("resume", "done"), ("abort", "put back")]))
def test_a_killed_restore_is_resumed_or_aborted(
    backed_up: Location, database: Connection, bin_dir: Path, tmp_path: Path, action: str, outcome: str
) -> None:
    """Also a restore that the command line began and that was killed when its copy was about to go live."""
    place = place_for(database, bin_dir, backed_up.settings.backup_dir, tmp_path)
    given = word(backed_up)
    with killed_at(3, before=False):
        assert place.run("restore", "latest", "--yes-destroy", database.database).killed
    folder = backed_up.system.restorations.folder
    assert folder.unfinished() is not None
    for instead in ("plan", "restore", "plan_undo", "undo"):
        assert "is not finished" in refused(run(backed_up, action=instead, confirm=given))
    assert rows(database) == 0
    result = run(backed_up, action=action)
    assert result.success, refused(result)
    assert output(result)["outcome"] == outcome
    assert folder.unfinished() is None
    assert next(folder.newest_first()).outcome == outcome
    assert (rows(database) > 0) == (action == "resume")
    found = [each.name for each in kept(database, database.database)]
    assert found == ([output(result)["kept"]] if action == "resume" else [])


@pytest.mark.exhaustive
def test_a_restore_is_given_up_by_its_own_word(
    backed_up: Location, database: Connection, server: PortCluster, bin_dir: Path, tmp_path: Path
) -> None:
    """The word of another day, from a copied text, neither gives up the restore nor puts anything back."""
    place = place_for(database, bin_dir, backed_up.settings.backup_dir, tmp_path)
    with killed_at(6, before=True):  # after the drill and the drop, before the restore began
        assert place.run("restore", "latest", "--mode", "drop", "--yes-destroy", database.database).killed
    folder = backed_up.system.restorations.folder
    journal = folder.unfinished()
    assert journal is not None
    for typed in (database.database, f"{database.database}-20260101T000000Z"):
        assert "is not the word of the drop that is unfinished" in refused(
            run(backed_up, action="abort", confirm=typed)
        )
    result = run(backed_up, action="abort")
    assert "to restore another: launch restore_job with action: abort" in refused(result)
    [own] = re.findall(r"with confirm: (\S+) gives it up", backed_up.logs(result.run_id))
    assert folder.unfinished() is not None
    result = run(backed_up, action="abort", confirm=own)
    assert "was dropped, and" in refused(result)
    assert next(folder.newest_first()).outcome == "given up"
    assert folder.unfinished() is None
    with admin(server) as session:  # for the teardown
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database.database)))


def test_the_launchpad_offers_every_command_line_option(new_location: NewLocation) -> None:
    """And every option reaches the plan: none is lost on the way."""
    config = RestoreConfig(
        action=RestoreAction.restore,
        confirm="sample",
        backup="a.dump",
        to="5 minutes ago",
        kept="sample_before",
        mode=RestoreMode.new,
        tables=["people, identities"],
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
        tables=("people", "identities"),
    )
    assert restore_job._wishes(config, system, config.backup) == wishes
    assert [each.name for each in fields(Wishes) if getattr(wishes, each.name) == getattr(Wishes(), each.name)] == []
    # The settings decide an option that is left at its default, as on the command line.
    cores = len(os.sched_getaffinity(0))
    assert restore_job._wishes(default, system, default.backup) == Wishes(anywhere=False, jobs=cores)
    assert restore_job._wishes(default, new_location(RESTORE_JOBS="5").system, default.backup).jobs == 5
    elsewhere = {
        "only_plan": "action",
        "resume": "action",
        "abort": "action",
        "confirmation": "confirm",
        "stop_services": "stop_services_first",
        "scale": "replicas",
    }
    # Not needed in the UI: the records are in each run's metadata, and JSON is for programs.
    offered = {str(each.name) for each in restore_command.params} - {"history", "as_json"}
    assert {elsewhere.get(name, name) for name in offered} == RestoreConfig.model_fields.keys() - {"kept"}


def test_a_replaced_database_is_announced_then_dropped(
    backed_up: Location,
    database: Connection,
    server: PortCluster,
    new_location: NewLocation,
    people: Receiver,
    tmp_path: Path,
) -> None:
    """Its age is in its name, so the test renames it to make it old."""
    assert confirmed(backed_up, "restore").success
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    location = new_location(BACKUP_NOTIFY_URLS=people.url, **key_settings(tmp_path / "keys", key))

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
    # However old, it is announced first, and dropped a day later at the earliest.
    assert expire() == expire() == [name]
    assert people.titles == [f"Ovia backup: database {name} will be dropped"]
    [note] = (location.settings.backup_dir / "restores").glob(".announced-*")
    note.write_text((datetime.now(UTC) - timedelta(days=1, minutes=1)).isoformat())
    assert expire() == []
    assert people.titles[1:] == [f"Ovia backup: database {name} was dropped"]
    assert [message["message"].splitlines()[-1] for message in people.messages] == ["Signed log: 0 empty"] * 2


@pytest.mark.exhaustive
def test_a_replaced_database_stays_if_no_notice_was_sent(
    backed_up: Location, database: Connection, server: PortCluster
) -> None:
    assert confirmed(backed_up, "restore").success
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

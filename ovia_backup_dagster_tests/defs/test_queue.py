"""The order of Dagster's run queue, and the runs that its run monitoring ends: its own daemons, our configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.dagster_run import DagsterRunStatus
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.test_utils import MockedRunLauncher, create_run_for_test, create_test_daemon_workspace_context
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.defs.support import ALERT_JOB, DAILY_JOB, DRILL_JOB, load
from ovia_backup_dagster_tests.support.exhaustive import thinned

pytestmark = pytest.mark.usefixtures("unsynced")

FILES = ("deploy/dagster.yaml", "dagster.yaml")
RESTORE_JOB, DOCTOR_JOB = "restore_job", "doctor_job"
_LAUNCHER = {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"}


@contextmanager
def dagster(file: str, **changes: Any) -> Iterator[tuple[dg.DagsterInstance, WorkspaceProcessContext]]:
    """An instance with the file's queue and run monitoring, and a launcher that only records the runs."""
    ours = yaml.safe_load((REPOSITORY / file).read_text("utf-8"))
    parts = {name: {**ours[name], **changes.get(name, {})} for name in ("concurrency", "run_monitoring")}
    with (
        dg.instance_for_test(overrides={**parts, "run_launcher": _LAUNCHER}) as instance,
        create_test_daemon_workspace_context(EmptyWorkspaceTarget(), instance) as workspace,
    ):
        yield instance, workspace


def launched(instance: dg.DagsterInstance, workspace: WorkspaceProcessContext) -> list[str]:
    """The jobs that one iteration of the daemon launches, in order."""
    launcher = instance.run_launcher
    assert isinstance(launcher, MockedRunLauncher)
    before = len(launcher._queue)
    with QueuedRunCoordinatorDaemon(interval_seconds=1) as daemon:
        list(daemon.run_iteration(workspace))
    return [run.job_name for run in launcher._queue[before:]]


@cache
def definitions(number: int) -> dg.Definitions:
    """The definitions of one of many databases in a code location."""
    settings = load({"POSTGRES_HOST": "h", "BACKUP_DIR": f"/backups/{number}", "POSTGRES_DB": f"db{number}"})
    return build_defs(settings, prefix=f"db{number}")


def put(
    instance: dg.DagsterInstance, job: str, number: int = 0, status: DagsterRunStatus = DagsterRunStatus.QUEUED
) -> str:
    """Create a run of the job of one of many databases."""
    tags = definitions(number).resolve_job_def(f"db{number}_{job}").tags
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ovia"), "__repository__")
    origin = RemoteJobOrigin(repository, job)
    return str(create_run_for_test(instance, job, status=status, tags=tags, remote_job_origin=origin).run_id)


def test_both_files_limit_the_queue_alike() -> None:
    """So the first file stands for both in the daily tests."""
    first, second = (yaml.safe_load((REPOSITORY / file).read_text("utf-8"))["concurrency"] for file in FILES)
    assert first == second


@pytest.mark.parametrize("file", thinned(FILES))
def test_runs_that_a_person_waits_for_go_first(file: str) -> None:
    with dagster(file) as (instance, workspace):
        for job in (DRILL_JOB, DAILY_JOB, DOCTOR_JOB, RESTORE_JOB, ALERT_JOB):
            put(instance, job)
        assert launched(instance, workspace) == [ALERT_JOB, RESTORE_JOB, DOCTOR_JOB, DAILY_JOB, DRILL_JOB]


@pytest.mark.parametrize("file", thinned(FILES))
def test_dumps_and_drills_leave_slots_free(file: str) -> None:
    """Even with more databases than slots, however long dumps and drills take."""
    with dagster(file) as (instance, workspace):
        for number in range(12):
            put(instance, DAILY_JOB, number)
            put(instance, DRILL_JOB, number)
        assert launched(instance, workspace) == [DAILY_JOB] * 7
        assert launched(instance, workspace) == []
        for job in (DOCTOR_JOB, RESTORE_JOB, ALERT_JOB):
            put(instance, job)
        assert launched(instance, workspace) == [ALERT_JOB, RESTORE_JOB, DOCTOR_JOB]


def test_a_restore_has_no_time_limit() -> None:
    """A restore that was ended half-way would have to be put back. A person launches it and waits; no schedule does."""
    with dagster("deploy/dagster.yaml", run_monitoring={"max_runtime_seconds": 5}) as (instance, workspace):
        ages = {RESTORE_JOB: timedelta(days=3), DRILL_JOB: timedelta(hours=6), DAILY_JOB: timedelta(seconds=10)}
        runs = {job: started(instance, job, age) for job, age in ages.items()}
        late = started(instance, DRILL_JOB, timedelta(hours=6, minutes=16))
        list(execute_run_monitoring_iteration(workspace, logging.getLogger("test")))
        found = {job: status(instance, run) for job, run in runs.items()}
        assert found == {
            RESTORE_JOB: DagsterRunStatus.STARTED,
            DRILL_JOB: DagsterRunStatus.STARTED,
            DAILY_JOB: DagsterRunStatus.FAILURE,
        }
        assert status(instance, late) is DagsterRunStatus.FAILURE


def started(instance: dg.DagsterInstance, job: str, age: timedelta) -> str:
    run = put(instance, job, status=DagsterRunStatus.STARTED)
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    values = {"start_time": (datetime.now(UTC) - age).timestamp()}
    with storage.connect() as connection:
        connection.execute(RunsTable.update().where(RunsTable.c.run_id == run).values(values))
    return run


def status(instance: dg.DagsterInstance, run_id: str) -> DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.parametrize(("hours", "seconds"), [("6", "22500"), ("0.5", "2700"), ("48", "173700")])
def test_a_drill_has_a_separate_time_limit(hours: str, seconds: str) -> None:
    """It leaves the drill time to record that its own limit was reached."""
    job = build_defs(load({"POSTGRES_HOST": "h", "DRILL_MAX_HOURS": hours})).resolve_job_def(DRILL_JOB)
    assert job.tags[dg.MAX_RUNTIME_SECONDS_TAG] == seconds

"""Pruning of Dagster's history: which runs are removed, as a property; their events and output are removed with them.

Runs are dated back in Dagster's storage. Where events and output matter, runs are real, on an instance on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.defs import run_history
from ovia_backup_dagster.defs.run_history import PastRun, outlived
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.support import (
    ALERT_JOB,
    CHAIN,
    DAILY_JOB,
    Location,
    age_run,
    environment,
    failure,
    files_below,
    load,
    materialized,
)
from ovia_backup_dagster_tests.support.exhaustive import thinned

JOB = "history_pruning_job"
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

# ---------------------------------------------------------------- which runs are removed


def past(number: int, job: str, created: int, lasted: int | None, succeeded: bool) -> PastRun:
    begun = NOW - timedelta(hours=created)
    ended = None if lasted is None else begun + timedelta(hours=lasted)
    return PastRun(f"run{number:03}", job, begun, ended, succeeded and ended is not None)


histories = st.lists(
    st.tuples(
        st.sampled_from(["daily", "alert", "drill"]), st.integers(0, 200), st.none() | st.integers(0, 30), st.booleans()
    ),
    max_size=30,
).map(lambda rows: [past(number, *row) for number, row in enumerate(rows)])


@given(histories, st.integers(1, 150), st.data())
def test_pruning_holds_for_any_history(runs: list[PastRun], hours: int, data: st.DataObject) -> None:
    keep = timedelta(hours=hours)
    besides = data.draw(st.sets(st.sampled_from([run.run_id for run in runs]))) if runs else set()
    going = outlived(runs, keep, NOW, besides=besides)
    left = [run for run in runs if run not in going]
    for run in going:
        assert run.ended is not None
        assert NOW - run.ended > keep
        assert run.run_id not in besides
    for job in {run.job for run in runs}:
        newest = max((run for run in runs if run.job == job), key=lambda run: (run.created, run.run_id))
        assert newest in left
        # The newest success of a job stays.
        good = [run for run in runs if run.job == job and run.succeeded]
        assert not good or max(run.created for run in good) == max(
            run.created for run in left if run.job == job and run.succeeded
        )
    # A run stays only because it is young, one of the two newest of its job, or protected by ``besides``.
    for job in {run.job for run in runs}:
        late = [
            run
            for run in left
            if run.job == job and run.ended is not None and NOW - run.ended > keep and run.run_id not in besides
        ]
        assert len(late) <= 2
    # Neither the order nor a second pruning changes the result; a longer time removes no more.
    assert outlived(data.draw(st.permutations(runs)), keep, NOW, besides=besides) == going
    assert outlived(left, keep, NOW, besides=besides) == []
    assert set(outlived(runs, keep + DAY, NOW, besides=besides)) <= set(going)


def test_the_end_of_a_run_decides_its_age() -> None:
    runs = [past(1, "daily", 10 * 24, 24, True), past(2, "daily", 0, 0, True)]
    assert outlived(runs, 9 * DAY, NOW) == []
    assert outlived(runs, 9 * DAY - timedelta(seconds=1), NOW) == runs[:1]


# ---------------------------------------------------------------- removal

Made = Callable[..., str]


@pytest.fixture
def kept(database: Connection, volume: Path, bin_dir: Path, disk_instance: dg.DagsterInstance) -> Location:
    """A location whose history is on disk."""
    return Location(load(environment(database, volume, bin_dir)), disk_instance)


@pytest.fixture
def recorded(bare: NewLocation) -> Location:
    """A location without a server, for runs that are only recorded."""
    location: Location = bare()
    return location


def record(location: Location, age: timedelta, *, good: bool = True, job: str = DAILY_JOB) -> str:
    """Record a run without events that ended ``age`` ago."""
    status = dg.DagsterRunStatus.SUCCESS if good else dg.DagsterRunStatus.FAILURE
    made = location.instance.create_run_for_job(location.job(job), tags=location.job(job).tags, status=status)
    age_run(location.instance, made.run_id, age)
    return made.run_id


def run(location: Location, age: timedelta, *assets: str, good: bool = True, job: str = DAILY_JOB) -> str:
    """Execute a run, and date its end to ``age`` ago."""
    location.installed = lambda: good
    result = location.job(job).execute_in_process(
        instance=location.instance,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(name) for name in assets] or None,
    )
    location.installed = None
    assert result.success is good
    age_run(location.instance, result.run_id, age)
    return result.run_id


def prune(location: Location, **config: bool) -> dict[str, object]:
    """Run the job; return its numbers."""
    result = location.run(JOB, config={"ops": {"history_pruning": {"config": config}}})
    assert result.success
    event = next(e for e in result.all_events if e.event_type is dg.DagsterEventType.STEP_OUTPUT)
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def there(location: Location) -> set[str]:
    """The recorded runs except those of this job."""
    return {run.run_id for run in location.instance.get_runs() if run.job_name != JOB}


def output_of(tmp_path: Path, run_id: str) -> list[Path]:
    return [
        path for path in files_below(tmp_path / "dagster") if run_id in str(path) and path.suffix in (".out", ".err")
    ]


@pytest.mark.exhaustive
def test_old_runs_are_removed_with_their_events_and_output(kept: Location, tmp_path: Path) -> None:
    old = [run(kept, 450 * DAY, good=False), run(kept, 401 * DAY)]
    young = [run(kept, 399 * DAY), run(kept, DAY)]
    assert all(output_of(tmp_path, run_id) for run_id in old + young)
    last = kept.instance.get_latest_materialization_event(dg.AssetKey("daily_dump"))

    assert prune(kept) == {"removed_runs": 2, "old_runs_that_stay": 0}
    assert there(kept) == set(young)
    for run_id in old:
        assert output_of(tmp_path, run_id) == []
        assert kept.instance.all_logs(run_id) == []
    for run_id in young:
        assert output_of(tmp_path, run_id)
        assert kept.instance.all_logs(run_id)
    for name in CHAIN:
        event = kept.instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None
        assert event.run_id == young[1]
        records = kept.instance.fetch_materializations(dg.AssetKey(name), limit=9).records
        assert [record.run_id for record in records] == young[::-1]
    assert kept.instance.get_latest_materialization_event(dg.AssetKey("daily_dump")) == last
    assert prune(kept) == {"removed_runs": 0, "old_runs_that_stay": 0}


def test_a_jobs_newest_run_and_newest_success_stay(recorded: Location) -> None:
    """As after years of backups on the command line, without any alert."""
    gone, success = record(recorded, 700 * DAY), record(recorded, 600 * DAY)
    failed = record(recorded, 500 * DAY, good=False)
    alert = record(recorded, 800 * DAY, job=ALERT_JOB)
    assert prune(recorded) == {"removed_runs": 1, "old_runs_that_stay": 3}
    assert there(recorded) == {success, failed, alert}
    assert gone not in there(recorded)


@pytest.mark.exhaustive
def test_the_last_materialization_of_an_asset_stays(kept: Location) -> None:
    whole = run(kept, 700 * DAY)
    parts = [run(kept, age * DAY, "daily_dump", "dump_verification") for age in (500, 1)]
    assert prune(kept) == {"removed_runs": 1, "old_runs_that_stay": 1}
    assert there(kept) == {whole, parts[1]}
    event = kept.instance.get_latest_materialization_event(dg.AssetKey("retention_pruning"))
    assert event is not None
    assert event.run_id == whole


@pytest.mark.parametrize(
    "status",
    thinned([dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]),
)
def test_a_run_that_has_not_ended_stays(recorded: Location, status: dg.DagsterRunStatus) -> None:
    stuck = recorded.instance.create_run_for_job(recorded.job(), tags=recorded.job().tags, status=status)
    age_run(recorded.instance, stuck.run_id, 900 * DAY, ended=False)
    newest = record(recorded, DAY)
    assert prune(recorded) == {"removed_runs": 0, "old_runs_that_stay": 1}
    assert there(recorded) == {stuck.run_id, newest}


@pytest.mark.parametrize("other", [{"POSTGRES_DB": "other"}, {"BACKUP_ASSET_PREFIX": "crm"}])
def test_runs_of_other_databases_stay(recorded: Location, bare: NewLocation, other: dict[str, str]) -> None:
    theirs: Location = bare(**other)
    assert theirs.instance is recorded.instance
    stay = {record(theirs, age * DAY) for age in (700, 600, 500)}
    record(recorded, 500 * DAY)
    newest = record(recorded, DAY)
    assert prune(recorded)["removed_runs"] == 1
    assert there(recorded) == {*stay, newest}


def test_more_runs_than_a_page_are_removed(recorded: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_history, "_PAGE", 2)
    for number in range(7):
        record(recorded, (600 - number) * DAY)
    assert prune(recorded) == {"removed_runs": 6, "old_runs_that_stay": 1}


@pytest.mark.exhaustive
def test_the_setting_decides_how_long_runs_stay(
    volume: Path, disk_instance: dg.DagsterInstance, bare: NewLocation, tmp_path: Path
) -> None:
    location: Location = bare()
    location.instance = disk_instance
    old, newest = run(location, 31 * DAY, job=ALERT_JOB), run(location, DAY, job=ALERT_JOB)
    assert prune(location) == {"removed_runs": 0, "old_runs_that_stay": 0}
    location.settings = bare(DAGSTER_KEEP_RUNS_DAYS="30").settings
    assert prune(location, dry_run=True) == {"removed_runs": 0, "old_runs_that_stay": 1}
    assert there(location) == {old, newest}
    assert output_of(tmp_path, old)
    assert prune(location)["removed_runs"] == 1
    assert there(location) == {newest}


def test_unusable_settings_fail_the_job(new_location: NewLocation) -> None:
    location: Location = new_location(DAGSTER_KEEP_RUNS_DAYS="forty")
    result = location.run(JOB)
    assert not result.success
    assert failure(result).startswith("the settings are not usable: DAGSTER_KEEP_RUNS_DAYS: ")


def test_pruning_history_is_outside_the_asset_graph(new_location: NewLocation) -> None:
    location: Location = new_location()
    assert not location.job(JOB).asset_layer.executable_asset_keys
    assert materialized(location.run(JOB)) == {}

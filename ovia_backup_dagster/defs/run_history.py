"""Prunes Dagster's history: runs, their events and their output, which Dagster keeps forever.

Ticks do not belong here: ``retention`` in dagster.yaml removes them. No backup depends on Dagster's history, so this is
an op outside the asset graph.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from ovia_backup_dagster.defs.database_names import HISTORY_PRUNING_JOB, DatabaseNames
from ovia_backup_dagster.defs.policies import database_tags, errors_as_failures
from ovia_backup_dagster.defs.run_configs import HistoryConfig
from ovia_backup_dagster.system import BackupSystem

OP = "history_pruning"
#: Dagster's tag on a run: the code location that launched it.
_LOCATION_TAG = ".dagster/repository"
_PAGE = 500
_FINISHED = frozenset({dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED})


@dataclass(frozen=True, slots=True)
class PastRun:
    """The facts about a run that decide whether it is removed.

    Attributes:
        run_id: Dagster's.
        job: its job's name.
        created: when it was created (UTC).
        ended: when it ended (UTC); ``None`` if it has not ended.
        succeeded: whether its status is success.
    """

    run_id: str
    job: str
    created: datetime
    ended: datetime | None
    succeeded: bool


def outlived(runs: Iterable[PastRun], keep: timedelta, now: datetime, *, besides: Iterable[str] = ()) -> list[PastRun]:
    """The runs to remove, oldest first. A pure function.

    These ended longer than ``keep`` ago. The newest run of each job and its newest successful run are never removed,
    because they show the present state.

    Args:
        runs: of one code location; must include the newest of each job.
        keep: how long a run is kept after its end.
        now: the present (UTC).
        besides: ids of runs to keep for another reason.
    """
    stay = set(besides)
    in_order = sorted(runs, key=attrgetter("job", "created", "run_id"))
    for _, of_job in groupby(in_order, key=attrgetter("job")):
        newest_first = list(of_job)[::-1]
        stay.add(newest_first[0].run_id)
        stay.update(next(([run.run_id] for run in newest_first if run.succeeded), []))
    old = (run for run in in_order if run.ended is not None and now - run.ended > keep and run.run_id not in stay)
    return sorted(old, key=attrgetter("created", "run_id"))


def build_history(system: BackupSystem, names: DatabaseNames, assets: Sequence[dg.AssetKey]) -> dg.JobDefinition:
    """The job that prunes the history.

    Args:
        system: of the database whose runs it removes. It removes no runs of other databases or other projects.
        names: of its definitions.
        assets: their last materializations are kept, whatever their age.
    """

    @dg.op(
        name=names.in_location(OP),
        out=dg.Out(dg.Nothing),
        description="Removes runs that ended more than DAGSTER_KEEP_RUNS_DAYS ago, with their events and output. Keeps "
        "the newest run and the newest successful run of each job, and the last materialization of each asset.",
    )
    def prune_history(context: dg.OpExecutionContext, config: HistoryConfig) -> None:
        with errors_as_failures(context, system, names.in_words):
            system.settings.require()
            now = datetime.now(UTC)
            keep = timedelta(days=system.settings.dagster_keep_runs_days)
            runs = _past_runs(context.instance, database_tags(system.settings), now - keep)
            runs += _by_hand(context.instance, context.run, frozenset(assets))
            going = outlived(runs, keep, now, besides=_materialized_last(context.instance, assets))
            for run in going:
                context.log.info(
                    f"{'would remove' if config.dry_run else 'removing'} run {run.run_id} of {run.job}, "
                    f"created {run.created:%Y-%m-%d %H:%M} UTC"
                )
                if not config.dry_run:
                    _remove(context.instance, run.run_id)
            removed = 0 if config.dry_run else len(going)
            old = sum(now - run.created > keep for run in runs)
            context.add_output_metadata({"removed_runs": removed, "old_runs_that_stay": old - removed})

    @dg.job(
        name=names.in_location(HISTORY_PRUNING_JOB),
        tags=database_tags(system.settings),
        executor_def=dg.in_process_executor,
        description="Remove runs of this database that ended more than DAGSTER_KEEP_RUNS_DAYS ago. Touches no backup.",
    )
    def history_pruning() -> None:
        prune_history()

    return history_pruning


def _past_runs(instance: dg.DagsterInstance, ours: dict[str, str], before: datetime) -> list[PastRun]:
    """All runs of our jobs that were created before ``before``, and the newest of each job."""
    found = {
        run.run_id: run for run in map(_past_run, _read(instance, dg.RunsFilter(tags=ours, created_before=before)))
    }
    for job in {run.job for run in found.values()}:
        for statuses in ([], [dg.DagsterRunStatus.SUCCESS]):
            newest = dg.RunsFilter(tags=ours, job_name=job, statuses=statuses)
            found |= {run.run_id: run for run in map(_past_run, instance.get_run_records(newest, limit=1))}
    return list(found.values())


def _by_hand(instance: dg.DagsterInstance, run: dg.DagsterRun, assets: frozenset[dg.AssetKey]) -> list[PastRun]:
    """All runs that "Materialize" in our code location's asset graph started for our assets alone.

    They have no job's tags, and the location may hold assets of other projects.
    """
    if run.remote_job_origin is None:
        return []
    tags = {_LOCATION_TAG: run.remote_job_origin.repository_origin.get_label()}
    records = _read(instance, dg.RunsFilter(tags=tags, job_name=IMPLICIT_ASSET_JOB_NAME))
    selected = ((record, record.dagster_run.asset_selection) for record in records)
    return [_past_run(record) for record, keys in selected if keys and keys <= assets]


def _read(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[dg.RunRecord]:
    cursor = None
    while records := instance.get_run_records(filters, limit=_PAGE, cursor=cursor):
        yield from records
        cursor = records[-1].dagster_run.run_id


def _past_run(record: dg.RunRecord) -> PastRun:
    run = record.dagster_run
    ended = record.end_time or record.update_timestamp.timestamp()
    return PastRun(
        run_id=run.run_id,
        job=run.job_name,
        created=record.create_timestamp,
        ended=datetime.fromtimestamp(ended, UTC) if run.status in _FINISHED else None,
        succeeded=run.status is dg.DagsterRunStatus.SUCCESS,
    )


def _materialized_last(instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]) -> Iterator[str]:
    for record in instance.get_asset_records(assets):
        last = record.asset_entry.last_materialization
        if last is not None:
            yield last.run_id


def _remove(instance: dg.DagsterInstance, run_id: str) -> None:
    # Delete the output first: if that is interrupted, the run remains, and the next pruning finds it.
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)

"""An end for Dagster's own history: runs, their events and their output, which it would keep for ever.

Ticks are not here: ``retention`` in dagster.yaml removes them. Nor are backups: Dagster's history decides nothing
about them, so an op does this, beside the graph of assets.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter

import dagster as dg

from ovia_backup_dagster.defs.policies import HISTORY_PRUNING_JOB, database_tags, explained
from ovia_backup_dagster.defs.resources import Backups
from ovia_backup_dagster.defs.run_configs import HistoryConfig
from ovia_backup_dagster.settings.model import Settings

OP = "history_pruning"
#: Dagster's own tag on a run: the code location that launched it.
_LOCATION_TAG = ".dagster/repository"
_PAGE = 500
_FINISHED = frozenset({dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED})


@dataclass(frozen=True, slots=True)
class PastRun:
    """What decides whether a run goes.

    Attributes:
        run_id: Dagster's.
        job: its job's name.
        created: when it was asked for (UTC).
        ended: when it ended (UTC); ``None`` while it has not.
        succeeded: whether it ended well.
    """

    run_id: str
    job: str
    created: datetime
    ended: datetime | None
    succeeded: bool


def outlived(runs: Iterable[PastRun], keep: timedelta, now: datetime, *, besides: Iterable[str] = ()) -> list[PastRun]:
    """The runs that go, oldest first: a pure function.

    Those that ended longer ago than ``keep``, but of each job never the newest, nor the newest that succeeded: they say
    how things stand.

    Args:
        runs: of one code location, with the newest of each of their jobs among them.
        keep: how long a run is kept after its end.
        now: the present (UTC).
        besides: ids of runs that stay for another reason.
    """
    stay = set(besides)
    in_order = sorted(runs, key=attrgetter("job", "created", "run_id"))
    for _, of_job in groupby(in_order, key=attrgetter("job")):
        newest_first = list(of_job)[::-1]
        stay.add(newest_first[0].run_id)
        stay.update(next(([run.run_id] for run in newest_first if run.succeeded), []))
    old = (run for run in in_order if run.ended is not None and now - run.ended > keep and run.run_id not in stay)
    return sorted(old, key=attrgetter("created", "run_id"))


def build_history(settings: Settings, assets: Sequence[dg.AssetKey]) -> dg.JobDefinition:
    """The job.

    Args:
        settings: of the database whose runs it removes; those of other code locations are theirs.
        assets: whose last materializations stay, however old.
    """

    @dg.op(
        name=OP,
        out=dg.Out(dg.Nothing),
        description="Removes runs that ended more than DAGSTER_KEEP_RUNS_DAYS ago, with their events and output. Of "
        "each job the newest run and the newest that succeeded stay, and so does the last materialization of an asset.",
    )
    def prune_history(context: dg.OpExecutionContext, config: HistoryConfig, backups: Backups) -> None:
        with explained(context, backups):
            backups.settings.require()
            now = datetime.now(UTC)
            keep = timedelta(days=backups.settings.dagster_keep_runs_days)
            runs = _past_runs(context.instance, _whose(context.run, backups.settings), now - keep)
            going = outlived(runs, keep, now, besides=_materialized_last(context.instance, assets))
            for run in going:
                context.log.info(
                    f"{'would remove' if config.dry_run else 'removing'} run {run.run_id} of {run.job}, "
                    f"asked for {run.created:%Y-%m-%d %H:%M} UTC"
                )
                if not config.dry_run:
                    _remove(context.instance, run.run_id)
            removed = 0 if config.dry_run else len(going)
            old = sum(now - run.created > keep for run in runs)
            context.add_output_metadata({"removed_runs": removed, "old_runs_that_stay": old - removed})

    @dg.job(
        name=HISTORY_PRUNING_JOB,
        tags=database_tags(settings),
        executor_def=dg.in_process_executor,
        description="Remove runs of this code location that are older than DAGSTER_KEEP_RUNS_DAYS. Touches no backup.",
    )
    def history_pruning() -> None:
        prune_history()

    return history_pruning


def _whose(run: dg.DagsterRun, settings: Settings) -> list[dict[str, str]]:
    """Tags that mark our runs, each set by itself: what is materialized by hand in the UI bears no job's tags."""
    ours = [database_tags(settings)]
    if run.remote_job_origin is not None:
        ours.append({_LOCATION_TAG: run.remote_job_origin.repository_origin.get_label()})
    return ours


def _past_runs(instance: dg.DagsterInstance, whose: Iterable[dict[str, str]], before: datetime) -> list[PastRun]:
    """All runs that were asked for before then, and the newest of each of their jobs."""
    found: dict[str, PastRun] = {}
    for tags in whose:
        old = {run.run_id: run for run in _read(instance, dg.RunsFilter(tags=tags, created_before=before))}
        found |= old
        for job in {run.job for run in old.values()}:
            for statuses in ([], [dg.DagsterRunStatus.SUCCESS]):
                newest = dg.RunsFilter(tags=tags, job_name=job, statuses=statuses)
                found |= {run.run_id: run for run in map(_past_run, instance.get_run_records(newest, limit=1))}
    return list(found.values())


def _read(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[PastRun]:
    cursor = None
    while records := instance.get_run_records(filters, limit=_PAGE, cursor=cursor):
        yield from map(_past_run, records)
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
    # The output first: what is interrupted here is found again by its run.
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)

"""How the last runs of a job ended, according to Dagster. ``health.condition`` decides what that means."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from ovia_backup_dagster.defs.database_names import DAILY_BACKUP_JOB, KEPT_DATABASES_JOB, DatabaseNames
from ovia_backup_dagster.defs.policies import database_tags, run_tags
from ovia_backup_dagster.health.failed_runs import FailedRun, FailedRuns
from ovia_backup_dagster.settings.model import Settings

#: Dagster's tag on a failed run that it will retry.
_WILL_RETRY_TAG = "dagster/will_retry"


def failed_runs(instance: dg.DagsterInstance, settings: Settings, names: DatabaseNames) -> FailedRuns:
    """The failed runs that the condition of the backups depends on.

    Args:
        instance: has the runs.
        settings: the database's. Its runs are selected by tag, because jobs of other databases may have the same names.
        names: the names of its definitions.
    """
    daily, kept = names.in_location(DAILY_BACKUP_JOB), names.in_location(KEPT_DATABASES_JOB)
    final = _failed_for_good(instance, daily, run_tags(settings))
    early = _last_failed(instance, daily, run_tags(settings))
    replaced = _failed_for_good(instance, kept, database_tags(settings))
    return FailedRuns(
        backup=_named(DAILY_BACKUP_JOB, final),
        ended_early=_named(DAILY_BACKUP_JOB, early),
        replaced=_named(KEPT_DATABASES_JOB, replaced),
    )


def _named(job: str, failed: FailedRun | None) -> FailedRun | None:
    """The run under the job's plain name. ``DatabaseNames.in_words`` later puts in the name for this database."""
    return replace(failed, job=job) if failed else None


def _last_failed(instance: dg.DagsterInstance, job: str, tags: Mapping[str, str]) -> FailedRun | None:
    """The newest finished run of the job with these tags, if it failed or was cancelled.

    A cancelled run explains a missing dump, too.
    """
    ended = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return _failed(instance, _newest(instance, job, tags, ended))


def _failed_for_good(instance: dg.DagsterInstance, job: str, tags: Mapping[str, str]) -> FailedRun | None:
    """The newest run that was not cancelled, if it failed and Dagster will not retry it: a reason for an alert."""
    newest = _newest(instance, job, tags, (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE))
    if newest is None or newest.dagster_run.tags.get(_WILL_RETRY_TAG) == "true":
        return None
    return _failed(instance, newest)


def _newest(
    instance: dg.DagsterInstance, job: str, tags: Mapping[str, str], statuses: Sequence[dg.DagsterRunStatus]
) -> dg.RunRecord | None:
    runs = dg.RunsFilter(job_name=job, statuses=statuses, tags=tags)
    return next(iter(instance.get_run_records(runs, limit=1)), None)


def _failed(instance: dg.DagsterInstance, record: dg.RunRecord | None) -> FailedRun | None:
    if record is None or record.dagster_run.status is dg.DagsterRunStatus.SUCCESS:
        return None
    run = record.dagster_run
    ended = datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
    return FailedRun(run.job_name, run.run_id, ended, _failure_reason(instance, run.run_id))


def _failure_reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """The error of the failed step in one line, or the run's last message if no step failed."""
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED):
        for entry in instance.all_logs(run_id, of_type=kind):
            event = entry.dagster_event
            if event is None:
                continue
            if event.is_step_failure:
                data = event.step_failure_data
                if data.user_failure_data and data.user_failure_data.description:
                    return data.user_failure_data.description
                error = data.error
                while error and error.cause:  # the outer errors are Dagster's wrappers
                    error = error.cause
                if error:
                    return " ".join(error.message.split())
            if event.message:
                return event.message
    return "it ended without a message; see its log"

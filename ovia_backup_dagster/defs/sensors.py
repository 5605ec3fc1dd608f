"""What is watched. The sensor looks at the volume, not at Dagster's events: the volume is the truth.

Only that a run failed is Dagster's to tell; of the daily backup, a proven one that is newer overrules it.

It runs in the code server, which therefore needs the volume, read-only.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from ovia_backup_dagster.defs import alert_asset
from ovia_backup_dagster.defs.alert_asset import Condition, condition
from ovia_backup_dagster.defs.policies import DATABASE_TAG, Names, database_tags, names
from ovia_backup_dagster.defs.resources import Backups
from ovia_backup_dagster.defs.run_configs import AlertConfig
from ovia_backup_dagster.system import BackupSystem

NAME = "backup_freshness_sensor"
INTERVAL_SECONDS = 300
ALERT_TAG = "ovia/alert"
#: How many runs are asked for until one succeeds, a day and episode. Each of them tries four times to send.
MAX_RUNS = 5

_WAITING = "waiting for the run that tells people"
_GOING = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.MANAGED,
}


class Cursor(BaseModel):
    """What the sensor remembers.

    Attributes:
        episode: the trouble that is going on, by its first instant (UTC).
        clearing: its all-clear was asked for.
    """

    model_config = ConfigDict(frozen=True)

    episode: str | None = None
    clearing: bool = False


def backup_freshness_sensor(job_name: str, watched: str) -> dg.SensorDefinition:
    """One alert a day while something is wrong, one all-clear when it is over, and green for each day's backup.

    A run key alone would not do: Dagster remembers it whatever became of the run, so an alert that failed to
    launch would never be asked for again. So each key carries the number of the attempt, and the next attempt
    is made when the one before has failed.

    Args:
        job_name: the job that tells.
        watched: the job whose failed runs are told of.
    """

    @dg.sensor(
        name=NAME,
        job_name=job_name,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Alerts when the newest dump that is not bad is older than BACKUP_MAX_AGE_HOURS, missing, or dated "
        "in the future, when the last run of the daily backup failed and no newer backup is proven, when a restore "
        "drill failed, or the last that passed is older than DRILL_MAX_AGE_DAYS, when a restore was left unfinished, "
        "when the last run of `kept_databases_job` failed, when the volume cannot be read, or does not answer in time: "
        "once a day while it lasts, and once when it is over. While all is well, the alert is materialized in green "
        "after each day's backup, and sends no message.",
    )
    def freshness_sensor(
        context: dg.SensorEvaluationContext, backups: Backups
    ) -> dg.SensorResult | dg.RunRequest | dg.SkipReason:
        now = datetime.now(UTC)
        state = condition(backups, now, context.instance, watched)
        cursor = _cursor(context.cursor)
        if not state.trouble and state.restores and state.restores.at_work:
            # Perhaps it is what mends the trouble. Nobody is to read meanwhile that all is well.
            return dg.SkipReason(f"waiting for its end: {state.restores.at_work}")
        ours = names(backups.settings)
        # Dagster's runs are all of the instance's.
        whose = database_tags(backups.settings)[DATABASE_TAG]
        if not state.trouble and cursor.episode is None:
            key = f"{whose}/{_well(state, backups)}"
            request, _ = _request(context.instance, ours, key, AlertConfig())
            return request or dg.SkipReason(state.found.text if state.found else "all is well")
        if state.trouble:
            episode, clearing = cursor.episode, cursor.clearing
            # Trouble that returns when people believe, or are just being told, that all is well is a new episode.
            if episode is None or (clearing and _told(context.instance, f"{whose}/{episode}/all-clear")):
                episode, clearing = now.isoformat(), False
            day = now.astimezone(backups.timezone).date().isoformat()
            key = f"{whose}/{episode}/{day}/{state.kinds}"
            request, reason = _request(context.instance, ours, key, AlertConfig(episode=episode))
            kept = Cursor(episode=episode, clearing=clearing)
        else:
            assert cursor.episode is not None
            config = AlertConfig(all_clear=True, episode=cursor.episode)
            request, reason = _request(context.instance, ours, f"{whose}/{cursor.episode}/all-clear", config)
            # The episode is over once the all-clear is out, or cannot be brought out.
            going_on = request is not None or reason == _WAITING
            kept = Cursor(episode=cursor.episode, clearing=True) if going_on else Cursor()
        return dg.SensorResult(
            run_requests=[request] if request else [],
            skip_reason=None if request else f"{state.trouble or 'all is well again'} ({reason})",
            cursor=kept.model_dump_json(),
        )

    return freshness_sensor


def _well(state: Condition, backups: BackupSystem) -> str:
    """What is shown green once: each day's newest backup, and again when it is proven."""
    found = state.found
    if found is None or found.newest is None:
        return "well"
    day = found.newest.started_at.astimezone(backups.timezone).date().isoformat()
    return f"well/{day}/{'proven' if found.proven else 'unproven'}"


def _request(
    instance: dg.DagsterInstance, ours: Names, key: str, config: AlertConfig
) -> tuple[dg.RunRequest | None, str]:
    """A run for the alert ``key``, unless one succeeded, is under way, or too many failed; and why not."""
    runs = instance.get_runs(dg.RunsFilter(tags={ALERT_TAG: key}))
    if _succeeded(runs):
        return None, "people were told"
    if any(run.status in _GOING for run in runs):
        return None, _WAITING
    if len(runs) >= MAX_RUNS:
        return None, f"{len(runs)} runs failed to tell people"
    request = dg.RunRequest(
        run_key=f"{key}/{len(runs) + 1}",
        run_config=dg.RunConfig(ops={ours.op(alert_asset.NAME): config}),
        tags={ALERT_TAG: key},
    )
    return request, ""


def _told(instance: dg.DagsterInstance, key: str) -> bool:
    return _succeeded(instance.get_runs(dg.RunsFilter(tags={ALERT_TAG: key})))


def _succeeded(runs: Iterable[dg.DagsterRun]) -> bool:
    return any(run.status is dg.DagsterRunStatus.SUCCESS for run in runs)


def _cursor(text: str | None) -> Cursor:
    try:
        return Cursor.model_validate_json(text) if text else Cursor()
    except ValidationError:
        # Somebody edited it in the UI, or an older version wrote it: begin anew rather than fail every tick.
        return Cursor()

"""What is watched. The sensor looks at the volume, not at Dagster's events: the volume is the truth.

Only that a run failed is Dagster's to tell; of the daily backup, a verified one that is newer overrules it.

It runs in the code server, which therefore needs the volume, read-only.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from ovia_backup_dagster.defs.alert_asset import condition
from ovia_backup_dagster.defs.database_names import (
    FRESHNESS_ALERT,
    FRESHNESS_ALERT_JOB,
    FRESHNESS_SENSOR,
    KEPT_DATABASES_JOB,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import DATABASE_TAG, database_tags
from ovia_backup_dagster.defs.run_configs import AlertConfig
from ovia_backup_dagster.health.condition import Condition
from ovia_backup_dagster.system import BackupSystem

INTERVAL_SECONDS = 300
ALERT_TAG = "ovia/alert"
#: How many runs are asked for until one succeeds, a day and episode. Each of them tries four times to send.
MAX_RUNS = 5

_DESCRIPTION = (
    "Alerts when the newest dump that is not bad is older than BACKUP_MAX_AGE_HOURS, missing, or dated in the "
    "future, when a newer one is bad, when none is verified any more, when the last run of the daily backup "
    "failed and no newer backup is verified, when a restore drill failed, or the last that passed is older than "
    "DRILL_MAX_AGE_DAYS, when a restore was left unfinished, "
    f"when the last run of `{KEPT_DATABASES_JOB}` failed, when the volume cannot be read, or does not answer in "
    "time: once a day while it lasts, and once when it is over. While all is well, the alert is materialized "
    "in green after each day's backup, and sends no message."
)
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


def freshness_sensor(system: BackupSystem, names: DatabaseNames) -> dg.SensorDefinition:
    """One alert a day while something is wrong, one all-clear when it is over, and green for each day's backup.

    A run key alone would not do: Dagster remembers it whatever became of the run, so an alert that failed to
    launch would never be asked for again. So each key carries the number of the attempt, and the next attempt
    is made when the one before has failed.

    Args:
        system: the database that is watched; of its jobs alone failed runs are told of.
        names: of its definitions.
    """

    @dg.sensor(
        name=names.in_location(FRESHNESS_SENSOR),
        job_name=names.in_location(FRESHNESS_ALERT_JOB),
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=names.in_words(_DESCRIPTION),
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.RunRequest | dg.SkipReason:
        now = datetime.now(UTC)
        state = condition(system, names, now, context.instance)
        cursor = _cursor(context.cursor)
        if not state.told and state.restores and state.restores.at_work:
            # This restore may fix the trouble. Until it ends, do not report that all is well.
            return dg.SkipReason(f"waiting for its end: {state.restores.at_work}")
        # Dagster's runs are all of the instance's.
        whose = database_tags(system.settings)[DATABASE_TAG]
        if not state.told and cursor.episode is None:
            key = f"{whose}/{_well(state, system)}"
            request, _ = _request(context.instance, names, key, AlertConfig())
            return request or dg.SkipReason(state.found.text if state.found else "all is well")
        if state.told:
            episode, clearing = cursor.episode, cursor.clearing
            # Trouble that returns when people believe, or are just being told, that all is well is a new episode.
            if episode is None or (clearing and _told(context.instance, f"{whose}/{episode}/all-clear")):
                episode, clearing = now.isoformat(), False
            day = now.astimezone(system.timezone).date().isoformat()
            key = f"{whose}/{episode}/{day}/{state.kinds}"
            request, reason = _request(context.instance, names, key, AlertConfig(episode=episode))
            kept = Cursor(episode=episode, clearing=clearing)
        else:
            assert cursor.episode is not None
            config = AlertConfig(all_clear=True, episode=cursor.episode)
            request, reason = _request(context.instance, names, f"{whose}/{cursor.episode}/all-clear", config)
            # The episode is over once the all-clear is out, or cannot be brought out.
            going_on = request is not None or reason == _WAITING
            kept = Cursor(episode=cursor.episode, clearing=True) if going_on else Cursor()
        return dg.SensorResult(
            run_requests=[request] if request else [],
            skip_reason=None if request else names.in_words(f"{state.trouble or 'all is well again'} ({reason})"),
            cursor=kept.model_dump_json(),
        )

    return look


def _well(state: Condition, system: BackupSystem) -> str:
    """What is shown green once: each day's newest backup, and again when it is verified."""
    found = state.found
    if found is None or found.newest is None:
        return "well"
    day = found.newest.started_at.astimezone(system.timezone).date().isoformat()
    return f"well/{day}/{'proven' if found.verified else 'unproven'}"


def _request(
    instance: dg.DagsterInstance, names: DatabaseNames, key: str, config: AlertConfig
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
        run_config=dg.RunConfig(ops={names.asset_op(FRESHNESS_ALERT): config}),
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
        # A user edited it in the UI, or an older version wrote it: start again rather than fail every tick.
        return Cursor()

"""The freshness sensor. It reads the volume, not Dagster's events, because the volume is the source of truth.

Only failed runs are read from Dagster; a newer verified backup outweighs a failed run of the daily backup.

The sensor runs in the code server, which therefore mounts the volume read-only. Where that process has the signing key,
which then needs to write to the folder ``statements/``, a tick also states the daily sign of life.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from ovia_backup_dagster.core.deadline import within_deadline
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
#: The most runs that are requested per day and episode until one succeeds. Each run tries four times to send.
MAX_RUNS = 5

_DESCRIPTION = (
    "Alerts if the newest dump that is not bad is older than BACKUP_MAX_AGE_HOURS, missing, or dated in the future; "
    "if a newer one is bad; if no backup is verified any more; if the last run of the daily backup failed and no newer "
    "backup is verified; if a restore drill failed, or the last that passed is older than DRILL_MAX_AGE_DAYS; if a "
    f"restore is unfinished; if the last run of `{KEPT_DATABASES_JOB}` failed; with PITR_ENABLED, if WAL or base "
    "backups arrive late or incomplete; or if the volume cannot be read, or does not answer in time. Sends one "
    "alert a day while the trouble lasts, and one all-clear when it is over. While all is well, materializes the alert "
    "in green after each day's backup, and sends no message."
)
#: The time limit for a sign of life, in seconds, beside the assessments of the volume.
_ALIVE_SECONDS = 5.0
_WAITING = "waiting for the alert run"
_GOING = {
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
    dg.DagsterRunStatus.MANAGED,
}


class Cursor(BaseModel):
    """What the sensor remembers between ticks.

    Attributes:
        episode: the present trouble, identified by when it began (UTC); ``None`` while all is well.
        clearing: whether its all-clear was requested.
    """

    model_config = ConfigDict(frozen=True)

    episode: str | None = None
    clearing: bool = False


def freshness_sensor(system: BackupSystem, names: DatabaseNames) -> dg.SensorDefinition:
    """Request one alert a day while something is wrong, one all-clear afterwards, and a green result for each backup.

    Dagster remembers a run key even if the run failed to launch, so one key per alert would never be requested again.
    Each key therefore carries the number of the attempt; the next attempt follows when the last one has failed.

    Args:
        system: of the database to monitor; only failed runs of its jobs count.
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
        _state_alive(context, system, now)
        cursor = _cursor(context.cursor)
        if not state.told and state.restores and state.restores.at_work:
            # This restore may fix the trouble. Until it ends, do not report that all is well.
            return dg.SkipReason(f"waiting for a restore to end: {state.restores.at_work}")
        # The runs of all databases are in one instance, so the database is part of the key.
        whose = database_tags(system.settings)[DATABASE_TAG]
        if not state.told and cursor.episode is None:
            key = f"{whose}/{_well(state, system)}"
            request, _ = _request(context.instance, names, key, AlertConfig())
            return request or dg.SkipReason(state.found.text if state.found else "all is well")
        if state.told:
            episode, clearing = cursor.episode, cursor.clearing
            # Trouble that returns after the all-clear was sent is a new episode.
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
            # The episode ends when the all-clear is sent, or when all attempts to send it failed.
            pending = request is not None or reason == _WAITING
            kept = Cursor(episode=cursor.episode, clearing=True) if pending else Cursor()
        return dg.SensorResult(
            run_requests=[request] if request else [],
            skip_reason=None if request else names.in_words(f"{state.trouble or 'all is well again'} ({reason})"),
            cursor=kept.model_dump_json(),
        )

    return look


def _state_alive(context: dg.SensorEvaluationContext, system: BackupSystem, now: datetime) -> None:
    """State a sign of life in the signed log, if one is due. An error is logged, and never fails the tick."""
    try:
        log = system.statement_log
        if log is None or not log.can_record:
            return
        if within_deadline(_ALIVE_SECONDS, log.root, lambda: log.state_alive(now)):
            context.log.info(f"stated a sign of life in the signed log; head {log.chain().head}")
    except Exception as error:  # noqa: BLE001 - alerts matter more
        context.log.warning(f"no sign of life was stated in the signed log: {error}")


def _well(state: Condition, system: BackupSystem) -> str:
    """The key of the green result, shown once for each day's newest backup, and again when that backup is verified."""
    found = state.found
    if found is None or found.newest is None:
        return "well"
    day = found.newest.started_at.astimezone(system.timezone).date().isoformat()
    return f"well/{day}/{'proven' if found.verified else 'unproven'}"


def _request(
    instance: dg.DagsterInstance, names: DatabaseNames, key: str, config: AlertConfig
) -> tuple[dg.RunRequest | None, str]:
    """A run for the alert ``key``; or ``None`` with the reason: one succeeded, one is running, or too many failed."""
    runs = instance.get_runs(dg.RunsFilter(tags={ALERT_TAG: key}))
    if _succeeded(runs):
        return None, "the alert run succeeded"
    if any(run.status in _GOING for run in runs):
        return None, _WAITING
    if len(runs) >= MAX_RUNS:
        return None, f"{len(runs)} alert runs failed"
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
        # A user edited it in the UI, or an older version wrote it: start empty rather than fail every tick.
        return Cursor()

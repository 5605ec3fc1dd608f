"""The doctor's report on the Dagster instance: daemons, schedules and sensor, limits, history.

``doctor_job`` calls it with the instance of its run. The command line must not import Dagster, so it runs this module
as a program: ``python -m ovia_backup_dagster.defs.instance_report`` prints JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg

from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.defs.alert_asset import condition
from ovia_backup_dagster.defs.database_names import (
    BASE_BACKUP_SCHEDULE,
    DAILY_BACKUP_SCHEDULE,
    DAILY_DUMP,
    FRESHNESS_SENSOR,
    HISTORY_PRUNING_SCHEDULE,
    LOCATION_NAMES,
    PITR_DRILL_SCHEDULE,
    RESTORE_DRILL_SCHEDULE,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import VOLUME_TAG, database_tags
from ovia_backup_dagster.defs.schedules import usable_schedules
from ovia_backup_dagster.doctor.report import Area, Observation, fail, from_answer, ok, warn
from ovia_backup_dagster.health.condition import Question
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem

#: The age of a heartbeat from which a daemon counts as silent. A daemon writes one every half minute.
HEARTBEAT_TOLERANCE = timedelta(minutes=5)
#: Long enough for two daily backups, and short enough that a former name of a location is soon forgotten.
SHARED_KEY_WINDOW = timedelta(days=2)
_DAEMONS = {"SCHEDULER": "schedules", "SENSOR": "sensors", "QUEUED_RUN_COORDINATOR": "queued runs"}
#: A daemon's error while a code server restarts, as at each deployment. The daemon reports it for five minutes, even if
#: the code server is back (Dagster's DEFAULT_DAEMON_ERROR_INTERVAL_SECONDS).
_UNREACHABLE = "DagsterUserCodeUnreachableError: Could not reach user code server. gRPC Error code: UNAVAILABLE"
_COPY = "copy this project's dagster.yaml into $DAGSTER_HOME and restart the daemon"


def instance_lines(
    instance: dg.DagsterInstance, settings: Settings, names: DatabaseNames | None = None
) -> Iterator[Observation]:
    """Examine the instance. Changes nothing.

    Args:
        instance: the one that runs this database's jobs.
        settings: the database's settings.
        names: the names of its definitions; ``None`` derives them from the instance's runs and triggers.
    """
    yield from _schedule_is_valid(settings)
    if instance.is_ephemeral:
        fix = "set DAGSTER_HOME to a folder with a copy of dagster.yaml, for every Dagster process"
        yield warn(
            Area.DAGSTER, "Dagster keeps no history: at each start it forgets its runs, and which alerts were sent", fix
        )
        return
    yield from _daemons(instance, settings.deployment_hints)
    run = _newest_run(instance, settings)
    names = names or _names_in(instance, settings, run)
    yield from _switched_off(instance, names, _location_of(run) if run else None, pitr=settings.pitr_enabled)
    yield from _limits(instance, names)
    yield from _shared_keys(instance, names.key(DAILY_DUMP))
    yield from _failed_runs(instance, settings, names)


def _failed_runs(instance: dg.DagsterInstance, settings: Settings, names: DatabaseNames) -> Iterator[Observation]:
    """The part of the backups' condition that only Dagster knows; the doctor reports the rest without Dagster."""
    if settings.postgres_host is None:  # reported in the area of settings
        return
    state = condition(BackupSystem(settings), names, datetime.now(UTC), instance)
    for answer in state.wrong:
        if answer.question in (Question.RUNS, Question.REPLACED):
            observed = from_answer(Area.DAGSTER, answer)
            yield replace(observed, text=names.in_words(observed.text), fix=names.in_words(observed.fix))


def _schedule_is_valid(settings: Settings) -> Iterator[Observation]:
    for problem in usable_schedules(settings).problems[len(settings.problems) :]:
        yield fail(Area.DAGSTER, problem, "set it, e.g. BACKUP_SCHEDULE='0 3 * * *', DRILL_SCHEDULE='0 5 1 * *'")


def _daemons(instance: dg.DagsterInstance, hints: Hints) -> Iterator[Observation]:
    now = datetime.now(UTC)
    beats = instance.get_daemon_heartbeats()
    required = set(instance.get_required_daemon_types())
    silent = []
    for kind, work in _DAEMONS.items():
        if kind not in required:
            continue
        beat = beats.get(kind)
        age = now - datetime.fromtimestamp(beat.timestamp, UTC) if beat else None
        if age is None or age > HEARTBEAT_TOLERANCE:
            silent.append(f"{work} ({f'silent for {duration(age)}' if age else 'never seen'})")
        elif beat is not None and beat.errors:
            messages = [" ".join(error.message.split()) for error in beat.errors]
            failures = [message for message in messages if not message.endswith(_UNREACHABLE)]
            if failures:
                yield fail(Area.DAGSTER, f"the daemon for {work} fails: {failures[0]}", "see the log of dagster-daemon")
            else:
                text = f"within the last five minutes the daemon for {work} found no code server"
                fix = f"unless that was a deployment: {hints.code_server or 'see the log of the code server'}"
                yield warn(Area.DAGSTER, text, fix)
    if silent:
        fix = hints.daemon or "start it, with the same DAGSTER_HOME: dagster-daemon run"
        yield fail(
            Area.DAGSTER, f"the daemon does not run, so no backup and no alert is automatic: {', '.join(silent)}", fix
        )
    else:
        yield ok(Area.DAGSTER, "the daemon is alive")


def _newest_run(instance: dg.DagsterInstance, settings: Settings) -> dg.DagsterRun | None:
    """The newest run of this database, which shows its code location. A running ``doctor_job`` counts, too."""
    return next(iter(instance.get_runs(dg.RunsFilter(tags=database_tags(settings)), limit=1)), None)


def _names_in(instance: dg.DagsterInstance, settings: Settings, run: dg.DagsterRun | None) -> DatabaseNames:
    """The names of this database's definitions, derived from its newest run, or before that from its triggers."""
    prefixed = DatabaseNames.of(settings, shares_location=True)
    known = {run.job_name} if run else {state.name for state in instance.all_instigator_state()}
    theirs = {prefixed.in_location(name) for name in LOCATION_NAMES}
    return prefixed if known & theirs else DatabaseNames.of(settings)


def _location_of(run: dg.DagsterRun) -> str | None:
    origin = run.remote_job_origin
    return origin.repository_origin.code_location_origin.location_name if origin else None


def _switched_off(
    instance: dg.DagsterInstance, names: DatabaseNames, location: str | None, *, pitr: bool
) -> Iterator[Observation]:
    """Report triggers that are switched off. Another database's location may have triggers of the same names."""
    stopped: dict[str, str] = {}
    for state in instance.all_instigator_state():
        where = state.origin.repository_origin.code_location_origin.location_name
        if not state.is_running and where == (location or where):
            stopped[state.name] = where
    losses = {
        DAILY_BACKUP_SCHEDULE: "no backup is made automatically",
        RESTORE_DRILL_SCHEDULE: "no drill shows whether backups restore",
        FRESHNESS_SENSOR: "no one is notified when backups fail",
        HISTORY_PRUNING_SCHEDULE: "Dagster's history grows forever",
    }
    if pitr:
        losses[BASE_BACKUP_SCHEDULE] = "no base backup is made automatically, and no WAL is removed"
        losses[PITR_DRILL_SCHEDULE] = "no drill shows whether base backups and WAL recover"
    for trigger, loss in losses.items():
        name = names.in_location(trigger)
        if name in stopped:
            kind = "sensor" if trigger == FRESHNESS_SENSOR else "schedule"
            fix = f"switch it on in the UI (Automation), or: dagster {kind} start"
            # Before the first run it is not known which location is this database's.
            where = "" if location else f" in code location {stopped[name]}"
            report = warn if trigger == HISTORY_PRUNING_SCHEDULE else fail
            yield report(Area.DAGSTER, f"{name} is switched off{where}: {loss}", f"{fix} -l {stopped[name]} {name}")
        else:
            yield ok(Area.DAGSTER, f"{name} is on")


def _limits(instance: dg.DagsterInstance, names: DatabaseNames) -> Iterator[Observation]:
    config = instance.get_concurrency_config()
    own = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    limit = own.get(names.volume_pool, config.pool_config.default_pool_limit)
    tags = config.run_queue_config.tag_concurrency_limits if config.run_queue_config else []
    if limit == 1 and any(tag.get("key") == VOLUME_TAG and tag.get("limit") == 1 for tag in tags):
        yield ok(Area.DAGSTER, f"one run at a time works on a volume (pool {names.volume_pool}, tag {VOLUME_TAG})")
    else:
        text = f"runs on one volume may overlap (pool {names.volume_pool}: limit {limit}; tag {VOLUME_TAG})"
        yield warn(Area.DAGSTER, f"{text}; the lock keeps them apart, but the UI does not show which run waits", _COPY)
    if instance.run_monitoring_enabled:
        yield ok(Area.DAGSTER, "runs that do not start, or do not end in time, are marked failed")
    else:
        yield warn(Area.DAGSTER, "a killed run stays 'started' forever: run monitoring is off", _COPY)


def _shared_keys(instance: dg.DagsterInstance, dump: dg.AssetKey) -> Iterator[Observation]:
    """Report two code locations with one asset key: Dagster would show the histories of both databases as one."""
    since = (datetime.now(UTC) - SHARED_KEY_WINDOW).timestamp()
    newest = instance.fetch_materializations(dg.AssetRecordsFilter(asset_key=dump, after_timestamp=since), limit=10)
    runs = instance.get_runs(dg.RunsFilter(run_ids=[record.run_id for record in newest.records] or ["none"]))
    locations = sorted({where for run in runs if (where := _location_of(run))})
    if len(locations) > 1:
        text = f"the code locations {' and '.join(locations)} share the asset {dump.to_user_string()}"
        fix = "set BACKUP_ASSET_PREFIX for all but one; if one is another's former name, this ends within two days"
        yield warn(Area.DAGSTER, f"{text}: Dagster shows their backups as one", fix)


def main() -> None:
    """Print the report on the instance in DAGSTER_HOME as JSON."""
    try:
        with dg.DagsterInstance.get() as instance:
            lines = list(instance_lines(instance, Settings.load()))
    except Exception as error:  # noqa: BLE001 - dagster.yaml and three kinds of storage fail in too many ways to list
        lines = [_unusable(error)]
    json.dump([line.as_dict() for line in lines], sys.stdout)


def _unusable(error: Exception) -> Observation:
    home = os.environ.get("DAGSTER_HOME", "")
    # Without SQLAlchemy's statement and link, which do not help an operator. A failed connection has no statement.
    why = " ".join(re.split(r"\n(?=\[SQL: |\(Background on )", str(error), maxsplit=1)[0].split())
    fix = f"ls -la {shell_word(home)}; check its dagster.yaml, and the storage that it names"
    return fail(Area.DAGSTER, f"the instance in DAGSTER_HOME={home} cannot be used: {why}", fix)


if __name__ == "__main__":
    main()

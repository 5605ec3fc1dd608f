"""The freshness alert: what is late, by how much, why as far as is known, and what to do; and the all-clear.

It tells as well of what else nobody may have seen: a restore that was left unfinished, and kept databases that stay.

When it is asked for is ``sensors``' business; how it is delivered, ``notifications``'.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import dagster as dg

from ovia_backup_dagster.core import deadline
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.errors import (
    BackupError,
    DrillError,
    DrillOverdueError,
    JournalError,
    KeptDatabasesError,
    NotFreshError,
    RestoreUnfinishedError,
    RunFailedError,
    SettingsError,
    StalledVolumeError,
    VolumeError,
)
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import (
    DAILY_BACKUP_JOB,
    FRESHNESS_ALERT,
    FRESHNESS_SENSOR,
    KEPT_DATABASES_JOB,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import MAX_RETRIES, OWNERS, database_tags, errors_as_failures, run_tags
from ovia_backup_dagster.defs.run_configs import AlertConfig
from ovia_backup_dagster.drill.folder import DrillStanding
from ovia_backup_dagster.health.condition import Mark, Question, answers
from ovia_backup_dagster.health.freshness import AGAIN, Freshness, Level, freshness
from ovia_backup_dagster.restoration.folder import RestoreStanding
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem

#: All else is about the backups themselves.
_KINDS: Mapping[type[BackupError], str] = {
    DrillError: "drill",
    RunFailedError: "run",
    RestoreUnfinishedError: "restore",
    JournalError: "restore",
    KeptDatabasesError: "kept",
}
_DESCRIPTION = (
    "How the backups stand, a check for each question. Tells people, through BACKUP_NOTIFY_URLS, that the "
    "newest dump is too old, missing, or dated in the future, that the daily backup failed, that a restore "
    f"drill failed or is overdue, that a restore was left unfinished, that `{KEPT_DATABASES_JOB}` failed; or "
    f"that this is over. Materialized by `{FRESHNESS_SENSOR}`, also when all is well, after each day's backup; "
    "launched by hand it says how things stand, and sends only if something is wrong."
)
T = TypeVar("T")
#: Dagster's own tag on a failed run that it is going to repeat.
_WILL_RETRY_TAG = "dagster/will_retry"


@dataclass(frozen=True, slots=True)
class FailedRun:
    """The last run of a job that failed, if none succeeded since.

    Attributes:
        run_id: Dagster's.
        at: when it ended (UTC).
        reason: the failed step's message.
    """

    run_id: str
    at: datetime
    reason: str

    @property
    def trouble(self) -> RunFailedError:
        what = f"{DAILY_BACKUP_JOB} failed at {self.at:%Y-%m-%d %H:%M} UTC, and no backup was proven since"
        return RunFailedError(what, why=self.reason, fix=f"mend that, then {AGAIN}")

    @property
    def kept_trouble(self) -> KeptDatabasesError:
        what = f"{KEPT_DATABASES_JOB} failed at {self.at:%Y-%m-%d %H:%M} UTC, and what restores have kept stays"
        fix = f"mend that, then launch {KEPT_DATABASES_JOB} in the Dagster UI; the run that failed is {self.run_id}"
        return KeptDatabasesError(what, why=self.reason, fix=fix)


@dataclass(frozen=True, slots=True)
class Condition:
    """How the backups stand.

    Attributes:
        found: their freshness; ``None`` when the volume cannot be read, or not in time.
        drills: how the restore drills stand; likewise.
        restores: how the restores stand; likewise.
        last_proven: the newest proven backup; looked up only when something is wrong.
        troubles: what is wrong, the worst first; empty when all is well.
        failed: the run that is one of the troubles.
    """

    found: Freshness | None
    drills: DrillStanding | None
    restores: RestoreStanding | None
    last_proven: Backup | None
    troubles: tuple[BackupError, ...]
    failed: FailedRun | None = None

    @property
    def trouble(self) -> str:
        """All of it in a sentence; empty when all is well."""
        # What is not fresh says all of it in "what"; its "why" is a guess. Why a run failed has a line of its own.
        enough = (NotFreshError, DrillOverdueError, RunFailedError)
        return shortened("; ".join(e.what if isinstance(e, enough) else e.account for e in self.troubles))

    @property
    def kinds(self) -> str:
        """What the troubles are about, in a word: another kind is told at once, whoever was told what before."""
        return "+".join(sorted(set(map(_kind, self.troubles))))


def _kind(trouble: BackupError) -> str:
    return next((kind for error, kind in _KINDS.items() if isinstance(trouble, error)), "backup")


def condition(system: BackupSystem, names: DatabaseNames, now: datetime, instance: dg.DagsterInstance) -> Condition:
    """Look at the volume, and at how this database's last runs of the jobs that people are told of ended.

    Raises:
        SettingsError: POSTGRES_HOST is not set: there is nothing to watch.
    """
    settings = system.settings
    if settings.postgres_host is None:
        settings.require()
    # Settings that are wrong in another way are a reason to alert, not one to stay silent.
    watched = BackupSystem(settings.model_copy(update={"problems": ()}))
    last_proven: Backup | None = None
    try:
        looked = _in_time(watched, lambda: _look(watched, now))
    except StalledVolumeError as error:
        looked = _Looked(troubles=[error])
    troubles, unfinished = looked.troubles, looked.unfinished
    try:
        settings.require()
    except SettingsError as error:
        troubles.append(error)
    # What is wrong with the backups themselves comes first: a run that failed of it is told of with it, not beside it.
    only_drills = all(isinstance(e, DrillError) for e in troubles)
    failed = kept = None
    if only_drills:
        failed = failed_by_itself(instance, names.in_location(DAILY_BACKUP_JOB), run_tags(settings))
        kept = failed_by_itself(instance, names.in_location(KEPT_DATABASES_JOB), database_tags(settings))
    if kept:
        troubles.append(kept.kept_trouble)
    if troubles or failed or unfinished:
        with contextlib.suppress(VolumeError):
            last_proven = _in_time(watched, lambda: watched.catalog.newest(now, State.PROVEN))
    if failed and last_proven and last_proven.started_at > failed.at:
        failed = None
    if failed:
        troubles.insert(0, failed.trouble)
    if unfinished:
        troubles.insert(0, unfinished)
    return Condition(looked.found, looked.drills, looked.restores, last_proven, tuple(troubles), failed)


@dataclass
class _Looked:
    """What stands on the volume; parts as in :class:`Condition`."""

    found: Freshness | None = None
    drills: DrillStanding | None = None
    restores: RestoreStanding | None = None
    troubles: list[BackupError] = field(default_factory=list)
    unfinished: BackupError | None = None


def _look(watched: BackupSystem, now: datetime) -> _Looked:
    looked = _Looked()
    try:
        looked.found = freshness(watched.catalog.newest_first(), watched.max_age, now)
        if looked.found.trouble:
            looked.troubles.append(looked.found.trouble)
        looked.drills = watched.drills.standing(watched.drill_max_age, now)
        if looked.drills.trouble:
            looked.troubles.append(looked.drills.trouble)
    except VolumeError as error:
        looked.troubles.append(error)
    # A restore that was left alone may be why no one can work: it is told of whatever else is wrong.
    try:
        looked.restores = watched.restores.standing()
        looked.unfinished = looked.restores.trouble
    except VolumeError as error:
        looked.unfinished = error
    return looked


def _in_time(watched: BackupSystem, look: Callable[[], T]) -> T:
    """A volume whose server is gone must be told of: neither the sensor nor the run that tells people waits for it."""
    return deadline.within_deadline(deadline.LOOK_SECONDS, watched.catalog.root, look)


def build_alert(system: BackupSystem, names: DatabaseNames) -> dg.AssetsDefinition:
    """The alert asset: it tells of this database alone."""
    # For what nobody thought of; our own errors say themselves whether they may pass.
    retry = dg.RetryPolicy(max_retries=MAX_RETRIES, delay=system.retry_seconds, backoff=dg.Backoff.EXPONENTIAL)

    @dg.asset(
        key=names.key(FRESHNESS_ALERT),
        group_name=names.alert_group,
        kinds={"alert"},
        owners=OWNERS,
        retry_policy=retry,
        check_specs=[
            dg.AssetCheckSpec(question.value, asset=names.key(FRESHNESS_ALERT), description=question.description)
            for question in Question
        ],
        description=names.in_words(_DESCRIPTION),
    )
    def backup_freshness_alert(
        context: dg.AssetExecutionContext, config: AlertConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        with errors_as_failures(context, system, names.in_words):
            now = datetime.now(UTC)
            state = condition(system, names, now, context.instance)
            failed = state.failed or last_failed_run(
                context.instance, names.in_location(DAILY_BACKUP_JOB), run_tags(system.settings)
            )
            results = list(alert_check_results(state, failed, names, now))
            shown: metadata.Metadata = {}
            if state.trouble or config.all_clear:
                title, body = message(system, names, state, failed, since=config.episode)
                context.log.info(f"{title}\n{body}")
                delivery = system.notifier.send(title, body, failure=bool(state.trouble))
                if delivery.failed:
                    context.log.warning(f"not everybody was told: {', '.join(delivery.failed)}")
                shown |= {"title": dg.MetadataValue.text(title), "message": dg.MetadataValue.text(body)}
                shown |= metadata.of_delivery(delivery)
            else:
                shown["message"] = dg.MetadataValue.text("nothing is wrong; no message was sent")
            shown |= metadata.of_freshness(state.found) if state.found else {}
            if failed is not None:
                shown["last_failed_run"] = dg.MetadataValue.dagster_run(failed.run_id)
                shown["last_failure"] = dg.MetadataValue.text(failed.reason)
            if config.episode:
                shown["episode"] = dg.MetadataValue.text(config.episode)
        yield dg.MaterializeResult(metadata=shown, check_results=results)

    return backup_freshness_alert


def alert_check_results(
    state: Condition, failed: FailedRun | None, names: DatabaseNames, now: datetime
) -> Iterator[dg.AssetCheckResult]:
    """A result for each question: red exactly where people are told of something.

    Args:
        state: how the backups stand.
        failed: the last failed run, if it explains anything.
        names: of the database's definitions.
        now: the present (UTC).
    """
    run = f"{DAILY_BACKUP_JOB} failed at {failed.at:%Y-%m-%d %H:%M} UTC: {failed.reason}" if failed else ""
    for answer in answers(state.troubles, state.found, state.drills, state.restores, run, now):
        unknown = answer.mark is Mark.UNKNOWN
        yield dg.AssetCheckResult(
            check_name=answer.question.value,
            passed=answer.mark is Mark.WELL,
            severity=dg.AssetCheckSeverity.WARN if unknown else dg.AssetCheckSeverity.ERROR,
            description=names.in_words(answer.text),
            metadata={"next": dg.MetadataValue.text(names.in_words(answer.fix))} if answer.fix else None,
        )


def message(
    system: BackupSystem, names: DatabaseNames, state: Condition, failed: FailedRun | None, *, since: str = ""
) -> tuple[str, str]:
    """Title and body, for a person who reads it on a telephone.

    Args:
        system: whose backups they are.
        names: of its definitions.
        state: how the backups stand.
        failed: the last failed run, if it explains anything.
        since: when the trouble began, for the all-clear.
    """
    settings = system.settings
    database = settings.postgres_db
    whose = label(settings)
    if not state.trouble:
        title = f"[{whose}] all is well with the backups again"
        lines: list[str | None] = [
            f"{_sentence(state.found.text)}." if state.found else None,
            f"{_sentence(state.drills.text(datetime.now(UTC)))}." if state.drills else None,
            f"The trouble began {_minute(since)}." if since else None,
        ]
        return title, "\n".join(line for line in lines if line)
    level = state.found.level if state.found else None
    title = f"[{whose}] {_headline(level, state.troubles[0])}"
    rejected = state.found.rejected if state.found else ()
    # A run that failed, or a dump found bad, says more than a guess.
    guess = "" if failed or rejected or not (state.found and state.found.trouble) else state.found.trouble.why
    link = f"{settings.dagster_public_url}/runs/{failed.run_id}" if settings.dagster_public_url and failed else ""
    lines = [
        f"What: {state.trouble}.",
        f"Where: {database} at {settings.postgres_host}:{settings.postgres_port}; backups in {settings.backup_dir}.",
        f"Likely cause: {guess}" if guess else None,
        f"Last proven backup: {state.last_proven or 'none'}.",
        f"Last failed run: {failed.run_id} at {failed.at:%Y-%m-%d %H:%M} UTC. {link}" if failed else None,
        f"Why it failed: {failed.reason}" if failed else None,
        f"Why newer ones are bad: {'; '.join(_reasons(rejected))}." if rejected else None,
        *(f"Next: {error.fix}" for error in state.troubles),
    ]
    return names.in_words(title), names.in_words("\n".join(line.rstrip() for line in lines if line))


def label(settings: Settings) -> str:
    """Whose backups they are: the database, and the prefix where there is one that says more."""
    return "/".join(dict.fromkeys(filter(None, (settings.backup_asset_prefix, settings.postgres_db))))


def _headline(level: Level | None, first: BackupError) -> str:
    """The worst of it; ``first`` of the troubles, where the newest backup is fresh or it is about a restore."""
    if isinstance(first, RestoreUnfinishedError):
        return "a restore is unfinished"
    if isinstance(first, JournalError):
        return "nobody knows whether a restore is unfinished"
    if isinstance(first, StalledVolumeError):
        return "the backup volume does not answer"
    if level is None or (level is Level.FRESH and isinstance(first, VolumeError)):
        return "the backup volume cannot be read"
    if level is Level.FRESH and isinstance(first, RunFailedError):
        return "the daily backup failed"
    if level is Level.FRESH and isinstance(first, DrillOverdueError):
        return "no restore drill has passed for long"
    if level is Level.FRESH and isinstance(first, DrillError):
        return "the restore drill failed"
    if level is Level.FRESH and isinstance(first, KeptDatabasesError):
        return f"{KEPT_DATABASES_JOB} failed"
    return {
        Level.STALE: "the newest backup is too old",
        Level.UNPROVEN: "backups are made, but none is proven",
        Level.MISSING: "there is no backup",
        Level.FUTURE: "the newest backup is dated in the future",
        Level.FRESH: "the backup settings are not usable",
    }[level]


def last_failed_run(instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str]) -> FailedRun | None:
    """The newest finished run of the job with these tags, if it failed: jobs of other databases share its name.

    Or was cancelled: that explains a dump that is missing, too.
    """
    ended = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    return _failed(instance, _newest(instance, job_name, tags, ended))


def failed_by_itself(instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str]) -> FailedRun | None:
    """The newest run that nobody cancelled, if it failed, and Dagster will not repeat it: reason enough to tell."""
    newest = _newest(instance, job_name, tags, (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE))
    if newest is None or newest.dagster_run.tags.get(_WILL_RETRY_TAG) == "true":
        return None
    return _failed(instance, newest)


def _newest(
    instance: dg.DagsterInstance, job_name: str, tags: Mapping[str, str], statuses: Sequence[dg.DagsterRunStatus]
) -> dg.RunRecord | None:
    runs = dg.RunsFilter(job_name=job_name, statuses=statuses, tags=tags)
    return next(iter(instance.get_run_records(runs, limit=1)), None)


def _failed(instance: dg.DagsterInstance, record: dg.RunRecord | None) -> FailedRun | None:
    if record is None or record.dagster_run.status is dg.DagsterRunStatus.SUCCESS:
        return None
    ended = datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)
    return FailedRun(record.dagster_run.run_id, ended, _failure_reason(instance, record.dagster_run.run_id))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _minute(instant: str) -> str:
    try:
        return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:  # typed by hand in the launchpad
        return instant


def _failure_reason(instance: dg.DagsterInstance, run_id: str) -> str:
    """What the failed step said, in one line; the run's own end when no step got that far."""
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
                while error and error.cause:  # the outer ones are Dagster's own wrapping
                    error = error.cause
                if error:
                    return " ".join(error.message.split())
            if event.message:
                return event.message
    return "it ended without a message; see its log"


def _reasons(rejected: Iterable[Backup]) -> Iterable[str]:
    for backup in rejected:
        yield f"{backup}: {backup.problem.why}" if backup.problem else f"{backup}"

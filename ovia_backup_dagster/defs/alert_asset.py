"""The freshness alert as an asset: the condition of the backups, a check per question, and who was notified.

``health.condition`` assesses the condition, ``health.alert_message`` words the alert, ``sensors`` decides when to send
it, and ``notifications`` delivers it.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg

from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import FRESHNESS_ALERT, FRESHNESS_SENSOR, KEPT_DATABASES_JOB, DatabaseNames
from ovia_backup_dagster.defs.last_runs import failed_runs
from ovia_backup_dagster.defs.policies import MAX_RETRIES, OWNERS, errors_as_failures
from ovia_backup_dagster.defs.run_configs import AlertConfig
from ovia_backup_dagster.health.alert_message import Sender, alert, all_clear
from ovia_backup_dagster.health.condition import Condition, ConditionLevel, Question, assess
from ovia_backup_dagster.health.head_line import with_log_head
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem

_DESCRIPTION = (
    "The condition of the backups, with a check for each question. Sends an alert through BACKUP_NOTIFY_URLS if the "
    "newest dump is too old, missing, bad, or dated in the future, if the daily backup failed, if a restore drill "
    f"failed or is overdue, if a restore is unfinished, if `{KEPT_DATABASES_JOB}` failed, or with PITR_ENABLED if "
    "WAL or base backups arrive late or incomplete; and an all-clear when the trouble is over. "
    f"`{FRESHNESS_SENSOR}` materializes it, also when all is well, after each day's backup. Launched by hand, it shows "
    "the condition, and sends a message only if something is wrong."
)


def condition(system: BackupSystem, names: DatabaseNames, now: datetime, instance: dg.DagsterInstance) -> Condition:
    """The condition of the backups, including this database's failed runs in Dagster.

    Raises:
        SettingsError: POSTGRES_HOST is not set, so there is nothing to monitor.
    """
    watched = system.watched
    runs = failed_runs(instance, system.settings, names)
    return assess(watched, now, settings=system.settings_error, runs=runs)


def build_alert(system: BackupSystem, names: DatabaseNames) -> dg.AssetsDefinition:
    """The alert asset of one database."""
    # For unforeseen errors. Our own errors say whether they are transient (``errors_as_failures``).
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
            if question is not Question.PITR or system.pitr.enabled
        ],
        description=names.in_words(_DESCRIPTION),
    )
    def backup_freshness_alert(
        context: dg.AssetExecutionContext, config: AlertConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        with errors_as_failures(context, system, names.in_words):
            now = datetime.now(UTC)
            state = condition(system, names, now, context.instance)
            shown: metadata.Metadata = {}
            if state.told or config.all_clear:
                whose = _sender(system.settings)
                told = alert(whose, state) if state.told else all_clear(whose, state, now, since=config.episode)
                title, body = names.in_words(told[0]), with_log_head(names.in_words(told[1]), system)
                context.log.info(f"{title}\n{body}")
                delivery = system.notifier.send(title, body, failure=bool(state.told))
                if delivery.failed:
                    context.log.warning(f"some channels did not accept the message: {', '.join(delivery.failed)}")
                shown |= {"title": dg.MetadataValue.text(title), "message": dg.MetadataValue.text(body)}
                shown |= metadata.of_delivery(delivery)
            else:
                shown["message"] = dg.MetadataValue.text("nothing is wrong; no message was sent")
            shown |= metadata.of_freshness(state.found) if state.found else {}
            shown |= metadata.of_pitr(state.pitr) if state.pitr else {}
            if state.failed is not None:
                shown["last_failed_run"] = dg.MetadataValue.dagster_run(state.failed.run_id)
                shown["last_failure"] = dg.MetadataValue.text(state.failed.reason)
            if config.episode:
                shown["episode"] = dg.MetadataValue.text(config.episode)
        yield dg.MaterializeResult(metadata=shown, check_results=list(_check_results(state, names.in_words)))

    return backup_freshness_alert


def _check_results(state: Condition, words: Callable[[str], str]) -> Iterator[dg.AssetCheckResult]:
    """A result for each question: passed if its level is ok, a warning or an error otherwise."""
    for answer in state.answers:
        warning = answer.level is ConditionLevel.WARNING
        yield dg.AssetCheckResult(
            check_name=answer.question.value,
            passed=answer.level is ConditionLevel.OK,
            severity=dg.AssetCheckSeverity.WARN if warning else dg.AssetCheckSeverity.ERROR,
            description=words(answer.text),
            metadata={"next": dg.MetadataValue.text(words(answer.fix))} if answer.fix else None,
        )


def _sender(settings: Settings) -> Sender:
    return Sender(
        label=_label(settings),
        database=settings.postgres_db,
        host=settings.postgres_host or "",
        port=settings.postgres_port,
        backup_dir=settings.backup_dir,
        public_url=settings.dagster_public_url or "",
    )


def _label(settings: Settings) -> str:
    """The database's name for the title of a message, after the prefix if there is one that differs from it."""
    return "/".join(dict.fromkeys(filter(None, (settings.backup_asset_prefix, settings.postgres_db))))

"""``restore_job``: a restore from the UI, with the same plan, guards and confirmation as the command line's.

It makes no asset: what it changes is the database itself. What is done, and how, lives in ``restoration``.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.core.restoration import Mode, Record, StopServices
from ovia_backup_dagster.core.restoration_page import page
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.configs import RestoreAction, RestoreConfig
from ovia_backup_dagster.defs.policies import KEPT_DATABASES_JOB, RESTORE_JOB, database_tags, explained, names
from ovia_backup_dagster.defs.resources import Backups
from ovia_backup_dagster.restoration.plan import Wishes
from ovia_backup_dagster.settings import Settings
from ovia_backup_dagster.system import BackupSystem

OP = "restore"
KEPT_OP = "kept_databases"
#: Dagster's run_retries would launch a failed run anew, with what a person confirmed of another day's plan.
_NEVER_AGAIN = {"dagster/max_retries": "0"}


def build_restore(settings: Settings) -> dg.JobDefinition:
    """The job. Neither it nor its op may ever be retried: what a restore needs after a failure is a person."""

    @dg.op(
        name=OP,
        pool=names(settings).restore_pool,
        description="Brings a backup back: restores it beside the live database, proves every row, and swaps the two. "
        "`plan` only says what would be done; everything that touches the live database needs its name repeated in "
        "`confirm`. The record stands in `restores/` on the volume.",
    )
    def restore(context: dg.OpExecutionContext, config: RestoreConfig, backups: Backups) -> None:
        with explained(context, backups, retry=False):
            record = _act(context, config, backups)
            if record is None:
                return
            folder = backups.restorations.folder.path
            context.add_output_metadata(metadata.of_restore(record, folder, page(record)))
            if record.error and (config.action is not RestoreAction.abort or record.outcome == "given up"):
                raise RestoreError(record.error, fix=record.fix or f"read {folder / record.order.filename}.md")

    @dg.job(
        name=RESTORE_JOB,
        tags={**database_tags(settings), **_NEVER_AGAIN},
        executor_def=dg.in_process_executor,
        description="Bring a backup back, so that it can be undone; or only say what that would mean.",
    )
    def job() -> None:
        restore()

    return job


def build_kept_databases(settings: Settings) -> dg.JobDefinition:
    """The job that ends what restores have kept."""

    @dg.op(
        name=KEPT_OP,
        out=dg.Out(dg.Nothing),
        pool=names(settings).restore_pool,
        description="Tells people two days before RESTORE_KEEP_DAYS are over that the database which a restore "
        "replaced will be dropped; then drops it. One that nobody could be told of stays.",
    )
    def expire(context: dg.OpExecutionContext, backups: Backups) -> None:
        def tell(title: str, text: str) -> bool:
            return bool(backups.notifier.send(f"Ovia backup: {title}", text, failure=False).delivered)

        with explained(context, backups):
            keep = timedelta(days=backups.settings.restore_keep_days)
            backups.restorations.expire(keep, tell, datetime.now(UTC), context.log.info)

    @dg.job(
        name=KEPT_DATABASES_JOB,
        tags=database_tags(settings),
        executor_def=dg.in_process_executor,
        description="Announce, and then drop, the databases that restores have replaced.",
    )
    def job() -> None:
        expire()

    return job


def _act(context: dg.OpExecutionContext, config: RestoreConfig, backups: BackupSystem) -> Record | None:
    restorations, log = backups.restorations, context.log.info
    if config.without_services:
        restorations = restorations.without_services()
    if config.action is RestoreAction.resume:
        return restorations.resume(log)
    if config.action is RestoreAction.abort:
        return restorations.abort(log, config.confirm)
    who, now = context.run.tags.get("user", "Dagster, by hand"), datetime.now(UTC)
    planner = restorations.planner
    if config.action is RestoreAction.undo:
        plan = planner.plan_undo(who, context.run_id, now, kept_name=config.kept)
    else:
        plan = planner.plan(_wishes(config, backups), who, context.run_id, now)
    for line in plan.lines():
        log(line)
    context.add_output_metadata(metadata.of_restore_plan(plan))
    if config.action is RestoreAction.plan:
        return None
    return restorations.run(plan, config.confirm, log)


def _wishes(config: RestoreConfig, backups: BackupSystem) -> Wishes:
    return Wishes(
        backup=config.backup,
        # Whoever reaches the UI must not have any file of the host opened.
        anywhere=False,
        mode=Mode(config.mode.value),
        into=config.into,
        jobs=backups.restore_jobs(config.jobs),
        stop_services=StopServices.FIRST if config.stop_services_first else StopServices.AT_SWAP,
        replicas=config.replicas,
        new_host=config.new_host,
        create_roles=config.create_roles,
        privileged_roles=tuple(config.privileged_roles),
        even_if_damaged=config.even_if_damaged,
        auto_undo=config.auto_undo,
    )

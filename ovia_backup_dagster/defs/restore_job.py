"""``restore_job``: restores from the UI, with the same plan, guards and confirmation as on the command line.

It is a job without assets, because it changes the database itself. The restore is implemented in ``restoration``.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from ovia_backup_dagster.core.errors import RestoreError, RestoreRefusedError
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import KEPT_DATABASES_JOB, RESTORE_JOB, DatabaseNames
from ovia_backup_dagster.defs.launchpad_words import Words, in_the_ui, told
from ovia_backup_dagster.defs.policies import (
    NO_TIME_LIMIT,
    Priority,
    database_tags,
    errors_as_failures,
    repeated,
    words_of,
)
from ovia_backup_dagster.defs.run_configs import RestoreAction, RestoreConfig
from ovia_backup_dagster.health.head_line import with_log_head
from ovia_backup_dagster.pitr.extraction import is_extract
from ovia_backup_dagster.restoration.plan import RestorePlan
from ovia_backup_dagster.restoration.planner import Planner
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, StopServices
from ovia_backup_dagster.restoration.table_copy import parse_tables
from ovia_backup_dagster.system import BackupSystem

OP = "restore"
KEPT_OP = "kept_databases"
#: Dagster's run_retries would repeat a failed run with a confirmation that a person gave for an earlier plan.
_NEVER_AGAIN = {"dagster/max_retries": "0"}
#: Actions that change nothing, and so may be repeated.
_ONLY_SHOWN = (RestoreAction.plan, RestoreAction.plan_undo)


def build_restore(system: BackupSystem, names: DatabaseNames) -> dg.JobDefinition:
    """The restore job. Neither the job nor its op is ever retried: after a failed restore a person has to decide."""

    def words(text: str) -> str:
        return names.in_words(in_the_ui(text))

    @dg.op(
        name=names.in_location(OP),
        pool=names.restore_pool,
        description="Restores a backup beside the live database, compares every row, and swaps the two. `plan` only "
        "shows what would be done, and prints a word. Every action that touches the live database needs that word in "
        "`confirm`, within an hour; a word is valid once. A run that repeats another one can only plan. The record is "
        "in `restores/` on the volume.",
    )
    def restore(context: dg.OpExecutionContext, config: RestoreConfig) -> None:
        with errors_as_failures(context, system, words, retry=False):
            _refuse_repetition(context.run, config.action)
            record = _act(context, config, system, words)
            if record is None:
                return
            folder = system.restorations.folder.path
            context.add_output_metadata(metadata.of_restore_record(record, folder, words))
            if record.error and (config.action is not RestoreAction.abort or record.outcome == "given up"):
                raise RestoreError(record.error, fix=record.fix or f"read {folder / record.order.filename}.md")

    @dg.job(
        name=names.in_location(RESTORE_JOB),
        tags={**database_tags(system.settings), **_NEVER_AGAIN, **NO_TIME_LIMIT, **Priority.RESTORE.tag},
        executor_def=dg.in_process_executor,
        description="Restore a backup so that it can be undone, or only show the plan.",
    )
    def job() -> None:
        restore()

    return job


def build_kept_databases(system: BackupSystem, names: DatabaseNames) -> dg.JobDefinition:
    """The job that drops replaced databases when they expire."""

    @dg.op(
        name=names.in_location(KEPT_OP),
        out=dg.Out(dg.Nothing),
        pool=names.restore_pool,
        description="Sends a notice two days before RESTORE_KEEP_DAYS are over that the database replaced by a restore "
        "will be dropped, and then drops it. Keeps a database whose notice could not be sent.",
    )
    def expire(context: dg.OpExecutionContext) -> None:
        def tell(title: str, text: str) -> bool:
            body = with_log_head(names.in_words(text), system)
            return bool(system.notifier.send(f"Ovia backup: {title}", body, failure=False).delivered)

        with errors_as_failures(context, system, names.in_words):
            keep = timedelta(days=system.settings.restore_keep_days)
            system.restorations.kept_databases.expire(keep, tell, datetime.now(UTC), context.log.info)

    @dg.job(
        name=names.in_location(KEPT_DATABASES_JOB),
        tags=database_tags(system.settings),
        executor_def=dg.in_process_executor,
        description="Announce that databases replaced by restores will be dropped, and later drop them.",
    )
    def job() -> None:
        expire()

    return job


def _refuse_repetition(run: dg.DagsterRun, action: RestoreAction) -> None:
    """Refuse a run that repeats a decision about an earlier state of the databases.

    Raises:
        RestoreRefusedError: the run repeats another one, by "Re-execute all", a retry or the API.
    """
    before = repeated(run)
    if before and action not in _ONLY_SHOWN:
        raise RestoreRefusedError(
            f"nothing was done: this run repeats run {before}, and {action.value} is never repeated",
            why="the decision was made for the databases as they were then",
            fix=f"launch {RESTORE_JOB} from its Launchpad, first with action: plan (for an undo: plan_undo)",
        )


def _act(context: dg.OpExecutionContext, config: RestoreConfig, system: BackupSystem, words: Words) -> Record | None:
    restorations, log = system.restorations, told(context.log.info, words)
    if config.without_services:
        restorations = restorations.without_services()
    if config.action is RestoreAction.resume:
        return restorations.resume(log)
    if config.action is RestoreAction.abort:
        return restorations.abort(log, word=config.confirm)
    plan = _plan(context, config, system, restorations.planner)
    for line in plan.lines():
        log(line)
    shown = metadata.of_restore_plan(map(words, plan.lines()))
    if refusal := plan.refusal:
        # A failed op loses its output metadata, so the failure itself shows the plan.
        told_of = words_of(refusal, words) | shown
        raise dg.Failure(words(str(refusal)), metadata=told_of, allow_retries=False)
    context.add_output_metadata(shown)
    if config.action in _ONLY_SHOWN:
        if word := restorations.offer(plan):
            does = "undo" if config.action is RestoreAction.plan_undo else "restore"
            log(
                f"nothing was changed; to do it, within an hour: launch {RESTORE_JOB} again, with the same fields, "
                f"action: {does} and confirm: {word}"
            )
            context.add_output_metadata(metadata.of_word(word))
        return None
    return restorations.run(plan, "", log, word=config.confirm)


def _plan(context: dg.OpExecutionContext, config: RestoreConfig, system: BackupSystem, planner: Planner) -> RestorePlan:
    who, now = context.run.tags.get("user", "Dagster, by hand"), datetime.now(UTC)
    if config.action in (RestoreAction.undo, RestoreAction.plan_undo):
        return planner.plan_undo(who, context.run_id, now, kept_name=config.kept)
    backup = config.backup
    if config.to:
        backup = _recovered(context, config, system)
    return planner.plan(_wishes(config, system, backup), who, context.run_id, now)


def _recovered(context: dg.OpExecutionContext, config: RestoreConfig, system: BackupSystem) -> str:
    """Recover the database to an instant; returns the extract's name for ``backup``.

    Raises:
        RestoreRefusedError: the action is not a plan: a person confirms the instant that was shown.
        BackupError: the database cannot be recovered.
    """
    if config.action is not RestoreAction.plan:
        raise RestoreRefusedError(
            "nothing was done: `to` is valid only with `action: plan`",
            why="a relative time, such as `5 minutes ago`, is a different instant at each launch",
            fix="launch it again with the fields that the plan printed: backup, action and confirm, without `to`",
        )
    log = context.log.info
    plan = system.pitr.planner.plan(config.to, datetime.now(UTC), database=system.settings.postgres_db)
    for line in plan.lines():
        log(line)
    path = system.pitr.extractor.extract(plan.order, plan.recovered_to, log, run_id=context.run_id)
    name = str(path.relative_to(system.settings.backup_dir))
    log(f"the database as of that commit is recovered; to restore it, launch again without `to`, with backup: {name}")
    context.add_output_metadata({"backup": name})
    return name


def _wishes(config: RestoreConfig, system: BackupSystem, backup: str) -> Wishes:
    # An extract is the only file outside of the tiers that the UI may name.
    extract = is_extract(system.settings.backup_dir, backup)
    return Wishes(
        backup=str(system.settings.backup_dir / backup) if extract else backup,
        # A user of the UI must not be able to open arbitrary files of the host.
        anywhere=extract,
        mode=Mode(config.mode.value),
        into=config.into,
        jobs=system.restore_jobs(config.jobs),
        stop_services=StopServices.FIRST if config.stop_services_first else StopServices.AT_SWAP,
        replicas=config.replicas,
        new_host=config.new_host,
        create_roles=config.create_roles,
        privileged_roles=tuple(config.privileged_roles),
        even_if_damaged=config.even_if_damaged,
        auto_undo=config.auto_undo,
        tables=parse_tables(config.tables),
    )

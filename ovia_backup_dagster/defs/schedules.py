"""When jobs run by themselves."""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.settings.model import Settings

NAME = "daily_backup_schedule"
DRILL_NAME = "restore_drill_schedule"
HISTORY_NAME = "history_pruning_schedule"
KEPT_NAME = "kept_databases_schedule"


def daily_backup_schedule(settings: Settings, job_name: str) -> dg.ScheduleDefinition:
    """The daily backup, on unless somebody switches it off.

    Only Dagster knows which cron expressions it takes; ``usable_schedule`` has asked it before.
    """
    return dg.ScheduleDefinition(
        name=NAME,
        job_name=job_name,
        cron_schedule=settings.backup_schedule,
        execution_timezone=settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Every day by BACKUP_SCHEDULE ({settings.backup_schedule}, {settings.backup_timezone}). After "
        "an outage only the latest missed tick is made up for.",
    )


def restore_drill_schedule(settings: Settings, job_name: str) -> dg.ScheduleDefinition:
    """The monthly drill, on unless somebody switches it off."""
    return dg.ScheduleDefinition(
        name=DRILL_NAME,
        job_name=job_name,
        cron_schedule=settings.drill_schedule,
        execution_timezone=settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"By DRILL_SCHEDULE ({settings.drill_schedule}, {settings.backup_timezone}): the newest backup.",
    )


def history_pruning_schedule(settings: Settings, job_name: str) -> dg.ScheduleDefinition:
    """The weekly end of Dagster's history, on unless somebody switches it off. When does not matter."""
    return dg.ScheduleDefinition(
        name=HISTORY_NAME,
        job_name=job_name,
        cron_schedule="30 6 * * 0",
        execution_timezone=settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Every Sunday: runs that ended more than {settings.dagster_keep_runs_days} days ago "
        "(DAGSTER_KEEP_RUNS_DAYS) go.",
    )


def kept_databases_schedule(settings: Settings, job_name: str) -> dg.ScheduleDefinition:
    """Daily, on unless somebody switches it off. It does nothing but in the weeks after a restore."""
    return dg.ScheduleDefinition(
        name=KEPT_NAME,
        job_name=job_name,
        cron_schedule="15 6 * * *",
        execution_timezone=settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Every day: what restores have kept goes after {settings.restore_keep_days:g} days "
        "(RESTORE_KEEP_DAYS), announced two days before.",
    )


def usable_schedules(settings: Settings) -> Settings:
    """The settings, with cron expressions that Dagster takes: else the default, and a problem that says so."""
    for name, example in (("backup_schedule", "0 3 * * *"), ("drill_schedule", "0 5 1 * *")):
        value = getattr(settings, name)
        try:
            dg.ScheduleDefinition(job_name="any", cron_schedule=value)
        except dg.DagsterInvalidDefinitionError:
            problem = f"{name.upper()}: {value!r} is not a cron expression, such as {example!r}"
            default = Settings.model_fields[name].default
            settings = settings.model_copy(update={name: default, "problems": (*settings.problems, problem)})
    return settings

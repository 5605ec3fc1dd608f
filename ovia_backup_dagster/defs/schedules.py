"""When jobs run by themselves."""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.settings import Settings

NAME = "daily_backup_schedule"


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


def usable_schedule(settings: Settings) -> Settings:
    """The settings, with a cron expression that Dagster takes: else the default, and a problem that says so."""
    try:
        dg.ScheduleDefinition(job_name="any", cron_schedule=settings.backup_schedule)
    except dg.DagsterInvalidDefinitionError:
        problem = f"BACKUP_SCHEDULE: {settings.backup_schedule!r} is not a cron expression, such as '0 3 * * *'"
        default = Settings.model_fields["backup_schedule"].default
        return settings.model_copy(update={"backup_schedule": default, "problems": (*settings.problems, problem)})
    return settings

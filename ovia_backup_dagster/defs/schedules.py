"""The schedules, and which cron expressions Dagster accepts."""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.defs.database_names import (
    BASE_BACKUP_JOB,
    BASE_BACKUP_SCHEDULE,
    DAILY_BACKUP_JOB,
    DAILY_BACKUP_SCHEDULE,
    HISTORY_PRUNING_JOB,
    HISTORY_PRUNING_SCHEDULE,
    KEPT_DATABASES_JOB,
    KEPT_DATABASES_SCHEDULE,
    OFFSITE_VERIFICATION_JOB,
    OFFSITE_VERIFICATION_SCHEDULE,
    RESTORE_DRILL_JOB,
    RESTORE_DRILL_SCHEDULE,
    DatabaseNames,
)
from ovia_backup_dagster.settings.model import Settings


def build_schedules(settings: Settings, names: DatabaseNames) -> list[dg.ScheduleDefinition]:
    """All schedules, on by default.

    The settings' cron expressions must be ones that Dagster accepts: see ``usable_schedules``.
    """
    zone = settings.backup_timezone
    daily, drill = _cron(settings, names, "backup_schedule"), _cron(settings, names, "drill_schedule")

    def schedule(name: str, job: str, cron: str, description: str) -> dg.ScheduleDefinition:
        return dg.ScheduleDefinition(
            name=names.in_location(name),
            job_name=names.in_location(job),
            cron_schedule=cron,
            execution_timezone=zone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=description,
        )

    found = [
        schedule(
            DAILY_BACKUP_SCHEDULE,
            DAILY_BACKUP_JOB,
            daily,
            f"Launches the daily backup by BACKUP_SCHEDULE ({daily}, {zone}). After an outage, only the latest missed "
            "tick is launched.",
        ),
        schedule(
            RESTORE_DRILL_SCHEDULE,
            RESTORE_DRILL_JOB,
            drill,
            f"Launches a drill of the newest backup by DRILL_SCHEDULE ({drill}, {zone}).",
        ),
        # The time does not matter.
        schedule(
            HISTORY_PRUNING_SCHEDULE,
            HISTORY_PRUNING_JOB,
            _staggered("30 6 * * 0", names),
            f"Every Sunday, removes runs that ended more than {settings.dagster_keep_runs_days} days ago "
            "(DAGSTER_KEEP_RUNS_DAYS).",
        ),
        # The job has work only in the weeks after a restore.
        schedule(
            KEPT_DATABASES_SCHEDULE,
            KEPT_DATABASES_JOB,
            _staggered("15 6 * * *", names),
            f"Every day, drops databases that were replaced by restores {settings.restore_keep_days:g} days ago "
            "(RESTORE_KEEP_DAYS), after a notice two days before.",
        ),
    ]
    if settings.offsite_remotes:
        weekly = _cron(settings, names, "offsite_verification_schedule")
        verification = schedule(
            OFFSITE_VERIFICATION_SCHEDULE,
            OFFSITE_VERIFICATION_JOB,
            weekly,
            f"Checks the copies on every remote by OFFSITE_VERIFICATION_SCHEDULE ({weekly}, {zone}).",
        )
        found.append(verification)
    if settings.pitr_enabled:
        base = _cron(settings, names, "base_backup_schedule")
        bases = schedule(
            BASE_BACKUP_SCHEDULE,
            BASE_BACKUP_JOB,
            base,
            f"Makes a base backup by BASE_BACKUP_SCHEDULE ({base}, {zone}), and removes what it makes superfluous.",
        )
        found.append(bases)
    return found


def _cron(settings: Settings, names: DatabaseNames, field: str) -> str:
    """The cron expression that was set, unchanged, or the default, staggered by database."""
    cron: str = getattr(settings, field)
    return cron if field in settings.model_fields_set else _staggered(cron, names)


def _staggered(cron: str, names: DatabaseNames) -> str:
    """In a shared code location, give each database its own minute, so that they do not all start at once."""
    _, rest = cron.split(" ", 1)
    return f"{names.schedule_minute} {rest}" if names.shares_location else cron


#: The settings that are cron expressions, with an example for each.
_EXAMPLES = {
    "backup_schedule": "0 3 * * *",
    "drill_schedule": "0 5 1 * *",
    "offsite_verification_schedule": "0 7 * * 0",
    "base_backup_schedule": "30 1 * * 6",
}


def usable_schedules(settings: Settings) -> Settings:
    """The settings; a cron expression that Dagster refuses is replaced by the default and reported in ``problems``."""
    for name, example in _EXAMPLES.items():
        value = getattr(settings, name)
        try:
            dg.ScheduleDefinition(job_name="any", cron_schedule=value)
        except dg.DagsterInvalidDefinitionError:
            problem = f"{name.upper()}: {value!r} is not a cron expression, such as {example!r}"
            default = Settings.model_fields[name].default
            settings = settings.model_copy(update={name: default, "problems": (*settings.problems, problem)})
    return settings

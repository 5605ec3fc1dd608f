"""All definitions of one database. None is global, so that the definitions of several databases can be merged.

This module has no logic. Each definition has its own module; ``database_names`` has their names.
"""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.defs.alert_asset import build_alert
from ovia_backup_dagster.defs.backup_assets import build_backup_assets
from ovia_backup_dagster.defs.database_names import DatabaseNames
from ovia_backup_dagster.defs.doctor_asset import build_doctor
from ovia_backup_dagster.defs.drill_asset import build_drill
from ovia_backup_dagster.defs.jobs import build_asset_jobs
from ovia_backup_dagster.defs.offsite_assets import build_offsite_assets
from ovia_backup_dagster.defs.pitr_assets import build_pitr_assets
from ovia_backup_dagster.defs.pitr_drill_asset import (
    build_pitr_drill,
    build_pitr_drill_job,
    build_pitr_drill_schedule,
)
from ovia_backup_dagster.defs.restore_job import build_kept_databases, build_restore
from ovia_backup_dagster.defs.run_history import build_history
from ovia_backup_dagster.defs.schedules import build_schedules, usable_schedules
from ovia_backup_dagster.defs.sensors import freshness_sensor
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem


def build_defs(settings: Settings, *, prefix: str = "") -> dg.Definitions:
    """All definitions of one database, to be merged with those of others.

    Args:
        settings: the database's settings. Loading does not fail if they are invalid.
        prefix: letters, digits and underscores; begins all names, so that the code location can also hold other
            databases, or definitions of other projects.
    """
    if prefix:
        settings = settings.model_copy(update={"backup_asset_prefix": prefix})
    return definitions_of(BackupSystem(usable_schedules(settings)), shares_location=bool(prefix))


def definitions_of(system: BackupSystem, *, shares_location: bool) -> dg.Definitions:
    """All definitions of a system that is built already.

    Args:
        system: its settings hold cron expressions that Dagster accepts (``usable_schedules``).
        shares_location: whether its names must differ from those of other databases in the same code location.
    """
    names = DatabaseNames.of(system.settings, shares_location=shares_location)
    assets = [
        *build_backup_assets(system, names),
        build_alert(system, names),
        build_doctor(system, names),
        build_drill(system, names),
        *build_offsite_assets(system, names),
        *build_pitr_assets(system, names),
    ]
    recovery = system.settings.pitr_enabled
    if recovery:
        assets.append(build_pitr_drill(system, names))
    return dg.Definitions(
        assets=assets,
        jobs=[
            *build_asset_jobs(system.settings, names),
            build_restore(system, names),
            build_kept_databases(system, names),
            build_history(system, names, [asset.key for asset in assets]),
            *([build_pitr_drill_job(system.settings, names)] if recovery else []),
        ],
        schedules=[
            *build_schedules(system.settings, names),
            *([build_pitr_drill_schedule(system, names)] if recovery else []),
        ],
        sensors=[freshness_sensor(system, names)],
    )

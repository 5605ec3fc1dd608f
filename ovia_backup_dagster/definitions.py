"""The code location: ``build_defs`` puts it together for one database; ``defs`` is what Dagster loads.

No logic here. ``workspace.yaml`` is the only place that names this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ovia_backup_dagster.defs.alert_asset import build_alert
from ovia_backup_dagster.defs.backup_assets import build_assets
from ovia_backup_dagster.defs.doctor_asset import build_doctor
from ovia_backup_dagster.defs.drill_asset import build_drill
from ovia_backup_dagster.defs.jobs import build_jobs
from ovia_backup_dagster.defs.policies import (
    DAILY_BACKUP_JOB,
    FRESHNESS_ALERT_JOB,
    HISTORY_PRUNING_JOB,
    KEPT_DATABASES_JOB,
    RESTORE_DRILL_JOB,
)
from ovia_backup_dagster.defs.resources import resource
from ovia_backup_dagster.defs.restore_job import build_kept_databases, build_restore
from ovia_backup_dagster.defs.run_history import build_history
from ovia_backup_dagster.defs.schedules import (
    daily_backup_schedule,
    history_pruning_schedule,
    kept_databases_schedule,
    restore_drill_schedule,
    usable_schedules,
)
from ovia_backup_dagster.defs.sensors import backup_freshness_sensor
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem


def build_defs(settings: Settings, *, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The whole code location for one database.

    Args:
        settings: of that database; loading never fails on them.
        resource_overrides: replaces resources by name (``backups``), for tests.
    """
    settings = usable_schedules(settings)
    system = {"backups": BackupSystem(settings), **(resource_overrides or {})}["backups"]
    assets = [
        *build_assets(system),
        build_alert(system, DAILY_BACKUP_JOB),
        build_doctor(settings),
        build_drill(settings),
    ]
    return dg.Definitions(
        assets=assets,
        jobs=[
            *build_jobs(settings),
            build_restore(settings),
            build_kept_databases(settings),
            build_history(settings, [asset.key for asset in assets]),
        ],
        schedules=[
            daily_backup_schedule(settings, DAILY_BACKUP_JOB),
            restore_drill_schedule(settings, RESTORE_DRILL_JOB),
            history_pruning_schedule(settings, HISTORY_PRUNING_JOB),
            kept_databases_schedule(settings, KEPT_DATABASES_JOB),
        ],
        sensors=[backup_freshness_sensor(FRESHNESS_ALERT_JOB, watched=DAILY_BACKUP_JOB)],
        resources={**(resource_overrides or {}), "backups": resource(system)},
        executor=dg.in_process_executor,
    )


defs = build_defs(Settings.load())

"""The jobs that people and triggers launch. What they materialize is defined elsewhere."""

from __future__ import annotations

import dagster as dg

from ovia_backup_dagster.defs import alerts, assets
from ovia_backup_dagster.defs.policies import VOLUME_TAG

DAILY_BACKUP_JOB = "daily_backup_job"
FRESHNESS_ALERT_JOB = "freshness_alert_job"

JOBS = (
    dg.define_asset_job(
        DAILY_BACKUP_JOB,
        selection=dg.AssetSelection.assets(*assets.NAMES),
        tags=VOLUME_TAG,
        executor_def=dg.in_process_executor,
        description="Dump the database, read the dump back to the last byte, promote it on the weekly day, and prune.",
    ),
    # Without the volume's tag: people must be told while a dump hangs.
    dg.define_asset_job(
        FRESHNESS_ALERT_JOB,
        selection=dg.AssetSelection.assets(alerts.NAME),
        executor_def=dg.in_process_executor,
        description="Say what is wrong with the backups, or that it is over.",
    ),
)

"""The jobs that materialize assets, launched by hand, by schedules or by the sensor."""

from __future__ import annotations

from typing import Any

import dagster as dg

from ovia_backup_dagster.defs.database_names import (
    BASE_BACKUP_JOB,
    BASE_CHAIN,
    DAILY_BACKUP_JOB,
    DAILY_CHAIN,
    DOCTOR,
    DOCTOR_JOB,
    FRESHNESS_ALERT,
    FRESHNESS_ALERT_JOB,
    OFFSITE_VERIFICATION_JOB,
    RESTORE_DRILL,
    RESTORE_DRILL_JOB,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import (
    LONG_TAG,
    NO_TIME_LIMIT,
    OFFSITE_TAG,
    Priority,
    database_tags,
    drill_tags,
    run_tags,
)
from ovia_backup_dagster.settings.model import Settings


def build_asset_jobs(settings: Settings, names: DatabaseNames) -> list[Any]:
    """The jobs, tagged with the database and, if they write backups, with the volume."""
    remotes = [remote.name for remote in settings.offsite_remotes]
    copies = [name for remote in remotes for name in (names.offsite_copy(remote), names.offsite_pruning(remote))]
    offsite = {OFFSITE_TAG: "copy"} if remotes else {}
    daily = dg.define_asset_job(
        names.in_location(DAILY_BACKUP_JOB),
        selection=dg.AssetSelection.assets(*map(names.key, (*DAILY_CHAIN, *copies))),
        tags={**run_tags(settings), **offsite},
        executor_def=dg.in_process_executor,
        description="Dump the database, verify the dump to the last byte, promote it on the weekly day, and prune. "
        "Then copy it to each remote.",
    )
    # Without the volume's tag, so that an alert goes out while a dump hangs.
    alert = dg.define_asset_job(
        names.in_location(FRESHNESS_ALERT_JOB),
        selection=dg.AssetSelection.assets(names.key(FRESHNESS_ALERT)),
        tags={**database_tags(settings), **Priority.ALERT.tag},
        executor_def=dg.in_process_executor,
        description="Send an alert if something is wrong with the backups, or the all-clear when the trouble is over.",
    )
    # Also without the volume's tag: the doctor only reads, so it must not block other runs.
    doctors = dg.define_asset_job(
        names.in_location(DOCTOR_JOB),
        selection=dg.AssetSelection.assets(names.key(DOCTOR)),
        tags={**database_tags(settings), **Priority.DOCTOR.tag},
        executor_def=dg.in_process_executor,
        description="Check everything that a backup depends on, and say how to fix what is wrong.",
    )
    drills = dg.define_asset_job(
        names.in_location(RESTORE_DRILL_JOB),
        selection=dg.AssetSelection.assets(names.key(RESTORE_DRILL)),
        tags=drill_tags(settings),
        executor_def=dg.in_process_executor,
        description="Prove that a backup restores: into a throwaway PostgreSQL, read back and compared.",
    )
    jobs = [daily, alert, doctors, drills]
    if remotes:
        verification = dg.define_asset_job(
            names.in_location(OFFSITE_VERIFICATION_JOB),
            selection=dg.AssetSelection.assets(*(names.key(names.offsite_verification(name)) for name in remotes)),
            tags={**database_tags(settings), **Priority.DRILL.tag, LONG_TAG: "offsite", OFFSITE_TAG: "verify"},
            executor_def=dg.in_process_executor,
            description="Check the copies on every remote, and read one back from each.",
        )
        jobs.append(verification)
    if settings.pitr_enabled:
        bases = dg.define_asset_job(
            names.in_location(BASE_BACKUP_JOB),
            selection=dg.AssetSelection.assets(*map(names.key, BASE_CHAIN)),
            # Without the volume's tag: a dump may run at the same time. A rate limit may make a base backup last longer
            # than other runs.
            tags={**database_tags(settings), **NO_TIME_LIMIT, LONG_TAG: "base"},
            executor_def=dg.in_process_executor,
            description="Make a base backup, verify it to the last byte, and remove the WAL and the base backups that "
            "the recovery window no longer needs.",
        )
        jobs.append(bases)
    return jobs

"""The drill of point-in-time recovery as an asset.

It runs when launched by hand, after each new base backup, and once a month.

The drill itself is in ``pitr.recovery_drill``, its evidence in ``pitr.recovery_evidence``.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.defs.database_names import (
    BASE_BACKUP_VERIFICATION,
    DUMP_VERIFICATION,
    PITR_DRILL,
    PITR_DRILL_JOB,
    PITR_DRILL_SCHEDULE,
    DatabaseNames,
)
from ovia_backup_dagster.defs.drill_asset import launcher_of
from ovia_backup_dagster.defs.policies import OWNERS, drill_tags, errors_as_failures
from ovia_backup_dagster.defs.run_configs import PitrDrillConfig
from ovia_backup_dagster.pitr.recovery_evidence import RecoveryCheck, RecoveryEvidence
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem

#: After the daily backup; a tick without work is skipped.
_EVERY_DAY = "45 4 * * *"


def build_pitr_drill(system: BackupSystem, names: DatabaseNames) -> dg.AssetsDefinition:
    """The asset of one database."""

    @dg.asset(
        key=names.key(PITR_DRILL),
        deps=[names.key(BASE_BACKUP_VERIFICATION), names.key(DUMP_VERIFICATION)],
        group_name=names.backup_group,
        kinds={"postgres"},
        owners=OWNERS,
        pool=names.drill_pool,
        check_specs=[
            dg.AssetCheckSpec(check.value, asset=names.key(PITR_DRILL), description=check.description, blocking=True)
            for check in RecoveryCheck
        ],
        description="Recovers the newest base backup to the commit that a verified dump ends with, in a throwaway "
        "PostgreSQL, and compares every table of the two. Puts no load on production. The evidence is in "
        "`pitr/<system identifier>/drills/` on the volume.",
    )
    def pitr_drill(
        context: dg.AssetExecutionContext, config: PitrDrillConfig
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        with errors_as_failures(context, system, names.in_words):
            evidence = system.pitr.drill(
                config.backup, launched_by=launcher_of(context.run), run_id=context.run.run_id, log=context.log.info
            )
        if evidence.passed:
            yield dg.MaterializeResult(metadata=_metadata(evidence))
        yield from _check_results(evidence)
        if evidence.trouble is not None:
            with errors_as_failures(context, system, names.in_words):
                raise evidence.trouble

    return pitr_drill


def build_pitr_drill_job(settings: Settings, names: DatabaseNames) -> Any:
    """The job that materializes it."""
    return dg.define_asset_job(
        names.in_location(PITR_DRILL_JOB),
        selection=dg.AssetSelection.assets(names.key(PITR_DRILL)),
        tags=drill_tags(settings),
        executor_def=dg.in_process_executor,
        description="Prove that a cluster can be recovered to an instant: to a dump's last commit, and compare both.",
    )


def build_pitr_drill_schedule(system: BackupSystem, names: DatabaseNames) -> dg.ScheduleDefinition:
    """The schedule that launches a drill when one is due."""

    def evaluate(_: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        try:
            why_not = system.pitr.why_no_drill(datetime.now(UTC))
        except BackupError as error:
            return dg.SkipReason(str(error))  # the freshness alert reports it
        return dg.SkipReason(why_not) if why_not else dg.RunRequest()

    return dg.ScheduleDefinition(
        name=names.in_location(PITR_DRILL_SCHEDULE),
        job_name=names.in_location(PITR_DRILL_JOB),
        cron_schedule=f"{names.schedule_minute} 4 * * *" if names.shares_location else _EVERY_DAY,
        execution_timezone=system.settings.backup_timezone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        execution_fn=evaluate,
        description="Every day, launches a drill of point-in-time recovery if the newest base backup has not passed "
        f"one, or not for {system.settings.drill_max_age_days:g} days (DRILL_MAX_AGE_DAYS).",
    )


def _metadata(evidence: RecoveryEvidence) -> dict[str, dg.MetadataValue]:
    rate = evidence.replay_seconds_per_gigabyte
    return {
        "base_backup": dg.MetadataValue.text(evidence.base),
        "dump": dg.MetadataValue.text(evidence.dump),
        "recovered_to": dg.MetadataValue.text(f"{evidence.committed_at:%Y-%m-%d %H:%M:%S} UTC ({evidence.lsn})"),
        "tables": dg.MetadataValue.int(evidence.tables),
        "rows": dg.MetadataValue.int(evidence.rows),
        "wal_bytes": dg.MetadataValue.int(evidence.wal_bytes),
        "seconds": dg.MetadataValue.float(round(sum(evidence.phases.values()), 1)),
        **({} if rate is None else {"replay_seconds_per_gigabyte": dg.MetadataValue.float(round(rate, 2))}),
    }


def _check_results(evidence: RecoveryEvidence) -> Iterator[dg.AssetCheckResult]:
    made = {found.check: found for found in evidence.findings}
    for check in RecoveryCheck:
        found = made.get(check)
        yield dg.AssetCheckResult(
            check_name=check.value,
            passed=found is not None and found.passed is not False,
            severity=dg.AssetCheckSeverity.ERROR,
            description=found.text if found else "not checked, because the drill did not get that far",
            metadata={"base_backup": evidence.base, "dump": evidence.dump},
        )

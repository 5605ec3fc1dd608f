"""Base backups as assets: made, verified, and what they make superfluous removed. Absent unless PITR_ENABLED is true.

WAL itself is received by a service, not by a run (``pitr.wal_receiver``); the pruning's checks report how it stands.
Downstream assets find the base backup by the name in this run's materialization of ``base_backup``.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.pitr_errors import BaseBackupError
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.backup_assets import made_by
from ovia_backup_dagster.defs.database_names import (
    BASE_BACKUP,
    BASE_BACKUP_VERIFICATION,
    WAL_ARCHIVE_PRUNING,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import OWNERS, errors_as_failures
from ovia_backup_dagster.defs.run_configs import BaseChoice, PruningConfig
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_verification import verify_base
from ovia_backup_dagster.pitr.bases import find_base
from ovia_backup_dagster.pitr.standing import PitrStanding
from ovia_backup_dagster.pitr.standing_values import PitrPart
from ovia_backup_dagster.system import BackupSystem

#: Asset checks.
AS_SENT, NO_HOLE, RECENT = "base_backup_is_what_was_sent", "wal_archive_has_no_hole", "recovery_point_is_recent"
#: Constant, so that Dagster does not show a drill as out of date when a later base backup is verified.
_GOOD = dg.DataVersion("good")
_GRACE = timedelta(days=1)
Result = dg.MaterializeResult[None] | dg.AssetCheckResult


def build_pitr_assets(system: BackupSystem, names: DatabaseNames) -> list[dg.AssetsDefinition]:
    """The assets, if point-in-time recovery is on."""
    if not system.pitr.enabled:
        return []
    # It shows events in the UI, and sends no alert: the sensor does, by the files.
    policy = dg.FreshnessPolicy.time_window(fail_window=system.pitr.base_period + _GRACE)

    @dg.asset(
        key=names.key(BASE_BACKUP),
        group_name=names.backup_group,
        kinds={"postgres", "file"},
        owners=OWNERS,
        pool=names.base_pool,
        freshness_policy=policy,
        description="A `pg_basebackup` of the whole cluster in `pitr/`, on which received WAL is replayed. It gets its "
        "name only when it is complete. A dump may run at the same time.",
    )
    def base_backup(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with errors_as_failures(context, system, names.in_words):
            maker = system.pitr.base_backups
            base = maker.make(datetime.now(UTC), log=context.log.info, run_id=context.run.run_id)
            for warning in base.manifest.warnings:
                context.log.warning(warning)
            return dg.MaterializeResult(metadata=metadata.of_base(base))

    @dg.asset(
        key=names.key(BASE_BACKUP_VERIFICATION),
        deps=[names.key(BASE_BACKUP)],
        group_name=names.backup_group,
        kinds={"postgres", "file"},
        owners=OWNERS,
        pool=names.base_pool,
        freshness_policy=policy,
        check_specs=[
            dg.AssetCheckSpec(
                AS_SENT,
                asset=names.key(BASE_BACKUP_VERIFICATION),
                description="Each byte of each file is what the server sent, by PostgreSQL's own manifest. Blocks.",
                blocking=True,
            )
        ],
        description="Reads the base backup of this run to the last byte, and compares each file with the manifest that "
        "PostgreSQL wrote. A bad one is not materialized, and nothing is removed behind it.",
    )
    def base_backup_verification(context: dg.AssetExecutionContext, config: BaseChoice) -> Iterator[Result]:
        problem: BaseBackupError | None = None
        with errors_as_failures(context, system, names.in_words):
            archive, folder = _chosen(context, config.base, system, names)
            try:
                verdict = verify_base(
                    archive, folder, now=datetime.now(UTC), log=context.log.info, run_id=context.run.run_id
                )
            except BaseBackupError as error:
                problem = error
        if problem is None:
            # Yielded before the check: Dagster attaches a check's result to the materialization before it.
            yield dg.MaterializeResult(metadata=metadata.of_base_verification(folder.name, verdict), data_version=_GOOD)
        yield dg.AssetCheckResult(
            check_name=AS_SENT,
            passed=problem is None,
            description=shortened(names.in_words(problem.account)) if problem else None,
            metadata={"base": folder.name},
        )
        if problem is not None:
            with errors_as_failures(context, system, names.in_words):
                raise problem

    @dg.asset(
        key=names.key(WAL_ARCHIVE_PRUNING),
        deps=[names.key(BASE_BACKUP_VERIFICATION)],
        group_name=names.backup_group,
        kinds={"file"},
        owners=OWNERS,
        pool=names.base_pool,
        check_specs=[
            dg.AssetCheckSpec(
                NO_HOLE,
                asset=names.key(WAL_ARCHIVE_PRUNING),
                description="No WAL is missing since the newest verified base backup. Warns.",
            ),
            dg.AssetCheckSpec(
                RECENT,
                asset=names.key(WAL_ARCHIVE_PRUNING),
                description="WAL arrives, and what is safe here is not older than RPO_MAX_SECONDS. Warns.",
            ),
        ],
        description="Removes the base backups and the WAL that the recovery window (RECOVERY_WINDOW_DAYS) does not "
        "need, with a reason for each base backup. Never breaks a chain, and refuses if no verified base backup can be "
        "recovered, also when it is launched by hand. Shows from when to when any instant can be recovered.",
    )
    def wal_archive_pruning(context: dg.AssetExecutionContext, config: PruningConfig) -> Iterator[Result]:
        problem: BackupError | None = None
        with errors_as_failures(context, system, names.in_words):
            archive, folder = _chosen(context, "", system, names)
            if made_by(context.instance, context.run, names.key(BASE_BACKUP)) is not None:
                # It may have ended moments ago.
                system.pitr.wait_for_wal(archive, folder.name, context.log.info)
            try:
                pruned = system.pitr.prune(archive, context.log.info, dry_run=config.dry_run)
            except BackupError as error:
                problem = error
            standing = system.pitr.standing(datetime.now(UTC))
        if problem is None:
            yield dg.MaterializeResult(metadata=metadata.of_wal_pruning(pruned) | metadata.of_pitr(standing))
        yield from _checks(standing, names)
        if problem is not None:
            with errors_as_failures(context, system, names.in_words):
                raise problem

    return [base_backup, base_backup_verification, wal_archive_pruning]


def _chosen(
    context: dg.AssetExecutionContext, name: str, system: BackupSystem, names: DatabaseNames
) -> tuple[ClusterArchive, Path]:
    """The base backup of this name, else the one that this run made, else (in a run that made none) the newest.

    Raises:
        BackupNotFoundError: there is no such base backup.
    """
    system.pitr.require_enabled()
    root, cluster = system.settings.backup_dir, None
    made = None if name else made_by(context.instance, context.run, names.key(BASE_BACKUP))
    if made is not None:
        name, cluster = str(made["base"].value), str(made["system_identifier"].value)
    archive, folder = find_base(root, name, cluster)
    if not name:
        context.log.info(f"this run made no base backup; working on the newest, {folder.name}")
    return archive, folder


def _checks(standing: PitrStanding, names: DatabaseNames) -> Iterator[dg.AssetCheckResult]:
    """How WAL arrives, as alerts and ``status`` say it."""
    chain = [trouble.error for trouble in standing.found if trouble.part is PitrPart.CHAIN]
    # On a full volume nothing is received, and not even that is reported.
    stopped = (PitrPart.RECEIVING, PitrPart.ROOM)
    receiving = [trouble.error for trouble in standing.found if trouble.part in stopped and trouble.urgent]
    for check, wrong, well in (
        (NO_HOLE, chain, f"none is missing since the newest base backup; older holes: {len(standing.holes)}"),
        (RECENT, receiving, standing.text),
    ):
        yield dg.AssetCheckResult(
            check_name=check,
            passed=not wrong,
            severity=dg.AssetCheckSeverity.WARN,
            description=shortened(names.in_words("; ".join(error.account for error in wrong) or well)),
            metadata={"next": dg.MetadataValue.text(names.in_words(wrong[0].fix))} if wrong else None,
        )

"""The four assets of the daily backup: dump, verification, promotion, pruning.

Each asset calls one operation and shows its result. Downstream assets find the dump by the name in this run's
materialization of ``daily_dump``, never as "the newest file".
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import dagster as dg

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import BackupNotFoundError
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import (
    DAILY_BACKUP_JOB,
    DAILY_DUMP,
    DUMP_VERIFICATION,
    RETENTION_PRUNING,
    WEEKLY_PROMOTION,
    DatabaseNames,
)
from ovia_backup_dagster.defs.policies import OWNERS, errors_as_failures, freshness_policy
from ovia_backup_dagster.defs.run_configs import BackupChoice, PruningConfig, VerificationConfig
from ovia_backup_dagster.defs.verification_checks import check_results, check_specs
from ovia_backup_dagster.health.head_line import log_head
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster.system import BackupSystem

#: Constant, so that Dagster does not show a drill as out of date when a later dump is verified.
_GOOD = dg.DataVersion("good")


def build_backup_assets(system: BackupSystem, names: DatabaseNames) -> list[dg.AssetsDefinition]:
    """The assets, with the freshness policy of the settings."""
    policy = freshness_policy(system)

    @dg.asset(
        key=names.key(DAILY_DUMP),
        group_name=names.backup_group,
        kinds={"postgres", "file"},
        owners=OWNERS,
        pool=names.volume_pool,
        tags={"ovia/backup": "daily"},
        freshness_policy=policy,
        description="A `pg_dump -Fc` of the database in `daily/`, with its manifest and the roles beside it. The file "
        "gets its name only when it is complete.",
    )
    def daily_dump(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with errors_as_failures(context, system, names.in_words):
            backup = system.dumper.dump(run_id=context.run.run_id, log=context.log.info)
            manifest = backup.manifest
            assert manifest is not None  # the dump was published with one
            for warning in manifest.warnings:
                context.log.warning(warning)
            return dg.MaterializeResult(metadata=metadata.of_dump(backup, manifest))

    @dg.asset(
        key=names.key(DUMP_VERIFICATION),
        deps=[names.key(DAILY_DUMP)],
        group_name=names.backup_group,
        kinds={"postgres", "file"},
        owners=OWNERS,
        pool=names.volume_pool,
        freshness_policy=policy,
        check_specs=check_specs(names.key(DUMP_VERIFICATION)),
        description="Reads back the dump of this run to the last byte, and checks its hash, the rows and content of "
        "every table, and what the settings expect. A bad dump is not materialized, and nothing downstream runs. Also "
        "verifies dumps of the old script that are not verified yet.",
    )
    def dump_verification(
        context: dg.AssetExecutionContext, config: VerificationConfig
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        with errors_as_failures(context, system, names.in_words):
            backup = _chosen(context, config, system, names)
            # Verify these first, so that after the takeover our first dump is compared with the old script's last one.
            for other in system.verifier.verify_unverified(
                besides=backup, run_id=context.run.run_id, log=context.log.info
            ):
                if not other.judgement.good:
                    context.log.warning(f"{other.backup} is bad: {'; '.join(other.judgement.reasons)}")
            verifier, run_id = system.verifier, context.run.run_id
            if config.accept:
                by = f"the launchpad, run {run_id}"
                verified = verifier.accept(backup, by=by, run_id=run_id, log=context.log.info)
            else:
                verified = verifier.verify(backup, run_id=run_id, log=context.log.info)
        problem = verified.judgement.problem(backup.path.name)
        if problem is None:
            # Yielded before the checks: Dagster attaches a check's result to the materialization before it.
            yield dg.MaterializeResult(
                metadata=metadata.of_verification(verified, log_head(system)), data_version=_GOOD
            )
        yield from check_results(verified.judgement, backup.path.name)
        if problem is not None:
            with errors_as_failures(context, system, names.in_words):
                raise problem

    @dg.asset(
        key=names.key(WEEKLY_PROMOTION),
        deps=[names.key(DUMP_VERIFICATION)],
        group_name=names.backup_group,
        kinds={"file"},
        owners=OWNERS,
        pool=names.volume_pool,
        description="On the weekly day, promotes the verified dump to `weekly/`, as a hard link or a checked copy. If "
        "the day was missed, promotes the next verified dump instead. With `BACKUP_MONTHLY_KEEP` or "
        "`BACKUP_YEARLY_KEEP` set, also promotes the first verified dump of each month to `monthly/`, or of each year "
        "to `yearly/`. Always materializes, with the reason.",
    )
    def weekly_promotion(context: dg.AssetExecutionContext, config: BackupChoice) -> dg.MaterializeResult[None]:
        with errors_as_failures(context, system, names.in_words):
            backup = _chosen(context, config, system, names)
            now = datetime.now(UTC)
            promoted = promote_and_prune.promote(system.catalog, backup, system.policy, now, context.log.info)
            context.log.info(promoted.reason)
            return dg.MaterializeResult(metadata=metadata.of_promotion(promoted))

    @dg.asset(
        key=names.key(RETENTION_PRUNING),
        deps=[names.key(WEEKLY_PROMOTION)],
        group_name=names.backup_group,
        kinds={"file"},
        owners=OWNERS,
        pool=names.volume_pool,
        description="Removes the backups that the retention policy does not keep, with a reason for each. Refuses if "
        "the newest dump is not verified, also when it is launched by hand.",
    )
    def retention_pruning(context: dg.AssetExecutionContext, config: PruningConfig) -> dg.MaterializeResult[None]:
        with errors_as_failures(context, system, names.in_words):
            now = datetime.now(UTC)
            if config.dry_run:
                pruned = promote_and_prune.Pruned(
                    promote_and_prune.preview(system.catalog.backups(), system.policy, now)
                )
            else:
                pruned = promote_and_prune.prune(system.catalog, system.policy, now, context.log.info)
            for decision in pruned.plan.removals:
                verb = "would remove" if config.dry_run else "removed"
                if decision.candidate.key in pruned.in_use:
                    verb = "could not yet remove, because it is being restored,"
                context.log.info(f"{verb} {decision.candidate.key}: {decision.reason}")
            return dg.MaterializeResult(metadata=metadata.of_pruning(pruned))

    return [daily_dump, dump_verification, weekly_promotion, retention_pruning]


def _chosen(
    context: dg.AssetExecutionContext, config: BackupChoice, system: BackupSystem, names: DatabaseNames
) -> Backup:
    """The backup named in the Launchpad, else this run's dump, else (in a run without a dump) the newest.

    Raises:
        BackupNotFoundError: there is no such backup.
    """
    now = datetime.now(UTC)
    catalog = system.catalog
    if config.backup:
        # A user of the UI must not be able to open arbitrary files of the host.
        return catalog.find(config.backup, now, anywhere=False)
    made = made_by(context.instance, context.run, names.key(DAILY_DUMP))
    if made is not None:
        name = str(made["backup"].value)
        try:
            return catalog.find(name, now)
        except BackupNotFoundError as error:
            raise BackupNotFoundError(
                "the dump of this run is gone",
                why=f"{name} of run {context.run.run_id} is no longer there; {error.reason}",
                fix=f"see the volume: ovia-backup list; then launch {DAILY_BACKUP_JOB} again",
            ) from None
    backup = catalog.find("latest", now)
    context.log.info(f"this run made no dump; working on the newest, {backup}")
    return backup


def made_by(
    instance: dg.DagsterInstance, run: dg.DagsterRun | None, asset: dg.AssetKey
) -> Mapping[str, dg.MetadataValue] | None:
    """What this run materialized of an asset, or else a run that this one re-executes: the metadata."""
    while run is not None:
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            made = entry.asset_materialization
            if made is not None and made.asset_key == asset:
                return made.metadata
        run = instance.get_run_by_id(run.parent_run_id) if run.parent_run_id else None
    return None

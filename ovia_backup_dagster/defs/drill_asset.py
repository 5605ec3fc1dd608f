"""The restore drill as an asset: launched by hand or monthly by its schedule, with a check for each thing it proves.

The drill itself is in ``drill.runner``, its evidence in ``drill.evidence``.
"""

from collections.abc import Iterator

import dagster as dg

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.defs import metadata
from ovia_backup_dagster.defs.database_names import DUMP_VERIFICATION, FRESHNESS_SENSOR, RESTORE_DRILL, DatabaseNames
from ovia_backup_dagster.defs.policies import OWNERS, errors_as_failures
from ovia_backup_dagster.defs.run_configs import DrillConfig, DrillPlace
from ovia_backup_dagster.defs.verification_checks import ODD
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.system import BackupSystem

_UNMADE = "not checked, because the drill did not get that far"
#: Dagster's own tag on the runs of a schedule.
_SCHEDULE_TAG = "dagster/schedule_name"


def build_drill(system: BackupSystem, names: DatabaseNames) -> dg.AssetsDefinition:
    """The asset of one database."""

    @dg.asset(
        key=names.key(RESTORE_DRILL),
        deps=[names.key(DUMP_VERIFICATION)],
        group_name=names.backup_group,
        kinds={"postgres"},
        owners=OWNERS,
        pool=names.drill_pool,
        check_specs=[
            dg.AssetCheckSpec(
                check.value, asset=names.key(RESTORE_DRILL), description=check.description, blocking=not check.is_odd
            )
            for check in Check.at(Stage.DRILL)
        ],
        description="Restores a backup into a throwaway PostgreSQL, reads all of it back, proves that it is what was "
        "dumped, and writes the evidence to `drills/` on the volume. Puts no load on production. "
        f"`{names.in_location(FRESHNESS_SENSOR)}` alerts if a drill fails, or is overdue.",
    )
    def restore_drill(
        context: dg.AssetExecutionContext, config: DrillConfig
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        with errors_as_failures(context, system, names.in_words):
            driller = system.driller
            # A user of the UI must not be able to open arbitrary files of the host.
            backup = driller.find(config.backup, anywhere=False)
            choice = system.drill_choice(
                where=_where(config.where),
                jobs=config.jobs,
                keep=config.keep_copy,
                trust_archive=config.trust_archive,
            )
            evidence = driller.drill(
                backup, choice, launched_by=launcher_of(context.run), run_id=context.run.run_id, log=context.log.info
            )
        if evidence.trouble is None:
            # Yielded before the checks: Dagster attaches a check's result to the materialization before it.
            yield dg.MaterializeResult(metadata=metadata.of_drill(evidence, driller.drills.path))
        yield from drill_check_results(evidence)
        if evidence.trouble is not None:
            with errors_as_failures(context, system, names.in_words):
                raise evidence.trouble

    return restore_drill


def _where(place: DrillPlace) -> str:
    return "" if place is DrillPlace.setting else place.value


def launcher_of(run: dg.DagsterRun) -> str:
    """Who launched a run, for evidence: a schedule, or a person."""
    schedule = run.tags.get(_SCHEDULE_TAG)
    return f"schedule {schedule}" if schedule else run.tags.get("user", "Dagster, by hand")


def drill_check_results(evidence: Evidence) -> Iterator[dg.AssetCheckResult]:
    """A result for each check. An odd finding passes, with a note, because Dagster shows a warning as failed.

    A check that was not made does not pass, and says why; without a result Dagster would show no reason.
    """
    made = {line.check: line for line in evidence.lines}
    for check in Check.at(Stage.DRILL):
        line = made.get(check)
        result = line.result if line else Result.NOT_MADE
        # Neither a check that was not requested nor an odd finding makes the drill fail.
        passed = line is not None and result is not Result.FAILED and not line.lacks_code
        note = ODD if result is Result.ODD else ""
        yield dg.AssetCheckResult(
            check_name=check.value,
            passed=passed,
            severity=dg.AssetCheckSeverity.ERROR if result is Result.FAILED else dg.AssetCheckSeverity.WARN,
            description=note + line.text if line else _UNMADE,
            metadata={"backup": evidence.backup},
        )

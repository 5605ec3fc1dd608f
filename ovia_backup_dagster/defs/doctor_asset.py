"""The doctor as an asset: the report has a page and a history, and the run fails if a backup or an alert will fail.

``doctor`` runs the checks; ``instance_report`` adds what only Dagster knows.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import dagster as dg

from ovia_backup_dagster.defs import instance_report, metadata
from ovia_backup_dagster.defs.database_names import DOCTOR, DatabaseNames
from ovia_backup_dagster.defs.policies import OWNERS
from ovia_backup_dagster.doctor import examination
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, observations_of, summary, worst
from ovia_backup_dagster.system import BackupSystem


def build_doctor(system: BackupSystem, names: DatabaseNames) -> dg.AssetsDefinition:
    """The asset of one database."""

    @dg.asset(
        key=names.key(DOCTOR),
        group_name=names.alert_group,
        kinds={"postgres"},
        owners=OWNERS,
        check_specs=[
            dg.AssetCheckSpec(area.value, asset=names.key(DOCTOR), description=area.description) for area in Area
        ],
        description="Checks everything that a backup depends on, before it fails: settings, programs, server, "
        "rights, volume, alerts, Dagster. Changes nothing. Fails if something is going to fail, and says how to fix "
        "it.",
    )
    def backup_doctor(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]:
        lines = [
            replace(line, text=names.in_words(line.text), fix=names.in_words(line.fix))
            for line in chain(
                examination.everything(system),
                instance_report.instance_lines(context.instance, system.settings, names),
            )
        ]
        for line in lines:
            if line.level is not Severity.OK:
                context.log.warning(f"{line.area}: {line.text}. Next: {' '.join((line.fix, *line.sql))}")
        # Yielded even if the report has failures, because the asset is the report; and before the checks, because
        # Dagster attaches a check's result to the materialization before it.
        yield dg.MaterializeResult(metadata=metadata.of_report(lines))
        yield from _check_results(lines)
        if worst(lines) is Severity.FAIL:
            what = "; ".join(line.text for line in _failing(lines))
            raise dg.Failure(f"{summary(lines)}: {what}", allow_retries=False)

    return backup_doctor


def _check_results(lines: list[Observation]) -> Iterator[dg.AssetCheckResult]:
    """A result for each area. An area with only warnings passes: Dagster would show it as failed."""
    for area in Area:
        found = observations_of(lines, area)
        level = worst(found)
        yield dg.AssetCheckResult(
            check_name=area.value,
            passed=level is not Severity.FAIL,
            severity=dg.AssetCheckSeverity.ERROR,
            description=_headline(found),
            metadata=metadata.of_doctor_area(found),
        )


def _headline(found: list[Observation]) -> str:
    """The counts of an area, and its worst observation."""
    if not found:
        return "not checked: see the other areas"
    if worst(found) is Severity.OK:
        return f"all is well: {len(found)} ok"
    return f"{summary(found)}: {found[0].text}"


def _failing(lines: list[Observation]) -> Iterator[Observation]:
    return (line for line in lines if line.level is Severity.FAIL)

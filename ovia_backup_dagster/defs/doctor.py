"""The doctor as an asset: its report has a page, a history, and a run that fails when something will fail.

What is looked at lives in ``doctor``, and what only Dagster knows in ``instance``.
"""

from collections.abc import Iterator
from itertools import chain

import dagster as dg

from ovia_backup_dagster.defs import instance, metadata
from ovia_backup_dagster.defs.policies import OWNERS, names
from ovia_backup_dagster.defs.resources import Backups
from ovia_backup_dagster.doctor import examine
from ovia_backup_dagster.doctor.report import Level, Line, summary, worst
from ovia_backup_dagster.settings import Settings

NAME = "backup_doctor"


def build_doctor(settings: Settings) -> dg.AssetsDefinition:
    """The asset, by the name that the settings ask for."""
    ours = names(settings)

    @dg.asset(
        key=ours.key(NAME),
        group_name=ours.alert_group,
        kinds={"postgres"},
        owners=OWNERS,
        description="Looks at everything that a backup depends on, before anything fails: settings, programs, server, "
        "rights, volume, alerts, Dagster. Changes nothing. Fails when something of it will fail, and says how to mend "
        "it.",
    )
    def backup_doctor(context: dg.AssetExecutionContext, backups: Backups) -> dg.MaterializeResult[None]:
        lines = list(chain(examine.everything(backups), instance.examine(context.instance, backups.settings)))
        for line in lines:
            if line.level is not Level.OK:
                context.log.warning(f"{line.area}: {line.text}. Next: {' '.join((line.fix, *line.sql))}")
        shown = metadata.of_report(lines)
        if worst(lines) is Level.FAIL:
            what = "; ".join(line.text for line in _failing(lines))
            raise dg.Failure(f"{summary(lines)}: {what}", metadata=shown, allow_retries=False)
        return dg.MaterializeResult(metadata=shown)

    return backup_doctor


def _failing(lines: list[Line]) -> Iterator[Line]:
    return (line for line in lines if line.level is Level.FAIL)

"""The doctor as an asset: its report has a page, a history, and a run that fails when something will fail.

What is looked at lives in ``doctor``, and what only Dagster knows in ``instance``.
"""

from collections.abc import Iterator
from itertools import chain

import dagster as dg

from ovia_backup_dagster.defs import instance, metadata
from ovia_backup_dagster.defs.policies import ALERT_GROUP, OWNERS
from ovia_backup_dagster.defs.resources import Backups
from ovia_backup_dagster.doctor import examine
from ovia_backup_dagster.doctor.report import Level, Line, summary, worst

NAME = "backup_doctor"


@dg.asset(
    name=NAME,
    group_name=ALERT_GROUP,
    kinds={"postgres"},
    owners=OWNERS,
    description="Looks at everything that a backup depends on, before anything fails: settings, programs, server, "
    "rights, volume, alerts, Dagster. Changes nothing. Fails when something of it will fail, and says how to mend it.",
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


def _failing(lines: list[Line]) -> Iterator[Line]:
    return (line for line in lines if line.level is Level.FAIL)

"""``ovia-backup recover`` and ``ovia-backup pitr-drill``: whole clusters from base backups and WAL."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import operator, system_from_environment, volume_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.recovery_plan import RecoveryPlan


@click.command("recover")
@click.option(
    "--into",
    "into",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The data directory to create.",
    required=True,
)
@click.option(
    "--to",
    "to",
    metavar="TARGET",
    default="latest",
    show_default=True,
    help="The instant, as in `ovia-backup restore --to`; `latest` is the last commit that was received.",
)
@click.option("--cluster", metavar="ID", help="The system identifier, if the volume has the WAL of several clusters.")
@click.option("--timeline", type=click.IntRange(1), help="The timeline to follow.  [default: the newest]")
@click.option("--plan", "only_plan", is_flag=True, help="Only print what would be done.")
@json_option
def recover_command(
    into: Path, to: str, cluster: str | None, timeline: int | None, only_plan: bool, as_json: bool
) -> None:
    """Make a whole cluster as it was at an instant, with all databases and roles, ready to start.

    For the case that the server is gone. Needs the volume and PostgreSQL's server programs, and no server.
    """
    from ovia_backup_dagster.core.human_text import seconds
    from ovia_backup_dagster.pitr.cluster_recovery import recover_into

    system = volume_from_environment()
    plan = system.pitr.planner.plan(to, datetime.now(UTC), database=None, cluster=cluster, timeline=timeline)
    print_recovery_plan(plan, as_json)
    if only_plan:
        return
    clock = datetime.now(UTC)
    done = recover_into(system.programs, into.absolute(), plan.order, hours=system.settings.drill_max_hours, log=log)
    took = seconds((datetime.now(UTC) - clock).total_seconds())
    click.echo(
        f"{done.data} has the cluster as of {plan.resolved.commit_time:%Y-%m-%d %H:%M:%S} UTC ({took})", err=as_json
    )
    for note in done.notes:
        click.echo(f"Mind: {printable(note)}", err=as_json)
    log(f"Next: start it: pg_ctl -D {done.data} start; then: ovia-backup base-backup, since its timeline is new")


@click.command("pitr-drill")
@click.argument("backup", default="latest")
@json_option
def pitr_drill_command(backup: str, as_json: bool) -> None:
    """Recover a cluster to the commit that a verified dump ends with, and compare every table of the two.

    BACKUP is such a dump; `latest` is the newest that says which commit it ends with. Exit code 1: they differ, or the
    recovery failed.
    """
    from ovia_backup_dagster.core.human_text import seconds

    pitr = system_from_environment().pitr
    pitr.require_enabled()
    evidence = pitr.drill(backup, launched_by=operator(), log=log)
    if as_json:
        click.echo(evidence.model_dump_json(indent=1))
    else:
        for found in evidence.findings:
            result = {True: "passed", False: "FAILED", None: "not made"}[found.passed]
            click.echo(f"{result:<8} {found.check:<30} {printable(found.text)}")
        if evidence.error:
            click.echo(f"error: {printable(evidence.error)}")
        if evidence.wrong:
            click.echo(f"wrong: {printable(evidence.wrong)}")
        took = seconds(sum(evidence.phases.values()))
        click.echo(f"base backup {evidence.base} {'is proven' if evidence.passed else 'is NOT proven'} ({took})")
    if evidence.fix:
        log(f"Next: {evidence.fix}")
    sys.exit(0 if evidence.passed else FAILED)


def print_recovery_plan(plan: RecoveryPlan, as_json: bool) -> None:
    """Print what a recovery will do; with ``--json`` as data."""
    if as_json:
        print_json(plan.as_dict())
    else:
        for line in plan.lines():
            click.echo(printable(line))

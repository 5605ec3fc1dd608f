"""``ovia-backup restore``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import (
    ExclusiveCommand,
    InsteadOption,
    ReplicasType,
    json_option,
    without_services_option,
)
from ovia_backup_dagster.cli.output import log, print_json, print_table
from ovia_backup_dagster.cli.restore_dialogue import carry_out, print_restore

if TYPE_CHECKING:
    from ovia_backup_dagster.restoration.record import Record


@click.command("restore", cls=ExclusiveCommand)
@click.argument("backup", required=False)
@click.option("--plan", "only_plan", is_flag=True, help="Only say what would be done.")
@click.option("--yes-destroy", "confirmation", metavar="NAME", help="The database's name: go on without asking.")
@click.option(
    "--mode",
    type=click.Choice(["swap", "drop", "new"]),
    default="swap",
    show_default=True,
    help="swap: beside the live database, proven, then in its place; can be undone. drop: for a server too small for "
    "two; cannot be. new: into a database of its own.",
)
@click.option("--into", metavar="NAME", default="", help="With --mode new: the database to make.")
@click.option("--jobs", type=click.IntRange(1, 64), help="How much is restored at a time.  [RESTORE_JOBS]")
@click.option(
    "--stop-services",
    type=click.Choice(["at-swap", "first"]),
    default="at-swap",
    show_default=True,
    help="When the services of SWARM_APP_SERVICES are stopped.",
)
@click.option("--scale", "scale", type=ReplicasType(), multiple=True, help="Replicas of a service in the end.")
@click.option("--new-host", is_flag=True, help="The server is not the one that was backed up.")
@click.option(
    "--create-roles",
    is_flag=True,
    help="Make the roles that the server lacks, as they were saved, but without passwords and power over others.",
)
@click.option(
    "--create-privileged-role",
    "privileged_roles",
    metavar="NAME",
    multiple=True,
    help="Make this one of them with all that it had: SUPERUSER, REPLICATION, BYPASSRLS, memberships.",
)
@click.option("--even-if-damaged", is_flag=True, help="With --mode new: restore what can be, and say what was lost.")
@click.option("--auto-undo", is_flag=True, help="Swap back if the migration fails or HEALTH_URL stays red.")
@without_services_option
@click.option(
    "--resume",
    cls=InsteadOption,
    takes=["as_json", "without_services"],
    help="Instead: finish a restore whose process was killed.",
)
@click.option(
    "--abort",
    cls=InsteadOption,
    takes=["as_json", "confirmation", "without_services"],
    help="Instead: put back what such a restore had begun.",
)
@click.option("--history", cls=InsteadOption, takes=["as_json"], help="Instead: the restores so far, newest first.")
@json_option
def restore_command(
    backup: str | None,
    only_plan: bool,
    confirmation: str | None,
    mode: str,
    into: str,
    jobs: int | None,
    stop_services: str,
    scale: tuple[tuple[str, int], ...],
    new_host: bool,
    create_roles: bool,
    privileged_roles: tuple[str, ...],
    even_if_damaged: bool,
    auto_undo: bool,
    without_services: bool,
    resume: bool,
    abort: bool,
    history: bool,
    as_json: bool,
) -> None:
    """Bring a backup back: plan, confirm, prove, swap. Exit code 1: it failed, and what could be was put back."""
    from ovia_backup_dagster.restoration.request import Wishes
    from ovia_backup_dagster.restoration.restore_order import Mode, StopServices

    system = system_from_environment()
    restorations = system.restorations.without_services() if without_services else system.restorations
    if history:
        _print_restores(list(restorations.folder.newest_first()), as_json)
        return
    if resume or abort:
        record = restorations.resume(log) if resume else restorations.abort(log, confirmation or "")
        print_restore(record, restorations, as_json, putting_back=abort)
        return
    if backup is None:
        # The newest may hold the very harm that it is to undo: a word left out must not restore it.
        raise click.UsageError("which backup? Name one of: ovia-backup list; `latest` is the newest that is not bad")
    wishes = Wishes(
        backup=backup,
        mode=Mode(mode),
        into=into,
        jobs=system.restore_jobs(jobs or 0),
        stop_services=StopServices(stop_services),
        replicas=dict(scale),
        new_host=new_host,
        create_roles=create_roles,
        privileged_roles=privileged_roles,
        even_if_damaged=even_if_damaged,
        auto_undo=auto_undo,
    )
    carry_out(
        restorations,
        restorations.planner.plan(wishes, operator(), None, datetime.now(UTC)),
        confirmation,
        only_plan,
        as_json,
    )


def _print_restores(records: Sequence[Record], as_json: bool) -> None:
    if as_json:
        print_json([json.loads(record.to_json()) for record in records])
        return
    if not records:
        click.echo("no restore yet")
        return
    rows = [
        (
            f"{record.order.started_at:%Y-%m-%d %H:%M}",
            record.order.mode.value,
            record.order.backup or record.order.incoming,
            record.outcome,
            f"{record.proven.rows:,}" if record.proven else "",
            record.kept,
            record.order.launched_by,
            record.error,
        )
        for record in records
    ]
    head = ("begun (UTC)", "mode", "of", "outcome", "rows", "kept", "launched by", "failed")
    print_table(head, rows, right=(4,))

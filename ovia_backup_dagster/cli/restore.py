"""``ovia-backup restore``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.fetch import at_hand
from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import (
    ExclusiveCommand,
    InsteadOption,
    ReplicasType,
    json_option,
    without_services_option,
)
from ovia_backup_dagster.cli.output import log, print_json, print_table
from ovia_backup_dagster.cli.recover import print_recovery_plan
from ovia_backup_dagster.cli.restore_dialogue import carry_out, confirmed_name, print_restore

if TYPE_CHECKING:
    from ovia_backup_dagster.restoration.record import Record


@click.command("restore", cls=ExclusiveCommand)
@click.argument("backup", required=False)
@click.option(
    "--to",
    "to",
    metavar="TARGET",
    help="Instead of a backup: the database as it was at an instant. A time ('2026-11-30 10:00:01', '5 minutes ago'), "
    "a position in the WAL, xid:N, the name of a restore point, or before-last-drop.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Only print what would be done.")
@click.option(
    "--yes-destroy", "confirmation", metavar="NAME", help="The database's name; then the command does not ask for it."
)
@click.option(
    "--mode",
    type=click.Choice(["swap", "drop", "new"]),
    default="swap",
    show_default=True,
    help="swap: restore beside the live database, compare, then swap the names; can be undone. drop: drop the live "
    "database first, for a server without room for two; cannot be undone. new: restore into a new database.",
)
@click.option(
    "--tables",
    metavar="NAME",
    multiple=True,
    help="Only these tables, separated by commas: restore the backup into a separate database, compare, and copy "
    "them into a new schema of the live database, whose tables stay as they are. Prints the statement that "
    "inserts the missing rows.",
)
@click.option("--into", metavar="NAME", default="", help="With --mode new: the database to create.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Parallel jobs of pg_restore.  [RESTORE_JOBS]")
@click.option(
    "--stop-services",
    type=click.Choice(["at-swap", "first"]),
    default="at-swap",
    show_default=True,
    help="When to stop the services of SWARM_APP_SERVICES.",
)
@click.option(
    "--scale", "scale", type=ReplicasType(), multiple=True, help="Replicas that a service gets after the restore."
)
@click.option("--new-host", is_flag=True, help="Allow a server other than the one that was backed up.")
@click.option(
    "--create-roles",
    is_flag=True,
    help="Create the roles that the server lacks, as saved with the backup, but without passwords and privileges over "
    "other roles.",
)
@click.option(
    "--create-privileged-role",
    "privileged_roles",
    metavar="NAME",
    multiple=True,
    help="Create this one of those roles with all its attributes: SUPERUSER, REPLICATION, BYPASSRLS, memberships.",
)
@click.option(
    "--even-if-damaged", is_flag=True, help="With --mode new: restore what is readable, and list what was lost."
)
@click.option(
    "--auto-undo", is_flag=True, help="Swap back if the migration fails or HEALTH_URL does not become healthy."
)
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
    help="Instead: put back what such a restore had changed.",
)
@click.option("--history", cls=InsteadOption, takes=["as_json"], help="Instead: list past restores, newest first.")
@json_option
def restore_command(
    backup: str | None,
    to: str | None,
    only_plan: bool,
    confirmation: str | None,
    mode: str,
    tables: tuple[str, ...],
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
    """Restore a backup, or the database as it was at an instant: plan, confirm, compare, swap.

    Exit code 1: the restore failed, and was put back as far as possible.
    """
    from ovia_backup_dagster.restoration.request import Wishes
    from ovia_backup_dagster.restoration.restore_order import Mode, StopServices
    from ovia_backup_dagster.restoration.table_copy import parse_tables

    system = system_from_environment()
    restorations = system.restorations.without_services() if without_services else system.restorations
    if history:
        _print_restores(list(restorations.folder.newest_first()), as_json)
        return
    if resume or abort:
        record = restorations.resume(log) if resume else restorations.abort(log, confirmation or "")
        print_restore(record, restorations, as_json, putting_back=abort)
        return
    if to is not None and backup is not None:
        raise click.UsageError("either a backup or --to: both say what is restored")
    if to is not None:
        print_recovery_plan(
            plan := system.pitr.planner.plan(to, datetime.now(UTC), database=system.settings.postgres_db), as_json
        )
        if only_plan:
            return
        # Recovering may take hours: the operator confirms before it.
        confirmation = confirmed_name("" if mode == "new" or tables else system.settings.postgres_db, confirmation)
        backup = str(system.pitr.extractor.extract(plan.order, plan.recovered_to, log))
    if backup is None:
        # The newest backup may contain the damage that the restore is to undo, so the operator must name a backup.
        raise click.UsageError("which backup? Name one of: ovia-backup list; `latest` is the newest that is not bad")
    wishes = Wishes(
        backup=at_hand(system, backup),
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
        tables=parse_tables(tables),
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

"""``ovia-backup undo-restore``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import ExclusiveCommand, InsteadOption, json_option, without_services_option
from ovia_backup_dagster.cli.output import print_json, printable
from ovia_backup_dagster.cli.restore_dialogue import carry_out, confirmed_name


@click.command("undo-restore", cls=ExclusiveCommand)
@click.option("--plan", "only_plan", is_flag=True, help="Only print what would be done.")
@click.option(
    "--yes-destroy",
    "confirmation",
    metavar="NAME",
    help="The live database's name, or with --forget the kept one's; then the command does not ask for it.",
)
@without_services_option
@click.option("--kept", metavar="NAME", default="", help="The kept database to use.  [default: the newest]")
@click.option(
    "--list",
    "listing",
    cls=InsteadOption,
    takes=["as_json"],
    help="Instead: list the replaced databases that are kept, newest first.",
)
@click.option(
    "--forget",
    cls=InsteadOption,
    takes=["confirmation", "kept"],
    help="Instead: drop a kept database, which must be named if there are several. This cannot be undone.",
)
@json_option
def undo_restore_command(
    only_plan: bool,
    confirmation: str | None,
    without_services: bool,
    kept: str,
    listing: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Swap back to the database that was live before the last restore. Run it again to swap forward."""
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.restoration.plan import replaced

    system = system_from_environment()
    restorations = system.restorations.without_services() if without_services else system.restorations
    if listing:
        found = restorations.kept_databases.newest_first()
        if as_json:
            print_json(
                [
                    {
                        "name": each.name,
                        "named_at": each.at.isoformat(),
                        "replaced_at": at.isoformat() if at else None,
                        "size_bytes": each.size_bytes,
                    }
                    for each, at in found
                ]
            )
            return
        for each, at in found:
            click.echo(f"{printable(each.name)}  {human_bytes(each.size_bytes or 0)}  {replaced(each, at)}")
        if not found:
            click.echo("no database is kept")
        return
    if forget:
        name = restorations.kept_databases.find(kept or confirmation or "").name
        for left in restorations.kept_databases.drop(name, confirmed_name(name, confirmation)):
            click.echo(f"left to do: {printable(left)}")
        click.echo("dropped")
        return
    plan = restorations.planner.plan_undo(operator(), None, datetime.now(UTC), kept_name=kept)
    carry_out(restorations, plan, confirmation, only_plan, as_json)

"""``ovia-backup demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ovia_backup_dagster.cli.output import log, print_table, recovery_time


@click.command("demo")
@click.option(
    "--serve", is_flag=True, help="Serve the demo in the Dagster UI, with schedules and sensor on, until Ctrl-C."
)
@click.option("--port", default=3000, show_default=True, help="Port of the UI.")
@click.option("--remove", is_flag=True, help="Instead: stop the demo's server, and remove all that the demo created.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the sample database; 1 has 300,000 rows.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".demo"),
    show_default=True,
    help="Folder for the demo's backups and Dagster history.",
)
def demo_command(serve: bool, port: int, remove: bool, scale: float, folder: Path) -> None:
    """Start a PostgreSQL 16 with sample data, and back it up through Dagster. Needs no settings."""
    from ovia_backup_dagster.demo.demonstration import Demo

    here = Demo(folder.absolute(), scale)
    if remove:
        here.remove()
        return
    if serve:
        sys.exit(here.serve(port, log))
    shown = here.back_up(log)
    click.echo()
    click.echo(f"The backups in {here.backups}:")
    print_table(("backup", "size", "rows", "state", "beside it"), here.table(), right=(1, 2))
    click.echo()
    if drilled := here.drill():
        rows, took = f"{drilled.rows:,} rows", recovery_time(drilled.recovery_seconds)
        page = here.backups / "drills" / f"{drilled.filename}.md"
        click.echo(f"Restored and compared: {rows}; recovery time to expect: {took}. The evidence:  {page}")
    if shown.brought_back:
        place = here.second.place
        click.echo(f"Copied to {place}, encrypted and signed. Brought back from there alone: {shown.brought_back}")
    click.echo(f"As of any second: {shown.recovered}")
    click.echo("To see this history in the Dagster UI, with schedules and sensor on:  make dev")

"""``ovia-backup promote``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import backup_argument, json_option
from ovia_backup_dagster.cli.output import log_waiting, print_json


@click.command("promote")
@backup_argument
@json_option
def promote_command(backup: str, as_json: bool) -> None:
    """Let a proven daily backup also stand in weekly/, if its week has none yet."""
    from ovia_backup_dagster.core.backup import State
    from ovia_backup_dagster.retention.acts import promote

    system, now = system_from_environment(), datetime.now(UTC)
    chosen = system.catalog.find(backup, now)
    promoted = promote(system.catalog, chosen, system.policy, now, log_waiting)
    if as_json:
        weekly = promoted.weekly.path.name if promoted.weekly else None
        print_json({"promoted": promoted.weekly is not None, "weekly": weekly, "reason": promoted.reason})
    else:
        click.echo(f"promoted to {promoted.weekly.path}" if promoted.weekly else "not promoted")
        click.echo(f"  {promoted.reason}")
    # As it is now: it may have been proven while this one waited.
    if promoted.weekly is None and system.catalog.refresh(chosen).state(now) is not State.PROVEN:
        sys.exit(FAILED)

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
    """Promote a verified daily backup to weekly/, if its week has none, and to the other tiers that are on."""
    from ovia_backup_dagster.retention.promote_and_prune import promote

    system, now = system_from_environment(), datetime.now(UTC)
    chosen = system.catalog.find(backup, now)
    promoted = promote(system.catalog, chosen, system.policy, now, log_waiting)
    if as_json:
        weekly = promoted.weekly.path.name if promoted.weekly else None
        made = {tier.value: made.path.name for tier, made in promoted.made.items()}
        print_json({"promoted": bool(made), "weekly": weekly, "promoted_to": made, "reason": promoted.reason})
    else:
        for made_there in promoted.made.values():
            click.echo(f"promoted to {made_there.path}")
        if not promoted.made:
            click.echo("not promoted")
        for reason in promoted.reasons.values():
            click.echo(f"  {reason}")
    # Read again: it may have been verified while this command waited for the lock.
    if not promoted.made and not system.catalog.refresh(chosen).state(now).is_verified:
        sys.exit(FAILED)

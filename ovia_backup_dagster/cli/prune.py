"""``ovia-backup prune``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, log_waiting, print_json

if TYPE_CHECKING:
    from ovia_backup_dagster.retention.plan import RetentionPlan


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and why.")
@click.option(
    "--release",
    "released",
    metavar="BACKUP",
    help="Confirm that the loss of rows was intended, and end the hold on this backup.",
)
@json_option
def prune_command(dry_run: bool, released: str | None, as_json: bool) -> None:
    """Remove the backups that the retention policy does not keep."""
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.retention.holding import release
    from ovia_backup_dagster.retention.promote_and_prune import preview, prune

    system, now = system_from_environment(), datetime.now(UTC)
    if released and dry_run:
        raise click.UsageError("--release changes something; --dry-run does not")
    if released:
        release(system.catalog, system.catalog.find(released, now), now)
        log(f"{released} is no longer on hold")
    if dry_run:
        plan, removed = preview(system.catalog.backups(), system.policy, now), None
    else:
        pruned = prune(system.catalog, system.policy, now, log_waiting)
        plan, removed = pruned.plan, pruned
    if as_json:
        print_json({"held": plan.held or None, "dry_run": dry_run, "decisions": _plan_as_dicts(plan)})
        return
    for decision in plan.removals:
        if removed is not None and decision.candidate.key in removed.in_use:
            continue
        click.echo(f"{'would remove' if dry_run else 'removed'} {decision.candidate.key}: {decision.reason}")
    kept = len(plan.decisions) - len(plan.removals)
    if removed is None:
        click.echo(f"{len(plan.removals)} to remove, {kept} to keep" + (f"; {plan.held}" if plan.held else ""))
    else:
        for key in removed.in_use:
            click.echo(f"{key} is being restored; the next pruning removes it")
        click.echo(f"{len(removed.removed)} removed ({human_bytes(removed.freed_bytes)}), {kept} kept")


def _plan_as_dicts(plan: RetentionPlan) -> list[dict[str, Any]]:
    return [
        {
            "backup": d.candidate.key,
            "standing": d.candidate.state.value,
            "state": d.candidate.state.former,  # as 0.1.0 had it, for one release
            "keep": d.keep,
            "reason": d.reason,
        }
        for d in plan.decisions
    ]

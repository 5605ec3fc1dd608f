"""``ovia-backup list``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import backup_as_dict, log, manifest_problem, print_json, print_table


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the backups, newest first."""
    from ovia_backup_dagster.core.human_text import duration, human_bytes
    from ovia_backup_dagster.retention.promote_and_prune import preview

    system, now = system_from_environment(), datetime.now(UTC)
    backups = system.catalog.backups()
    reasons = {d.candidate.key: d for d in preview(backups, system.policy, now).decisions}
    if as_json:
        print_json([backup_as_dict(backup, now) for backup in backups])
        return
    if not backups:
        click.echo(f"no backup of database {system.catalog.database} in {system.catalog.root}")
        log("Next: ovia-backup dump")
        return
    rows = []
    for backup in backups:
        decision = reasons.get(f"{backup.tier}/{backup}")
        plan = ("keep: " if decision.keep else "remove: ") + decision.reason if decision else ""
        witness = backup.witness
        age = duration(now - backup.started_at)
        count = f"{witness.rows:,}" if witness else ""
        state = backup.state(now).value
        if not backup.is_vouched:
            state = "unsigned"
        elif manifest_problem(backup):
            state += ", manifest unreadable"
        rows.append((backup.path.name, age, human_bytes(backup.size_bytes), count, state, plan))
    print_table(("backup", "age", "size", "rows", "state", "retention"), rows, right=(1, 2, 3))

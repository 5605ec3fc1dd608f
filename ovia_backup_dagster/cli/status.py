"""``ovia-backup status``, as a monitoring plugin answers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.exit_codes import UNKNOWN
from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import backup_as_dict, manifest_problem, print_json, printable
from ovia_backup_dagster.core.errors import BackupError


@click.command("status")
@json_option
def status_command(as_json: bool) -> None:
    """Say whether the newest backup is fresh and good, as a monitoring plugin does."""
    from ovia_backup_dagster.core.backup import State
    from ovia_backup_dagster.core.deadline import LOOK_SECONDS, within_deadline
    from ovia_backup_dagster.core.locking import lock_holder
    from ovia_backup_dagster.health.freshness import Level, freshness

    try:
        system, now = system_from_environment(), datetime.now(UTC)
        catalog = system.catalog
        found, proven, drills, restores, holder = within_deadline(
            LOOK_SECONDS,
            catalog.root,
            lambda: (
                freshness(catalog.newest_first(), system.max_age, now),
                catalog.newest(now, State.PROVEN),
                system.drills.standing(system.drill_max_age, now),
                system.restores.standing(),
                lock_holder(catalog.root),
            ),
        )
        at_work = [who for who in (holder, restores.at_work) if who]
    except BackupError as error:
        click.echo(f"BACKUP UNKNOWN - {error}")
        sys.exit(UNKNOWN)
    if found.level not in (Level.FRESH, Level.UNPROVEN):
        code, word = 2, "CRITICAL"
    elif not found.proven or found.rejected or drills.trouble or restores.trouble:
        code, word = 1, "WARNING"
    else:
        code, word = 0, "OK"
    if as_json:
        newest = backup_as_dict(found.newest, now) if found.newest else None
        last = proven.path.name if proven else None
        extra = {"newest": newest, "last_proven": last, "lock_held_by": "; ".join(at_work) or None, "text": found.text}
        extra["unfinished_restore"] = str(restores.trouble) if restores.trouble else None
        extra["drills"] = {
            "text": drills.text(now),
            "trouble": str(drills.trouble) if drills.trouble else None,
            "last_passed": drills.last_passed.started_at.isoformat() if drills.last_passed else None,
            "recovery_seconds": drills.last_passed.recovery_seconds if drills.last_passed else None,
        }
        print_json({"status": word, "level": found.level.value, **extra})
        sys.exit(code)
    performance = ""
    if found.newest and found.age:
        limit = int(found.max_age.total_seconds())
        performance = f" | age={int(found.age.total_seconds())}s;;{limit} size={found.newest.size_bytes}B"
    told = drills.trouble.what if drills.trouble else drills.text(now)
    click.echo(f"BACKUP {word} - {printable(found.text)}; {printable(told)}{performance}")
    if found.newest and (trouble := manifest_problem(found.newest)):
        click.echo(f"{found.newest}: {printable(trouble)}")
    if drills.trouble:
        click.echo(f"drill: {printable(drills.trouble.reason)}")
        click.echo(f"Next: {printable(drills.trouble.fix)}")
    if found.trouble or not found.proven or found.rejected:
        click.echo(f"last proven backup: {proven or 'none'}")
        for backup in found.rejected:
            click.echo(f"bad: {printable(f'{backup}: {backup.problem.why}' if backup.problem else str(backup))}")
        if found.trouble:
            click.echo(f"likely cause: {printable(found.trouble.reason)}")
        fix = "ovia-backup dump" if found.rejected else "ovia-backup verify latest"
        click.echo(f"Next: {printable(found.trouble.fix) if found.trouble else fix}")
    if restores.trouble:
        click.echo(f"restore: {printable(restores.trouble.account)}")
        click.echo(f"Next: {printable(restores.trouble.fix)}")
    for holder in at_work:
        click.echo(f"now at work: {printable(holder)}")
    sys.exit(code)

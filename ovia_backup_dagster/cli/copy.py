"""``ovia-backup copy``: one backup to any place, by hand."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.output import log


@click.command("copy")
@click.argument("backup")
@click.argument("destination")
@click.option("--plain", is_flag=True, help="Do not encrypt, although OFFSITE_RECIPIENTS is set.")
def copy_command(backup: str, destination: str, plain: bool) -> None:
    """Copy a backup by hand: to a folder, to `user@host:/path` by ssh, or to `REMOTE:PATH` of rclone's configuration.

    Each file is read back and compared. With OFFSITE_RECIPIENTS the copy is encrypted, with BACKUP_SIGNING_KEY_FILE its
    list of SHA-256 is signed.
    """
    from ovia_backup_dagster.offsite import manual_copy

    system = system_from_environment()
    chosen = system.catalog.find(backup, datetime.now(UTC))
    statements, age = system.statement_log, system.offsite.age
    remote = manual_copy.destination(destination, system.offsite.program)
    copier = manual_copy.ManualCopy(
        system.catalog,
        remote,
        None if plain or not age.recipients else age,
        statements if statements is not None and statements.can_record else None,
    )
    for name in copier.copy(chosen, log):
        click.echo(name)

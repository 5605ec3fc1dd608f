"""``ovia-backup dump``."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import backup_as_dict, log, print_json


@click.command("dump")
@json_option
def dump_command(as_json: bool) -> None:
    """Make a backup now."""
    from ovia_backup_dagster.core.shell import shell_word

    backup = system_from_environment().dumper.dump(log=log)
    if as_json:
        print_json(backup_as_dict(backup, datetime.now(UTC)))
    else:
        click.echo(backup.path)
        log(f"not verified yet. Next: ovia-backup verify {shell_word(str(backup))}")

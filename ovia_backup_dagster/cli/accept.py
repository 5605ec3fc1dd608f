"""``ovia-backup accept``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import backup_as_dict, log, print_json, printable


@click.command("accept")
@click.argument("backup")
@json_option
def accept_command(backup: str, as_json: bool) -> None:
    """Accept a backup of another cluster, or one that lacks tables its predecessor had, as intended.

    The backup is judged again. Later dumps of the same cluster need no acceptance. Exit code 1: the backup is still
    bad.
    """
    system, now = system_from_environment(), datetime.now(UTC)
    chosen = system.catalog.find(backup, now, anywhere=False)
    verified = system.verifier.accept(chosen, by=operator(), log=log)
    accepted, judgement = verified.backup.acceptance, verified.judgement
    if as_json:
        print_json(backup_as_dict(verified.backup, datetime.now(UTC)))
    else:
        click.echo(f"{verified.backup} is {'verified' if judgement.good else 'bad'}")
        for text in accepted.found if accepted else ("there was nothing to accept",):
            click.echo(f"  {'accepted: ' if accepted else ''}{printable(text)}")
        for text in judgement.reasons:
            click.echo(f"  {printable(text)}")
    if problem := judgement.problem(str(verified.backup)):
        log(f"Next: {problem.fix}")
        sys.exit(FAILED)

"""``ovia-backup log``: the signed log of the backups."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json


@click.group("log")
def log_group() -> None:
    """Check the signed log of the backups, and state signs of life in it."""


@log_group.command("verify")
@json_option
def verify_log_command(as_json: bool) -> None:
    """Check every statement of the signed log, and print its head.

    Compare the head with the one that you noted before: a log that is shorter than it was has been cut off. Exit code
    1: the log is broken.
    """
    from ovia_backup_dagster.signing.adoption import unsigned

    system = system_from_environment()
    statements = system.required_statement_log
    number = sum(1 for _ in statements.check_each())
    chain = statements.chain()
    now = datetime.now(UTC)
    left = [str(backup) for backup in unsigned(system.catalog, now)]
    current = chain.head.expires_at is not None and chain.head.expires_at > now
    if as_json:
        print_json({"statements": number, "head": chain.head.sha256, "current": current, "unsigned": left})
        return
    click.echo(f"{number} statements, all signed; head {chain.head}")
    if chain.head.expires_at is not None and not current:
        click.echo(
            f"the last statement expired on {chain.head.expires_at:%Y-%m-%d %H:%M} UTC: the host that signs has "
            "stopped, or the log was cut off"
        )
    for name in left:
        click.echo(f"no statement vouches for {name}")
    if left:
        log("Next: if you know where one comes from: ovia-backup keys adopt NAME; else move it away")


@log_group.command("alive")
def alive_command() -> None:
    """State that this host still signs, if the last statement is older than 20 hours.

    A log whose last statement has expired then means that the host has stopped, or that the log was cut off, and not
    only that no backup succeeded. The freshness sensor does the same; this command is for hosts with cron.
    """
    system = system_from_environment()
    statements = system.required_statement_log
    stated = statements.state_alive(datetime.now(UTC))
    click.echo(f"{'stated' if stated else 'not due yet, or nothing is signed yet'}; head {statements.chain().head}")

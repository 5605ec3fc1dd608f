"""``ovia-backup offsite``: copies on remotes, as an operator handles them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import system_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json, print_table, printable

if TYPE_CHECKING:
    from ovia_backup_dagster.offsite.operations import RemoteOperations

_remotes_argument = click.argument("remotes", nargs=-1, metavar="[REMOTE]...")


@click.group("offsite")
def offsite_group() -> None:
    """Copy verified backups to remotes, check them there, and remove old ones. REMOTE is a name in OFFSITE_REMOTES."""


@offsite_group.command("init")
@_remotes_argument
def init_remotes_command(remotes: tuple[str, ...]) -> None:
    """Claim an empty remote with a signed marker. Without it, nothing is written or removed there."""
    from ovia_backup_dagster.offsite.remote_configuration import require_configured
    from ovia_backup_dagster.offsite.remote_log import RemoteLog

    offsite = system_from_environment().offsite
    for remote in offsite.remotes(*remotes):
        require_configured(remote)
        marker = RemoteLog(remote, offsite.system.required_statement_log).initialize(datetime.now(UTC))
        click.echo(f"{remote}: {remote.address.target} is for database {marker.database} (id {marker.id})")
    log("Next: ovia-backup offsite copy")


@offsite_group.command("copy")
@_remotes_argument
def copy_to_remotes_command(remotes: tuple[str, ...]) -> None:
    """Send every verified backup that is not there, newest first. Exit code 1: a remote failed; others continued."""
    from ovia_backup_dagster.core.human_text import human_bytes, seconds

    def copy(operations: RemoteOperations, now: datetime) -> bool:
        copied = operations.copy(now, log)
        size, took = human_bytes(copied.sent_bytes), seconds(copied.elapsed_seconds)
        there = f"{len(copied.copies)} there, {human_bytes(copied.copies_bytes)}"
        click.echo(f"{operations.remote}: {len(copied.sent)} sent ({size} in {took}), {there}")
        return True

    _on_each(remotes, copy)


@offsite_group.command("check")
@_remotes_argument
@json_option
def check_remotes_command(remotes: tuple[str, ...], as_json: bool) -> None:
    """Check what copies depend on: credentials, host keys, marker, log, room. Exit code 1: something will fail."""
    from ovia_backup_dagster.cli.doctor import print_line
    from ovia_backup_dagster.doctor.examination import part_of_remotes
    from ovia_backup_dagster.doctor.report import Severity, worst
    from ovia_backup_dagster.doctor.time_limit import look_in_time

    lines = []
    for line in look_in_time([part_of_remotes(system_from_environment(), *remotes)]):
        lines.append(line)
        if not as_json:
            print_line(line)
    if as_json:
        print_json([line.as_dict() for line in lines])
    sys.exit(worst(lines) is Severity.FAIL)


@offsite_group.command("verify")
@_remotes_argument
def verify_remotes_command(remotes: tuple[str, ...]) -> None:
    """Check every copy against its receipts, and read one back completely. Exit code 1: something is wrong."""
    from ovia_backup_dagster.core.human_text import human_bytes

    def verify(operations: RemoteOperations, now: datetime) -> bool:
        found = operations.verify(now, log)
        for line in (*found.findings, *(f"odd: {note}" for note in found.notes)):
            click.echo(f"{operations.remote}: {printable(line)}")
        how = "nothing was read back"
        if found.read_back is not None:
            how = f"{found.read_back.backup} was read back{' and decrypted' if found.read_back.decrypted else ''}"
        click.echo(f"{operations.remote}: {len(found.copies)} copies, {human_bytes(found.copies_bytes)}; {how}")
        return not found.findings

    _on_each(remotes, verify)


@offsite_group.command("prune")
@_remotes_argument
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and why.")
def prune_remotes_command(remotes: tuple[str, ...], dry_run: bool) -> None:
    """Remove the copies that the remotes' retention does not keep: OFFSITE_DAILY_KEEP and the others."""
    from ovia_backup_dagster.core.human_text import human_bytes

    def prune(operations: RemoteOperations, now: datetime) -> bool:
        pruned = operations.prune(now, log, dry_run=dry_run)
        if dry_run:
            for decision in pruned.decisions:
                verb = "keep" if decision.keep else "would remove"
                click.echo(f"{operations.remote}: {verb} {decision.archive}: {decision.reason}")
        count, freed = len(pruned.removed), human_bytes(pruned.freed_bytes)
        locked = f", {len(pruned.locked)} locked" if pruned.locked else ""
        click.echo(f"{operations.remote}: {count} removed ({freed}), {len(pruned.kept)} kept{locked}")
        return True

    _on_each(remotes, prune)


def _on_each(names: tuple[str, ...], act: Callable[[RemoteOperations, datetime], bool]) -> None:
    """Act on each remote: one that fails does not stop the others. Exit with 1 if one failed."""
    from ovia_backup_dagster.core.errors import BackupError

    offsite, code = system_from_environment().offsite, 0
    for remote in offsite.remotes(*names):
        try:
            good = act(offsite.on(remote), datetime.now(UTC))
        except BackupError as error:
            click.echo(f"ovia-backup: {remote}: {error}", err=True)
            good = False
        code = code if good else FAILED
    sys.exit(code)


@offsite_group.command("list")
@json_option
def list_remotes_command(as_json: bool) -> None:
    """List the remotes of OFFSITE_REMOTES. Asks none of them: that is `ovia-backup list --offsite`."""
    offsite = system_from_environment().offsite
    found = [(remote.address.name, remote.address.target) for remote in offsite.remotes()]
    if as_json:
        print_json([{"name": name, "target": target} for name, target in found])
    else:
        print_table(("remote", "place"), found)

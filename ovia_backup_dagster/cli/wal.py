"""``ovia-backup wal``: the WAL receiver and the WAL archive."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.exit_codes import FAILED
from ovia_backup_dagster.cli.invocation import system_from_environment, volume_from_environment
from ovia_backup_dagster.cli.options import json_option
from ovia_backup_dagster.cli.output import log, print_json, printable
from ovia_backup_dagster.cli.wal_timeline import timeline_command
from ovia_backup_dagster.cli.wal_verify import wal_verify_command

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.receiver_status import ReceiverStatus


@click.group("wal")
def wal_group() -> None:
    """Receive and check the write-ahead log, from which any instant can be recovered."""


wal_group.add_command(timeline_command)
wal_group.add_command(wal_verify_command)


@wal_group.command("receive")
def receive_command() -> None:
    """Receive WAL until SIGTERM: a service. It reports failures, and tries again. One receiver per volume."""
    from threading import Event

    # SIGTERM raises an exception in this thread; pg_receivewal is ended, and the last report written.
    system_from_environment().pitr.receiver(log).receive(Event())


@wal_group.command("status")
@json_option
def wal_status_command(as_json: bool) -> None:
    """Report what the receiver does, and how many seconds of changes would be lost with the server now.

    Exit code 1: no receiver reports, or it has a trouble.
    """
    from ovia_backup_dagster.pitr.receiver_status import read_status

    system = volume_from_environment()
    status, now = read_status(system.settings.backup_dir), datetime.now(UTC)
    if status is None:
        click.echo("ovia-backup: no receiver ever ran on this volume. Next: ovia-backup wal receive", err=True)
        sys.exit(FAILED)
    if as_json:
        print_json(
            {
                **status.model_dump(mode="json"),
                "rpo_seconds": status.rpo_seconds(now),
                "worst_rpo_seconds": status.worst_rpo_seconds,
            }
        )
    else:
        for line in _lines(status, now):
            click.echo(printable(line))
    sys.exit(FAILED if status.troubles or status.is_stale(now) else 0)


@wal_group.command("prune")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed, and why.")
def wal_prune_command(dry_run: bool) -> None:
    """Remove the base backups and the WAL that RECOVERY_WINDOW_DAYS does not keep. Needs a verified base backup."""
    from ovia_backup_dagster.core.human_text import human_bytes
    from ovia_backup_dagster.pitr.archive import cluster_archives

    system = volume_from_environment()
    for archive in cluster_archives(system.settings.backup_dir):
        pruned = system.pitr.prune(archive, log, dry_run=dry_run)
        removed, kept = len(pruned.bases), sum(decision.keep for decision in pruned.plan.bases)
        freed = human_bytes(pruned.freed_bytes)
        click.echo(
            f"cluster {archive.system_identifier}: {removed} base backups and {len(pruned.segments)} segments removed "
            f"({freed}), {kept} base backups kept"
        )


def _lines(status: ReceiverStatus, now: datetime) -> list[str]:
    from ovia_backup_dagster.core.human_text import duration, human_bytes, seconds

    rpo, worst = status.rpo_seconds(now), status.worst_rpo_seconds
    where = f"cluster {status.system_identifier}, timeline {status.timeline}" if status.system_identifier else "nothing"
    found = [f"{status.state}: {where}, slot {status.slot}"]
    if status.is_stale(now):
        found.append(f"the last report is {duration(now - status.written_at)} old: the receiver has ended, or hangs")
    if rpo is not None:
        found.append(f"safe here: everything until {status.confirmed_at:%Y-%m-%d %H:%M:%S} UTC, {seconds(rpo)} ago")
    if worst is not None:
        found.append(f"the most in the last day: {seconds(worst)}")
    if status.archived:
        found.append(f"newest segment in the archive: {status.archived}")
    if status.slot_status:
        safe = "" if status.slot_safe_bytes is None else f", {human_bytes(status.slot_safe_bytes)} until it is lost"
        found.append(f"slot: {status.slot_status}{safe}")
    if status.free_bytes is not None:
        found.append(f"free on the volume: {human_bytes(status.free_bytes)}")
    troubles = (f"since {t.since:%Y-%m-%d %H:%M:%S} UTC: {t.account}. Next: {t.fix}" for t in status.troubles)
    return [*found, *troubles]

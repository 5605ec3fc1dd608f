"""``ovia-backup keep`` and ``ovia-backup release``: a person decides how long a backup stays, here and on remotes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.invocation import operator, system_from_environment
from ovia_backup_dagster.cli.options import InstantType

if TYPE_CHECKING:
    from ovia_backup_dagster.core.backup import Backup
    from ovia_backup_dagster.system import BackupSystem


@click.command("keep")
@click.argument("backup")
@click.option("--until", type=InstantType(), help="When the hold expires, UTC (default: only when it is released).")
def keep_command(backup: str, until: datetime | None) -> None:
    """Keep a backup regardless of the retention, on the volume and, if backups are signed, on every remote."""
    from ovia_backup_dagster.retention.holding import hold

    system, now = system_from_environment(), datetime.now(UTC)
    if until is not None and until <= now:
        raise click.BadParameter(f"{until:%Y-%m-%d %H:%M} UTC is in the past", param_hint="--until")
    _everywhere(
        system,
        backup,
        now,
        until or datetime.max.replace(tzinfo=UTC),
        lambda found: hold(system.catalog, found, now, until=until, by=operator()),
    )
    ends = f"until {until:%Y-%m-%d %H:%M} UTC" if until else f"until: ovia-backup release {backup}"
    click.echo(f"{backup} is kept {ends}")


@click.command("release")
@click.argument("backup")
def release_command(backup: str) -> None:
    """End the hold on a backup: the retention decides about it again, here and on remotes."""
    from ovia_backup_dagster.retention.holding import release

    system, now = system_from_environment(), datetime.now(UTC)
    _everywhere(system, backup, now, None, lambda found: release(system.catalog, found, now))
    click.echo(f"{backup} is released")


def _everywhere(
    system: BackupSystem, wanted: str, now: datetime, until: datetime | None, act: Callable[[Backup], object]
) -> None:
    """Act on the backup on the volume, and state it for its other names, such as those that only remotes still have.

    Raises:
        BackupNotFoundError: neither the volume nor the signed log knows it.
    """
    from ovia_backup_dagster.core.errors import BackupNotFoundError

    log, name = system.statement_log, wanted if wanted.endswith(".dump") else f"{wanted}.dump"
    known = log.chain().known if log is not None and log.can_record else {}
    done: set[str] = set()
    try:
        found = system.catalog.find(wanted, now, anywhere=False)
    except BackupNotFoundError:
        if name not in known:
            raise
    else:
        name = str(found)
        act(found)
        done = {str(each) for each in system.catalog.backups() if each.started_at == found.started_at}
    archive = known[name].files.get("") if name in known else None
    for other, facts in known.items():
        if log is not None and other not in done and archive is not None and facts.files.get("") == archive:
            log.held(other, until)

"""``ovia-backup fetch``, and backups of remotes as arguments of other commands."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ovia_backup_dagster.cli.invocation import volume_from_environment
from ovia_backup_dagster.cli.options import allow_expired_option, as_of_option
from ovia_backup_dagster.cli.output import log
from ovia_backup_dagster.core.layout import FETCHED
from ovia_backup_dagster.core.shell import shell_word

if TYPE_CHECKING:
    from ovia_backup_dagster.system import BackupSystem


@click.command("fetch")
@click.argument("backup", default="latest")
@click.option("--from", "remote", help="The remote's name in OFFSITE_REMOTES (default: the one with the newest copy).")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="A folder (default: BACKUP_DIR/fetched).")
@as_of_option
@allow_expired_option
def fetch_command(
    backup: str, remote: str | None, folder: Path | None, as_of: datetime | None, allow_expired: bool
) -> None:
    """Bring a backup back from a remote: checked against the signed log, decrypted, complete."""
    system = volume_from_environment()
    path = fetched(system, backup, remote, folder, as_of=as_of, allow_expired=allow_expired)
    click.echo(str(path))
    word = shell_word(str(path))
    log(f"Next: ovia-backup verify {word}; ovia-backup drill {word}; ovia-backup restore {word} --plan")


def fetched(
    system: BackupSystem,
    wanted: str,
    remote: str | None = None,
    folder: Path | None = None,
    *,
    as_of: datetime | None = None,
    allow_expired: bool = False,
) -> Path:
    """Fetch a backup from one remote, or from the one that has the newest copy of what is wanted.

    Raises:
        BackupError: no remote has it, or it cannot be fetched; if several failed, the error of the first.
    """
    from ovia_backup_dagster.core.errors import BackupError

    now, offsite = datetime.now(UTC), system.offsite
    into = folder or system.settings.backup_dir / FETCHED
    remotes = offsite.remotes(*([remote] if remote else []), as_of=as_of)
    errors: list[BackupError] = []
    offers = []
    for each in remotes:
        fetcher = offsite.fetcher(each)
        try:
            offers.append((fetcher.find(wanted, now, allow_expired=allow_expired), fetcher))
        except BackupError as error:
            errors.append(error)
            if len(remotes) > 1:
                log(f"{each}: {error}")
    # The newest first; of equally new ones, the first of the settings.
    for offer, fetcher in sorted(offers, key=lambda each: each[0].name.started_at, reverse=True):
        try:
            return fetcher.fetch(offer, into, log)
        except BackupError as error:
            errors.append(error)
            if len(offers) > 1:
                log(f"{fetcher.remote}: {error}")
    raise errors[0]


def at_hand(system: BackupSystem, wanted: str) -> str:
    """A backup argument for the catalog: ``REMOTE:BACKUP`` is fetched first, and becomes a path.

    Raises:
        BackupError: it cannot be fetched.
    """
    remote, colon, backup = wanted.partition(":")
    if not colon or remote not in {address.name for address in system.settings.offsite_remotes}:
        return wanted
    return str(fetched(system, backup or "latest", remote))

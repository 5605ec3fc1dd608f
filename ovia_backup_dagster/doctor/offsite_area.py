"""Checks the remotes: programs, credentials, host keys, marker, log, room, lock, and how fresh the copies are.

It lists and reads, and writes nothing: whether an upload is permitted shows in the first copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.doctor.report import Area, Observation, failed, from_answer, ok, warn
from ovia_backup_dagster.health.condition import about_copies
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.system import BackupSystem


def remotes(system: BackupSystem, *names: str) -> Iterator[Observation]:
    """Everything that copies depend on, on the remotes of these names (default: all)."""
    now = datetime.now(UTC)
    if not system.settings.offsite_remotes:
        yield ok(Area.REMOTES, "backups do not leave this host; to copy them: OFFSITE_REMOTES (docs/offsite.md)")
        return
    try:
        known = system.offsite.remotes(*names)
        yield ok(Area.REMOTES, f"rclone {known[0].program.version()}, {known[0].program.path}")
        system.offsite.age.encrypting()
    except BackupError as error:
        yield failed(Area.REMOTES, error)
        return
    if system.settings.offsite_identity_file is not None and system.settings.backup_signing_key_file is not None:
        yield warn(
            Area.REMOTES,
            "the identity that decrypts the copies is on the host that makes backups: OFFSITE_IDENTITY_FILE",
            "keep it elsewhere, unless this host must read copies back: unset OFFSITE_IDENTITY_FILE",
        )
    for remote in known:
        yield from _remote(system, remote)
    shown = {str(remote) for remote in known}
    standings = [standing for standing in system.remote_standings(now) if standing.name in shown]
    yield from_answer(Area.REMOTES, about_copies(standings))


def _remote(system: BackupSystem, remote: Remote) -> Iterator[Observation]:
    try:
        require_configured(remote)
        remote_log = RemoteLog(remote, system.required_statement_log)
        remote_log.marker()
        listing = remote_log.listing()
        remote_log.require_ours(listing)
        free = remote.free_bytes()
    except BackupError as error:
        yield failed(Area.REMOTES, error)
        return
    size = human_bytes(sum(listing.sizes.values()))
    room = f"; {human_bytes(free)} are free" if free is not None else ""
    yield ok(Area.REMOTES, f"{remote} is ours, with {size}; copies: {len(listing.receipts)}{room}")
    newest = system.catalog.newest(datetime.now(UTC))
    if free is not None and newest is not None and free < 2 * newest.size_bytes:
        text = f"{remote} has room for less than two more backups: {human_bytes(free)} are free"
        yield warn(Area.REMOTES, text, "make room there, or keep fewer copies: OFFSITE_DAILY_KEEP")
    if not remote.lock_days:
        yield ok(Area.REMOTES, f"{remote} has no lock: a person with its credentials can delete the copies there")

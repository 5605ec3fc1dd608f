"""Removes from a remote the copies that its retention does not keep. ``remote_retention`` decides which.

Nothing is removed without the marker, behind a listing that failed, or that was not listed. A copy stops being one with
its receipts, which go first: a removal that was interrupted leaves no half copy that looks whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import RemoteError, RemoteLockedError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.offsite.copying import exclusively
from ovia_backup_dagster.offsite.layout import BACKUPS, Listing
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.remote_configuration import require_configured
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.remote_retention import CopyDecision, plan_remote
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemotePruned:
    """What a pruning decided and did.

    Attributes:
        decisions: one for each complete copy, newest first.
        removed: the archives whose copies are gone.
        locked: archive -> why the store keeps it for now.
        freed_bytes: of the removed copies.
        kept: the archives of the copies that remain.
        kept_bytes: their size.
    """

    decisions: tuple[CopyDecision, ...]
    removed: tuple[str, ...]
    locked: dict[str, str]
    freed_bytes: int
    kept: tuple[str, ...]
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class RemotePruner:
    """The retention of one remote."""

    catalog: Catalog
    log: StatementLog
    remote: Remote
    policy: Policy

    def prune(self, now: datetime, log: Log, *, dry_run: bool = False) -> RemotePruned:
        """Remove what the policy does not keep.

        Raises:
            RemoteError: the remote cannot be listed, or a removal did not succeed.
            StatementLogError, VolumeError, SettingsError, ProgramMissingError: it cannot be decided.
            LockHeldError: another process works on this remote.
        """
        require_configured(self.remote)
        remote_log = RemoteLog(self.remote, self.log)
        with exclusively(self.catalog.root, self.remote):
            marker = remote_log.marker()
            listing = Listing.of({path: stored.size_bytes for path, stored in self.remote.listing().items()})
            remote_log.require_ours(listing)
            decisions = plan_remote(remote_log.copies(marker, listing).complete, self.policy, now)
            removed: list[str] = []
            locked: dict[str, str] = {}
            for decision in reversed(decisions):
                if decision.keep or dry_run:
                    continue
                try:
                    self._remove(decision.archive, listing)
                except RemoteLockedError as error:
                    locked[decision.archive] = self._until(decision.archive, listing) or error.account
                    log(f"{self.remote}: {decision.archive} stays, {locked[decision.archive]}")
                else:
                    removed.append(decision.archive)
                    size = human_bytes(_size(listing, decision.archive))
                    log(f"{self.remote}: removed {decision.archive}, {size}: {decision.reason}")
        kept = tuple(decision.archive for decision in decisions if decision.archive not in removed)
        return RemotePruned(
            decisions=tuple(decisions),
            removed=tuple(removed),
            locked=locked,
            freed_bytes=sum(_size(listing, archive) for archive in removed),
            kept=kept,
            kept_bytes=sum(_size(listing, archive) for archive in kept),
        )

    def _remove(self, archive: str, listing: Listing) -> None:
        for path in reversed(listing.files_of(archive)):
            self.remote.delete(path)
        there = self.remote.listing(f"{BACKUPS}/{archive}")
        if left := there.keys() & set(listing.files_of(archive)):
            raise RemoteError(
                f"{len(left)} objects of {archive} are still on {self.remote} after their removal",
                why="the store reported success, and lists them",
                fix=f"ovia-backup offsite check {self.remote}",
            )

    def _until(self, archive: str, listing: Listing) -> str:
        """Until when the store locks a copy, in words; empty if it does not say."""
        for path in listing.files_of(archive):
            stored = self.remote.stored(path)
            if stored is not None and stored.locked_until is not None:
                return f"locked until {stored.locked_until:%Y-%m-%d %H:%M} UTC"
        return ""


def _size(listing: Listing, archive: str) -> int:
    return sum(listing.sizes[path] for path in listing.files_of(archive))

"""Removes from a remote the copies that its retention does not keep. ``remote_retention`` decides which.

Nothing is removed if the marker is missing or the listing failed, and only what was listed is removed. A copy ends with
its receipts, which go first: a removal that was interrupted leaves no half copy that looks complete.
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

    def prune(
        self, now: datetime, log: Log, *, dry_run: bool = False, forget: Callable[[str], object] = lambda _: None
    ) -> RemotePruned:
        """Remove what the policy does not keep.

        Args:
            forget: called with each archive before its copy is removed: if the removal is interrupted, its absence must
                not look like an intruder's work.

        Raises:
            RemoteError: the remote cannot be listed, or a removal did not succeed.
            StatementLogError, VolumeError, SettingsError, ProgramMissingError: it cannot be decided.
            LockHeldError: another process works on this remote.
        """
        require_configured(self.remote)
        remote_log = RemoteLog(self.remote, self.log)
        with exclusively(self.catalog.root, self.remote):
            marker = remote_log.marker()
            listing = remote_log.listing()
            remote_log.require_ours(listing)
            decisions = plan_remote(remote_log.copies(marker, listing).complete, self.policy, now)
            removed: list[str] = []
            locked: dict[str, str] = {}
            for decision in reversed(decisions):
                if decision.keep or dry_run:
                    continue
                forget(decision.archive)
                try:
                    self._remove(decision.archive, listing, now)
                except RemoteLockedError as error:
                    locked[decision.archive] = error.reason
                    log(f"{self.remote}: {decision.archive} stays, {locked[decision.archive]}")
                else:
                    removed.append(decision.archive)
                    size = human_bytes(listing.size_of(decision.archive))
                    log(f"{self.remote}: removed {decision.archive}, {size}: {decision.reason}")
        kept = tuple(decision.archive for decision in decisions if decision.archive not in removed)
        return RemotePruned(
            decisions=tuple(decisions),
            removed=tuple(removed),
            locked=locked,
            freed_bytes=sum(map(listing.size_of, removed)),
            kept=kept,
            kept_bytes=sum(map(listing.size_of, kept)),
        )

    def _remove(self, archive: str, listing: Listing, now: datetime) -> None:
        folder = f"{BACKUPS}/{archive}"
        self._require_unlocked(archive, now)
        paths = list(reversed(listing.files_of(archive)))
        if self.remote.lock_days:
            self.remote.delete_for_good(folder, [path.removeprefix(f"{folder}/") for path in paths])
        else:
            for path in paths:
                self.remote.delete(path)
        if left := self.remote.listing(folder).keys() & set(paths):
            raise RemoteError(
                f"{len(left)} objects of {archive} are still on {self.remote} after their removal",
                why="the store reported success, and lists them",
                fix=f"ovia-backup offsite check {self.remote}",
            )

    def _require_unlocked(self, archive: str, now: datetime) -> None:
        """A store with versions lets a locked object be deleted: it is hidden, and nothing is gained.

        Raises:
            RemoteLockedError: a file of the copy is locked.
        """
        if self.remote.address.section is None:
            return
        stored = self.remote.listing(f"{BACKUPS}/{archive}", locks=True)
        until = max((each.locked_until for each in stored.values() if each.locked_until), default=now)
        if until > now:
            raise RemoteLockedError(
                f"the copy of {archive} on {self.remote} stays",
                why=f"locked until {until:%Y-%m-%d %H:%M} UTC",
                fix="wait for the end of the lock",
            )

"""Removes the base backups and the WAL that ``wal_retention`` does not keep: under a lock, from files read again.

A base goes before its WAL, in one rename; so after a crash no base is left without its WAL. What is
being read stays, with its WAL. What the receiver and base backups write is theirs: this module removes published files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from ovia_backup_dagster.core.errors import LockHeldError, NotVerifiedError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, exists, sync_folder, unlink
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.locking import removing, volume_lock
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.recovery_windows import ClusterState, read_state
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster.pitr.wal_retention import WalRetentionPlan, plan_wal_retention

LOCK = ".prune.lock"
_REMOVING = ".removing"


@dataclass(frozen=True, slots=True)
class PrunedArchive:
    """The result of pruning.

    Attributes:
        plan: the decisions with their reasons.
        bases: the names of the removed base backups.
        segments: the removed segments.
        in_use: the names of bases that are being read; the next pruning removes them.
        freed_bytes: the size of what was removed.
    """

    plan: WalRetentionPlan
    bases: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    in_use: tuple[str, ...] = ()
    freed_bytes: int = 0


def preview_pruning(archive: ClusterArchive, window: timedelta, now: datetime) -> WalRetentionPlan:
    """What :func:`prune_archive` would decide now; changes nothing and needs no lock.

    Raises:
        VolumeError: the files cannot be read, or a base backup cannot.
    """
    return plan_wal_retention(_readable(read_state(archive)).catalog, window, now)


def prune_archive(
    archive: ClusterArchive, window: timedelta, now: datetime, on_wait: Callable[[str], None] | None = None
) -> PrunedArchive:
    """Remove what retention does not keep. One that is in use or cannot be removed does not stop the rest.

    Args:
        archive: the cluster's files.
        window: how far back any instant is to be recoverable.
        now: the present (UTC).
        on_wait: called with the holder's description, if another process holds the lock.

    Raises:
        NotVerifiedError: no verified base backup can be recovered.
        LockHeldError: another process prunes.
        VolumeError: the files cannot be read, or some could not be removed; all others were.
    """
    with volume_lock(archive.root / PITR, purpose="pruning base backups and WAL", now=now, on_wait=on_wait, name=LOCK):
        _sweep(archive)
        state = _readable(read_state(archive))
        plan = plan_wal_retention(state.catalog, window, now)
        if plan.held:
            raise NotVerifiedError(
                "nothing was removed",
                why=plan.held,
                fix="ovia-backup recovery-window; then make a base backup: ovia-backup base-backup",
            )
        removed, in_use, failures = [], [], list[VolumeError]()
        for decision in plan.base_removals:
            try:
                _remove_base(archive, decision.base.name)
            except LockHeldError:
                in_use.append(decision.base.name)
            except VolumeError as error:
                failures.append(error)
            else:
                removed.append(decision.base)
        remaining = [base for base in state.catalog.bases if base not in removed]
        segments = []
        for each in plan.segment_removals(state.catalog.segment_bytes, remaining):
            try:
                if _remove_segment(archive, each.segment):
                    segments.append(each.segment)
            except VolumeError as error:
                failures.append(error)
        _sync(archive)
    if failures:
        raise VolumeError(
            f"{len(failures)} files or folders in {archive.folder} could not be removed",
            why=failures[0].account,
            fix=failures[0].fix,
        )
    freed = sum(base.size_bytes for base in removed)
    freed += sum(state.archived[each].size_bytes for each in segments if each in state.archived)
    return PrunedArchive(plan, tuple(base.name for base in removed), tuple(segments), tuple(in_use), freed)


def _readable(state: ClusterState) -> ClusterState:
    """Require that each base backup can be read; otherwise, WAL that an unreadable one needs might be removed."""
    if state.incomplete:
        first = state.incomplete[0]
        raise VolumeError(
            f"base backup {first.folder.name} cannot be read, so nothing is removed",
            why=first.why,
            fix=f"ovia-backup wal verify; if the folder is of no use: rm -r {first.folder}",
        )
    return state


def _remove_base(archive: ClusterArchive, name: str) -> None:
    """Remove a base backup: all at once, by a rename, and then its files.

    Raises:
        LockHeldError: it is being read.
        VolumeError: it cannot be removed.
    """
    folder, hidden = archive.base / name, archive.base / f".{name}{_REMOVING}"
    with as_volume_error(f"cannot remove {folder}"):
        with removing(folder / BASE):
            os.rename(folder, hidden)
            sync_folder(archive.base)
        shutil.rmtree(hidden)


def _remove_segment(archive: ClusterArchive, segment: Segment) -> bool:
    """Remove an archived segment; ``False`` if it is not in the archive."""
    with as_volume_error(f"cannot remove {archive.name(segment)} in {archive.wal}"):
        removed = [unlink(path) for path in (archive.archived(segment), archive.archived_partial(segment))]
    return any(removed)


def _sync(archive: ClusterArchive) -> None:
    with as_volume_error(f"cannot remove files in {archive.wal}"):
        sync_folder(archive.wal)


def _sweep(archive: ClusterArchive) -> None:
    """Remove what a killed process has left of base backups that it was removing."""
    with as_volume_error(f"cannot list {archive.base}"):
        names = os.listdir(archive.base) if exists(archive.base) else []
    for name in names:
        if name.startswith(".") and name.endswith(_REMOVING):
            with as_volume_error(f"cannot remove {archive.base / name}"):
                shutil.rmtree(archive.base / name)

"""All of a pruning: base backups and WAL by ``wal_pruning``, and the files beside them that serve no recovery now.

That is old extracts, names of tables, and files that were set aside.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.files import as_volume_error
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.bases import read_bases
from ovia_backup_dagster.pitr.extraction import remove_old_extracts
from ovia_backup_dagster.pitr.relation_names import remove_old_names
from ovia_backup_dagster.pitr.segment_repair import SET_ASIDE
from ovia_backup_dagster.pitr.wal_pruning import PrunedArchive, preview_pruning, prune_archive


def prune_and_tell(
    archive: ClusterArchive, window: timedelta, now: datetime, log: Callable[[str], None], *, dry_run: bool
) -> PrunedArchive:
    """Remove what the window does not keep, and log each removal with its reason.

    Args:
        dry_run: only say what would be removed.

    Raises:
        NotVerifiedError: no verified base backup can be recovered, so nothing was removed.
        LockHeldError: another process prunes.
        VolumeError: the files cannot be read, or some could not be removed.
    """
    if dry_run:
        pruned = PrunedArchive(preview_pruning(archive, window, now))
    else:
        pruned = prune_archive(archive, window, now, lambda holder: log(f"waiting for {holder}"))
        tidy_up(archive, window, now, log)
    for decision in pruned.plan.base_removals:
        verb = "would remove" if dry_run else "removed"
        if decision.base.name in pruned.in_use:
            verb = "could not yet remove, because it is being read,"
        log(f"{verb} base backup {decision.base.name}: {decision.reason}")
    if pruned.segments:
        first, last = (archive.name(segment) for segment in (pruned.segments[0], pruned.segments[-1]))
        log(f"removed {len(pruned.segments)} WAL segments, from {first} to {last}")
    return pruned


def tidy_up(archive: ClusterArchive, window: timedelta, now: datetime, log: Callable[[str], None]) -> None:
    """Remove extracts and set-aside files that are older than the window, and names of tables that no WAL needs.

    Raises:
        VolumeError: the volume refused.
    """
    remove_old_extracts(archive.root, now - window, log)
    folder = archive.folder / SET_ASIDE
    with as_volume_error(f"cannot remove old files in {folder}"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < now - window:
                shutil.rmtree(path)
                log(f"removed {path.name}, which was set aside")
    bases = read_bases(archive).complete
    if bases:
        oldest = min(base.manifest.started_at for base in bases)
        if removed := remove_old_names(archive, oldest):
            log(f"removed {len(removed)} records of table names")

"""Removes what stands beside base backups and WAL and serves no recovery any more: old extracts, names, set-aside files.

``wal_pruning`` removes base backups and WAL themselves.
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

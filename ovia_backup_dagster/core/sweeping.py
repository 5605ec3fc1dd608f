"""Finds and removes what a crash left on the volume: our temporary files, and sidecars without a dump.

Files of other databases, programs and users are left alone. The modules of drills and restores remove their own
leftovers.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.files import TEMPORARY, as_volume_error, is_folder, unlink
from ovia_backup_dagster.core.filesystem import PREFIX as PROBE
from ovia_backup_dagster.core.naming import SUFFIX, BackupName
from ovia_backup_dagster.core.sidecars import archive_of
from ovia_backup_dagster.core.takeover_links import protected
from ovia_backup_dagster.core.tiers import Tier


def sweep_abandoned(catalog: Catalog) -> list[Path]:
    """Remove what a crash left: our temporary files, and sidecars without a dump. Returns the removed files.

    The caller holds the exclusive lock: no other process writes then, so all unfinished files are abandoned.
    """
    swept: list[Path] = []
    for path in unfinished_files(catalog):
        # A file that cannot be removed does not stop the sweep.
        with contextlib.suppress(OSError):
            if unlink(path):
                swept.append(path)
    return swept


def unfinished_files(catalog: Catalog) -> list[Path]:
    """Our temporary files, and sidecars without a dump: being written now, or left by a crash."""
    with as_volume_error(f"cannot list {catalog.root}"):
        found = sorted(catalog.root.glob(f"{PROBE}*{TEMPORARY}"))
    for tier in Tier:
        folder = catalog.folder(tier)
        with as_volume_error(f"cannot list {folder}"):
            if folder.is_dir():
                # If the old script removed a dump, its sidecars wait until the dump is restored.
                names = set(os.listdir(folder)) | protected(catalog.root, tier)
                found += (
                    folder / name for name in sorted(names) if _is_unfinished(name, names, tier, catalog.database)
                )
    # This program creates no folders with such names, so they are left alone.
    return [path for path in found if not is_folder(path)]


def _is_unfinished(filename: str, names: set[str], tier: Tier, database: str) -> bool:
    if filename.startswith(".") and filename.endswith(TEMPORARY):
        inner = filename[1 : -len(TEMPORARY)]
        return _is_ours(inner.partition(SUFFIX)[0] + SUFFIX, tier, database)
    dump = archive_of(filename)
    return dump is not None and dump not in names and _is_ours(dump, tier, database)


def _is_ours(dump: str, tier: Tier, database: str) -> bool:
    name = BackupName.parse(dump)
    return name is not None and name.tier == tier and name.database == database

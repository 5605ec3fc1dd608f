"""Publishes a backup's files in a tier, links them into a second tier, and removes them, in a crash-safe order.

A dump and its sidecars are one unit: sidecars appear first and are removed last, so a reader never sees half a backup.
The caller holds the volume's lock. ``retention`` decides which backups are promoted and removed, ``backup_statements``
writes statements about a finished backup, and ``sweeping`` removes what a crash left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import StrangeFileError, VolumeError
from ovia_backup_dagster.core.files import (
    as_volume_error,
    exists,
    link_or_copy,
    removed_on_error,
    rename_to_new,
    sync_folder,
    unlink,
)
from ovia_backup_dagster.core.locking import removing
from ovia_backup_dagster.core.manifest import Manifest, parse_sidecar
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import MANIFEST, PROMOTED, SIDECAR_KINDS, SidecarKind, made_with_dump
from ovia_backup_dagster.core.takeover_links import protect, unprotect
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import PromotionRecord


def publish_backup(
    catalog: Catalog, temporary: Path, name: BackupName, contents: Mapping[SidecarKind[Any], bytes]
) -> Backup:
    """Publish a finished dump under its name, sidecars first, so that it appears complete or not at all.

    Args:
        catalog: the volume's catalog.
        temporary: the dump, at ``Catalog.temporary(name)``.
        name: its final name.
        contents: its sidecars; the manifest is among them.

    Raises:
        VolumeError, DiskFullError: the volume refused; no part of the backup is visible.
        SettingsError, StatementLogError: the backup cannot be signed; no part of it is visible.
    """
    final = catalog.folder(name.tier) / name.filename
    with as_volume_error(f"cannot publish {final}"):
        if exists(final):
            raise VolumeError(f"{final} exists already", why="another program wrote it", fix="ovia-backup dump")
        for kind, content in made_with_dump(contents):
            catalog.write(final.with_name(f"{final.name}{kind}"), content)
        sync_folder(final.parent)
        manifest = parse_sidecar(Manifest, contents[MANIFEST], final.name)
        catalog.ledger.published(final.name, manifest.size_bytes, manifest.sha256, _by_suffix(contents))
        rename_to_new(temporary, final)
        sync_folder(final.parent)
        status = final.stat()
        _protect(catalog)
    return Backup(final, name, status.st_size, status.st_mtime_ns, ledger=catalog.ledger)


def promote_backup(catalog: Catalog, backup: Backup, tier: Tier, now: datetime) -> Backup:
    """Add a backup to another tier: by a hard link, or else by a verified copy.

    Raises:
        VolumeError, DiskFullError: the volume refused; no part of the new backup is visible.
    """
    covered = backup.unit.covered if backup.unit else None
    record = PromotionRecord(at=now, promoted_from=backup.path.name, covered=covered)
    name = BackupName(backup.name.database, tier, backup.started_at)
    final = catalog.folder(tier) / name.filename
    temporary = catalog.temporary(name)
    with as_volume_error(f"cannot promote {backup} to {final.parent}"), removed_on_error(temporary):
        link_or_copy(backup.path, temporary)
        if exists(final):
            # A bad copy: remove it before the verdict of the good original appears under its name.
            remove_backup(catalog, Backup(final, name, 0, 0))
        copied, written = _contents_to_promote(backup), {PROMOTED: record.to_json().encode()}
        contents = {**copied, **written}
        for kind in SIDECAR_KINDS:
            # Sidecars are copied, not linked: from now on each tier has its own verdicts.
            if kind in contents:
                catalog.write(final.with_name(f"{final.name}{kind}"), contents[kind])
        catalog.ledger.promoted(backup.path.name, final.name, _by_suffix(copied), _by_suffix(written))
        os.rename(temporary, final)
        sync_folder(final.parent)
        status = final.stat()
        _protect(catalog)
    return Backup(final, name, status.st_size, status.st_mtime_ns, ledger=catalog.ledger)


def remove_backup(catalog: Catalog, backup: Backup) -> bool:
    """Remove a backup, dump first; ``False`` if it was already gone.

    Raises:
        VolumeError: the backup cannot be removed.
        LockHeldError: the backup is being restored.
    """
    with as_volume_error(f"cannot remove {backup.path}"), removing(backup.path):
        unprotect(catalog.root, backup.tier, backup.path.name)
        existed = unlink(backup.path)
        # The dump's removal must be on disk before its sidecars are removed: a crash could bring it back without them.
        sync_folder(backup.path.parent)
        for kind in SIDECAR_KINDS:
            unlink(backup.sidecar(kind))
        sync_folder(backup.path.parent)
        catalog.ledger.removed(backup.path.name)
    return existed


def _contents_to_promote(backup: Backup) -> dict[SidecarKind[Any], bytes]:
    """The sidecars to promote. One that is not a regular file is an error only if the backup needs it."""
    found: dict[SidecarKind[Any], bytes] = {}
    for kind in (kind for kind in SIDECAR_KINDS if kind.promoted):
        try:
            content = backup.read_sidecar(kind)
        except StrangeFileError:
            if kind.needed:
                raise
            continue
        if content is not None:
            found[kind] = content
    return found


def _by_suffix(contents: Mapping[SidecarKind[Any], bytes]) -> dict[str, bytes]:
    return {kind.suffix: content for kind, content in contents.items()}


def _protect(catalog: Catalog) -> None:
    """Protect the dump from the old script while that shares the volume."""
    # A backup that cannot be protected is as exposed as without a hand-over, which is not a reason to fail.
    with contextlib.suppress(OSError):
        protect(catalog.root)

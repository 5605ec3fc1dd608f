"""Keeps a backup regardless of the counts, and releases it again. What a hold means is decided in ``plan``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.backup_statements import record_hold
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupNotFoundError, VolumeError
from ovia_backup_dagster.core.verdict import Hold, HoldCause

#: How long a person's hold lasts, unless the person says until when.
_FOREVER = timedelta(days=36525)


def hold(catalog: Catalog, backup: Backup, now: datetime, *, until: datetime | None, by: str) -> None:
    """Keep a backup, in every tier that has it, until an instant (UTC) or until it is released.

    Raises:
        VolumeError: the hold cannot be written.
        LockHeldError: another process changes the volume.
    """
    kept = Hold(until=until or now + _FOREVER, cause=HoldCause.PERSON, reason=f"kept by {by}")
    with catalog.lock(f"keeping {backup}", now):
        for twin in _with_twins(catalog, backup):
            record_hold(catalog, twin, kept)


def release(catalog: Catalog, backup: Backup, now: datetime) -> Backup:
    """Release a backup's hold; from now on it is pruned like others.

    Raises:
        BackupNotFoundError: the backup is not on hold.
    """
    with catalog.lock(f"releasing {backup}", now):
        try:
            found = catalog.refresh(backup).hold
        except VolumeError as error:  # an unreadable hold counts as a hold, and must be releasable
            found = Hold(until=now, reason=str(error))
        if found is None or found.released_at is not None:
            raise BackupNotFoundError(f"{backup} is not on hold", fix="ovia-backup prune --dry-run")
        record_hold(catalog, backup, found.model_copy(update={"released_at": now}))
        # The copies in other tiers have the same hold.
        for twin, same in catalog.held(now):
            if twin.started_at == backup.started_at:
                record_hold(catalog, twin, same.model_copy(update={"released_at": now}))
    return catalog.refresh(backup)


def _with_twins(catalog: Catalog, backup: Backup) -> Iterator[Backup]:
    for other in catalog.backups():
        if other.path == backup.path or other.started_at == backup.started_at:
            yield other

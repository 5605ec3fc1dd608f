"""Reads from the backup volume the facts by which ``standing`` judges point-in-time recovery. Decides nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.files import as_volume_error, exists, read_small
from ovia_backup_dagster.core.manifest import parse_sidecar
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.receiver_status import read_status
from ovia_backup_dagster.pitr.recovery_evidence import DRILLS, RecoveryEvidence
from ovia_backup_dagster.pitr.recovery_windows import ClusterState, StoredWal, read_states
from ovia_backup_dagster.pitr.standing_values import PitrFacts

#: Older WAL says little about how much arrives today.
_RECENT = timedelta(days=7)
_DAY = timedelta(days=1)


def read_facts(root: Path, now: datetime) -> PitrFacts:
    """Read the facts about the cluster that WAL is received from.

    Args:
        root: the backup volume.
        now: the present (UTC).

    Raises:
        VolumeError: the volume cannot be read.
    """
    status, states = read_status(root), read_states(root)
    with as_volume_error(f"cannot inspect {root}"):
        free_bytes = shutil.disk_usage(root).free
    state = _present(states, status.system_identifier if status else None)
    if state is None:
        identifier = status.system_identifier if status else None
        return PitrFacts(status, free_bytes, identifier, others=_with_bases(states))
    return PitrFacts(
        status=status,
        free_bytes=free_bytes,
        system_identifier=state.archive.system_identifier,
        catalog=state.catalog,
        began_at=state.archive.began_at,
        unusable=tuple((each.folder.name, each.why) for each in state.incomplete),
        others=_with_bases(other for other in states if other is not state),
        wal_bytes_per_day=wal_bytes_per_day(state.archived.values(), now),
        last_drill=last_drill(state.archive),
        stored_bytes=state.archived_bytes + sum(base.size_bytes for base in state.catalog.bases),
    )


def last_drill(archive: ClusterArchive) -> RecoveryEvidence | None:
    """The evidence of the newest drill that can be read.

    Raises:
        VolumeError: the folder cannot be read.
    """
    folder = archive.folder / DRILLS
    with as_volume_error(f"cannot read {folder}"):
        names = os.listdir(folder) if exists(folder) else []
    for path in (folder / name for name in sorted(names, reverse=True) if name.endswith(".json") and name[0] != "."):
        with contextlib.suppress(VolumeError, FileNotFoundError), as_volume_error(f"cannot read {path}"):
            return parse_sidecar(RecoveryEvidence, read_small(path), str(path))
    return None


def wal_bytes_per_day(archived: Iterable[StoredWal], now: datetime) -> float:
    """By how many bytes a day the archive has grown recently. Less than a day is not taken for more than it was."""
    recent = [stored for stored in archived if now - _RECENT <= stored.received_at <= now]
    if not recent:
        return 0.0
    span = max(now - min(stored.received_at for stored in recent), _DAY)
    return sum(stored.size_bytes for stored in recent) / (span / _DAY)


def _present(states: list[ClusterState], system_identifier: str | None) -> ClusterState | None:
    """The cluster that the receiver reports, else the one that WAL was received from last."""
    if system_identifier is None:
        return states[0] if states else None
    return next((each for each in states if each.archive.system_identifier == system_identifier), None)


def _with_bases(states: Iterable[ClusterState]) -> tuple[str, ...]:
    return tuple(state.archive.system_identifier for state in states if state.catalog.good_bases)

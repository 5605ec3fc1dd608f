"""Waits for WAL that a base backup needs: it is received by another process, moments after the base backup ended."""

from __future__ import annotations

import time

from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.recovery_windows import read_state

_POLL_SECONDS = 0.5


def wait_for_wal(archive: ClusterArchive, base: str, seconds: float) -> bool:
    """Wait until the WAL from a base backup's start to its end is here; ``False`` if it has not come in time.

    Args:
        archive: the cluster's files.
        base: the base backup's name.
        seconds: how long to wait.

    Raises:
        VolumeError: the files cannot be read.
    """
    deadline = time.monotonic() + seconds
    while True:
        catalog = read_state(archive).catalog
        if any(each.name == base and catalog.usable(each) for each in catalog.bases):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)

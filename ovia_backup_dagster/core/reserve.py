"""Space on the volume that is reserved for sidecars, for when the disk is full.

Without the reserve, a full disk would stay full: no verdict could be written, so nothing could be pruned.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ovia_backup_dagster.core.files import NO_ROOM, exists, unlink

#: An empty block of disk space, released when a verdict must be written and the disk is full.
RESERVE = ".reserve"
RESERVE_BYTES = 4 * 1024 * 1024


def keep_reserve(root: Path) -> None:
    """Reserve the space, if the disk has plenty; a failure is not an error."""
    path = root / RESERVE
    with contextlib.suppress(OSError):
        if exists(path) or shutil.disk_usage(root).free < 16 * RESERVE_BYTES:
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)


def with_reserve(root: Path, write: Callable[[], None]) -> None:
    """Write to the volume; if the disk is full, release the reserve and write again."""
    try:
        write()
    except OSError as error:
        if error.errno not in NO_ROOM or not unlink(root / RESERVE):
            raise
        write()

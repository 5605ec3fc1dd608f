"""Reads many small objects of a remote in one run of rclone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

from ovia_backup_dagster.core.files import read_small
from ovia_backup_dagster.offsite.layout import Listing
from ovia_backup_dagster.offsite.rclone import Remote

#: The most that a statement, a receipt or a signature has, in bytes: they name some ten files.
MOST_BYTES = 64 * 1024


def read_objects(remote: Remote, listing: Listing, paths: Iterable[str]) -> dict[str, bytes]:
    """Path -> content. One that is not listed, is larger than ``MOST_BYTES`` or vanished meanwhile is left out.

    Raises:
        RemoteError: they cannot be read.
        VolumeError: they cannot be written to a temporary folder.
    """
    wanted = [path for path in paths if listing.sizes.get(path, MOST_BYTES + 1) <= MOST_BYTES]
    found = {}
    with tempfile.TemporaryDirectory(prefix="ovia-remote-") as text:
        remote.get("", wanted, Path(text))
        for path in wanted:
            with contextlib.suppress(FileNotFoundError):
                found[path] = read_small(Path(text, path), MOST_BYTES)
    return found

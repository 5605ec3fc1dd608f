"""``.handover/``: a second hard link to every dump, while the old backup script shares the volume.

That script keeps a fixed number of files, counts ours, too, and removes the names of all others; the second link keeps
the data. The folder exists exactly while a hand-over is in progress. ``takeover`` creates and removes it;
``publication`` and ``sweeping`` maintain it: a new dump gets a link, a removed one loses it, and sidecars wait for
their dump.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.files import as_volume_error, sync_folder, sync_opened_folder, unlink
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier

FOLDER = ".handover"
#: The folders that the old script prunes; it does not touch any others.
SHARED_TIERS = tuple(tier for tier in Tier if not tier.optional)


@dataclass(frozen=True, slots=True)
class Protection:
    """The dumps that are protected now.

    Attributes:
        names: the protected dumps, as ``daily/NAME``.
        added: those that were not protected before.
        refused: dumps that could not be protected, with the error.
    """

    names: tuple[str, ...]
    added: tuple[str, ...]
    refused: tuple[tuple[str, OSError], ...]


def handover_began(root: Path) -> datetime | None:
    """When the hand-over in progress began (UTC); ``None`` without one, or if ``.handover`` is not a folder."""
    with as_volume_error(f"cannot inspect {root / FOLDER}"):
        try:
            # Only the beginning and the end of a hand-over change the folder itself; the links are one level below.
            status = (root / FOLDER).lstat()
        except FileNotFoundError:
            return None
    return datetime.fromtimestamp(status.st_mtime, UTC) if stat.S_ISDIR(status.st_mode) else None


def protected(root: Path, tier: Tier) -> set[str]:
    """The names of the tier's dumps that are protected."""
    with as_volume_error(f"cannot list {root / FOLDER / tier}"):
        try:
            if handover_began(root) is None:
                return set()
            return {name for name in os.listdir(root / FOLDER / tier) if is_dump(name, tier)}
        except FileNotFoundError:
            return set()


def protect(root: Path) -> Protection:
    """Give a second name to each dump in a folder that the old script prunes.

    Only root may link another user's files.

    The caller holds the exclusive lock; otherwise a dump that is being removed could remain here. A dump that is still
    being written is protected, too: both names are of one file. No symlink is followed.

    Raises:
        OSError: a folder cannot be read; ``FileNotFoundError`` if no hand-over is in progress.
    """
    names, added, refused = [], [], []
    with folder(root) as volume, folder(FOLDER, volume) as second:
        for tier in SHARED_TIERS:
            with folder(tier, volume) as source, folder(tier, second) as target:
                for name in sorted(name for name in os.listdir(source) if is_dump(name, tier)):
                    try:
                        new = _link(name, source, target)
                    except FileNotFoundError:
                        continue  # removed since
                    except OSError as error:
                        refused.append((f"{tier}/{name}", error))
                    else:
                        if new is not None:
                            names.append(f"{tier}/{name}")
                            added += [f"{tier}/{name}"] if new else []
                sync_opened_folder(target)
    return Protection(tuple(names), tuple(added), tuple(refused))


def _link(name: str, source: int, target: int) -> bool | None:
    """Create the second name; returns whether it is new, or ``None`` if the dump is not a regular file."""
    here = os.stat(name, dir_fd=source, follow_symlinks=False)
    if not stat.S_ISREG(here.st_mode):
        return None
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        if os.path.samestat(here, os.stat(name, dir_fd=target, follow_symlinks=False)):
            return False
        raise
    return True


def unprotect(root: Path, tier: Tier, filename: str) -> None:
    """Remove the second name of a dump that our retention removes: the end of the hand-over must not restore it.

    The second name is removed from disk before the first: after a crash in between, retention removes the dump again.
    """
    path = root / FOLDER / tier / filename
    if path.exists() and unlink(path):
        sync_folder(path.parent)


def is_dump(filename: str, tier: Tier) -> bool:
    """Whether a file with this name is a dump of the tier, of any database."""
    name = BackupName.parse(filename)
    return name is not None and name.tier is tier


@contextlib.contextmanager
def folder(path: Path | str, inside: int | None = None) -> Iterator[int]:
    """Open a folder that is not a symlink; yields its descriptor."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

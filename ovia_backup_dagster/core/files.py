"""File operations that a backup volume asks more of than the standard library gives.

Whole or not at all, on disk when they return, never over somebody else's file, and with errors that say what to
do. What a file means is ``catalog``'s business.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ovia_backup_dagster.core.errors import DiskFullError, VolumeError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: Another filesystem, one without hard links, a file of another owner (protected_hardlinks), too many links.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
TEMPORARY = ".tmp"


def file_sha256(path: Path, *, sync: bool = False) -> str:
    """Hex SHA-256 of a file; with ``sync``, the file is on disk when this returns.

    Raises:
        VolumeError: it cannot be read.
    """
    with explained(f"cannot read {path}"), open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all, readable by its owner only."""
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with removed_on_error(temporary):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames and removals in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_to_new(source: Path, target: Path) -> None:
    """Rename, but never over a file: the old script may have made one of that name a moment ago."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(source, target)
    else:
        source.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Let ``target`` be the same file; where links are not possible, a copy that was compared, with the same times.

    Raises:
        OSError: the filesystem refused.
        VolumeError: the copy differs.
    """
    unlink(target)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        shutil.copyfile(source, target)
        status = source.stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))  # a verdict is bound to size and mtime
        if file_sha256(target, sync=True) != file_sha256(source):
            raise VolumeError(
                f"the copy of {source} in {target.parent} differs from it",
                why="the disk or its driver altered what was written",
                fix="check the volume's disk: dmesg; then verify the backup: ovia-backup verify",
            ) from error


def exists(path: Path) -> bool:
    """Whether there is such a file; a closed door on the way to it is an error, not a no."""
    with explained(f"cannot read {path}"):
        return path.exists()


def is_file(path: Path) -> bool:
    """Whether a name that a person gave is a file."""
    with contextlib.suppress(OSError, ValueError):  # too long, behind a closed door, or with a NUL
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def unlink(path: Path) -> bool:
    """Remove a file; ``False`` when it was gone already."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """``path`` is gone when the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn the volume's refusals into errors that say what to do."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise DiskFullError(
                what, why=why, fix="make room: df -h $BACKUP_DIR; ovia-backup prune --dry-run; then ovia-backup dump"
            ) from error
        fix = "check owner, mode and mount of what is named here: ls -l; id; mount; dmesg | tail"
        raise VolumeError(what, why=why, fix=fix) from error

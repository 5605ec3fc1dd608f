"""Features that backups need and that a volume's filesystem may lack, found by trying them.

Each filesystem refuses with its own error, and some only when the feature is used. So this module creates an empty file
in the backup folder for a moment. The caller decides what follows from a missing feature: ``files`` copies a file that
it cannot link, ``locking`` refuses to write without locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ovia_backup_dagster.core.files import NO_ROOM, NOT_SYNCED, TEMPORARY

#: The prefix of the probe file's name.
PREFIX = ".probe-"


class Capability(StrEnum):
    """A feature of a filesystem. The value is shown to people."""

    LOCKS = "locks"
    LINKS = "hard links"
    SYNC = "fsync of folders"
    MODES = "modes"
    PRIVACY = "files of one user alone"


@dataclass(frozen=True, slots=True)
class Lack:
    """A missing capability, and the operating system's message."""

    of: Capability
    said: str


def lacks(root: Path) -> list[Lack] | None:
    """The capabilities that a folder's filesystem lacks.

    ``None`` if a probe is impossible: this process may not write there, the disk is full, or a sweep removed the file.

    Raises:
        OSError: the disk fails.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=PREFIX, suffix=TEMPORARY, dir=root)
    except OSError as error:
        if error.errno in (*NO_ROOM, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
            return None
        raise
    second = f"{name}.2{TEMPORARY}"
    tries: dict[Capability, Callable[[], None]] = {
        Capability.LOCKS: lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB),
        Capability.LINKS: lambda: os.link(name, second, follow_symlinks=False),
        Capability.SYNC: lambda: _sync(root),
        Capability.MODES: lambda: _make_read_only(name),
    }
    found = []
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            found.append(
                Lack(Capability.PRIVACY, f"a new file has mode {stat.S_IMODE(os.fstat(descriptor).st_mode):o}")
            )
        for capability, attempt in tries.items():
            try:
                attempt()
            except FileNotFoundError:
                return None  # a sweep by another process removed it
            except OSError as error:
                if capability is Capability.SYNC and error.errno not in NOT_SYNCED:
                    raise  # no dump can be published there, either
                found.append(Lack(capability, error.strerror or str(error)))
    finally:
        os.close(descriptor)
        for path in (second, name):
            with contextlib.suppress(OSError):
                os.unlink(path)
    return found


def _make_read_only(name: str) -> None:
    os.chmod(name, 0o400)
    if os.stat(name).st_mode & 0o222:
        raise OSError(errno.ENOTSUP, "a file's mode stays what it was")


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

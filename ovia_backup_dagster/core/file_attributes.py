"""The attributes that keep even root from changing a file: ``chattr +i`` and ``+a``.

Without their name in the message, EPERM would suggest that the file belongs to another user.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path

from ovia_backup_dagster.core.shell import shell_word

#: FS_IOC_GETFLAGS of linux/fs.h, if a long has eight bytes; the kernel writes only four.
_GET_FLAGS = 0x80086601
_NAMES = {0x10: ("i", "immutable"), 0x20: ("a", "append-only")}


def attribute(path: Path) -> tuple[str, str]:
    """Why even root may not change a file or folder, and the command that allows it; both empty without an attribute.

    An attribute of the parent folder prevents creating, renaming and removing the file.
    """
    for each in (path, path.parent):
        flags = _flags(each)
        for flag, (letter, name) in _NAMES.items():
            if flags & flag:
                why = f"{each} has the attribute {letter} ({name}; lsattr -d shows it), which binds root, too"
                return why, f"find out who set it, and why; then, as root: chattr -{letter} {shell_word(str(each))}"
    return "", ""


def _flags(path: Path) -> int:
    try:
        if stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return 0
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, ValueError):
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8))[:4], sys.byteorder)
    except OSError:  # a filesystem without attributes
        return 0
    finally:
        os.close(descriptor)

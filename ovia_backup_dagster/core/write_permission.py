"""Checks whether this process may write to a folder of the volume, and if not, why: mode, owner, attribute or mount.

``filesystem`` finds features that the filesystem lacks.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.core.file_attributes import attribute
from ovia_backup_dagster.core.files import as_volume_error, volume_error
from ovia_backup_dagster.core.shell import shell_word


def make_writable(folder: Path) -> None:
    """Create a folder (mode 0700) if it is missing.

    Raises:
        VolumeError: the folder cannot be created or written; the error says why.
    """
    with as_volume_error(f"cannot use the backup folder {folder}"):
        folder.mkdir(mode=0o700, exist_ok=True)
    require_writable(folder)


def require_writable(folder: Path) -> None:
    """Require that a folder can be written, if it exists.

    Raises:
        VolumeError: the folder cannot be written; the error says why.
    """
    with as_volume_error(f"cannot use the backup folder {folder}"):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise _not_writable(folder)


def _not_writable(folder: Path) -> VolumeError:
    what = f"the backup folder {folder} is not writable"
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return volume_error(OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder)), what)
    why, fix = attribute(folder)
    if why:
        return VolumeError(what, why=why, fix=fix)
    owner, us, shown = folder.stat().st_uid, os.geteuid(), shell_word(str(folder))
    if owner == us == 0:
        return VolumeError(
            what,
            why="it is root's and this process is root's: an export that squashes root, or a security module, forbids",
            fix=f"findmnt -T {shown}; on the NFS server: no_root_squash; dmesg | tail",
        )
    if owner == us:
        return VolumeError(what, why="its mode lets not even its owner write", fix=f"chmod u+rwx {shown}")
    return VolumeError(
        what,
        why=f"it belongs to user {owner}, this process runs as user {us}",
        fix=f"run it as user {owner}; only if the volume is to change hands, as root: chown -R {us} {shown}",
    )

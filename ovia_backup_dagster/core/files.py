"""File operations with stronger guarantees than the standard library's, for the backup volume.

Each write is complete or absent, is on disk when the call returns, and never replaces a file that this program did not
create; errors name the next step. The module that writes a file defines its content.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ovia_backup_dagster.core.errors import (
    DiskFailingError,
    DiskFullError,
    QuotaError,
    ReadOnlyVolumeError,
    StrangeFileError,
    VolumeError,
    VolumeMissingError,
)
from ovia_backup_dagster.core.file_attributes import attribute
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.shell import shell_word

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: Errors of a hard link that a copy would meet, too. Any other error counts as "no hard links here": another
#: filesystem, one without hard links (EPERM, ENOTSUP, ENOSYS, and EIO on some NAS), a file of another owner
#: (protected_hardlinks), too many links. If the disk fails, the copy fails as well.
_NOT_FOR_LACK_OF_LINKS = (*NO_ROOM, errno.EEXIST, errno.ENOENT, errno.EROFS, errno.ESTALE, errno.ENOTCONN)
#: Errors of filesystems that cannot fsync folders, such as CIFS on kernels before 5.10; EIO and ENOSPC are failures.
NOT_SYNCED = (
    *(errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EISDIR, errno.EACCES, errno.EPERM),
)
TEMPORARY = ".tmp"
#: More than a program's write buffer, which is the most that a program can lose on a full disk.
_LEAST_BYTES = 1024 * 1024

#: The size limit for reading one of our notes, in bytes; a note is one line.
NOTE_BYTES = 4096
#: The same for a sidecar that does not grow with the number of tables: 10,000 warnings of pg_dump are about 2 MB.
SIDECAR_BYTES = 16 * 1024 * 1024
#: The same for a witness, evidence, a journal, saved roles: 10,000 tables of 40 columns are about 10 MB.
WITNESS_BYTES = 64 * 1024 * 1024

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
}


def open_plain(path: Path, mode: int = os.O_RDONLY) -> int:
    """Open a regular file that another program may have put there; never blocks, and follows no symlink.

    Every existing file on the volume is opened with this function.

    Raises:
        FileNotFoundError: nothing has this name.
        StrangeFileError: it is a FIFO, a device, a socket, a folder or a symbolic link.
        VolumeError: it cannot be opened.
    """
    with as_volume_error(f"{path} cannot be read", passing=FileNotFoundError):
        # Check before opening, because opening a device has side effects. The file may be replaced right afterwards.
        plain_status(path)
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _require_plain(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def plain_status(path: Path) -> os.stat_result:
    """Size and times of a regular file on the volume.

    Raises:
        FileNotFoundError, StrangeFileError, VolumeError: as :func:`open_plain`.
    """
    with as_volume_error(f"{path} cannot be read", passing=FileNotFoundError):
        status = os.lstat(path)
    _require_plain(path, status)
    return status


def _require_plain(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise _strange(path, f"it is {kind}, and no file")


def _strange(path: Path, why: str) -> StrangeFileError:
    shown = shell_word(str(path))
    fix = f"see who made it: ls -l {shown}; then move it out of the backup folder"
    return StrangeFileError(f"{path} cannot be read", why=why, fix=fix)


@contextlib.contextmanager
def reader(path: Path) -> Iterator[io.BufferedReader]:
    """Like :func:`open_plain`, as a file object for reading."""
    with open(open_plain(path), "rb") as file:
        yield file


def read_small(path: Path, limit: int = SIDECAR_BYTES) -> bytes:
    """The content of a small file on the volume.

    Args:
        path: the file.
        limit: in bytes; a larger file is not this program's, and is not read.

    Raises:
        FileNotFoundError, VolumeError: as :func:`open_plain`.
        StrangeFileError: as :func:`open_plain`; or the file is larger than the limit.
    """
    with as_volume_error(f"{path} cannot be read", passing=FileNotFoundError), reader(path) as file:
        size = os.fstat(file.fileno()).st_size
        # The file may grow while it is read.
        content = b"" if size > limit else file.read(limit + 1)
        if max(size, len(content)) > limit:
            raise _strange(path, f"it is larger than {human_bytes(limit)}")
    return content


def file_sha256(path: Path, *, sync: bool = False) -> str:
    """Hex SHA-256 of a file; with ``sync``, the file is on disk when this returns.

    Raises:
        VolumeError: it cannot be read.
    """
    with as_volume_error(f"cannot read {path}"), reader(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
    return digest


def write_whole(path: Path, content: bytes, folder: Path | None = None) -> None:
    """Write a small file atomically, readable by its owner only.

    The temporary file is in ``folder``, on the same filesystem; by default beside the target.
    """
    temporary = (folder or path.parent) / f".{path.name}{TEMPORARY}"
    with removed_on_error(temporary):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600)
        except FileExistsError:  # left by a killed process, or a FIFO, which would block on open
            os.unlink(temporary)
            descriptor = os.open(temporary, flags, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames and removals in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_opened_folder(descriptor)
    finally:
        os.close(descriptor)


def sync_opened_folder(descriptor: int) -> None:
    """Like :func:`sync_folder`, for a descriptor. No error if the filesystem cannot fsync: the doctor reports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise


def rename_to_new(source: Path, target: Path) -> None:
    """Rename, but never replace a file: the old script may just have created one with this name."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_FOR_LACK_OF_LINKS:
            raise
        os.rename(source, target)
    else:
        source.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link ``target`` to the file; if that is impossible, copy the file, compare, and keep its times.

    Raises:
        OSError: the filesystem refused.
        VolumeError: the copy differs.
    """
    unlink(target)
    with reader(source) as file:
        status = os.fstat(file.fileno())
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NOT_FOR_LACK_OF_LINKS:
                raise
        else:
            if not os.path.samestat(status, os.lstat(target)):
                raise VolumeError(f"{source} was replaced meanwhile", why="another program writes it", fix="try again")
            return
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        # Copy the opened file, which may have lost its name; with the descriptor's path, the kernel does the copying.
        shutil.copyfile(f"/proc/self/fd/{file.fileno()}", target)
    # A verdict is bound to size and mtime; if the filesystem rounds the time, the copy is verified again.
    with contextlib.suppress(OSError):
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    if file_sha256(target, sync=True) != file_sha256(source):
        raise VolumeError(
            f"the copy of {source} in {target.parent} differs from it",
            why="the disk or its driver altered what was written",
            fix="check the volume's disk: dmesg; then verify the backup: ovia-backup verify",
        )


def exists(path: Path) -> bool:
    """Whether anything has this name, even a dangling link. A folder that this user may not enter raises an error."""
    with as_volume_error(f"cannot read {path}"):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def is_file(path: Path) -> bool:
    """Whether a name that an operator typed is a file."""
    with contextlib.suppress(OSError, ValueError):  # too long, in a folder that this user may not enter, or with a NUL
        return path.is_file()
    return False


def is_folder(path: Path) -> bool:
    """Whether the path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def unlink(path: Path) -> bool:
    """Remove a file; ``False`` if it was already gone."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def removed_on_error(path: Path) -> Iterator[None]:
    """Remove ``path`` if the block fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


@contextlib.contextmanager
def as_volume_error(what: str, *, passing: type[OSError] | tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn the volume's errors into typed errors with a remedy; errors of the types ``passing`` are not changed."""
    try:
        yield
    except passing:
        raise
    except OSError as error:
        raise volume_error(error, what) from error


@contextlib.contextmanager
def scratch(folder: Path, variable: str) -> Iterator[None]:
    """Like :func:`as_volume_error`, for temporary files outside the volume: a full disk there is not the volume's."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise full_scratch(folder, variable) from error
        fix = f"ls -ld {folder}; or set {variable} to another folder"
        raise VolumeError(f"cannot write in {folder}", said=error.strerror or str(error), fix=fix) from error


def full_scratch(folder: Path, variable: str) -> DiskFullError:
    """The error for a disk that has no room for temporary files; no backup is affected."""
    return DiskFullError(
        f"{folder} is full",
        why="temporary files are written there; this says nothing about any backup",
        fix=f"make room: df -h {folder}; or set {variable} to a folder on a larger disk",
    )


def is_full(folder: Path) -> bool:
    """Whether so little space is left that the last write may be incomplete."""
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _LEAST_BYTES
    return False


def volume_error(error: OSError, what: str) -> VolumeError:
    """The operating system's error about a file on the volume, as a typed error with cause and remedy."""
    kind, why, fix = _DIAGNOSES.get(error.errno or 0, _UNKNOWN)
    if error.errno == errno.EPERM:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
        bound = next((found for found in map(attribute, map(Path, names)) if found[0]), None)
        why, fix = bound or (why, fix)
    return kind(what, why=why, fix=fix, said=error.strerror or str(error))


_FAILING = (
    DiskFailingError,
    "the disk, or the network to it, is failing",
    "dmesg | tail; then copy the backups elsewhere",
)
_GONE = (
    VolumeMissingError,
    "the folder was removed, or the volume is not mounted any more",
    "findmnt -T $BACKUP_DIR; ls -la $BACKUP_DIR",
)
_FORBIDDEN = (
    VolumeError,
    "this user may not: the files belong to another user, such as the old backup container's root",
    "ls -ln $BACKUP_DIR; id -u; if the volume is to change hands: chown -R USER $BACKUP_DIR",
)
_UNKNOWN: tuple[type[VolumeError], str, str] = (
    VolumeError,
    "",
    "check owner, mode and mount of what is named here: ls -l; id; findmnt; dmesg | tail",
)
_DIAGNOSES: dict[int, tuple[type[VolumeError], str, str]] = {
    errno.ENOSPC: (
        DiskFullError,
        "the backup volume is full: it is too small, or something else is filling it",
        "df -h $BACKUP_DIR; ovia-backup prune --dry-run; or enlarge the volume; then ovia-backup dump",
    ),
    errno.EDQUOT: (
        QuotaError,
        "the volume has room, but this user's quota is used up",
        "quota -s; ovia-backup prune --dry-run; or ask for a larger quota",
    ),
    errno.EROFS: (
        ReadOnlyVolumeError,
        "the volume is mounted read-only, perhaps after a disk error",
        "dmesg | tail; then, if the disk is sound: mount -o remount,rw $BACKUP_DIR",
    ),
    errno.EIO: _FAILING,
    errno.EUCLEAN: _FAILING,
    errno.EBADMSG: _FAILING,  # ext4 and xfs: a checksum does not match
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENODEV: _GONE,
    errno.ENOTCONN: _GONE,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
}

"""Locks: one writer on a backup volume at a time, and no removal of a backup that is being read.

The volume's lock is a ``flock`` on ``$BACKUP_DIR/.lock``; an operation that may run beside its holder has another lock
file. The lock belongs to the open file description, so a client program that inherits the descriptor keeps the lock if
its parent is killed: while pg_dump still writes, no other process does. The file's text names the holder for people;
the kernel's lock alone decides.

A restore holds a shared lock on the dump itself, and a removal an exclusive one. The lock covers both names of a
hard-linked dump.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import Field

from ovia_backup_dagster.core.errors import LockHeldError, NoLocksError, VolumeError
from ovia_backup_dagster.core.files import NOTE_BYTES, open_plain, volume_error
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar

FILENAME = ".lock"
_POLL_SECONDS = 0.2
_REMOVAL_SECONDS = 10.0


class _Note(Sidecar):
    """The holder of the lock, for people. Any user who can write to the volume can forge it."""

    pid: int = Field(gt=0, lt=2**31)
    host: str
    purpose: str
    since: str


@contextmanager
def volume_lock(
    root: Path,
    *,
    purpose: str,
    now: datetime,
    wait_seconds: float | None = None,
    on_wait: Callable[[str], None] | None = None,
    name: str = FILENAME,
) -> Iterator[int]:
    """Hold the exclusive lock on the volume at ``root``; yields the descriptor, to be passed to children.

    Args:
        root: the backup folder, or a folder in it that has a lock of its own; it must exist.
        purpose: what the holder does; processes that wait show it.
        now: the instant (UTC) that is noted as the beginning.
        wait_seconds: how long to wait for another holder; ``None`` means that no setting applies, and does not wait.
        on_wait: called once with the holder's description, if this function has to wait.
        name: the lock file's; operations that may run beside each other in one folder have locks of different names.

    Raises:
        LockHeldError: another process still holds the lock at the end of the wait.
        VolumeError: the lock file cannot be opened.
    """
    path = root / name
    descriptor = _open(path)
    try:
        _acquire(descriptor, root, wait_seconds, on_wait)
        while not _is_at(descriptor, path):
            # The lock file was replaced, so this lock excludes no process. Take the lock on the current file.
            os.close(descriptor)
            descriptor = _open(path)
            _acquire(descriptor, root, wait_seconds, on_wait)
        # The purpose may contain a file's name, which need not be UTF-8.
        purpose = purpose.encode(errors="backslashreplace").decode()
        note = _Note(pid=os.getpid(), host=socket.gethostname(), purpose=purpose, since=now.isoformat())
        _write_note(descriptor, note.model_dump_json())
        # Closing releases the lock, but only when no child has a copy: an explicit LOCK_UN would take the lock from
        # a pg_dump that still writes. A stale note does no harm: only a process that cannot lock reads it.
        yield descriptor
    finally:
        os.close(descriptor)


def require_still_there(descriptor: int, root: Path, name: str = FILENAME, *, again: str = "ovia-backup dump") -> None:
    """Require that ``root`` is still the volume that was locked, before something is published there.

    If the volume was unmounted in the meantime, the mount point remains as a folder on the disk below, and a file
    written there would be taken for a backup.

    Args:
        descriptor: the lock's.
        root, name: as for :func:`volume_lock`.
        again: the command for a retry.

    Raises:
        VolumeError: ``root`` is another folder now, or does not exist.
    """
    try:
        there = _is_at(descriptor, root / name)
    except OSError:
        there = False
    if not there:
        raise VolumeError(
            f"the backup folder {root} is not the one that was locked",
            why="it, or its lock file, was unmounted, removed or replaced while it was written to",
            fix=f"findmnt --target {root}; mount it again; then: {again}",
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Hold a shared lock on a backup's file, so that no process removes it while the block runs.

    Raises:
        FileNotFoundError: the file is gone, or was removed while this function waited.
        VolumeError: the file cannot be opened or locked.
    """
    descriptor = open_plain(path)
    try:
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while not _shared(descriptor):
            # A removal holds the lock only for an instant, so a lock that is held for longer is another program's.
            if time.monotonic() >= deadline:
                raise LockHeldError(f"{path} is being removed", why=_describe(descriptor)[0], fix=f"fuser -v {path}")
            time.sleep(_POLL_SECONDS)
        if not _is_at(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(descriptor)


def _shared(descriptor: int) -> bool:
    try:
        return _try(descriptor, fcntl.LOCK_SH)
    except NoLocksError:
        return True  # without locks, none of our processes writes or removes files there


@contextmanager
def removing(path: Path) -> Iterator[None]:
    """Hold the exclusive lock on a backup's file that is about to be removed; no error if it is already gone.

    Raises:
        LockHeldError: a restore or a drill reads the backup.
    """
    descriptor = _open_to_lock(path)
    if descriptor is None:
        yield
        return
    try:
        if not _try(descriptor, fcntl.LOCK_EX):
            raise LockHeldError(
                f"{path} is in use",
                why=f"it is being restored by {_named(_others(descriptor))}",
                fix="wait for it to end; the next pruning removes it",
            )
        yield
    finally:
        os.close(descriptor)


def _open_to_lock(path: Path) -> int | None:
    # Over NFS, an exclusive lock requires a writable descriptor.
    for mode in (os.O_RDWR, os.O_RDONLY):
        try:
            return open_plain(path, mode)
        except FileNotFoundError:
            return None
        except VolumeError:
            continue
    # The file belongs to another user: our user may remove it, but not open it, so our user cannot be restoring it.
    return None


def lock_holder(root: Path, name: str = FILENAME) -> str | None:
    """The current holder of the lock, in words; ``None`` if no process holds it, or can. Never blocks or writes."""
    try:
        descriptor = open_plain(root / name)
    except (OSError, VolumeError):
        return None
    try:
        if _shared(descriptor):
            return None
        return _describe(descriptor)[0]
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        # The second process opens the file that the first has created, or that another program put there.
        while True:
            with contextlib.suppress(FileExistsError):
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(FileNotFoundError):  # removed since
                return open_plain(path, os.O_RDWR)
    except VolumeError as error:
        raise type(error)(f"cannot lock the backup folder {path.parent}", why=error.account, fix=error.fix) from error
    except OSError as error:
        raise VolumeError(
            f"cannot lock the backup folder {path.parent}",
            why=error.strerror or str(error),
            fix=f"make it writable for this user: ls -ld {path.parent}; id",
        ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _acquire(descriptor: int, root: Path, wait_seconds: float | None, on_wait: Callable[[str], None] | None) -> None:
    # Wait at least a second: ``lock_holder`` holds a shared lock for an instant.
    deadline = time.monotonic() + max(wait_seconds or 0.0, 1.0)
    told = False
    while not _try(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            holder, end = _describe(descriptor)
            longer = "" if wait_seconds is None else ", or raise BACKUP_LOCK_WAIT_MINUTES"
            raise LockHeldError(
                f"the backup folder {root} is in use",
                why=f"{holder} holds its lock" + (f", still after {wait_seconds:.0f} s" if wait_seconds else ""),
                fix=f"wait for it to end{longer}; see: ovia-backup status; if it hangs: {end}",
            )
        if on_wait is not None and not told:
            on_wait(_describe(descriptor)[0])
            told = True
        time.sleep(_POLL_SECONDS)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EIO:
            raise volume_error(error, "cannot lock the backup folder") from error
        raise NoLocksError(
            "the backup folder's filesystem has no locks",
            why="without them two operations at a time may write and remove the same backups",
            fix="mount it with locks (NFS: version 4, or a server with lockd; CIFS: without nobrl), or put BACKUP_DIR "
            "on another filesystem, such as ext4 or xfs; to restore a backup that is there, name its path",
            said=error.strerror or str(error),
        ) from error
    return True


def _describe(descriptor: int) -> tuple[str, str]:
    """The holder of the lock, and the command that ends the holder."""
    try:
        note = parse_sidecar(_Note, os.pread(descriptor, NOTE_BYTES, 0), FILENAME)
        purpose, pid, since = note.purpose, note.pid, note.since
        if note.host != socket.gethostname():
            return f"{purpose} (process {pid} on {note.host}, since {since})", f"on {note.host}: kill {pid}"
        who, end = f"process {pid}", f"kill {pid}"
        # If the process was killed, the pg_dump that it started still writes and holds the lock.
        if not _has_open(Path(f"/proc/{pid}"), os.fstat(descriptor)):
            heirs = _others(descriptor)
            who += " is gone; left behind: " + _named(heirs)
            end = _ended(heirs)
        return f"{purpose} ({who} on {note.host}, since {since})", end
    except (VolumeError, OSError):
        others = _others(descriptor)
        return "another process" + (f" ({_named(others)})" if others else ""), _ended(others)


def _named(processes: Mapping[int, str]) -> str:
    return ", ".join(f"{name}, process {pid}" for pid, name in processes.items()) or "a program of its own"


def _ended(processes: Mapping[int, str]) -> str:
    return " ".join(("kill", *map(str, processes))) if processes else "see who it is: fuser -v $BACKUP_DIR/.lock"


def _others(descriptor: int) -> dict[int, str]:
    """The other processes that share the lock, as far as /proc is readable; a waiting process does not share it."""
    here, found = os.fstat(descriptor), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            links = [link for link in (process / "fd").iterdir() if _is(link, here)]
            if int(process.name) != os.getpid() and any(
                "FLOCK" in (process / "fdinfo" / link.name).read_text() for link in links
            ):
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def _has_open(process: Path, status: os.stat_result) -> bool:
    """Whether a process has the lock file open; true if that cannot be read. Another process may have the PID now."""
    try:
        return any(_is(link, status) for link in (process / "fd").iterdir())
    except PermissionError:
        return True
    except OSError:
        return False


def _is(link: Path, status: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(link.stat(), status)
    return False


def _write_note(descriptor: int, text: str) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError:
        # A full disk must not stop pruning, which makes room. Only people read the note.
        return

"""Disks that fill up, fail, turn read-only, lose power or disappear: real filesystems, created for a test.

Everything here needs root. A test that this machine cannot run is skipped with the reason.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

MEGABYTE = 1024 * 1024
#: EXT4_IOC_SHUTDOWN, without flushing the journal: nothing reaches the disk any more, and every read is an I/O error.
_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2
_PATIENCE_SECONDS = 30
#: MNT_DETACH of umount2(2).
_DETACH = 2


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[None]:
    """Mount a filesystem in memory of ``size`` bytes, at least 4096."""
    folder.mkdir(mode=0o700, exist_ok=True, parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)},mode=0700", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))  # the kernel closes a killed process's files a moment later


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Bind-mount ``source`` at ``target``. The block may unmount it and mount it again."""
    mount_again(source, target)
    try:
        yield
    finally:
        while target.is_mount():
            vanish(target)


@contextmanager
def silent(folder: Path) -> Iterator[Callable[[], None]]:
    """Mount a filesystem (FUSE) whose server never answers a request, like NFS without its server.

    Yields a function that ends the server: waiting clients then get an error.
    """
    folder.mkdir(mode=0o700, exist_ok=True, parents=True)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"silent", os.fsencode(folder), b"fuse", 0, options.encode()):
        os.close(server)
        pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
    with ExitStack() as ended:
        ended.callback(libc.umount2, os.fsencode(folder), _DETACH)
        hang_up = ended.enter_context(ExitStack())
        hang_up.callback(os.close, server)
        # Only SIGKILL ends a waiting client; the timer ends the server, so that a failing test does not hang.
        timer = threading.Timer(_PATIENCE_SECONDS, hang_up.close)
        timer.start()
        ended.callback(timer.cancel)
        yield hang_up.close


def mount_again(source: Path, target: Path) -> None:
    _run("mount", "--bind", str(source), str(target))


def vanish(target: Path) -> None:
    """Unmount lazily: processes keep their open files, but the mount is no longer reachable by a path."""
    _run("umount", "--lazy", str(target))


def free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


@contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """Leave ``left`` bytes free, to the page, until the block ends. The ballast is a file without a name."""
    ballast = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(ballast, 0, max(free(folder) - left, 1))
        yield
    finally:
        os.close(ballast)


class Disk:
    """An ext4 disk that a test can break: a file in memory behind a loop device.

    Args:
        folder: the mount point; the image is stored beside it.
        size: the size of the filesystem in bytes.
    """

    def __init__(self, folder: Path, size: int = 48 * MEGABYTE) -> None:
        self.folder = folder
        self._size = size
        self._store = folder.with_name(folder.name + ".store")

    def __enter__(self) -> Self:
        self._tmpfs = tmpfs(self._store, 2 * self._size)
        self._tmpfs.__enter__()
        self._device = ""
        self.folder.mkdir(exist_ok=True)
        try:
            image = self._store / "image"
            image.touch()
            os.truncate(image, self._size)
            _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
            self._device = _run("losetup", "--show", "--find", str(image))
            self._mount()
        except OSError as error:
            self.__exit__(None, None, None)
            pytest.skip(f"no ext4 on a loop device here: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.folder.is_mount():
            _run("umount", str(self.folder))
        if self._device:
            _run("losetup", "--detach", self._device)
        self._tmpfs.__exit__(None, None, None)

    def _mount(self) -> None:
        _run("mount", "-o", "errors=remount-ro", self._device, str(self.folder))

    def load(self, template: Path) -> None:
        """Copy files to the disk, and remount it so that they are stored."""
        shutil.copytree(template, self.folder, dirs_exist_ok=True, symlinks=True)
        shutil.rmtree(self.folder / "lost+found", ignore_errors=True)
        self.repaired()

    def cut(self) -> None:
        """Cut the power: data that was not fsynced is lost, and every access is an I/O error from now on."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def turn_read_only(self) -> None:
        """Make the kernel meet an error: it remounts the disk read-only while files are open for writing."""
        switch = Path("/sys/fs/ext4") / Path(self._device).name / "trigger_fs_error"
        if not switch.exists():
            pytest.skip("this kernel cannot be told to meet a disk error")
        switch.write_text("a test\n")

    def refuse_writes_after(self, more: int) -> None:
        """Let only ``more`` bytes reach the disk; then write-back fails with an I/O error, which fsync reports."""
        used = os.statvfs(self._store)
        taken = (used.f_blocks - used.f_bfree) * used.f_frsize
        _run("mount", "-o", f"remount,size={max(taken + more, 4096)}", str(self._store))

    def repaired(self) -> None:
        """Bring the disk back: it holds exactly the data that had reached it."""
        _run("mount", "-o", f"remount,size={2 * self._size}", str(self._store))
        _run("umount", str(self.folder))
        self._mount()

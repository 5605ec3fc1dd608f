"""Errors of the operating system on the volume, provoked on real filesystems, and their diagnoses."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors, files
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.backup_statements import record_hold
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.verdict import Hold
from ovia_backup_dagster_tests.support.factories import NOW, make_catalog, publish


@dataclass(frozen=True)
class Case:
    """A condition, its errno, and the diagnosis that it must have."""

    provoke: Callable[[Path], BackupError]
    number: int
    error: type[BackupError]
    why: str
    fix: str


CASES: list[Case] = []
Provoke = Callable[[Path], BackupError]


def provokes(number: int, *, error: type[BackupError], why: str, fix: str) -> Callable[[Provoke], Provoke]:
    def register(provoke: Provoke) -> Provoke:
        CASES.append(Case(provoke, number, error, why, fix))
        return provoke

    return register


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@contextmanager
def mounted(folder: Path, *arguments: object) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    run("mount", *arguments, folder)
    try:
        yield
    finally:
        run("umount", folder)


def image(folder: Path, megabytes: int) -> Path:
    path = folder / "image"
    with open(path, "wb") as file:
        file.truncate(megabytes * 1024 * 1024)
    return path


def needs(program: str) -> None:
    if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed")
        pytest.skip(f"{program} is not installed")


def refused(act: Callable[[], object]) -> BackupError:
    with pytest.raises(BackupError) as caught:
        act()
    return caught.value


def published(root: Path) -> Backup:
    """Publish a dump of 2 MB in the folder."""
    return publish(make_catalog(root), NOW, content=os.urandom(2 * 1024 * 1024))


def written(root: Path) -> Callable[[], object]:
    """A write of a sidecar of some 2 MB beside an existing backup."""
    catalog = make_catalog(root)
    backup = publish(catalog, NOW)
    hold = Hold(until=NOW, reason="".join(map(str, range(400_000))))
    return lambda: record_hold(catalog, backup, hold)


@provokes(
    errno.ENOSPC,
    error=errors.DiskFullError,
    why="the backup volume is full: it is too small, or something else is filling it",
    fix="df -h $BACKUP_DIR; ovia-backup prune --dry-run; or enlarge the volume",
)
def a_full_volume(folder: Path) -> BackupError:
    with mounted(folder / "volume", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        return refused(written(folder / "volume"))


@provokes(
    errno.EDQUOT,
    error=errors.QuotaError,
    why="the volume has room, but this user's quota is used up",
    fix="quota -s; ovia-backup prune --dry-run; or ask for a larger quota",
)
def a_quota_that_is_used_up(folder: Path) -> BackupError:
    needs("mkfs.btrfs")
    disk, volume = image(folder, 128), folder / "volume"
    run("mkfs.btrfs", "--quiet", "--mixed", disk)
    with mounted(volume, "-o", "loop", disk):
        run("btrfs", "quota", "enable", volume)
        run("btrfs", "qgroup", "limit", "1M", volume)
        return refused(written(volume))


@provokes(
    errno.EROFS,
    error=errors.ReadOnlyVolumeError,
    why="the volume is mounted read-only, perhaps after a disk error",
    fix="dmesg | tail; then, if the disk is sound: mount -o remount,rw $BACKUP_DIR",
)
def a_volume_that_is_mounted_read_only(folder: Path) -> BackupError:
    with mounted(folder / "volume", "-t", "tmpfs", "tmpfs"):
        write = written(folder / "volume")
        run("mount", "-o", "remount,ro", folder / "volume")
        return refused(write)


@provokes(
    errno.EIO,
    error=errors.DiskFailingError,
    why="the disk, or the network to it, is failing",
    fix="dmesg | tail; then copy the backups elsewhere",
)
def a_disk_that_does_not_read_any_more(folder: Path) -> BackupError:
    disk, volume = image(folder, 8), folder / "volume"
    run("mkfs.ext4", "-q", disk)
    with mounted(volume, "-o", "loop", disk):
        path = published(volume).path
    with mounted(volume, "-o", "loop,ro", disk):
        os.truncate(disk, 1024 * 1024)  # the far end of the disk is gone
        return refused(lambda: files.file_sha256(path))


@provokes(
    errno.EUCLEAN,
    error=errors.DiskFailingError,
    why="the disk, or the network to it, is failing",
    fix="dmesg | tail; then copy the backups elsewhere",
)
def a_file_whose_inode_is_damaged(folder: Path) -> BackupError:
    disk, volume = image(folder, 8), folder / "volume"
    run("mkfs.ext4", "-q", disk)
    with mounted(volume, "-o", "loop", disk):
        path = published(volume).path
    run("debugfs", "-w", "-R", f"set_inode_field /{path.relative_to(volume)} block[0] 0xdeadbeef", disk)
    with mounted(volume, "-o", "loop,ro", disk):
        return refused(lambda: files.file_sha256(path))


@provokes(
    errno.EBADMSG,
    error=errors.DiskFailingError,
    why="the disk, or the network to it, is failing",
    fix="dmesg | tail; then copy the backups elsewhere",
)
def a_folder_whose_checksum_does_not_match(folder: Path) -> BackupError:
    disk, volume = image(folder, 8), folder / "volume"
    run("mkfs.ext4", "-q", "-b", "1024", disk)
    with mounted(volume, "-o", "loop", disk):
        published(volume)
    blocks = subprocess.run(["debugfs", "-R", "blocks /daily", disk], capture_output=True, text=True, check=True)
    with open(disk, "r+b") as file:
        file.seek(int(blocks.stdout.split()[0]) * 1024 + 1023)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 0xFF]))
    with mounted(volume, "-o", "loop,ro", disk):
        return refused(Catalog(volume, "ovia").backups)


@provokes(
    errno.ENOENT,
    error=errors.VolumeMissingError,
    why="the folder was removed, or the volume is not mounted any more",
    fix="findmnt -T $BACKUP_DIR; ls -la $BACKUP_DIR",
)
def a_volume_that_is_not_mounted_any_more(folder: Path) -> BackupError:
    with mounted(folder / "volume", "-t", "tmpfs", "tmpfs"):
        write = written(folder / "volume")
    return refused(write)


@provokes(
    errno.ENOTCONN,
    error=errors.VolumeMissingError,
    why="the volume is not mounted any more",
    fix="findmnt -T $BACKUP_DIR",
)
def a_filesystem_whose_server_is_dead(folder: Path) -> BackupError:
    """As after sshfs or rclone was killed."""
    volume = folder / "volume"
    volume.mkdir()
    server = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    done = libc.mount(b"dead", os.fsencode(volume), b"fuse", 0, options)
    os.close(server)
    assert done == 0, os.strerror(ctypes.get_errno())
    try:
        return refused(Catalog(volume, "ovia").backups)
    finally:
        run("umount", volume)


@provokes(
    errno.EACCES,
    error=errors.VolumeError,
    why="this user may not: the files belong to another user, such as the old backup container's root",
    fix="ls -ln $BACKUP_DIR; id -u; if the volume is to change hands: chown -R USER $BACKUP_DIR",
)
def a_volume_of_another_user(folder: Path) -> BackupError:
    path = published(folder / "volume").path
    os.seteuid(65534)
    try:
        return refused(lambda: files.file_sha256(path))
    finally:
        os.seteuid(0)


@provokes(
    errno.EPERM,
    error=errors.VolumeError,
    why="has the attribute i (immutable",
    fix="as root: chattr -i ",
)
def a_file_that_nobody_may_change(folder: Path) -> BackupError:
    disk, volume = image(folder, 8), folder / "volume"
    run("mkfs.ext4", "-q", disk)
    with mounted(volume, "-o", "loop", disk):
        catalog = make_catalog(volume)
        backup = publish(catalog, NOW)
        run("chattr", "+i", backup.path)
        return refused(lambda: remove_backup(catalog, backup))


#: Errors that no filesystem of this machine can cause, and why.
NOT_PROVOKED = {
    errno.ESTALE: "asks for a network filesystem whose server was replaced",
    errno.ENODEV: "asks for a device that is pulled out",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a filesystem needs root")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.provoke.__name__)
def test_a_provoked_error_has_its_diagnosis(case: Case, tmp_path: Path) -> None:
    error = case.provoke(tmp_path)

    assert type(error) is case.error, error
    assert error.said == os.strerror(case.number)
    assert case.why in error.why
    assert case.fix in error.fix
    assert not error.transient
    text = str(error)
    assert "\n" not in text
    assert str(tmp_path / "volume") in error.what or "ovia_daily_2026-06-15_120000.dump" in error.what
    assert error.said in text
    assert text.endswith(f". Next: {error.fix}")


def test_every_line_is_provoked_or_excused() -> None:
    provoked = {case.number for case in CASES}
    assert not provoked & set(NOT_PROVOKED)
    assert provoked | set(NOT_PROVOKED) == set(files._DIAGNOSES)

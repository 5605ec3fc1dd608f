"""Hands the volume over from the old backup script, which runs as root, to this system, which does not.

It changes the owner of our files, and, while both systems share the volume, protects dumps that the old script would
remove (``takeover_links``). It runs as root in a folder that others may write to, so it works on descriptors, follows
no symlink, enters no other filesystem, and leaves unknown files alone. ``retention`` decides which backups stay.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ovia_backup_dagster.core import locking
from ovia_backup_dagster.core import takeover_links as protection
from ovia_backup_dagster.core.errors import VolumeError, VolumeMissingError
from ovia_backup_dagster.core.files import as_volume_error, sync_opened_folder
from ovia_backup_dagster.core.human_text import some
from ovia_backup_dagster.core.layout import DRILLS, RESTORES
from ovia_backup_dagster.core.naming import SUFFIX
from ovia_backup_dagster.core.reserve import RESERVE
from ovia_backup_dagster.core.takeover_links import FOLDER, SHARED_TIERS, Protection, folder, is_dump
from ovia_backup_dagster.core.tiers import Tier

_CHUNK_BYTES = 1024 * 1024
#: The name of ``.handover`` until our user owns it: our user could neither read nor remove root's folder.
_UNFINISHED = f"{FOLDER}.new"
#: Evidence of drills and restores. The old script writes no evidence, so all files there are ours.
_EVIDENCE = (DRILLS, RESTORES)
_DOT_FILES = (locking.FILENAME, RESERVE)
_OURS = (*Tier, *_EVIDENCE, *_DOT_FILES, FOLDER, _UNFINISHED)
#: The folder in an empty ext filesystem.
_LOST_AND_FOUND = "lost+found"
#: Never a backup volume, even if empty.
_SYSTEM = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root", "/run"),
    *("/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/local", "/var", "/var/lib", "/var/lib/docker", "/var/tmp"),  # noqa: S108
)
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Owner:
    """The future owner of the volume; printed as an argument of chown."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The result of a hand-over.

    Attributes:
        changed: files and folders whose owner or mode was changed, or that were created.
        unchanged: how many needed no change.
        left_alone: files and folders that are not ours.
        protection: the dumps that the old script cannot destroy; ``None`` if no hand-over is in progress.
        came_back: dumps that the old script had removed, and that were linked back.
    """

    changed: tuple[str, ...]
    unchanged: int
    left_alone: tuple[str, ...]
    protection: Protection | None = None
    came_back: tuple[str, ...] = ()


def begin(
    root: Path, owner: Owner, now: datetime, wait_seconds: float = 0.0, on_wait: Callable[[str], None] | None = None
) -> HandedOver:
    """Hand over the volume, and protect every dump if the old script has used it. A repetition only does what is new.

    If all dumps are ours and no hand-over is in progress, no other system threatens the dumps.

    Raises:
        VolumeError: this user lacks the rights, ``root`` is not a backup volume, or a dump cannot be protected; in the
            last case everything else is done.
        LockHeldError: the rest is done, but nothing new is protected.
    """
    with _volume(root, owner) as (volume, owned):
        # Protect first: after a kill between a change of the dumps' owner and this, nothing would show the old system.
        if FOLDER in os.listdir(volume) or _holds_dumps_of_others(volume, owner):
            with owned.explained(""):
                _make_protection(volume, owner)
    owned = _own(root, owner)
    if protection.handover_began(root) is None:
        return HandedOver(tuple(owned.changed), owned.unchanged, tuple(owned.left_alone))
    with _handover_lock(root, now, wait_seconds, on_wait), as_volume_error(f"cannot protect the dumps in {root}"):
        found = protection.protect(root)
    if found.refused:
        raise _unprotected(root, owner, found)
    return HandedOver(tuple(owned.changed), owned.unchanged, tuple(owned.left_alone), found)


def finish(
    root: Path, owner: Owner, now: datetime, wait_seconds: float = 0.0, on_wait: Callable[[str], None] | None = None
) -> HandedOver:
    """Restore the dumps that the old script removed, and end the protection. Idempotent.

    Call this after the old service is removed.

    Raises:
        VolumeError: this user lacks the rights, ``root`` is not a backup volume, or a file is in the way.
        LockHeldError: the owner is changed, but the protection has not ended.
    """
    owned = _own(root, owner)
    what = f"cannot end the hand-over of {root}"
    with _handover_lock(root, now, wait_seconds, on_wait), as_volume_error(what), folder(root) as volume:
        came_back = _bring_back(volume)
        in_the_way = _remove_protection(volume)
    if in_the_way:
        raise VolumeError(
            f"{root / FOLDER} cannot be removed: {some(in_the_way, _NAMED)} in it",
            why="it is not a dump of this volume, or another file has its name by now",
            fix=f"ls -lR {root / FOLDER}; move it where it belongs, or remove it; then the same command again",
        )
    return HandedOver(tuple(owned.changed), owned.unchanged, tuple(owned.left_alone), None, came_back)


def _handover_lock(
    root: Path, now: datetime, wait_seconds: float, on_wait: Callable[[str], None] | None
) -> contextlib.AbstractContextManager[int]:
    """Hold the volume's lock, so that our own dumps and pruning wait; the old script takes no lock."""
    return locking.volume_lock(root, purpose="the hand-over", now=now, wait_seconds=wait_seconds, on_wait=on_wait)


# ---- owner and mode


@dataclass
class _Owned:
    """Changes the owner while walking over the volume, and records what was changed."""

    root: Path
    owner: Owner
    device: int
    changed: list[str] = field(default_factory=list)
    unchanged: int = 0
    left_alone: list[str] = field(default_factory=list)

    def take(self, descriptor: int, shown: str, mode: int) -> None:
        """Set owner and mode, if they differ."""
        status = os.fstat(descriptor)
        right_mode = stat.S_IMODE(status.st_mode) == mode
        if right_mode and (status.st_uid, status.st_gid) == (self.owner.uid, self.owner.gid):
            self.unchanged += 1
            return
        # Change the mode first: after the owner has changed, only root with all capabilities may do that.
        if not right_mode:
            os.fchmod(descriptor, mode)
        os.fchown(descriptor, self.owner.uid, self.owner.gid)
        self.changed.append(shown)

    def file(self, name: str, inside: int, shown: str) -> None:
        """Take a file that is ours, if it is a regular file on this filesystem."""
        with self.explained(shown), contextlib.suppress(FileNotFoundError):  # removed since
            status = os.stat(name, dir_fd=inside, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_dev != self.device:
                self.left_alone.append(shown)
                return
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, dir_fd=inside)
            try:
                # Another file may have replaced it.
                if os.path.samestat(status, os.fstat(descriptor)):
                    self.take(descriptor, shown, 0o600)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def folder(self, name: str, inside: int, shown: str) -> Iterator[int | None]:
        """Take a folder that is ours, and yield its descriptor; ``None`` for a link, or on another filesystem."""
        with contextlib.ExitStack() as opened:
            descriptor: int | None = None
            with self.explained(shown):
                status = os.stat(name, dir_fd=inside, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and status.st_dev == self.device:
                    descriptor = opened.enter_context(folder(name, inside))
                    self.take(descriptor, shown, 0o700)
                else:
                    self.left_alone.append(shown)
            yield descriptor

    def tier(self, name: str, tier: Tier, inside: int, shown: str) -> None:
        """Take a folder of dumps, the dumps, and the files named after them."""
        with self.folder(name, inside, shown) as descriptor:
            if descriptor is None:
                return
            for child in sorted(os.listdir(descriptor)):
                if _is_named_after_a_dump(child, tier):
                    self.file(child, descriptor, f"{shown}/{child}")
                else:
                    self.left_alone.append(f"{shown}/{child}")

    def everything(self, name: str, inside: int, shown: str) -> None:
        """Take a folder that is ours, with everything in it."""
        with self.folder(name, inside, shown) as descriptor:
            if descriptor is None:
                return
            for child in sorted(os.listdir(descriptor)):
                with self.explained(shown), contextlib.suppress(FileNotFoundError):
                    mode = os.stat(child, dir_fd=descriptor, follow_symlinks=False).st_mode
                    step = self.everything if stat.S_ISDIR(mode) else self.file
                    step(child, descriptor, f"{shown}/{child}")

    def protection(self, inside: int) -> None:
        """Take the folder with the dumps' second names."""
        with self.folder(FOLDER, inside, FOLDER) as descriptor:
            if descriptor is None:
                return
            for child in sorted(os.listdir(descriptor)):
                if child in list(Tier):
                    self.tier(child, Tier.named(child), descriptor, f"{FOLDER}/{child}")
                else:
                    self.left_alone.append(f"{FOLDER}/{child}")

    @contextlib.contextmanager
    def explained(self, shown: str) -> Iterator[None]:
        """Turn a refusal by the system into an error that names the user who has the rights."""
        try:
            with as_volume_error(f"cannot hand over {self.root / shown}", passing=(PermissionError, FileNotFoundError)):
                yield
        except PermissionError as error:
            why = f"it is not ours yet, and this runs as user {os.geteuid()}"
            fix = f"as root: ovia-backup hand-over --to {self.owner}"
            if os.geteuid() == 0:
                why = "this is a root without the capabilities CHOWN, FOWNER and DAC_OVERRIDE, or the file is immutable"
                fix = f"give these to the service, cap_add in its stack file; lsattr -d {self.root / shown}"
            what = f"cannot hand over {self.root / shown}"
            raise VolumeError(what, why=why, fix=fix, said=error.strerror or "") from error


def _own(root: Path, owner: Owner) -> _Owned:
    with _volume(root, owner) as (volume, owned):
        names = sorted(os.listdir(volume))
        with owned.explained(""):
            owned.take(volume, "", 0o700)
        for tier in SHARED_TIERS:
            with owned.explained(tier), contextlib.suppress(FileExistsError):
                os.mkdir(tier, 0o700, dir_fd=volume)
        for tier in (tier for tier in Tier if tier in SHARED_TIERS or tier in names):
            owned.tier(tier, tier, volume, tier)
        with owned.explained(locking.FILENAME):
            # Otherwise the lock would create its file as root, which would lock our user out.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(FileExistsError):
                os.close(os.open(locking.FILENAME, flags, 0o600, dir_fd=volume))
        for name in {*names, locking.FILENAME} & {*_DOT_FILES}:
            owned.file(name, volume, name)
        for name in (name for name in _EVIDENCE if name in names):
            owned.everything(name, volume, name)
        if FOLDER in names:
            owned.protection(volume)
        owned.left_alone += [name for name in names if name not in _OURS]
    owned.changed = [name or "." for name in owned.changed]
    return owned


@contextlib.contextmanager
def _volume(root: Path, owner: Owner) -> Iterator[tuple[int, _Owned]]:
    """Open the volume's folder, if it can be a backup volume.

    Raises:
        VolumeError: the folder cannot be a backup volume.
    """
    fix = "set BACKUP_DIR to where the volume is mounted: findmnt; ls -la $BACKUP_DIR"
    with contextlib.ExitStack() as opened:
        try:
            volume = opened.enter_context(folder(root))
        except FileNotFoundError:
            why = "BACKUP_DIR is wrong, or the volume is not mounted"
            raise VolumeMissingError(f"the backup folder {root} does not exist", why=why, fix=fix) from None
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                with _Owned(root, owner, 0).explained(""):
                    raise
            why = "it is a file, or a link that another user could have made"
            raise VolumeError(f"{root} is not a folder", why=why, fix=fix) from None
        here = os.fstat(volume)
        if any(os.path.samestat(here, os.stat(path)) for path in _SYSTEM if os.path.exists(path)):
            raise VolumeError(f"{root} is not a backup volume", why="it is a folder of the system's", fix=fix)
        names = set(os.listdir(volume)) - {_LOST_AND_FOUND}
        if names and not names & {*_OURS}:
            why = f"it holds {some(sorted(names), _NAMED)}, and nothing of ours"
            raise VolumeError(f"{root} is not a backup volume", why=why, fix=fix)
        yield volume, _Owned(root, owner, here.st_dev)


def _is_named_after_a_dump(filename: str, tier: Tier) -> bool:
    """Whether it is a dump, a sidecar (whose dump may be gone), or a temporary file of one of these."""
    dump, suffix, _ = filename.removeprefix(".").rpartition(SUFFIX)
    return is_dump(dump + suffix, tier)


# ---- protection


def _holds_dumps_of_others(volume: int, owner: Owner) -> bool:
    """Whether another system dumps, or has dumped, to this volume as another user."""
    for tier in Tier:
        with contextlib.suppress(OSError), folder(tier, volume) as descriptor:
            for name in os.listdir(descriptor):
                with contextlib.suppress(FileNotFoundError):
                    if (
                        is_dump(name, tier)
                        and os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid != owner.uid
                    ):
                        return True
    return False


def _make_protection(volume: int, owner: Owner) -> None:
    with contextlib.suppress(FileNotFoundError), folder(FOLDER, volume) as second:
        if set(os.listdir(second)) >= {*SHARED_TIERS}:
            return  # a hand-over is in progress
    # Complete a broken folder in place, so that its dumps stay protected.
    name = FOLDER if FOLDER in os.listdir(volume) else _UNFINISHED
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=volume)
    with folder(name, volume) as second:
        for tier in SHARED_TIERS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(tier, 0o700, dir_fd=second)
            with folder(tier, second) as made:
                os.fchown(made, owner.uid, owner.gid)
        os.fchown(second, owner.uid, owner.gid)
        sync_opened_folder(second)
    if name != FOLDER:
        os.rename(name, FOLDER, src_dir_fd=volume, dst_dir_fd=volume)
    sync_opened_folder(volume)


def _unprotected(root: Path, owner: Owner, found: Protection) -> VolumeError:
    name, error = found.refused[0]
    more = f" and {len(found.refused) - 1} more" if found.refused[1:] else ""
    whys = {
        errno.EEXIST: f"another file of that name is protected already, in {root / FOLDER}",
        errno.EMLINK: "it has as many hard links as its filesystem allows",
        errno.EXDEV: "it is on another filesystem than BACKUP_DIR",
        errno.EPERM: "the filesystem has no hard links, or this user may not make one",
    }
    return VolumeError(
        f"the volume is handed over, but the old script can still remove {name}{more}",
        why=whys.get(error.errno or 0, "the filesystem makes no hard link of it"),
        fix="stop the old script, or the service that runs it, before it prunes; then, as root: "
        f"ovia-backup hand-over --finish --to {owner}",
        said=error.strerror or "",
    )


def _bring_back(volume: int) -> tuple[str, ...]:
    """Link every protected dump back to its first name, unless another file has that name."""
    came_back: list[str] = []
    for tier, second in _protected_tiers(volume):
        with folder(tier, volume) as first:
            for name in _files(second, tier):
                with contextlib.suppress(FileExistsError):
                    os.link(name, name, src_dir_fd=second, dst_dir_fd=first, follow_symlinks=False)
                    came_back.append(f"{tier}/{name}")
            # The restored names must be on disk before the second names are removed.
            sync_opened_folder(first)
    return tuple(came_back)


def _remove_protection(volume: int) -> list[str]:
    """Remove the second name of each dump that has its first one; returns what prevents removing the folder."""
    in_the_way: list[str] = []
    for tier, second in _protected_tiers(volume):
        with folder(tier, volume) as first:
            for name in _files(second, tier):
                with contextlib.suppress(FileNotFoundError):
                    if _same(name, first, second):
                        os.unlink(name, dir_fd=second)
        in_the_way += [f"{tier}/{name}" for name in os.listdir(second)]
    if in_the_way:
        return in_the_way
    for name in (FOLDER, _UNFINISHED):
        with contextlib.suppress(FileNotFoundError), folder(name, volume) as second:
            # Remove the tiers' folders last: without them, nothing would show what the other files are.
            others = sorted(set(os.listdir(second)) - {*Tier})
            if others:
                return others
            for tier in Tier:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(tier, dir_fd=second)
            os.rmdir(name, dir_fd=volume)
    sync_opened_folder(volume)
    return []


def _same(name: str, first: int, second: int) -> bool:
    """Whether both names are of one file, or of equal files: an operator may have copied a backup back.

    Raises:
        FileNotFoundError: one of them is gone.
    """
    with contextlib.ExitStack() as opened:
        files = []
        for place in (first, second):
            # Opening with these flags has no side effect on any kind of file; only regular files are read.
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
            except FileNotFoundError:
                raise
            except OSError:
                return False
            opened.callback(os.close, file)
            files.append(file)
        one, other = map(os.fstat, files)
        if os.path.samestat(one, other):
            return True
        if not (stat.S_ISREG(one.st_mode) and stat.S_ISREG(other.st_mode)) or one.st_size != other.st_size:
            return False
        while chunk := os.read(files[0], _CHUNK_BYTES):
            if chunk != os.read(files[1], _CHUNK_BYTES):
                return False
        return True


def _protected_tiers(volume: int) -> Iterator[tuple[Tier, int]]:
    for tier in Tier:
        with contextlib.ExitStack() as opened:
            try:
                second = opened.enter_context(folder(tier, opened.enter_context(folder(FOLDER, volume))))
            except FileNotFoundError:
                continue
            yield tier, second


def _files(second: int, tier: Tier) -> list[str]:
    return [
        name
        for name in sorted(os.listdir(second))
        if is_dump(name, tier) and stat.S_ISREG(os.stat(name, dir_fd=second, follow_symlinks=False).st_mode)
    ]

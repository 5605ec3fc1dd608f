"""What must be right with the backup volume and what stands on it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

from ovia_backup_dagster.core.catalog import Backup, Catalog, State
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.files import explained
from ovia_backup_dagster.core.freshness import Level, freshness
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.naming import Tier
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.doctor.report import Area, Line, fail, failed, ok, warn
from ovia_backup_dagster.system import BackupSystem

#: Days; a volume that is full sooner deserves a look now.
SOON = 14
_MIN_INODES = 1000


def volume(system: BackupSystem) -> Iterator[Line]:
    """The folder, its filesystem, its lock, and what was left on it."""
    catalog = system.catalog
    root = catalog.root
    try:
        if not root.exists():
            yield _missing(root)
            return
        catalog.check()
        yield from _folders(catalog)
        yield _mount(root)
        yield from _room(system, catalog)
        yield _lock(root)
        yield _leftovers(catalog)
    except BackupError as error:
        yield failed(Area.VOLUME, error)


def _missing(root: Path) -> Line:
    text = f"the backup folder {root} does not exist"
    return fail(Area.VOLUME, text, f"mount the volume there; for a first try: mkdir -p -m 700 {root}")


def _folders(catalog: Catalog) -> Iterator[Line]:
    folders = [folder for folder in (catalog.root, *map(catalog.folder, Tier)) if folder.exists()]
    with explained(f"cannot look at {catalog.root}"):
        statuses = {folder: folder.stat() for folder in folders}
    open_ones = [folder for folder, status in statuses.items() if stat.S_IMODE(status.st_mode) & 0o077]
    if open_ones:
        paths = " ".join(map(str, open_ones))
        yield warn(Area.VOLUME, f"others on this host can look into {paths}", f"chmod 700 {paths}")
    strangers = sorted(_strangers(folders))
    if strangers and os.geteuid() != 0:
        first = strangers[0]
        yield warn(
            Area.VOLUME,
            f"{len(strangers)} files belong to other users, such as {first}: pruning may not be able to remove them",
            f"as root: chown -R {os.geteuid()}:{os.getegid()} {catalog.root}",
        )
    if not open_ones and not (strangers and os.geteuid() != 0):
        yield ok(Area.VOLUME, f"{catalog.root} is ours alone (user {os.geteuid()})")


def _strangers(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        with explained(f"cannot look into {folder}"), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    yield entry.name


def _mount(root: Path) -> Line:
    if os.stat(root).st_dev != os.stat("/").st_dev:
        return ok(Area.VOLUME, f"{root} is on a filesystem of its own")
    return warn(
        Area.VOLUME,
        f"{root} is on the same filesystem as /: is the volume mounted? If so meant, a full disk stops both",
        f"findmnt -T {root}; docker volume inspect ovia_backup_data",
    )


def _room(system: BackupSystem, catalog: Catalog) -> Iterator[Line]:
    with explained(f"cannot look at {catalog.root}"):
        disk = os.statvfs(catalog.root)
    free = disk.f_bavail * disk.f_frsize
    make_room = "enlarge the volume, or keep fewer: ovia-backup prune --dry-run; BACKUP_DAILY_KEEP"
    if disk.f_files and disk.f_favail < _MIN_INODES:
        yield fail(Area.VOLUME, f"the filesystem has only {disk.f_favail} files left to make", "df -i $BACKUP_DIR")
    now = datetime.now(UTC)
    newest = list(islice((b for b in catalog.newest_first(Tier.DAILY) if _counts(b, now)), 30))
    if not newest:
        yield ok(Area.VOLUME, f"{human_bytes(free)} free; no dump yet to compare with")
        return
    size, growth = newest[0].size_bytes, _growth_per_day(newest)
    need = f"{human_bytes(free)} free, the last dump took {human_bytes(size)}, growing {human_bytes(growth)} a day"
    if free < size + growth:
        yield fail(Area.VOLUME, f"no room for the next dump: {need}", make_room)
        return
    days = _days_until_full(free, size, growth, len(newest), system)
    if days is not None and days < SOON:
        yield warn(Area.VOLUME, f"the volume will be full in about {days} days: {need}", make_room)
    else:
        yield ok(Area.VOLUME, need)


def _counts(backup: Backup, now: datetime) -> bool:
    return backup.state(now) in (State.PROVEN, State.UNPROVEN)


def _growth_per_day(newest: Sequence[Backup]) -> float:
    """Bytes that a dump is larger from one day to the next; never less than nothing."""
    first, last = newest[-1], newest[0]
    days = (last.started_at - first.started_at) / timedelta(days=1)
    # Dumps of one afternoon say nothing about a month.
    return max((last.size_bytes - first.size_bytes) / days, 0.0) if days >= 1 else 0.0


def _days_until_full(free: int, size: int, growth: float, kept: int, system: BackupSystem) -> int | None:
    """A dump a day is added until the policy's number stands there, then each kept one grows."""
    policy = system.policy
    missing = max(policy.daily_keep + policy.weekly_keep - kept, 0)
    for day in range(1, 365):
        free -= int(size + growth * day) if day <= missing else int(growth * (policy.daily_keep + policy.weekly_keep))
        if free < size + growth * day:
            return day
    return None


def _lock(root: Path) -> Line:
    holder = lock_holder(root)
    if holder is None:
        return ok(Area.VOLUME, "nobody holds the lock")
    return ok(Area.VOLUME, f"at work now: {holder}")


def _leftovers(catalog: Catalog) -> Line:
    left = catalog.unfinished()
    if not left:
        return ok(Area.VOLUME, "nothing was left behind by a crash")
    size = sum(path.lstat().st_size for path in left if path.is_file())
    names = ", ".join(path.name for path in left[:2]) + (f" and {len(left) - 2} more" if left[2:] else "")
    text = f"unfinished files ({human_bytes(size)}): {names}; being written now, or left by a crash"
    return warn(Area.VOLUME, text, "nothing: the next dump removes them; at once: ovia-backup prune")


def backups(system: BackupSystem) -> Iterator[Line]:
    """Freshness, and whether anything is proven."""
    now = datetime.now(UTC)
    try:
        found = freshness(system.catalog.newest_first(), system.max_age, now)
    except BackupError as error:
        yield failed(Area.BACKUPS, error)
        return
    if found.trouble is None:
        unproven = found.level is Level.FRESH and not found.proven
        yield (
            warn(Area.BACKUPS, found.text, "ovia-backup verify latest")
            if unproven or found.rejected
            else ok(Area.BACKUPS, found.text)
        )
        return
    if found.level is Level.MISSING and not found.rejected:
        # The state of every new system: no fault yet, and the sensor will say so if it stays like that.
        yield warn(Area.BACKUPS, found.text, "ovia-backup dump && ovia-backup verify latest")
        return
    yield failed(Area.BACKUPS, found.trouble)

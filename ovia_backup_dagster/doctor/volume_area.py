"""Checks the backup volume and the backups on it."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.deployment_hints import Hints, steps
from ovia_backup_dagster.core.errors import BackupError, VolumeError, VolumeMissingError
from ovia_backup_dagster.core.files import WITNESS_BYTES, as_volume_error, exists, is_folder, plain_status, read_small
from ovia_backup_dagster.core.filesystem import PREFIX as PROBE
from ovia_backup_dagster.core.filesystem import Capability, lacks
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.layout import DRILLS, RESTORES
from ovia_backup_dagster.core.locking import FILENAME, lock_holder
from ovia_backup_dagster.core.naming import SUFFIX
from ovia_backup_dagster.core.reserve import RESERVE
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.core.sweeping import unfinished_files
from ovia_backup_dagster.core.takeover_links import FOLDER as HAND_OVER
from ovia_backup_dagster.core.takeover_links import handover_began
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.write_permission import require_writable
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, fail, failed, from_answer, ok, warn
from ovia_backup_dagster.health.condition import about_backups, about_volume
from ovia_backup_dagster.health.freshness import FreshnessLevel, judge_freshness
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.system import BackupSystem

#: About the size of an empty dump with its sidecars.
_LEAST_BYTES = 1024 * 1024
#: A volume that will be full within this number of days is a warning.
SOON = 14
_MIN_INODES = 1000
#: A takeover should take a day; one that takes longer than this is reported.
_HAND_OVER = timedelta(days=3)
#: The files with which a doctor tries the filesystem exist for milliseconds, and a doctor ends within half a minute.
_PROBED = timedelta(minutes=1)
#: Dumps from which growth is computed.
_LOOKED_AT = 30
#: Per capability that a filesystem may lack: the level, what the lack means, and the fix.
_LACKS: dict[Capability, tuple[Callable[[Area, str, str], Observation], str, str]] = {
    Capability.LOCKS: (
        fail,
        "has no locks: nothing is written or removed there, since two operations could meet",
        "findmnt -T {root}; mount it with locks (NFS: version 4; CIFS: without nobrl), or put BACKUP_DIR elsewhere",
    ),
    Capability.PRIVACY: (
        fail,
        "lets other users of this host read every dump",
        "findmnt -T {root}; mount it for this user alone (CIFS: uid=,file_mode=0600,dir_mode=0700)",
    ),
    Capability.MODES: (
        warn,
        "keeps no modes: who may read a dump is decided by how it is mounted",
        "findmnt -T {root}; see that its options name this user alone",
    ),
    Capability.LINKS: (
        warn,
        "has no hard links: a promoted backup is a copy, compared when it is made, and takes its own room",
        "nothing, if there is room for as many more dumps as are to be kept; the old script cannot share the volume",
    ),
    Capability.SYNC: (
        warn,
        "does not sync folders to the disk when asked to: after a power cut the newest backup may be missing",
        "nothing, if the machine that keeps it has a battery; else put BACKUP_DIR on another filesystem",
    ),
}


def volume(system: BackupSystem) -> Iterator[Observation]:
    """The folder, its filesystem, its lock, and files left by a crash."""
    try:
        catalog = system.catalog
        root = catalog.root
        if not exists(root):
            yield from _missing(catalog)
            return
        if not root.is_dir():
            yield fail(Area.VOLUME, f"{root} is not a folder", f"ls -l {shell_word(str(root))}; then set BACKUP_DIR")
            return
        require_writable(root)
        yield from _writable(catalog)
        yield from _folders(catalog)
        yield _mount(root, system.settings.deployment_hints)
        yield from _capabilities(root)
        yield from _room(system, catalog)
        yield from _strange(catalog)
        yield _lock(root)
        yield _leftovers(catalog)
        yield from _hand_over(root)
        yield from _signing_key(system)
        yield _signatures(system, datetime.now(UTC))
    except BackupError as error:
        yield failed(Area.VOLUME, error)


def _missing(catalog: Catalog) -> Iterator[Observation]:
    try:
        catalog.backups()
    except VolumeMissingError as error:
        fix = f"mount the volume there; for a first try: mkdir -p -m 700 {shell_word(str(catalog.root))}"
        yield replace(from_answer(Area.VOLUME, about_volume([error])), fix=fix)


def _folders(catalog: Catalog) -> Iterator[Observation]:
    folders = [folder for folder in (catalog.root, *map(catalog.folder, Tier)) if folder.exists()]
    with as_volume_error(f"cannot inspect {catalog.root}"):
        statuses = {folder: folder.stat() for folder in folders}
    open_ones = [folder for folder, status in statuses.items() if stat.S_IMODE(status.st_mode) & 0o077]
    if open_ones:
        paths = [str(folder) for folder in open_ones]
        yield warn(
            Area.VOLUME, f"others on this host can look into {', '.join(paths)}", shlex.join(["chmod", "700", *paths])
        )
    strangers = sorted(_strangers(folders))
    if strangers and os.geteuid() != 0:
        first = strangers[0]
        yield warn(
            Area.VOLUME,
            f"{len(strangers)} files belong to other users, such as {first}: pruning may not be able to remove them",
            f"as root: chown -R {os.geteuid()}:{os.getegid()} {shell_word(str(catalog.root))}",
        )
    if not open_ones and not (strangers and os.geteuid() != 0):
        yield ok(Area.VOLUME, f"{catalog.root} is ours alone (user {os.geteuid()})")


def _writable(catalog: Catalog) -> Iterator[Observation]:
    """Each folder of the volume that this process cannot write to, and why. Only the files kept there are affected."""
    for folder in (*map(catalog.folder, Tier), catalog.root / DRILLS, catalog.root / RESTORES):
        try:
            require_writable(folder)
        except BackupError as error:
            yield failed(Area.VOLUME, error)


def _capabilities(root: Path) -> Iterator[Observation]:
    """The capabilities that the volume's filesystem lacks."""
    with as_volume_error(f"cannot write in {root}"):
        missing = lacks(root)
    if missing is None:
        return
    shown = shell_word(str(root))
    for lack in missing:
        say, text, fix = _LACKS[lack.of]
        yield say(Area.VOLUME, f"the filesystem of {root} {text} ({lack.said})", fix.format(root=shown))
    if not missing:
        yield ok(Area.VOLUME, "its filesystem has locks, hard links and modes, and syncs folders to the disk")


def _strangers(folders: Sequence[Path]) -> Iterator[str]:
    us = os.geteuid()
    for folder in folders:
        with as_volume_error(f"cannot list {folder}"), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since by another process
                    status = entry.stat(follow_symlinks=False)
                    others = stat.S_ISREG(status.st_mode) and status.st_uid != us
                    if others and not _is_being_probed(Path(entry.path), status):
                        yield entry.name


def _strange(catalog: Catalog) -> Iterator[Observation]:
    """Entries with the name of one of our files that are not regular files: they are not read, and count as missing."""
    root = catalog.root
    found = [path for path in (root / FILENAME, root / RESERVE) if exists(path) and not _is_plain(path)]
    found += [root / HAND_OVER] * (exists(root / HAND_OVER) and not is_folder(root / HAND_OVER))
    for folder in (*map(catalog.folder, Tier), catalog.root / DRILLS, catalog.root / RESTORES):
        if is_folder(folder):
            with as_volume_error(f"cannot list {folder}"), os.scandir(folder) as entries:
                found += (Path(entry.path) for entry in entries if _is_strange(entry))
        elif exists(folder) and not folder.is_dir():
            found.append(folder)
    if not found:
        return
    first = min(found)
    try:
        read_small(first, WITNESS_BYTES)
        why = ""  # replaced since
    except (OSError, BackupError) as error:
        why = f": {error.why}" if isinstance(error, BackupError) else ""
    more = f" and {len(found) - 1} more" if found[1:] else ""
    text = f"{first}{more} cannot be read, and {'are' if more else 'is'} as good as missing{why}"
    yield warn(
        Area.VOLUME, text, f"see who made it: ls -l {shell_word(str(first))}; then move it out of the backup folder"
    )


def _is_strange(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return entry.name.endswith(SUFFIX)  # other folders are not ours, and take no file's name
    if not entry.is_file(follow_symlinks=False):
        return True
    with contextlib.suppress(FileNotFoundError):  # removed since
        return entry.name.endswith(MANIFEST.suffix) and entry.stat(follow_symlinks=False).st_size > WITNESS_BYTES
    return False


def _is_plain(path: Path) -> bool:
    try:
        plain_status(path)
    except FileNotFoundError:
        return True  # removed since
    except BackupError:
        return False
    return True


def _mount(root: Path, hints: Hints) -> Observation:
    if os.stat(root).st_dev != os.stat("/").st_dev:
        return ok(Area.VOLUME, f"{root} is on a filesystem of its own")
    return warn(
        Area.VOLUME,
        f"{root} is on the same filesystem as /: is the volume mounted? If this is intended, a full disk stops both",
        steps(f"findmnt -T {shell_word(str(root))}", hints.volume),
    )


def _room(system: BackupSystem, catalog: Catalog) -> Iterator[Observation]:
    with as_volume_error(f"cannot inspect {catalog.root}"):
        disk = os.statvfs(catalog.root)
    free = disk.f_bavail * disk.f_frsize
    make_room = "enlarge the volume, or keep fewer: lower BACKUP_DAILY_KEEP, then ovia-backup prune --dry-run"
    if disk.f_files and disk.f_favail < _MIN_INODES:
        text = f"the filesystem has room for only {disk.f_favail} more files, however small"
        yield fail(Area.VOLUME, text, f"see what has so many: df -i {shell_word(str(catalog.root))}; {make_room}")
    now = datetime.now(UTC)
    looked_at = max(_LOOKED_AT, system.policy.count(Tier.DAILY))
    newest = list(islice((b for b in catalog.newest_first(Tier.DAILY) if _counts(b, now)), looked_at))
    if not newest and free < _LEAST_BYTES:
        yield fail(Area.VOLUME, f"no room for a first dump: {human_bytes(free)} free", "enlarge the volume")
        return
    if not newest:
        yield ok(Area.VOLUME, f"{human_bytes(free)} free; no dump yet to compare with")
        return
    size, growth = newest[0].size_bytes, _growth_per_day(newest)
    need = f"{human_bytes(free)} free, the last dump took {human_bytes(size)}, growing {human_bytes(growth)} a day"
    if free < size + growth:
        yield fail(Area.VOLUME, f"no room for the next dump: {need}", make_room)
        return
    stand = {Tier.DAILY: len(newest)}
    for tier in system.policy.promoted_to:
        stand[tier] = sum(1 for _ in islice(catalog.newest_first(tier), system.policy.count(tier)))
    days = _days_until_full(free, size, growth, stand, system.policy, system.policy.day(now))
    if days is not None:
        when = f"in about {days} days" if days > 1 else "tomorrow"
        yield warn(Area.VOLUME, f"the volume will be full {when}: {need}", make_room)
    else:
        yield ok(Area.VOLUME, need)


def _counts(backup: Backup, now: datetime) -> bool:
    return backup.state(now).may_be_good


def _growth_per_day(newest: Sequence[Backup]) -> float:
    """Bytes by which dumps grow per day; never negative."""
    first, last = newest[-1], newest[0]
    days = (last.started_at - first.started_at) / timedelta(days=1)
    # Dumps of one afternoon do not show how a month grows.
    return max((last.size_bytes - first.size_bytes) / days, 0.0) if days >= 1 else 0.0


def _days_until_full(
    free: int, size: int, growth: float, stand: Mapping[Tier, int], policy: Policy, today: date
) -> int | None:
    """The first of the next ``SOON`` days that ends without room for another dump, at one dump a day.

    Each tier first fills up to the number that the policy keeps. From then on, each new dump replaces the oldest, and
    only growth takes space. A promoted dump is a second name of a daily one, and takes no space until that is removed.

    Args:
        stand: how many dumps each tier has now; an excess over the policy does not count.
        today: the date that counts as the newest dump's.
    """
    daily_keep = policy.count(Tier.DAILY)
    # If the daily tier spans a whole period, it contains the period's first dump, which takes no extra space yet.
    among = {tier: int(daily_keep >= tier.period.least_days) for tier in policy.promoted_to}
    dailies = stand.get(Tier.DAILY, 0)
    others = {tier: max(stand.get(tier, 0) - among[tier], 0) for tier in among}
    left = float(free)
    for day in range(1, SOON + 1):
        left -= growth * daily_keep if dailies >= daily_keep else size + growth * day
        dailies += 1
        # The date whose daily dump is removed on this day: if a period begins then, the dump stays under another name.
        gone = today + timedelta(days=day - daily_keep)
        begun = [tier for tier in others if tier.period.first_day(gone, policy.weekly_day) == gone]
        if dailies > daily_keep and begun:
            costs = []
            for tier in begun:
                full = others[tier] >= policy.count(tier) - among[tier]
                costs.append(tier.period.least_days * growth * policy.count(tier) if full else size)
                others[tier] += 1
            # A dump takes its space once, however many names it has.
            left -= max(costs)
        if left < size + growth * (day + 1):
            return day
    return None


def _lock(root: Path) -> Observation:
    holder = lock_holder(root)
    if holder is None:
        return ok(Area.VOLUME, "no process holds the lock")
    return ok(Area.VOLUME, f"at work now: {holder}")


def _leftovers(catalog: Catalog) -> Observation:
    """Files that a crash left. Files of a running process, or of another doctor's probe, do not count."""
    locked = lock_holder(catalog.root) is not None
    found = [(path, _status(path)) for path in unfinished_files(catalog)]
    sizes = {path: status.st_size for path, status in found if status and not _is_being_probed(path, status)}
    if not sizes:
        return ok(Area.VOLUME, "nothing was left behind by a crash")
    left, size = list(sizes), sum(sizes.values())
    names = ", ".join(path.name for path in left[:2]) + (f" and {len(left) - 2} more" if left[2:] else "")
    # Query the lock before and after: a process may have begun or ended while the files were listed.
    if locked or lock_holder(catalog.root) is not None:
        return ok(Area.VOLUME, f"unfinished files ({human_bytes(size)}), by the process at work now: {names}")
    text = f"unfinished files ({human_bytes(size)}), left by a crash: {names}"
    return warn(Area.VOLUME, text, "nothing: the next dump removes them; at once: ovia-backup prune")


def _hand_over(root: Path) -> Iterator[Observation]:
    began = handover_began(root)
    if began is None:
        return
    text = f"the hand-over from the old backup script began on {began:%Y-%m-%d}"
    if datetime.now(UTC) - began < _HAND_OVER:
        yield ok(Area.VOLUME, f"{text}; what it removes is kept until the end")
        return
    us = f"{os.geteuid()}:{os.getegid()}"
    fix = f"remove the old service; then, as root: ovia-backup hand-over --finish --to {us}"
    yield warn(Area.VOLUME, f"{text} and has not ended: what was removed by hand or by that script takes room", fix)


def _signatures(system: BackupSystem, now: datetime) -> Observation:
    """Whether the backups are signed, and the log of what was signed is whole and current."""
    log = system.statement_log
    if log is None:
        return ok(Area.VOLUME, "backups are not signed; to sign them: ovia-backup keys init --to FOLDER")
    head = log.chain().head
    # Loaded only with keys, as the log itself.
    from ovia_backup_dagster.signing.adoption import unsigned
    from ovia_backup_dagster.signing.statement_log import ALIVE_AFTER

    if left := unsigned(system.catalog, now):
        text = f"not signed, so they do not count: {len(left)} backups, such as {left[-1]}"
        fix = f"if you know where it comes from: ovia-backup keys adopt {left[-1]}; else move it away: ovia-backup list"
        return warn(Area.VOLUME, text, fix)
    if head.expires_at is not None and head.expires_at < now:
        text = f"the signed log ends with statement {head.sequence}, which expired {head.expires_at:%Y-%m-%d %H:%M} UTC"
        return warn(
            Area.VOLUME, f"{text}: the host that signs has stopped, or the log was cut off", "ovia-backup log verify"
        )
    text = f"the signed log is whole: {head.sequence} statements"
    if head.at is None:
        return ok(Area.VOLUME, text)
    due = head.at + ALIVE_AFTER
    is_due = "the next sign of life is due on" if now < due else "a sign of life has been due since"
    return ok(Area.VOLUME, f"{text}; {is_due} {due:%Y-%m-%d %H:%M} UTC")


def _signing_key(system: BackupSystem) -> Iterator[Observation]:
    """Whether the signing key's file is for its owner alone: who has the key can sign a forged backup."""
    path = system.settings.backup_signing_key_file
    if path is None:
        return
    with as_volume_error(f"cannot inspect {path}"):
        mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        text = f"others on this host can use the signing key {path} (mode {mode:04o}), and sign forged backups"
        yield warn(Area.VOLUME, text, f"chmod 600 {shell_word(str(path))}; if it was read: docs/signing.md")


def _status(path: Path) -> os.stat_result | None:
    with contextlib.suppress(OSError):  # published or removed since it was listed
        return path.lstat()
    return None


def _is_being_probed(path: Path, status: os.stat_result) -> bool:
    """Whether another doctor is trying the filesystem with this file now (``core.filesystem``)."""
    age = datetime.now(UTC) - datetime.fromtimestamp(status.st_mtime, UTC)
    return path.name.startswith(PROBE) and abs(age) < _PROBED


#: The next step if nothing else is wrong.
_FIRST_BACKUP = "ovia-backup dump && ovia-backup verify latest"


def backups(system: BackupSystem) -> Iterator[Observation]:
    """Whether the newest backup is fresh and not bad, and whether backups are verified."""
    try:
        found = judge_freshness(system.catalog.newest_first(), system.max_age, datetime.now(UTC))
    except VolumeMissingError:
        return  # reported under volume
    except VolumeError as error:
        yield from_answer(Area.BACKUPS, about_volume([error]))
        return
    except BackupError as error:
        yield failed(Area.BACKUPS, error)
        return
    fresh, *others = about_backups(found)
    wrong = [answer for answer in others if answer.trouble or answer.why]
    observed = from_answer(Area.BACKUPS, fresh)
    if found.level is FreshnessLevel.MISSING and not found.rejected:
        # The doctor also runs before the first backup, so it is not a failure that none exists yet.
        observed = replace(observed, level=Severity.WARN, fix=_FIRST_BACKUP)
    if fresh.what not in (answer.what for answer in wrong):
        yield observed
    yield from (from_answer(Area.BACKUPS, answer) for answer in wrong)

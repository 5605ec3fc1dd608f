"""The backup volume as a list of backups: its folders, its lock, its backups, and the lookup of a backup by name.

The volume is the source of truth: listing, verifying and restoring need only the tiers' folders and their sidecars, no
other database. ``backup`` describes one backup, ``publication`` publishes and removes its files, and ``retention``
decides which backups are removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, Backup, State
from ovia_backup_dagster.core.errors import (
    BackupNotFoundError,
    NotVerifiedError,
    StrangeFileError,
    VolumeError,
    VolumeMissingError,
)
from ovia_backup_dagster.core.files import (
    TEMPORARY,
    as_volume_error,
    exists,
    is_file,
    plain_status,
    write_whole,
)
from ovia_backup_dagster.core.ledger import UNSIGNED, Ledger
from ovia_backup_dagster.core.locking import FILENAME as LOCK
from ovia_backup_dagster.core.locking import reading, volume_lock
from ovia_backup_dagster.core.naming import INSTANT, SUFFIX, BackupName
from ovia_backup_dagster.core.reserve import with_reserve
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import (
    Hold,
)
from ovia_backup_dagster.core.write_permission import make_writable, require_writable

#: The maximum number of backups that an error lists.
_NAMED = 5


class Catalog:
    """The backups of one database on one volume.

    Args:
        root: the backup folder, ``$BACKUP_DIR``.
        database: backups of other databases on the same volume are neither listed nor touched.
        lock_wait_seconds: how long an operation waits for the lock.
        ledger: records what becomes of backups, and vouches for their files.
    """

    def __init__(self, root: Path, database: str, lock_wait_seconds: float = 0.0, *, ledger: Ledger = UNSIGNED) -> None:
        self.root = root.absolute()
        self.database = database
        self.lock_wait_seconds = lock_wait_seconds
        self.ledger = ledger

    def lock(
        self, purpose: str, now: datetime, on_wait: Callable[[str], None] | None = None
    ) -> AbstractContextManager[int]:
        """Hold ``locking.volume_lock`` on this volume, which every change of the volume requires."""
        return volume_lock(self.root, purpose=purpose, now=now, wait_seconds=self.lock_wait_seconds, on_wait=on_wait)

    @contextlib.contextmanager
    def reading(self, backup: Backup) -> Iterator[None]:
        """Hold the backup's lock, so that pruning cannot remove it while the block runs.

        Raises:
            BackupNotFoundError: the backup is gone.
            VolumeError: the backup cannot be opened.
            NotVouchedError: no signed statement vouches for it.
        """
        backup.require_vouched()
        with contextlib.ExitStack() as held:
            try:
                with as_volume_error(f"cannot open {backup.path}", passing=FileNotFoundError):
                    held.enter_context(reading(backup.path))
            except FileNotFoundError:
                raise _gone(backup) from None
            yield

    def folder(self, tier: Tier) -> Path:
        """The folder of a tier."""
        return self.root / tier.value

    def prepare(self, *tiers: Tier) -> None:
        """Create missing folders (mode 0700); an optional tier's folder is created when it is first needed.

        Args:
            tiers: the tiers whose folders must be writable (default: all). A dump needs only its own tier's.

        Raises:
            VolumeError: a folder cannot be created or written.
        """
        with as_volume_error(f"cannot use the backup folder {self.root}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = {tier: self.folder(tier) for tier in Tier if tier in tiers or not tier.optional}
        if not all(map(exists, (self.root / LOCK, *folders.values()))):
            require_writable(self.root)
        for tier, folder in folders.items():
            with contextlib.suppress(*([VolumeError] if tiers and tier not in tiers else [])):
                make_writable(folder)

    def backups(self, *tiers: Tier) -> list[Backup]:
        """All backups of the given tiers (default: all), newest first. Reads no sidecar.

        Raises:
            VolumeError: a folder cannot be read. A tier's missing folder counts as empty.
        """
        return list(self.newest_first(*tiers))

    def newest_first(self, *tiers: Tier) -> Iterator[Backup]:
        """Like :meth:`backups`, but lazy: most callers need only the newest."""
        self.ledger.require_sound()
        names = [found for tier in tiers or Tier for found in self._names(tier)]
        names.sort(reverse=True)
        for _, _, tier, filename in names:
            name = BackupName.parse(filename)
            if name is None or name.tier != tier or name.database != self.database:
                continue
            path = self.folder(tier) / filename
            try:
                status = plain_status(path)
            except (FileNotFoundError, StrangeFileError):
                continue  # a link or a folder is not a dump; the doctor reports it
            yield self._backup(path, name, status)

    def newest(self, now: datetime, *states: State) -> Backup | None:
        """The newest backup that is in one of the states at ``now`` (UTC), or ``None``."""
        return next((backup for backup in self.newest_first() if backup.state(now) in states), None)

    def verified_before(self, backup: Backup, now: datetime) -> Backup | None:
        """The newest backup before this one that is verified at ``now`` (UTC), for the comparison of row counts."""
        return next(self._verified_before(backup, now), None)

    def identified_before(self, backup: Backup, now: datetime) -> Backup | None:
        """The same among backups whose cluster is known, for the comparison of clusters."""
        return next((other for other in self._verified_before(backup, now) if other.system_identifier), None)

    def _verified_before(self, backup: Backup, now: datetime) -> Iterator[Backup]:
        for other in self.newest_first():
            if other.started_at < backup.started_at and other.state(now).is_verified:
                yield other

    def settled(self, backup: Backup, now: datetime, command: str) -> Backup:
        """Return the backup in its current state; refuse it while it may still be being written.

        A file outside the volume is never refused: the operator who named it knows whether it is complete.

        Args:
            backup: the backup.
            now: the present (UTC).
            command: the command that the error says to repeat later.

        Raises:
            BackupNotFoundError: the backup is gone.
            NotVerifiedError: the backup may still be being written.
            NotVouchedError: no signed statement vouches for it, so no client program may open it.
        """
        backup = self.refresh(backup)
        if self.holds(backup) and backup.state(now) is State.BEING_WRITTEN:
            raise NotVerifiedError(
                f"{backup} may still be being written",
                why="it has no manifest and changed less than 15 minutes ago",
                fix=f"wait, then: {command} {self.word(backup)}",
            )
        backup.require_vouched()
        return backup

    def _names(self, tier: Tier) -> Iterator[tuple[str, int, Tier, str]]:
        """Files of the tier that may be backups, with their sort key: instant, then tier."""
        folder = self.folder(tier)
        with as_volume_error(f"cannot list {folder}"):
            if not self.root.is_dir():
                raise VolumeMissingError(
                    f"the backup folder {self.root} does not exist",
                    why="BACKUP_DIR is wrong, or the volume is not mounted",
                    fix=f"ls -ld {shell_word(str(self.root))}; then set BACKUP_DIR, or make a first backup: "
                    "ovia-backup dump",
                )
            try:
                filenames = os.listdir(folder)
            except FileNotFoundError:
                return
        for filename in filenames:
            if filename.endswith(SUFFIX):
                yield filename[INSTANT], -tier.rank, tier, filename

    def find(self, wanted: str, now: datetime, *, anywhere: bool = True) -> Backup:
        """Find the backup that ``wanted`` names.

        Args:
            wanted: a file name; a path, also to a dump outside the volume; or ``latest``, the newest in any
                tier that is not still being written.
            now: the instant (UTC) that decides what is still being written.
            anywhere: whether a path outside the volume is allowed.

        Raises:
            BackupNotFoundError: there is no such backup; the message lists existing ones.
        """
        path = Path(wanted)
        # The separator decides, not the number of parts: `./name.dump` has only one part.
        if os.sep in wanted and is_file(path):
            given = self._at(path)
            if anywhere or self.holds(given):
                return given
        with contextlib.suppress(OSError, ValueError):  # not a possible file name
            if os.sep in wanted and path.name and path.is_dir():
                raise BackupNotFoundError(
                    f"{path} is a folder, not a backup",
                    why="a backup is a file: pg_dump's custom format, and not its directory format",
                    fix="name the file that is in it; or see what there is: ovia-backup list",
                )
        backups = self.backups()
        if wanted == "latest":
            backups = [b for b in backups if b.state(now) is not State.BEING_WRITTEN]
            backups = [b for b in backups if b.is_vouched] or backups
            # A backup dated in the future is the newest only if there is no other.
            backups.sort(key=lambda b: b.started_at > now + CLOCK_TOLERANCE)
        for backup in backups:
            filename = backup.path.name
            if wanted in ("latest", filename, filename.removesuffix(SUFFIX), f"{backup.tier}/{filename}"):
                return backup
        raise BackupNotFoundError(
            f"no backup called {wanted!r} of database {self.database} in {self.root}",
            why=_what_there_is(backups, wanted),
            fix="ovia-backup list" if backups else "ovia-backup dump",
        )

    def holds(self, backup: Backup) -> bool:
        """Whether the backup is on this volume (``find`` also accepts a path outside it)."""
        return backup.path.parent == self.folder(backup.tier)

    def word(self, backup: Backup) -> str:
        """The argument that names it on the command line, quoted: its name, or outside the volume its path."""
        return shell_word(backup.path.name if self.holds(backup) else str(backup.path))

    def refresh(self, backup: Backup) -> Backup:
        """The same backup in its current state on the volume.

        Raises:
            BackupNotFoundError: the backup is gone.
        """
        try:
            status = plain_status(backup.path)
        except FileNotFoundError:
            raise _gone(backup) from None
        return self._backup(backup.path, backup.name, status)

    def _backup(self, path: Path, name: BackupName, status: os.stat_result) -> Backup:
        on_volume = path.parent == self.folder(name.tier)
        return Backup(path, name, status.st_size, status.st_mtime_ns, ledger=self.ledger, on_volume=on_volume)

    def _at(self, path: Path) -> Backup:
        """A dump given by path, with the sidecars beside it; it may have any name."""
        self.ledger.require_sound()
        with as_volume_error(f"cannot read {path}"):
            # A link given by a person is followed once; opening a backup follows none.
            found = path.resolve() if path.is_symlink() else path.absolute()
            status = plain_status(found)
        modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
        name = BackupName.parse(path.name) or BackupName(self.database, Tier.DAILY, modified)
        return self._backup(found, name, status)

    def free_name(self, started_at: datetime) -> BackupName:
        """An unused daily name, at ``started_at`` or some seconds later."""
        while True:
            name = BackupName(self.database, Tier.DAILY, started_at)
            if not exists(self.folder(Tier.DAILY) / name.filename):
                return name
            started_at += timedelta(seconds=1)

    def temporary(self, name: BackupName) -> Path:
        """The path of an unpublished dump: hidden, on the same filesystem."""
        return self.folder(name.tier) / f".{name.filename}{TEMPORARY}"

    def held(self, now: datetime) -> list[tuple[Backup, Hold]]:
        """The backups with a hold that is in force at ``now`` (UTC)."""
        holds = []
        for backup in self.newest_first():
            with contextlib.suppress(VolumeError):
                if backup.hold is not None and backup.hold.in_force(now):
                    holds.append((backup, backup.hold))
        return holds

    def write(self, path: Path, content: bytes, folder: Path | None = None) -> None:
        """Like ``files.write_whole``; if the disk is full, it uses the reserve."""
        with_reserve(self.root, lambda: write_whole(path, content, folder))


def _what_there_is(backups: list[Backup], wanted: str) -> str:
    """Backups whose names contain the text, such as a date; otherwise the newest backups."""
    if not backups:
        return "there is no backup at all"
    # The text must contain a digit: a word such as "daily" is in every name.
    near = [backup.path.name for backup in backups if wanted.lower() in backup.path.name.lower()]
    if not near or not any(map(str.isdigit, wanted)):
        return f"the newest is {backups[0]}"
    more = f" and {len(near) - _NAMED} more" if len(near) > _NAMED else ""
    return f"a whole name is needed, such as {', '.join(near[:_NAMED])}{more}"


def _gone(backup: Backup) -> BackupNotFoundError:
    return BackupNotFoundError(
        f"backup {backup} is gone from {backup.path.parent}",
        why="it was removed in the meantime",
        fix="ovia-backup list",
    )

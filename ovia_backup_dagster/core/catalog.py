"""The backup volume as a list of backups, and the few ways to change it.

The volume is the truth: what stands in ``daily/`` and ``weekly/``, with its sidecars, needs no database to be
listed, verified or restored. A dump and its sidecars are one unit: sidecars appear first and vanish last, so
a reader never sees half a backup. Methods that change the volume expect the caller to hold
``Catalog.lock``; which backups to remove is decided in ``retention``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ovia_backup_dagster.core.archive_header import HEAD_BYTES, MAGIC, parse_header
from ovia_backup_dagster.core.coverage import Unit, contradictions, is_about
from ovia_backup_dagster.core.errors import (
    BackupNotFoundError,
    BadBackupError,
    NotProvenError,
    StrangeFileError,
    VolumeError,
    VolumeMissingError,
)
from ovia_backup_dagster.core.files import (
    NO_ROOM,
    SIDECAR_BYTES,
    TEMPORARY,
    WITNESS_BYTES,
    exists,
    explained,
    is_file,
    is_folder,
    link_or_copy,
    plain_status,
    read_small,
    reader,
    removed_on_error,
    rename_to_new,
    sync_folder,
    unlink,
    write_whole,
)
from ovia_backup_dagster.core.filesystem import PREFIX as PROBE
from ovia_backup_dagster.core.locking import FILENAME as LOCK
from ovia_backup_dagster.core.locking import reading, removing, volume_lock
from ovia_backup_dagster.core.manifest import Manifest, Sidecar, is_newer, parse_sidecar
from ovia_backup_dagster.core.naming import INSTANT, SUFFIX, BackupName, Tier
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.takeover_links import forget, protect, protected
from ovia_backup_dagster.core.verdict import (
    Acceptance,
    DrillRecord,
    Drills,
    Hold,
    Judgement,
    PromotionRecord,
    Verification,
    Witness,
    bad_backup,
)
from ovia_backup_dagster.core.write_permission import make_writable, require_writable

MANIFEST = ".json"
GLOBALS = ".globals.sql"
VERIFIED = ".verified.json"
DRILLED = ".drilled.json"
HELD = ".held.json"
UNREADABLE = ".verified.json.unreadable"
ACCEPTED = ".accepted.json"
PROMOTED = ".promoted.json"
#: All files of a backup beside its archive; the manifest is the last to go, as it says what the others belong to.
SIDECARS = (UNREADABLE, PROMOTED, ACCEPTED, HELD, DRILLED, VERIFIED, GLOBALS, MANIFEST)

#: How many bytes of a sidecar are read: those that hold a line for each table, or each role, and the others.
_LIMITS = {VERIFIED: WITNESS_BYTES, GLOBALS: WITNESS_BYTES}

#: Clocks of two machines may differ this much before a date counts as lying in the future.
CLOCK_TOLERANCE = timedelta(minutes=5)
#: A dump without a manifest may still be being written by the old script until it is this old.
SETTLING = timedelta(minutes=15)
#: A file of nothing, given up when a verdict must be written and the disk is full.
RESERVE = ".reserve"
RESERVE_BYTES = 4 * 1024 * 1024
#: How many backups an error names.
_NAMED = 5

S = TypeVar("S", bound=Sidecar)


class State(StrEnum):
    """What is known about a backup. The value is what a person reads."""

    PROVEN = "proven"
    UNPROVEN = "unproven"
    BAD = "bad"
    BEING_WRITTEN = "being written"


@dataclass(frozen=True)
class Backup:
    """A dump on the volume with its sidecars, which are read when they are first asked for.

    Attributes:
        path: the dump.
        name: what its file name says.
        size_bytes, mtime_ns: of the dump, when it was listed.
    """

    path: Path
    name: BackupName
    size_bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        return self.path.name

    @property
    def tier(self) -> Tier:
        return self.name.tier

    @property
    def started_at(self) -> datetime:
        """When the dump began (UTC)."""
        return self.name.started_at

    def sidecar(self, suffix: str) -> Path:
        """The path of a sidecar, whether it exists or not."""
        return self.path.with_name(self.path.name + suffix)

    @property
    def manifest(self) -> Manifest | None:
        """What was known when it was made; ``None`` for the old script's dumps, and where ``manifest_trouble`` says so.

        Raises:
            VolumeError: a newer program wrote it, or there is no file of ours in its place.
        """
        return self._manifest_read[0]

    @property
    def manifest_trouble(self) -> str:
        """Why its manifest says nothing: it is empty, torn, or no manifest at all; empty where it can be read.

        It must not be what a sound archive is lost by, and what can tear it could remove it, too: the backup is then
        one without.

        Raises:
            VolumeError: as ``manifest``.
        """
        return self._manifest_read[1]

    @cached_property
    def _manifest_read(self) -> tuple[Manifest | None, str]:
        text = self._manifest_text
        if text is None:
            return None, ""
        try:
            return parse_sidecar(Manifest, text, self.sidecar(MANIFEST).name), ""
        except VolumeError as error:
            if is_newer(text):
                raise
            why = error.why if text.strip(b"\0 \n") else "it is empty" if not text else "it holds nothing but NUL bytes"
            return None, f"its manifest cannot be read ({why}): the backup is treated as one without"

    @cached_property
    def verification(self) -> Verification | None:
        """Every judgement so far; ``None`` without any, or when the sidecar cannot be read."""
        # A verdict that cannot be read proves nothing, and verifying again repairs it.
        with contextlib.suppress(VolumeError):
            return self._read(Verification, VERIFIED)
        return None

    @cached_property
    def unit(self) -> Unit | None:
        """What a statement about it must fit; ``None`` when its manifest cannot be read: then none does."""
        unit = self._unit_of_manifest
        if unit is not None and unit.archive_sha256 is None and self.judgement is not None:
            return replace(unit, archive_sha256=self.judgement.sha256)
        return unit

    @cached_property
    def hold(self) -> Hold | None:
        """Why retention must keep it, if it must.

        Raises:
            VolumeError: there is a hold that cannot be read.
        """
        hold = self._read(Hold, HELD)
        # Where nothing can be compared it holds: removal is what cannot be undone.
        return hold if hold is None or self.unit is None or is_about(hold, self.unit) else None

    @cached_property
    def acceptance(self) -> Acceptance | None:
        """That it is of another source, and that a person meant that."""
        with contextlib.suppress(VolumeError):
            accepted = self._read(Acceptance, ACCEPTED)
            return accepted if accepted and self.unit and is_about(accepted, self.unit) else None
        return None

    @cached_property
    def promotion(self) -> PromotionRecord | None:
        """Which daily backup it is, if it is a weekly one and that was written down."""
        with contextlib.suppress(VolumeError):
            promoted = self._read(PromotionRecord, PROMOTED)
            return promoted if promoted and self.unit and is_about(promoted, self.unit) else None
        return None

    @cached_property
    def judgement(self) -> Judgement | None:
        """The newest judgement, if it is about the backup as it is now."""
        if self.verification is None or self._unit_of_manifest is None:
            return None
        last = self.verification.judgements[-1]
        return last if is_about(last, self._unit_of_manifest) else None

    @property
    def once_proven(self) -> bool:
        """Whether any judgement on the backup as it is now found it good."""
        judgements = self.verification.judgements if self.verification else ()
        return self.unit is not None and any(each.good and is_about(each, self.unit) for each in judgements)

    @property
    def witness(self) -> Witness | None:
        """What the archive holds, if a judgement on the file as it is now says that it is good."""
        return self.verification.witness if self.verification and self.judgement and self.judgement.good else None

    @property
    def system_identifier(self) -> str | None:
        """Of the cluster that it was made of; ``None`` when that is not known."""
        with contextlib.suppress(VolumeError):
            return self.manifest.database.system_identifier if self.manifest else None
        return None

    @property
    def changed(self) -> bool:
        """Whether there is a verdict, but none on the backup as it is now."""
        return self.verification is not None and self.judgement is None

    @cached_property
    def _head(self) -> bytes | None:
        """The archive's first bytes; ``None`` when this user may not read them."""
        try:
            with reader(self.path) as file:
                return file.read(HEAD_BYTES)
        except StrangeFileError:
            return b""
        except (OSError, VolumeError):
            return None

    @property
    def is_archive(self) -> bool:
        """Whether the file begins as pg_dump's custom format does: the old script left empty ones behind.

        One that this user may not read gets the benefit of the doubt; verifying it says what is wrong.
        """
        return self._head is None or self._head.startswith(MAGIC)

    @property
    def foreign(self) -> tuple[str, str] | None:
        """What else the file is, as far as its first bytes say, and the command that restores it by hand."""
        head, path = self._head or b"", shell_word(str(self.path))
        if head.startswith(MAGIC):
            return None
        if head[257:262] == b"ustar":
            return "a tar archive", f"createdb NEW && pg_restore --dbname=NEW {path}"
        if head.lstrip(b"\xef\xbb\xbf\r\n ").startswith(b"--"):
            return "a plain SQL dump, which psql reads", (
                f"createdb NEW && psql --set=ON_ERROR_STOP=1 --dbname=NEW --file={path}"
            )
        return None

    @cached_property
    def contradictions(self) -> tuple[str, ...]:
        """Why name, manifest and archive are not of one dump, as far as a look at their first bytes tells."""
        manifest = None
        with contextlib.suppress(VolumeError):  # it may be a newer program's
            manifest = self.manifest
        if manifest is None:
            return ()
        broken, header = [], None
        if self._head is not None and self.is_archive:
            try:
                header = parse_header(self._head)
            except ValueError as error:
                broken.append(f"the archive's beginning is damaged: {error}")
        # Elsewhere a person may have given it any name.
        name = BackupName.parse(self.path.name)
        return (*contradictions(manifest, name=name, size_bytes=self.size_bytes, header=header), *broken)

    def altered_files(self, *, complete: bool = True) -> tuple[str, ...]:
        """What is wrong with the files that were made with the archive, besides it: one line for each.

        Args:
            complete: whether all must be there; who copied a dump elsewhere may have left some behind.

        Raises:
            VolumeError: one cannot be read, or the manifest cannot.
        """
        files = self.manifest.files if self.manifest else {}
        there = {suffix: self.read_sidecar(suffix) for suffix in files}
        looked_at = [suffix for suffix in files if complete or there[suffix] is not None]
        wrong = {suffix: files[suffix].difference(there[suffix]) for suffix in looked_at}
        return tuple(f"{self.sidecar(suffix).name} {text}" for suffix, text in wrong.items() if text)

    def saved_roles(self) -> bytes | None:
        """The roles that were saved with it, as SQL; ``None`` when none were, or they are not there.

        Without a manifest there are none: what lies there then came from somewhere else.

        Raises:
            BadBackupError: they are not what was saved.
            VolumeError: they cannot be read.
        """
        if self.manifest is None:
            return None
        saved = self.read_sidecar(GLOBALS)
        facts = self.manifest.files.get(GLOBALS)
        # Older programs wrote down no hash of them.
        wrong = facts.difference(saved) if facts and saved is not None else ""
        if wrong:
            raise bad_backup(str(self), f"{self.sidecar(GLOBALS).name} {wrong}")
        return saved

    @cached_property
    def drills(self) -> Drills | None:
        """Every restore drill so far; ``None`` without any, or when the sidecar cannot be read."""
        with contextlib.suppress(VolumeError):
            return self._read(Drills, DRILLED)
        return None

    @property
    def drilled(self) -> bool:
        """Whether the newest drill is about the backup as it is now, and proved that it restores."""
        if self.drills is None or self.unit is None:
            return False
        last = self.drills.drills[-1]
        return last.passed and is_about(last, self.unit)

    @cached_property
    def problem(self) -> BadBackupError | None:
        """Why it is bad, if it is: the one place that decides so, whatever else is said of it."""
        if self.judgement is not None and not self.judgement.good:
            return self.judgement.problem(str(self))
        if not self.is_archive:
            why = "it is no archive: the dump failed before it began"
            if self.foreign:
                why = f"it is {self.foreign[0]}, and no archive of pg_dump's custom format"
            elif self.size_bytes >= len(MAGIC):
                why = "it is no archive: it was overwritten, or is another program's"
            return bad_backup(str(self), why)
        return bad_backup(str(self), "; ".join(self.contradictions)) if self.contradictions else None

    def state(self, now: datetime) -> State:
        """What is known about it at ``now`` (UTC)."""
        if self.judgement is None:
            untouched = timedelta(seconds=now.timestamp() - self.mtime_ns / 1e9)
            # One that was written by a clock far ahead must not count as unfinished until that day comes.
            if -SETTLING < untouched < SETTLING and not exists(self.sidecar(MANIFEST)):
                return State.BEING_WRITTEN
        if self.problem is not None:
            return State.BAD
        return State.UNPROVEN if self.judgement is None else State.PROVEN

    @cached_property
    def _manifest_text(self) -> bytes | None:
        return self.read_sidecar(MANIFEST)

    @property
    def manifest_sha256(self) -> str | None:
        """Of the manifest's file; ``None`` without one.

        Raises:
            VolumeError: it cannot be read.
        """
        text = self._manifest_text
        return None if text is None else hashlib.sha256(text).hexdigest()

    @cached_property
    def _unit_of_manifest(self) -> Unit | None:
        """As ``unit``, without what a verdict says."""
        with contextlib.suppress(VolumeError):
            archive_sha256 = self.manifest.sha256 if self.manifest else None
            return Unit(self.size_bytes, self.mtime_ns, archive_sha256, self.manifest_sha256)
        return None

    def _read(self, model: type[S], suffix: str) -> S | None:
        text = self.read_sidecar(suffix)
        return None if text is None else parse_sidecar(model, text, self.sidecar(suffix).name)

    def read_sidecar(self, suffix: str) -> bytes | None:
        """A sidecar's content; ``None`` when there is none.

        Raises:
            VolumeError: it cannot be read.
        """
        try:
            return read_small(self.sidecar(suffix), _LIMITS.get(suffix, SIDECAR_BYTES))
        except FileNotFoundError:
            return None


class Catalog:
    """The backups of one database on one volume.

    Args:
        root: the backup folder, ``$BACKUP_DIR``.
        database: other databases' backups on the same volume are neither seen nor touched.
        lock_wait_seconds: how long an operation waits for another one to end.
    """

    def __init__(self, root: Path, database: str, lock_wait_seconds: float = 0.0) -> None:
        self.root = root.absolute()
        self.database = database
        self.lock_wait_seconds = lock_wait_seconds

    def lock(
        self, purpose: str, now: datetime, on_wait: Callable[[str], None] | None = None
    ) -> AbstractContextManager[int]:
        """``locking.volume_lock`` on this volume: every change of it happens inside."""
        return volume_lock(self.root, purpose=purpose, now=now, wait_seconds=self.lock_wait_seconds, on_wait=on_wait)

    @contextlib.contextmanager
    def reading(self, backup: Backup) -> Iterator[None]:
        """Nobody removes the backup while the block runs.

        Raises:
            BackupNotFoundError: it is gone.
            VolumeError: it cannot be opened.
        """
        with contextlib.ExitStack() as held:
            try:
                with explained(f"cannot open {backup.path}", passing=FileNotFoundError):
                    held.enter_context(reading(backup.path))
            except FileNotFoundError:
                raise _gone(backup) from None
            yield

    def folder(self, tier: Tier) -> Path:
        """Where the tier's backups stand."""
        return self.root / tier.value

    def prepare(self, *tiers: Tier) -> None:
        """Make the folders (mode 0700) where they are missing.

        Args:
            tiers: whose folders must be writable (default: all): what cannot be promoted can be dumped.

        Raises:
            VolumeError: they cannot be made or written.
        """
        with explained(f"cannot use the backup folder {self.root}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folders = {tier: self.folder(tier) for tier in Tier}
        if not all(map(exists, (self.root / LOCK, *folders.values()))):
            require_writable(self.root)
        for tier, folder in folders.items():
            with contextlib.suppress(*([VolumeError] if tiers and tier not in tiers else [])):
                make_writable(folder)

    def backups(self, *tiers: Tier) -> list[Backup]:
        """All backups of the given tiers (default: all), newest first. Costs no read of any sidecar.

        Raises:
            VolumeError: a folder cannot be read. A tier's folder that does not exist yet is empty.
        """
        return list(self.newest_first(*tiers))

    def newest_first(self, *tiers: Tier) -> Iterator[Backup]:
        """Like :meth:`backups`, but looks at a file only when its turn comes: most callers need the newest alone."""
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
                continue  # a link could point anywhere, a folder is no dump: the doctor tells of them
            yield Backup(path, name, status.st_size, status.st_mtime_ns)

    def newest(self, now: datetime, *states: State) -> Backup | None:
        """The newest backup that is in one of the states at ``now`` (UTC), or ``None``."""
        return next((backup for backup in self.newest_first() if backup.state(now) in states), None)

    def proven_before(self, backup: Backup, now: datetime) -> Backup | None:
        """The newest backup older than this one that is proven at ``now`` (UTC): what its rows are compared with."""
        return next(self._proven_before(backup, now), None)

    def identified_before(self, backup: Backup, now: datetime) -> Backup | None:
        """The same, of those that name their cluster: what its cluster is compared with."""
        return next((other for other in self._proven_before(backup, now) if other.system_identifier), None)

    def _proven_before(self, backup: Backup, now: datetime) -> Iterator[Backup]:
        for other in self.newest_first():
            if other.started_at < backup.started_at and other.state(now) is State.PROVEN:
                yield other

    def settled(self, backup: Backup, now: datetime, command: str) -> Backup:
        """The backup as it is now, if it is not still being written on the volume; ``command`` is to be tried later.

        One that stands elsewhere was named by a person, who knows whether it is whole; on the worst day nobody waits.

        Raises:
            BackupNotFoundError: it is gone.
            NotProvenError: it may still be being written.
        """
        backup = self.refresh(backup)
        if self.holds(backup) and backup.state(now) is State.BEING_WRITTEN:
            raise NotProvenError(
                f"{backup} may still be being written",
                why="it has no manifest and changed less than 15 minutes ago",
                fix=f"wait, then: {command} {self.word(backup)}",
            )
        return backup

    def _names(self, tier: Tier) -> Iterator[tuple[str, bool, Tier, str]]:
        """What may be a backup's file in the tier, with what to sort it by: its instant, daily before weekly."""
        folder = self.folder(tier)
        with explained(f"cannot list {folder}"):
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
                yield filename[INSTANT], tier == Tier.DAILY, tier, filename

    def find(self, wanted: str, now: datetime, *, anywhere: bool = True) -> Backup:
        """The backup that ``wanted`` names.

        Args:
            wanted: a file name; a path, also to a dump outside the volume; or ``latest``, the newest in either
                tier that is not still being written.
            now: the instant (UTC) that decides what is still being written.
            anywhere: whether a path may lead out of the volume.

        Raises:
            BackupNotFoundError: there is none; says what there is.
        """
        path = Path(wanted)
        # Not by its parts: `./name.dump` has one.
        if os.sep in wanted and is_file(path):
            given = _at(path, self.database)
            if anywhere or self.holds(given):
                return given
        with contextlib.suppress(OSError, ValueError):  # no name that a file could have
            if os.sep in wanted and path.name and path.is_dir():
                raise BackupNotFoundError(
                    f"{path} is a folder, and no backup",
                    why="a backup is a file: pg_dump's custom format, and not its directory format",
                    fix="name the file that is in it; or see what there is: ovia-backup list",
                )
        backups = self.backups()
        if wanted == "latest":
            backups = [b for b in backups if b.state(now) is not State.BEING_WRITTEN]
            # One that is dated in the future is the newest only when there is no other.
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
        """Whether the backup stands on this volume (``find`` also takes a path to one elsewhere)."""
        return backup.path.parent == self.folder(backup.tier)

    def word(self, backup: Backup) -> str:
        """What a command takes for it, for a shell: its name; elsewhere its path, whatever it is called."""
        return shell_word(backup.path.name if self.holds(backup) else str(backup.path))

    def refresh(self, backup: Backup) -> Backup:
        """The same backup as it is on the volume now.

        Raises:
            BackupNotFoundError: it is gone.
        """
        try:
            status = plain_status(backup.path)
        except FileNotFoundError:
            raise _gone(backup) from None
        return Backup(backup.path, backup.name, status.st_size, status.st_mtime_ns)

    def free_name(self, started_at: datetime) -> BackupName:
        """A daily name that nothing on the volume has yet, at ``started_at`` or a second or more later."""
        while True:
            name = BackupName(self.database, Tier.DAILY, started_at)
            if not exists(self.folder(Tier.DAILY) / name.filename):
                return name
            started_at += timedelta(seconds=1)

    def temporary(self, name: BackupName) -> Path:
        """Where a dump is written until it is published: hidden, on the same filesystem."""
        return self.folder(name.tier) / f".{name.filename}{TEMPORARY}"

    def publish(self, temporary: Path, name: BackupName, manifest: Manifest, globals_sql: bytes | None) -> Backup:
        """Give a finished dump its name, sidecars first, so that it appears whole or not at all.

        Raises:
            VolumeError, DiskFullError: the volume refused; nothing is visible then.
        """
        final = self.folder(name.tier) / name.filename
        with explained(f"cannot publish {final}"):
            if exists(final):
                raise VolumeError(f"{final} exists already", why="another program wrote it", fix="ovia-backup dump")
            if globals_sql is not None:
                self.write(final.with_name(final.name + GLOBALS), globals_sql)
            self.write(final.with_name(final.name + MANIFEST), manifest.to_json().encode())
            sync_folder(final.parent)
            rename_to_new(temporary, final)
            sync_folder(final.parent)
            status = final.stat()
            self._protect()
        return Backup(final, name, status.st_size, status.st_mtime_ns)

    def record(self, backup: Backup, judgement: Judgement, witness: Witness | None) -> Backup:
        """Append a judgement to the backup's verified sidecar; returns the backup as it is now.

        The last good reading stays when this one found damage: it says what there was.
        """
        known = backup.verification
        if known is None:
            with explained(f"cannot set aside {backup.sidecar(VERIFIED)}"), contextlib.suppress(FileNotFoundError):
                # One that cannot be read is history all the same.
                os.rename(backup.sidecar(VERIFIED), backup.sidecar(UNREADABLE))
        verification = Verification(
            judgements=(*(known.judgements if known else ()), judgement),
            witness=witness or (known.witness if known else None),
        )
        with explained(f"cannot write the verdict on {backup}"):
            self.write(backup.sidecar(VERIFIED), verification.to_json().encode())
            sync_folder(backup.path.parent)
        return self.refresh(backup)

    def record_drill(self, backup: Backup, record: DrillRecord, folder: Path) -> Backup:
        """Append a drill to the backup's drilled sidecar; returns the backup as it is now.

        Without the volume's lock, which a dump may hold for hours: nobody else drills, and who holds ``reading``
        keeps the backup there. ``folder`` is where no sweep takes the unfinished sidecar for abandoned.
        """
        known = self.refresh(backup).drills
        drills = Drills(drills=(*(known.drills if known else ()), record))
        with explained(f"cannot write the outcome of the drill of {backup}"):
            self.write(backup.sidecar(DRILLED), drills.to_json().encode(), folder)
            sync_folder(backup.path.parent)
        return self.refresh(backup)

    def held(self, now: datetime) -> list[tuple[Backup, Hold]]:
        """The backups with a hold that is in force at ``now`` (UTC)."""
        holds = []
        for backup in self.newest_first():
            with contextlib.suppress(VolumeError):
                if backup.hold is not None and backup.hold.in_force(now):
                    holds.append((backup, backup.hold))
        return holds

    def set_hold(self, backup: Backup, hold: Hold) -> None:
        """Keep (or, with ``released_at``, no longer keep) a backup whatever the counts say."""
        covered = backup.unit.covered if backup.unit else None
        with explained(f"cannot write the hold on {backup}"):
            self.write(backup.sidecar(HELD), hold.model_copy(update={"covered": covered}).to_json().encode())
            sync_folder(backup.path.parent)

    def accept(self, backup: Backup, acceptance: Acceptance) -> Backup:
        """Write down that a backup is of another source, and that this is meant; returns the backup as it is now."""
        with explained(f"cannot write the acceptance of {backup}"):
            self.write(backup.sidecar(ACCEPTED), acceptance.to_json().encode())
            sync_folder(backup.path.parent)
        return self.refresh(backup)

    def promote(self, backup: Backup, now: datetime) -> Backup:
        """Let a daily backup also stand in ``weekly/``: a hard link, else a copy that is checked.

        Raises:
            VolumeError, DiskFullError: the volume refused; nothing is visible then.
        """
        covered = backup.unit.covered if backup.unit else None
        record = PromotionRecord(at=now, promoted_from=backup.path.name, covered=covered)
        name = BackupName(backup.name.database, Tier.WEEKLY, backup.started_at)
        final = self.folder(Tier.WEEKLY) / name.filename
        temporary = self.temporary(name)
        with explained(f"cannot promote {backup} to {final.parent}"), removed_on_error(temporary):
            link_or_copy(backup.path, temporary)
            if exists(final):
                # A weekly copy that went bad: gone before the good one's verdict appears under its name.
                self.remove(Backup(final, name, 0, 0))
            for suffix, content in {**self._sidecars(backup), PROMOTED: record.to_json().encode()}.items():
                # Copies: the two tiers' verdicts go their own ways from here.
                if content is not None:
                    self.write(final.with_name(final.name + suffix), content)
            os.rename(temporary, final)
            sync_folder(final.parent)
            status = final.stat()
            self._protect()
        return Backup(final, name, status.st_size, status.st_mtime_ns)

    def remove(self, backup: Backup) -> bool:
        """Remove a backup, dump first; ``False`` when it was gone already.

        Raises:
            VolumeError: it cannot be removed.
            LockHeldError: it is being restored.
        """
        with explained(f"cannot remove {backup.path}"), removing(backup.path):
            forget(self.root, backup.tier, backup.path.name)
            existed = unlink(backup.path)
            # The dump must be gone for good before its sidecars are: else a crash could bring it back bare.
            sync_folder(backup.path.parent)
            for suffix in SIDECARS:
                unlink(backup.sidecar(suffix))
            sync_folder(backup.path.parent)
        return existed

    @staticmethod
    def _sidecars(backup: Backup) -> dict[str, bytes | None]:
        """What stands beside a backup, by suffix; of what is no file, only what the backup is not whole without."""
        found: dict[str, bytes | None] = {}
        for suffix in SIDECARS:
            try:
                found[suffix] = backup.read_sidecar(suffix)
            except StrangeFileError:
                if suffix in (MANIFEST, GLOBALS, VERIFIED):
                    raise
        return found

    def _protect(self) -> None:
        """While the old script shares the volume: from its counting."""
        # The backup is made; what cannot be protected is no worse off than without a hand-over.
        with contextlib.suppress(OSError):
            protect(self.root)

    def sweep(self) -> list[Path]:
        """Remove what a crash left: our temporaries and sidecars without a dump. Returns what was removed.

        Only under the exclusive lock: nobody else is writing then, so whatever is unfinished is abandoned.
        """
        swept: list[Path] = []
        for path in self.unfinished():
            # What will not go stops nothing.
            with contextlib.suppress(OSError):
                if unlink(path):
                    swept.append(path)
        return swept

    def unfinished(self) -> list[Path]:
        """Our temporaries, and sidecars without a dump: being written now, or left by a crash."""
        with explained(f"cannot look into {self.root}"):
            found = sorted(self.root.glob(f"{PROBE}*{TEMPORARY}"))
        for tier in Tier:
            folder = self.folder(tier)
            with explained(f"cannot look into {folder}"):
                if folder.is_dir():
                    # The sidecars of a dump that the old script removed wait for it.
                    names = set(os.listdir(folder)) | protected(self.root, tier)
                    found += (folder / name for name in sorted(names) if self._is_abandoned(name, names, tier))
        # We make no folders: one of such a name is somebody's.
        return [path for path in found if not is_folder(path)]

    def _is_abandoned(self, filename: str, names: set[str], tier: Tier) -> bool:
        if filename.startswith(".") and filename.endswith(TEMPORARY):
            inner = filename[1 : -len(TEMPORARY)]
            return self._is_ours(inner.partition(SUFFIX)[0] + SUFFIX, tier)
        for suffix in SIDECARS:
            dump = filename.removesuffix(suffix)
            if dump != filename and dump.endswith(SUFFIX):
                return dump not in names and self._is_ours(dump, tier)
        return False

    def _is_ours(self, dump: str, tier: Tier) -> bool:
        name = BackupName.parse(dump)
        return name is not None and name.tier == tier and name.database == self.database

    def write(self, path: Path, content: bytes, folder: Path | None = None) -> None:
        """As ``files.write_whole``; where there is no room, with what was set aside for it."""
        with_reserve(self.root, lambda: write_whole(path, content, folder))

    def keep_reserve(self) -> None:
        """Set a little room aside, where there is plenty, for the sidecars of a day when there is none.

        Without it a full disk could never get well by itself: no verdict could be written, so nothing could be
        pruned.
        """
        path = self.root / RESERVE
        with contextlib.suppress(OSError):
            if exists(path) or shutil.disk_usage(self.root).free < 16 * RESERVE_BYTES:
                return
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)


def with_reserve(root: Path, write: Callable[[], None]) -> None:
    """Write to the volume; where there is no room, again with what was set aside for it."""
    try:
        write()
    except OSError as error:
        if error.errno not in NO_ROOM or not unlink(root / RESERVE):
            raise
        write()


def _what_there_is(backups: list[Backup], wanted: str) -> str:
    """The backups whose names hold what was asked for, such as a date; else the newest."""
    if not backups:
        return "there is no backup at all"
    # One digit at least: a word alone, such as "daily", is in every name.
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


def _at(path: Path, database: str) -> Backup:
    """A dump given by path, with whatever sidecars lie beside it; its name may be anybody's."""
    with explained(f"cannot read {path}"):
        # A person's link is followed, once; who opens a backup follows none.
        found = path.resolve() if path.is_symlink() else path.absolute()
        status = plain_status(found)
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    name = BackupName.parse(path.name) or BackupName(database, Tier.DAILY, modified)
    path = found
    return Backup(path, name, status.st_size, status.st_mtime_ns)

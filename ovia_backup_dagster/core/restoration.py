"""What is asked of a restore, what was done of it so far, and what came of it: ``restores/`` on the backup volume.

A restore writes each step into its journal before it takes it. Whatever ends it, the journal tells the next process
what there is to finish or to put back, and the record for people is made from the journal alone. How a step is taken
is the business of the package ``restoration``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from ovia_backup_dagster.core.catalog import Backup, Catalog, with_reserve
from ovia_backup_dagster.core.drill import CopiedTable, Line
from ovia_backup_dagster.core.errors import (
    BackupError,
    JournalError,
    RestoreUnfinishedError,
    StrangeFileError,
    VolumeError,
)
from ovia_backup_dagster.core.files import (
    NOTE_BYTES,
    WITNESS_BYTES,
    exists,
    explained,
    is_folder,
    open_plain,
    read_small,
    sync_folder,
)
from ovia_backup_dagster.core.folders import make_writable
from ovia_backup_dagster.core.locking import lock_holder, volume_lock
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.naming import SUFFIX, encode_database

FOLDER = "restores"
_JOURNAL = ".journal"
_RECORD = ".json"
_PAGE = ".md"
_NAME_LENGTH = 160
#: That a kept database will be dropped, and that people were told so.
_ANNOUNCED = ".announced-"
_NOTICE = timedelta(days=2)
_LEAST_NOTICE = timedelta(days=1)


class Mode(StrEnum):
    """How a backup gets to its place."""

    SWAP = "swap"
    DROP = "drop"
    NEW = "new"
    UNDO = "undo"


class StopServices(StrEnum):
    """When the services that write to the database are stopped."""

    AT_SWAP = "at-swap"
    FIRST = "first"


class Step(StrEnum):
    """What is done, one after the other; the words of the journal."""

    DRILL = "drill"
    STOP = "stop services"
    DROP = "drop database"
    RESTORE = "restore"
    SWAP = "swap"
    NAME = "name"
    MIGRATE = "migrate"
    START = "start services"
    HEALTH = "health"


_STEPS = {
    Mode.SWAP: (Step.RESTORE, Step.STOP, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.DROP: (Step.DRILL, Step.STOP, Step.DROP, Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    Mode.NEW: (Step.RESTORE, Step.NAME, Step.MIGRATE, Step.START, Step.HEALTH),
    # What runs again is what ran before: its schema needs no migration.
    Mode.UNDO: (Step.STOP, Step.SWAP, Step.START, Step.HEALTH),
}


class Order(Sidecar):
    """One restore, decided to the last name before anything is touched.

    Attributes:
        started_at: UTC.
        database: the live database.
        backup, backup_path, backup_started_at: the file's name, where it stands, and when the dump began; none of an
            undo.
        host, port: of the server.
        system_identifier: the server's; ``None`` where it may not be asked.
        incoming: what the database is called that is to be live, until it is; with ``new``, the one that is made.
        takes_name: it is given the live database's name in the end, as there is none any more, or not yet.
        incoming_oid, live_oid: what tells, after a kill, which of both is live; ``None`` for one not made yet.
        kept: what the live database is called afterwards.
        jobs: how many entries pg_restore restores at a time.
        stop_services: when.
        services: those that write, with how many replicas they are to have afterwards; ``None``: as before.
        migrate: the one-shot service that migrates; empty for none.
        health_url: what is to answer in the end, without what is secret in it; empty for nothing.
        auto_undo: whether to swap back when it does not.
        subscriptions: of an undo, those that were disabled in the database that is to be live again.
        new_host: the server is not the one that was backed up; roles, owner and settings come from the backup.
        create_roles: make the roles that the server lacks, from those saved with the backup.
        privileged_roles: of those, the ones that get all that they had, power over others included.
        even_if_damaged: restore what can be, prove nothing.
        launched_by, run_id: who asked for it; Dagster's run.
    """

    version: Literal[1] = 1
    mode: Mode
    started_at: AwareDatetime
    database: str
    backup: str = ""
    backup_path: str = ""
    backup_started_at: AwareDatetime | None = None
    host: str
    port: int
    system_identifier: str | None = None
    incoming: str
    takes_name: bool = False
    incoming_oid: int | None = None
    live_oid: int | None = None
    kept: str = ""
    jobs: int = 1
    stop_services: StopServices = StopServices.AT_SWAP
    services: dict[str, int | None] = Field(default_factory=dict)
    migrate: str = ""
    health_url: str = ""
    auto_undo: bool = False
    subscriptions: tuple[str, ...] = ()
    new_host: bool = False
    create_roles: bool = False
    privileged_roles: tuple[str, ...] = ()
    even_if_damaged: bool = False
    launched_by: str
    run_id: str | None = None
    made_by: str

    @property
    def steps(self) -> tuple[Step, ...]:
        """What there is to do, in order."""
        steps = list(_STEPS[self.mode])
        if self.stop_services is StopServices.FIRST and Step.STOP in steps:
            steps.remove(Step.STOP)
            steps.insert(0, Step.STOP)
        unneeded = {
            Step.NAME: not self.takes_name,
            Step.STOP: not self.services,
            Step.START: not self.services,
            Step.MIGRATE: not self.migrate,
            Step.HEALTH: not self.health_url,
        }
        return tuple(step for step in steps if not unneeded.get(step, False))

    @property
    def becomes(self) -> str:
        """What the restored database is called in the end."""
        return self.incoming if self.mode is Mode.NEW and not self.takes_name else self.database

    @property
    def filename(self) -> str:
        """Its name in ``restores/``, without an ending."""
        return _filename(self.started_at, self.backup or f"{self.database}_{self.mode}")

    @property
    def place(self) -> str:
        """The server, for people."""
        return f"{self.host}:{self.port}"


def _filename(at: datetime, name: str) -> str:
    # A backup from elsewhere may have any name, of any length.
    encoded = encode_database(name.removesuffix(SUFFIX))[:_NAME_LENGTH]
    return f"{_stamp(at)}_{encoded}"


def _stamp(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d_%H%M%S}"


class Mark(StrEnum):
    """What the journal says of a step, or of all of it."""

    BEGUN = "begun"
    #: Found out in the middle of a step.
    NOTED = "noted"
    DONE = "done"
    FAILED = "failed"
    #: From here on there is only the way back.
    PUTTING_BACK = "putting back"
    #: The whole restore, and nothing is left to do: it succeeded, or all was put back.
    FINISHED = "finished"
    PUT_BACK = "put back"
    #: It could be neither finished nor put back, and a person gave it up, by name.
    GIVEN_UP = "given up"


_OUTCOMES = {Mark.FINISHED: "done", Mark.PUT_BACK: "put back", Mark.GIVEN_UP: "given up"}


class Entry(Sidecar):
    """A line of the journal.

    Attributes:
        at: UTC.
        mark: what happened.
        step: to which step; ``None`` at the end of it all.
        data: what a later process needs to know.
    """

    at: AwareDatetime
    mark: Mark
    step: Step | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class Fate(StrEnum):
    """What becomes of a database that a restore replaced."""

    STAYS = "stays"
    ANNOUNCE = "announce"
    DROP = "drop"


def fate(replaced_at: datetime, announced_at: datetime | None, keep: timedelta, now: datetime) -> Fate:
    """Decide about a kept database: a pure function. None is dropped unannounced, nor within a day of it.

    Args:
        replaced_at: when the restore replaced it (UTC).
        announced_at: when people were last told that it will be dropped (UTC); ``None`` when they were not.
        keep: how long it is kept; nothing keeps it for ever.
        now: the present (UTC).
    """
    due = replaced_at + keep
    if keep <= timedelta(0) or now < due - _NOTICE:
        return Fate.STAYS
    # What people were told before counts for the day that they were told of: `keep` may have been raised since.
    if announced_at is None or announced_at < due - _NOTICE:
        return Fate.ANNOUNCE
    return Fate.DROP if now >= max(due, announced_at + _LEAST_NOTICE) else Fate.STAYS


class Proven(Sidecar):
    """What the proof of a restored database found; the lines, tables and phases are those of a drill.

    Attributes:
        lines: the checks, in order.
        tables: rows and bytes of each.
        phases: name -> seconds.
        versions: of what took part.
        database_bytes: ``pg_database_size``.
        lost: what a damaged backup did not give.
    """

    lines: tuple[Line, ...] = ()
    tables: tuple[CopiedTable, ...] = ()
    phases: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    database_bytes: int | None = None
    lost: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows in all tables."""
        return sum(table.rows for table in self.tables)


class Journal:
    """What one restore has done. Only its process writes it, under the folder's lock."""

    def __init__(self, path: Path, order: Order, entries: list[Entry]) -> None:
        self.path = path
        self.order = order
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read one; a last line that a kill tore is as if it had not been written.

        Raises:
            VolumeError: it cannot be read.
            JournalError: it cannot be understood.
        """
        with explained(f"cannot read {path}"):
            lines = read_small(path, WITNESS_BYTES).split(b"\n")
        try:
            entries = [parse_sidecar(Entry, line, path.name) for line in lines[1:-1]]
            return cls(path, parse_sidecar(Order, lines[0], path.name), entries)
        except VolumeError as error:
            raise JournalError(
                f"nobody knows whether a restore is unfinished: the journal {path} cannot be understood",
                why=error.why,
                fix="if a newer ovia-backup wrote it, use that one; else it is damaged: see which databases there are "
                f"(psql -l), put right what is not, then: mv {path} {path}.damaged",
            ) from None

    def write(self, mark: Mark, step: Step | None = None, **data: Any) -> None:
        """Add a line; it is on the disk when this returns.

        Raises:
            VolumeError, DiskFullError: it cannot be written, and so the step must not be taken.
        """
        entry = Entry(at=datetime.now(UTC), mark=mark, step=step, data=data)
        with explained(f"cannot write {self.path}"):
            root = self.path.parent.parent
            with_reserve(root, lambda: _append_line(self.path, entry.model_dump_json().encode()))
        self.entries.append(entry)

    def done(self, step: Step) -> bool:
        """Whether the step is behind us."""
        return any(entry.step is step and entry.mark is Mark.DONE for entry in self.entries)

    def attempts(self, step: Step) -> int:
        """How often the step was begun; it may have been taken in part each time."""
        return sum(entry.step is step and entry.mark is Mark.BEGUN for entry in self.entries)

    def begun(self, step: Step) -> bool:
        """Whether the step may have been taken, if only in part."""
        return self.attempts(step) > 0

    def data(self, step: Step) -> Mapping[str, Any]:
        """All that was noted of a step; what was noted first holds: a second attempt sees a changed world."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            if entry.step is step:
                found = {**entry.data, **found}
        return found

    @property
    def ended(self) -> Mark | None:
        """How it ended; ``None`` while there is something to finish or to put back."""
        return next((entry.mark for entry in self.entries if entry.mark in _OUTCOMES), None)

    @property
    def made(self) -> int | None:
        """The database that was made, by its OID, once it was proven; of several attempts, the last one's."""
        noted = (entry.data.get("made") for entry in reversed(self.entries) if entry.step is Step.RESTORE)
        return next((oid for oid in noted if oid is not None), None)

    @property
    def putting_back(self) -> bool:
        """Whether the way back was begun."""
        return any(entry.mark is Mark.PUTTING_BACK for entry in self.entries)

    @property
    def live(self) -> bool:
        """Whether what was restored is what people use: swapped in, or given the name."""
        return self.done(Step.SWAP) or self.done(Step.NAME)

    @property
    def proven(self) -> Proven | None:
        """What the proof found, once there was one."""
        found = self.data(Step.RESTORE).get("proven")
        return Proven.model_validate(found) if found else None

    @property
    def unfinished(self) -> RestoreUnfinishedError:
        """What to tell somebody who wants to begin another one."""
        last = next((entry for entry in reversed(self.entries) if entry.step), None)
        at = f"the step '{last.step}' was {last.mark}" if last else "nothing was done yet"
        resume, abort = "ovia-backup restore --resume", "put everything back: ovia-backup restore --abort"
        if self.putting_back:
            at, fix = "it was being put back", abort
        else:
            # What is live by being made, or was dropped, has nothing before it to go back to.
            gone = self.done(Step.DROP) or (self.order.mode is Mode.NEW and self.live)
            fix = resume if gone else f"{resume}; or {abort}"
        return RestoreUnfinishedError(
            f"the {self.order.mode} of {self.order.backup or self.order.database}, begun "
            f"{self.order.started_at:%Y-%m-%d %H:%M:%S} UTC, is not finished",
            why=f"{at}, and then its process ended",
            fix=fix,
        )


def _append_line(path: Path, line: bytes) -> None:
    """On the disk, when this returns."""
    descriptor = open_plain(path, os.O_RDWR | os.O_APPEND)
    try:
        _cut_torn_line(descriptor)
        _write_all(descriptor, line + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> None:
    """What a kill left of a line must not become the beginning of the next."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0)
    if not text.endswith(b"\n"):
        os.ftruncate(descriptor, text.rfind(b"\n") + 1)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


class Record(Sidecar):
    """What came of one restore; evidence like a drill's, never rewritten.

    Attributes:
        order: what was asked for.
        finished_at: UTC.
        outcome: ``done``; ``put back``, when it failed or was aborted, and all is as before; ``given up``, when it
            could be neither finished nor put back, and a person said so; why is the error.
        proven: what the proof found.
        seconds: step -> seconds.
        interruption_seconds: how long no session was let in, at the swap.
        sessions_cut: how many were ended for it.
        replicas: of each service, as they were before.
        subscriptions: those that were disabled in the database that is kept.
        counters: what the server had counted of writes when the swap was done.
        swapped_at: when the swap was made (UTC); ``None`` where there was none that stands, or its process was killed.
        live_oid: of the database that a swap made live, for good; ``None`` where none did.
        notes: what a person should know.
        error, fix: why it did not come to its end, and what to do.
        kept: the database that was live before, or for a while; empty when there is none.
    """

    version: Literal[1] = 1
    order: Order
    finished_at: AwareDatetime
    outcome: Literal["done", "put back", "given up"]
    proven: Proven | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    interruption_seconds: float | None = None
    sessions_cut: int | None = None
    replicas: dict[str, int] = Field(default_factory=dict)
    subscriptions: tuple[str, ...] = ()
    counters: dict[str, Any] = Field(default_factory=dict)
    swapped_at: AwareDatetime | None = None
    live_oid: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""
    fix: str = ""
    kept: str = ""

    @property
    def what_is_kept(self) -> str:
        """What that database is, in words for people."""
        if self.outcome != "put back":
            return "the database before"
        # The restored one; or, of an undo, the one that was gone back to, which an earlier restore had kept.
        what = "what was live before it" if self.order.mode is Mode.UNDO else "what was restored"
        return f"{what}, and was live for a while,"


def record_of(journal: Journal) -> Record:
    """The record of a restore that has ended, whoever asks, and whenever."""
    order, swapped = journal.order, journal.data(Step.SWAP)
    live = journal.ended is Mark.FINISHED and journal.done(Step.SWAP)
    # What was live for a while, and was swapped back, is kept as well.
    aside = swapped.get("stays", swapped.get("aside", "")) if journal.ended is Mark.PUT_BACK else ""
    notes = [note for entry in journal.entries for note in entry.data.get("notes", ())]
    # What went well in the end is no failure.
    errors = (e.data for e in reversed(journal.entries) if "error" in e.data and not (e.step and journal.done(e.step)))
    failed = next(errors, {})
    # What is live then can be undone like any other; what was put back can not.
    back = "go back: ovia-backup undo-restore" if failed and live else ""
    return Record(
        order=order,
        finished_at=(journal.entries[-1].at if journal.entries else order.started_at).replace(microsecond=0),
        outcome=_OUTCOMES[journal.ended or Mark.PUT_BACK],
        proven=journal.proven,
        seconds=_seconds(journal),
        interruption_seconds=swapped.get("interruption_seconds"),
        sessions_cut=swapped.get("sessions_cut"),
        replicas=dict(journal.data(Step.STOP).get("replicas", {})),
        subscriptions=tuple(swapped.get("aside_subscriptions" if aside else "subscriptions", ())),
        counters=dict(swapped.get("counters", {})),
        swapped_at=_swapped_at(journal) if live else None,
        live_oid=swapped.get("incoming_oid") if live else None,
        notes=tuple(dict.fromkeys(notes)),
        error=str(failed.get("error", "")),
        fix="; or ".join(filter(None, (str(failed.get("fix", "")), back))),
        kept=order.kept if live else aside,
    )


def _swapped_at(journal: Journal) -> datetime | None:
    """A process that found the swap made already does not know when that was."""
    swaps = (entry for entry in journal.entries if entry.step is Step.SWAP and "interruption_seconds" in entry.data)
    return next((entry.at.replace(microsecond=0) for entry in swaps), None)


def _seconds(journal: Journal) -> dict[str, float]:
    """How long each step took, all its attempts together."""
    seconds: dict[str, float] = {}
    since: datetime | None = None
    for entry in journal.entries:
        if entry.step is None or entry.mark in (Mark.NOTED, Mark.PUTTING_BACK):
            continue
        if entry.mark is Mark.BEGUN:
            since = entry.at
        elif since is not None:
            took = (entry.at - since).total_seconds()
            seconds[entry.step.value] = round(seconds.get(entry.step.value, 0.0) + took, 3)
            since = None
    return seconds


@dataclass(frozen=True, slots=True)
class RestoreStanding:
    """How the restores stand.

    Attributes:
        at_work: who restores now, in words; ``None`` when nobody does.
        trouble: of one that is unfinished, and that nobody is at.
    """

    at_work: str | None
    trouble: RestoreUnfinishedError | None


class RestoreFolder:
    """``restores/`` on the backup volume.

    Args:
        catalog: of that volume.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.path = catalog.root / FOLDER

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            VolumeError: it cannot be made.
        """
        make_writable(self.path)

    def lock(self, purpose: str, now: datetime) -> AbstractContextManager[int]:
        """One restore at a time.

        Raises:
            LockHeldError: another one is under way.
        """
        return volume_lock(self.path, purpose=purpose, now=now)

    def free(self, now: datetime) -> datetime:
        """The instant, now or soon, at which no restore began: their names tell which is the newer.

        Raises:
            VolumeError: the folder cannot be read.
        """
        taken = {path.name[: len(_stamp(now))] for ending in (_JOURNAL, _RECORD) for path in self._paths(ending)}
        while _stamp(now) in taken:
            now += timedelta(seconds=1)
        return now

    def begin(self, order: Order) -> Journal:
        """A new journal, on the disk.

        Raises:
            VolumeError, DiskFullError: it cannot be written.
        """
        path = self.path / f"{order.filename}{_JOURNAL}"
        with explained(f"cannot write {path}"):
            self._catalog.write(path, order.model_dump_json().encode() + b"\n")
            sync_folder(self.path)
        return Journal(path, order, [])

    def unfinished(self) -> Journal | None:
        """The restore of this database that was not brought to its end, if there is one.

        Raises:
            VolumeError: the folder or a journal cannot be read: nobody knows then whether one is under way.
        """
        # Whatever their order: a clock may have been set back between two.
        return next((journal for journal in self._unrecorded() if not journal.ended), None)

    def standing(self) -> RestoreStanding:
        """Whether one is under way, or was left unfinished by a process that has ended. Writes nothing.

        Raises:
            VolumeError: as :meth:`unfinished`; not while one is under way.
        """
        at_work = lock_holder(self.path)
        journal = None if at_work else self.unfinished()
        # Somebody may have begun meanwhile.
        at_work = at_work or lock_holder(self.path)
        return RestoreStanding(at_work, journal.unfinished if journal and not at_work else None)

    def unrecorded(self) -> list[Journal]:
        """The restores that have ended, but whose process could not write their record any more.

        Raises:
            VolumeError: as :meth:`unfinished`.
        """
        return [journal for journal in self._unrecorded() if journal.ended]

    def _unrecorded(self) -> Iterator[Journal]:
        """The journals of this database that have no record."""
        for path in self._paths(_JOURNAL):
            if not exists(path.with_suffix(_RECORD)):
                journal = Journal.read(path)
                if journal.order.database == self._catalog.database:
                    yield journal

    def write(self, record: Record, page: str) -> Path:
        """Write a restore down, with its page; returns the record's path.

        Raises:
            VolumeError, DiskFullError: the volume refused, or there is such a record already.
        """
        path = self.path / f"{record.order.filename}{_RECORD}"
        with explained(f"cannot write {path}"):
            if exists(path):
                raise VolumeError(f"{path} exists already", why="a record is never rewritten", fix=f"read {path}")
            self._catalog.write(path, record.to_json().encode())
            self._catalog.write(path.with_suffix(_PAGE), page.encode())
            sync_folder(self.path)
        return path

    def announced(self, kept: str) -> datetime | None:
        """When people were told that a kept database will be dropped (UTC); ``None`` when they were not."""
        with contextlib.suppress(OSError, ValueError, VolumeError):
            found = datetime.fromisoformat(read_small(self._announcement(kept), NOTE_BYTES).decode().strip())
            return found if found.tzinfo else found.replace(tzinfo=UTC)
        return None

    def announce(self, kept: str, now: datetime) -> None:
        """Note that people were told.

        Raises:
            VolumeError: it cannot be written.
        """
        with explained(f"cannot use the folder {self.path}"):
            self._catalog.write(self._announcement(kept), f"{now.isoformat()}\n".encode())

    def _announcement(self, kept: str) -> Path:
        return self.path / f"{_ANNOUNCED}{encode_database(kept)}"

    def newest_first(self) -> Iterator[Record]:
        """The restores of this database that have ended. A record that cannot be understood is left out.

        One that could not be written any more, as the process was killed or the volume full, is made from the journal.

        Raises:
            VolumeError: the folder or a file cannot be read. A folder that is not there is empty.
        """
        found = [*self._records(), *map(record_of, self.unrecorded())]
        yield from sorted(found, key=lambda record: record.order.filename, reverse=True)

    def went_live_on(self) -> str | None:
        """The system identifier of the server that the newest restore made this database live on; ``None`` without one.

        Raises:
            VolumeError: as :meth:`newest_first`.
        """
        for record in self.newest_first():
            order = record.order
            if record.outcome == "done" and order.becomes == order.database and order.system_identifier:
                return order.system_identifier
        return None

    def swap_that_kept(self, name: str) -> Record | None:
        """The restore or undo that left a database behind under that name, if it is known.

        Raises:
            VolumeError: as :meth:`newest_first`.
        """
        return next((record for record in self.newest_first() if record.kept == name), None)

    def _records(self) -> Iterator[Record]:
        for path in self._paths(_RECORD):
            try:
                text = read_small(path, WITNESS_BYTES)
            except (FileNotFoundError, StrangeFileError):
                continue
            with contextlib.suppress(BackupError):
                record = parse_sidecar(Record, text, path.name)
                if record.order.database == self._catalog.database:
                    yield record

    def _paths(self, ending: str) -> list[Path]:
        """The files, newest first."""
        with explained(f"cannot list {self.path}", passing=FileNotFoundError):
            try:
                names = sorted((name for name in os.listdir(self.path) if name.endswith(ending)), reverse=True)
            except FileNotFoundError:
                return []
        return [path for path in (self.path / name for name in names) if not is_folder(path)]


def backup_of(order: Order, catalog: Catalog, now: datetime) -> Backup:
    """The backup that an order names, as it is now.

    Raises:
        BackupNotFoundError: it is gone.
    """
    return catalog.find(order.backup_path, now)

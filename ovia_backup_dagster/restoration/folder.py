"""``restores/`` on the backup volume: the journals and records of all restores, and which restore is unfinished.

The format of a journal belongs to ``journal``, that of a record to ``record``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import RestoreUnfinishedError
from ovia_backup_dagster.core.files import (
    as_volume_error,
    exists,
    sync_folder,
)
from ovia_backup_dagster.core.layout import RESTORES
from ovia_backup_dagster.core.locking import lock_holder, volume_lock
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.core.record_folder import RECORD, RecordFolder
from ovia_backup_dagster.core.write_permission import make_writable
from ovia_backup_dagster.restoration.journal import Journal
from ovia_backup_dagster.restoration.record import Record, record_of
from ovia_backup_dagster.restoration.restore_order import Order, stamp

#: A file with this prefix notes that the drop of a kept database was announced.
_ANNOUNCED = ".announced-"
_JOURNAL = ".journal"


@dataclass(frozen=True, slots=True)
class RestoreStanding:
    """The state of the restores.

    Attributes:
        at_work: the running restore, in words; ``None`` if none runs.
        trouble: the error of an unfinished restore whose process is gone.
    """

    at_work: str | None
    trouble: RestoreUnfinishedError | None


class RestoreFolder(RecordFolder):
    """``restores/`` on the backup volume.

    Args:
        catalog: the catalog of that volume.
    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog, RESTORES)

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            VolumeError: it cannot be created.
        """
        make_writable(self.path)

    def lock(self, purpose: str, now: datetime) -> AbstractContextManager[int]:
        """Hold the lock that allows one restore at a time.

        Raises:
            LockHeldError: another restore is under way.
        """
        return volume_lock(self.path, purpose=purpose, now=now)

    def free(self, now: datetime) -> datetime:
        """The next free instant, in whole seconds. It names a restore, and the names sort by time.

        Raises:
            VolumeError: the folder cannot be read.
        """
        taken = {path.name[: len(stamp(now))] for ending in (_JOURNAL, RECORD) for path in self._ending(ending)}
        while stamp(now) in taken:
            now += timedelta(seconds=1)
        return now

    def begin(self, order: Order) -> Journal:
        """Create a journal; it is on disk when this returns.

        Raises:
            VolumeError, DiskFullError: it cannot be written.
        """
        path = self.path / f"{order.filename}{_JOURNAL}"
        with as_volume_error(f"cannot write {path}"):
            self._catalog.write(path, order.model_dump_json().encode() + b"\n")
            sync_folder(self.path)
        return Journal(path, order, [])

    def unfinished(self) -> Journal | None:
        """The unfinished restore of this database, if there is one.

        Raises:
            VolumeError: the folder or a journal cannot be read, so whether a restore is unfinished is unknown.
        """
        # In any order: the clock may have been set back between two restores.
        return next((journal for journal in self._unrecorded() if not journal.ended), None)

    def standing(self) -> RestoreStanding:
        """Whether a restore is running, or was left unfinished by a process that has ended. Writes nothing.

        Raises:
            VolumeError: as :meth:`unfinished`; not while a restore is running.
        """
        at_work = lock_holder(self.path)
        journal = None if at_work else self.unfinished()
        # A restore may have begun since the first query.
        at_work = at_work or lock_holder(self.path)
        return RestoreStanding(at_work, journal.unfinished if journal and not at_work else None)

    def unrecorded(self) -> list[Journal]:
        """Ended restores whose process could not write the record.

        Raises:
            VolumeError: as :meth:`unfinished`.
        """
        return [journal for journal in self._unrecorded() if journal.ended]

    def _unrecorded(self) -> Iterator[Journal]:
        """The journals of this database that have no record."""
        for path in self._ending(_JOURNAL):
            if not exists(path.with_suffix(RECORD)):
                journal = Journal.read(path)
                if journal.order.database == self._catalog.database:
                    yield journal

    def write(self, record: Record, page: str) -> Path:
        """Write the record of a restore and its page; returns the record's path.

        Raises:
            VolumeError, DiskFullError: the volume refused, or the record exists already.
        """
        return self._write_once(record.order.filename, record, page)

    def announced(self, kept: str) -> datetime | None:
        """When the drop of a kept database was announced (UTC); ``None`` if it was not."""
        return self._noted_instant(self._announcement(kept))

    def announce(self, kept: str, now: datetime) -> None:
        """Note that the drop was announced.

        Raises:
            VolumeError: it cannot be written.
        """
        self._note_instant(self._announcement(kept), now)

    def _announcement(self, kept: str) -> Path:
        return self.path / f"{_ANNOUNCED}{encode_database(kept)}"

    def newest_first(self) -> Iterator[Record]:
        """The ended restores of this database. A record that cannot be parsed is left out.

        If a record is missing, because the process was killed or the volume was full, it is derived from the journal.

        Raises:
            VolumeError: the folder or a file cannot be read. A missing folder counts as empty.
        """
        of_database = [
            each for each in self._read(Record, self._ending(RECORD)) if each.order.database == self._catalog.database
        ]
        found = [*of_database, *map(record_of, self.unrecorded())]
        yield from sorted(found, key=lambda record: record.order.filename, reverse=True)

    def went_live_on(self) -> str | None:
        """The system identifier of the server where the newest restore made this database live; ``None`` without one.

        Raises:
            VolumeError: as :meth:`newest_first`.
        """
        for record in self.newest_first():
            order = record.order
            if record.outcome == "done" and order.becomes == order.database and order.system_identifier:
                return order.system_identifier
        return None

    def swap_that_kept(self, name: str) -> Record | None:
        """The restore or undo that kept a database under this name, if known.

        Raises:
            VolumeError: as :meth:`newest_first`.
        """
        return next((record for record in self.newest_first() if record.kept == name), None)

    def _ending(self, ending: str) -> list[Path]:
        """The files with this ending, newest first."""
        return self._paths(lambda name: name.endswith(ending))


def backup_of(order: Order, catalog: Catalog, now: datetime) -> Backup:
    """The backup that an order names, in its current state.

    Raises:
        BackupNotFoundError: the backup is gone.
    """
    return catalog.find(order.backup_path, now)

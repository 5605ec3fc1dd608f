"""Reads from the WAL what happened when, so that people find the instant to recover to.

One pass over the records of the resource managers below, without those of indexes, of which there are most. What the
records of one transaction mean is for ``wal_changes``; names are from ``relation_names`` and, for what was not
recorded, from ``catalog_pages``. ``recovery_target`` decides on a target.

Found by experiment (PostgreSQL 16.15, ``wal_level=replica``):

* Records have the number of the subtransaction that wrote them; the commit of the top one lists them (``subxacts``). An
  aborted one has an ``ABORT`` of its own.
* A prepared transaction ends with ``COMMIT_PREPARED xid:``; the record itself is of transaction 0.
* ``Storage CREATE`` is of transaction 0 if it is the first record of its transaction; the next row of the same
  database shows whose it is.
* An idle server writes no commits, but for our beacons.
* 511 MB of pgbench's WAL have 2.9 million records and 474,000 commits. Reading them takes 27 processor-seconds a GB, of
  which pg_waldump uses 8; reading only the ends of transactions takes 6.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from ovia_backup_dagster.pitr.catalog_pages import names_in_wal
from ovia_backup_dagster.pitr.relation_names import RelationNames
from ovia_backup_dagster.pitr.transaction_ends import RelationFile, TransactionEnd, parse_end, parse_file
from ovia_backup_dagster.pitr.wal_changes import Change, Changes, Footprint, MassDelete, RowChanges, rows_changed
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline, newest_timeline
from ovia_backup_dagster.pitr.wal_range import newest_range
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_source import BEACON_PREFIX

_RMGRS = (
    *("Transaction", "Heap", "Heap2", "Storage", "Standby", "XLOG", "LogicalMessage"),
    *("Database", "Sequence", "Hash", "BRIN"),
)
_LINE = re.compile(
    rb"rmgr: (?P<rmgr>\w+) +len [^,]*, tx: +(?P<xid>\d+), lsn: (?P<lsn>\w+/\w+), prev \w+/\w+, desc: "
    # Not those that change no row.
    rb"(?!LOCK xmax|LOCK_UPDATED|PRUNE|VACUUM|VISIBLE|FREEZE|INPLACE|CONFIRM|FPI_FOR_HINT)(?P<text>(?P<what>[\w+]*).*)"
)
_BLOCK = re.compile(rb" rel (\d+/\d+/\d+)[ ,]")
_TUPLES = re.compile(rb"ntuples: (\d+)")
_FLAGS = re.compile(rb"flags:? 0x([0-9A-Fa-f]+)")
_LOCK = re.compile(rb"xid (\d+) db (\d+) rel (\d+)")
_NEXT_XID = re.compile(rb"nextXid (\d+)|xid \d+:(\d+);")
_DATABASE_FOLDER = re.compile(rb"\d+/(\d+)")
#: ``XLH_DELETE_IS_PARTITION_MOVE``
_MOVED = 0x10
#: Commit times in the WAL may be out of order, by less than this.
_DISORDER = timedelta(seconds=60)
#: Looking up a name in the WAL reads up to 256 MB.
_MOST_LOOK_UPS = 6


@dataclass(frozen=True, slots=True)
class WalTransaction:
    """A committed transaction.

    Attributes:
        xid: its ID.
        lsn: where its commit record begins.
        time: when it committed (UTC).
        records: how many records it wrote, without those of indexes.
        changes: what it did.
        gone_from: recovery must end before this position, so that nothing of what it removed is gone.
        complete: ``False`` if it began before the WAL that was read: then some of what it did is not known.
        beacon: whether it is our own message.
        rows: the rows that it changed, in words, if it was asked for.
    """

    xid: int
    lsn: Lsn
    time: datetime
    records: int
    changes: tuple[Change, ...]
    gone_from: Lsn
    complete: bool = True
    beacon: bool = False
    rows: str = ""

    @property
    def loses_rows(self) -> bool:
        """Whether a table, a database, or many rows are gone after it."""
        return any(change.kind.loses_rows for change in self.changes)

    @property
    def text(self) -> str:
        """What it did, for people."""
        told = "; ".join(change.text for change in self.changes)
        return told or ("a beacon" if self.beacon else self.rows or "a change elsewhere")


@dataclass(frozen=True, slots=True)
class Minute:
    """The commits of one minute.

    Attributes:
        start: the minute (UTC).
        commits: those that changed something in the database.
        others: those of other databases, and those without effect.
        beacons: our own messages.
    """

    start: datetime
    commits: int = 0
    others: int = 0
    beacons: int = 0


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A mark made by ``pg_create_restore_point``.

    Attributes:
        lsn: where its record begins.
        name: its name.
        after: when the transaction before it committed (UTC), if one did in the WAL that was read.
    """

    lsn: Lsn
    name: str
    after: datetime | None


@dataclass(frozen=True, slots=True)
class WalTimeline:
    """What happened in a range of WAL.

    Attributes:
        start: where reading began.
        first, last: the earliest and the latest commit that was read (UTC); ``None`` if there is none.
        minutes: the minutes with commits.
        transactions: those that changed more than rows, in the order of the WAL.
        restore_points: in the order of the WAL.
    """

    start: Lsn
    first: datetime | None
    last: datetime | None
    minutes: tuple[Minute, ...]
    transactions: tuple[WalTransaction, ...]
    restore_points: tuple[RestorePoint, ...]

    def within(self, since: datetime, until: datetime) -> WalTimeline:
        """What was committed from ``since`` on and before ``until`` (UTC)."""
        return replace(
            self,
            minutes=tuple(each for each in self.minutes if since - timedelta(minutes=1) < each.start < until),
            transactions=tuple(each for each in self.transactions if since <= each.time < until),
            restore_points=tuple(
                each for each in self.restore_points if each.after is not None and since <= each.after < until
            ),
        )


@dataclass(frozen=True, slots=True)
class TimelineQuestion:
    """What to read.

    Attributes:
        timeline: the timeline.
        start: where to begin.
        end: where to stop; ``None`` for everything that was received.
        until: stop when commits are later than this (UTC).
        database: the OID of the database whose changes are reported; ``None`` for all.
        names: the names of relations.
        mass: which DELETE is reported.
        explain: the position of a commit that is reported in any case, with its rows.
    """

    timeline: Timeline
    start: Lsn
    end: Lsn | None = None
    until: datetime | None = None
    database: int | None = None
    names: RelationNames = field(default_factory=RelationNames)
    mass: MassDelete = field(default_factory=MassDelete)
    explain: Lsn | None = None


def read_timeline(reader: WalReader, question: TimelineQuestion) -> WalTimeline:
    """Read what happened.

    Raises:
        WalGapError, SegmentDamagedError, VolumeError: as ``WalReader.records``.
    """
    collector = _Collector(question)
    matches = reader.matches(_LINE, question.timeline, question.start, question.end, _RMGRS)
    with contextlib.closing(matches):
        for match in matches:
            collector.take(match)
            if collector.is_over:
                break
    told = collector.told(question.names)
    return replace(collector.timeline, transactions=tuple(_named(reader, question, collector, told)))


@dataclass(frozen=True, slots=True)
class TimelineView:
    """What happened between two instants.

    Attributes:
        timeline_id: the timeline.
        since, until: the instants (UTC).
        told: what happened.
    """

    timeline_id: int
    since: datetime
    until: datetime
    told: WalTimeline


def view_timeline(
    reader: WalReader,
    *,
    database: int | None,
    names: RelationNames,
    around: datetime | None,
    span: timedelta,
    now: datetime,
) -> TimelineView:
    """Read what happened on the newest timeline in a span of time.

    Args:
        reader: reads the WAL.
        database: the OID of the database; ``None`` for all.
        names: the names of relations.
        around: the middle (UTC); ``None`` for the time back from the newest WAL.
        span: in both directions from the middle; or back.
        now: the present (UTC).

    Raises:
        WalGapError, SegmentDamagedError, VolumeError: as ``WalReader.records``.
    """
    timeline = newest_timeline(reader.archive.timelines().values())
    wal = newest_range(reader.archive, timeline)
    since = (around or min(now, wal.written[-1])) - span
    until = around + span if around is not None else now
    start, segments = wal.before(since), 1
    while True:
        told = read_timeline(reader, TimelineQuestion(timeline, start, None, until, database, names))
        # With the file times of a copy, for example, the beginning may be too late.
        if start == wal.start or (told.first is not None and told.first < since):
            return TimelineView(timeline.number, since, until, told.within(since, until))
        start, segments = wal.earlier(start, segments), segments * 4


def _named(
    reader: WalReader, question: TimelineQuestion, collector: _Collector, told: Sequence[WalTransaction]
) -> Sequence[WalTransaction]:
    """The transactions again, with the names that the WAL itself has for what is not recorded."""
    names, looked = question.names, Lsn(2**64)
    for _ in range(_MOST_LOOK_UPS):
        nameless = [
            (each.lsn, change.database)
            for each in told
            for change in each.changes
            if not change.named and change.kind.loses_rows and each.lsn < looked
        ]
        if not nameless:
            break
        looked, database = max(nameless)
        found = names_in_wal(reader, question.timeline, question.start, Lsn(looked.bytes + 1), database, names)
        names = names.and_found(database, found)
        told = collector.told(names)
    return told


class _Collector:
    """Gathers the footprints of transactions, and keeps those that changed more than rows."""

    def __init__(self, question: TimelineQuestion) -> None:
        self._question = question
        self._open: dict[int, Footprint] = {}
        self._files: dict[bytes, RelationFile] = {}
        self._unowned: list[tuple[Lsn, RelationFile]] = []
        self._kept: list[tuple[TransactionEnd, Footprint]] = []
        self._points: list[RestorePoint] = []
        self._minutes: dict[datetime, Counter[str]] = {}
        self._first: datetime | None = None
        self._last: datetime | None = None
        self._next_xid: int | None = None
        self._take: dict[bytes, Callable[[re.Match[bytes]], None]] = {
            b"Heap": self._heap,
            b"Heap2": self._heap,
            b"Transaction": self._transaction,
            b"Storage": self._storage,
            b"Standby": self._standby,
            b"XLOG": self._xlog,
            b"LogicalMessage": self._message,
            b"Database": self._database,
        }
        self.is_over = False

    def take(self, match: re.Match[bytes]) -> None:
        """Take one record."""
        self._take.get(match["rmgr"], self._other)(match)

    @property
    def timeline(self) -> WalTimeline:
        minutes = tuple(
            Minute(start, count["commits"], count["others"], count["beacons"])
            for start, count in sorted(self._minutes.items())
        )
        return WalTimeline(self._question.start, self._first, self._last, minutes, (), tuple(self._points))

    def told(self, names: RelationNames) -> list[WalTransaction]:
        """The transactions that were kept, as they are reported with these names."""
        question = self._question
        changes = Changes(question.database, names, question.mass)
        found = []
        for end, footprint in self._kept:
            explained = end.lsn == question.explain
            did = changes.of(end, footprint)
            if not did and not explained:
                continue
            rows = rows_changed(end, footprint, names, question.database) if explained else ""
            gone_from = min([end.lsn, *footprint.dropped_databases.values()])
            found.append(
                WalTransaction(
                    end.xid,
                    end.lsn,
                    end.time,
                    footprint.records,
                    did,
                    gone_from,
                    self._began_here(end.xid),
                    footprint.beacon,
                    rows,
                )
            )
        return found

    def _began_here(self, xid: int) -> bool:
        """Whether a transaction got its ID after the first record that names the next ID. IDs wrap around."""
        return self._next_xid is not None and (xid - self._next_xid) % 2**32 < 2**31

    def _of(self, xid: int) -> Footprint:
        footprint = self._open.get(xid)
        if footprint is None:
            footprint = self._open[xid] = Footprint()
        return footprint

    def _file(self, numbers: bytes) -> RelationFile:
        """The file of ``1663/16384/16385``."""
        file = self._files.get(numbers)
        if file is None:
            file = self._files[numbers] = RelationFile(*map(int, numbers.split(b"/")))
        return file

    def _heap(self, match: re.Match[bytes]) -> None:
        xid, what, text = int(match["xid"]), match["what"], match["text"]
        at = text.rfind(b" rel ") + 5
        if not xid or at < 5:
            return
        file, footprint = self._file(text[at : text.find(b" ", at)]), self._of(xid)
        if self._unowned:
            self._own(xid, file.database)
        footprint.records += 1
        rows = footprint.rows.get(file)
        if rows is None:
            rows = footprint.rows[file] = RowChanges()
        if what.startswith(b"INSERT"):
            rows.inserted += 1
        elif what == b"DELETE":
            flags = _FLAGS.search(text)
            if flags is None or not int(flags[1], 16) & _MOVED:
                rows.deleted += 1
        elif what.startswith(b"MULTI_INSERT"):
            tuples = _TUPLES.search(text)
            rows.inserted += int(tuples[1]) if tuples else 1
        else:
            rows.updated += 1

    def _transaction(self, match: re.Match[bytes]) -> None:
        end = parse_end(match["text"].decode("utf-8", "replace"), int(match["xid"]), Lsn.parse(match["lsn"].decode()))
        if end is None:
            return
        footprint = self._open.pop(end.xid, None) or Footprint()
        for xid in end.subtransactions:
            if (part := self._open.pop(xid, None)) is not None and end.committed:
                footprint.add(part)
        if not end.committed:
            return
        self._first, self._last = min(self._first or end.time, end.time), max(self._last or end.time, end.time)
        self._count(end, footprint)
        question = self._question
        if end.dropped_relations or not footprint.is_plain(question.mass) or end.lsn == question.explain:
            self._kept.append((end, footprint))
        self.is_over = question.until is not None and end.time > question.until + _DISORDER

    def _count(self, end: TransactionEnd, footprint: Footprint) -> None:
        minute = end.time.replace(second=0, microsecond=0)
        kind = "commits" if footprint.touches(self._question.database) else "others"
        self._minutes.setdefault(minute, Counter())["beacons" if footprint.beacon else kind] += 1

    def _storage(self, match: re.Match[bytes]) -> None:
        words = match["text"].decode().split()
        if words[0] == "CREATE" and len(words) == 2 and (file := parse_file(words[1])) is not None:
            made, xid = (Lsn.parse(match["lsn"].decode()), file), int(match["xid"])
            if xid:
                self._of(xid).created.append(made)
            else:
                self._unowned.append(made)

    def _own(self, xid: int, database: int) -> None:
        """Give files that were created before their transaction had an ID to the transaction."""
        whose = [made for made in self._unowned if made[1].database == database]
        self._of(xid).created += whose
        self._unowned = [made for made in self._unowned if made not in whose]

    def _standby(self, match: re.Match[bytes]) -> None:
        text = match["text"]
        if match["what"] == b"LOCK":
            for xid, database, oid in (map(int, found) for found in _LOCK.findall(text)):
                self._of(xid).locked[database, oid] = None
        elif self._next_xid is None:
            self._note_next_xid(text)

    def _xlog(self, match: re.Match[bytes]) -> None:
        what, text = match["what"], match["text"]
        if what == b"FPI":
            self._other(match)
        elif what == b"RESTORE_POINT":
            name = text.partition(b" ")[2].decode("utf-8", "replace")
            self._points.append(RestorePoint(Lsn.parse(match["lsn"].decode()), name, self._last))
        elif what.startswith(b"CHECKPOINT") and self._next_xid is None:
            self._note_next_xid(text)

    def _note_next_xid(self, text: bytes) -> None:
        found = _NEXT_XID.search(text)
        if found is not None:
            self._next_xid = int(found[1] or found[2])

    def _message(self, match: re.Match[bytes]) -> None:
        xid = int(match["xid"])
        if xid and f'prefix "{BEACON_PREFIX}"'.encode() in match["text"]:
            self._of(xid).beacon = True

    def _database(self, match: re.Match[bytes]) -> None:
        if match["what"] == b"DROP":
            for found in _DATABASE_FOLDER.findall(match["text"]):
                self._of(int(match["xid"])).dropped_databases[int(found)] = Lsn.parse(match["lsn"].decode())

    def _other(self, match: re.Match[bytes]) -> None:
        """A record of an index, a sequence, or a page: of interest is only that the file is not empty."""
        if xid := int(match["xid"]):
            self._of(xid).filled |= set(map(self._file, _BLOCK.findall(match["text"] + b" ")))

"""From a recovery target to the last commit that is kept, by the rules that PostgreSQL follows in recovery.

The result is a position, and recovery to it, inclusive, ends right after that commit. PostgreSQL (16, xlogrecovery.c)
would stop:

* at a time (``recovery_target_inclusive=on``) before the first commit or abort, in the order of the WAL, whose time is
  later than the target. Times are not always in the order of the WAL, so a later record may have an earlier time;
* at a position after the record that begins there, or else after the next;
* at a restore point after the first one of that name.

A target after the last commit ends PostgreSQL's recovery with an error, and is refused here. WAL is read from shortly
before the target; so a server's clock that was put back earlier, within the target's base backup, changes nothing here.
Parsing is for ``recovery_target``; which base backup serves a position is for the recovery catalog.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.recovery_target import RecoveryTarget, TargetKind
from ovia_backup_dagster.pitr.relation_names import RelationNames
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd, read_ends
from ovia_backup_dagster.pitr.wal_changes import MassDelete
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline, newest_timeline
from ovia_backup_dagster.pitr.wal_range import WalRange, newest_range
from ovia_backup_dagster.pitr.wal_records import WalReader
from ovia_backup_dagster.pitr.wal_timeline import TimelineQuestion, WalTimeline, WalTransaction, read_timeline

_RESTORE_POINT = re.compile(rb"rmgr: XLOG .*, lsn: (?P<lsn>\w+/\w+), prev \w+/\w+, desc: RESTORE_POINT (?P<name>.*)")
#: How much later than the target a commit must be, so that no commit after it has an earlier time.
_DISORDER = timedelta(seconds=10)
#: Reading goes back by so many segments at first, then by four times as many.
_STEP = 4
_WINDOW = "ovia-backup recovery-window; ovia-backup wal timeline"
#: So many other losses are named.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """The last commit that is kept.

    Attributes:
        target: what was asked for.
        timeline: the timeline's ID.
        lsn: where the last commit record that is kept begins: for ``recovery_target_lsn``, inclusive.
        commit_time: when it committed (UTC).
        xid: its transaction.
        next_commit: the first that is lost; ``None`` if none is known.
        notes: what a person should know about it.
    """

    target: RecoveryTarget
    timeline: int
    lsn: Lsn
    commit_time: datetime
    xid: int
    next_commit: WalTransaction | None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> TargetKind:
        """How the target was given."""
        return self.target.kind

    @property
    def lines(self) -> tuple[str, ...]:
        """For the plan of a restore."""
        kept = f"kept: all up to the commit of transaction {self.xid} at {exactly(self.commit_time)} ({self.lsn})"
        lost = "lost: nothing that is known"
        if (next_commit := self.next_commit) is not None:
            when = f"transaction {next_commit.xid} at {exactly(next_commit.time)} ({next_commit.lsn})"
            lost = f"first lost: {when}: {next_commit.text}"
        return (f"target: {self.target.text}", kept, lost, *(f"note: {note}" for note in self.notes))


@dataclass(frozen=True, slots=True)
class TimeStop:
    """Where PostgreSQL stops at a time.

    Attributes:
        first: the first end of a transaction that was looked at.
        kept: the last commit that is kept.
        stopped: the commit or abort before which it stops.
        lost: the first commit that is lost.
        late: commits up to the time that are lost, because they come after ``stopped``.
    """

    first: TransactionEnd | None
    kept: TransactionEnd | None
    stopped: TransactionEnd | None
    lost: TransactionEnd | None
    late: tuple[TransactionEnd, ...]

    def notes(self, time: datetime) -> Iterator[str]:
        """What a person should know, who gave this time."""
        if self.stopped is not None and self.late:
            by = max(self.stopped.time - end.time for end in self.late) / timedelta(milliseconds=1)
            which = ", ".join(f"{end.xid} at {exactly(end.time)} ({end.lsn})" for end in self.late[:_TOLD])
            yield (
                f"ambiguous by {by:.3f} ms: commits up to {exactly(time)} that follow in the WAL after a later one "
                f"({exactly(self.stopped.time)}, {self.stopped.lsn}) are lost: {len(self.late)}, {which}; "
                "to keep one, give its position"
            )


def stop_at_time(ends: Iterable[TransactionEnd], time: datetime) -> TimeStop:
    """Where PostgreSQL stops at a time, among the ends of transactions in the order of the WAL."""
    first = kept = stopped = lost = None
    late: list[TransactionEnd] = []
    for end in ends:
        first = first or end
        if stopped is None and end.time <= time:
            kept = end if end.committed else kept
            continue
        stopped = stopped or end
        if end.committed:
            lost = lost or end
            late += [end] if end.time <= time else []
        if lost is not None and end.time > time + _DISORDER:
            break
    return TimeStop(first, kept, stopped, lost, tuple(late))


@dataclass(frozen=True)
class TargetResolver:
    """Resolves targets in the WAL of one timeline.

    Attributes:
        reader: reads the WAL.
        timeline: the timeline that recovery will follow.
        database: the OID of the database that is restored; ``None`` for all.
        names: the names of relations.
        earliest: the first position that can be recovered: a base backup's end. ``None`` for all WAL that is here.
        mass: which DELETE counts as a loss.
    """

    reader: WalReader
    timeline: Timeline
    database: int | None = None
    names: RelationNames = field(default_factory=RelationNames)
    earliest: Lsn | None = None
    mass: MassDelete = field(default_factory=MassDelete)

    def resolve(self, target: RecoveryTarget) -> ResolvedTarget:
        """Find the last commit that is kept.

        Raises:
            RecoveryTargetError: the target is before or after the WAL that is here, is not a commit, or is not unique.
            WalGapError, SegmentDamagedError, VolumeError: as ``WalReader.records``.
        """
        wal = newest_range(self.reader.archive, self.timeline)
        start = max(wal.start, self.earliest or wal.start)
        search = _Search(self, target, wal, start)
        if target.time is not None:
            return search.at_time(target.time)
        if target.lsn is not None:
            return search.at_position(target.lsn)
        if target.xid is not None:
            return search.at_transaction(target.xid)
        if target.name is not None:
            return search.at_restore_point(target.name)
        return search.before_last_drop()


def resolve(
    target: RecoveryTarget,
    reader: WalReader,
    *,
    timeline: Timeline | None = None,
    database: int | None = None,
    names: RelationNames | None = None,
    earliest: Lsn | None = None,
) -> ResolvedTarget:
    """Find the last commit that a target keeps; by default on the newest timeline.

    Raises:
        RecoveryTargetError, WalGapError, SegmentDamagedError, VolumeError: as :meth:`TargetResolver.resolve`.
    """
    timeline = timeline or newest_timeline(reader.archive.timelines().values())
    return TargetResolver(reader, timeline, database, names or RelationNames(), earliest).resolve(target)


@dataclass(frozen=True)
class _Search:
    """The search for one target.

    Attributes:
        of: what it is a search of.
        target: the target.
        wal: the WAL that is here.
        start: the first position that can be recovered.
    """

    of: TargetResolver
    target: RecoveryTarget
    wal: WalRange
    start: Lsn

    def at_time(self, time: datetime) -> ResolvedTarget:
        for position in self._back_from(max(self.start, self.wal.before(time))):
            stop = stop_at_time(self._ends(position), time)
            # With the file times of a copy, for example, the position may be too late.
            if stop.kept is None and position > self.start:
                continue
            if stop.kept is None:
                raise self._too_early(stop.first)
            if stop.stopped is None:
                raise self._too_late(stop.kept)
            return self._resolved(stop.kept, stop.lost, *stop.notes(time))
        raise AssertionError("the last position is the start")

    def at_position(self, position: Lsn) -> ResolvedTarget:
        if position < self.start:
            raise self._too_early(next(self._ends(self.start), None))
        for start in self._back_from(max(self.start, self.wal.earlier(min(position, self.wal.last_start), 1))):
            kept = lost = None
            for end in self._ends(start):
                if end.lsn <= position:
                    kept = end if end.committed else kept
                elif end.committed:
                    lost = end
                    break
            if kept is None and start > self.start:
                continue
            if kept is None:
                raise self._too_early(lost)
            if lost is None and position > self._end_of_wal(kept.lsn):
                raise self._too_late(kept)
            return self._resolved(kept, lost)
        raise AssertionError("the last position is the start")

    def at_transaction(self, xid: int) -> ResolvedTarget:
        kept = None
        ends = self._ends(self.start)
        for end in ends:
            if end.xid == xid and not end.committed:
                raise self._refused(f"transaction {xid} was rolled back at {exactly(end.time)}", "choose another one")
            if xid in end.subtransactions and end.committed:
                raise self._refused(f"{xid} is a part (a savepoint) of transaction {end.xid}", f"--to xid:{end.xid}")
            if kept is not None and end.committed:
                return self._resolved(kept, end)
            if end.xid == xid:
                kept = end
        if kept is None:
            raise self._refused(
                f"transaction {xid} did not end in the WAL from {self.start} on",
                f"list what did: {_WINDOW}",
            )
        return self._resolved(kept, None)

    def at_restore_point(self, name: str) -> ResolvedTarget:
        options = (_RESTORE_POINT, self.of.timeline, self.start, None, ("XLOG",))
        with contextlib.closing(self.of.reader.matches(*options)) as matches:
            points = [(m["name"].decode("utf-8", "replace"), Lsn.parse(m["lsn"].decode())) for m in matches]
        found = [lsn for each, lsn in points if each == name]
        if not found:
            there = ", ".join(dict.fromkeys(each for each, _ in points[-_TOLD:])) or "none"
            why = f"no restore point has this name; there are: {there}"
            raise self._refused(why, "a time is written as 2026-11-30 10:00:01 or '5 minutes ago'; or: " + _WINDOW)
        if len(found) > 1:
            why = f"{len(found)} restore points have this name: {', '.join(map(str, found))}"
            raise self._refused(why, f"give the position of one: --to {found[-1]}")
        return self.at_position(found[0])

    def before_last_drop(self) -> ResolvedTarget:
        for start in self._back_from(self.wal.last_start):
            told = self._timeline(start)
            losses = [each for each in told.transactions if each.loses_rows]
            # Of a transaction that began before, only a part was seen.
            if start > self.start and (not losses or not all(each.complete for each in losses[-1:])):
                continue
            if not losses:
                raise self._refused(
                    "no table was dropped or truncated, and no mass of rows deleted, in the WAL that is here",
                    f"give a time; this lists what happened: {_WINDOW}",
                )
            last = losses[-1]
            before = [each for each in losses[:-1] if each.lsn < last.gone_from][-_TOLD:]
            note = [f"not undone: {each.text}, at {exactly(each.time)} ({each.lsn})" for each in reversed(before)]
            return self._before(last, note)
        raise AssertionError("the last position is the start")

    def _before(self, loss: WalTransaction, notes: list[str]) -> ResolvedTarget:
        for start in self._back_from(max(self.start, self.wal.earlier(loss.gone_from, 1))):
            ends = [end for end in self._ends(start, loss.gone_from) if end.committed]
            if ends:
                lost = next(end for end in self._ends(loss.gone_from) if end.committed)
                return self._resolved(ends[-1], lost, f"the last loss: {loss.text} at {exactly(loss.time)}", *notes)
        raise self._too_early(next(self._ends(loss.lsn), None))

    def _back_from(self, position: Lsn) -> Iterator[Lsn]:
        """Positions to begin reading at, each earlier than the one before; the last is the start."""
        segments = _STEP
        while position > self.start:
            yield position
            position = max(self.start, self.wal.earlier(position, segments))
            segments *= _STEP
        yield self.start

    def _ends(self, start: Lsn, end: Lsn | None = None) -> Iterator[TransactionEnd]:
        return read_ends(self.of.reader, self.of.timeline, start, end)

    def _timeline(self, start: Lsn, end: Lsn | None = None, explain: Lsn | None = None) -> WalTimeline:
        of = self.of
        question = TimelineQuestion(
            of.timeline, start, end, database=of.database, names=of.names, mass=of.mass, explain=explain
        )
        return read_timeline(of.reader, question)

    def _end_of_wal(self, start: Lsn) -> Lsn:
        """The position after the last record that is here."""
        last = None
        for last in self.of.reader.records(self.of.timeline, start):  # noqa: B007
            pass
        return last.end(self.wal.segment_bytes) if last is not None else start

    def _resolved(self, kept: TransactionEnd, lost: TransactionEnd | None, *notes: str) -> ResolvedTarget:
        explained = None
        if lost is not None:
            start = max(self.wal.start, self.wal.earlier(kept.lsn, 1))
            told = self._timeline(start, Lsn(lost.lsn.bytes + 1), lost.lsn)
            explained = next((each for each in told.transactions if each.lsn == lost.lsn), None)
        all_notes = (*self.target.notes, *notes)
        return ResolvedTarget(self.target, self.of.timeline.number, kept.lsn, kept.time, kept.xid, explained, all_notes)

    def _too_early(self, first: TransactionEnd | None) -> RecoveryTargetError:
        nearest = (
            f"the first commit that is here is at {exactly(first.time)} ({first.lsn})" if first else "none is here"
        )
        return RecoveryTargetError(
            f"{self.target.text!r} is before the first commit that can be recovered",
            why=f"the WAL that can be used begins at {self.start}; {nearest}",
            fix=_WINDOW,
        )

    def _too_late(self, last: TransactionEnd) -> RecoveryTargetError:
        return RecoveryTargetError(
            f"{self.target.text!r} is after the last known commit, at {exactly(last.time)} ({last.lsn})",
            why="nothing later was received, and PostgreSQL would end such a recovery with an error",
            fix=f"take the last commit: --to {last.lsn}; or wait for the next beacon, and try again",
        )

    def _refused(self, why: str, fix: str) -> RecoveryTargetError:
        return RecoveryTargetError(f"{self.target.text!r} cannot be recovered to", why=why, fix=fix)


def exactly(at: datetime) -> str:
    """An instant in UTC, to the microsecond, as PostgreSQL compares it."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"

"""What can be recovered, from the WAL and the base backups that are there: windows, holes, and the base for a target.

Pure: ``recovery_windows`` reads the files, ``wal_retention`` decides what is kept. Instants of commits are those of the
server's clock. Instants at which WAL was received are of this host's clock, and stand for the commits in it: a caller
that needs one exact commit must look for it in the WAL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise

from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.wal_chain import Unfinished, WalChain, WalReach
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline, TimelinePart, newest_timeline

#: A position in the WAL, or an instant (UTC).
Target = Lsn | datetime


@dataclass(frozen=True, slots=True)
class Base:
    """A published base backup.

    Attributes:
        name: its folder's name, the UTC time at which it began.
        timeline: the timeline that it was made on.
        start: recovery begins here, and needs all WAL from here on.
        end: nothing before this position can be recovered with this base.
        started_at, finished_at: when it was made, by the server's clock (UTC).
        size_bytes: the size of its files on the volume.
        verified: what verification found; ``None`` if it was not verified.
        drilled_at: when it was last recovered in a drill that passed (UTC).
    """

    name: str
    timeline: int
    start: Lsn
    end: Lsn
    started_at: datetime
    finished_at: datetime
    size_bytes: int
    verified: bool | None = None
    drilled_at: datetime | None = None

    @property
    def is_bad(self) -> bool:
        """Whether verification found it to be bad."""
        return self.verified is False


@dataclass(frozen=True, slots=True)
class Hole:
    """Segments that are missing between others: no instant in them can be recovered.

    Attributes:
        after: the last segment before the hole; ``None`` if the WAL that the oldest base needs first is missing.
        before: the first segment after the hole.
        timeline: the timeline of ``before``.
        since: when ``after`` was received whole (UTC), if that is known.
        until: when ``before`` was received whole (UTC), if that is known: the hole ended before.
    """

    after: Segment | None
    before: Segment
    timeline: int
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True)
class RecoveryWindow:
    """What one base and the WAL after it can recover along one timeline.

    Attributes:
        base: where recovery begins.
        timeline: the timeline to follow.
        from_lsn: the end of the base.
        to_lsn: the end of the WAL that can be read without a hole; the record at this position is not there.
        from_time: when the base was finished (UTC).
        to_time: when the last of this WAL was received, or an earlier instant if that is unknown (UTC).
        received_by: all of this WAL was received until then (UTC); ``None`` if that is unknown.
        usable: whether the WAL from the base's start to its end is there. If it is not, the window is empty.
        complete: whether the window ends where this timeline's WAL ends, and not in a hole.
        why_it_ends: for people.
    """

    base: Base
    timeline: int
    from_lsn: Lsn
    to_lsn: Lsn
    from_time: datetime
    to_time: datetime
    received_by: datetime | None
    usable: bool
    complete: bool
    why_it_ends: str

    def holds(self, target: Target) -> bool:
        """Whether the target is in the window."""
        if not self.usable:
            return False
        if isinstance(target, Lsn):
            return self.from_lsn <= target < self.to_lsn
        return self.from_time <= target <= self.to_time


@dataclass(frozen=True, slots=True)
class Stretch:
    """Windows of several bases on one timeline that leave no gap between them.

    Attributes:
        timeline: the timeline to follow.
        from_lsn, to_lsn, from_time, to_time: as in :class:`RecoveryWindow`.
        bases: the names of the bases, oldest first.
        complete, why_it_ends: of the window that reaches furthest.
    """

    timeline: int
    from_lsn: Lsn
    to_lsn: Lsn
    from_time: datetime
    to_time: datetime
    bases: tuple[str, ...]
    complete: bool
    why_it_ends: str


@dataclass(frozen=True, slots=True)
class Instant:
    """An end of a window: a position, and about when it was (UTC)."""

    lsn: Lsn
    time: datetime

    def __str__(self) -> str:
        return f"{shown_time(self.time)} ({self.lsn})"


def shown_time(time: datetime) -> str:
    """A time for people: ``2026-11-30 18:04:05 UTC``."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True)
class RecoveryCatalog:
    """The WAL and the base backups of one cluster.

    Attributes:
        segment_bytes: the size of a segment.
        segments: the segments that are there whole.
        timelines: the timelines that have a history file, by number.
        bases: the base backups, in any order.
        end_of: segment -> when its last byte was received (UTC); entries may lack.
        unfinished: the segments of which there is only a part; of each timeline at most one.
    """

    segment_bytes: int
    segments: frozenset[Segment]
    timelines: Mapping[int, Timeline]
    bases: Sequence[Base]
    end_of: Mapping[Segment, datetime] = field(default_factory=dict)
    unfinished: tuple[Unfinished, ...] = ()

    @cached_property
    def all_timelines(self) -> tuple[Timeline, ...]:
        """The timelines of everything that is there, oldest first: one without a history file has no known past."""
        seen = {
            *(segment.timeline for segment in self.segments),
            *(part.segment.timeline for part in self.unfinished),
            *(base.timeline for base in self.bases),
        }
        known = {number: Timeline(number) for number in seen or {1}} | dict(self.timelines)
        return tuple(known[number] for number in sorted(known))

    @property
    def newest(self) -> Timeline:
        """The timeline that recovery follows if no other is asked for."""
        return newest_timeline(self.all_timelines)

    @cached_property
    def good_bases(self) -> tuple[Base, ...]:
        """The bases that are not known to be bad, by position."""
        return tuple(sorted((base for base in self.bases if not base.is_bad), key=lambda b: (b.end, b.name)))

    # ---- windows

    def window(self, base: Base, timeline: Timeline) -> RecoveryWindow | None:
        """What a base can recover along a timeline; ``None`` if the base is not in the timeline's past."""
        if not timeline.has(base.timeline, base.end):
            return None
        reach = self._wal.reach(timeline, self._number(base.start))
        usable = reach.to >= base.end
        complete, why = self._why_it_ends(timeline, reach)
        if not usable:
            complete, why = False, f"segment {self._name(timeline, reach.whole + 1)}, which the base needs, is missing"
        return RecoveryWindow(
            base=base,
            timeline=timeline.number,
            from_lsn=base.end,
            to_lsn=reach.to if usable else base.end,
            from_time=base.finished_at,
            to_time=self._time_of(timeline, reach, base) if usable else base.finished_at,
            received_by=self._received_at(reach.partly or self._wal.file(timeline, reach.whole)) if usable else None,
            usable=usable,
            complete=complete,
            why_it_ends=why,
        )

    def windows_of(self, base: Base) -> tuple[RecoveryWindow, ...]:
        """What a base can recover: along the newest timeline, then along abandoned ones that have more WAL.

        An ancestor whose WAL the newest timeline goes on with has no window of its own.
        """
        found: list[tuple[Timeline, RecoveryWindow]] = []
        for timeline in reversed(self.all_timelines):
            window = self.window(base, timeline)
            if window is not None and not any(_adds_nothing(timeline, window, *other) for other in found):
                found.append((timeline, window))
        return tuple(window for _, window in found)

    def usable(self, base: Base) -> bool:
        """Whether the WAL that makes a base consistent is there."""
        return any(window.usable for window in self.windows_of(base))

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """What can be recovered with all bases that are not known to be bad, oldest first."""
        windows = [window for base in self.good_bases for window in self.windows_of(base) if window.usable]
        found = []
        for timeline in sorted({window.timeline for window in windows}):
            found += _merged([window for window in windows if window.timeline == timeline])
        return tuple(sorted(found, key=lambda stretch: (stretch.from_time, stretch.timeline)))

    @cached_property
    def holes(self) -> tuple[Hole, ...]:
        """The holes in the WAL from the oldest base on, by position; without a base, from the oldest WAL on."""
        found = {(hole.after, hole.before): hole for each in self.all_timelines for hole in self._holes_of(each)}
        return tuple(sorted(found.values(), key=lambda hole: (hole.before.number, hole.timeline)))

    # ---- targets

    def base_for(self, lsn: Lsn, timeline: int | None = None) -> Base:
        """The newest base from which this position can be recovered: see :meth:`window_for`."""
        return self.window_for(lsn, timeline).base

    def base_for_time(self, time: datetime, timeline: int | None = None) -> Base:
        """The newest base from which this instant (UTC) can be recovered: see :meth:`window_for`."""
        return self.window_for(time, timeline).base

    def window_for(self, target: Target, timeline: int | None = None) -> RecoveryWindow:
        """The window of the newest base that is not known to be bad from which a target can be recovered.

        Args:
            target: the position of a record that must be there, or an instant (UTC).
            timeline: the timeline that recovery is to follow; ``None`` for the newest. Changes on an abandoned timeline
                are found only if it is named.

        Raises:
            RecoveryTargetError: there is none; it says why, and what the nearest instants are.
        """
        windows = self._windows_on(timeline)
        holding = [window for window in windows if window.holds(target)]
        if not holding:
            raise self._refusal(target, timeline, windows)
        return holding[-1]

    def nearest(self, target: Target, timeline: int | None = None) -> tuple[Instant | None, Instant | None]:
        """The nearest ends of windows before and after a target that is in no window."""
        return _nearest(target, self._windows_on(timeline))

    def _windows_on(self, timeline: int | None) -> list[RecoveryWindow]:
        """The windows on one timeline, by the position of their bases."""
        if timeline is None:
            timeline = self.newest.number
        followed = next((each for each in self.all_timelines if each.number == timeline), None)
        windows = [self.window(base, followed) for base in self.good_bases] if followed is not None else []
        return [window for window in windows if window is not None and window.usable]

    def _refusal(self, target: Target, timeline: int | None, windows: Sequence[RecoveryWindow]) -> RecoveryTargetError:
        before, after = _nearest(target, windows)
        shown = str(target) if isinstance(target, Lsn) else shown_time(target)
        if not windows:
            why = self.why_no_window(timeline)
        elif before is None:
            why = f"it is before the recovery window, which begins at {after}"
        else:
            last = max((window for window in windows if window.to_lsn == before.lsn), key=lambda w: w.to_time)
            why = f"the WAL can be read up to {before}: {last.why_it_ends}"
            if after is not None:
                why += f"; the next base backup that can be used ended at {after}"
        if timeline is None and (others := self._elsewhere(target)):
            why += f"; only timeline {others[0]}, which was abandoned, has it"
        near = " or ".join(str(each) for each in (before, after) if each is not None)
        return RecoveryTargetError(
            f"{shown} cannot be recovered",
            why=why,
            fix=f"choose {near}, or see ovia-backup recovery-window" if near else "ovia-backup recovery-window",
        )

    def why_no_window(self, timeline: int | None = None) -> str:
        """Why nothing can be recovered along a timeline (default: the newest), if that is so."""
        if not self.bases:
            return "there is no base backup"
        if not self.good_bases:
            return "every base backup was found to be bad"
        followed = self.newest.number if timeline is None else timeline
        windows = [window for base in self.good_bases for window in self.windows_of(base)]
        if broken := [window for window in windows if not window.usable]:
            return f"base backup {broken[-1].base.name} cannot be used: {broken[-1].why_it_ends}"
        return f"no base backup is in the past of timeline {followed}"

    def _elsewhere(self, target: Target) -> list[int]:
        """The other timelines that have a target, newest first."""
        others = [each.number for each in reversed(self.all_timelines) if each != self.newest]
        return [number for number in others if any(window.holds(target) for window in self._windows_on(number))]

    # ---- the WAL

    @cached_property
    def _wal(self) -> WalChain:
        return WalChain(self.segment_bytes, self.segments, self.unfinished)

    def _number(self, position: Lsn) -> int:
        return position.bytes // self.segment_bytes

    def _name(self, timeline: Timeline, number: int) -> str:
        return self._wal.file(timeline, number).name(self.segment_bytes)

    def _time_of(self, timeline: Timeline, reach: WalReach, base: Base) -> datetime:
        """When the last WAL that can be read was received; an earlier instant if that is unknown."""
        if reach.received_at is not None:
            return max(reach.received_at, base.finished_at)
        for number in range(reach.whole, self._number(base.end) - 1, -1):
            if (time := self.end_of.get(self._wal.file(timeline, number))) is not None:
                return max(time, base.finished_at)
        return base.finished_at

    def _received_at(self, file: Segment) -> datetime | None:
        parts = (part.received_at for part in self.unfinished if part.segment == file)
        return self.end_of.get(file) or next(parts, None)

    def _why_it_ends(self, timeline: Timeline, reach: WalReach) -> tuple[bool, str]:
        """Whether the WAL that can be read ends where the timeline's ends, and why it ends."""
        last = self._wal.last(timeline)
        if last is not None and last > reach.whole + 1:
            missing = self._name(timeline, reach.whole + 1)
            if reach.partly is not None:
                return False, f"of segment {missing} only the WAL before {reach.to} is there"
            return False, f"segment {missing} is missing"
        if (began := self._successor(timeline)) is not None:
            return True, f"timeline {began.timeline} began at {began.begin}"
        return True, "nothing was received since"

    def _successor(self, timeline: Timeline) -> TimelinePart | None:
        """The newest timeline that began where this one ended."""
        pairs = (pair for each in self.all_timelines for pair in pairwise(each.parts))
        children = [child for parent, child in pairs if parent.timeline == timeline.number]
        return max(children, key=lambda part: part.timeline, default=None)

    def _holes_of(self, timeline: Timeline) -> Iterator[Hole]:
        starts = [self._number(base.start) for base in self.good_bases if timeline.has(base.timeline, base.end)]
        first = min(starts, default=self._wal.first(timeline))
        for after, before in self._wal.holes(timeline, first) if first is not None else ():
            since = self.end_of.get(after) if after is not None else None
            yield Hole(after, before, before.timeline, since, self.end_of.get(before))


def _adds_nothing(timeline: Timeline, window: RecoveryWindow, other: Timeline, its: RecoveryWindow) -> bool:
    """Whether a base's window is within the base's window on another timeline."""
    parted = timeline.branch(other)
    return parted is None or window.to_lsn <= min(parted, its.to_lsn)


def _merged(windows: Sequence[RecoveryWindow]) -> list[Stretch]:
    """Windows of one timeline, those without a gap between them joined."""
    groups: list[list[RecoveryWindow]] = []
    for window in sorted(windows, key=lambda each: (each.from_lsn, each.base.name)):
        if groups and window.from_lsn <= groups[-1][-1].to_lsn:
            groups[-1].append(window)
        else:
            groups.append([window])
    return [
        Stretch(
            timeline=group[-1].timeline,
            from_lsn=group[0].from_lsn,
            to_lsn=group[-1].to_lsn,
            from_time=min(window.from_time for window in group),
            to_time=max(window.to_time for window in group),
            bases=tuple(window.base.name for window in group),
            complete=group[-1].complete,
            why_it_ends=group[-1].why_it_ends,
        )
        for group in groups
    ]


def _nearest(target: Target, windows: Sequence[RecoveryWindow]) -> tuple[Instant | None, Instant | None]:
    if isinstance(target, Lsn):
        before = [w for w in windows if w.to_lsn <= target]
        after = [w for w in windows if w.from_lsn > target]
    else:
        before = [w for w in windows if w.to_time < target]
        after = [w for w in windows if w.from_time > target]
    last = max(before, key=lambda window: window.to_lsn, default=None)
    first = min(after, key=lambda window: window.from_lsn, default=None)
    return (
        Instant(last.to_lsn, last.to_time) if last is not None else None,
        Instant(first.from_lsn, first.from_time) if first is not None else None,
    )

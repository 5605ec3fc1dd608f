"""Which WAL recovery can read along a timeline, from the segments that are there. Pure.

Names and positions are in ``wal_position``; what follows for bases and targets is in ``recovery_catalog``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline, TimelinePart


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A segment that is being received, or whose timeline ended within it.

    Attributes:
        segment: the segment.
        until: the position after the last byte that was received.
        received_at: when that byte was received (UTC); ``None`` if that is unknown.
    """

    segment: Segment
    until: Lsn
    received_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class WalReach:
    """How far recovery gets.

    Attributes:
        to: the position after the last byte that it can read.
        whole: the number of the last segment that it can read whole; one less than the first if there is none.
        partly: the file that has some of the segment after it; ``None`` if there is none.
        received_at: when the last byte was received (UTC), if it is in ``partly`` and that is known.
    """

    to: Lsn
    whole: int
    partly: Segment | None = None
    received_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Runs:
    """The segments of one timeline, as runs without a hole: the first and the last number of each."""

    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def end_of(self, number: int) -> int | None:
        """The end of the run that a segment is in."""
        at = bisect_right(self.starts, number) - 1
        return self.ends[at] if at >= 0 and self.ends[at] >= number else None

    def first_from(self, number: int) -> int | None:
        at = bisect_left(self.ends, number)
        return max(self.starts[at], number) if at < len(self.ends) else None

    def last_up_to(self, number: int | None) -> int | None:
        if number is None:
            return self.ends[-1] if self.ends else None
        at = bisect_right(self.starts, number) - 1
        return min(self.ends[at], number) if at >= 0 else None


@dataclass(frozen=True)
class WalChain:
    """The WAL that is there. Walking it takes a step for each hole and each timeline, not for each segment.

    Attributes:
        segment_bytes: the size of a segment.
        segments: the segments that are there whole.
        unfinished: those of which there is a part.
    """

    segment_bytes: int
    segments: frozenset[Segment]
    unfinished: tuple[Unfinished, ...] = ()

    def file(self, timeline: Timeline, number: int) -> Segment:
        """The file that recovery reads for a place in the WAL."""
        return timeline.segment(number, self.segment_bytes)

    def reach(self, timeline: Timeline, number: int) -> WalReach:
        """How far recovery gets along a timeline from a segment on.

        If the file in which a timeline begins is missing, recovery reads its parent's, up to the change.
        """
        whole = self._run_from(timeline, number)
        begin, end = Lsn((whole + 1) * self.segment_bytes), Lsn((whole + 2) * self.segment_bytes)
        overlapping = [part for part in timeline.parts if part.begin < end and (part.end is None or part.end > begin)]
        for part in reversed(overlapping):
            limit = end if part.end is None else min(part.end, end)
            file = Segment(part.timeline, whole + 1)
            if file in self.segments:
                return WalReach(limit, whole, file)
            if (found := self._parts_of_files.get(file)) is not None:
                # What was received after the change is of an abandoned timeline, and so may the time be.
                received_at = found.received_at if found.until <= limit else None
                return WalReach(min(limit, found.until), whole, file, received_at)
        return WalReach(begin, whole)

    def first(self, timeline: Timeline, number: int = 0) -> int | None:
        """The first whole segment on a timeline, from a number on."""
        for part in timeline.parts:
            lowest, highest = self._range(part)
            found = self._of(part).first_from(max(number, lowest))
            if found is not None and (highest is None or found <= highest):
                return found
        return None

    def last(self, timeline: Timeline) -> int | None:
        """The last segment on a timeline, whole or not."""
        parts = [file.number for file in self._parts_of_files if self.file(timeline, file.number) == file]
        for part in reversed(timeline.parts):
            lowest, highest = self._range(part)
            found = self._of(part).last_up_to(highest)
            if found is not None and found >= lowest:
                return max([found, *parts])
        return max(parts, default=None)

    def holes(self, timeline: Timeline, first: int) -> Iterator[tuple[Segment | None, Segment]]:
        """The holes on a timeline from a segment on: the files before (``None`` if it is not there) and after each."""
        last, number = self.last(timeline), self._run_from(timeline, first) + 1
        while last is not None and number < last:
            found = self.first(timeline, number)
            before, after = self.file(timeline, number - 1), self.file(timeline, last if found is None else found)
            yield before if before in self.segments else None, after
            number = last if found is None else self._run_from(timeline, found) + 1

    def _run_from(self, timeline: Timeline, number: int) -> int:
        """The last segment that can be read whole from this one on without a hole."""
        for part in timeline.parts:
            lowest, highest = self._range(part)
            if number < lowest:
                break
            if highest is not None and number > highest:
                continue
            end = self._of(part).end_of(number)
            if end is None:
                break
            number = (end if highest is None else min(end, highest)) + 1
        return number - 1

    def _range(self, part: TimelinePart) -> tuple[int, int | None]:
        """The numbers of the segments whose file is of a part of a timeline; empty if another begins in the same."""
        highest = None if part.end is None else part.end.bytes // self.segment_bytes - 1
        return part.begin.bytes // self.segment_bytes, highest

    def _of(self, part: TimelinePart) -> _Runs:
        return self._runs.get(part.timeline, _NOTHING)

    @cached_property
    def _runs(self) -> dict[int, _Runs]:
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for segment in sorted(self.segments):
            its_ends = ends.setdefault(segment.timeline, [])
            if its_ends and its_ends[-1] + 1 == segment.number:
                its_ends[-1] = segment.number
            else:
                starts.setdefault(segment.timeline, []).append(segment.number)
                its_ends.append(segment.number)
        return {timeline: _Runs(tuple(starts[timeline]), tuple(ends[timeline])) for timeline in starts}

    @cached_property
    def _parts_of_files(self) -> dict[Segment, Unfinished]:
        return {part.segment: part for part in self.unfinished}


_NOTHING = _Runs()

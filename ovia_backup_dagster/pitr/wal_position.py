"""Positions in the write-ahead log, the names of its segments, and timelines. Pure.

Sources: PostgreSQL 16, xlog_internal.h (names), timeline.c (history files).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering
from itertools import pairwise

#: PostgreSQL's default; ``initdb --wal-segsize`` allows 1 MB to 1 GB, in powers of two.
SEGMENT_BYTES = 16 * 1024 * 1024
PARTIAL = ".partial"
HISTORY = ".history"
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


@total_ordering
@dataclass(frozen=True, slots=True)
class Lsn:
    """A position in the WAL, in bytes since the cluster was created."""

    bytes: int

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``0/3000060``.

        Raises:
            ValueError: it is not an LSN.
        """
        match = _LSN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not an LSN, such as 0/3000060")
        return cls((int(match[1], 16) << 32) + int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.bytes >> 32:X}/{self.bytes & 0xFFFFFFFF:X}"

    def __lt__(self, other: Lsn) -> bool:
        return self.bytes < other.bytes

    def __sub__(self, other: Lsn) -> int:
        return self.bytes - other.bytes


@total_ordering
@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of the WAL.

    Attributes:
        timeline: the timeline that wrote it.
        number: its place in the WAL: position divided by the segments' size.
    """

    timeline: int
    number: int

    @classmethod
    def at(cls, timeline: int, position: Lsn, segment_bytes: int = SEGMENT_BYTES) -> Segment:
        """The segment that has the byte at this position."""
        return cls(timeline, position.bytes // segment_bytes)

    @classmethod
    def parse(cls, name: str, segment_bytes: int = SEGMENT_BYTES) -> Segment | None:
        """The segment of this file name (24 hex digits); ``None`` for any other name."""
        if not _SEGMENT.fullmatch(name):
            return None
        timeline, high, low = (int(name[at : at + 8], 16) for at in (0, 8, 16))
        each = (1 << 32) // segment_bytes
        return cls(timeline, high * each + low) if low < each and timeline else None

    def name(self, segment_bytes: int = SEGMENT_BYTES) -> str:
        """Its file name."""
        each = (1 << 32) // segment_bytes
        return f"{self.timeline:08X}{self.number // each:08X}{self.number % each:08X}"

    def start(self, segment_bytes: int = SEGMENT_BYTES) -> Lsn:
        """The position of its first byte."""
        return Lsn(self.number * segment_bytes)

    def end(self, segment_bytes: int = SEGMENT_BYTES) -> Lsn:
        """The position after its last byte."""
        return Lsn((self.number + 1) * segment_bytes)

    def __lt__(self, other: Segment) -> bool:
        return (self.timeline, self.number) < (other.timeline, other.number)


@dataclass(frozen=True, slots=True)
class Switch:
    """Where a timeline ended and its successor began.

    Attributes:
        timeline: the timeline that ended.
        at: the first position that is not part of it.
    """

    timeline: int
    at: Lsn


@dataclass(frozen=True, slots=True)
class TimelinePart:
    """What one timeline wrote of a timeline's history.

    Attributes:
        timeline: the timeline that wrote it.
        begin: its first position.
        end: the first position that is not part of it; ``None`` for the timeline itself, which goes on.
    """

    timeline: int
    begin: Lsn
    end: Lsn | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """A timeline and its ancestors.

    Attributes:
        number: its ID.
        ancestors: from the first timeline to its parent, each with where it ended.
    """

    number: int
    ancestors: tuple[Switch, ...] = ()

    def of(self, position: Lsn) -> int:
        """The timeline that wrote the byte at this position."""
        return next((switch.timeline for switch in self.ancestors if position < switch.at), self.number)

    def segment(self, number: int, segment_bytes: int = SEGMENT_BYTES) -> Segment:
        """The file that recovery reads for a place in the WAL: where the timeline changes within a segment, the
        successor's file, which begins with a copy of its parent's.
        """
        return Segment(self.of(Lsn((number + 1) * segment_bytes - 1)), number)

    def has(self, timeline: int, position: Lsn) -> bool:
        """Whether this position of ``timeline`` is in this timeline's past, and not lost in a fork."""
        if timeline == self.number:
            return True
        return any(switch.timeline == timeline and position <= switch.at for switch in self.ancestors)

    @property
    def parts(self) -> tuple[TimelinePart, ...]:
        """Its history: what its ancestors and itself wrote, in order."""
        begins = (Lsn(0), *(switch.at for switch in self.ancestors))
        parts = (
            TimelinePart(switch.timeline, begin, switch.at)
            for switch, begin in zip(self.ancestors, begins, strict=False)
        )
        return (*parts, TimelinePart(self.number, begins[-1], None))

    def branch(self, other: Timeline) -> Lsn | None:
        """The position up to which another timeline has the same history; ``None`` if it is the same timeline."""
        for ours, its in zip(self.parts, other.parts, strict=False):
            if ours.timeline != its.timeline:
                return ours.begin
            if ours.end != its.end:
                return min(end for end in (ours.end, its.end) if end is not None)
        return None


def history_name(timeline: int) -> str:
    """The name of a timeline's history file."""
    return f"{timeline:08X}{HISTORY}"


def parse_history_name(name: str) -> int | None:
    """The timeline whose history file has this name; ``None`` for any other name."""
    match = _HISTORY.fullmatch(name)
    return int(match[1], 16) if match else None


def parse_history(number: int, text: str) -> Timeline:
    """Read a history file: a line ``parent<TAB>switch position<TAB>reason`` for each ancestor.

    Raises:
        ValueError: it is not a history file, or its timelines do not increase.
    """
    ancestors: list[Switch] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not words[0].isdigit():
            raise ValueError(f"{line!r} is not a line of a history file")
        ancestors.append(Switch(int(words[0]), Lsn.parse(words[1])))
    numbers = [*(switch.timeline for switch in ancestors), number]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(f"timeline {number} does not follow its ancestors {numbers[:-1]}")
    return Timeline(number, tuple(ancestors))


def newest_timeline(timelines: Iterable[Timeline]) -> Timeline:
    """The timeline that recovery follows by default: the one with the highest ID."""
    return max(timelines, key=lambda timeline: timeline.number)

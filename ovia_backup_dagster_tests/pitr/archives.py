"""Catalogs and archives of point-in-time recovery for tests: small segments, readable positions and times.

Segments are 1 MB. A position is written as a segment's number and a part of it: ``at(3.5)`` is in the middle of
segment 3. A day of the tests has 24 segments, one received at the end of each hour, beginning with ``DAY_ZERO``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog
from ovia_backup_dagster.pitr.wal_chain import Unfinished
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Switch, Timeline

SIZE = 1024 * 1024
DAY_ZERO = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def at(segment: float) -> Lsn:
    """A position: the segment's number and a part of it."""
    return Lsn(int(segment * SIZE))


def hour(number: float) -> datetime:
    """The instant at which this position was written."""
    return DAY_ZERO + number * HOUR


def segments(timeline: int, *numbers: int) -> frozenset[Segment]:
    return frozenset(Segment(timeline, number) for number in numbers)


def forked(number: int, *switches: tuple[int, float]) -> Timeline:
    """A timeline, from its ancestors and where each ended."""
    return Timeline(number, tuple(Switch(ancestor, at(position)) for ancestor, position in switches))


def base(
    start: float,
    end: float | None = None,
    *,
    timeline: int = 1,
    verified: bool | None = True,
    drilled: bool = False,
    name: str = "",
) -> Base:
    """A base backup that took a quarter of an hour."""
    end = start + 0.25 if end is None else end
    return Base(
        name=name or f"{hour(start):%Y-%m-%d_%H%M%S}",
        timeline=timeline,
        start=at(start),
        end=at(end),
        started_at=hour(start),
        finished_at=hour(end),
        size_bytes=1_000_000,
        verified=verified,
        drilled_at=hour(end) + HOUR if drilled else None,
    )


def catalog_with(
    *bases: Base,
    whole: Iterable[Segment] = (),
    timelines: Iterable[Timeline] = (),
    unfinished: Iterable[tuple[int, float]] = (),
    times: bool = True,
) -> RecoveryCatalog:
    """A catalog.

    Args:
        bases: its base backups.
        whole: the segments that are there.
        timelines: besides the first.
        unfinished: timeline and position of each segment of which there is a part; it was received at that position's
            instant.
        times: whether it is known when segments were received.
    """
    found = frozenset(whole)
    return RecoveryCatalog(
        segment_bytes=SIZE,
        segments=found,
        timelines={1: Timeline(1), **{each.number: each for each in timelines}},
        bases=bases,
        end_of={segment: hour(segment.number + 1) for segment in found} if times else {},
        unfinished=tuple(
            Unfinished(Segment(timeline, int(position)), at(position), hour(position) if times else None)
            for timeline, position in unfinished
        ),
    )

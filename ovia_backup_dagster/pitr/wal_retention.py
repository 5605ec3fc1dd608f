"""Decides which base backups and WAL segments are kept, each with a reason. Pure; ``wal_pruning`` acts.

The rules, for one cluster:

* nothing is removed unless a verified base backup can be recovered: its WAL from start to end is there;
* these bases stay: the newest verified one, the newest drilled one, everything newer than the newest verified one, and
  every base that ended within the recovery window;
* the last base before the window stays, and the last verified one before it, so that the beginning of the window can be
  recovered; on each timeline that reaches into the window, and on the newest one in any case;
* the two newest bad bases stay for study while they are within the window;
* all WAL stays from the start of the oldest kept base on, on every timeline, and the WAL of timelines that are newer
  than every verified base. History files stay forever: they are small, and nothing else has what is in them.

The window is counted from the newest instant that can be recovered, and never from a later one. So nothing is removed
because the receiver has stopped, or because this host's clock is ahead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline

#: Bad bases that stay for study.
BAD_BASES_KEPT = 2


@dataclass(frozen=True, slots=True)
class BaseDecision:
    """Whether to keep a base backup, and why."""

    base: Base
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SegmentDecision:
    """Whether to keep a WAL segment, and why."""

    segment: Segment
    keep: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WalRetentionPlan:
    """A decision for each base and each segment.

    Attributes:
        bases: oldest first.
        segments: in the order in which they may be removed: oldest first.
        since: the beginning of the recovery window (UTC); ``None`` while nothing may be removed.
        held: why nothing may be removed now; empty if removal may proceed.
    """

    bases: tuple[BaseDecision, ...]
    segments: tuple[SegmentDecision, ...]
    since: datetime | None
    held: str = ""

    @property
    def base_removals(self) -> tuple[BaseDecision, ...]:
        """The bases to remove, oldest first. They go before any segment."""
        return tuple(decision for decision in self.bases if not decision.keep)

    def segment_removals(self, segment_bytes: int, remaining: Collection[Base]) -> tuple[SegmentDecision, ...]:
        """The segments to remove, oldest first.

        Args:
            segment_bytes: the size of a segment.
            remaining: the bases that are there now: one that was to be removed but is in use keeps its WAL.
        """
        oldest = min((base.start.bytes // segment_bytes for base in remaining), default=0)
        return tuple(each for each in self.segments if not each.keep and each.segment.number < oldest)


def plan_wal_retention(catalog: RecoveryCatalog, window: timedelta, now: datetime) -> WalRetentionPlan:
    """Decide about every base backup and every segment of a cluster.

    Args:
        catalog: what is there.
        window: how far back any instant is to be recoverable.
        now: the present (UTC).
    """
    bases = sorted(catalog.bases, key=lambda base: (base.end, base.name))
    segments = {*catalog.segments, *(part.segment for part in catalog.unfinished)}
    ordered = sorted(segments, key=lambda segment: (segment.number, segment.timeline))
    proven = [base for base in bases if base.verified and catalog.usable(base)]
    if not proven:
        held = "no verified base backup can be recovered" if any(b.verified for b in bases) else _NOT_VERIFIED
        return WalRetentionPlan(
            tuple(BaseDecision(base, True, "pruning is on hold") for base in bases),
            tuple(SegmentDecision(segment, True, "pruning is on hold") for segment in ordered),
            since=None,
            held=held,
        )
    newest = max(each.to_time for base in proven for each in catalog.windows_of(base) if each.usable)
    since = min(newest, now) - window
    kept = _reasons_to_keep(catalog, bases, proven, since, now)
    decisions = tuple(
        BaseDecision(base, base.name in kept, kept.get(base.name) or _why_removed(base, since)) for base in bases
    )
    oldest = min((decision.base for decision in decisions if decision.keep), key=lambda base: base.start)
    return WalRetentionPlan(decisions, tuple(_segments(catalog, ordered, oldest, proven)), since)


_NOT_VERIFIED = "no base backup is verified"


def _reasons_to_keep(
    catalog: RecoveryCatalog, bases: Sequence[Base], proven: Sequence[Base], since: datetime, now: datetime
) -> Mapping[str, str]:
    """Base's name -> why it stays; the strongest reason wins. ``bases`` is in the order of positions."""
    reasons: dict[str, str] = {}
    verified = [base for base in bases if base.verified]
    for base in (*_newest(verified), *_newest(proven)):
        reasons.setdefault(base.name, "newest verified")
    drilled = [base for base in bases if base.drilled_at is not None and not base.is_bad]
    for base in (*_newest(drilled), *_newest([each for each in drilled if catalog.usable(each)])):
        reasons.setdefault(base.name, "newest drilled")
    for base in bases:
        # By name and by position: one of two clocks may have been wrong.
        if base.name > max(each.name for each in proven) or _place(base) > max(map(_place, proven)):
            reasons.setdefault(base.name, "newer than every verified base backup that can be recovered")
    old = [base for base in bases if _ended(catalog, base) < since]
    for base in bases:
        if base not in old and not base.is_bad:
            future = base.finished_at > now
            reasons.setdefault(base.name, "dated in the future: check the clock" if future else "within the window")
    for timeline in catalog.all_timelines:
        for base in _last_before(catalog, timeline, old, since):
            reasons.setdefault(base.name, "the last before the window")
    bad = sorted((base for base in bases if base.is_bad), key=lambda base: base.name, reverse=True)
    for number, base in enumerate(bad[:BAD_BASES_KEPT], 1):
        if base not in old:
            reasons.setdefault(base.name, f"bad, kept for study ({number} of {BAD_BASES_KEPT})")
    return reasons


def _last_before(catalog: RecoveryCatalog, timeline: Timeline, old: Sequence[Base], since: datetime) -> Iterator[Base]:
    """The last bases before the window from which the beginning of the window can be recovered on a timeline."""
    usable = []
    for base in (each for each in old if not each.is_bad):
        window = catalog.window(base, timeline)
        if window is None or not window.usable:
            continue
        # The WAL of an abandoned timeline leaves the window some day.
        if timeline == catalog.newest or window.received_by is None or window.received_by >= since:
            usable.append(base)
    for bases in (usable, [base for base in usable if base.verified]):
        if bases:
            yield max(bases, key=lambda base: base.end)
            yield max(bases, key=lambda base: _ended(catalog, base))


def _ended(catalog: RecoveryCatalog, base: Base) -> datetime:
    """When a base ended, by the later of the server's and this host's clock."""
    last = Segment.at(base.timeline, base.end, catalog.segment_bytes)
    return max(base.finished_at, catalog.end_of.get(last, base.finished_at))


def _newest(bases: Sequence[Base]) -> Iterator[Base]:
    """The newest base, by position and by name."""
    if bases:
        yield max(bases, key=_place)
        yield max(bases, key=lambda base: base.name)


def _place(base: Base) -> tuple[int, Lsn]:
    return base.timeline, base.end


def _why_removed(base: Base, since: datetime) -> str:
    if base.is_bad:
        return "bad, and not one of the newest within the window"
    return f"ended before the window, which begins at {since:%Y-%m-%d %H:%M:%S} UTC, and a later base covers that"


def _segments(
    catalog: RecoveryCatalog, segments: Sequence[Segment], oldest: Base, proven: Sequence[Base]
) -> Iterator[SegmentDecision]:
    first = oldest.start.bytes // catalog.segment_bytes
    newest_timeline = max(base.timeline for base in proven)
    for segment in segments:
        if segment.number >= first:
            yield SegmentDecision(segment, True, f"needed from base backup {oldest.name} on")
        elif segment.timeline > newest_timeline:
            yield SegmentDecision(
                segment, True, "of a timeline that is newer than every verified base backup that can be recovered"
            )
        else:
            yield SegmentDecision(segment, False, f"before base backup {oldest.name}, the oldest that is kept")

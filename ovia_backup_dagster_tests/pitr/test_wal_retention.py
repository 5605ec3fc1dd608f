"""Which base backups and segments are kept: readable histories, then properties of any history."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog, RecoveryWindow
from ovia_backup_dagster.pitr.wal_chain import Unfinished
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Switch, Timeline
from ovia_backup_dagster.pitr.wal_retention import WalRetentionPlan, plan_wal_retention
from ovia_backup_dagster_tests.pitr.archives import (
    DAY_ZERO,
    HOUR,
    SIZE,
    at,
    base,
    catalog_with,
    forked,
    hour,
    segments,
)

DAY = 24
WEEK = timedelta(days=7)


def kept(plan: WalRetentionPlan) -> dict[str, str]:
    """The reasons of the bases that stay."""
    return {decision.base.name: decision.reason for decision in plan.bases if decision.keep}


def removed_segments(catalog: RecoveryCatalog, plan: WalRetentionPlan) -> list[Segment]:
    remaining = [decision.base for decision in plan.bases if decision.keep]
    return [each.segment for each in plan.segment_removals(catalog.segment_bytes, remaining)]


def weekly(days: int, *, every: int = 7, **values: bool | None) -> list[Base]:
    """A base backup every so many days, from the first day on."""
    return [base(day * DAY + 0.5, **values) for day in range(0, days, every)]  # type: ignore[arg-type]


# --- Histories ------------------------------------------------------------------------------------------------------


def test_the_window_and_the_base_before_it_stay() -> None:
    bases = weekly(29)
    catalog = catalog_with(*bases, whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert plan.since == hour(23 * DAY)
    assert kept(plan) == {bases[4].name: "newest verified", bases[3].name: "the last before the window"}
    assert [decision.base for decision in plan.base_removals] == bases[:3], "oldest first"
    assert removed_segments(catalog, plan) == [Segment(1, number) for number in range(21 * DAY)]
    assert plan.base_removals[0].reason.startswith("ended before the window, which begins at 2026-11-24 00:00:00 UTC")


def test_a_daily_base_leaves_seven_and_the_one_before() -> None:
    bases = weekly(30, every=1)
    plan = plan_wal_retention(catalog_with(*bases, whole=segments(1, *range(30 * DAY))), WEEK, hour(30 * DAY))

    assert list(kept(plan)) == [each.name for each in bases[-8:]]


@pytest.mark.parametrize(
    ("bases", "held"),
    [
        ([], "no base backup is verified"),
        ([base(0.5, verified=None)], "no base backup is verified"),
        ([base(0.5, verified=False)], "no base backup is verified"),
        ([base(0.5, 1.5)], "no verified base backup can be recovered"),
    ],
)
def test_without_a_verified_base_nothing_goes(bases: list[Base], held: str) -> None:
    """The last has lost a segment that it needs."""
    catalog = catalog_with(*bases, whole=segments(1, 0, *range(2, 100)))
    plan = plan_wal_retention(catalog, HOUR, hour(5000))

    assert plan.held == held
    assert all(decision.keep for decision in plan.bases)
    assert all(decision.keep for decision in plan.segments)
    assert (plan.base_removals, plan.segment_removals(SIZE, bases)) == ((), ())


def test_a_verified_base_is_not_given_up_for_an_unverified_one() -> None:
    """The last base before the window is unproven, so the one that is proven stays, too."""
    old, proven, unproven, newest = (
        base(DAY),
        base(10 * DAY),
        base(17 * DAY, verified=None),
        base(24 * DAY + 0.5),
    )
    catalog = catalog_with(old, proven, unproven, newest, whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert list(kept(plan)) == [proven.name, unproven.name, newest.name]
    assert removed_segments(catalog, plan)[-1] == Segment(1, 10 * DAY - 1)


def test_what_is_newer_than_every_verified_base_stays() -> None:
    proven, bad, unproven = base(0.5), base(10.5, verified=False), base(20.5, verified=None)
    catalog = catalog_with(proven, bad, unproven, whole=segments(1, *range(100 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(100 * DAY))

    assert (
        kept(plan)[bad.name]
        == kept(plan)[unproven.name]
        == "newer than every verified base backup that can be recovered"
    )
    assert removed_segments(catalog, plan) == []


def test_the_newest_drilled_base_stays_however_old() -> None:
    bases = weekly(60)
    bases[1] = replace(bases[1], drilled_at=bases[1].finished_at)
    catalog = catalog_with(*bases, whole=segments(1, *range(60 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(60 * DAY))

    assert kept(plan)[bases[1].name] == "newest drilled"
    assert bases[0].name not in kept(plan)
    assert removed_segments(catalog, plan)[-1] == Segment(1, 7 * DAY - 1)


def test_two_bad_bases_stay_while_they_are_young() -> None:
    young = [base(25 * DAY + number, verified=False) for number in range(3)]
    old = base(2 * DAY, verified=False)
    catalog = catalog_with(base(20 * DAY), old, *young, base(29 * DAY), whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert [each.base for each in plan.base_removals] == [old, young[0]]
    assert kept(plan)[young[2].name] == "bad, kept for study (1 of 2)"


def test_nothing_ages_while_nothing_is_received() -> None:
    """Weeks without a receiver must not remove the only bases from which anything can be recovered."""
    bases = weekly(29)
    catalog = catalog_with(*bases, whole=segments(1, *range(30 * DAY)))

    assert plan_wal_retention(catalog, WEEK, hour(300 * DAY)) == plan_wal_retention(catalog, WEEK, hour(30 * DAY))


def test_wal_that_is_dated_in_the_future_ages_nothing() -> None:
    bases = weekly(29)
    catalog = catalog_with(*bases, whole=segments(1, *range(30 * DAY)))
    catalog = replace(catalog, end_of={**catalog.end_of, Segment(1, 30 * DAY - 1): hour(900 * DAY)})

    assert plan_wal_retention(catalog, WEEK, hour(30 * DAY)).since == hour(23 * DAY)


def test_a_base_in_use_keeps_its_wal() -> None:
    bases = weekly(29)
    catalog = catalog_with(*bases, whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    going = plan.segment_removals(SIZE, bases[1:])
    assert [each.segment for each in going] == [Segment(1, number) for number in range(7 * DAY)]
    assert plan.segment_removals(SIZE, []) == ()


def test_a_hole_keeps_the_window_before_it() -> None:
    """After a lost slot there is WAL, and no base yet: the window before the hole is all there is."""
    bases = weekly(15)
    whole = segments(1, *range(16 * DAY), *range(17 * DAY, 60 * DAY))
    plan = plan_wal_retention(catalog_with(*bases, whole=whole), WEEK, hour(60 * DAY))

    assert plan.since == hour(9 * DAY)
    assert list(kept(plan)) == [bases[1].name, bases[2].name]


def test_a_base_whose_wal_is_lost_does_not_cover_the_window() -> None:
    sound, broken, newest = base(10 * DAY), base(20 * DAY, 20 * DAY + 2), base(28 * DAY)
    whole = segments(1, *(number for number in range(30 * DAY) if number != 20 * DAY + 1))
    plan = plan_wal_retention(catalog_with(sound, broken, newest, whole=whole), WEEK, hour(30 * DAY))

    assert list(kept(plan)) == [sound.name, newest.name]


def test_a_clock_that_was_behind_does_not_age_its_bases() -> None:
    """A base that is dated years ago, by a wrong clock, ended when its WAL was received."""
    first, wrong = base(20 * DAY), base(26 * DAY)
    wrong = replace(wrong, started_at=DAY_ZERO.replace(year=2019), finished_at=DAY_ZERO.replace(year=2019))
    catalog = catalog_with(first, wrong, base(29 * DAY), whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert kept(plan)[wrong.name] == "within the window"
    assert plan.base_removals == ()


def test_a_base_of_the_future_stays_and_says_why() -> None:
    future = replace(base(2 * DAY), finished_at=hour(900 * DAY))
    catalog = catalog_with(base(DAY), future, base(29 * DAY), whole=segments(1, *range(30 * DAY)))
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert kept(plan)[future.name] == "dated in the future: check the clock"


def test_wal_of_a_timeline_that_no_base_has_yet_stays() -> None:
    """The server was put back in place to long ago: it goes on below every base, and its first base is being made."""
    proven = base(100 * DAY)
    back = forked(2, (1, 10.5))
    whole = segments(1, *range(90 * DAY, 110 * DAY)) | segments(2, *range(10, 20))
    catalog = catalog_with(proven, whole=whole, timelines=[back])
    plan = plan_wal_retention(catalog, WEEK, hour(110 * DAY))

    assert {each.timeline for each in removed_segments(catalog, plan)} == {1}
    (reason,) = {each.reason for each in plan.segments if each.segment.timeline == 2}
    assert reason == "of a timeline that is newer than every verified base backup that can be recovered"


def test_a_window_on_each_timeline_is_covered() -> None:
    """The last base before the window is on another timeline than the one that the window needs."""
    first, abandoned, newest = base(10 * DAY), base(15 * DAY), base(25 * DAY, timeline=2)
    catalog = catalog_with(
        first,
        abandoned,
        newest,
        whole=segments(1, *range(16 * DAY)) | segments(2, *range(14 * DAY, 30 * DAY)),
        timelines=[forked(2, (1, 14 * DAY + 0.5))],
    )
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert kept(plan)[first.name] == "the last before the window"


def test_an_abandoned_timeline_ages() -> None:
    """After a promotion, the last base of the old timeline does not hold its WAL forever."""
    bases = base(DAY), base(20 * DAY, timeline=2), base(29 * DAY, timeline=2)
    whole = segments(1, *range(2 * DAY)) | segments(2, *range(2 * DAY, 30 * DAY))
    catalog = catalog_with(*bases, whole=whole, timelines=[forked(2, (1, 2 * DAY + 0.5))])

    assert list(kept(plan_wal_retention(catalog, WEEK, hour(30 * DAY)))) == [bases[1].name, bases[2].name]
    assert bases[0].name in kept(plan_wal_retention(catalog, 29 * WEEK / 7, hour(30 * DAY)))


def test_an_unfinished_segment_of_an_old_timeline_goes_too() -> None:
    catalog = catalog_with(
        base(DAY),
        base(20 * DAY, timeline=2),
        base(29 * DAY, timeline=2),
        whole=segments(1, *range(2 * DAY)) | segments(2, *range(2 * DAY, 30 * DAY)),
        timelines=[forked(2, (1, 2 * DAY + 0.5))],
        unfinished=[(1, 2 * DAY + 0.75)],
    )
    plan = plan_wal_retention(catalog, WEEK, hour(30 * DAY))

    assert Segment(1, 2 * DAY) in removed_segments(catalog, plan)


# --- Any history ----------------------------------------------------------------------------------------------------


@dataclass
class History:
    """A server that writes WAL, is promoted, is put back in place, and whose WAL is received, in quarters of segments.

    Attributes:
        instants: timeline, position and time of everything that was written.
    """

    timeline: Timeline = field(default_factory=lambda: Timeline(1))
    quarter: int = 4
    clock: datetime = DAY_ZERO
    timelines: dict[int, Timeline] = field(default_factory=lambda: {1: Timeline(1)})
    whole: dict[Segment, datetime] = field(default_factory=dict)
    parts: dict[int, Unfinished] = field(default_factory=dict)
    bases: list[Base] = field(default_factory=list)
    instants: list[tuple[Timeline, Lsn, datetime]] = field(default_factory=list)

    @property
    def position(self) -> Lsn:
        return at(self.quarter / 4)

    def write(self, quarters: int) -> None:
        for _ in range(quarters):
            self.clock += HOUR / 4
            self.instants.append((self.timeline, self.position, self.clock))
            segment = Segment(self.timeline.number, self.quarter // 4)
            self.quarter += 1
            if self.quarter % 4 == 0:
                self.whole[segment] = self.clock
                self.parts.pop(segment.timeline, None)
            else:
                self.parts[segment.timeline] = Unfinished(segment, self.position, self.clock)

    def fork(self, quarter: int) -> None:
        """Begin a timeline at a position: the present one, or an earlier one."""
        where, number = at(quarter / 4), max(self.timelines) + 1
        past = tuple(switch for switch in self.timeline.ancestors if switch.at <= where)
        parent = self.timeline.of(where)
        if past and past[-1].timeline == parent:
            past = past[:-1]
        self.timeline = Timeline(number, (*past, Switch(parent, where)))
        self.timelines[number] = self.timeline
        self.quarter = quarter

    def back_up(self, quarters: int, verified: bool | None, drilled: bool) -> None:
        start, started_at = self.position, self.clock
        self.write(quarters)
        self.bases.append(
            Base(
                name=f"{started_at:%Y-%m-%d_%H%M%S}-{len(self.bases):03}",
                timeline=self.timeline.number,
                start=start,
                end=self.position,
                started_at=started_at,
                finished_at=self.clock,
                size_bytes=1,
                verified=verified,
                drilled_at=self.clock if drilled else None,
            )
        )


_VERIFIED = st.sampled_from([True, True, True, None, False])


@st.composite
def histories(draw: st.DrawFn) -> tuple[RecoveryCatalog, History]:
    history = History()
    for step in draw(st.lists(st.sampled_from("wwwbbbbipf"), min_size=1, max_size=25)):
        match step:
            case "w":
                history.write(draw(st.integers(1, 12)))
            case "b":
                history.back_up(draw(st.integers(1, 6)), draw(_VERIFIED), draw(st.booleans()))
            case "i":
                history.clock += draw(st.integers(1, 48)) * HOUR
            case "p" if len(history.timelines) < 4:
                history.fork(history.quarter)
            case "f" if len(history.timelines) < 4:
                history.fork(draw(st.integers(4, history.quarter)))
    lost = draw(st.frozensets(st.sampled_from(sorted(history.whole)), max_size=3)) if history.whole else frozenset()
    untimed = draw(st.frozensets(st.sampled_from(sorted(history.whole)), max_size=3)) if history.whole else frozenset()
    catalog = RecoveryCatalog(
        segment_bytes=SIZE,
        segments=frozenset(history.whole) - lost,
        timelines=history.timelines,
        bases=history.bases,
        end_of={segment: time for segment, time in history.whole.items() if segment not in lost | untimed},
        unfinished=tuple(history.parts.values()),
    )
    return catalog, history


def without(catalog: RecoveryCatalog, bases: Collection[Base], gone: Collection[Segment]) -> RecoveryCatalog:
    """The catalog after removals."""
    return replace(
        catalog,
        bases=[each for each in catalog.bases if each not in bases],
        segments=catalog.segments - frozenset(gone),
        end_of={segment: time for segment, time in catalog.end_of.items() if segment not in gone},
        unfinished=tuple(part for part in catalog.unfinished if part.segment not in gone),
    )


def applied(catalog: RecoveryCatalog, plan: WalRetentionPlan) -> RecoveryCatalog:
    return without(catalog, [each.base for each in plan.base_removals], removed_segments(catalog, plan))


def steps(catalog: RecoveryCatalog, plan: WalRetentionPlan, in_use: Collection[Base] = ()) -> Iterator[RecoveryCatalog]:
    """The catalog after each removal, in the order in which they are made: what a crash leaves."""
    bases, gone = list[Base](), list[Segment]()
    for decision in plan.base_removals:
        if decision.base not in in_use:
            bases.append(decision.base)
            yield without(catalog, bases, gone)
    remaining = [each for each in catalog.bases if each not in bases]
    for each in plan.segment_removals(catalog.segment_bytes, remaining):
        gone.append(each.segment)
        yield without(catalog, bases, gone)


def recoverable(catalog: RecoveryCatalog, timeline: Timeline, position: Lsn, *, proven: bool) -> bool:
    windows = (catalog.window(each, timeline) for each in catalog.good_bases if each.verified or not proven)
    return any(window.holds(position) for window in windows if window is not None)


def windows(catalog: RecoveryCatalog) -> dict[str, tuple[RecoveryWindow, ...]]:
    return {each.name: catalog.windows_of(each) for each in catalog.bases}


def require_nothing_lost(
    before: RecoveryCatalog, after: RecoveryCatalog, plan: WalRetentionPlan, history: History, since: datetime
) -> None:
    """What must hold after any part of the removals."""
    chains = windows(before)
    for name, found in windows(after).items():
        # An untimed segment takes its time from an older one, which may be gone; all else is as it was.
        assert [replace(each, to_time=DAY_ZERO) for each in found] == [
            replace(each, to_time=DAY_ZERO) for each in chains[name]
        ]
    for timeline, position, time in history.instants:
        if time < since:
            continue
        for proven in (True, False):
            if recoverable(before, timeline, position, proven=proven):
                assert recoverable(after, timeline, position, proven=proven), (timeline, str(position), time, proven)
    verified = [each for each in before.bases if each.verified]
    drilled = [each for each in before.bases if each.drilled_at is not None and not each.is_bad]
    for group in filter(None, (verified, drilled)):
        assert max(group, key=lambda each: each.name) in after.bases
        assert max(group, key=lambda each: (each.timeline, each.end)) in after.bases
    gone = [each for each in before.bases if each not in after.bases]
    gone_segments = before.segments - after.segments
    if gone or gone_segments:
        newest = max((each for each in verified if before.usable(each)), key=lambda each: (each.timeline, each.end))
        assert all(each.name < newest.name for each in gone)
        assert all((each.timeline, each.end) < (newest.timeline, newest.end) for each in gone)
        assert all(
            each.timeline < newest.timeline or (each.timeline == newest.timeline and each.end(SIZE) <= newest.start)
            for each in gone_segments
        )
        assert not plan.held


@given(histories(), st.integers(1, 60), st.integers(0, 72), st.data())
def test_no_instant_of_the_window_is_lost(
    drawn: tuple[RecoveryCatalog, History], window: int, later: int, data: st.DataObject
) -> None:
    catalog, history = drawn
    now = history.clock + later * HOUR
    plan = plan_wal_retention(catalog, window * HOUR, now)
    going = [each.base for each in plan.base_removals]
    in_use = data.draw(st.frozensets(st.sampled_from(going), max_size=2)) if going else frozenset()

    assert {each.base.name for each in plan.bases} == {each.name for each in catalog.bases}
    assert all(each.reason for each in plan.bases)
    assert all(each.reason for each in plan.segments)
    for after in (applied(catalog, plan), *steps(catalog, plan), *steps(catalog, plan, in_use)):
        require_nothing_lost(catalog, after, plan, history, now - window * HOUR)


@given(histories(), st.integers(1, 60), st.data())
def test_pruning_again_finishes_and_then_finds_nothing(
    drawn: tuple[RecoveryCatalog, History], window: int, data: st.DataObject
) -> None:
    catalog, history = drawn
    plan = plan_wal_retention(catalog, window * HOUR, history.clock)
    done = applied(catalog, plan)
    crashed = data.draw(st.sampled_from([catalog, *steps(catalog, plan)]))

    again = plan_wal_retention(done, window * HOUR, history.clock)
    assert (again.base_removals, removed_segments(done, again)) == ((), [])
    assert applied(crashed, plan_wal_retention(crashed, window * HOUR, history.clock)) == done


@given(histories(), st.integers(1, 60))
def test_a_time_within_the_window_stays_recoverable(drawn: tuple[RecoveryCatalog, History], window: int) -> None:
    catalog, history = drawn
    after = applied(catalog, plan_wal_retention(catalog, window * HOUR, history.clock))
    for _, _, time in history.instants:
        if time >= history.clock - window * HOUR:
            found = [each for each in catalog._windows_on(None) if each.holds(time)]
            assert bool(found) <= any(each.holds(time) for each in after._windows_on(None))


@given(histories(), st.integers(1, 60), st.data())
def test_wrong_clocks_break_no_chain(drawn: tuple[RecoveryCatalog, History], window: int, data: st.DataObject) -> None:
    """Whatever the clocks say: each base that stays has its WAL, and nothing newer than a verified base goes."""
    catalog, history = drawn
    skew = st.integers(-2000, 2000).map(lambda hours: hours * HOUR)
    catalog = replace(
        catalog,
        bases=[replace(each, finished_at=each.finished_at + data.draw(skew)) for each in catalog.bases],
        end_of={segment: time + data.draw(skew) for segment, time in catalog.end_of.items()},
    )
    now = history.clock + data.draw(skew)
    plan = plan_wal_retention(catalog, window * HOUR, now)
    for after in (applied(catalog, plan), *steps(catalog, plan)):
        require_nothing_lost(catalog, after, plan, history, datetime.max.replace(tzinfo=DAY_ZERO.tzinfo))

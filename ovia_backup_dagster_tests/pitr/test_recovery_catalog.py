"""What the WAL and the base backups that are there can recover."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.recovery_catalog import Base, Hole, RecoveryCatalog, RecoveryWindow, Target
from ovia_backup_dagster.pitr.wal_chain import Unfinished, WalChain
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline
from ovia_backup_dagster_tests.pitr.archives import SIZE, at, base, catalog_with, forked, hour, segments

SECOND_AT_4_5 = forked(2, (1, 4.5))


def window(catalog: RecoveryCatalog, of: Base) -> RecoveryWindow:
    """The only window of a base."""
    (found,) = catalog.windows_of(of)
    return found


def refusal(catalog: RecoveryCatalog, target: Target, timeline: int | None = None) -> str:
    with pytest.raises(RecoveryTargetError) as refused:
        catalog.window_for(target, timeline)
    return str(refused.value)


def named(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number).name(SIZE)


# --- Windows --------------------------------------------------------------------------------------------------------


def test_a_window_goes_from_the_end_of_its_base_to_the_last_wal() -> None:
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3, 4), unfinished=[(1, 5.5)])

    assert window(catalog, first) == RecoveryWindow(
        base=first,
        timeline=1,
        from_lsn=at(2.75),
        to_lsn=at(5.5),
        from_time=hour(2.75),
        to_time=hour(5.5),
        received_by=hour(5.5),
        usable=True,
        complete=True,
        why_it_ends="nothing was received since",
    )
    assert catalog.holes == ()


def test_the_last_whole_segment_may_end_a_window() -> None:
    first = base(2.5)
    found = window(catalog_with(first, whole=segments(1, 2, 3)), first)

    assert (found.to_lsn, found.to_time) == (at(4), hour(4))


def test_a_base_that_ends_in_the_unfinished_segment_is_usable() -> None:
    first = base(2.5)
    reached, short = (catalog_with(first, unfinished=[(1, until)]) for until in (2.75, 2.7))

    assert window(reached, first).usable
    assert window(reached, first).to_lsn == at(2.75)
    assert "nothing was received since" in refusal(reached, at(2.75)), "no record at the end of the WAL is there yet"
    assert not window(short, first).usable
    assert f"segment {named(2)}, which the base needs" in window(short, first).why_it_ends


def test_a_hole_ends_a_window_and_says_which_segment() -> None:
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3, 6, 7))
    found = window(catalog, first)

    assert (found.to_lsn, found.to_time, found.complete) == (at(4), hour(4), False)
    assert found.why_it_ends == f"segment {named(4)} is missing"
    assert catalog.holes == (Hole(Segment(1, 3), Segment(1, 6), 1, hour(4), hour(7)),)


def test_wal_missing_under_a_base_makes_it_unusable() -> None:
    """It cannot become consistent: the segments between its start and its end must all be there."""
    broken, sound = base(2.5, 4.5), base(5.5)
    catalog = catalog_with(broken, sound, whole=segments(1, 2, 4, 5, 6))

    assert not window(catalog, broken).usable
    assert window(catalog, broken).why_it_ends == f"segment {named(3)}, which the base needs, is missing"
    assert [stretch.bases for stretch in catalog.stretches] == [(sound.name,)]
    assert catalog.base_for(at(6.5)) == sound


def test_the_first_segment_that_a_base_needs_is_missing() -> None:
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 3, 4))

    assert not window(catalog, first).usable
    assert catalog.holes == (Hole(None, Segment(1, 3), 1, None, hour(4)),)


def test_a_segment_missing_before_the_unfinished_one_is_a_hole() -> None:
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3), unfinished=[(1, 5.5)])

    assert window(catalog, first).why_it_ends == f"segment {named(4)} is missing"
    assert catalog.holes == (Hole(Segment(1, 3), Segment(1, 5), 1, hour(4), None),)


def test_an_unfinished_segment_with_more_wal_after_it_is_a_hole() -> None:
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3, 5), unfinished=[(1, 4.5)])
    found = window(catalog, first)

    assert (found.to_lsn, found.complete) == (at(4.5), False)
    assert found.why_it_ends == f"of segment {named(4)} only the WAL before {at(4.5)} is there"
    assert catalog.holes == (Hole(Segment(1, 3), Segment(1, 5), 1, hour(4), hour(6)),)


def test_wal_before_the_oldest_base_has_no_holes() -> None:
    assert catalog_with(base(5.5), whole=segments(1, 1, 3, 5, 6)).holes == ()
    assert len(catalog_with(whole=segments(1, 1, 3, 5, 6)).holes) == 2
    assert len(catalog_with(base(2.5, verified=False), base(5.5), whole=segments(1, 3, 5)).holes) == 0


def test_the_time_of_a_window_is_never_later_than_known() -> None:
    """Without a time of the last segment, the last known one before counts, and at least the base's own."""
    first = base(2.5)
    known = catalog_with(first, whole=segments(1, 2, 3, 4, 5))
    some = RecoveryCatalog(SIZE, known.segments, known.timelines, known.bases, {Segment(1, 3): hour(4)})
    none = catalog_with(first, whole=segments(1, 2, 3, 4, 5), times=False)

    assert window(some, first).to_time == hour(4)
    assert (window(known, first).received_by, window(some, first).received_by) == (hour(6), None)
    assert window(none, first).to_time == hour(2.75)


def test_another_clock_ends_no_window_before_its_begin() -> None:
    first = base(2.5)
    early = (Unfinished(Segment(1, 3), at(3.5), hour(1)),)
    catalog = RecoveryCatalog(SIZE, segments(1, 2), {1: Timeline(1)}, [first], {}, early)

    assert window(catalog, first).to_time == hour(2.75)
    assert window(catalog_with(first, whole=segments(1, 2), times=False), first).to_time == hour(2.75)


# --- Timelines ------------------------------------------------------------------------------------------------------


def test_a_switch_within_a_segment_is_followed_in_the_new_file() -> None:
    first = base(2.5)
    catalog = catalog_with(
        first, whole=segments(1, 2, 3) | segments(2, 4, 5), timelines=[SECOND_AT_4_5], unfinished=[(1, 4.5)]
    )
    found = window(catalog, first)

    assert (found.timeline, found.to_lsn, found.complete) == (2, at(6), True)
    assert catalog.holes == ()


def test_the_newest_file_of_an_unfinished_segment_counts() -> None:
    """Just after a promotion, both timelines have an unfinished file of the segment in which it happened."""
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3), timelines=[SECOND_AT_4_5], unfinished=[(1, 4.6), (2, 4.75)])
    newest, abandoned = catalog.windows_of(first)

    assert (newest.timeline, newest.to_lsn, newest.to_time) == (2, at(4.75), hour(4.75))
    assert (abandoned.timeline, abandoned.to_lsn, abandoned.to_time) == (1, at(4.6), hour(4.6))


def test_the_time_of_abandoned_wal_does_not_count() -> None:
    """The parent went on after the switch, so what was received last is not part of the new timeline."""
    first = base(2.5)
    catalog = catalog_with(first, whole=segments(1, 2, 3), timelines=[SECOND_AT_4_5], unfinished=[(1, 4.6)])
    newest, _ = catalog.windows_of(first)

    assert (newest.timeline, newest.to_lsn, newest.to_time) == (2, at(4.5), hour(4))
    assert newest.received_by == hour(4.6)


def test_a_switch_at_the_border_of_segments_is_followed() -> None:
    first, second = base(2.5), forked(2, (1, 4))
    catalog = catalog_with(first, whole=segments(1, 2, 3) | segments(2, 4, 5), timelines=[second])

    assert window(catalog, first).to_lsn == at(6)
    assert catalog.holes == ()


def test_two_switches_within_one_segment_are_followed() -> None:
    first = base(2.5)
    timelines = [SECOND_AT_4_5, forked(3, (1, 4.5), (2, 4.7))]
    catalog = catalog_with(first, whole=segments(1, 2, 3) | segments(3, 4, 5), timelines=timelines)

    assert (window(catalog, first).timeline, window(catalog, first).to_lsn) == (3, at(6))
    assert catalog.holes == ()


def test_a_timeline_that_has_just_begun_goes_on_from_its_parent() -> None:
    """Its history file is here, and no WAL yet: recovery reads the parent's file up to the switch."""
    first = base(2.5)
    for parent in ({"whole": segments(1, 2, 3, 4)}, {"whole": segments(1, 2, 3), "unfinished": [(1, 4.5)]}):
        catalog = catalog_with(first, timelines=[SECOND_AT_4_5], **parent)
        found = catalog.windows_of(first)[0]

        assert (found.timeline, found.to_lsn, found.complete) == (2, at(4.5), True)
        assert catalog.base_for(at(4.4)) == first


def test_wal_after_a_fork_is_a_window_of_its_own() -> None:
    first = base(2.5)
    catalog = catalog_with(
        first, whole=segments(1, 2, 3, 4) | segments(2, 4, 5, 6), timelines=[SECOND_AT_4_5], unfinished=[(1, 5.25)]
    )
    newest, abandoned = catalog.windows_of(first)

    assert (newest.timeline, newest.to_lsn) == (2, at(7))
    assert (abandoned.timeline, abandoned.to_lsn) == (1, at(5.25))
    assert abandoned.why_it_ends == f"timeline 2 began at {at(4.5)}"
    assert [stretch.timeline for stretch in catalog.stretches] == [1, 2]


def test_an_abandoned_timeline_is_found_only_by_name() -> None:
    first, lost = base(2.5), base(5.1)
    catalog = catalog_with(
        first, lost, whole=segments(1, 2, 3, 4, 5, 6, 7) | segments(2, 4, 5), timelines=[SECOND_AT_4_5]
    )

    assert catalog.base_for(at(5.5)) == first, "the base of the abandoned timeline is not in the newest one's past"
    assert catalog.base_for(at(5.5), timeline=1) == lost
    assert catalog.base_for(at(7.5), timeline=1) == lost
    assert "only timeline 1, which was abandoned, has it" in refusal(catalog, at(7.5))
    assert "no base backup is in the past of timeline 7" in refusal(catalog, at(7.5), timeline=7)
    assert "abandoned" not in refusal(catalog, at(7.5), timeline=2)


def test_a_hole_before_a_switch_ends_every_window_there() -> None:
    first, later = base(2.5), base(5.5, timeline=2)
    catalog = catalog_with(
        first, later, whole=segments(1, 2) | segments(2, 4, 5, 6), timelines=[SECOND_AT_4_5], unfinished=[(1, 4.5)]
    )

    assert window(catalog, first).why_it_ends == f"segment {named(3)} is missing"
    assert window(catalog, later).to_lsn == at(7)
    # The same segment is missing on both timelines, between other files.
    assert [(hole.after, hole.before) for hole in catalog.holes] == [
        (Segment(1, 2), Segment(1, 4)),
        (Segment(1, 2), Segment(2, 4)),
    ]
    assert [stretch.bases for stretch in catalog.stretches] == [(first.name,), (later.name,)]


def test_the_first_file_of_a_timeline_is_missing() -> None:
    """The parent's goes to the switch, and not further."""
    first = base(2.5)
    catalog = catalog_with(
        first, whole=segments(1, 2, 3) | segments(2, 5, 6), timelines=[SECOND_AT_4_5], unfinished=[(1, 4.5)]
    )
    found = window(catalog, first)

    assert (found.to_lsn, found.complete) == (at(4.5), False)
    assert found.why_it_ends == f"of segment {named(4, 2)} only the WAL before {at(4.5)} is there"
    assert catalog.holes == (Hole(Segment(1, 3), Segment(2, 5), 2, hour(4), hour(6)),)


def test_a_timeline_without_its_history_has_no_known_past() -> None:
    first, later = base(2.5), base(5.5, timeline=3)
    catalog = catalog_with(first, later, whole=segments(1, 2, 3) | segments(3, 5, 6))

    assert (window(catalog, first).timeline, window(catalog, later).timeline) == (1, 3)
    assert catalog.newest == Timeline(3)
    assert catalog.holes == ()


def test_a_fork_far_before_the_oldest_base_has_no_holes_there() -> None:
    """A server put back in place goes on at a lower position; the older timeline's WAL there was removed."""
    old, new = base(100.5), base(58.5, timeline=2)
    catalog = catalog_with(
        old, new, whole=segments(1, 100, 101) | segments(2, *range(50, 61)), timelines=[forked(2, (1, 50.5))]
    )

    assert catalog.holes == ()
    assert window(catalog, new).to_lsn == at(61)


# --- Targets --------------------------------------------------------------------------------------------------------


def test_the_newest_base_before_a_target_is_chosen() -> None:
    first, second, third = base(1.5), base(3.5), base(5.5)
    catalog = catalog_with(third, first, second, whole=segments(1, *range(8)))

    for target, expected in (
        (at(1.75), first),
        (at(3.7), first),
        (at(3.75), second),
        (at(7.99), third),
        (hour(3.7), first),
        (hour(3.75), second),
        (hour(8), third),
    ):
        assert catalog.window_for(target).base == expected, target
    assert (catalog.base_for(at(4)), catalog.base_for_time(hour(4))) == (second, second)


@pytest.mark.parametrize(("verified", "chosen"), [(False, 0), (None, 1), (True, 1)])
def test_a_base_that_is_known_to_be_bad_is_passed_over(verified: bool | None, chosen: int) -> None:
    bases = base(1.5), base(3.5, verified=verified)

    assert catalog_with(*bases, whole=segments(1, *range(6))).base_for(at(5)) == bases[chosen]


def test_a_base_before_a_hole_serves_no_later_target() -> None:
    first, second = base(1.5), base(5.5)
    catalog = catalog_with(first, second, whole=segments(1, 1, 2, 4, 5, 6))

    assert catalog.base_for(at(2.9)) == first
    assert catalog.base_for(at(6.5)) == second


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (at(1.7), ("0/1B3333 cannot be recovered", "before the recovery window, which begins at 2026-11-01 01:45:00")),
        (hour(1), ("2026-11-01 01:00:00 UTC cannot", "before the recovery window", "Next: choose 2026-11-01 01:45:00")),
        (at(4.5), (f"segment {named(4)} is missing", "the next base backup that can be used ended at", "(0/680000)")),
        (hour(4.5), ("up to 2026-11-01 04:00:00 UTC (0/400000)", "choose 2026-11-01 04:00:00", "or 2026-11-01 06:30")),
        (at(8), ("the WAL can be read up to 2026-11-01 08:00:00 UTC (0/800000)", "nothing was received since")),
        (hour(8.1), ("nothing was received since", "choose 2026-11-01 08:00:00 UTC (0/800000), or see")),
    ],
)
def test_a_target_outside_is_refused_with_the_nearest_instants(target: Target, words: tuple[str, ...]) -> None:
    catalog = catalog_with(base(1.5), base(6.25), whole=segments(1, 1, 2, 3, 5, 6, 7))

    for word in words:
        assert word in refusal(catalog, target)


def test_a_hole_without_a_later_base_is_named() -> None:
    catalog = catalog_with(base(1.5), whole=segments(1, 1, 2, 3, 5, 6, 7))

    said = refusal(catalog, at(6))
    assert f"segment {named(4)} is missing" in said
    assert "next base" not in said


def test_the_reason_is_said_when_no_base_can_be_used() -> None:
    whole = segments(1, 2, 4, 5)

    assert "there is no base backup" in refusal(catalog_with(whole=whole), at(4))
    assert "every base backup was found to be bad" in refusal(
        catalog_with(base(4.5, verified=False), whole=whole), at(5)
    )
    broken = refusal(catalog_with(base(2.5, 3.5), whole=whole), at(5))
    assert f"segment {named(3)}, which the base needs, is missing" in broken
    assert "Next: ovia-backup recovery-window" in broken


def test_the_nearest_instants_are_values_too() -> None:
    catalog = catalog_with(base(1.5), base(6.25), whole=segments(1, 1, 2, 3, 5, 6, 7))

    before, after = catalog.nearest(at(4.5))
    assert (before and before.lsn, after and after.lsn) == (at(4), at(6.5))
    assert catalog.nearest(at(9))[1] is None
    assert catalog.nearest(at(1))[0] is None


# --- Any history ----------------------------------------------------------------------------------------------------


def positions(last: int) -> st.SearchStrategy[float]:
    return st.integers(0, last * 4).map(lambda quarter: quarter / 4)


@st.composite
def chains(draw: st.DrawFn) -> tuple[WalChain, list[Timeline]]:
    """Any files of up to four timelines, each forked from any of the others."""
    timelines = [Timeline(1)]
    for number in range(2, draw(st.integers(1, 4)) + 1):
        parent = draw(st.sampled_from(timelines))
        least = max((switch.at.bytes / SIZE for switch in parent.ancestors), default=0)
        position = max(least, draw(positions(12)))
        ancestors = [(switch.timeline, switch.at.bytes / SIZE) for switch in parent.ancestors]
        timelines.append(forked(number, *ancestors, (parent.number, position)))
    written = {
        Segment(part.timeline, number)
        for timeline in timelines
        for part in timeline.parts[-1:]
        for number in range(part.begin.bytes // SIZE, 13)
    }
    # Any files may lack, and files may be there that no server wrote.
    lacking = draw(st.frozensets(st.sampled_from(sorted(written)), max_size=8))
    odd = draw(st.frozensets(st.builds(Segment, st.integers(1, 4), st.integers(0, 12)), max_size=4))
    whole = (frozenset(written) - lacking) | odd
    parts = draw(st.dictionaries(st.integers(1, 4), positions(12), max_size=3))
    unfinished = tuple(Unfinished(Segment(each, int(where)), at(where)) for each, where in parts.items())
    whole -= {part.segment for part in unfinished if draw(st.booleans())}
    return WalChain(SIZE, whole, unfinished), timelines


@given(chains(), st.integers(0, 14))
def test_runs_of_segments_are_walked_like_single_ones(drawn: tuple[WalChain, list[Timeline]], first: int) -> None:
    chain, timelines = drawn
    for timeline in timelines:
        there = {number for number in range(30) if timeline.segment(number, SIZE) in chain.segments}
        whole = next(number for number in range(first, 31) if number not in there) - 1
        unfinished = {part.segment for part in chain.unfinished}
        partly = {number for number in range(30) if timeline.segment(number, SIZE) in unfinished}
        last = max(there | partly, default=None)

        reach = chain.reach(timeline, first)
        assert reach.whole == whole
        assert Lsn((whole + 1) * SIZE) <= reach.to <= Lsn((whole + 2) * SIZE)
        assert chain.first(timeline, first) == min((number for number in there if number >= first), default=None)
        assert chain.last(timeline) == last
        absent = [number for number in range(first, last or 0) if number not in there]
        holes = list(chain.holes(timeline, first))
        assert len(holes) == len(absent) - sum(after == before + 1 for before, after in pairwise(absent))
        assert all(before is None or before in chain.segments for before, _ in holes)


@given(chains(), st.lists(st.tuples(positions(12), positions(3), st.integers(1, 4)), max_size=4), st.data())
def test_what_is_recoverable_has_all_its_wal(
    drawn: tuple[WalChain, list[Timeline]], places: list[tuple[float, float, int]], data: st.DataObject
) -> None:
    """Byte by byte (of a quarter of a segment): the files that recovery would read are there."""
    chain, timelines = drawn
    bases = [
        base(start, start + more, timeline=number, name=str(at)) for at, (start, more, number) in enumerate(places)
    ]
    catalog = RecoveryCatalog(
        SIZE, chain.segments, {each.number: each for each in timelines}, bases, {}, chain.unfinished
    )
    followed = data.draw(st.sampled_from([None, 1, 2, 3, 4]))
    target = at(data.draw(positions(14)))
    try:
        found = catalog.window_for(target, followed)
    except RecoveryTargetError:
        chosen = None
    else:
        chosen = found.base
    timeline = next((each for each in catalog.all_timelines if each.number == followed), catalog.newest)
    if followed is not None and timeline.number != followed:
        assert chosen is None
        return
    possible = [each for each in bases if reads(catalog, timeline, each, target)]
    assert (chosen is not None) == bool(possible)
    if chosen is not None:
        assert chosen in possible
        assert chosen.end == max(each.end for each in possible)


def reads(catalog: RecoveryCatalog, timeline: Timeline, of: Base, target: Lsn) -> bool:
    """Whether every byte from a base's start to a target can be read, each from the file that PostgreSQL opens."""
    if not timeline.has(of.timeline, of.end) or target < of.end:
        return False
    parts = {part.segment: part.until for part in catalog.unfinished if part.segment not in catalog.segments}
    for byte in range(of.start.bytes // SIZE * SIZE, target.bytes + 1, SIZE // 4):
        number = byte // SIZE
        # PostgreSQL tries the newest timeline first that has a byte of the segment.
        names = [
            Segment(part.timeline, number)
            for part in reversed(timeline.parts)
            if part.begin < at(number + 1) and (part.end is None or part.end > at(number))
        ]
        file = next((name for name in names if name in catalog.segments or name in parts), None)
        if file is None:
            return False
        end = next(part.end for part in timeline.parts if part.timeline == file.timeline)
        until = min(each for each in (end, parts.get(file, at(number + 1))) if each is not None)
        if byte >= until.bytes:
            return False
    return True

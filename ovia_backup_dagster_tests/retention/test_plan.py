"""What retention keeps: first a table of readable histories, then properties of any history."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, State
from ovia_backup_dagster.core.sidecars import HELD
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention.plan import BAD_KEEP, YOUNG, Candidate, RetentionPlan, candidate, plan_retention
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.support.exhaustive import examples
from ovia_backup_dagster_tests.support.factories import (
    DAY,
    HOUR,
    NOW,
    drilled,
    held,
    make_catalog,
    verified_backup,
    write_dump,
)

# --- A table of histories -----------------------------------------------------------------------------------------
#
# A line is: keep or drop, d(aily), w(eekly), m(onthly) or y(early), a day or a range of days (2026 unless it says
# otherwise), a time (03:00 unless it says otherwise; UTC), and what is special: bad, unverified, writing, drilled, held
# (until tomorrow), lapsed (a hold that ended yesterday). "now" is Monday, 15 June 2026, noon, unless the case says
# otherwise; the policy is 7 daily, 4 weekly, no monthly, no yearly, Sunday, UTC.


@dataclass(frozen=True)
class Case:
    name: str
    history: str
    held: str = ""
    now: str = "06-15 12:00"
    daily: int = 7
    weekly: int = 4
    monthly: int = 0
    yearly: int = 0
    day: str = "sunday"
    zone: str = "UTC"

    def __str__(self) -> str:
        return self.name

    @property
    def policy(self) -> Policy:
        keep = keeping(self.daily, self.weekly, self.monthly, self.yearly)
        return Policy(keep, Weekday[self.day.upper()], ZoneInfo(self.zone))


def keeping(daily: int, weekly: int, monthly: int = 0, yearly: int = 0) -> dict[Tier, int]:
    return {Tier.DAILY: daily, Tier.WEEKLY: weekly, Tier.MONTHLY: monthly, Tier.YEARLY: yearly}


CASES = [
    Case("nothing at all", "", held="there is no backup"),
    Case("a single dump", "keep d 06-15"),
    Case("a single dump that is old", "keep d 2020-01-01"),
    Case(
        "a month of daily dumps",
        """
        keep d 06-09..06-15
        drop d 05-15..06-08
        """,
    ),
    Case(
        "a month of daily dumps, three days kept",
        """
        keep d 06-13..06-15
        drop d 05-15..06-12
        """,
        daily=3,
    ),
    Case(
        "a month of daily dumps, one day kept",
        """
        keep d 06-15
        drop d 05-15..06-14
        """,
        daily=1,
    ),
    Case("fewer days than are to be kept", "keep d 06-13..06-15", daily=10),
    Case(
        "seven launches on one afternoon evict nothing",
        """
        keep d 06-15 05:00
        keep d 06-15 06:00
        keep d 06-15 07:00
        keep d 06-15 08:00
        keep d 06-15 09:00
        keep d 06-15 10:00
        keep d 06-15 11:00
        keep d 06-09..06-14
        drop d 06-08
        """,
    ),
    Case(
        "seven launches on one afternoon evict nothing even where one day is kept",
        """
        keep d 06-15 05:00
        keep d 06-15 06:00
        keep d 06-15 07:00
        keep d 06-15 08:00
        keep d 06-15 09:00
        keep d 06-15 10:00
        keep d 06-15 11:00
        drop d 06-14 03:00
        """,
        daily=1,
    ),
    Case(
        "of the seven launches the newest is left two days later",
        """
        keep d 06-17 03:00
        keep d 06-16 03:00
        keep d 06-15 11:00
        drop d 06-15 10:00
        drop d 06-15 09:00
        drop d 06-15 08:00
        drop d 06-15 05:00
        keep d 06-11..06-14
        drop d 06-10
        """,
        now="06-17 12:00",
    ),
    Case(
        "of two on an earlier day the newest is kept",
        """
        keep d 06-15
        keep d 06-13 15:00
        drop d 06-13 03:00
        """,
    ),
    Case(
        "days without a dump are not counted",
        """
        keep d 06-15
        keep d 06-01
        keep d 05-01
        keep d 04-01
        keep d 03-01
        keep d 02-01
        keep d 01-01
        drop d 2025-12-01
        """,
    ),
    Case(
        "no dump for weeks: age alone removes nothing",
        """
        keep d 04-25..05-01
        drop d 04-20..04-24
        """,
    ),
    Case(
        "weeks of bad dumps remove nothing",
        """
        keep d 05-16..06-15 bad
        keep d 04-01..05-15
        keep w 02-01
        keep w 03-01
        """,
        held="daily/2026-06-15T03:00:00, is bad",
        weekly=1,
    ),
    Case(
        "weeks of bad dumps, then a good one: six good days from before, two bad ones for study",
        """
        keep d 06-15
        keep d 06-13..06-14 bad
        drop d 05-16..06-12 bad
        keep d 05-10..05-15
        drop d 05-01..05-09
        """,
    ),
    Case(
        "weeks of unverified dumps remove nothing",
        """
        keep d 05-16..06-15 unverified
        keep d 04-01..05-15
        """,
        held="daily/2026-06-15T03:00:00, is unverified",
    ),
    Case(
        "one unverified dump, the newest, holds everything",
        """
        keep d 06-15 unverified
        keep d 05-01..06-14
        """,
        held="is unverified",
    ),
    Case(
        "an unverified dump in the middle stays and counts for no day",
        """
        keep d 06-15
        keep d 06-14 unverified
        keep d 06-08..06-13
        drop d 06-07
        """,
    ),
    Case(
        "a bad dump in the middle counts for no day",
        """
        keep d 06-15
        keep d 06-14 bad
        keep d 06-08..06-13
        drop d 06-07
        """,
    ),
    Case(
        "one that is being written holds nothing: it says nothing yet",
        """
        keep d 06-15 11:55 writing
        keep d 06-09..06-15
        drop d 06-08
        """,
    ),
    Case(
        "one that is being written does not hide a bad newest",
        """
        keep d 06-15 11:55 writing
        keep d 06-15 bad
        keep d 06-01..06-14
        """,
        held="is bad",
    ),
    Case("only one that is being written", "keep d 06-15 11:55 writing", held="there is no backup"),
    Case(
        "a bad dump dated in the future holds nothing and is kept",
        """
        keep d 06-20 bad
        keep d 06-09..06-15
        drop d 06-08
        """,
    ),
    Case(
        "a verified dump dated in the future is kept and does not count as the newest",
        """
        keep d 06-20
        keep d 06-15 bad
        keep d 06-01..06-14
        """,
        held="daily/2026-06-15T03:00:00, is bad",
    ),
    Case(
        "only dumps dated in the future",
        """
        keep d 06-16..06-20
        """,
        held="there is no backup",
    ),
    Case(
        "clocks may differ by five minutes",
        """
        keep d 06-15 12:05:00
        drop d 06-13
        """,
        daily=1,
    ),
    Case(
        "clocks may not differ by more",
        """
        keep d 06-15 12:05:01
        keep d 06-13
        drop d 06-12
        """,
        daily=1,
    ),
    Case(
        "the clock jumped a year ahead and back: what was made meanwhile stays and counts for nothing",
        """
        keep d 2027-06-10..2027-06-13
        keep w 2027-06-13
        keep d 06-09..06-15
        drop d 06-07..06-08
        keep w 05-24
        keep w 05-31
        keep w 06-07
        keep w 06-14
        drop w 05-17
        """,
    ),
    Case(
        "while the clock is a year ahead, the old dumps make room one day at a time",
        """
        keep d 2027-06-15
        keep d 06-10..06-15
        drop d 06-09
        """,
        now="2027-06-15 12:00",
    ),
    Case(
        "exactly 24 hours old is not young",
        """
        keep d 06-15 03:00
        keep d 06-14 12:00:01
        drop d 06-14 12:00:00
        """,
        daily=1,
    ),
    Case(
        "four weeks are kept, beside seven days",
        """
        keep d 06-09..06-15
        drop d 06-08
        keep w 06-14
        keep w 06-07
        keep w 05-31
        keep w 05-24
        drop w 05-17
        drop w 05-10
        """,
    ),
    Case(
        "one week is kept",
        """
        keep d 06-15
        keep w 06-07
        drop w 05-31
        """,
        weekly=1,
    ),
    Case(
        "weeks without a weekly backup are not counted",
        """
        keep d 06-15
        keep w 06-07
        keep w 05-03
        keep w 04-05
        keep w 03-01
        drop w 02-01
        """,
    ),
    Case(
        "a weekly backup stands in for no day, and a daily one for no week",
        """
        keep d 06-15
        keep w 06-07
        keep d 06-01
        drop d 05-31
        """,
        daily=2,
        weekly=1,
    ),
    Case(
        "of two weekly backups of one week the newer is kept",
        """
        keep d 06-15
        keep w 06-09
        drop w 06-07
        """,
    ),
    Case(
        "a week begins with the weekly day",
        """
        keep d 06-15
        keep w 06-10
        keep w 06-09
        drop w 06-03
        """,
        day="wednesday",
    ),
    Case(
        "the newest that a drill proved is kept, an older one is not",
        """
        keep d 06-15
        keep d 03-02 drilled
        drop d 03-01 drilled
        drop d 06-14
        """,
        daily=1,
    ),
    Case(
        "a drill on a weekly backup counts as well",
        """
        keep d 06-15
        keep w 06-07
        keep w 03-01 drilled
        """,
        weekly=1,
    ),
    Case(
        "a drill does not protect a dump that was found bad since",
        """
        keep d 06-15
        keep d 06-13..06-14 bad
        drop d 03-01 bad drilled
        keep d 02-01 drilled
        """,
        daily=1,
    ),
    Case(
        "a drill on a dump dated in the future does not cost the last real one its place",
        """
        keep d 06-20 drilled
        keep d 06-15
        keep d 03-01 drilled
        """,
        daily=1,
    ),
    Case(
        "what is on hold is kept until the hold ends",
        """
        keep d 06-15
        keep d 03-02 held
        drop d 03-01 lapsed
        keep w 06-07
        keep w 03-01 held
        drop w 02-22 lapsed
        """,
        daily=1,
        weekly=1,
    ),
    Case(
        "of five bad dumps the newest two are kept, for study",
        """
        keep d 06-15
        keep d 05-04..05-05 bad
        drop d 05-01..05-03 bad
        """,
    ),
    Case(
        "bad dumps of both tiers are counted together",
        """
        keep d 06-15
        keep d 05-05 bad
        keep w 05-03 bad
        drop d 05-02 bad
        drop w 04-26 bad
        """,
    ),
    Case(
        "three bad dumps of today are kept, and no older one beside them",
        """
        keep d 06-15 11:00
        keep d 06-15 10:00 bad
        keep d 06-15 09:00 bad
        keep d 06-15 08:00 bad
        drop d 06-13 bad
        """,
    ),
    Case(
        "the year's edge is a day's edge like any other",
        """
        keep d 2025-12-28..2026-01-03
        drop d 2025-12-20..2025-12-27
        """,
        now="01-03 12:00",
    ),
    Case(
        "29 February is a day",
        """
        keep d 2028-02-28..2028-03-01
        drop d 2028-02-27
        """,
        now="2028-03-01 12:00",
        daily=3,
    ),
    Case(
        "29 December and 1 January are of one week, ISO week 1",
        """
        keep d 01-03
        keep w 01-01
        drop w 2025-12-29
        keep w 2025-12-28
        """,
        now="01-03 12:00",
        day="monday",
    ),
    Case(
        "28 December and 3 January are of one week, ISO week 53; 4 January is of the next",
        """
        keep d 2021-01-06
        keep w 2021-01-04
        keep w 2021-01-03
        drop w 2020-12-28
        keep w 2020-12-27
        """,
        now="2021-01-06 12:00",
        day="monday",
    ),
    Case(
        "the 23-hour day in Berlin",
        """
        keep d 04-02
        keep d 2026-03-29 21:30
        drop d 2026-03-28 23:00
        keep d 2026-03-28 22:59
        """,
        now="04-02 12:00",
        zone="Europe/Berlin",
    ),
    Case(
        "the 25-hour day in Berlin",
        """
        keep d 10-28
        keep d 10-25 23:00
        keep d 10-25 22:59
        drop d 10-24 22:00
        keep d 10-24 21:59
        """,
        now="10-28 12:00",
        zone="Europe/Berlin",
    ),
    Case(
        "the hour that comes twice in New York is of one day",
        """
        keep d 11-04 12:00
        keep d 11-01 06:30
        drop d 11-01 05:30
        """,
        now="11-04 13:00",
        zone="America/New_York",
    ),
    Case(
        "a day in New York is not a day in UTC",
        """
        keep d 06-15
        keep d 06-10 03:59
        drop d 06-09 04:00
        keep d 06-09 03:59
        """,
        zone="America/New_York",
    ),
    Case(
        "midnight in Kathmandu is at a quarter past six",
        """
        keep d 06-15
        keep d 06-09 18:15
        keep d 06-09 18:14
        drop d 06-08 18:15
        """,
        zone="Asia/Kathmandu",
    ),
    Case(
        "Apia had no 30 December 2011: the days before and after are two days",
        """
        keep d 2012-01-03 12:00
        keep d 2011-12-30 10:00
        keep d 2011-12-30 09:59
        drop d 2011-12-29 10:00
        """,
        now="2012-01-03 13:00",
        zone="Pacific/Apia",
    ),
    Case(
        "the old script's dumps that were never verified stay forever, and count for nothing",
        """
        keep d 06-15
        keep d 06-14
        drop d 06-13
        keep d 05-01..06-12 unverified
        keep w 05-03 unverified
        keep w 05-10 unverified
        """,
        daily=2,
        weekly=1,
    ),
    Case(
        "the old script's dumps that were verified are pruned like any other",
        """
        keep d 06-09..06-15
        drop d 05-01..06-08
        keep w 06-14
        drop w 06-07
        """,
        weekly=1,
    ),
    Case(
        "the newest instant in both tiers: a bad weekly copy does not hold",
        """
        keep d 06-14 14:00
        keep w 06-14 14:00 bad
        keep d 06-13
        drop d 06-12
        """,
        daily=2,
    ),
    Case(
        "the newest instant in both tiers: a good weekly copy is enough",
        """
        keep d 06-14 14:00 bad
        keep w 06-14 14:00
        keep d 06-13
        drop d 06-12
        """,
        daily=1,
    ),
    Case(
        "the newest instant in both tiers: two bad copies hold",
        """
        keep d 06-14 bad
        keep w 06-14 bad
        keep d 06-01..06-13
        """,
        held="is bad",
    ),
    Case(
        "only weekly backups are left",
        """
        keep w 06-07
        keep w 05-31
        drop w 05-24
        """,
        weekly=2,
    ),
    Case(
        "two years of monthly backups, and their years",
        """
        keep d 06-09..06-15
        keep m 06-01
        keep m 05-01
        drop m 04-03
        drop m 2025-12-01
        keep y 01-01
        keep y 2025-01-04
        drop y 2024-01-01
        """,
        monthly=2,
        yearly=2,
    ),
    Case(
        "monthly and yearly backups of a time when they were on",
        """
        keep d 06-09..06-15
        drop d 06-08
        keep m 05-01
        keep m 04-01
        keep m 03-01 bad
        keep m 02-01 bad
        keep m 01-01 bad
        keep y 2020-01-01
        """,
    ),
    Case(
        "bad backups of a tier that is off, and the places of others for study",
        """
        keep d 06-15
        keep m 06-13 bad
        keep d 06-12 bad
        keep d 06-11 bad
        drop d 06-10 bad
        keep m 06-09 bad
        """,
        daily=1,
    ),
    Case(
        "a month by the clock of the place",
        """
        keep d 06-15
        keep m 06-01 03:59
        keep m 06-01 04:00
        drop m 05-01 04:00
        """,
        monthly=2,
        daily=1,
        zone="America/New_York",
    ),
    Case(
        "several of a month",
        """
        keep d 06-15
        keep m 06-05
        drop m 06-04
        keep m 05-20
        """,
        monthly=2,
        daily=1,
    ),
    Case(
        "the last that a drill proved stands in yearly/ alone",
        """
        keep d 06-15
        keep y 2026-01-01
        keep y 2022-01-01 drilled
        drop y 2021-01-01 drilled
        """,
        yearly=1,
        daily=1,
    ),
    Case(
        "the newest is a monthly one that is unverified",
        """
        keep d 06-01..06-14
        keep m 06-15 unverified
        """,
        held="is unverified",
        monthly=3,
        daily=1,
    ),
]

_LINE = re.compile(
    r"(?P<what>keep|drop) (?P<tier>[dwmy]) (?P<first>[0-9-]+)(\.\.(?P<last>[0-9-]+))?"
    r"( (?P<time>[0-9:]+))?(?P<marks>( [a-z]+)*)"
)
_STATES = {"bad": State.BAD, "unverified": State.UNVERIFIED, "writing": State.BEING_WRITTEN}


def read_history(text: str, now: datetime) -> tuple[list[Candidate], set[str]]:
    """The candidates of a history, and the keys of those that must be kept."""
    candidates, kept = [], set()
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        assert match is not None, line
        marks = match["marks"].split()
        state = next((_STATES[mark] for mark in marks if mark in _STATES), State.VERIFIED)
        at = instant(f"{match['first']} {match['time'] or '03:00'}")
        last = instant(f"{match['last'] or match['first']} {match['time'] or '03:00'}")
        hold = now + DAY if "held" in marks else now - DAY if "lapsed" in marks else None
        while at <= last:
            made = make(
                at, next(tier for tier in Tier if tier.startswith(match["tier"])), state, "drilled" in marks, hold
            )
            candidates.append(made)
            if match["what"] == "keep":
                kept.add(made.key)
            at += DAY
    return candidates, kept


def instant(text: str) -> datetime:
    if text.count("-") == 1:
        text = f"2026-{text}"
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def make(
    at: datetime,
    tier: Tier = Tier.DAILY,
    state: State = State.VERIFIED,
    is_drilled: bool = False,
    held_until: datetime | None = None,
) -> Candidate:
    key = f"{tier}/{at.replace(tzinfo=None).isoformat()}"
    return Candidate(key, tier, at, state, is_drilled, held_until, "people shrank" if held_until else "")


def kept_by(made: RetentionPlan) -> set[str]:
    return {d.candidate.key for d in made.decisions if d.keep}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_case_keeps_and_drops_what_it_says(case: Case) -> None:
    now = instant(case.now)
    candidates, kept = read_history(case.history, now)
    made = plan_retention(candidates, case.policy, now)
    assert kept_by(made) == kept
    assert case.held in made.held
    assert bool(made.held) == bool(case.held)


def test_case_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


SUNDAY_UTC = Policy(keeping(7, 4), Weekday.SUNDAY, ZoneInfo("UTC"))


def test_each_decision_says_why() -> None:
    history = """
        keep d 06-16 12:00
        keep d 06-15 11:55 writing
        keep d 06-15 11:00
        keep d 06-15 10:00
        keep d 06-14
        keep d 06-13 unverified
        keep d 06-12 bad
        keep d 06-11 bad
        drop d 06-10 bad
        keep w 06-07
        drop w 05-31
        keep y 05-31
        drop d 05-02
        keep d 05-01 drilled
        keep m 05-01
        keep d 04-01 held
        drop m 04-01
    """
    candidates, kept = read_history(history, NOW)
    made = plan_retention(candidates, replace(SUNDAY_UTC, keep=keeping(2, 1, 1)), NOW)
    assert kept_by(made) == kept
    assert [d.reason for d in made.decisions] == [
        "dated in the future: check the clock",
        "being written: never removed",
        "newest verified",
        "younger than 24 hours",
        "daily 2 of 2 (day 2026-06-14)",
        "unverified: never removed",
        "bad, kept for study (1 of 2)",
        "bad, kept for study (2 of 2)",
        "bad, and older than the newest 2 bad ones",
        "weekly 1 of 1 (week of 2026-06-07)",
        "not the newest of one of the last 1 weeks with a verified dump",
        "yearly backups are off: existing ones stay",
        "not the newest of one of the last 2 days with a verified dump",
        "newest proven",
        "monthly 1 of 1 (month 2026-05)",
        "held: people shrank",
        "not the newest of one of the last 1 months with a verified dump",
    ]


def test_a_pruning_on_hold_is_the_reason_to_keep() -> None:
    candidates, _ = read_history("keep d 06-15 bad\nkeep d 06-01..06-14", NOW)
    made = plan_retention(candidates, SUNDAY_UTC, NOW)
    assert made.held == "the newest backup, daily/2026-06-15T03:00:00, is bad"
    assert made.decisions[-1].reason == "pruning is on hold"
    assert plan_retention([], SUNDAY_UTC, NOW).held == "there is no backup"


def test_the_newest_dump_that_names_its_cluster_is_kept() -> None:
    recent, old = make(NOW - HOUR), replace(make(NOW - 90 * DAY), identified=True)
    policy = replace(SUNDAY_UTC, keep={**SUNDAY_UTC.keep, Tier.DAILY: 1})
    reasons = [d.reason for d in plan_retention([recent, old], policy, NOW).decisions]
    assert reasons == ["newest verified", "newest verified that names its cluster"]
    older = replace(make(NOW - 91 * DAY), identified=True)
    assert [d.candidate for d in plan_retention([recent, old, older], policy, NOW).removals] == [older]


def test_the_daily_copy_of_an_instant_comes_first() -> None:
    candidates, _ = read_history("keep w 06-14\nkeep d 06-14", NOW)
    assert [(d.candidate.tier, d.reason) for d in plan_retention(candidates, SUNDAY_UTC, NOW).decisions] == [
        (Tier.DAILY, "newest verified"),
        (Tier.WEEKLY, "weekly 1 of 4 (week of 2026-06-14)"),
    ]


def test_removals_are_oldest_first() -> None:
    candidates, _ = read_history("keep d 05-01..06-15", NOW)
    removals = [d.candidate.started_at for d in plan_retention(candidates, SUNDAY_UTC, NOW).removals]
    assert removals == sorted(removals)
    assert len(removals) == len(candidates) - 7


def test_a_hold_ends_exactly_at_its_instant() -> None:
    recent = make(NOW - HOUR)
    old = make(NOW - 30 * DAY, held_until=NOW)
    policy = replace(SUNDAY_UTC, keep={**SUNDAY_UTC.keep, Tier.DAILY: 1})
    assert [d.candidate for d in plan_retention([recent, old], policy, NOW).removals] == [old]
    assert plan_retention([recent, old], policy, NOW - timedelta(microseconds=1)).removals == ()


@pytest.mark.parametrize("keeps", [(0, 1), (1, 0), (-1, 4), (1, 1, -1), (1, 1, 0, -1)])
def test_a_policy_that_keeps_nothing_is_refused(keeps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="too few"):
        Policy(keeping(*keeps), Weekday.SUNDAY, ZoneInfo("UTC"))


def test_the_refusal_of_a_policy_names_tier_and_count() -> None:
    with pytest.raises(ValueError, match=r"^-1 monthly backups are too few to keep$"):
        Policy(keeping(1, 1, -1), Weekday.SUNDAY, ZoneInfo("UTC"))


def test_an_optional_tier_without_a_count_is_off() -> None:
    policy = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))
    assert [policy.count(tier) for tier in (Tier.DAILY, Tier.WEEKLY, Tier.MONTHLY, Tier.YEARLY)] == [7, 4, 0, 0]
    assert policy.promoted_to == (Tier.WEEKLY,)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize("at", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_a_dump_at_the_calendars_edge_does_not_stop_pruning(at: datetime, zone: str) -> None:
    # Any user can give a file such a name; pruning of the others must not end in an OverflowError.
    candidates, _ = read_history("keep d 06-01..06-15", NOW)
    edges = [make(at, tier) for tier in Tier]
    made = plan_retention([*candidates, *edges], replace(SUNDAY_UTC, timezone=ZoneInfo(zone)), NOW)
    assert {d.candidate.key for d in made.removals} >= {c.key for c in candidates[:8]}


# --- What retention reads from the volume -------------------------------------------------------------------------


def test_a_candidate_is_read_from_the_volume(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    backup = drilled(catalog, held(catalog, verified_backup(catalog, NOW - 9 * DAY), NOW + DAY))
    assert candidate(backup, NOW) == Candidate(
        key="daily/ovia_daily_2026-06-06_120000.dump",
        tier=Tier.DAILY,
        started_at=NOW - 9 * DAY,
        state=State.PROVEN,
        drilled=True,
        held_until=NOW + DAY,
        hold_reason="people shrank from 10 to 1 rows",
        intact=True,
        identified=True,
    )


def test_a_released_hold_keeps_nothing(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    backup = held(catalog, verified_backup(catalog, NOW - 9 * DAY), NOW + DAY, released_at=NOW - HOUR)
    assert (candidate(backup, NOW).held_until, candidate(backup, NOW).hold_reason) == (None, "")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": 2, "until": "2026-06-01T00:00:00Z", "reason": "x"}'])
def test_an_unreadable_hold_keeps_the_backup(tmp_path: Path, text: str) -> None:
    catalog = make_catalog(tmp_path)
    old = verified_backup(catalog, NOW - 90 * DAY)
    recent = verified_backup(catalog, NOW - HOUR)
    old.sidecar(HELD).write_text(text, encoding="utf-8")
    read = [candidate(b, NOW) for b in (old, recent)]
    assert f"{old.path.name}.held.json" in read[0].hold_reason
    assert plan_retention(read, replace(SUNDAY_UTC, keep={**SUNDAY_UTC.keep, Tier.DAILY: 1}), NOW).removals == ()


def test_each_tiers_copy_of_a_dump_has_its_own_key(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    copies = [write_dump(catalog, NOW - DAY, tier) for tier in Tier]
    assert len({candidate(b, NOW).key for b in copies}) == len(Tier)


# --- Properties of any history ------------------------------------------------------------------------------------

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia", "Asia/Kathmandu")

policies = st.builds(
    Policy,
    keep=st.builds(keeping, st.integers(1, 10), st.integers(1, 10), st.integers(0, 5), st.integers(0, 3)),
    weekly_day=st.sampled_from(Weekday),
    timezone=st.sampled_from(ZONES).map(ZoneInfo),
)
_century = (datetime(2001, 1, 1), datetime(2099, 1, 1))  # noqa: DTZ001 - hypothesis adds the zone
any_instant = st.datetimes(*_century, timezones=st.just(UTC))
# Around changes of the clock, of the year and of the calendar (Apia had no 30 December 2011), and anywhere.
clocks = st.one_of(
    st.sampled_from(
        [
            NOW,
            datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
            datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
            datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
            datetime(2012, 1, 3, 10, 0, tzinfo=UTC),
            datetime(2021, 1, 4, 0, 0, tzinfo=UTC),
        ]
    ),
    any_instant,
)
# Minutes before now: mostly a few weeks; some are years, in the future, or exactly at a limit.
_minutes = st.one_of(
    st.integers(-3, 45).map(lambda days: days * 1440),
    st.integers(-3 * 1440, 45 * 1440),
    st.integers(-2 * 1440, 2 * 1440),
    st.integers(0, 40).map(lambda months: months * 30 * 1440),
    st.sampled_from([-366 * 1440, -6, -5, 0, 1440, 1439, 1441, 366 * 1440, 3660 * 1440]),
)
# Mostly verified: a history in which nothing may be removed proves little.
_states = st.sampled_from([State.VERIFIED] * 4 + [State.BAD] * 2 + [State.UNVERIFIED, State.BEING_WRITTEN])


@st.composite
def histories(draw: st.DrawFn) -> History:
    now = draw(clocks)
    rows = draw(
        st.lists(
            st.tuples(
                _minutes,
                st.sampled_from(Tier),
                _states,
                st.integers(0, 9),
                st.sampled_from([None, -1, 0, 1]),
                st.sampled_from([True, True, False]),
            ),
            unique_by=lambda row: (row[0], row[1]),
            max_size=40,
        )
    )
    candidates = [
        replace(
            make(
                now - timedelta(minutes=m),
                tier,
                state,
                n == 0,
                now + hold * HOUR if n == 1 and hold is not None else None,
            ),
            identified=identified,
        )
        for m, tier, state, n, hold, identified in rows
    ]
    # Some instants are in several tiers, as after a promotion.
    twins = [
        make(c.started_at, draw(st.sampled_from(Tier)), draw(_states))
        for c in draw(st.lists(st.sampled_from(candidates), max_size=4) if candidates else st.just([]))
    ]
    unique = {c.key: c for c in [*candidates, *twins]}
    return History(tuple(unique.values()), draw(policies), now)


@dataclass(frozen=True)
class History:
    candidates: tuple[Candidate, ...]
    policy: Policy
    now: datetime

    @property
    def plan(self) -> RetentionPlan:
        return plan_retention(self.candidates, self.policy, self.now)

    @property
    def past(self) -> list[Candidate]:
        """The candidates that are not dated in the future, newest first; of copies, the daily one first."""
        past = [c for c in self.candidates if c.started_at <= self.now + CLOCK_TOLERANCE]
        return sorted(past, key=lambda c: (c.started_at, -list(Tier).index(c.tier)), reverse=True)

    @property
    def verified(self) -> list[Candidate]:
        return [c for c in self.past if c.state is State.VERIFIED]

    @property
    def newest_is_verified(self) -> bool:
        settled = [c for c in self.past if c.state is not State.BEING_WRITTEN]
        return any(c.started_at == settled[0].started_at and c.state is State.VERIFIED for c in settled)


many = examples(150)


def removed(history: History) -> set[Candidate]:
    return {d.candidate for d in history.plan.removals}


@many
@given(histories())
def test_the_newest_verified_dump_survives(history: History) -> None:
    assert not removed(history) & set(history.verified[:1])


@many
@given(histories())
def test_the_newest_proven_dump_survives(history: History) -> None:
    assert not removed(history) & set([c for c in history.verified if c.drilled][:1])


@many
@given(histories())
def test_the_newest_dump_that_names_its_cluster_survives(history: History) -> None:
    assert not removed(history) & set([c for c in history.verified if c.identified][:1])


@many
@given(histories(), st.integers(1, 40), st.sampled_from(Tier))
def test_dumps_of_another_source_evict_no_earlier_ones(history: History, days: int, tier: Tier) -> None:
    """Each dump of another source is bad until a person accepts it, however many there are."""
    newest = max((c.started_at for c in history.candidates), default=history.now)
    others = [replace(make(newest + day * DAY, tier, State.BAD), intact=True) for day in range(1, days + 1)]
    later = replace(history, candidates=(*history.candidates, *others), now=max(newest, history.now) + days * DAY)
    assert not removed(later)


@many
@given(histories())
def test_unverified_written_and_future_dumps_are_kept(history: History) -> None:
    assert {c.state for c in removed(history)} <= {State.VERIFIED, State.BAD}
    assert removed(history) <= set(history.past)


@many
@given(histories())
def test_nothing_is_removed_unless_the_newest_is_verified(history: History) -> None:
    assert bool(history.plan.held) == (not history.newest_is_verified)
    if not history.newest_is_verified:
        assert not removed(history)


@many
@given(histories())
def test_nothing_younger_than_a_day_is_removed(history: History) -> None:
    assert all(history.now - c.started_at >= YOUNG for c in removed(history))


@many
@given(histories())
def test_a_second_plan_after_the_removals_removes_nothing(history: History) -> None:
    left = tuple(d.candidate for d in history.plan.decisions if d.keep)
    again = replace(history, candidates=left).plan
    assert not again.removals
    assert again.held == history.plan.held
    before = {d.candidate: d.reason for d in history.plan.decisions if d.keep}
    assert {d.candidate: d.reason for d in again.decisions} == before


@many
@given(histories(), st.sampled_from([State.BAD, State.UNVERIFIED, State.BEING_WRITTEN]), st.sampled_from(Tier))
def test_an_unverified_older_dump_evicts_no_verified_one(history: History, state: State, tier: Tier) -> None:
    oldest = min((c.started_at for c in history.candidates), default=history.now)
    more = replace(history, candidates=(*history.candidates, make(oldest - HOUR, tier, state)))
    additional = removed(more) - removed(history)
    assert all(c.state is not State.VERIFIED for c in additional)


@many
@given(histories())
def test_each_dump_has_one_decision_with_a_reason(history: History) -> None:
    decisions = history.plan.decisions
    assert sorted(d.candidate.key for d in decisions) == sorted(c.key for c in history.candidates)
    assert all(d.reason.strip() for d in decisions)


@many
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_the_listing_changes_nothing(history: History, random: Random) -> None:
    shuffled = list(history.candidates)
    random.shuffle(shuffled)
    assert replace(history, candidates=tuple(shuffled)).plan == history.plan


@many
@given(histories())
def test_at_most_two_bad_dumps_stay(history: History) -> None:
    if history.plan.held:
        return
    stay = [
        c
        for c in history.past
        if c.state is State.BAD
        and c not in removed(history)
        and history.now - c.started_at >= YOUNG
        and not (c.held_until and c.held_until > history.now)
        and history.policy.keep[c.tier]
    ]
    assert len(stay) <= BAD_KEEP


@many
@given(histories())
def test_an_active_hold_keeps_its_backup(history: History) -> None:
    assert not any(c.held_until is not None and c.held_until > history.now for c in removed(history))


@many
@given(histories())
def test_a_hold_that_has_ended_keeps_nothing(history: History) -> None:
    def without_ended(c: Candidate) -> Candidate:
        ended = c.held_until is not None and c.held_until <= history.now
        return replace(c, held_until=None, hold_reason="") if ended else c

    cleaned = replace(history, candidates=tuple(map(without_ended, history.candidates)))
    assert kept_by(cleaned.plan) == kept_by(history.plan)


def newest_of_the_last(verified: Sequence[Candidate], period: Callable[[datetime], date], count: int) -> set[Candidate]:
    by_period: dict[date, list[Candidate]] = {}
    for c in verified:
        by_period.setdefault(period(c.started_at), []).append(c)
    last = sorted(by_period, reverse=True)[:count]
    return {max(by_period[when], key=lambda c: c.started_at) for when in last}


def day(policy: Policy, at: datetime) -> date:
    return at.astimezone(policy.timezone).date()


def week(policy: Policy, at: datetime) -> date:
    found = day(policy, at)
    while found.weekday() != policy.weekly_day:
        found -= DAY
    return found


def month(policy: Policy, at: datetime) -> date:
    return date(day(policy, at).year, day(policy, at).month, 1)


def year(policy: Policy, at: datetime) -> date:
    return date(day(policy, at).year, 1, 1)


@many
@given(histories())
@example(History((), SUNDAY_UTC, NOW))
def test_exactly_the_claimed_dumps_are_kept(history: History) -> None:
    if history.plan.held:
        return
    policy, now, verified = history.policy, history.now, history.verified
    periods = {Tier.DAILY: day, Tier.WEEKLY: week, Tier.MONTHLY: month, Tier.YEARLY: year}
    claims = {c for c in history.candidates if policy.keep[c.tier] == 0}
    for tier, period in periods.items():
        of_tier = [c for c in verified if c.tier is tier]
        claims |= newest_of_the_last(of_tier, partial(period, policy), policy.keep[tier])
    claims |= set(verified[:1]) | set([c for c in verified if c.drilled][:1])
    claims |= set([c for c in verified if c.identified][:1])
    claims |= set([c for c in history.past if c.state is State.BAD and policy.keep[c.tier]][:BAD_KEEP])
    claims |= {c for c in history.candidates if now - c.started_at < YOUNG}
    claims |= {c for c in history.candidates if c.held_until is not None and c.held_until > now}
    claims |= {c for c in history.candidates if c.state in (State.UNVERIFIED, State.BEING_WRITTEN)}
    assert set(history.candidates) - removed(history) == claims


@many
@given(policies, any_instant)
def test_a_week_has_seven_days_and_begins_with_the_weekly_day(policy: Policy, at: datetime) -> None:
    week = policy.period(Tier.WEEKLY, at)
    assert week.weekday() == policy.weekly_day
    assert timedelta(0) <= policy.day(at) - week < timedelta(days=7)


def test_an_intact_bad_dump_stays_until_enough_are_verified() -> None:
    """Expectations may change, but the dump does not, so a typo in a setting deletes nothing."""
    policy = replace(SUNDAY_UTC, keep={**SUNDAY_UTC.keep, Tier.DAILY: 3})
    bad = [replace(make(NOW - days * DAY, Tier.DAILY), state=State.BAD, intact=True) for days in (4, 5, 6, 7, 8)]
    good = [make(NOW - days * DAY, Tier.DAILY) for days in (1, 2)]
    assert plan_retention([*bad, *good], policy, NOW).removals == ()
    made = plan_retention([*bad, *good, make(NOW - 3 * DAY, Tier.DAILY)], policy, NOW)
    assert [d.candidate for d in made.removals] == bad[::-1]
    # Dumps of other tiers and older dumps do not count as newer ones.
    others = [make(NOW - DAY, Tier.WEEKLY), make(NOW - 30 * DAY), make(NOW - 31 * DAY)]
    kept = {d.candidate.key: d.reason for d in plan_retention([*bad, *good, *others], policy, NOW).decisions if d.keep}
    assert kept[bad[0].key] == "bad but intact: kept until 3 newer ones are verified (2 are)"

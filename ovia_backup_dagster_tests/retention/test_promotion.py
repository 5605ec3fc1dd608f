"""Which daily dump is promoted to weekly, and the reason why the others are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.retention.promotion import decide_promotion
from ovia_backup_dagster_tests.support.factories import (
    DAY,
    HOUR,
    NOW,
    judged,
    make_catalog,
    publish,
    verified_backup,
    write_dump,
)

SUNDAY = datetime(2026, 6, 14, 3, 0, tzinfo=UTC)
POLICY = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path)


def test_the_weekly_days_first_verified_dump_is_promoted(catalog: Catalog) -> None:
    decision = decide_promotion(verified_backup(catalog, SUNDAY), Tier.WEEKLY, [], POLICY, NOW)
    assert decision.promote
    assert decision.reason == "Sunday's first verified dump"


def test_only_one_dump_a_week_is_promoted(catalog: Catalog) -> None:
    there = verified_backup(catalog, SUNDAY, Tier.WEEKLY)
    for later in (SUNDAY + HOUR, SUNDAY + 3 * DAY, SUNDAY + 6 * DAY):
        decision = decide_promotion(verified_backup(catalog, later), Tier.WEEKLY, [there], POLICY, NOW)
        assert not decision.promote
        assert decision.reason == f"the week of Sunday 2026-06-14 has its weekly backup, {there}"


def test_last_weeks_weekly_does_not_stand_in_for_this_weeks(catalog: Catalog) -> None:
    last = verified_backup(catalog, SUNDAY - 7 * DAY, Tier.WEEKLY)
    assert decide_promotion(verified_backup(catalog, SUNDAY), Tier.WEEKLY, [last], POLICY, NOW).promote


@pytest.mark.parametrize("days", range(1, 7))
def test_after_a_missed_weekly_day_the_next_verified_is_used(catalog: Catalog, days: int) -> None:
    decision = decide_promotion(verified_backup(catalog, SUNDAY + days * DAY), Tier.WEEKLY, [], POLICY, NOW + 7 * DAY)
    assert decision.promote
    assert decision.reason == "Sunday 2026-06-14 left no weekly backup: the next verified dump takes its place"


def test_an_unverified_dump_is_not_promoted(catalog: Catalog) -> None:
    backup = publish(catalog, SUNDAY)
    assert (
        decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).reason
        == f"{backup} is unverified; only a verified backup is promoted"
    )
    assert decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).promote is False


def test_a_bad_dump_is_not_promoted(catalog: Catalog) -> None:
    backup = judged(catalog, publish(catalog, SUNDAY), good=False)
    assert not decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).promote
    assert "is bad" in decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).reason


def test_a_dump_being_written_is_not_promoted(catalog: Catalog) -> None:
    backup = write_dump(catalog, SUNDAY, age=timedelta(minutes=1))
    assert not decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).promote
    assert "is being written" in decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).reason


def test_a_weekly_backup_is_not_promoted_again(catalog: Catalog) -> None:
    weekly = verified_backup(catalog, SUNDAY, Tier.WEEKLY)
    decision = decide_promotion(weekly, Tier.WEEKLY, [], POLICY, NOW)
    assert (decision.promote, decision.reason) == (False, f"{weekly} is a weekly backup already")


def test_a_bad_weekly_backup_does_not_count_for_its_week(catalog: Catalog) -> None:
    bad = judged(catalog, write_dump(catalog, SUNDAY, Tier.WEEKLY), good=False)
    assert decide_promotion(verified_backup(catalog, SUNDAY + DAY), Tier.WEEKLY, [bad], POLICY, NOW + DAY).promote


def test_an_unverified_weekly_dump_counts_for_its_week(catalog: Catalog) -> None:
    old = write_dump(catalog, SUNDAY, Tier.WEEKLY)
    assert not decide_promotion(verified_backup(catalog, SUNDAY + DAY), Tier.WEEKLY, [old], POLICY, NOW + DAY).promote


@pytest.mark.parametrize(
    ("zone", "at", "week"),
    [
        # Saturday 23:59 and Sunday 00:00 local time, in UTC.
        ("Asia/Kathmandu", "2026-06-13 18:14", "2026-06-07"),
        ("Asia/Kathmandu", "2026-06-13 18:15", "2026-06-14"),
        ("America/New_York", "2026-06-14 03:59", "2026-06-07"),
        ("America/New_York", "2026-06-14 04:00", "2026-06-14"),
        # The days on which Berlin changes its clocks are Sundays.
        ("Europe/Berlin", "2026-03-28 22:59", "2026-03-22"),
        ("Europe/Berlin", "2026-03-28 23:00", "2026-03-29"),
        ("Europe/Berlin", "2026-10-24 21:59", "2026-10-18"),
        ("Europe/Berlin", "2026-10-24 22:00", "2026-10-25"),
        # The week of New Year is one week.
        ("UTC", "2026-01-03 03:00", "2025-12-28"),
    ],
)
def test_the_week_is_counted_in_the_policys_zone(catalog: Catalog, zone: str, at: str, week: str) -> None:
    policy = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo(zone))
    started_at = datetime.fromisoformat(f"{at}+00:00")
    backup = verified_backup(catalog, started_at)
    there = verified_backup(catalog, started_at, Tier.WEEKLY)
    assert (
        f"the week of Sunday {week} has"
        in decide_promotion(backup, Tier.WEEKLY, [there], policy, NOW + 365 * DAY).reason
    )


@pytest.mark.parametrize("day", Weekday)
def test_any_day_may_be_the_weekly_day(catalog: Catalog, day: Weekday) -> None:
    policy = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, day, ZoneInfo("UTC"))
    week = [verified_backup(catalog, SUNDAY + n * DAY) for n in range(1, 8)]
    promoted_as_the_days_own = [
        b for b in week if "first verified" in decide_promotion(b, Tier.WEEKLY, [], policy, NOW + 30 * DAY).reason
    ]
    assert [b.started_at.weekday() for b in promoted_as_the_days_own] == [day]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
@pytest.mark.parametrize("year", [1, 9999])
def test_a_dump_at_the_calendars_edge_stops_no_promotion(catalog: Catalog, year: int, zone: str) -> None:
    at = datetime(year, 1, 1, tzinfo=UTC) if year == 1 else datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    name = BackupName("ovia", Tier.WEEKLY, at)
    stray = Backup(catalog.folder(Tier.WEEKLY) / name.filename, name, 0, 0)
    stray.path.touch()
    policy = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo(zone))
    assert decide_promotion(verified_backup(catalog, SUNDAY + 12 * HOUR), Tier.WEEKLY, [stray], policy, NOW).promote


@pytest.mark.parametrize(
    ("tier", "period", "first", "later", "other"),
    [
        (Tier.MONTHLY, "month 2026-06", "2026-06-01 03:00", "2026-06-30 23:59", "2026-05-31 23:59"),
        (Tier.YEARLY, "year 2026", "2026-01-02 03:00", "2026-12-31 23:59", "2025-12-31 23:59"),
    ],
)
def test_the_first_verified_of_a_month_and_year_is_promoted(
    catalog: Catalog, tier: Tier, period: str, first: str, later: str, other: str
) -> None:
    one, another, before = (
        verified_backup(catalog, datetime.fromisoformat(f"{at}+00:00")) for at in (first, later, other)
    )
    year_later = NOW + 365 * DAY
    of_before = verified_backup(catalog, before.started_at, tier)
    decision = decide_promotion(one, tier, [of_before], POLICY, year_later)
    assert (decision.promote, decision.reason) == (True, f"the first verified dump of the {period}")
    there = verified_backup(catalog, one.started_at, tier)
    decision = decide_promotion(another, tier, [there, of_before], POLICY, year_later)
    assert (decision.promote, decision.reason) == (False, f"the {period} has its {tier} backup, {there}")
    assert decide_promotion(there, tier, [], POLICY, year_later).reason == f"{there} is a {tier} backup already"


def test_a_month_is_counted_in_the_policys_zone(catalog: Catalog) -> None:
    policy = Policy(POLICY.keep, POLICY.weekly_day, ZoneInfo("Asia/Kathmandu"))
    # Midnight local time, in UTC.
    there = verified_backup(catalog, datetime(2026, 5, 31, 18, 14, tzinfo=UTC), Tier.MONTHLY)
    backup = verified_backup(catalog, datetime(2026, 5, 31, 18, 15, tzinfo=UTC))
    assert decide_promotion(backup, Tier.MONTHLY, [there], policy, NOW).promote
    assert not decide_promotion(backup, Tier.MONTHLY, [there], POLICY, NOW).promote

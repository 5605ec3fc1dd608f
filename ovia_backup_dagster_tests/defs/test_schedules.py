"""The daily backup runs once a day, also when summer time changes; a bad expression falls back and is reported."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.defs.schedules import usable_schedules
from ovia_backup_dagster_tests.defs.support import load

BERLIN = ZoneInfo("Europe/Berlin")


def schedule(**settings: str) -> dg.ScheduleDefinition:
    found = build_defs(load({"POSTGRES_HOST": "db.example.org", **settings})).resolve_schedule_def(
        "daily_backup_schedule"
    )
    assert isinstance(found, dg.ScheduleDefinition)
    return found


def ticks(found: dg.ScheduleDefinition, begin: datetime, count: int) -> list[datetime]:
    """The instants at which the daemon launches a run, by the function that it uses."""
    each = schedule_execution_time_iterator(begin.timestamp(), found.cron_schedule, found.execution_timezone)
    return list(itertools.islice(each, count))


@pytest.mark.parametrize(
    ("begin", "offsets"),
    [
        # The last Sunday of March: 02:00 to 03:00 does not exist.
        (datetime(2026, 3, 27, 12, tzinfo=UTC), [1, 2, 2, 2]),
        # The last Sunday of October: 02:00 to 03:00 occurs twice.
        (datetime(2026, 10, 23, 12, tzinfo=UTC), [2, 1, 1, 1]),
    ],
)
def test_one_tick_a_day_when_summer_time_changes(begin: datetime, offsets: list[int]) -> None:
    found = ticks(schedule(BACKUP_TIMEZONE="Europe/Berlin"), begin, 4)
    local = [tick.astimezone(BERLIN) for tick in found]
    first = begin.date() + timedelta(days=1)
    assert [tick.date() for tick in local] == [first + timedelta(days=n) for n in range(4)]
    assert {(tick.hour, tick.minute) for tick in local} == {(3, 0)}
    assert [tick.utcoffset() for tick in local] == [timedelta(hours=hours) for hours in offsets]


def test_one_tick_a_day_all_year() -> None:
    found = ticks(schedule(BACKUP_TIMEZONE="Europe/Berlin"), datetime(2026, 1, 1, tzinfo=UTC), 365)
    days = [tick.astimezone(BERLIN).date() for tick in found]
    assert days == [date(2026, 1, 1) + timedelta(days=n) for n in range(365)]


def test_the_default_time_zone_is_utc() -> None:
    begin = datetime(2026, 10, 23, 3, 0, 1, tzinfo=UTC)
    assert ticks(schedule(), begin, 3) == [datetime(2026, 10, day, 3, tzinfo=UTC) for day in (24, 25, 26)]


@pytest.mark.parametrize("cron", ["30 4 * * *", "0 */6 * * *", "@daily", "@midnight", " 0 3 * * 1-5 "])
def test_other_cron_expressions_are_accepted(cron: str) -> None:
    found = schedule(BACKUP_SCHEDULE=cron)
    assert found.cron_schedule == cron.strip()
    assert len(ticks(found, datetime(2026, 1, 1, tzinfo=UTC), 3)) == 3


@pytest.mark.parametrize("cron", ["a b c d e", "99 99 * * *", "0 3 31 2 *", "nonsense", "* * * * * *"])
def test_a_bad_expression_falls_back_and_says_so(cron: str) -> None:
    settings = load({"POSTGRES_HOST": "db.example.org", "BACKUP_SCHEDULE": cron, "BACKUP_TIMEZONE": "Europe/Berlin"})
    found = schedule(BACKUP_SCHEDULE=cron, BACKUP_TIMEZONE="Europe/Berlin")
    assert found.cron_schedule == "0 3 * * *"
    assert found.execution_timezone == "Europe/Berlin"
    (problem,) = usable_schedules(settings).problems
    assert problem.startswith(f"BACKUP_SCHEDULE: {cron!r} is not a cron expression")


def test_a_good_expression_is_kept() -> None:
    settings = load({"POSTGRES_HOST": "db.example.org"})
    assert usable_schedules(settings) is settings


def test_a_bad_time_zone_falls_back() -> None:
    found = schedule(BACKUP_TIMEZONE="Mars/Phobos", BACKUP_SCHEDULE="30 4 * * *")
    assert (found.cron_schedule, found.execution_timezone) == ("30 4 * * *", "UTC")


def test_a_tick_requests_the_whole_job(instance: dg.DagsterInstance, volume: Path) -> None:
    defs = build_defs(load({"POSTGRES_HOST": "db.example.org", "BACKUP_DIR": str(volume)}))
    found = defs.resolve_schedule_def("daily_backup_schedule")
    assert isinstance(found, dg.ScheduleDefinition)
    at = datetime(2026, 11, 22, 3, tzinfo=UTC)
    context = dg.build_schedule_context(instance=instance, scheduled_execution_time=at, repository_def=None)
    tick = found.evaluate_tick(context)
    (request,) = tick.run_requests or []
    assert request.run_config in (None, {})
    assert request.asset_selection is None
    assert found.job_name == "daily_backup_job"

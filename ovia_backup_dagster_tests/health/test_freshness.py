"""The age of the newest dump that counts, and its description."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import ClockError, NotFreshError
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.health.freshness import FreshnessLevel, judge_freshness
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

MAX_AGE = 26 * HOUR
SECOND = timedelta(seconds=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path)


@pytest.mark.parametrize(
    ("age", "level"),
    [
        (timedelta(0), FreshnessLevel.FRESH),
        (3 * HOUR, FreshnessLevel.FRESH),
        (MAX_AGE - SECOND, FreshnessLevel.FRESH),
        (MAX_AGE, FreshnessLevel.FRESH),
        (MAX_AGE + SECOND, FreshnessLevel.STALE),
        (30 * DAY, FreshnessLevel.STALE),
        (timedelta(minutes=-5), FreshnessLevel.FRESH),
        (timedelta(minutes=-5, seconds=-1), FreshnessLevel.FUTURE),
        (-365 * DAY, FreshnessLevel.FUTURE),
    ],
)
def test_the_level_depends_on_the_age(catalog: Catalog, age: timedelta, level: FreshnessLevel) -> None:
    backup = verified_backup(catalog, NOW - age)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.age, found.newest) == (level, age, backup)
    assert found.verified
    assert found.max_age == MAX_AGE


def test_no_backup_at_all_is_missing(catalog: Catalog) -> None:
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, found.age, found.verified) == (FreshnessLevel.MISSING, None, None, False)
    assert found.proven is False
    assert found.text == "there is no backup"


def test_a_bad_newest_backup_is_skipped_and_counted(catalog: Catalog) -> None:
    good = verified_backup(catalog, NOW - 30 * HOUR)
    bad = [judged(catalog, publish(catalog, NOW - n * HOUR), good=False) for n in (1, 2)]
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, found.rejected) == (FreshnessLevel.STALE, good, tuple(bad))
    assert found.text == f"the newest backup, {good}, is 1 d 6 h old, 4 h too old (verified); newer than it: 2 bad ones"


def test_only_bad_backups_count_as_missing(catalog: Catalog) -> None:
    judged(catalog, publish(catalog, NOW - HOUR), good=False)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert found.level is FreshnessLevel.MISSING
    assert found.text == "there is no backup but 1 bad one"


def test_an_older_bad_backup_is_not_counted(catalog: Catalog) -> None:
    judged(catalog, publish(catalog, NOW - 2 * HOUR), good=False)
    verified_backup(catalog, NOW - HOUR)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).rejected == ()


def test_an_unverified_dump_counts_and_is_marked(catalog: Catalog) -> None:
    backup = publish(catalog, NOW - HOUR)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, found.verified) == (FreshnessLevel.FRESH, backup, False)
    assert found.text == f"the newest backup, {backup}, is 1 h old (not verified yet)"


def test_the_old_scripts_unverified_dump_counts(catalog: Catalog) -> None:
    backup = write_dump(catalog, NOW - HOUR)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, found.verified) == (FreshnessLevel.FRESH, backup, False)


def test_a_dump_being_written_does_not_count(catalog: Catalog) -> None:
    write_dump(catalog, NOW, age=timedelta(minutes=1))
    old = verified_backup(catalog, NOW - 3 * DAY)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, found.rejected) == (FreshnessLevel.STALE, old, ())


def test_only_a_dump_being_written_is_missing(catalog: Catalog) -> None:
    write_dump(catalog, NOW, age=timedelta(minutes=1))
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).level is FreshnessLevel.MISSING


def test_a_weekly_backup_counts_where_the_daily_one_is_gone(catalog: Catalog) -> None:
    weekly = verified_backup(catalog, NOW - HOUR, Tier.WEEKLY)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).newest == weekly


def test_a_date_in_the_future_is_explained_by_a_clock(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW + 2 * HOUR)
    text = judge_freshness(catalog.backups(), MAX_AGE, NOW).text
    assert text == f"the newest backup, {backup}, is dated 2 h in the future: a clock is wrong"


def test_a_bad_backup_of_the_future_hides_no_fresh_one(catalog: Catalog) -> None:
    judged(catalog, publish(catalog, NOW + DAY), good=False)
    backup = verified_backup(catalog, NOW - HOUR)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest, len(found.rejected)) == (FreshnessLevel.FRESH, backup, 1)


def test_dumps_no_longer_verified_are_reported(catalog: Catalog) -> None:
    last = verified_backup(catalog, NOW - 2 * MAX_AGE)
    newest = publish(catalog, NOW - HOUR)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).level is FreshnessLevel.FRESH
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW + SECOND)
    assert (found.level, found.newest) == (FreshnessLevel.UNVERIFIED, newest)
    assert "not verified" in found.text
    judged(catalog, newest, good=True)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW + SECOND).level is FreshnessLevel.FRESH
    assert last.path.exists()


def test_our_dumps_that_were_never_verified_are_reported(catalog: Catalog) -> None:
    publish(catalog, NOW - MAX_AGE)
    publish(catalog, NOW - HOUR)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).level is FreshnessLevel.FRESH
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW + SECOND).level is FreshnessLevel.UNVERIFIED


def test_the_old_scripts_dumps_may_wait_for_verification(catalog: Catalog) -> None:
    for days in range(1, 8):
        write_dump(catalog, NOW + HOUR - days * DAY, age=days * DAY)
    assert judge_freshness(catalog.backups(), MAX_AGE, NOW).level is FreshnessLevel.FRESH


def test_an_empty_file_is_no_backup(catalog: Catalog) -> None:
    """The old script leaves one when it cannot connect: it must not look fresh."""
    empty = write_dump(catalog, NOW - HOUR)
    times = empty.path.stat()
    empty.path.write_bytes(b"")
    os.utime(empty.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, len(found.rejected)) == (FreshnessLevel.MISSING, 1)


AGAIN = "launch daily_backup_job in the Dagster UI, or run: ovia-backup dump && ovia-backup verify latest"
NOT_RUNNING = "daily_backup_job fails or does not run: is its schedule on, and the Dagster daemon alive?"


@pytest.mark.parametrize(
    ("level", "age", "error", "why", "fix"),
    [
        (FreshnessLevel.STALE, 27 * HOUR, NotFreshError, NOT_RUNNING, AGAIN),
        (FreshnessLevel.UNVERIFIED, HOUR, NotFreshError, "verification fails, or does not run", AGAIN),
        (
            FreshnessLevel.FUTURE,
            -HOUR,
            ClockError,
            "the clock here is wrong, or that of the machine that made it was",
            "date -u",
        ),
        (FreshnessLevel.MISSING, None, NotFreshError, "none was made yet, or the volume is not mounted", "findmnt -T"),
    ],
)
def test_trouble_names_cause_and_remedy(
    catalog: Catalog, level: FreshnessLevel, age: timedelta | None, error: type[NotFreshError], why: str, fix: str
) -> None:
    if level is FreshnessLevel.UNVERIFIED:
        publish(catalog, NOW - 28 * HOUR)
        publish(catalog, NOW - HOUR)
    elif age is not None:
        verified_backup(catalog, NOW - age)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)

    trouble = found.trouble

    assert found.level is level
    assert trouble is not None
    assert type(trouble) is error
    assert (trouble.what, trouble.why) == (found.text, why)
    assert fix in trouble.fix
    assert not trouble.transient
    assert "\n" not in str(trouble)


def test_with_only_bad_backups_the_volume_is_not_blamed(catalog: Catalog) -> None:
    judged(catalog, publish(catalog, NOW - HOUR), good=False)

    trouble = judge_freshness(catalog.backups(), MAX_AGE, NOW).trouble

    assert trouble is not None
    assert (trouble.why, trouble.fix) == (NOT_RUNNING, AGAIN)


def test_moving_the_future_dump_away_clears_the_alert(catalog: Catalog) -> None:
    good = verified_backup(catalog, NOW - HOUR)
    ahead = verified_backup(catalog, NOW + DAY)
    trouble = judge_freshness(catalog.backups(), MAX_AGE, NOW).trouble
    assert trouble is not None
    assert f"move {ahead} out of the folder" in trouble.fix

    ahead.path.rename(catalog.root.parent / ahead.path.name)

    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert (found.level, found.newest) == (FreshnessLevel.FRESH, good)
    assert found.trouble is None

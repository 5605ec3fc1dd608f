"""Promoting and pruning in a real folder: the order of events, and what a refusal leaves behind."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupNotFoundError, LockHeldError, NotVerifiedError, VolumeError
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.sidecars import HELD, VERIFIED
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention import holding, promote_and_prune
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.conftest import snapshot
from ovia_backup_dagster_tests.support.crashes import killed_at_each_step
from ovia_backup_dagster_tests.support.factories import (
    CONTENT,
    DAY,
    HOUR,
    NOW,
    drilled,
    held,
    judged,
    make_catalog,
    names,
    publish,
    verified_backup,
    write_dump,
)

POLICY = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))
ONE_DAY = replace(POLICY, keep={**POLICY.keep, Tier.DAILY: 1})


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path / "backups")


def dailies(catalog: Catalog, days: int) -> list[Backup]:
    """A verified dump of each of the last days, newest first; the newest is an hour old."""
    return [verified_backup(catalog, NOW - HOUR - n * DAY) for n in range(days)]


# --- Promoting ----------------------------------------------------------------------------------------------------


def test_a_verified_backup_is_promoted_once_a_week(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    first = promote_and_prune.promote(catalog, backup, POLICY, NOW)
    assert first.weekly is not None
    assert first.reason == "Sunday's first verified dump"
    second = promote_and_prune.promote(catalog, backup, POLICY, NOW)
    assert second.weekly is None
    assert second.reason == f"the week of Sunday 2026-06-14 has its weekly backup, {first.weekly}"
    assert catalog.backups(Tier.WEEKLY) == [first.weekly]


def test_a_verified_dump_that_changed_is_not_promoted(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    assert backup.state(NOW) is State.VERIFIED
    backup.path.write_bytes(CONTENT + b"altered")
    assert promote_and_prune.promote(catalog, backup, POLICY, NOW).weekly is None
    assert catalog.backups(Tier.WEEKLY) == []


def test_a_dump_found_bad_meanwhile_is_not_promoted(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    assert backup.state(NOW) is State.VERIFIED
    judged(catalog, catalog.refresh(backup), good=False)
    assert promote_and_prune.promote(catalog, backup, POLICY, NOW).weekly is None


def test_a_removed_backup_is_not_promoted(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    remove_backup(catalog, backup)
    with pytest.raises(BackupNotFoundError):
        promote_and_prune.promote(catalog, backup, POLICY, NOW)
    assert names(catalog.folder(Tier.WEEKLY)) == set()


def test_a_bad_weekly_of_the_same_dump_is_replaced(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    judged(catalog, promote_backup(catalog, backup, Tier.WEEKLY, NOW), good=False)
    promoted = promote_and_prune.promote(catalog, backup, POLICY, NOW)
    assert promoted.weekly is not None
    assert promoted.weekly.state(NOW) is State.VERIFIED


def test_promotion_is_refused_while_the_lock_is_held(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    with catalog.lock("dumping ovia", NOW), pytest.raises(LockHeldError, match="dumping ovia"):
        promote_and_prune.promote(catalog, backup, POLICY, NOW)
    assert catalog.backups(Tier.WEEKLY) == []


ALL_TIERS = replace(POLICY, keep={**POLICY.keep, Tier.MONTHLY: 2, Tier.YEARLY: 1})


def test_a_backup_is_promoted_to_each_tier_that_is_on(catalog: Catalog) -> None:
    backup = held(catalog, verified_backup(catalog, NOW - DAY), NOW + DAY)
    promoted = promote_and_prune.promote(catalog, backup, ALL_TIERS, NOW)
    assert [made.tier for made in promoted.made.values()] == [Tier.WEEKLY, Tier.MONTHLY, Tier.YEARLY]
    assert promoted.reason == (
        "weekly: Sunday's first verified dump; monthly: the first verified dump of the month 2026-06; "
        "yearly: the first verified dump of the year 2026"
    )
    for tier, made in promoted.made.items():
        assert made.path == catalog.root / tier / f"ovia_{tier}_2026-06-14_120000.dump"
        assert made.path.samefile(backup.path)
        assert made.state(NOW) is State.VERIFIED
        assert made.hold is not None
        assert made.promotion is not None
        assert made.promotion.promoted_from == str(backup)
    later = promote_and_prune.promote(catalog, verified_backup(catalog, NOW - HOUR), ALL_TIERS, NOW)
    assert later.made == {}
    assert f"monthly: the month 2026-06 has its monthly backup, {promoted.made[Tier.MONTHLY]}" in later.reason
    # A person's release applies to all copies.
    holding.release(catalog, backup, NOW)
    assert catalog.held(NOW) == []


def test_a_tier_that_is_off_gets_nothing_and_no_folder(catalog: Catalog) -> None:
    assert set(promote_and_prune.promote(catalog, verified_backup(catalog, NOW - DAY), POLICY, NOW).made) == {
        Tier.WEEKLY
    }
    assert names(catalog.root) == {"daily", "weekly", ".lock"}


@pytest.mark.exhaustive
def test_three_years_of_dumps_fill_each_tier_to_its_count(catalog: Catalog) -> None:
    """The first dump of each month and year is kept."""
    for n in range(0, 3 * 365, 5):
        now = NOW - (3 * 365 - n) * DAY
        promote_and_prune.promote(catalog, verified_backup(catalog, now - HOUR), ALL_TIERS, now)
        promote_and_prune.prune(catalog, ALL_TIERS, now)
    assert [f"{b.started_at:%Y-%m-%d}" for b in catalog.backups(Tier.MONTHLY)] == ["2026-06-05", "2026-05-01"]
    assert [f"{b.started_at:%Y-%m-%d}" for b in catalog.backups(Tier.YEARLY)] == ["2026-01-01"]
    assert len(catalog.backups(Tier.WEEKLY)) == 4
    assert len(catalog.backups(Tier.DAILY)) == 7
    # After the tier is turned off again, its backups stay, whatever happens to the others.
    stood = catalog.backups(Tier.MONTHLY, Tier.YEARLY)
    done = promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert done.removed
    assert not [key for key in done.removed if key.startswith(("monthly", "yearly"))]
    assert catalog.backups(Tier.MONTHLY, Tier.YEARLY) == stood


# --- Pruning ------------------------------------------------------------------------------------------------------


def test_pruning_removes_dumps_with_all_their_sidecars(catalog: Catalog) -> None:
    made = dailies(catalog, 10)
    done = promote_and_prune.prune(catalog, POLICY, NOW)
    assert catalog.backups() == made[:7]
    assert done.removed == tuple(f"daily/{b}" for b in reversed(made[7:]))
    assert done.freed_bytes == 3 * len(CONTENT)
    assert done.swept == ()
    assert not [n for n in names(catalog.folder(Tier.DAILY)) if any(n.startswith(str(b)) for b in made[7:])]


def test_a_second_pruning_changes_nothing(catalog: Catalog) -> None:
    dailies(catalog, 10)
    promote_and_prune.prune(catalog, POLICY, NOW)
    before = snapshot(catalog.root)
    assert promote_and_prune.prune(catalog, POLICY, NOW).removed == ()
    assert snapshot(catalog.root) == before


def test_pruning_the_daily_copy_leaves_the_weekly_one_whole(catalog: Catalog) -> None:
    made = dailies(catalog, 10)
    weekly = promote_backup(catalog, made[9], Tier.WEEKLY, NOW)
    promote_and_prune.prune(catalog, POLICY, NOW)
    assert catalog.backups(Tier.WEEKLY) == [weekly]
    assert weekly.path.read_bytes() == CONTENT
    assert catalog.refresh(weekly).state(NOW) is State.VERIFIED


def test_drilled_and_held_backups_stay(catalog: Catalog) -> None:
    made = dailies(catalog, 5)
    drilled(catalog, made[4])
    held(catalog, made[3], NOW + DAY)
    held(catalog, made[2], NOW - DAY)
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == [made[0], made[3], made[4]]


def test_an_unreadable_hold_keeps_the_backup(catalog: Catalog) -> None:
    made = dailies(catalog, 3)
    made[2].sidecar(HELD).write_text("garbage", encoding="utf-8")
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == [made[0], made[2]]


def test_an_unreadable_verdict_blocks_all_removals(catalog: Catalog) -> None:
    made = dailies(catalog, 3)
    made[0].sidecar(VERIFIED).write_text("garbage", encoding="utf-8")
    with pytest.raises(NotVerifiedError):
        promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == made


def test_pruning_refuses_when_the_newest_is_unverified(catalog: Catalog) -> None:
    dailies(catalog, 10)
    newest = publish(catalog, NOW)
    before = snapshot(catalog.root)
    with pytest.raises(NotVerifiedError, match=f"daily/{newest}, is unverified. Next: verify it") as refused:
        promote_and_prune.prune(catalog, POLICY, NOW)
    assert refused.value.what == "nothing was removed"
    assert snapshot(catalog.root) == before
    assert lock_holder(catalog.root) is None


def test_pruning_refuses_when_the_newest_is_bad(catalog: Catalog) -> None:
    dailies(catalog, 10)
    judged(catalog, publish(catalog, NOW), good=False)
    before = snapshot(catalog.root)
    with pytest.raises(NotVerifiedError, match="is bad"):
        promote_and_prune.prune(catalog, POLICY, NOW)
    assert snapshot(catalog.root) == before


def test_pruning_refuses_when_the_newest_was_altered(catalog: Catalog) -> None:
    made = dailies(catalog, 10)
    made[0].path.write_bytes(b"")
    before = snapshot(catalog.root)
    with pytest.raises(NotVerifiedError):
        promote_and_prune.prune(catalog, POLICY, NOW)
    assert snapshot(catalog.root) == before


def test_pruning_an_empty_volume_refuses(catalog: Catalog) -> None:
    with pytest.raises(NotVerifiedError, match="there is no backup"):
        promote_and_prune.prune(catalog, POLICY, NOW)


def test_the_old_scripts_growing_dump_is_not_pruned(catalog: Catalog) -> None:
    made = dailies(catalog, 3)
    writing = write_dump(catalog, NOW, age=timedelta(minutes=1))
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == [writing, made[0]]


def test_the_newest_two_bad_backups_stay(catalog: Catalog) -> None:
    newest = verified_backup(catalog, NOW - HOUR)
    bad = [judged(catalog, publish(catalog, NOW - n * DAY), good=False) for n in range(2, 6)]
    promote_and_prune.prune(catalog, POLICY, NOW)
    assert catalog.backups() == [newest, *bad[:2]]


def test_other_databases_and_foreign_files_stay(catalog: Catalog) -> None:
    other = make_catalog(catalog.root, "other")
    others = dailies(other, 10)
    (catalog.folder(Tier.DAILY) / "notes.txt").write_text("mine", encoding="utf-8")
    before = snapshot(catalog.root)
    dailies(catalog, 3)
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    after = snapshot(catalog.root)
    assert other.backups() == others
    assert {name: after[name] for name in before} == before


def test_pruning_first_sweeps_what_a_crash_left_and_says_so(catalog: Catalog) -> None:
    made = dailies(catalog, 2)
    leftover = catalog.temporary(made[0].name)
    leftover.write_bytes(b"half")
    assert promote_and_prune.prune(catalog, POLICY, NOW).swept == (leftover.name,)
    assert not leftover.exists()


def test_a_vanished_dump_does_not_stop_pruning(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dailies(catalog, 4)
    real_unlink = os.unlink

    def somebody_was_faster(path: Path) -> None:
        real_unlink(path)
        if path == made[2].path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "unlink", somebody_was_faster)
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == made[:1]
    assert len(names(catalog.folder(Tier.DAILY))) == len(("dump", "manifest", "globals", "verdict"))


def test_a_backup_that_cannot_be_removed_is_reported(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dailies(catalog, 4)
    stubborn = made[3]  # the oldest backup is removed first
    real_unlink = os.unlink

    def unlink(path: Path) -> None:
        if path == stubborn.path:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real_unlink(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(VolumeError, match="1 of 3 backups could not be removed") as reported:
        promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert str(stubborn.path) in reported.value.why
    assert "busy" in reported.value.why
    assert catalog.backups() == [made[0], stubborn]
    assert catalog.refresh(stubborn).state(NOW) is State.VERIFIED


def test_a_folder_named_like_a_leftover_does_not_stop_pruning(catalog: Catalog) -> None:
    made = dailies(catalog, 3)
    catalog.temporary(made[0].name).mkdir()
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == made[:1]


def test_pruning_is_refused_while_the_lock_is_held(catalog: Catalog) -> None:
    dailies(catalog, 10)
    before = snapshot(catalog.root)
    with catalog.lock("dumping ovia", NOW), pytest.raises(LockHeldError, match="dumping ovia"):
        promote_and_prune.prune(catalog, POLICY, NOW)
    assert snapshot(catalog.root) == before


def test_a_wait_to_prune_names_the_lock_holder(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    dailies(catalog, 1)
    told: list[str] = []
    with catalog.lock("dumping ovia", NOW), pytest.raises(LockHeldError):
        promote_and_prune.prune(catalog, POLICY, NOW, told.append)
    assert [holder.partition(" (")[0] for holder in told] == ["dumping ovia"]


def test_a_dump_made_during_a_long_wait_is_seen(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dailies(catalog, 3)
    catalog.lock_wait_seconds = 3600
    passed = 0.0
    real_clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real_clock() + passed)
    with ExitStack() as other:
        other.enter_context(catalog.lock("dumping ovia", NOW))

        def half_an_hour_passes(_: str) -> None:
            nonlocal passed
            passed = 1800.0
            publish(catalog, NOW + HOUR / 2)
            other.close()

        with pytest.raises(NotVerifiedError, match="is unverified"):
            promote_and_prune.prune(catalog, ONE_DAY, NOW, half_an_hour_passes)
    assert catalog.backups()[1:] == made


def test_the_catalog_is_read_again_under_the_lock(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    dailies(catalog, 3)
    looked_at: list[str | None] = []
    real_backups = Catalog.backups

    def backups(self: Catalog, *tiers: Tier) -> list[Backup]:
        looked_at.append(lock_holder(self.root))
        return real_backups(self, *tiers)

    monkeypatch.setattr(Catalog, "backups", backups)
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert [(holder or "nobody").partition(" (")[0] for holder in looked_at] == ["pruning"]


def test_pruning_killed_at_any_step_keeps_what_must_stay(tmp_path: Path) -> None:
    volumes = iter(range(10_000))
    current: list[Catalog] = []

    def prepare() -> Callable[[], object]:
        catalog = make_catalog(tmp_path / str(next(volumes)))
        dailies(catalog, 3)
        current[:] = [catalog]
        return lambda: promote_and_prune.prune(catalog, ONE_DAY, NOW)

    for _ in killed_at_each_step(prepare):
        (catalog,) = current
        left = catalog.backups()
        assert {b.state(NOW) for b in left} == {State.VERIFIED}
        assert left[0].started_at == NOW - HOUR
        # The next run gets the lock, and finishes the pruning.
        promote_and_prune.prune(catalog, ONE_DAY, NOW)
        assert [b.started_at for b in catalog.backups()] == [NOW - HOUR]
        assert len(names(catalog.folder(Tier.DAILY))) == len(("dump", "manifest", "globals", "verdict"))


# --- Previewing ---------------------------------------------------------------------------------------------------


def test_a_preview_decides_the_same_without_lock_or_change(catalog: Catalog) -> None:
    made = dailies(catalog, 10)
    catalog.temporary(made[0].name).touch()
    before = snapshot(catalog.root)
    with catalog.lock("dumping ovia", NOW):
        previewed = promote_and_prune.preview(catalog.backups(), POLICY, NOW)
    assert snapshot(catalog.root) == before
    assert promote_and_prune.prune(catalog, POLICY, NOW).plan == previewed


def test_a_preview_says_why_nothing_would_be_removed(catalog: Catalog) -> None:
    dailies(catalog, 10)
    newest = publish(catalog, NOW)
    previewed = promote_and_prune.preview(catalog.backups(), POLICY, NOW)
    assert previewed.held == f"the newest backup, daily/{newest}, is unverified"
    assert previewed.removals == ()


# --- Releasing ----------------------------------------------------------------------------------------------------


def test_a_released_backup_is_pruned_like_others(catalog: Catalog) -> None:
    made = dailies(catalog, 3)
    backup = held(catalog, made[2], NOW + 30 * DAY)
    released = holding.release(catalog, backup, NOW)
    assert released.hold is not None
    assert (released.hold.released_at, released.hold.until) == (NOW, NOW + 30 * DAY)
    assert released.state(NOW) is State.VERIFIED
    promote_and_prune.prune(catalog, ONE_DAY, NOW)
    assert catalog.backups() == made[:1]


def test_a_backup_without_a_hold_cannot_be_released(catalog: Catalog) -> None:
    backup = verified_backup(catalog, NOW - DAY)
    before = snapshot(catalog.root)
    with pytest.raises(BackupNotFoundError, match="is not on hold"):
        holding.release(catalog, backup, NOW)
    assert snapshot(catalog.root) == before


def test_a_hold_is_released_once(catalog: Catalog) -> None:
    backup = held(catalog, verified_backup(catalog, NOW - DAY), NOW + DAY)
    holding.release(catalog, backup, NOW)
    with pytest.raises(BackupNotFoundError, match="is not on hold"):
        holding.release(catalog, backup, NOW + HOUR)


def test_a_removed_backup_cannot_be_released(catalog: Catalog) -> None:
    backup = held(catalog, verified_backup(catalog, NOW - DAY), NOW + DAY)
    remove_backup(catalog, backup)
    with pytest.raises(BackupNotFoundError):
        holding.release(catalog, backup, NOW)


# --- Ninety nights ------------------------------------------------------------------------------------------------


def test_ninety_nights_leave_seven_days_and_four_weeks(catalog: Catalog) -> None:
    began = NOW.replace(hour=3)
    failed = {*range(20, 35), 50, 51}
    counts = []
    for n in range(90):
        night = began + n * DAY
        now = night + timedelta(minutes=30)
        backup = judged(catalog, publish(catalog, night), good=n not in failed)
        promote_and_prune.promote(catalog, backup, POLICY, now)
        if n in failed:
            with pytest.raises(NotVerifiedError):
                promote_and_prune.prune(catalog, POLICY, now)
        else:
            promote_and_prune.prune(catalog, POLICY, now)
        good = [b for b in catalog.backups() if b.state(now) is State.VERIFIED]
        counts.append(len(good))
    last = began + 89 * DAY
    good_dailies = [b for b in catalog.backups(Tier.DAILY) if b.state(last) is State.VERIFIED]
    assert [b.started_at for b in good_dailies] == [last - n * DAY for n in range(7)]
    sundays = [last - n * DAY for n in range(28) if (last - n * DAY).weekday() == Weekday.SUNDAY]
    assert [b.started_at for b in catalog.backups(Tier.WEEKLY)] == sundays
    # Never fewer good backups than the night before, and never more than seven daily and four weekly ones.
    assert counts == sorted(counts)
    assert counts[-1] == 7 + 4
    bad = [b for b in catalog.backups() if b.state(last) is State.BAD]
    assert [b.started_at for b in bad] == [began + 51 * DAY, began + 50 * DAY]

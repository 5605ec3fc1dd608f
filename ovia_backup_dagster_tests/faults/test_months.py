"""Months of simulated days with random faults; the invariants are checked each day.

Real files, catalog, promotion and pruning; fake archives, and no server.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, NotVerifiedError
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster.retention.plan import BAD_KEEP
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.faults.conftest import Record, rounds
from ovia_backup_dagster_tests.faults.harness import files, nothing_broken
from ovia_backup_dagster_tests.support.crashes import die_at, in_a_child
from ovia_backup_dagster_tests.support.factories import DAY, HOUR, NOW, held, judged, make_catalog, publish

#: Number of simulated days: FEW is one life of 60 days, MANY is ten lives of 200.
FEW, MANY = 60, 2000
POLICY = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))

#: The possible faults of a day, with their weights.
FATES = {
    "good": 60,
    "no run at all": 6,
    "the dump fails": 5,
    "the dump is killed": 4,
    "the dump is bad": 5,
    "the dump lacks a table": 3,
    "no verification": 5,
    "only the newest is verified": 5,
    "no promotion": 4,
    "no pruning": 4,
    "pruning is killed": 5,
    "promotion is killed": 4,
    "two runs": 4,
    "a loss of rows": 2,
    "the clock is an hour back": 3,
    "rot of an old one": 2,
}


@dataclass
class Life:
    """A volume that is simulated day by day.

    Attributes:
        now: the simulated time.
        fates: how often each fate occurred.
        proven: the file of the newest verified backup, and its content.
        rotten: dates whose dump rotted; they count as lost.
    """

    catalog: Catalog
    rng: Random
    now: datetime = NOW
    fates: Counter[str] = field(default_factory=Counter)
    proven: tuple[Path, bytes] | None = None
    rotten: set[str] = field(default_factory=set)
    most_files: int = 0

    def day(self) -> None:
        self.now += DAY
        fate = self.rng.choices(list(FATES), list(FATES.values()))[0]
        self.fates[fate] += 1
        now, self.now = self.now, self.now - HOUR if fate == "the clock is an hour back" else self.now
        before = {b.path: b.state(self.now) for b in self.catalog.backups()}
        intact = {b.path for b in self.catalog.backups() if b.judgement and b.judgement.intact}
        newest_days = self._days(before)
        self._live(fate)
        self._check(before, intact, newest_days)
        self.now = now

    def _live(self, fate: str) -> None:
        catalog = self.catalog
        if fate == "no run at all":
            return
        if fate == "the dump fails":
            return
        if fate == "the dump is killed":
            with_a_kill(lambda: self._publish(), self.rng)
            return
        made = self._publish()
        if fate == "two runs":
            self._verdict(made, good=True)
            self.now += HOUR
            made = self._publish()
        if fate == "a loss of rows" and self.proven is not None:
            before = next(b for b in catalog.backups() if b.path == self.proven[0])
            held(catalog, before, self.now + 30 * DAY)
        if fate == "rot of an old one":
            old = self.rng.choice(catalog.backups())
            if self.proven is None or not old.path.samefile(self.proven[0]):
                os.truncate(old.path, 7)
                self.rotten.add(old.path.name[-22:-12])
        if fate == "no verification":
            # Without a verdict, the later stages refuse.
            self._prune()
            return
        # Like the daily run, also verify earlier backups that have no verdict.
        for backup in catalog.backups() if fate != "only the newest is verified" else ():
            if backup != made and backup.state(self.now) is State.UNVERIFIED:
                self._verdict(backup, good=backup.path.stat().st_size > 7)
        self._verdict(made, good=fate not in ("the dump is bad", "the dump lacks a table"))
        if fate in ("the dump is bad", "the dump lacks a table"):
            self._prune()
            return
        if fate == "promotion is killed":
            with_a_kill(lambda: promote_and_prune.promote(catalog, made, POLICY, self.now), self.rng)
        elif fate != "no promotion":
            promote_and_prune.promote(catalog, made, POLICY, self.now)
        if fate == "pruning is killed":
            with_a_kill(lambda: promote_and_prune.prune(catalog, POLICY, self.now), self.rng)
        elif fate != "no pruning":
            self._prune()

    def _publish(self) -> Backup:
        catalog = self.catalog
        with catalog.lock("dumping", self.now):
            sweep_abandoned(catalog)
            name = catalog.free_name(self.now)
            return publish(catalog, name.started_at, content=f"PGDMP of {name.started_at:%F %T}".encode())

    def _verdict(self, backup: Backup, *, good: bool) -> None:
        judged(self.catalog, self.catalog.refresh(backup), good=good)

    def _prune(self) -> None:
        newest = self.catalog.backups()[0]
        try:
            promote_and_prune.prune(self.catalog, POLICY, self.now)
        except NotVerifiedError:
            assert newest.state(self.now) is not State.VERIFIED
        else:
            assert newest.state(self.now) is State.VERIFIED, "it pruned on the strength of something unproven"

    @staticmethod
    def _days(states: dict[Path, State]) -> set[str]:
        return {
            path.name[-22:-12] for path, state in states.items() if state is State.VERIFIED and "_daily_" in path.name
        }

    def _check(self, before: dict[Path, State], intact: set[Path], days: set[str]) -> None:
        backups, now = self.catalog.backups(), self.now
        states = {b.path: b.state(now) for b in backups}
        whole = [b for b in backups if b.path.stat().st_size > 7]
        assert sum(nothing_broken(b, now) for b in whole) == len(whole)
        # The newest verified backup of the day before is still there, unchanged.
        proven = [b for b in backups if states[b.path] is State.VERIFIED]
        if self.proven is not None:
            assert self.proven[0].exists(), "the newest proven backup is gone"
            assert self.proven[0].read_bytes() == self.proven[1]
        if proven:
            self.proven = proven[0].path, proven[0].path.read_bytes()
        # Verified backups of seven days are kept, or of all days if there were fewer.
        kept = self._days(states)
        days = days - self.rotten
        assert len(kept) >= min(7, len(days)), (kept, days)
        assert set(sorted(days | kept)[-7:]) <= kept
        # A backup without a verdict is never removed, and an intact one not before seven newer days are there.
        for path, state in before.items():
            if state is State.UNVERIFIED:
                assert path in states, f"{path.name} was removed unproven"
            if path not in states:
                assert state in (State.VERIFIED, State.BAD)
                if state is State.BAD and path in intact:
                    newer = {d for d in kept | days if d > path.name[-22:-12]}
                    assert len(newer) >= 7
        self.most_files = max(self.most_files, len(files(self.catalog.root)))
        assert lock_holder(self.catalog.root) is None

    def settled(self) -> None:
        """Assert that after three good days only those backups are left that the policy keeps."""
        for _ in range(3):
            self.now += DAY
            made = self._publish()
            for backup in self.catalog.backups():
                if backup != made and backup.state(self.now) is State.UNVERIFIED:
                    self._verdict(backup, good=backup.path.stat().st_size > 7)
            self._verdict(made, good=True)
            promote_and_prune.promote(self.catalog, made, POLICY, self.now)
            plan = promote_and_prune.prune(self.catalog, POLICY, self.now).plan
        left = self.catalog.backups()
        states = Counter(b.state(self.now) for b in left)
        reasons = Counter(d.reason.split(" (")[0].split(":")[0] for d in plan.decisions if d.keep)
        exceptions = reasons["held"] + reasons["bad but intact"]
        assert states[State.UNVERIFIED] == 0
        assert states[State.BAD] <= BAD_KEEP + reasons["bad but intact"]
        weekly = [b for b in left if b.tier is Tier.WEEKLY and b.state(self.now) is State.VERIFIED]
        assert len(weekly) <= 4 + reasons["held"]
        assert len(left) <= 7 + 4 + 2 + BAD_KEEP + exceptions
        names = files(self.catalog.root)
        assert not [name for name in names if name.endswith(".tmp")]


def with_a_kill(operation: object, rng: Random) -> None:
    """Run the operation in a process that is killed before one of its first 29 steps, or ends before that step."""
    assert callable(operation)
    step = rng.randrange(1, 30)

    def run() -> None:
        die_at(step)
        try:
            operation()
        except BackupError:
            return

    assert in_a_child(run) in (0, -9)


@rounds(few=FEW, many=MANY)
def test_the_invariants_hold_for_months_of_random_days(tmp_path: Path, rng: Random, record: Record, times: int) -> None:
    days = min(times, 200)
    lives = times // days
    fates: Counter[str] = Counter()
    most = 0
    for number in range(lives):
        life = Life(make_catalog(tmp_path / str(number)), rng)
        for _ in range(days):
            life.day()
        life.settled()
        fates += life.fates
        most = max(most, life.most_files)
    assert most < 200
    if times == MANY:
        assert set(fates) == set(FATES)
    record(
        fault=f"{times:,} simulated days: " + ", ".join(f"{fate} ({fates[fate]})" for fate in FATES),
        how=f"{lives} lives of {days} days each, real files, catalog, promotion and pruning; fake archives, "
        "each day's fate by chance",
        times=times,
        where="",
        saw="each day: nothing listed broken, the newest proven there, seven days or all there were, nothing removed "
        "without a verdict",
        then=f"after three good days only what the policy names was left; never more than {most} files",
    )


@pytest.mark.parametrize("hours", [1, 25])
def test_a_clock_that_was_ahead_blocks_nothing(tmp_path: Path, hours: int) -> None:
    """A dump dated in the future does not count; when its time has come, it is an ordinary backup and is pruned."""
    catalog = make_catalog(tmp_path)
    future = judged(catalog, publish(catalog, NOW + timedelta(hours=hours)))
    for day in range(10):
        now = NOW + day * DAY
        made = judged(catalog, publish(catalog, catalog.free_name(now).started_at))
        promote_and_prune.promote(catalog, made, POLICY, now)
        promote_and_prune.prune(catalog, POLICY, now)
        assert made in catalog.backups()
    assert future.path not in {b.path for b in catalog.backups(Tier.DAILY)}

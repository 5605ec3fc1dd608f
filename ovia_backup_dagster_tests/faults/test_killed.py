"""``kill -9`` at random moments of each operation: of all its processes, or of the parent only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster_tests.faults.conftest import MANY, Record, rounds
from ovia_backup_dagster_tests.faults.harness import (
    Ended,
    Guard,
    Place,
    Reader,
    a_day_passes,
    at_moment,
    command_of,
    duration,
    ended_by_then,
    leftovers,
    moments,
    older_copies,
    state_of,
    stopped,
    until,
)

PROGRAM = Path(sys.executable).with_name("ovia-backup")


class Kills:
    """Rounds of one fault on one volume; each round is one day.

    Attributes:
        hit: phase -> how many kills fell into it.
        late: kills that came after the operation had ended; they do not count.
        swept: leftover files of killed operations, which the next runs swept.
    """

    def __init__(self, place: Place, wanted: int) -> None:
        self.place = place
        self.wanted = wanted
        self.hit: Counter[str] = Counter()
        self.late = self.swept = self.looks = self.seen = self.recovered = 0
        place.chain()
        a_day_passes(place)

    def moments(self, rng: Random, seconds: float) -> Iterator[float]:
        """Yield random moments within an operation of this duration, until enough kills have hit it."""
        while (left := self.wanted - self.hit.total()) > 0:
            assert self.late < 2 * self.wanted + 10, f"it ends before it is killed: {self.hit}"
            late = self.late
            yield from moments(rng, left, seconds)
            # Many kills came too late: the measured duration was too long.
            seconds *= 0.9 if self.late - late > left / 4 else 1

    def round(self, arguments: tuple[str, ...], moment: float, phase: Callable[[str, Ended], str]) -> None:
        guard = Guard(self.place)
        with Reader(guard), ended_by_then(self.place.start(*arguments)) as running:
            at_moment(running.began, moment)
            programs = set(running.children().values())
            if running.running:
                running.kill()
            ended = running.wait()
        self.count(phase(next(iter(programs), ""), ended) if ended.killed else None)
        self.check(guard)

    def count(self, phase: str | None) -> None:
        if phase is None:
            self.late += 1
        else:
            self.hit[phase] += 1

    def check(self, guard: Guard) -> None:
        guard.after_the_fault()
        self.swept += len(leftovers(self.place.root))
        guard.recovered()
        self.recovered += 1
        self.looks += guard.looks
        self.seen += guard.seen
        a_day_passes(self.place)

    @property
    def where(self) -> str:
        return ", ".join(f"{count} {phase}" for phase, count in self.hit.most_common())

    @property
    def saw(self) -> str:
        return f"looked {self.looks:,} times, at {self.seen:,} backups; none broken"

    @property
    def then(self) -> str:
        return f"ended well, each time; {self.swept} leftovers swept"


@pytest.mark.exhaustive
@rounds(few=1, many=100)
def test_the_next_run_recovers_from_a_killed_dump(place: Place, rng: Random, record: Record, times: int) -> None:
    kills = Kills(place, times)
    seconds = duration(lambda: place.run("dump"))
    place.chain()
    a_day_passes(place)
    for moment in kills.moments(rng, seconds):
        before = len(place.catalog.backups(Tier.DAILY))

        def phase(program: str, ended: Ended, before: int = before) -> str:
            if len(place.catalog.backups(Tier.DAILY)) > before:
                return "after it was published"
            if "pg_dump of" not in ended.output:
                return "before pg_dump"
            return f"while {program} ran" if program else "between pg_dump and its publication"

        kills.round(("dump",), moment, phase)

    if times >= MANY:
        assert kills.hit["while pg_dump ran"] >= 0.1 * times
        assert kills.swept > 0
    record(
        fault="`ovia-backup dump` killed, pg_dump with it",
        how="`kill -9` of the process group at random moments",
        times=times,
        where=kills.where,
        saw=kills.saw,
        then=kills.then,
    )


@pytest.mark.exhaustive
@rounds(few=1, many=100)
def test_an_orphaned_pg_dump_keeps_the_lock(place: Place, rng: Random, record: Record, times: int) -> None:
    """The lock stays held while the orphaned pg_dump writes, so that no other process gets it."""
    kills = Kills(place, times)
    seconds = duration(lambda: place.run("dump"))
    place.chain()
    a_day_passes(place)
    outlived = 0
    for moment in kills.moments(rng, seconds):
        guard = Guard(place)
        with Reader(guard), ended_by_then(place.start("dump")) as running:
            at_moment(running.began, moment)
            writer = next((pid for pid in running.children() if f"--file={place.root}" in " ".join(command_of(pid))), 0)
            if writer:
                # Stop pg_dump, so that it does not end before its parent.
                os.kill(writer, signal.SIGSTOP)
                stopped(writer)
            if running.running:
                running.kill(group=False)
            killed = running.wait().killed
            if writer and killed and state_of(writer):
                outlived += 1
                assert lock_holder(place.root) is not None
                assert "holds its lock" in place.run("prune").refused()
                os.kill(writer, signal.SIGCONT)
                # A process without a command line has freed its memory and is exiting: it no longer writes.
                while any(command_of(writer)):
                    held = lock_holder(place.root)
                    assert held or not any(command_of(writer)), "pg_dump writes, and the lock is free"
        kills.count("the parent" if killed else None)
        until(lambda: lock_holder(place.root) is None, 10)
        kills.check(guard)

    if times >= MANY:
        assert outlived >= 0.2 * times
        assert kills.swept > 0
    record(
        fault="`ovia-backup dump` killed, pg_dump lives on",
        how="`kill -9` of the parent alone at random moments",
        times=times,
        where=f"{outlived} times pg_dump outlived its parent; the lock stayed held until it had ended, and another "
        "command was refused meanwhile",
        saw=kills.saw,
        then=kills.then,
    )


@rounds(few=1, many=100)
def test_the_next_run_recovers_from_a_killed_verify(place: Place, rng: Random, record: Record, times: int) -> None:
    kills = Kills(place, times)
    place.run("dump")
    seconds = duration(lambda: place.run("verify"))
    a_day_passes(place)
    for moment in kills.moments(rng, seconds):
        place.run("dump")
        made = place.catalog.backups(Tier.DAILY)[0]

        def phase(program: str, ended: Ended, made: Backup = made) -> str:
            if place.catalog.refresh(made).judgement is not None:
                return "after the verdict was there"
            if program:
                return f"while {program} ran"
            return "while it hashed or wrote the verdict" if "hashing" in ended.output else "before it read anything"

        kills.round(("verify",), moment, phase)

    record(
        fault="`ovia-backup verify` killed",
        how="`kill -9` of the process group at random moments",
        times=times,
        where=kills.where,
        saw=kills.saw,
        then=kills.then,
    )


@pytest.mark.exhaustive
@rounds(few=1, many=100)
def test_the_next_run_recovers_from_a_killed_promote(
    small_place: Place, rng: Random, record: Record, times: int
) -> None:
    place = small_place
    kills = Kills(place, times)

    def prepared() -> None:
        for weekly in place.catalog.backups(Tier.WEEKLY):
            remove_backup(place.catalog, weekly)

    def once() -> None:
        prepared()
        place.run("promote")

    seconds = duration(once, 5)
    for moment in kills.moments(rng, seconds):
        prepared()

        def phase(_: str, ended: Ended) -> str:
            if place.catalog.backups(Tier.WEEKLY):
                return "after the weekly one was there"
            return "halfway" if any(place.catalog.folder(Tier.WEEKLY).iterdir()) else "before its first file"

        kills.round(("promote",), moment, phase)

    record(
        fault="`ovia-backup promote` killed",
        how="`kill -9` at random moments",
        times=times,
        where=kills.where,
        saw=kills.saw,
        then=kills.then,
    )


@pytest.mark.exhaustive
@rounds(few=1, many=100)
def test_the_next_run_recovers_from_a_killed_prune(small_place: Place, rng: Random, record: Record, times: int) -> None:
    place = small_place
    kills = Kills(place, times)
    many = 40

    def prepared() -> None:
        older_copies(place, place.catalog.backups(Tier.DAILY)[0], many)

    def seconds() -> float:
        prepared()
        with ended_by_then(place.start("prune")) as running:
            running.wait()
            return time.monotonic() - running.began

    for moment in kills.moments(rng, max(seconds() for _ in range(3))):
        prepared()
        plan = promote_and_prune.preview(place.catalog.backups(), place.system.policy, datetime.now(UTC))
        kept = {d.candidate.key for d in plan.decisions if d.keep}
        doomed = len(plan.removals)

        def phase(_: str, ended: Ended, kept: set[str] = kept, doomed: int = doomed) -> str:
            left = {f"{b.tier}/{b}" for b in place.catalog.backups()}
            assert kept <= left, "it removed what was to stay"
            more = len(left) - len(kept)
            return "after the last was removed" if more == 0 else "before the first" if more == doomed else "in between"

        kills.round(("prune",), moment, phase)

    if times >= MANY:
        assert kills.hit["in between"] > 0.1 * times
    record(
        fault="`ovia-backup prune` killed",
        how=f"`kill -9` at random moments of removing some {many} backups",
        times=times,
        where=kills.where,
        saw=kills.saw,
        then=kills.then,
    )


@pytest.mark.exhaustive
@rounds(few=1, many=20)
def test_the_next_run_recovers_from_an_early_kill(place: Place, rng: Random, record: Record, times: int) -> None:
    """A newly started program, not a fork: the start of the interpreter and the imports are included."""
    kills = Kills(place, times)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            (str(PROGRAM), "dump"),
            env=place.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    seconds = duration(lambda: start().wait(), 2)
    a_day_passes(place)
    for moment in kills.moments(rng, seconds):
        guard = Guard(place)
        with Reader(guard), start() as process:
            try:
                code = process.wait(moment)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        kills.count("before its end" if code == -signal.SIGKILL else None)
        kills.check(guard)
    record(
        fault="the program `ovia-backup dump` killed, from its first instant on",
        how="`kill -9` of the process group, start of the interpreter included",
        times=times,
        saw=kills.saw,
        then=kills.then,
    )

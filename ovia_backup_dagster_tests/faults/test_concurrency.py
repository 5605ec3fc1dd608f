"""Concurrent work on one volume: daily runs, operators at the command line and, exhaustively, two real Dagsters."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Self

import pytest

from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.faults.conftest import Record, rounds
from ovia_backup_dagster_tests.faults.harness import (
    CHAIN,
    Ended,
    Guard,
    Place,
    Reader,
    Running,
    a_day_passes,
    ended_by_then,
)

AT_ONCE = 4
#: Expected refusals: nothing is removed or promoted while another process's newer dump has no verdict yet.
REFUSED = ("nothing was removed: the newest backup", "is unverified; only a verified backup is promoted")


class OneAtATime:
    """Another process that records the largest number of dumps being written at the same time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Self:
        stop, self._stop = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._stop)
            most = 0
            while not select.select([stop], [], [], 0.002)[0]:
                names = [p.name for tier in Tier for p in (self._root / tier.value).glob(".*.dump.tmp")]
                most = max(most, len(names))
            os.write(answer, bytes([most]))
            os._exit(0)
        os.close(stop)
        os.close(answer)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        with open(self._answer, "rb") as pipe:
            self.most = pipe.read()[0]
        os.waitpid(self._pid, 0)


def patient(place: Place) -> Place:
    return replace(place, settings={**place.settings, "BACKUP_LOCK_WAIT_MINUTES": "5"})


def ended_well(command: str, ended: Ended) -> str:
    if ended.code == 0:
        return "ended well"
    assert ended.code == 1, ended.output
    assert command in ("prune", "promote"), ended.output
    assert any(word in ended.output for word in REFUSED), ended.output
    return f"`{command}` refused, as another run's newer dump had no verdict yet"


@rounds(few=1, many=20)
def test_concurrent_daily_runs_and_commands_all_end_well(
    small_place: Place, rng: Random, record: Record, times: int
) -> None:
    """Three daily runs, and one operator who gives the same commands in random order; each waits for the lock."""
    outcomes: Counter[str] = Counter()
    looks = seen = 0
    busy = patient(small_place)
    busy.chain()
    a_day_passes(busy)
    for _ in range(times):
        guard = Guard(busy)
        began = datetime.now(UTC)
        with Reader(guard), OneAtATime(busy.root) as watch, ExitStack() as stack:
            # Each lane runs its commands one after the other.
            lanes = [list(CHAIN) for _ in range(AT_ONCE - 1)] + [rng.sample(CHAIN, len(CHAIN))]
            running: dict[int, tuple[str, Running]] = {}
            while any(lanes) or running:
                for number, lane in enumerate(lanes):
                    if lane and number not in running:
                        command = lane.pop(0)
                        running[number] = (command[0], stack.enter_context(ended_by_then(busy.start(*command))))
                for number, (name, one) in list(running.items()):
                    if not one.running:
                        outcomes[ended_well(name, one.wait())] += 1
                        del running[number]
                select.select([], [], [], 0.005)
        assert watch.most == 1
        assert sum(b.started_at >= began.replace(microsecond=0) for b in busy.catalog.backups(Tier.DAILY)) == AT_ONCE
        guard.after_the_fault()
        guard.recovered()
        looks, seen = looks + guard.looks, seen + guard.seen
        a_day_passes(busy)
    record(
        fault=f"{AT_ONCE} at once on one volume",
        how=f"{AT_ONCE - 1} daily runs and a command line that does things in any order",
        times=times,
        where=", ".join(f"{count} commands {outcome}" for outcome, count in outcomes.most_common())
        + "; never two dumps being written",
        saw=f"looked {looks:,} times, at {seen:,} backups; none broken",
        then="ended well, each time",
    )


def test_no_command_waits_longer_than_its_lock_timeout(place: Place) -> None:
    """With BACKUP_LOCK_WAIT_MINUTES=0, a second dump fails at once and says that the volume is in use."""
    place.chain()
    with ExitStack() as stack:
        several = [stack.enter_context(ended_by_then(place.start("dump"))) for _ in range(4)]
        ends = [one.wait() for one in several]
    assert any(end.code == 0 for end in ends)
    for end in ends:
        assert end.code == 0 or "is in use" in end.refused()


@pytest.mark.exhaustive
def test_two_dagsters_and_a_command_line_all_end_well(place: Place, tmp_path: Path, record: Record) -> None:
    """Two Dagster installations that do not know of each other, each with its own DAGSTER_HOME."""
    times = 2
    outcomes: Counter[str] = Counter()
    looks = seen = 0
    busy = patient(place)
    busy.chain()
    a_day_passes(busy)
    for _ in range(times):
        guard = Guard(busy)
        with Reader(guard), OneAtATime(busy.root) as watch, ExitStack() as stack:
            dagsters = [stack.enter_context(daily_backup_job(busy, tmp_path / f"home{n}")) for n in range(2)]
            while any(one.poll() is None for one in dagsters):
                for command in CHAIN:
                    outcomes[f"commands {ended_well(command[0], busy.run(*command))}"] += 1
            for one in dagsters:
                output = one.communicate()[0]
                assert one.returncode == 0 or REFUSED[0] in output, output
                outcomes["runs ended well" if one.returncode == 0 else "runs refused to prune"] += 1
        assert watch.most == 1
        guard.after_the_fault()
        guard.recovered()
        looks, seen = looks + guard.looks, seen + guard.seen
        a_day_passes(busy)
    record(
        fault="two Dagsters and a command line on one volume",
        how="`daily_backup_job` of two instances, and the commands of the daily run over and over",
        times=times,
        where=", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        + "; never two dumps being written",
        saw=f"looked {looks:,} times, at {seen:,} backups; none broken",
        then="ended well, each time",
    )


def daily_backup_job(place: Place, home: Path) -> subprocess.Popen[str]:
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text("utf-8"), "utf-8")
    module = "ovia_backup_dagster.definitions"
    return subprocess.Popen(
        (sys.executable, "-W", "ignore", "-m", "dagster", "job", "execute", "-m", module, "-j", "daily_backup_job"),
        cwd=REPOSITORY,
        env={**place.environment, "DAGSTER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

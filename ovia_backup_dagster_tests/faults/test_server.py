"""PostgreSQL is killed, restarted or paused at random moments of a dump."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster_tests.conftest import PortCluster, running_cluster
from ovia_backup_dagster_tests.faults.conftest import SCALE, Record, place_for, rounds
from ovia_backup_dagster_tests.faults.harness import (
    Ended,
    Guard,
    Place,
    Reader,
    a_day_passes,
    at_moment,
    duration,
    ended_by_then,
    kill,
    leftovers,
    moments,
    paused,
    until,
)

PAUSE_SECONDS = 2.0


@pytest.fixture(scope="module")
def cluster(bin_dir: Path) -> Iterator[PortCluster]:
    """A server for these tests alone, which they kill and pause."""
    with running_cluster(bin_dir) as cluster:
        embedded_server.create_database(cluster.connection(), bin_dir, "ovia", SCALE)
        yield cluster


@pytest.fixture
def place(cluster: PortCluster, bin_dir: Path, tmp_path: Path) -> Place:
    return place_for(cluster.connection("ovia"), bin_dir, tmp_path / "backups", tmp_path)


def provoked(
    place: Place,
    rng: Random,
    times: int,
    fault: Callable[[], None],
    repair: Callable[[], None],
    check: Callable[[Ended], str],
) -> tuple[str, str]:
    """Provoke a fault of the server in several rounds; return where it hit and what a reader saw."""
    outcomes: Counter[str] = Counter()
    looks = seen = 0
    place.chain()
    a_day_passes(place)
    seconds = duration(lambda: place.run("dump"))
    place.chain()
    a_day_passes(place)
    for moment in moments(rng, times, seconds):
        guard = Guard(place)
        with Reader(guard), ended_by_then(place.start("dump")) as running:
            at_moment(running.began, moment)
            fault()
            ended = running.wait()
        assert leftovers(place.root) == []
        guard.after_the_fault()
        repair()
        outcomes[check(ended)] += 1
        guard.recovered()
        looks, seen = looks + guard.looks, seen + guard.seen
        a_day_passes(place)
    where = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return where, f"looked {looks:,} times, at {seen:,} backups; none broken"


def failed_or_done(ended: Ended) -> str:
    """Classify the outcome: the error names the server, or the dump already had all of its data."""
    if ended.code == 0:
        return "had its data"
    line = ended.refused()
    known = (
        "closed the connection",
        "refused",
        "No such file",
        "starting up",
        "shutting down",
        "terminating",
        "lost",
        "PQgetCopyData",
    )
    assert any(word in line for word in known), line
    return "failed, naming the server"


@rounds(few=1, many=20)
def test_a_dump_of_a_killed_server_fails_or_is_complete(
    cluster: PortCluster, place: Place, rng: Random, record: Record, times: int
) -> None:
    where, saw = provoked(place, rng, times, lambda: kill(cluster), cluster.start, failed_or_done)
    record(
        fault="PostgreSQL killed while it is dumped",
        how="`kill -9` of all its processes at random moments of `dump`",
        times=times,
        where=where,
        saw=saw,
        then="ended well, each time, once the server was started",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=20)
def test_a_dump_of_a_restarted_server_fails_or_is_complete(
    cluster: PortCluster, place: Place, rng: Random, record: Record, times: int
) -> None:
    def restart() -> None:
        cluster.stop("immediate")
        cluster.start()

    where, saw = provoked(place, rng, times, restart, lambda: None, failed_or_done)
    record(
        fault="PostgreSQL restarted while it is dumped",
        how="`pg_ctl stop -m immediate` and `start` at random moments of `dump`",
        times=times,
        where=where,
        saw=saw,
        then="ended well, each time",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=20)
def test_a_dump_waits_for_a_paused_server(
    cluster: PortCluster, place: Place, rng: Random, record: Record, times: int
) -> None:
    def pause() -> None:
        with paused(cluster):
            time.sleep(PAUSE_SECONDS)

    def check(ended: Ended) -> str:
        assert ended.code == 0, ended.output
        return "waited, and made its dump"

    where, saw = provoked(place, rng, times, pause, lambda: None, check)
    record(
        fault="PostgreSQL stands still for a while",
        how=f"`SIGSTOP` to all its processes at random moments of `dump`, `SIGCONT` {PAUSE_SECONDS:.0f} s later",
        times=times,
        where=where,
        saw=saw,
        then="ended well, each time",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=10)
def test_sigterm_ends_a_dump_of_a_hanging_server(
    cluster: PortCluster, place: Place, rng: Random, record: Record, times: int
) -> None:
    """The dump waits up to ``BACKUP_STALL_MINUTES`` for the server. SIGTERM before that ends it; nothing is left."""
    place.chain()
    a_day_passes(place)
    seconds = duration(lambda: place.run("dump"))
    longest, stuck, guard = 0.0, 0, Guard(place)
    for moment in moments(rng, 10 * times, 0.6 * seconds):
        with Reader(guard), ended_by_then(place.start("dump")) as running:
            at_moment(running.began, moment)
            with paused(cluster):
                # Long enough for a dump to end that already had all of its data.
                with suppress(AssertionError):
                    until(lambda running=running: not running.running, 2 * seconds)  # type: ignore[misc]
                if running.running:
                    stuck += 1
                    assert lock_holder(place.root) is not None or "pg_dump of" not in running.output
                    began = time.monotonic()
                    running.send(signal.SIGTERM)
                    assert running.wait(30).code == 128 + signal.SIGTERM
                    longest = max(longest, time.monotonic() - began)
                else:
                    running.wait()
        assert lock_holder(place.root) is None
        assert leftovers(place.root) == []
        guard.after_the_fault()
        if stuck == times:
            break
    assert stuck == times
    guard.recovered()
    record(
        fault="PostgreSQL stands still forever",
        how="`SIGSTOP` to all its processes at random moments of `dump`, then `SIGTERM` to the command, as the run's "
        "time limit sends it",
        times=times,
        where=f"it waits until then, holding the lock; once told to end it took at most {longest:.0f} s",
        saw=f"looked {guard.looks:,} times, at {guard.seen:,} backups; none broken",
        then="ended well, once the server went on",
    )

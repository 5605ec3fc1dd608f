"""Webserver, daemon and run are killed during a dump, and Dagster is started again on the same history."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import dump_that_waits
from ovia_backup_dagster_tests.faults.conftest import Record
from ovia_backup_dagster_tests.faults.harness import Guard, Place, Reader, a_day_passes, children_of, until
from ovia_backup_dagster_tests.support.dagster_ui import Dagster

pytestmark = pytest.mark.exhaustive

OUTCOMES = {
    "the run": "its code server saw it end, and marked the run failed",
    "webserver and daemon": "the run went on, and succeeded",
    "everything": "no process was left that knew of the run: it counted as running, and launches waited, until "
    "`max_runtime_seconds` (as shipped, 6 hours) had passed; then it was marked failed",
}


def run_worker(dagster: Dagster) -> list[int]:
    """The run's process: the one that has pg_dump as a child."""
    return [pid for pid in dagster.processes() if any(n.startswith("pg_") for n in children_of(pid).values())]


@pytest.mark.parametrize("what", ["the run", "webserver and daemon", "everything"])
def test_the_next_run_succeeds_after_a_kill_of_dagster(
    what: str, database: Connection, place: Place, home: Path, record: Record
) -> None:
    place.chain()
    a_day_passes(place)
    dagster = Dagster(place, home)
    try:
        with Reader(guard := Guard(place)):
            with dump_that_waits(database) as one_waits:
                run = dagster.launch()
                until(one_waits, 120)
                workers = run_worker(dagster)
                assert len(workers) == 1
                dagster.kill(workers if what == "the run" else dagster.servers(everything=what == "everything"))
                assert lock_holder(place.root) is not None, "pg_dump writes, and the lock is free"
            until(lambda: what == "webserver and daemon" or lock_holder(place.root) is None, 60)
            if what != "the run":
                dagster = Dagster(place, home)
            # Launched at once, the second run waits in the queue for its turn.
            launched = dagster.launch()
            first = dagster.ended(run, 240)
            again = dagster.ended(launched, 240)
        assert first == ("SUCCESS" if what == "webserver and daemon" else "FAILURE")
        assert again == "SUCCESS"
        guard.after_the_fault()
        guard.recovered()
    finally:
        dagster.end()
    record(
        fault=f"Dagster: {what} killed in the middle of a dump",
        how="`kill -9`; started again on the same history" if what != "the run" else "`kill -9`",
        times=1,
        where=OUTCOMES[what],
        saw=f"looked {guard.looks:,} times, at {guard.seen:,} backups; none broken",
        then="the next launch succeeded",
    )

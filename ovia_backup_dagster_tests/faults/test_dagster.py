"""A webserver, a daemon and a run that are killed in the middle of a dump, and started again on the same history."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import REPOSITORY, dump_that_waits, free_port
from ovia_backup_dagster_tests.e2e.test_demo import _LAUNCH, _RUN
from ovia_backup_dagster_tests.faults.conftest import Record
from ovia_backup_dagster_tests.faults.harness import Guard, Place, Reader, a_day_passes, children_of, state_of, until

pytestmark = pytest.mark.exhaustive

#: How often it looks, and how long it takes a run for alive of whose process it knows nothing; else as we ship it.
QUICKER = {
    "poll_interval_seconds: 60": "poll_interval_seconds: 2",
    "max_runtime_seconds: 21600": "max_runtime_seconds: 90",
}
OUTCOMES = {
    "the run": "its code server saw it end, and marked the run failed",
    "webserver and daemon": "the run went on, and succeeded",
    "everything": "no process was left that knew of the run: it counted as running, and launches waited, until "
    "`max_runtime_seconds` (as shipped, 6 hours) had passed; then it was marked failed",
}
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Dagster:
    """``dg dev`` on a home, with what is said to it over GraphQL."""

    def __init__(self, place: Place, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.log = home / "dagster.log"
        command = ("-w", str(REPOSITORY / "workspace.yaml"), "--host", "127.0.0.1", "--port", str(self.port))
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                (Path(sys.executable).with_name("dg"), "dev", *command),
                cwd=REPOSITORY,
                env={**place.environment, "DAGSTER_HOME": str(home)},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        until(self._answers, 120)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return bool(self.graphql("{ version }")["version"])
        return False

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def launch(self) -> str:
        launched = self.graphql(_LAUNCH)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def status(self, run: str) -> str:
        return str(self.graphql(_RUN, id=run)["runOrError"]["status"])

    def ended(self, run: str, seconds: float = 180) -> str:
        until(lambda: self.status(run) in ENDED, seconds, pause=0.5)
        return self.status(run)

    def processes(self) -> dict[int, str]:
        """All that it has started, the client programs left out: process -> command line."""
        found: dict[int, str] = {}
        new = [self.process.pid]
        while new:
            pid = new.pop()
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ")
            new += [child for child, name in children_of(pid).items() if not name.startswith("pg_")]
        return found

    def servers(self, *, everything: bool) -> list[int]:
        """The webserver, the daemon and who started them; or the code servers and runs, too."""
        marks = ("/dg dev", "dagster_webserver", "dagster._daemon", "dagster-webserver", "dagster-daemon")
        processes = self.processes().items()
        found = [pid for pid, command in processes if everything or any(mark in command for mark in marks)]
        assert len(found) >= 3, processes
        return found

    def kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.pid in pids:
            self.process.wait()
        until(lambda: not any(state_of(pid) for pid in pids))

    def end(self) -> None:
        """All of it, and what killed runs have left: programs that follow their logs."""
        if self.process.poll() is None:
            self.kill(list(self.processes()))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self.home).encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    shipped = (REPOSITORY / "dagster.yaml").read_text("utf-8")
    for ours, quicker in QUICKER.items():
        assert ours in shipped
        shipped = shipped.replace(ours, quicker)
    (home / "dagster.yaml").write_text(shipped, "utf-8")
    return home


def run_worker(dagster: Dagster) -> list[int]:
    """The process of the run: the one that has pg_dump for a child."""
    return [pid for pid in dagster.processes() if any(n.startswith("pg_") for n in children_of(pid).values())]


@pytest.mark.parametrize("what", ["the run", "webserver and daemon", "everything"])
def test_killed_in_the_middle_of_a_run(
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
            # Asked for at once, it waits its turn by itself.
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

"""Dagster with its web server and daemon as processes, and the GraphQL that its UI sends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ovia_backup_dagster_tests.conftest import REPOSITORY, free_port
from ovia_backup_dagster_tests.faults.harness import Place, children_of, state_of, until


def awaited(found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
    return result


LAUNCH = """mutation($job: String!, $config: RunConfigData) { launchRun(executionParams: { selector: {
    repositoryLocationName: "ovia_backup_dagster", repositoryName: "__repository__", jobName: $job },
    runConfigData: $config }) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class Dagster:
    """``dg dev`` on a home, with its GraphQL calls."""

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

    def launch(self, job: str = "daily_backup_job") -> str:
        launched = self.graphql(LAUNCH, job=job)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def status(self, run: str) -> str:
        return str(self.graphql(RUN, id=run)["runOrError"]["status"])

    def ended(self, run: str, seconds: float = 180) -> str:
        until(lambda: self.status(run) in ENDED, seconds, pause=0.5)
        return self.status(run)

    def processes(self) -> dict[int, str]:
        """All processes that it started, without client programs: process -> command line."""
        found: dict[int, str] = {}
        new = [self.process.pid]
        while new:
            pid = new.pop()
            with suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ")
            new += [child for child, name in children_of(pid).items() if not name.startswith("pg_")]
        return found

    def servers(self, *, everything: bool) -> list[int]:
        """The webserver, the daemon and the process that started them; also code servers and runs if asked for."""
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
        """End all of its processes, and the log followers that killed runs left."""
        if self.process.poll() is None:
            self.kill(list(self.processes()))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if str(self.home).encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)

"""The README's first two commands, as processes: ``make demo`` and ``make dev``.

The Makefile only installs and calls ``ovia-backup demo``; the tests run the same program with a small database.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from ovia_backup_dagster.demo import demonstration as run
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster_tests.conftest import free_port
from ovia_backup_dagster_tests.support.dagster_ui import LAUNCH, RUN, awaited
from ovia_backup_dagster_tests.support.exhaustive import thinned

PROGRAM = Path(sys.executable).with_name("ovia-backup")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The demo's folder; its server and data are gone afterwards."""
    folder = tmp_path / "demo"
    yield folder
    Cluster(embedded_server.bin_dir(), run._private_folder(folder)).remove()


def environment() -> dict[str, str]:
    # Settings of a real deployment must not lead the demo astray.
    return {**os.environ, "POSTGRES_HOST": "production", "BACKUP_DIR": "/nowhere", "PGPORT": "1", "DAGSTER_HOME": "/no"}


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), "demo", "--scale", "0.02", "--folder", str(folder), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=180, check=False)


def processes_of(folder: Path) -> list[str]:
    """Processes that name the demo's folder or its server's in their command line."""
    marks = (str(folder), str(run._private_folder(folder)))
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            lines.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return [line for line in lines if any(mark in line for mark in marks)]


@pytest.mark.parametrize("runs", thinned([1, 2]))
def test_each_demo_adds_a_verified_backup(folder: Path, runs: int) -> None:
    for count in range(1, runs + 1):
        result = demo(folder)

        assert result.returncode == 0, result.stderr
        assert "make dev" in result.stdout
        assert "Brought back from there alone: " in result.stdout
        assert "weekly/ovia_weekly_" in result.stdout
        assert len(list((folder / "backups" / "daily").glob("*.dump"))) == count
        assert len(list((folder / "backups" / "daily").glob("*.verified.json"))) == count
        assert processes_of(folder) == []


@pytest.mark.exhaustive
def test_an_interrupted_load_starts_again(folder: Path) -> None:
    assert demo(folder).returncode == 0
    (run._private_folder(folder) / "loaded").unlink()

    result = demo(folder)

    assert result.returncode == 0, result.stderr
    # The daily backup was drilled, the weekly one verified.
    assert "proven" in result.stdout
    assert "verified" in result.stdout


@pytest.mark.exhaustive
def test_a_failing_job_is_reported(folder: Path) -> None:
    (folder).mkdir()
    (folder / "backups").write_text("not a folder")

    result = demo(folder)

    assert result.returncode == 1
    assert "cannot use the backup folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert processes_of(folder) == []


def test_the_children_of_a_background_job_heed_sigint() -> None:
    """Its shell started it with SIGINT ignored, which its children would inherit."""
    script = """
        import signal
        from ovia_backup_dagster.demo.process_groups import end_group, start_group
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = start_group(("sleep", "600"))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        end_group(child)
        print(-child.returncode)"""
    done = subprocess.run(
        (sys.executable, "-c", dedent(script)), capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout.strip() == str(int(signal.SIGINT))


@pytest.mark.exhaustive
def test_the_ui_serves_the_demo(folder: Path) -> None:
    """Webserver, daemon, schedules and sensor run, the history is kept, and a launch through GraphQL makes a backup."""
    assert demo(folder).returncode == 0
    with serving(folder) as graphql:
        state = graphql(_STATE)
        repository = state["repositoriesOrError"]["nodes"][0]
        assert {s["name"]: s["scheduleState"]["status"] for s in repository["schedules"]} == {
            "base_backup_schedule": "RUNNING",
            "daily_backup_schedule": "RUNNING",
            "history_pruning_schedule": "RUNNING",
            "kept_databases_schedule": "RUNNING",
            "offsite_verification_schedule": "RUNNING",
            "pitr_drill_schedule": "RUNNING",
            "restore_drill_schedule": "RUNNING",
        }
        sensors = {s["name"]: s["sensorState"]["status"] for s in repository["sensors"]}
        assert sensors["backup_freshness_sensor"] == "RUNNING"
        jobs = [run["jobName"] for run in state["runsOrError"]["results"]]
        assert jobs[-2:] == ["restore_drill_job", "daily_backup_job"]

        run_id = launch(graphql, "daily_backup_job")
        made = [json.loads(path.read_text()) for path in (folder / "backups" / "daily").glob("*.dump.json")]
        assert run_id in {manifest["run_id"] for manifest in made}
        awaited(lambda: graphql(_TICKS)["sensorOrError"]["sensorState"]["ticks"], 90)
        # The first tick requests a run that shows green without a message; Overview lists it and the demo's own runs.
        first = graphql(_TICKS)["sensorOrError"]["sensorState"]["ticks"][-1]
        assert first["status"] == "SUCCESS", first
        assert len(first["runIds"]) == 1
        on_overview = [run for run in graphql(_RUNS)["runsOrError"]["results"] if run["repositoryOrigin"]]
        assert {run["jobName"] for run in on_overview} == {
            "daily_backup_job",
            "restore_drill_job",
            "freshness_alert_job",
        }
        assert all(run["hasReExecutePermission"] for run in on_overview)
    assert processes_of(folder) == []


@pytest.mark.exhaustive
def test_the_demo_is_restored_and_undone_in_its_ui(folder: Path) -> None:
    """In a new folder; restore_job plans by default, and the plan's word confirms the restore and the undo."""
    folder.mkdir()
    with serving(folder) as graphql:
        assert len(list((folder / "backups" / "daily").glob("*.verified.json"))) == 1
        for plan, action in (({}, "restore"), ({"action": "plan_undo"}, "undo")):
            word = confirmed_by(graphql, launch(graphql, "restore_job", plan))
            launch(graphql, "restore_job", {"action": action, "confirm": word})
    records = [json.loads(path.read_text()) for path in (folder / "backups" / "restores").glob("*.json")]
    assert sorted((record["order"]["mode"], record["outcome"]) for record in records) == [
        ("swap", "done"),
        ("undo", "done"),
    ]


def launch(graphql: Callable[..., dict[str, Any]], job: str, config: dict[str, str] | None = None) -> str:
    """Launch a job, and wait for its success; return the run's id."""
    run_config = {"ops": {"restore": {"config": config}}} if config else {}
    launched = graphql(LAUNCH, {"job": job, "config": run_config})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = str(launched["run"]["runId"])
    status = awaited(
        lambda: (s := graphql(RUN, {"id": run_id})["runOrError"]["status"]) in ("SUCCESS", "FAILURE") and s, 120
    )
    assert status == "SUCCESS"
    return run_id


def confirmed_by(graphql: Callable[..., dict[str, Any]], run_id: str) -> str:
    """The confirmation word that a plan printed."""
    events = graphql(_LOG, {"id": run_id})["logsForRun"]["events"]
    [word] = re.findall(r"confirm: (ovia-\w+)", "\n".join(event.get("message") or "" for event in events))
    return str(word)


@contextmanager
def serving(folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """The UI on a free port; ended by SIGINT to its process group, as by Ctrl-C in a terminal."""
    port = free_port()
    command = [str(PROGRAM), "demo", "--serve", "--port", str(port), "--scale", "0.02", "--folder", str(folder)]
    log = folder / "serve.log"

    def graphql(query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def answers() -> bool:
        try:
            return bool(graphql("{ version }")["version"])
        except (urllib.error.URLError, ConnectionError):
            return False

    with (
        open(log, "wb") as output,
        subprocess.Popen(command, env=environment(), stdout=output, stderr=output, start_new_session=True) as process,
    ):
        try:
            awaited(lambda: answers() or process.poll() is not None, 180)
            assert process.poll() is None, log.read_text()
            yield graphql
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


_STATE = """{
  repositoriesOrError { ... on RepositoryConnection { nodes {
    schedules { name scheduleState { status } } sensors { name sensorState { status } } } } }
  runsOrError { ... on Runs { results { jobName } } }
}"""
_RUNS = """{ runsOrError { ... on Runs { results {
    jobName hasReExecutePermission repositoryOrigin { repositoryLocationName } } } } }"""
_LOG = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
    events { ... on MessageEvent { message } } } } }"""
_TICKS = """{ sensorOrError(sensorSelector: { repositoryLocationName: "ovia_backup_dagster",
    repositoryName: "__repository__", sensorName: "backup_freshness_sensor" }) {
  ... on Sensor { sensorState { ticks { status runIds } } } } }"""

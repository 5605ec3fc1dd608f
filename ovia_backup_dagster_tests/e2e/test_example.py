"""``examples/two-databases`` as people use it: ``dg`` checks, lists and launches it, and so does its UI.

Two databases on a real server, in one code location; each backed up to a folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster_tests.conftest import REPOSITORY, execute, free_port, running_cluster
from ovia_backup_dagster_tests.defs.support import CHAIN, DG, dg_command, surroundings
from ovia_backup_dagster_tests.support.dagster_ui import awaited

EXAMPLE = REPOSITORY / "examples" / "two-databases"
DATABASES = ("orders", "people")
ROLE_PASSWORD = "the-p4ssword-of-the-role"


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment variables that the example's YAML reads, for two real databases."""
    with running_cluster(embedded_server.bin_dir()) as cluster:
        for name in DATABASES:
            embedded_server.create_database(cluster.connection(), cluster.bin_dir, name, 0.02)
        execute(
            cluster.connection(),
            # Another test covers deploy/backup-role.sql, whose role has fewer rights.
            f"CREATE ROLE ovia_backup LOGIN SUPERUSER PASSWORD '{ROLE_PASSWORD}'",
        )
        found = {
            "BACKUP_ROOT": str(tmp_path_factory.mktemp("volumes")),
            "PATH": f"{cluster.bin_dir}:{os.environ['PATH']}",
        }
        for name in DATABASES:
            found |= {
                f"{name.upper()}_POSTGRES_HOST": "127.0.0.1",
                f"{name.upper()}_POSTGRES_PORT": str(cluster.port),
                f"{name.upper()}_POSTGRES_PASSWORD": ROLE_PASSWORD,
            }
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.exhaustive
def test_dg_checks_and_lists_the_example(variables: dict[str, str], home: Path) -> None:
    checked = dg_command("check", "defs", home=home, folder=EXAMPLE, **variables)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "All component YAML validated successfully." in checked.stdout + checked.stderr
    listed = dg_command("list", "defs", "--json", home=home, folder=EXAMPLE, **variables)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assets = {asset["asset_key"] for asset in found["assets"]}
    assert assets >= {f"{name}/{asset}" for name in DATABASES for asset in CHAIN}
    crons = {schedule["name"]: schedule["cron_schedule"] for schedule in found["schedules"]}
    assert crons["orders_daily_backup_schedule"] == "47 3 * * *"
    assert crons["people_daily_backup_schedule"] == "30 2 * * *"
    assert ROLE_PASSWORD not in listed.stdout


@pytest.mark.exhaustive
def test_dg_finds_and_scaffolds_the_component(home: Path, copied: Path, variables: dict[str, str]) -> None:
    listed = dg_command("list", "components", "--json", home=home, folder=copied)
    assert "ovia_backup_dagster.PostgresBackup" in {each["key"] for each in json.loads(listed.stdout)["items"]}
    kind = "ovia_backup_dagster.PostgresBackup"
    made = dg_command("scaffold", "defs", kind, "billing", home=home, folder=copied)
    assert made.returncode == 0, made.stdout + made.stderr
    path = copied / "two_databases" / "defs" / "billing" / "defs.yaml"
    assert "name: billing" in path.read_text("utf-8")
    checked = dg_command("check", "defs", home=home, folder=copied, **variables)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("line", "wrong", "number", "says"),
    [
        ("  postgres_db: orders", "  postgres_dbs: orders", 7, "postgres_dbs"),
        ("  postgres_db: orders", "  postgres_db: orders\n  backup_daily_keep: seven", 8, "'seven' does not match"),
    ],
)
def test_dg_shows_the_line_that_is_wrong(
    home: Path, copied: Path, variables: dict[str, str], line: str, wrong: str, number: int, says: str
) -> None:
    path = copied / "two_databases" / "defs" / "orders" / "defs.yaml"
    path.write_text(path.read_text("utf-8").replace(line, wrong), "utf-8")
    # By its path: of several files with one type, dg 1.13 checks only the last.
    checked = dg_command("check", "yaml", str(path.parent), home=home, folder=copied, **variables)
    assert checked.returncode != 0
    said = checked.stdout + checked.stderr
    assert f"defs/orders/defs.yaml:{number}" in said
    assert says in said


@pytest.mark.exhaustive
def test_dg_launches_each_database(variables: dict[str, str], home: Path) -> None:
    launched = dg_command("launch", "--job", "orders_daily_backup_job", home=home, folder=EXAMPLE, **variables)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    volumes = Path(variables["BACKUP_ROOT"])
    assert len(list((volumes / "orders" / "daily").glob("orders_daily_*.verified.json"))) == 1
    assert not list((volumes / "people").glob("daily/*.dump"))
    assert ROLE_PASSWORD not in launched.stdout + launched.stderr


@pytest.mark.exhaustive
def test_the_ui_launches_both_databases(variables: dict[str, str], home: Path) -> None:
    """By GraphQL, as the UI's buttons do: each job, and assets of both at once, with the location's executor."""
    volumes = Path(variables["BACKUP_ROOT"])
    before = {name: len(list((volumes / name / "daily").glob("*.verified.json"))) for name in DATABASES}
    with serving(variables, home) as graphql:
        [location] = graphql(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        runs = {name: launch(graphql, location["name"], f"{name}_daily_backup_job") for name in DATABASES}
        for name, run in runs.items():
            assert ended(graphql, run) == "SUCCESS", name
        keys = [[name, asset] for name in DATABASES for asset in ("weekly_promotion", "retention_pruning")]
        by_hand = launch(graphql, location["name"], "__ASSET_JOB", keys)
        assert ended(graphql, by_hand) == "SUCCESS"
    for name in DATABASES:
        after = len(list((volumes / name / "daily").glob(f"{name}_daily_*.verified.json")))
        assert after == before[name] + 1


def ended(graphql: Callable[..., dict[str, Any]], run: str) -> str:
    """Wait for the run's end; return its status."""

    def status() -> str:
        return str(graphql(RUN, {"id": run})["runOrError"]["status"])

    awaited(lambda: status() in ("SUCCESS", "FAILURE"), 240)
    return status()


def launch(
    graphql: Callable[..., dict[str, Any]], location: str, job: str, assets: list[list[str]] | None = None
) -> str:
    selector: dict[str, Any] = {
        "repositoryLocationName": location,
        "repositoryName": "__repository__",
        "jobName": job,
    }
    if assets:
        selector["assetSelection"] = [{"path": path} for path in assets]
    launched = graphql(LAUNCH, {"selector": selector})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


@contextmanager
def serving(variables: dict[str, str], home: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """``dg dev`` in the project; ended by SIGINT to its process group, as by Ctrl-C in a terminal."""
    shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    port = free_port()

    def graphql(query: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": values or {}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def answers() -> bool:
        try:
            return bool(graphql("{ version }")["version"])
        except (urllib.error.URLError, ConnectionError):
            return False

    log = home / "dev.log"
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            (DG, "dev", "--host", "127.0.0.1", "--port", str(port)),
            cwd=EXAMPLE,
            env={**surroundings(), **variables, "DAGSTER_HOME": str(home)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            awaited(lambda: answers() or process.poll() is not None, 240)
            assert process.poll() is None, log.read_text()
            yield graphql
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


_LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { name } } } }"
LAUNCH = """mutation($selector: JobOrPipelineSelector!) { launchRun(executionParams: { selector: $selector }) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

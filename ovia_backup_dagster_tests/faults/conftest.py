"""Fixtures of the fault tests: rounds, random moments, the record of outcomes, and databases to dump.

``rounds`` gives a test few rounds in the daily suite and many as an exhaustive test. ``FAULTS_RECORD`` is a folder for
the outcomes, from which the tool that writes docs/reliability.md reads them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import REPOSITORY, PortCluster, free_port
from ovia_backup_dagster_tests.faults.harness import Place
from ovia_backup_dagster_tests.support import exhaustive

#: A dump of this database takes about 0.25 s.
SCALE = 0.1
#: From this number of rounds on, random moments are expected to hit each phase.
MANY = 20

_RECORD = pytest.StashKey[list[dict[str, object]]]()


def rounds(few: int, many: int) -> pytest.MarkDecorator:
    """Parametrize a test's ``times``: ``few`` in the daily suite, ``many`` in ``make test-faults`` alone."""
    return pytest.mark.parametrize(
        "times",
        [
            pytest.param(few, id="few"),
            pytest.param(many, id="many", marks=[pytest.mark.exhaustive, pytest.mark.many_rounds]),
        ],
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Record the outcome of a test. It counts only if the test passes, including its teardown.

    A test with ``rounds`` is recorded only in its exhaustive form (``many``).
    """
    few = "times" in request.fixturenames and request.node.get_closest_marker("many_rounds") is None

    def write(*, fault: str, how: str, times: int, where: str = "", saw: str, then: str) -> None:
        entry = {"fault": fault, "how": how, "times": times, "where": where, "saw": saw, "then": then}
        if not few:
            request.node.stash.setdefault(_RECORD, []).append(entry)

    return write


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    folder = os.environ.get("FAULTS_RECORD")
    if folder:
        path = Path(folder) / (re.sub(r"\W+", "-", item.nodeid) + ".json")
        # A successful teardown does not turn a failed test into a passed one.
        failed = report.failed or (path.exists() and json.loads(path.read_text("utf-8"))["outcome"] == "failed")
        outcome = "failed" if failed else "skipped" if report.skipped else report.when
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        entry = {
            "test": item.nodeid,
            "outcome": outcome if outcome != "teardown" or path.exists() else "failed",
            "reason": reason.removeprefix("Skipped: "),
            "seed": str(exhaustive.seed()),
            "full": exhaustive.choice() == "all",
            "entries": item.stash.get(_RECORD, []),
        }
        if not (report.when == "teardown" and path.exists() and _outcome(path) == "skipped"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(entry, indent=1), "utf-8")
    return report


def _outcome(path: Path) -> str:
    return str(json.loads(path.read_text("utf-8"))["outcome"])


@pytest.fixture(scope="module")
def database(server: PortCluster, bin_dir: Path) -> Connection:
    """A sample database whose dump takes about 0.25 s. No test changes it."""
    return _database(server, bin_dir, SCALE)


@pytest.fixture(scope="module")
def small_database(server: PortCluster, bin_dir: Path) -> Connection:
    """A small database with a fast dump, for tests that are not about the dump."""
    return _database(server, bin_dir, 0.02)


def _database(server: PortCluster, bin_dir: Path, scale: float) -> Connection:
    name = f"faults{os.getpid()}_{free_port()}"
    embedded_server.create_database(server.connection(), bin_dir, name, scale)
    return server.connection(name)


@pytest.fixture
def place(database: Connection, bin_dir: Path, tmp_path: Path) -> Place:
    """An empty volume."""
    return place_for(database, bin_dir, tmp_path / "backups", tmp_path)


@pytest.fixture
def small_place(small_database: Connection, bin_dir: Path, tmp_path: Path) -> Place:
    return place_for(small_database, bin_dir, tmp_path / "backups", tmp_path)


def place_for(database: Connection, bin_dir: Path, root: Path, logs: Path) -> Place:
    settings = {
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_DB": database.database,
        "POSTGRES_USER": database.user,
        "BACKUP_DIR": str(root),
        "BACKUP_EXPECTED_TABLES": "people,identities,person_identity_links",
        "BACKUP_REQUIRE_ROWS": "true",
        "BACKUP_LOCK_WAIT_MINUTES": "0",
        "PG_BIN_DIR": str(bin_dir),
    }
    return Place(settings, logs)


#: Shorter times than in the shipped dagster.yaml: how often run monitoring polls, and after how many seconds it marks
#: a run as failed that still counts as running although its process is unknown.
QUICKER = {
    "poll_interval_seconds: 60": "poll_interval_seconds: 2",
    "max_runtime_seconds: 21600": "max_runtime_seconds: 90",
}


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

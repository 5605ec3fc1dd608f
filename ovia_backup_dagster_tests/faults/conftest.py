"""How many rounds, which random numbers, where outcomes are written down; and a database that takes a while to dump.

``FAULTS=full`` is what ``make test-faults`` sets; else a few rounds of each. ``FAULTS_SEED`` repeats the random moments
of another run. ``FAULTS_RECORD`` is a folder for the outcomes, from which ``report`` writes docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random, SystemRandom
from typing import TypeVar

import pytest

from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import PortCluster, free_port
from ovia_backup_dagster_tests.faults.harness import Place

FULL = os.environ.get("FAULTS") == "full"
SEED = os.environ.get("FAULTS_SEED") or str(SystemRandom().randrange(10**8))
#: A dump of it takes about 0.4 s; in the quick run, 0.25 s.
SCALE = 0.3 if FULL else 0.1

T = TypeVar("T")
_RECORD = pytest.StashKey[list[dict[str, object]]]()


def rounds(full: int, quick: int) -> int:
    """How often: in the full run, and as a part of all tests."""
    return full if FULL else quick


def some_today(cases: Sequence[T]) -> Sequence[T]:
    """All of them in the full run; else every third, others on each of three days (UTC).

    By the date, and not by chance: all processes of one run must choose the same.
    """
    return cases if FULL else cases[datetime.now(UTC).toordinal() % 3 :: 3]


full_run_only = pytest.mark.skipif(not FULL, reason="takes too long for every day: make test-faults")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    """Random numbers of this test alone. A failure shows the seed that repeats them."""
    print(f"FAULTS_SEED={SEED}")
    return Random(f"{SEED}/{request.node.name}")


Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Writes down what a test has shown; it counts only if the test passes, to the end of its teardown."""

    def write(*, fault: str, how: str, times: int, where: str = "", saw: str, then: str) -> None:
        entry = {"fault": fault, "how": how, "times": times, "where": where, "saw": saw, "then": then}
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
        # What failed once does not become good by a teardown that went well.
        failed = report.failed or (path.exists() and json.loads(path.read_text("utf-8"))["outcome"] == "failed")
        outcome = "failed" if failed else "skipped" if report.skipped else report.when
        reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
        entry = {
            "test": item.nodeid,
            "outcome": outcome if outcome != "teardown" or path.exists() else "failed",
            "reason": reason.removeprefix("Skipped: "),
            "seed": SEED,
            "full": FULL,
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
    """A sample database whose dump takes a while. Nothing changes it."""
    return _database(server, bin_dir, SCALE)


@pytest.fixture(scope="module")
def small_database(server: PortCluster, bin_dir: Path) -> Connection:
    """One whose dump takes no time, where the dump is not what is looked at."""
    return _database(server, bin_dir, 0.02)


def _database(server: PortCluster, bin_dir: Path, scale: float) -> Connection:
    name = f"faults{os.getpid()}_{free_port()}"
    embedded_server.create_database(server.connection(), bin_dir, name, scale)
    return server.connection(name)


@pytest.fixture
def place(database: Connection, bin_dir: Path, tmp_path: Path) -> Place:
    """A volume on the disk, empty."""
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

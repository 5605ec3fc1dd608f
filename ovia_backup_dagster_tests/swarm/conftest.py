from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.swarm import engine as engines
from ovia_backup_dagster_tests.swarm.engine import HERE, STATE, Engine, docker, until
from ovia_backup_dagster_tests.swarm.swarm import CHANNEL_PASSWORD, OVIA_PASSWORD, UI_PASSWORD, Runbook, Swarm


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The tests' own engine. The images are built while the tests that need no stack run."""
    engine = engines.begin()
    with ThreadPoolExecutor(1) as pool:
        engine.building = pool.submit(_build)
        try:
            yield engine
        finally:
            engines.end(engine)


@pytest.fixture(scope="session")
def images(engine: Engine) -> Swarm:
    """Both images, built; the clone in which the commands of the runbook are typed. No stack is deployed yet."""
    building: Future[Swarm] | None = engine.building
    assert building is not None
    return building.result()


def _build() -> Swarm:
    clone = engines.build_images()
    _shorten_waits(clone)
    certificate, key = STATE / "certificate.pem", STATE / "key.pem"
    _make_certificate(certificate, key)
    found = Swarm(
        clone=clone,
        runbook=Runbook((clone / "docs/runbook.md").read_text("utf-8")),
        variables={
            "OVIA_PASSWORD": OVIA_PASSWORD,
            "NOTIFY_URLS": f"json://people:{CHANNEL_PASSWORD}@receiver:9999/",
            "CERTIFICATE": str(certificate),
            "KEY": str(key),
            "UI_PASSWORD": UI_PASSWORD,
        },
    )
    # Retention removes nothing in these tests: a backup that is missing at the end was lost.
    found.settings.write_text("BACKUP_DAILY_KEEP=30\nBACKUP_WEEKLY_KEEP=30\n", "utf-8")
    found.follow("Installing", 0)
    return found


@pytest.fixture(scope="session")
def swarm(images: Swarm) -> Swarm:
    """Ovia's stack and ours, installed as the runbook says."""
    found = images
    found.sh(f"docker stack deploy -c {HERE / 'standins/ovia/stack.yml'} ovia")
    until(lambda: found.health("ovia_postgres") == "healthy", 120, lambda: found.story("ovia_postgres"))
    until(lambda: "migrated" in found.log("ovia_migrate"), 60, lambda: found.story("ovia_migrate"))
    _let_the_old_script_work(found)
    for number in range(1, 4):
        found.follow("Installing", number)
    found.well()
    return found


_QUEUE = """run_coordinator:
  module: dagster._core.run_coordinator.queued_run_coordinator
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1

"""


def _shorten_waits(clone: Path) -> None:
    """Shorten the intervals and delays that tests wait for. No test is about their lengths in production."""
    for name, slow, often, times in (
        ("deploy/stack.yml", r"interval: (30|60)s", "interval: 15s", 2),  # the daemon and the doctor
        # The code server and the web server: a check finds them healthy sooner, and unhealthy after the same time.
        (
            "deploy/stack.yml",
            r"interval: 20s\n( +timeout: 15s\n +retries: )4\n",
            r"interval: 10s\n\g<1>8\n",
            2,
        ),
        # Swarm watches new tasks for this long after an update; tests wait until it has stopped watching.
        ("deploy/stack.yml", r"monitor: 90s", "monitor: 5s", 1),
        # Swarm waits this long before it replaces a container that ended.
        ("deploy/stack.yml", r"delay: 10s", "delay: 2s", 1),
        ("deploy/pitr.yml", r"delay: 10s", "delay: 2s", 1),
        ("deploy/pitr.yml", r"interval: 20s", "interval: 5s", 1),
        # A container waits this long for another service that may be starting.
        (
            "ovia_backup_dagster/container/container_roles.py",
            r"(?m)^PATIENCE_SECONDS = 90.0$",
            "PATIENCE_SECONDS = 30.0",
            1,
        ),
        # How long the door remembers wrong passwords.
        ("deploy/haproxy/web.cfg", r"gpc0_rate\(1m\)", "gpc0_rate(20s)", 1),
        # How often Dagster looks for queued runs, where its default is 5 seconds.
        (
            "deploy/dagster.yaml",
            r"(?m)^run_monitoring:$",
            _QUEUE + "run_monitoring:",
            1,
        ),
        # How often Dagster looks for runs whose container is gone.
        ("deploy/dagster.yaml", r"(?m)^  poll_interval_seconds: 30$", "  poll_interval_seconds: 10", 1),
        ("ovia_backup_dagster/defs/sensors.py", r"(?m)^INTERVAL_SECONDS = 300$", "INTERVAL_SECONDS = 30", 1),
    ):
        text, changed = re.subn(slow, often, (clone / name).read_text("utf-8"))
        assert changed == times, name
        (clone / name).write_text(text, "utf-8")


def _let_the_old_script_work(swarm: Swarm) -> None:
    """Leave what the old script leaves after a week and a day: seven dumps."""
    docker("service", "update", "--force", "--detach", "ovia_backup")
    until(lambda: "backup written" in swarm.log("ovia_backup"), 60, lambda: swarm.story("ovia_backup"))
    earlier = """
        cd /backups/daily; newest=$(ls -t *.dump | head -1); find . -size 0 -delete
        for days in 1 2 3 4 5 6; do
            name=ovia_daily_$(date -u -d "-$days days" +%Y-%m-%d_%H%M%S).dump
            cp "$newest" "$name"; touch -d "-$days days" "$name"
        done"""
    docker("exec", swarm.container("ovia_backup"), "bash", "-c", earlier)


def _make_certificate(certificate: Path, key: Path) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run((*command.split(), "-keyout", key, "-out", certificate), check=True, capture_output=True)


#: The time limit of a test, in seconds. The longest waits for the images or for services that come back.
_TEST_SECONDS = 600

#: Each module leaves the stack as the next one needs it. The first needs no stack.
_ORDERED = ("services", "stack", "restore", "runbook", "refusals", "pitr", "offsite", "complete")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if Path(item.path).parent == HERE]
    mine.sort(key=lambda item: _ORDERED.index(Path(item.path).stem.removeprefix("test_")))
    for item in mine:
        item.add_marker(pytest.mark.timeout(_TEST_SECONDS), append=False)
    items[:] = [*(item for item in items if item not in mine), *mine]

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.swarm import engine as engines
from ovia_backup_dagster_tests.swarm.engine import HERE, STATE, Engine, docker, until
from ovia_backup_dagster_tests.swarm.swarm import CHANNEL_PASSWORD, OVIA_PASSWORD, UI_PASSWORD, Runbook, Swarm


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = engines.begin()
    try:
        yield engine
    finally:
        engines.end(engine)


@pytest.fixture(scope="session")
def swarm(engine: Engine) -> Swarm:
    """Ovia's stack and ours, installed as the runbook says."""
    clone = engines.build_images()
    _look_often(clone)
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
    # What is missing in the end was lost, and not removed on purpose.
    found.settings.write_text("BACKUP_DAILY_KEEP=30\nBACKUP_WEEKLY_KEEP=30\n", "utf-8")
    found.follow("Installing", 0)
    found.sh(f"docker stack deploy -c {HERE / 'standins/ovia/stack.yml'} ovia")
    until(lambda: found.health("ovia_postgres") == "healthy", 120, lambda: found.story("ovia_postgres"))
    until(lambda: "migrated" in found.log("ovia_migrate"), 60, lambda: found.story("ovia_migrate"))
    _let_the_old_script_work(found)
    for number in range(1, 4):
        found.follow("Installing", number)
    found.well()
    return found


def _look_often(clone: Path) -> None:
    """More often than is reasonable for years, since tests wait for it: the slow health checks, and the sensor."""
    for name, slow, often, times in (
        ("deploy/stack.yml", r"interval: (30|60)s", "interval: 15s", 2),  # the daemon's and the doctor's
        # The code server's and the web server's: healthy as soon as they are, unhealthy no sooner than else.
        (
            "deploy/stack.yml",
            r"interval: 20s\n( +timeout: 15s\n +retries: )4\n",
            r"interval: 10s\n\g<1>8\n",
            2,
        ),
        # For so long Swarm looks after an update at what it has begun, and a test waits for that.
        ("deploy/stack.yml", r"monitor: 90s", "monitor: 30s", 1),
        # Dagster looks at runs whose container may be gone.
        ("deploy/dagster.yaml", r"(?m)^  poll_interval_seconds: 30$", "  poll_interval_seconds: 10", 1),
        ("ovia_backup_dagster/defs/sensors.py", r"(?m)^INTERVAL_SECONDS = 300$", "INTERVAL_SECONDS = 30", 1),
    ):
        text, changed = re.subn(slow, often, (clone / name).read_text("utf-8"))
        assert changed == times, name
        (clone / name).write_text(text, "utf-8")


def _let_the_old_script_work(swarm: Swarm) -> None:
    """For a week and a day: it has seven dumps."""
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


#: A story: each leaves the stack as the next needs it. The first needs no stack.
ORDER = ("test_services", "test_stack", "test_restore", "test_runbook", "test_refusals")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if Path(item.path).parent == HERE]
    mine.sort(key=lambda item: ORDER.index(Path(item.path).stem))
    items[:] = [*(item for item in items if item not in mine), *mine]

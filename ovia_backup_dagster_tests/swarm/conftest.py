from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.swarm import engine as engines
from ovia_backup_dagster_tests.swarm.engine import HERE, STATE, Engine, until
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
    found.follow("Installing", 0)
    found.sh(f"docker stack deploy -c {HERE / 'standins/ovia/stack.yml'} ovia")
    until(lambda: found.health("ovia_postgres") == "healthy", 120, lambda: found.story("ovia_postgres"))
    until(lambda: "migrated" in found.log("ovia_migrate"), 60, lambda: found.story("ovia_migrate"))
    for number in range(1, 4):
        found.follow("Installing", number)
    found.well()
    return found


def _make_certificate(certificate: Path, key: Path) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run((*command.split(), "-keyout", key, "-out", certificate), check=True, capture_output=True)

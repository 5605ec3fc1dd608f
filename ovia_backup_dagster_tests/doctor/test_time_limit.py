"""The doctor comes to an end even if parts of it hang, and says what did not answer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster.doctor import examination, time_limit
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, ok
from ovia_backup_dagster.doctor.time_limit import Part
from ovia_backup_dagster_tests.conftest import PortCluster, running_cluster
from ovia_backup_dagster_tests.doctor.support import executable, system_of, the
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.harness import children_of, paused
from ovia_backup_dagster_tests.faults.proxy import Silence

TOLD = "did not answer the doctor in time"


def part(area: Area, look: object) -> Part:
    return Part(area, look, f"the {area}", f"look at the {area}")  # type: ignore[arg-type]


def test_other_parts_are_reported_while_one_hangs() -> None:
    over = threading.Event()

    def hangs() -> Iterator[Observation]:
        yield ok(Area.SERVER, "it is there")
        over.wait(60)

    others = [part(area, lambda area=area: [ok(area, "well")]) for area in (Area.SETTINGS, Area.ALERTS)]
    began = time.monotonic()
    parts = [others[0], part(Area.SERVER, hangs), part(Area.VOLUME, hangs), others[1]]
    lines = list(time_limit.look_in_time(parts, 0.5))
    over.set()
    assert time.monotonic() - began < 5
    assert lines[:2] == [ok(Area.SETTINGS, "well"), ok(Area.SERVER, "it is there")]
    assert [(line.area, line.level) for line in lines[2:]] == [
        (Area.SERVER, Severity.FAIL),
        (Area.SERVER, Severity.OK),
        (Area.VOLUME, Severity.FAIL),
        (Area.ALERTS, Severity.OK),
    ]
    assert lines[2].text == f"the server {TOLD}"
    assert lines[2].fix == "look at the server"


def test_an_exception_of_a_part_is_raised() -> None:
    def fails() -> Iterator[Observation]:
        yield ok(Area.SERVER, "it is there")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(time_limit.look_in_time([part(Area.SERVER, fails)], 5))


def test_a_server_that_hangs_is_reported_in_time(bin_dir: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accepts connections, but the paused server does not."""
    monkeypatch.setattr(time_limit, "SECONDS", 2.0)
    with running_cluster(bin_dir) as cluster:
        volume.mkdir(mode=0o700)
        with paused(cluster):
            began = time.monotonic()
            lines = list(examination.everything(system_of(cluster.connection(), volume, bin_dir)))
            assert time.monotonic() - began < 5
    line = the(lines, f"the server {TOLD}")
    assert line.level is Severity.FAIL
    assert f"pg_isready -t 5 -h {cluster.folder}" in line.fix
    assert [line for line in lines if line.area is Area.PROGRAMS and line.level is Severity.OK]


@pytest.mark.exhaustive
def test_programs_that_hang_are_reported_and_ended(
    server: PortCluster, bin_dir: Path, volume: Path, tmp_path: Path
) -> None:
    """As if the programs were on a disk that does not answer."""
    hung = tmp_path / "bin"
    executable(hung / "pg_dump", "exec sleep 1000").chmod(0o755)
    for name in ("pg_restore", "pg_dumpall"):
        (hung / name).symlink_to(bin_dir / name)
    began = time.monotonic()
    lines = list(examination.everything(system_of(server.connection(), volume, hung)))
    assert time.monotonic() - began < 20
    assert "neither ended nor did anything" in the(lines, "does not answer").text
    assert "sleep" not in children_of(os.getpid()).values()


@pytest.mark.exhaustive
@needs_root
def test_doctor_ends_in_half_a_minute(tmp_path: Path, bin_dir: Path, volume: Path) -> None:
    """DNS, Docker, the application and Dagster's storage are silent: the real command, in its own mount namespace."""
    volume.mkdir(mode=0o700)
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.1\noptions timeout:30 attempts:5\n")
    socket = Path(f"/tmp/ovia-silent-{os.getpid()}")
    with Silence(path=str(socket)), Silence() as web:
        settings = {
            "PATH": os.environ["PATH"],
            "POSTGRES_HOST": "database.silent.example",
            "BACKUP_DIR": str(volume),
            "PG_BIN_DIR": str(bin_dir),
            "RESTORE_POSTGRES_USER": "restores",
            "SWARM_DOCKER_URL": f"unix://{socket}",
            "SWARM_APP_SERVICES": "one,two,three,four",
            "HEALTH_URL": f"http://127.0.0.1:{web.port}/",
        }
        command = f"exec {sys.executable} -m ovia_backup_dagster.cli.main doctor"
        inside = ("unshare", "--mount", "sh", "-c", f"mount --bind {resolver} /etc/resolv.conf && {command}")
        began = time.monotonic()
        done = subprocess.run(inside, env=settings, capture_output=True, text=True, timeout=60, check=False)
        took = time.monotonic() - began
    socket.unlink()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert took < 30
    assert f"the server {TOLD}" in done.stdout
    assert "getent hosts database.silent.example" in done.stdout
    assert f"what a restore depends on {TOLD}" in done.stdout
    assert "pg_dump, pg_restore, pg_dumpall" in done.stdout

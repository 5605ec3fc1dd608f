"""A Docker engine of the tests' own, and the images that its stacks are made of.

Where images cannot be pulled, stand-ins are built from Debian under the same names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from ovia_backup_dagster_tests.conftest import REPOSITORY

STATE = REPOSITORY / ".cache/swarm"
SOCKET = Path("/var/run/docker.sock")
HERE = Path(__file__).parent
IMAGE = "ovia-backup-dagster:0.2.0"
POSTGRES = "postgres:16"
#: The host's own certificate authorities, for a build behind a proxy that opens TLS.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def processes() -> Iterator[tuple[int, list[str]]]:
    """The number and the command line of every process of this machine, including those in containers."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            yield int(folder.name), (folder / "cmdline").read_text(errors="replace").split("\0")


def docker(*arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 600) -> str:
    """Run a Docker command, and return its standard output."""
    done = subprocess.run(
        ("docker", *arguments), capture_output=True, text=True, input=stdin, timeout=timeout, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def answers() -> bool:
    return subprocess.run(("docker", "info"), capture_output=True, check=False).returncode == 0


def until(
    true: Callable[[], object], seconds: float, otherwise: str | Callable[[], str], *, pause: float = 1.0
) -> None:
    """Poll a condition; fail with an explanation when it does not become true.

    A broken connection counts as "not yet": requests to the UI pass through three services, and each may be restarting.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError, subprocess.TimeoutExpired):
            if true():
                return
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {seconds:.0f} s: {otherwise if isinstance(otherwise, str) else otherwise()}"
            )
        time.sleep(pause)


class Engine:
    """A dockerd of the tests' own, with all of its data in ``STATE``. Its images stay there for the next run.

    Attributes:
        building: a build on this engine in another thread; :meth:`stop` waits for its end.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.building: Future[Any] | None = None

    def start(self) -> None:
        data = STATE / "docker"
        data.mkdir(parents=True, exist_ok=True)
        with (STATE / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ("dockerd", "--data-root", data), stdout=log, stderr=log, start_new_session=True
            )
        until(answers, 60, lambda: (STATE / "dockerd.log").read_text("utf-8", "replace")[-2000:], pause=0.2)

    def stop(self) -> None:
        assert self.process is not None
        if self.building is not None:
            wait([self.building])
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)

    def restart(self) -> None:
        """As `systemctl restart docker` does."""
        self.stop()
        self.start()


def begin() -> Engine:
    """Start an engine in swarm mode, with images and nothing else."""
    if os.geteuid() != 0:
        sys.exit("make test-swarm starts a Docker engine, and needs root")
    for program in ("dockerd", "docker", "debootstrap", "openssl", "curl", "haproxy", "busybox"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing: apt-get install docker.io debootstrap openssl curl haproxy busybox-static")
    if answers():
        sys.exit(
            "a Docker engine runs on this machine. The tests make stacks, volumes and secrets by production's names, "
            "and restart the engine: give them a machine of their own, or stop it"
        )
    # Remains of a run that was killed.
    for left in ("swarm", "containers", "volumes"):
        shutil.rmtree(STATE / "docker" / left, ignore_errors=True)
    engine = Engine()
    engine.start()
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    return engine


def end(engine: Engine) -> None:
    """Leave the swarm with all of its services, and stop the engine."""
    try:
        docker("swarm", "leave", "--force")
        if left := docker("ps", "-q").split():
            docker("kill", *left, check=False)
        until(lambda: not docker("ps", "-q"), 120, lambda: docker("ps"))
        docker("system", "prune", "--volumes", "--force")
    finally:
        engine.stop()


# ----------------------------------------------------------------------------------------------------- images


def build_images() -> Path:
    """Provide ``postgres:16`` and a clone of the repository in which an operator would build our image."""
    if not _pulled(POSTGRES):
        _stand_in()
    clone = STATE / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"),
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, clone / name)
    if AUTHORITIES.exists():
        shutil.copy2(AUTHORITIES, clone / "deploy/certificates/host.crt")
    return clone


def build_busybox(tag: str) -> None:
    """Build an image that holds only Debian's busybox-static: it takes a moment."""
    context = STATE / "busybox"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    shutil.copy2(shutil.which("busybox") or "", context)
    install = 'RUN ["/bin/busybox", "--install", "-s", "/bin"]'
    (context / "Dockerfile").write_text(f"FROM scratch\nCOPY busybox /bin/busybox\n{install}\n", "utf-8")
    docker("build", "--quiet", "--tag", tag, str(context))


def _pulled(image: str) -> bool:
    return subprocess.run(("docker", "pull", "--quiet", image), capture_output=True, check=False).returncode == 0


def _stand_in() -> None:
    debian = STATE / "trixie"
    if not (debian / "etc/debian_version").exists():
        shutil.rmtree(debian, ignore_errors=True)
        making = debian.with_suffix(".new")
        shutil.rmtree(making, ignore_errors=True)
        command = ("debootstrap", "--variant=minbase", "trixie", str(making))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        making.rename(debian)
    with subprocess.Popen(
        ("tar", "-C", debian, "--exclude=./var/cache/apt/archives/*.deb", "-c", "."), stdout=subprocess.PIPE
    ) as tar:
        subprocess.run(
            ("docker", "import", "-", "debian:trixie-slim"), stdin=tar.stdout, capture_output=True, check=True
        )
    context = STATE / "postgres"
    shutil.rmtree(context, ignore_errors=True)
    shutil.copytree(HERE / "standins/postgres", context)
    (context / "certificates").mkdir()
    if AUTHORITIES.exists():
        shutil.copy2(AUTHORITIES, context / "certificates/host.crt")
    shutil.copytree(REPOSITORY / ".cache/postgresql-16", context / "postgresql-16", symlinks=True)
    docker("build", "--quiet", "--tag", POSTGRES, str(context), timeout=1200)

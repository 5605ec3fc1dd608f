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
from pathlib import Path

from ovia_backup_dagster_tests.conftest import REPOSITORY

STATE = REPOSITORY / ".cache/swarm"
SOCKET = Path("/var/run/docker.sock")
HERE = Path(__file__).parent
IMAGE = "ovia-backup-dagster:0.2.0"
POSTGRES = "postgres:16"
#: The host's own certificate authorities, for a build behind a proxy that opens TLS.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def processes() -> Iterator[tuple[int, list[str]]]:
    """All of this machine, those in containers, too: their numbers, and the words of their command lines."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            yield int(folder.name), (folder / "cmdline").read_text(errors="replace").split("\0")


def docker(*arguments: str, check: bool = True, stdin: str | None = None, timeout: float = 600) -> str:
    """What a Docker command printed on its standard output."""
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
    """Poll a condition; fail, with a word about what is wrong, when it does not come true.

    A connection that breaks off answers nothing: the way to the UI leads through three services that may begin anew.
    """
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            if true():
                return
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {seconds:.0f} s: {otherwise if isinstance(otherwise, str) else otherwise()}"
            )
        time.sleep(pause)


class Engine:
    """dockerd, started by hand, with all of its data in ``STATE``. Images stay there for the next time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

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
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)

    def restart(self) -> None:
        """As `systemctl restart docker` does."""
        self.stop()
        self.start()


def begin() -> Engine:
    """An engine in swarm mode, with nothing but images on it."""
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
    # What a run that was killed left.
    for left in ("swarm", "containers", "volumes"):
        shutil.rmtree(STATE / "docker" / left, ignore_errors=True)
    engine = Engine()
    engine.start()
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    return engine


def end(engine: Engine) -> None:
    """Tear all down."""
    try:
        # Ours first: it is on the other's network.
        for stack in sorted(docker("stack", "ls", "--format", "{{.Name}}").split(), reverse=True):
            docker("stack", "rm", stack, check=False)
        until(lambda: not docker("ps", "-q"), 120, lambda: docker("ps"))
        docker("swarm", "leave", "--force")
        docker("system", "prune", "--volumes", "--force")
    finally:
        engine.stop()


# ----------------------------------------------------------------------------------------------------- images


def build_images() -> Path:
    """Both images, and the clone that ours was built in: what a person would have."""
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
    """An image of one program, Debian's busybox-static, in a moment."""
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

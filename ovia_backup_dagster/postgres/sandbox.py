"""What a program is confined to that runs or parses what a backup contains.

An archive is code: a drill's server runs its functions as a superuser, and pg_restore parses its bytes. So each such
program is started by ``sandbox_launcher``, reads the system's programs and what it is given, writes what it is given,
and reaches nothing else. Which programs those are is decided where they are started; whether the walls hold is tried in
``drill.escape_attempts``.
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

#: The launcher's exit code where it refused to start a program.
REFUSED = sandbox_confinement.REFUSED
#: And how its message begins.
CANNOT = sandbox_confinement.CANNOT
#: Of the memory that is free when a program starts, what it may take: the node must go on.
_MEMORY_SHARE = 0.75
_LEAST_MEMORY_BYTES = 512 * 1024 * 1024
#: More than PostgreSQL's processes for 64 jobs; threads of the same account elsewhere count, too, and are not all seen.
_PROCESSES = 512
_ACCOUNT_PROCESSES = 1024
#: What may be taken of a disk, beyond four times what the copy is expected to take: WAL, sorts, other writers.
_GROWTH_BYTES = 16 * 1024**3
_FREE_BYTES = 128 * 1024 * 1024
#: More than PostgreSQL opens; each may hold a buffer in the kernel.
_FILES = 2048
#: Where Debian's wrapper of the client programs looks for the version to run.
_WRAPPER = "pg_wrapper"
_OF_THE_WRAPPER = ("/etc/postgresql-common", "/etc/postgresql")
#: What PostgreSQL's programs start, and where they look for libraries, time zones and extensions.
_PROGRAMS = ("postgres", "initdb", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "psql", "vacuumdb", "pg_isready")
_BESIDE_PROGRAMS = ("lib", "lib64", "share")
_SCRIPT_BYTES = 64 * 1024


def _compiled(source: str) -> str:
    """A program as Python compiled it when it was imported: to do that again takes as long as to start it.

    The source itself where what was compiled is not of this source (PEP 3147, PEP 552), or is not beside it, where the
    launcher looks for its other parts (``PYTHONPYCACHEPREFIX``).
    """
    if sys.implementation.cache_tag is None:
        return source  # Python keeps nothing compiled
    path = importlib.util.cache_from_source(source)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        status = os.stat(source)
    except OSError:
        return source  # nothing was compiled: the source does the same, a little later
    of_now = struct.pack("<III", 0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    if os.path.dirname(os.path.dirname(path)) != os.path.dirname(source):
        return source
    return path if head == importlib.util.MAGIC_NUMBER + of_now else source


_LAUNCHER = _compiled(os.path.abspath(sandbox_launcher.__file__))


class Confine(StrEnum):
    """Whether programs are confined: where the kernel can, always (else they are refused), or never."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a throwaway server and all that it starts may take together.

    Attributes:
        memory_bytes: resident, without what they share.
        processes: how many.
        disk: the folder whose disk is watched.
        growth_bytes: by how much the room there may shrink.
        free_bytes: what must be left there.
        seconds: how long they may run; ``None`` for ever.
    """

    memory_bytes: int
    processes: int
    disk: Path
    growth_bytes: int
    free_bytes: int
    seconds: float | None = None

    @classmethod
    def of(cls, disk: Path, copy_bytes: int, seconds: float | None) -> Limits:
        """The limits for a copy that is expected to take ``copy_bytes`` on the disk of a folder."""
        status = os.statvfs(disk)
        free = min(_FREE_BYTES, status.f_bavail * status.f_frsize // 10)
        return cls(_memory_bytes(), _PROCESSES, disk, 4 * copy_bytes + _GROWTH_BYTES, free, seconds)

    def free_now(self) -> int | None:
        """Bytes that are left on the disk; ``None`` where it cannot be asked."""
        try:
            status = os.statvfs(self.disk)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def options(self) -> list[str]:
        """For the launcher."""
        found = [f"memory={self.memory_bytes}", f"processes={self.processes}", f"disk={self.disk}"]
        found += [f"growth={self.growth_bytes}", f"free={self.free_bytes}", f"available={_kept_bytes()}"]
        return found if self.seconds is None else [*found, f"seconds={max(1, int(self.seconds))}"]


def exceeded(report: Path, limits: Limits | None) -> tuple[str, str]:
    """Which limit a launcher wrote to its report when it ended a server, and the same for people; empty for none.

    Or what it is about to write: on a full disk a program may fail before the launcher has looked.
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
        "inodes": f"it left room for {int(taken):,} files on the disk, and must leave it for {int(most):,}",
        "seconds": f"it ran for more than {int(most) / 3600:.2g} hours (DRILL_MAX_HOURS)",
    }
    return name, took[name]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """How programs are confined.

    Attributes:
        confine: whether they are.
        landlock: act as under a kernel with this version of Landlock; 0 for the kernel's own.
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
        """The command that runs a program, by its path, confined.

        Args:
            command: path and arguments.
            read: files and folders that it may read, besides the system's and its own installation.
            write: files and folders that it may change; they must exist.
            connect: the Unix socket that it gets when it connects anywhere; without one it cannot connect.
            forks: whether it may start other programs; what it leaves running is ended with it.
            stay: whether it is watched, and all that it started ends with this process.
            account: under root, whom it becomes.
            more: options for the launcher.
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
            # The launcher answers what connects, and ends what is left.
            options.append("stay")
        return (*self.launcher, *options, *more, "--", os.path.abspath(command[0]), *command[1:])

    @property
    def launcher(self) -> tuple[str, ...]:
        """What stands before the options."""
        kind = {Confine.AUTO: (), Confine.REQUIRE: ("require",), Confine.OFF: ("off",)}[self.confine]
        version = (f"landlock={self.landlock}",) if self.landlock else ()
        return (sys.executable, "-I", "-S", _LAUNCHER, *kind, *version)


def limit_of_processes(uid: int) -> str:
    """The launcher's option that keeps an account from starting processes without end.

    The kernel counts all of an account, wherever they run, for those that are so limited alone.
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
    """What a program of PostgreSQL needs of its own installation, as far as that is not the system's.

    Its programs, libraries and data by name, not the folder that they are in: that may be anyone's home. A script that
    becomes another program leads to what it names.
    """
    found: list[str] = []
    programs = [program]
    for each in programs:  # which grows
        real = os.path.realpath(each)
        if os.path.basename(real) == _WRAPPER:
            found += _OF_THE_WRAPPER
            continue
        for path in dict.fromkeys((os.path.abspath(each), real)):
            folder = os.path.dirname(path)
            # They start each other.
            here = [path, *filter(os.path.isfile, (os.path.join(folder, name) for name in _PROGRAMS))]
            found += here
            found += [os.path.join(os.path.dirname(folder), name) for name in _BESIDE_PROGRAMS]
            named = (name for script in here for name in _named_by_script(script))
            programs += [name for name in dict.fromkeys(named) if name not in programs]
        found += [os.path.dirname(library) for library in _libraries(real)]
    return tuple(dict.fromkeys(path for path in found if os.path.exists(path) and not _is_of_the_system(path)))


def _named_by_script(path: str) -> list[str]:
    """The programs that a script names; none of what is no script."""
    try:
        with open(path, "rb") as file:
            text = file.read(_SCRIPT_BYTES) if file.read(2) == b"#!" else b""
    except OSError:
        return []
    words = dict.fromkeys(os.fsdecode(word) for word in re.findall(rb"/[^\s'\"$;|&()<>]+", text))
    return [word for word in words if os.path.isfile(word) and os.access(word, os.X_OK)]


def _libraries(program: str) -> list[str]:
    """The shared libraries that a program loads: a relocated build has its own."""
    # The loader's own: prints them, runs nothing.
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
    # The root is no installation: it would open everything.
    return path == "/" or any(Path(path).is_relative_to(part) for part in sandbox_confinement.SYSTEM)


def _kept_bytes() -> int:
    """Memory that the machine must keep: what is shared, or in the kernel, is counted of no process."""
    return min(256 * 1024 * 1024, _meminfo_bytes() // 10)


def _memory_bytes() -> int:
    """What programs may take of the memory that is free now, here or in this container."""
    free = [_meminfo_bytes(), *_cgroup_bytes()]
    return max(_LEAST_MEMORY_BYTES, int(min(free) * _MEMORY_SHARE))


def _meminfo_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def _cgroup_bytes() -> list[int]:
    """Of a container with a limit (version 2 and 1 of control groups)."""
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

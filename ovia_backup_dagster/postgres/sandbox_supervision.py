"""Supervises a confined program as its parent: watches its resources, answers its connections, ends its processes.

This is a part of ``sandbox_launcher``, which loads it only for ``stay``. Of this package it imports only
``sandbox_confinement``, which confines the program, because it is loaded for each such program.
"""

import _socket
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import time

from ovia_backup_dagster.postgres.sandbox_confinement import (
    PDEATHSIG,
    REFUSED,
    SUBREAPER,
    Options,
    libc,
    run_confined,
    scope_signals,
)

#: Requests of ioctl(2) to a seccomp listener.
_RECEIVE, _SEND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
#: How often to check. A disk fills up at gigabytes a second, and checking it is cheap; checking all processes is not.
_DISK_SECONDS, _PROCESSES_SECONDS = 0.05, 0.5
#: After this time, processes that cannot be ended, because they wait for a disk, are left alone.
_END_SECONDS = 20.0


def supervise(options: Options) -> int:
    """Start the program confined, watch it, end all processes that it leaves; return this process's exit code."""
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    signal.signal(signal.SIGUSR1, lambda *_: libc.prctl(PDEATHSIG, 0, 0, 0, 0))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    if "parent" in options:
        libc.prctl(PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != options.number("parent"):
            return 0
    channel = None
    if "connect" in options and "off" not in options:
        channel = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        options.values["channel"] = [str(channel[1].fileno())]
    me, began, scoped = os.getpid(), int(time.time()), scope_signals(options)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == me:
            if channel:
                channel[0].close()
            os.close(wake)
            os.close(woken)
            run_confined(options)
        os._exit(REFUSED)
    listener = -1
    if channel:
        channel[1].close()
        _, ancillary, _, _ = channel[0].recvmsg(1, 64)
        listener = struct.unpack("i", ancillary[0][2][:4])[0] if ancillary else -1
        channel[0].close()
    limits = _Limits(options, me)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    if listener >= 0:
        poll.register(listener, select.POLLIN)
    status = None
    try:
        while status is None and not asked:
            # Without limits it sleeps, because its processor time could be mistaken for the program's progress.
            for descriptor, events in poll.poll(int(_DISK_SECONDS * 1000) if limits.any else None):
                if descriptor == wake:
                    os.read(wake, 4096)
                elif events & select.POLLIN:
                    _connect(listener, options.one("connect"))
                else:
                    poll.unregister(listener)
            status = _reap(child)
            if status is None and limits.any and (exceeded := limits.exceeded()):
                _report(options.one("report"), exceeded)
                break
    finally:
        ended = _end(me, child, scoped)
        _remove_shared_memory(began, options.number("uid") if "uid" in options else os.geteuid())
    status = ended if status is None else status
    if status is not None and os.WIFSIGNALED(status):
        ended_by = os.WTERMSIG(status)
        if ended_by not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(ended_by, signal.SIG_DFL)
        os.kill(me, ended_by)
    return os.waitstatus_to_exitcode(status) if status is not None else REFUSED


def _report(path: str, exceeded: str) -> None:
    if path:
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(exceeded)
        except OSError:
            return  # the disk is full, which the reader of the report notices, too


def _connect(listener: int, path: str) -> None:
    """Answer a program that connects: whatever address it names, it gets a connection to ``path``."""
    asked = bytearray(80)
    try:
        fcntl.ioctl(listener, _RECEIVE, asked)
        (token,), (descriptor,) = struct.unpack_from("=Q", asked, 0), struct.unpack_from("=Q", asked, 32)
        error = 0
        try:
            made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            made.connect(path)
            made.setblocking(False)  # like libpq's socket, which this one replaces
            order = struct.pack("=QIIII", token, 1, made.fileno(), descriptor & 0xFFFFFFFF, os.O_CLOEXEC)
            fcntl.ioctl(listener, _ADD_DESCRIPTOR, order)
            made.close()
        except OSError as refused:
            error = -(refused.errno or errno.EACCES)
        fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", token, 0, error, 0))
    except OSError:
        return  # the program has ended meanwhile


def _reap(child: int) -> int | None:
    """Reap all ended children, including orphans of the program; return the program's status if it has ended."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _descendants(me: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z":
                parents[int(name)] = int(fields[1])
    found, ours = [], {me}
    while new := [pid for pid, parent in parents.items() if parent in ours and pid not in ours]:
        ours.update(new)
        found += new
    return found


def _end(me: int, child: int, scoped: bool) -> int | None:
    """End all descendants, also those that keep forking; return the program's status if it was among them.

    A process that loses its parent becomes a child of this one, so none is left once the kernel reports that there are
    no children. A list of processes is less reliable: in a chain of forks, each process has ended before it is
    examined.
    """
    status = None
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if scoped:
            _kill(-1, 9)  # all at once, so that no fork can escape
        else:
            for pid in _children(me):
                _kill(pid, 9)
            stopped: set[int] = set()
            while new := set(_descendants(me)) - stopped:
                for pid in new:
                    _kill(pid, 19)
                stopped |= new
            for pid in stopped:
                _kill(pid, 9)
        reaped = False
        while True:
            try:
                pid, found = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return status
            if pid == 0:
                break
            reaped = True
            if pid == child:
                status = found
        if not reaped:
            time.sleep(0.001)
    return status


def _kill(pid: int, number: int) -> None:
    try:  # noqa: SIM105 - importing contextlib would take as long as everything else
        os.kill(pid, number)
    except OSError:
        pass


def _children(me: int) -> list[int]:
    try:
        with open(f"/proc/{me}/task/{me}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without these lists
        return _descendants(me)


def _remove_shared_memory(since: int, uid: int) -> None:
    """Remove a killed server's shared memory: this user's segments created since, whose creator has ended."""
    try:
        with open("/proc/sysvipc/shm", encoding="ascii") as file:
            head, *lines = (line.split() for line in file)
    except OSError:
        return
    for line in lines:
        segment = {name: int(value) for name, value in zip(head, line, strict=False) if name != "perms"}
        ours = segment["uid"] == uid and segment["ctime"] >= since and segment["nattch"] == 0
        if ours and not os.path.exists(f"/proc/{segment['cpid']}"):
            libc.shmctl(segment["shmid"], 0, None)


def _available_bytes() -> int:
    """The memory available on the machine, in bytes; -1 if that is unknown."""
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return -1


class _Limits:
    """The limits for all descendants together."""

    def __init__(self, options: Options, me: int) -> None:
        self._options, self._me = options, me
        self.any = not {"seconds", "processes", "memory", "disk"}.isdisjoint(options.values)
        self._deadline = time.monotonic() + options.number("seconds") if "seconds" in options else None
        self._looked = time.monotonic()
        self._disk = options.one("disk")
        self._free, self._files = self._room() if self._disk else (0, 0)
        self._page = resource.getpagesize()

    def exceeded(self) -> str:
        """The exceeded limit: its name, the amount taken, and the amount allowed; empty if none was exceeded."""
        options, now = self._options, time.monotonic()
        if self._disk and (found := self._disk_exceeded()):
            return found
        if now - self._looked < _PROCESSES_SECONDS:
            return ""
        self._looked = now
        if self._deadline is not None and now > self._deadline:
            return f"seconds {options.number('seconds')} {options.number('seconds')}"
        descendants = _descendants(self._me)
        if "processes" in options and len(descendants) > options.number("processes"):
            return f"processes {len(descendants)} {options.number('processes')}"
        if "available" in options and 0 <= (left := _available_bytes()) < options.number("available"):
            return f"available {left} {options.number('available')}"
        if "memory" in options:
            taken = sum(map(self._resident_bytes, descendants))
            if taken > options.number("memory"):
                return f"memory {taken} {options.number('memory')}"
        return ""

    def _disk_exceeded(self) -> str:
        free, files = self._room()
        if free < self._options.number("free"):
            return f"free {free} {self._options.number('free')}"
        if self._free - free > self._options.number("growth"):
            return f"growth {self._free - free} {self._options.number('growth')}"
        if files < self._files // 20:  # filesystems that do not count files have 0 of 0
            return f"inodes {files} {self._files // 20}"
        return ""

    def _room(self) -> tuple[int, int]:
        """The disk's free bytes and free inodes."""
        status = os.statvfs(self._disk)
        return status.f_bavail * status.f_frsize, status.f_favail

    def _resident_bytes(self, pid: int) -> int:
        """The resident memory of one process, without shared memory."""
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                fields = file.read().split()
            return (int(fields[1]) - int(fields[2])) * self._page
        except (OSError, IndexError):
            return 0

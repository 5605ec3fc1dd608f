"""A program that confines itself and becomes another one: the launcher of whatever has to be assumed hostile.

    python -I -S confine.py write=FOLDER read=FILE ... -- PROGRAM ARGUMENT ...

Landlock confines files, abstract sockets and signals. A seccomp filter confines sockets, processes, and what Landlock
does not see: modes, owners and times of files, mounts, other processes' memory. Any user may do both, also in a
container of Docker's defaults. It is a program of its own, since a process with threads must not run Python between
fork and exec; it imports nothing of this package and little else, since it starts for each program. Which programs are
confined, and to what, is the business of ``sandbox``.

Options, in any order: ``write=`` and ``read=PATH``; ``sockets=FOLDER`` (it may make and remove sockets there, and no
link: others connect to what bears their name); ``fork`` (the program may start others); ``library=PATH`` (where the
program, and not this one, looks for shared libraries); ``as=``, ``files=`` and
``nproc=N`` (limits of the kernel's); ``uid=``, ``gid=`` (under root: become this account); ``require`` (refuse to run
what cannot be confined); ``off`` (confine nothing); ``landlock=N`` (act as under a kernel that has version N);
``probe`` (instead of a program: try to get out, and print what was possible).

With ``stay`` the launcher stays as the parent: what the program leaves running is ended with it, and all of it when
the process ``parent=PID`` ends, until the launcher gets SIGUSR1. It answers ``connect=PATH``: to whatever address the
program connects, it gets this Unix socket. It watches ``processes=N``, ``memory=BYTES`` (of all together, resident),
``available=BYTES`` (memory that the machine must keep), ``disk=FOLDER`` with ``growth=BYTES`` and ``free=BYTES``, and
``seconds=N``; what was exceeded is written to ``report=FILE`` before all of it is ended.

Sources: Documentation/userspace-api/landlock.rst, include/uapi/linux/{landlock,seccomp,filter}.h, and the tables of
system calls arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64). Written for the
kernels up to 6.18; aarch64's numbers are from the table and were not run.
"""

import ctypes
import errno
import os
import resource
import struct
import sys
import time

#: Exit code where the program could not be confined, and was not started.
REFUSED = 126
CANNOT = "cannot confine"

#: Of /etc only what the C library needs. Never /etc itself, /proc, /sys, /run, /dev/shm, /tmp.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/passwd", "/etc/group"),
    *("/etc/nsswitch.conf", "/etc/localtime", "/etc/ssl/openssl.cnf"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# ---- Landlock: system calls 444 to 446 on every machine

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
#: Version -> number of kinds of access to files: all of the first, REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX.
_KINDS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
_READ = 0b1101  # EXECUTE, READ_FILE, READ_DIR
_CHANGE = 1 << 1 | 1 << 2 | 1 << 14  # WRITE_FILE, READ_FILE, TRUNCATE
#: READ_DIR, REMOVE_FILE, MAKE_REG (a lock file), MAKE_SOCK besides.
_SOCKETS = _CHANGE | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9
_OF_FILES = 0b111 | 1 << 14 | 1 << 15 | 1 << 16

# ---- seccomp

_ERRNO, _ALLOW, _NOTIFY = 0x50000, 0x7FFF0000, 0x7FC00000
_LISTENER = 1 << 3
_RECEIVE, _SEND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
_NEW_NAMESPACES = 0x7E020080
#: AUDIT_ARCH and the numbers of the system calls of which some uses are allowed.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {"seccomp": 317, "capset": 126, "socket": 41, "socketpair": 53, "connect": 42, "clone": 56, "fork": 57}
        | {"vfork": 58, "prlimit64": 302, "open": 2, "openat": 257, "truncate": 76, "chmod": 90, "fchmod": 91}
        | {"fchmodat": 268, "prctl": 157, "ioctl": 16, "shmget": 29},
    ),
    "aarch64": (
        0xC00000B7,
        {"seccomp": 277, "capset": 91, "socket": 198, "socketpair": 199, "connect": 203, "clone": 220}
        | {"prlimit64": 261, "openat": 56, "truncate": 45, "fchmod": 52, "fchmodat": 53, "prctl": 167, "ioctl": 29}
        | {"shmget": 194},
    ),
}
#: Of what nothing is allowed, as (x86_64, aarch64): owners, attributes and times of files; namespaces and mounts; other
#: processes and their memory; queues and semaphores that others share; memory that no one sees; what only an
#: administrator needs.
_FORBIDDEN = (
    *((92, 0), (93, 55), (94, 0), (260, 54), (188, 5), (189, 6), (190, 7), (197, 14), (198, 15), (199, 16)),
    *((132, 0), (235, 0), (261, 0), (280, 88), (253, 0), (294, 26), (254, 27), (300, 262), (303, 264), (304, 265)),
    *((272, 97), (308, 268), (165, 40), (166, 39), (155, 41), (161, 51), (428, 428), (429, 429), (430, 430)),
    *((431, 431), (432, 432), (433, 433), (442, 442), (467, 467), (443, 443), (179, 60)),
    *((101, 117), (310, 270), (311, 271), (312, 272), (434, 434), (438, 438), (424, 424), (440, 440), (448, 448)),
    *((141, 140), (142, 118), (144, 119), (314, 274), (203, 122), (251, 30), (256, 238), (279, 239)),
    *((64, 190), (65, 193), (66, 191), (220, 192), (68, 186), (69, 189), (70, 188), (71, 187), (240, 180), (241, 181)),
    *((248, 217), (249, 218), (250, 219), (319, 279), (447, 447)),
    *((298, 241), (321, 280), (323, 282), (167, 224), (168, 225), (169, 142), (175, 105), (313, 273), (176, 106)),
    *((246, 104), (320, 294), (172, 0), (173, 0), (103, 116), (163, 89), (164, 170), (227, 112), (305, 266)),
    *((159, 171), (170, 161), (171, 162), (452, 452), (463, 463), (466, 466), (469, 469)),
)
#: As if the kernel were older: the C library then takes a call whose arguments the filter can see.
_UNKNOWN = (435, 425, 437)  # clone3, io_uring_setup, openat2

_CAPABILITIES_KEPT = 1 << 1 | 1 << 2  # root still reads and enters what belongs to others, where Landlock lets it

_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVILEGES, _SUBREAPER = 1, 22, 38, 36
#: A disk fills up at gigabytes a second, and to ask for its room costs nothing; to look at all processes does.
_DISK_SECONDS, _PROCESSES_SECONDS = 0.05, 0.5
#: After that, what cannot be ended is left: it waits for a disk.
_END_SECONDS = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


class Options:
    """What the command line asks for."""

    def __init__(self, arguments: list[str]) -> None:
        end = arguments.index("--")
        self.command = arguments[end + 1 :]
        self.values: dict[str, list[str]] = {}
        for argument in arguments[:end]:
            name, _, value = argument.partition("=")
            self.values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def all(self, name: str) -> list[str]:
        return self.values.get(name, [])

    def one(self, name: str) -> str:
        return self.values.get(name, [""])[0]

    def number(self, name: str) -> int:
        return int(self.one(name) or 0)


def _done(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 where there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, 0, 1)))


# ---- to be confined


def restrict(options: Options) -> list[str]:
    """Confine this process, as far as it can be; returns what could not be done, each with the cause."""
    missing: list[str] = []
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, limit in (
        ("as", resource.RLIMIT_AS),
        ("files", resource.RLIMIT_NOFILE),
        ("nproc", resource.RLIMIT_NPROC),
    ):
        if name in options:
            most = resource.getrlimit(limit)[1]
            value = options.number(name) if most == resource.RLIM_INFINITY else min(options.number(name), most)
            resource.setrlimit(limit, (value, value))
    try:  # it ends before who judges it
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"1000")
    except OSError:
        pass
    confine = "off" not in options
    version = min(landlock_version(), options.number("landlock") or 1000)
    if confine:
        _libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        try:
            _restrict_files(options, version)
        except OSError as error:
            missing.append(f"Landlock: {error.strerror}")
    if "uid" in options:
        os.setgroups([])
        os.setgid(options.number("gid"))
        os.setuid(options.number("uid"))
    elif confine and os.geteuid() == 0:
        _drop_capabilities(missing)
    if "parent" in options:  # a change of the user has taken it back
        _libc.prctl(_PDEATHSIG, 9, 0, 0, 0)
    if confine:
        try:
            _restrict_calls(options, version)
        except (OSError, KeyError) as error:
            missing.append(f"seccomp: {error.strerror if isinstance(error, OSError) else os.uname().machine}")
    return missing


def _restrict_files(options: Options, version: int) -> None:
    if version == 0:
        raise OSError(errno.ENOSYS, "this kernel has none")
    known = (1 << _KINDS[max(since for since in _KINDS if since <= version)]) - 1
    # Files; TCP, all of it; abstract sockets and signals. A kernel takes as much of it as its version knows.
    attributes = struct.pack("=QQQ", known, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _done(_libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    readable = [*options.all("read"), *filter(os.path.exists, SYSTEM)]
    devices = list(filter(os.path.exists, DEVICES))
    granted = ((options.all("write"), known), (options.all("sockets"), _SOCKETS), (readable, _READ), (devices, _CHANGE))
    for paths, access in granted:
        for path in paths:
            there = os.open(path, os.O_PATH | os.O_CLOEXEC)
            takes = known if os.path.isdir(path) else known & _OF_FILES
            _done(_libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", access & takes, there), 0))
            os.close(there)
    _done(_libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _drop_capabilities(missing: list[str]) -> None:
    """Root keeps what it needs to read the archive and to enter the copy's folder, and nothing else."""
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = struct.pack("=6I", *(_CAPABILITIES_KEPT, _CAPABILITIES_KEPT, 0, 0, 0, 0))
    if _libc.capset(header, sets) < 0:
        missing.append(f"capabilities: {os.strerror(ctypes.get_errno())}")


def _filter(options: Options, version: int, *, notify: bool) -> bytes:
    """The program of the filter, for struct sock_fprog."""
    machine = os.uname().machine
    arch, number = _MACHINES[machine]
    load, equal, at_least, any_of, mask, leave = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, fail = (leave, 0, 0, _ALLOW), (leave, 0, 0, _ERRNO | errno.EACCES)
    code: list[tuple[int, int, int, int]]
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), fail, (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), fail]
    for name in ("socket", "socketpair"):  # Unix streams alone: a datagram goes anywhere without connecting
        code += [(equal, 0, 7, number[name]), (load, 0, 0, 16), (equal, 0, 4, 1), (load, 0, 0, 24), (mask, 0, 0, 15)]
        code += [(equal, 0, 1, 1), allow, fail]
    said: dict[int, int] = {call[machine == "aarch64"]: _ERRNO | errno.EACCES for call in _FORBIDDEN}
    said |= dict.fromkeys(_UNKNOWN, _ERRNO | errno.ENOSYS)
    if "fork" in options:
        code += [(equal, 0, 4, number["clone"]), (load, 0, 0, 16), (any_of, 0, 1, _NEW_NAMESPACES), fail, allow]
    else:
        said |= {number[call]: _ERRNO | errno.EACCES for call in ("clone", "fork", "vfork") if call in number}
    # A listener of its own would answer its connects once the launcher's is gone.
    said[number["seccomp"]] = _ERRNO | errno.EACCES
    # Of a descriptor, whether it is a terminal, and what is to be read: other requests change the archive's attributes.
    code += [(equal, 0, 6, number["ioctl"]), (load, 0, 0, 24), (equal, 3, 0, 0x5401), (equal, 2, 0, 0x541B)]
    code += [(equal, 1, 0, 0x5421), (leave, 0, 0, _ERRNO | errno.ENOTTY), allow]
    # PostgreSQL takes segments of some bytes, which outlive a server that is killed.
    code += [(equal, 0, 6, number["shmget"]), (load, 0, 0, 24), (at_least, 3, 0, 1048577), (load, 0, 0, 28)]
    code += [(equal, 0, 1, 0), allow, fail]
    if "fork" not in options:  # to end with its parent
        code += [(equal, 0, 4, number["prctl"]), (load, 0, 0, 16), (equal, 0, 1, _PDEATHSIG), fail, allow]
    code += [(equal, 0, 4, number["prlimit64"]), (load, 0, 0, 16), (equal, 1, 0, 0), fail, allow]  # of another process
    # PostgreSQL sets the modes of its files and of its socket, which the umask has set already, and asks no more.
    said |= {number[call]: _ERRNO for call in ("chmod", "fchmod", "fchmodat") if call in number}
    if version < 3:
        # Landlock does not know of truncation yet. PostgreSQL truncates what it is about to remove.
        said[number["truncate"]] = _ERRNO
        for name, at in (("open", 24), ("openat", 32)):
            if name in number:  # with O_TRUNC, and for reading alone
                code += [(equal, 0, 7, number[name]), (load, 0, 0, at), (any_of, 0, 4, 0o1000), (mask, 0, 0, 3)]
                code += [(equal, 0, 2, 0), fail, allow, allow]
    if "connect" not in options:
        said[number["connect"]] = _ERRNO | errno.EACCES
    elif notify:
        said[number["connect"]] = _NOTIFY
    for call, answer in said.items():
        if call:
            code += [(equal, 0, 1, call), (leave, 0, 0, answer)]
    return b"".join(struct.pack("=HBBI", *one) for one in (*code, allow))


def _restrict_calls(options: Options, version: int) -> None:
    channel = options.number("channel")
    raw = ctypes.create_string_buffer(_filter(options, version, notify=bool(channel)))
    program = struct.pack("@HP", (len(raw) - 1) // 8, ctypes.addressof(raw))
    call = _MACHINES[os.uname().machine][1]["seccomp"]
    listener = _done(_libc.syscall(call, 1, _LISTENER if channel else 0, program))
    if channel:
        import _socket

        with_channel = _socket.socket(fileno=os.dup(channel))
        with_channel.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", listener))])
        with_channel.close()
        os.close(listener)
        os.close(channel)


def run_confined(options: Options) -> None:
    """Confine this process, then become the program. Returns only where it was refused."""
    command = options.command
    try:
        missing = restrict(options)
        if missing and "require" in options:
            raise OSError(errno.EPERM, "; ".join(missing))
        for ignored in (13, 25):  # Python ignores SIGPIPE and SIGXFSZ, and the program would inherit that
            _libc.signal(ignored, None)
        if "library" in options:
            os.environ["LD_LIBRARY_PATH"] = options.one("library")
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{CANNOT} {command[0]}: {error.strerror or error}\n".encode())


# ---- to be watched


def supervise(options: Options) -> int:
    """Start the program confined, watch it, and end all that it leaves; returns how this process is to end."""
    import fcntl
    import select
    import signal

    _libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: asked.append(number))
    signal.signal(signal.SIGUSR1, lambda *_: _libc.prctl(_PDEATHSIG, 0, 0, 0, 0))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    if "parent" in options:
        _libc.prctl(_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != options.number("parent"):
            return 0
    channel = None
    if "connect" in options and "off" not in options:
        import _socket

        channel = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        options.values["channel"] = [str(channel[1].fileno())]
    me, began, scoped = os.getpid(), int(time.time()), _scope_signals(options)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _libc.prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
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
            # Without limits it sleeps: what it would use of the processor could be taken for the program's work.
            for descriptor, events in poll.poll(int(_DISK_SECONDS * 1000) if limits.any else None):
                if descriptor == wake:
                    os.read(wake, 4096)
                elif events & select.POLLIN:
                    _connect(listener, options.one("connect"), fcntl.ioctl)
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
            return  # the disk is full: who reads it sees that, too


def _connect(listener: int, path: str, ioctl: object) -> None:
    """Answer a program that connects: whatever the address that it names, it gets a connection to ``path``."""
    import _socket

    asked = bytearray(80)
    try:
        ioctl(listener, _RECEIVE, asked)  # type: ignore[operator]
        (token,), (descriptor,) = struct.unpack_from("=Q", asked, 0), struct.unpack_from("=Q", asked, 32)
        error = 0
        try:
            made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            made.connect(path)
            made.setblocking(False)  # as libpq has set the one that this replaces
            order = struct.pack("=QIIII", token, 1, made.fileno(), descriptor & 0xFFFFFFFF, os.O_CLOEXEC)
            ioctl(listener, _ADD_DESCRIPTOR, order)  # type: ignore[operator]
            made.close()
        except OSError as refused:
            error = -(refused.errno or errno.EACCES)
        ioctl(listener, _SEND, struct.pack("=QqiI", token, 0, error, 0))  # type: ignore[operator]
    except OSError:
        return  # it ended meanwhile


def _reap(child: int) -> int | None:
    """The status of the program, if it has ended. What it has left behind is this process's child, too."""
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


def _scope_signals(options: Options) -> bool:
    """Let this process signal none but those that it starts; whether that holds. From Landlock 6 on."""
    if "off" in options or min(landlock_version(), options.number("landlock") or 1000) < 6:
        return False
    try:
        _done(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        rules = _done(_libc.syscall(_CREATE_RULESET, struct.pack("=QQQ", 0, 0, 2), 24, 0))
        _done(_libc.syscall(_RESTRICT_SELF, rules, 0))
        os.close(rules)
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _end(me: int, child: int, scoped: bool) -> int | None:
    """End all descendants, also those that go on forking; returns the program's status, if it was among them.

    A process that loses its parent becomes this one's child, so that none is left once the kernel says that there is no
    child. A list of processes says less: in a chain of forks each has ended by the time that it is looked at.
    """
    status = None
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline:
        if scoped:
            _kill(-1, 9)  # all at once: no fork can slip between
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
    try:  # noqa: SIM105 - contextlib takes as long to import as all the rest
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
    """What a killed server left in the kernel: segments of this user, made meanwhile, whose maker is gone."""
    try:
        with open("/proc/sysvipc/shm", encoding="ascii") as file:
            head, *lines = (line.split() for line in file)
    except OSError:
        return
    for line in lines:
        segment = {name: int(value) for name, value in zip(head, line, strict=False) if name != "perms"}
        ours = segment["uid"] == uid and segment["ctime"] >= since and segment["nattch"] == 0
        if ours and not os.path.exists(f"/proc/{segment['cpid']}"):
            _libc.shmctl(segment["shmid"], 0, None)


def _available_bytes() -> int:
    """Memory that the machine has left, whatever took it; -1 where that is not known."""
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                if line.startswith(b"MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return -1


class _Limits:
    """What all descendants together may take."""

    def __init__(self, options: Options, me: int) -> None:
        self._options, self._me = options, me
        self.any = not {"seconds", "processes", "memory", "disk"}.isdisjoint(options.values)
        self._deadline = time.monotonic() + options.number("seconds") if "seconds" in options else None
        self._looked = time.monotonic()
        self._disk = options.one("disk")
        self._free, self._files = self._room() if self._disk else (0, 0)
        self._page = resource.getpagesize()

    def exceeded(self) -> str:
        """What was exceeded: its name, how much was taken, and how much is allowed; empty for nothing."""
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
        """Bytes and files that still have room on the disk."""
        status = os.statvfs(self._disk)
        return status.f_bavail * status.f_frsize, status.f_favail

    def _resident_bytes(self, pid: int) -> int:
        """Of one process, without what it shares with others."""
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                fields = file.read().split()
            return (int(fields[1]) - int(fields[2])) * self._page
        except (OSError, IndexError):
            return 0


# ---- to be tried


def probe(options: Options) -> None:
    """Confine this process as a program would be, try to get out, and print what was possible.

    A line for what could not be confined, ``missing CAUSE``, and one for each wall: ``held NAME`` or ``open NAME``.
    """
    import _socket

    canary, outside, pid = options.one("canary"), options.one("outside"), options.number("signal")
    unix, port, datagrams = options.one("unix"), options.number("port"), options.number("datagrams")

    def reach(family: int, kind: int, address: str | tuple[str, int]) -> None:
        made = _socket.socket(family, kind)
        made.settimeout(2)
        made.connect(address)
        made.send(b"x")

    def empty() -> None:
        os.truncate(canary, 0)
        if os.stat(canary).st_size:
            raise OSError(errno.EACCES, "it was only said to be done")

    walls = {
        "read a file of the volume": lambda: os.open(canary, os.O_RDONLY),
        "list the volume": lambda: os.listdir(os.path.dirname(canary)),
        "write outside": lambda: os.open(f"{outside}/written", os.O_WRONLY | os.O_CREAT),
        "change a file outside": empty,
        "remove a file outside": lambda: os.unlink(canary),
        "see another process": lambda: os.open(f"/proc/{pid}/environ", os.O_RDONLY),
        "signal another process": lambda: os.kill(pid, 0),
        "connect to a Unix socket": lambda: reach(_socket.AF_UNIX, _socket.SOCK_STREAM, unix),
        "connect by TCP": lambda: reach(_socket.AF_INET, _socket.SOCK_STREAM, ("127.0.0.1", port)),
        "send by UDP": lambda: reach(_socket.AF_INET, _socket.SOCK_DGRAM, ("127.0.0.1", datagrams)),
    }
    lines = [f"missing {cause}" for cause in restrict(options)]
    for name, attempt in walls.items():
        try:
            attempt()  # type: ignore[no-untyped-call]
        except OSError:
            lines.append(f"held {name}")
        else:
            lines.append(f"open {name}")
    os.write(1, "\n".join(lines).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """Do what the command line says; returns the exit code where it was not replaced."""
    options = Options(arguments)
    if "probe" in options:
        probe(options)
        return 0
    if "stay" in options:
        return supervise(options)
    if "parent" in options:
        _libc.prctl(_PDEATHSIG, 9, 0, 0, 0)
        if os.getppid() != options.number("parent"):
            return REFUSED  # it has ended already
    run_confined(options)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

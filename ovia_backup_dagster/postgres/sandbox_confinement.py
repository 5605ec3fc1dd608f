"""Confines the current process: Landlock for files, abstract sockets and signals, a seccomp filter for system calls.

The filter restricts sockets and processes, and what Landlock does not cover: modes, owners and times of files, mounts,
other processes' memory. Any user may do both, also in a container with Docker's defaults. ``sandbox_launcher`` runs
this module, whose options are those of its command line; ``sandbox`` decides which programs are confined, and how. This
module imports nothing of this package and little else, because it is loaded for each program that is started.

Sources: Documentation/userspace-api/landlock.rst, include/uapi/linux/{landlock,seccomp,filter}.h, and the tables of
system calls arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h (arm64). Written for
kernels up to 6.18; the numbers for aarch64 are from the table and were not tested.
"""

import ctypes
import errno
import os
import resource
import struct

#: The exit code if the program could not be confined and was not started.
REFUSED = 126
CANNOT = "cannot confine"

#: Of /etc only the files that the C library needs. Never /etc itself, /proc, /sys, /run, /dev/shm, /tmp.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/passwd", "/etc/group"),
    *("/etc/nsswitch.conf", "/etc/localtime", "/etc/ssl/openssl.cnf"),
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# ---- Landlock: system calls 444 to 446 on every architecture

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
#: Version -> number of access rights to files: those of version 1, then REFER, TRUNCATE, IOCTL_DEV, RESOLVE_UNIX.
_KINDS = {1: 13, 2: 14, 3: 15, 5: 16, 9: 17}
_READ = 0b1101  # EXECUTE, READ_FILE, READ_DIR
_CHANGE = 1 << 1 | 1 << 2 | 1 << 14  # WRITE_FILE, READ_FILE, TRUNCATE
#: Additionally READ_DIR, REMOVE_FILE, MAKE_REG (a lock file), MAKE_SOCK.
_SOCKETS = _CHANGE | 1 << 3 | 1 << 5 | 1 << 8 | 1 << 9
_OF_FILES = 0b111 | 1 << 14 | 1 << 15 | 1 << 16

# ---- seccomp

_ERRNO, _ALLOW, _NOTIFY = 0x50000, 0x7FFF0000, 0x7FC00000
_LISTENER = 1 << 3
_NEW_NAMESPACES = 0x7E020080
#: AUDIT_ARCH, and the numbers of the system calls that are allowed for some arguments.
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
#: System calls that are always refused, as (x86_64, aarch64): owners, attributes and times of files; namespaces and
#: mounts; other processes and their memory; shared queues and semaphores; hidden memory; calls that only an
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
#: Refused as if the kernel were older: the C library then uses a call whose arguments the filter can check.
_UNKNOWN = (435, 425, 437)  # clone3, io_uring_setup, openat2

_CAPABILITIES_KEPT = 1 << 1 | 1 << 2  # root can still read other accounts' files, where Landlock allows it

#: Options of prctl(2).
PDEATHSIG, NO_NEW_PRIVILEGES, SUBREAPER = 1, 38, 36

libc = ctypes.CDLL(None, use_errno=True)


class Options:
    """The options on the command line."""

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
    """The kernel's version of Landlock; 0 if it has none."""
    return max(0, int(libc.syscall(_CREATE_RULESET, None, 0, 1)))


def restrict(options: Options) -> list[str]:
    """Confine this process as far as possible; return what could not be done, with the causes."""
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
    try:  # if memory runs out, the kernel must kill this process before the one that supervises it
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"1000")
    except OSError:
        pass
    confine = "off" not in options
    version = min(landlock_version(), options.number("landlock") or 1000)
    if confine:
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
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
    if "parent" in options:  # changing the user has reset it
        libc.prctl(PDEATHSIG, 9, 0, 0, 0)
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
    # Access to files; all of TCP; abstract sockets and signals. A kernel accepts only the fields that its version has.
    attributes = struct.pack("=QQQ", known, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _done(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    readable = [*options.all("read"), *filter(os.path.exists, SYSTEM)]
    devices = list(filter(os.path.exists, DEVICES))
    granted = ((options.all("write"), known), (options.all("sockets"), _SOCKETS), (readable, _READ), (devices, _CHANGE))
    for paths, access in granted:
        for path in paths:
            there = os.open(path, os.O_PATH | os.O_CLOEXEC)
            takes = known if os.path.isdir(path) else known & _OF_FILES
            _done(libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", access & takes, there), 0))
            os.close(there)
    _done(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _drop_capabilities(missing: list[str]) -> None:
    """Drop root's capabilities, except those that it needs to read the archive and enter the copy's folder."""
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = struct.pack("=6I", *(_CAPABILITIES_KEPT, _CAPABILITIES_KEPT, 0, 0, 0, 0))
    if libc.capset(header, sets) < 0:
        missing.append(f"capabilities: {os.strerror(ctypes.get_errno())}")


def _filter(options: Options, version: int, *, notify: bool) -> bytes:
    """The filter's program, for struct sock_fprog."""
    machine = os.uname().machine
    arch, number = _MACHINES[machine]
    load, equal, at_least, any_of, mask, leave = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, fail = (leave, 0, 0, _ALLOW), (leave, 0, 0, _ERRNO | errno.EACCES)
    code: list[tuple[int, int, int, int]]
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), fail, (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), fail]
    for name in ("socket", "socketpair"):  # only Unix streams, because datagrams can be sent without connecting
        code += [(equal, 0, 7, number[name]), (load, 0, 0, 16), (equal, 0, 4, 1), (load, 0, 0, 24), (mask, 0, 0, 15)]
        code += [(equal, 0, 1, 1), allow, fail]
    said: dict[int, int] = {call[machine == "aarch64"]: _ERRNO | errno.EACCES for call in _FORBIDDEN}
    said |= dict.fromkeys(_UNKNOWN, _ERRNO | errno.ENOSYS)
    if "fork" in options:
        code += [(equal, 0, 4, number["clone"]), (load, 0, 0, 16), (any_of, 0, 1, _NEW_NAMESPACES), fail, allow]
    else:
        said |= {number[call]: _ERRNO | errno.EACCES for call in ("clone", "fork", "vfork") if call in number}
    # With a listener of its own, it could answer its own connects once the launcher's listener is gone.
    said[number["seccomp"]] = _ERRNO | errno.EACCES
    # Only whether a descriptor is a terminal, and how much it has to read: other requests can change file attributes.
    code += [(equal, 0, 6, number["ioctl"]), (load, 0, 0, 24), (equal, 3, 0, 0x5401), (equal, 2, 0, 0x541B)]
    code += [(equal, 1, 0, 0x5421), (leave, 0, 0, _ERRNO | errno.ENOTTY), allow]
    # PostgreSQL needs segments of a few bytes; larger ones would outlive a server that is killed.
    code += [(equal, 0, 6, number["shmget"]), (load, 0, 0, 24), (at_least, 3, 0, 1048577), (load, 0, 0, 28)]
    code += [(equal, 0, 1, 0), allow, fail]
    if "fork" not in options:  # the program may not undo PDEATHSIG, which ends it with its parent
        code += [(equal, 0, 4, number["prctl"]), (load, 0, 0, 16), (equal, 0, 1, PDEATHSIG), fail, allow]
    code += [(equal, 0, 4, number["prlimit64"]), (load, 0, 0, 16), (equal, 1, 0, 0), fail, allow]  # of another process
    # PostgreSQL sets the modes of its files and its socket, which the umask has set already, and only needs success.
    said |= {number[call]: _ERRNO for call in ("chmod", "fchmod", "fchmodat") if call in number}
    if version < 3:
        # This version of Landlock does not cover truncation. PostgreSQL truncates only files that it will remove.
        said[number["truncate"]] = _ERRNO
        for name, at in (("open", 24), ("openat", 32)):
            if name in number:  # refuse O_TRUNC on a file opened only for reading
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
    listener = _done(libc.syscall(call, 1, _LISTENER if channel else 0, program))
    if channel:
        import _socket

        with_channel = _socket.socket(fileno=os.dup(channel))
        with_channel.sendmsg([b"x"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", listener))])
        with_channel.close()
        os.close(listener)
        os.close(channel)


def scope_signals(options: Options) -> bool:
    """Let this process signal only processes that it starts; return whether that is in effect (Landlock 6 or later)."""
    if "off" in options or min(landlock_version(), options.number("landlock") or 1000) < 6:
        return False
    try:
        _done(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        rules = _done(libc.syscall(_CREATE_RULESET, struct.pack("=QQQ", 0, 0, 2), 24, 0))
        _done(libc.syscall(_RESTRICT_SELF, rules, 0))
        os.close(rules)
        os.kill(os.getppid(), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def run_confined(options: Options) -> None:
    """Confine this process, then replace it by the program. Returns only if that was refused."""
    command = options.command
    try:
        missing = restrict(options)
        if missing and "require" in options:
            raise OSError(errno.EPERM, "; ".join(missing))
        for ignored in (13, 25):  # Python ignores SIGPIPE and SIGXFSZ, which the program would inherit
            libc.signal(ignored, None)
        if "library" in options:
            os.environ["LD_LIBRARY_PATH"] = options.one("library")
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"{CANNOT} {command[0]}: {error.strerror or error}\n".encode())

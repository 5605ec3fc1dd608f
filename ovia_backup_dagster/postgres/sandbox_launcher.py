"""A program that confines itself and becomes another one: the launcher of whatever has to be assumed hostile.

    python -I -S sandbox_launcher.py write=FOLDER read=FILE ... -- PROGRAM ARGUMENT ...

Here are the command line, and the attempt to get out. How a process confines itself is in ``sandbox_confinement``, what
becomes of one that is watched in ``sandbox_supervision``; of this package nothing else is imported, and little besides,
since it starts for each program. It is a program of its own, since a process with threads must not run Python between
fork and exec. Which programs are confined, and to what, is the business of ``sandbox``.

Options, in any order: ``write=`` and ``read=PATH``; ``sockets=FOLDER`` (it may make and remove sockets there, and no
link: others connect to what bears their name); ``fork`` (the program may start others); ``library=PATH`` (where the
program, and not this one, looks for shared libraries); ``as=``, ``files=`` and ``nproc=N`` (limits of the kernel's);
``uid=``, ``gid=`` (under root: become this account); ``require`` (refuse to run what cannot be confined); ``off``
(confine nothing); ``landlock=N`` (act as under a kernel that has version N); ``probe`` (instead of a program: try to
get out, and print what was possible).

With ``stay`` the launcher stays as the parent: what the program leaves running is ended with it, and all of it when
the process ``parent=PID`` ends, until the launcher gets SIGUSR1. It answers ``connect=PATH``: to whatever address the
program connects, it gets this Unix socket. It watches ``processes=N``, ``memory=BYTES`` (of all together, resident),
``available=BYTES`` (memory that the machine must keep), ``disk=FOLDER`` with ``growth=BYTES`` and ``free=BYTES``, and
``seconds=N``; what was exceeded is written to ``report=FILE`` before all of it is ended.
"""

import errno
import os
import sys

if __name__ == "__main__":
    # ``python -I -S`` knows the standard library alone. This may be the compiled file, which is in __pycache__.
    _here = os.path.dirname(os.path.abspath(__file__)).removesuffix(f"{os.sep}__pycache__")
    sys.path.append(os.path.dirname(os.path.dirname(_here)))

from ovia_backup_dagster.postgres.sandbox_confinement import PDEATHSIG, REFUSED, Options, libc, restrict, run_confined


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
        from ovia_backup_dagster.postgres.sandbox_supervision import supervise

        return supervise(options)
    if "parent" in options:
        libc.prctl(PDEATHSIG, 9, 0, 0, 0)
        if os.getppid() != options.number("parent"):
            return REFUSED  # it has ended already
    run_confined(options)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A program that confines itself and then becomes another one: the launcher of programs that may be hostile.

    python -I -S sandbox_launcher.py write=FOLDER read=FILE ... -- PROGRAM ARGUMENT ...

This module contains the command line, and the probe that tries to break out. ``sandbox_confinement`` confines a
process, and ``sandbox_supervision`` watches one. The launcher imports nothing else of this package and little besides,
because it starts for each program. It is a separate program because a process with threads must not run Python between
fork and exec. ``sandbox`` decides which programs are confined, and how.

Options, in any order: ``write=`` and ``read=PATH``; ``sockets=FOLDER`` (the program may create and remove sockets
there, but no links, which could mislead clients); ``fork`` (the program may start others); ``library=PATH`` (where the
program, but not the launcher, looks for shared libraries); ``as=``, ``files=`` and ``nproc=N`` (limits of the kernel);
``uid=``, ``gid=`` (under root: change to this account); ``require`` (refuse to run a program that cannot be confined);
``off`` (confine nothing); ``landlock=N`` (act as if the kernel had version N); ``probe`` (instead of running a program,
try to break out, and print what was possible).

With ``stay`` the launcher stays as the parent. When the program ends, the launcher ends all processes that it left
running; and it ends everything when the process ``parent=PID`` ends, unless it has received SIGUSR1 before. With
``connect=PATH``, the program gets this Unix socket whatever address it connects to. The launcher watches
``processes=N``, ``memory=BYTES`` (resident, of all processes together), ``available=BYTES`` (memory that the machine
must keep), ``disk=FOLDER`` with ``growth=BYTES`` and ``free=BYTES``, and ``seconds=N``. If a limit is exceeded, it
writes the limit to ``report=FILE`` and then ends all processes.
"""

import errno
import os
import sys

if __name__ == "__main__":
    # ``python -I -S`` finds only the standard library. This file may be the compiled one in __pycache__.
    _here = os.path.dirname(os.path.abspath(__file__)).removesuffix(f"{os.sep}__pycache__")
    sys.path.append(os.path.dirname(os.path.dirname(_here)))

from ovia_backup_dagster.postgres.sandbox_confinement import PDEATHSIG, REFUSED, Options, libc, restrict, run_confined


def probe(options: Options) -> None:
    """Confine this process as a program would be, try to break out, and print what was possible.

    The output has a line ``missing CAUSE`` for each part that could not be confined, and a line for each attempt:
    ``held NAME`` if it failed, ``open NAME`` if it succeeded.
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
            raise OSError(errno.EACCES, "the call reported success, but had no effect")

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
    """Follow the command line; return the exit code if this process was not replaced."""
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
            return REFUSED  # the parent has ended already
    run_confined(options)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

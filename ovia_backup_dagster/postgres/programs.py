"""Finds and runs PostgreSQL's client programs.

Argument vectors are tuples, never shell text. A child gets an environment made here and inherits nothing but ``PATH``,
``HOME`` and ``LD_LIBRARY_PATH``: no ``PG*`` variable of this process reaches it, and the password is passed only in its
environment. The sibling modules decide what the programs are run for, and ``diagnosis`` interprets their errors.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlencode

from pydantic import SecretStr

from ovia_backup_dagster.core.compressions import (
    AUTOMATIC,
    NAMED_SINCE,
    Compression,
    compression_of,
    spelled_for,
)
from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.errors import BackupError, CompressionUnsupportedError, ProgramMissingError
from ovia_backup_dagster.postgres import shared_libraries
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.process_end import end_process
from ovia_backup_dagster.postgres.sandbox import Sandbox
from ovia_backup_dagster.postgres.watchdog import SessionProgress, Watch, Watchdog

#: The application name of our sessions on the server.
APPLICATION = "ovia-backup"
CONNECT_TIMEOUT_SECONDS = 15
#: A network that fails silently is noticed after 90 seconds; the kernel's default is two hours.
KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,
}
_STDERR_LIMIT = 128 * 1024
#: For a program that reports on each of many thousands of objects.
_LONG_STDERR = 8 * 1024 * 1024
#: A path that cannot exist; libpq ignores it without a message.
_NO_FILE = f"{os.devnull}/none"
#: From SIGTERM to SIGKILL. Docker gives a stopped container ten seconds for everything.
TERMINATE_SECONDS = 5.0
#: How long a program may make no progress, unless a setting says otherwise.
STALL_SECONDS = 1800.0
#: The same for a program that is only asked for its version or abilities.
_PROBE_SECONDS = 5.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Variables:
    """The settings that a connection comes from, and the deployment's hints about its server, for advice."""

    host: str = "POSTGRES_HOST"
    user: str = "POSTGRES_USER"
    password: str = "PGPASSWORD, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"  # noqa: S105 - their names
    hints: Hints = Hints()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a database is, and the role that connects to it.

    Attributes:
        host: name, address, or the folder of a Unix socket.
        password: ``None`` if ``PGPASSFILE`` supplies it or the server requires none.
        libpq: further ``PGSSL*`` and ``PGPASSFILE`` variables, as they were given.
        variables: the settings that the connection comes from.
        sandboxed: whether the server is a throwaway cluster, which runs untrusted code: its clients are confined, too.
    """

    host: str
    port: int
    database: str
    user: str
    password: SecretStr | None = None
    libpq: Mapping[str, str] = field(default_factory=dict)
    variables: Variables = Variables()
    sandboxed: bool = False

    def __str__(self) -> str:
        return f"database {self.database} at {self.host}:{self.port}"

    def to(self, database: str) -> Connection:
        """The same connection to another database of the server."""
        return replace(self, database=database)

    @property
    def socket(self) -> str:
        """The path of the server's Unix socket, if ``host`` is its folder."""
        return f"{self.host}/.s.PGSQL.{self.port}"

    def conninfo(self) -> str:
        """The value for ``--dbname``: the database, quoted, and options that have no variable. Contains no secret."""
        database = self.database.replace("\\", "\\\\").replace("'", "\\'")
        return " ".join((f"dbname='{database}'", *(f"{name}={value}" for name, value in KEEPALIVES.items())))

    def environment(self) -> dict[str, str]:
        """The variables that a client program needs to connect. They include the database, because an argument ``a=b``
        would be parsed as a connection string.
        """
        variables = {
            **self.libpq,
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGDATABASE": self.database,
            "PGUSER": self.user,
            "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_SECONDS),
            "PGAPPNAME": APPLICATION,
        }
        if self.sandboxed:
            variables["PGPASSFILE"] = _NO_FILE  # such a server may ask for a password, but gets none
        if self.password is not None:
            variables["PGPASSWORD"] = self.password.get_secret_value()
        return variables

    def url(self) -> str:
        """The connection as a URL, for other programs. Contains the password."""
        secret = f":{quote(self.password.get_secret_value(), safe='')}" if self.password else ""
        options = urlencode({"host": self.host, "port": self.port}, quote_via=quote)
        return f"postgresql://{quote(self.user, safe='')}{secret}@/{quote(self.database, safe='')}?{options}"

    def redact(self, text: str) -> str:
        """``text`` without the password, plain or URL-encoded, in case a program repeats it."""
        secret = self.password.get_secret_value() if self.password else ""
        return text.replace(secret, "********").replace(quote(secret, safe=""), "********") if secret else text


@dataclass(frozen=True, slots=True)
class Programs:
    """The client programs of one PostgreSQL installation.

    Attributes:
        bin_dir: their folder; ``None`` for ``PATH``.
        sandbox: confines the programs that parse a backup's contents.
        stall_seconds: how long a program may run without progress.
    """

    bin_dir: Path | None = None
    sandbox: Sandbox = Sandbox()  # noqa: RUF009 - frozen
    stall_seconds: float = STALL_SECONDS

    def confined(
        self,
        command: Sequence[str],
        *,
        read: Iterable[os.PathLike[str] | str] = (),
        write: Iterable[os.PathLike[str] | str] = (),
        server: Connection | None = None,
        forks: bool = False,
    ) -> tuple[str, ...]:
        """The command that runs a client program, confined, on untrusted data.

        Args:
            command: path and arguments.
            read, write: files and folders that it needs, besides the system's and its own.
            server: the server that it connects to; without one it cannot connect. For a server that is not sandboxed,
                the program is not confined: it needs the network and a password.
            forks: whether it may start other processes, such as pg_restore's jobs.
        """
        if server is not None and not server.sandboxed:
            return tuple(command)
        connect = server.socket if server is not None else None
        return self.sandbox.command(command, read=read, write=write, connect=connect, forks=forks)

    def path(self, program: str) -> str:
        """The program's path.

        Raises:
            ProgramMissingError: it was not found.
        """
        found = shutil.which(program, path=str(self.bin_dir) if self.bin_dir else None)
        if found is None:
            where = f"in PG_BIN_DIR={self.bin_dir}" if self.bin_dir else "in PATH"
            raise ProgramMissingError(
                f"{program} was not found {where}",
                why="PostgreSQL's client programs are not installed, or are in another folder",
                fix="install the client programs of the server's major version, or set PG_BIN_DIR to their folder",
            )
        return found

    def version(self, program: str) -> str:
        """The version that ``--version`` prints, e.g. ``16.15 (Debian 16.15-1)``."""
        return _version(self.path(program))

    def major(self, program: str) -> int:
        """The major version, e.g. 16."""
        match = re.match(r"\d+", self.version(program))
        if match is None:
            raise ProgramMissingError(
                f"{self.path(program)} is not a PostgreSQL program",
                why=f"its version is {self.version(program)!r}",
                fix="set PG_BIN_DIR to the folder of PostgreSQL's client programs",
            )
        return int(match.group())

    def supports(self, spelling: str) -> bool:
        """Whether this pg_dump can write and this pg_restore can read a compression, such as ``zstd:2``."""
        try:
            spelled = spelled_for(self.major("pg_dump"), spelling)
        except ValueError:
            return False
        return _writes(self.path("pg_dump"), spelled) and self._reads(spelling)

    def reads_an_archive(self) -> bool:
        """Whether pg_restore can read a sound, empty archive."""
        return self._reads("none")

    def _reads(self, spelling: str) -> bool:
        major, compression = self.major("pg_restore"), compression_of(spelling)
        return major >= compression.since and _reads(self.path("pg_restore"), major, compression)

    def compress_option(self, spelling: str) -> str:
        """The option that selects a compression, as this version of pg_dump spells it."""
        return f"--compress={spelled_for(self.major('pg_dump'), spelling)}"

    def choose_compression(self, wanted: str) -> str:
        """Resolve ``auto`` to the best compression that both programs support; check any other.

        Raises:
            CompressionUnsupportedError: a program was built without it, or its version does not have it.
        """
        if wanted == "auto":
            return next(filter(self.supports, AUTOMATIC[:-1]), AUTOMATIC[-1])
        why = ""
        name = compression_of(wanted).name
        try:
            spelled_for(self.major("pg_dump"), wanted)
        except ValueError as error:
            why = str(error)
        if why or not self.supports(name):
            raise CompressionUnsupportedError(
                f"compression {wanted} is not available here",
                why=why or f"pg_dump or pg_restore in {Path(self.path('pg_dump')).parent} was built without {name}",
                fix="set BACKUP_COMPRESSION=auto, or use client programs with it (the postgres:16 image has it)",
            )
        return wanted


@dataclass(slots=True)
class Child:
    """A running program.

    Attributes:
        process: the process; its standard output is a pipe if one was requested.
        program: its name, for messages.
    """

    process: subprocess.Popen[bytes]
    program: str
    _stderr: bytearray
    _drain: threading.Thread
    _watchdog: Watchdog | None = None

    @property
    def lock(self) -> str:
        """The lock that its session last waited for, with the holder; empty if it was not waiting for a lock."""
        last = self._watchdog.last if self._watchdog else None
        return last.lock if last else ""

    def wait(self, on_poll: Callable[[], None] | None = None, poll_seconds: float = 1.0) -> int:
        """Wait for the end, calling ``on_poll`` about every ``poll_seconds``; return the exit code."""
        while True:
            try:
                code = self.process.wait(poll_seconds if on_poll else None)
            except subprocess.TimeoutExpired:
                if on_poll is not None:
                    on_poll()
            else:
                self._drain.join()
                return code

    @property
    def stderr(self) -> str:
        """Its standard error so far; complete once it has ended."""
        return bytes(self._stderr).decode("utf-8", "replace")


@contextlib.contextmanager
def start(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    pipe_stdout: bool = False,
    pass_fds: Sequence[int] = (),
    watch: Watch | None = None,
    noise: re.Pattern[bytes] | None = None,
) -> Iterator[Child]:
    """Start a program, and make sure that it has ended when the block ends, for whatever reason.

    Args:
        command: path and arguments.
        variables: added to the minimal environment.
        pipe_stdout: provide its standard output as a pipe; otherwise the output is discarded.
        pass_fds: descriptors that it inherits, e.g. the lock's.
        watch: ends it if it makes no progress; ``None`` lets it run without limit.
        noise: matches the beginning of lines of standard error to discard.

    Raises:
        ProgramMissingError: it cannot be started.
        BackupError: it made no progress and was ended: the error of ``watch``, which replaces any error of the block.
    """
    program = Path(command[0]).name
    # Not for our own launcher, which sets the variable for the program only.
    own = {} if command[0] == sys.executable else shared_libraries.environment(command[0])
    variables = {**own, **(variables or {})}
    if watch is not None and "PGAPPNAME" in variables:
        # A unique application name identifies its sessions on the server.
        variables["PGAPPNAME"] += f" {os.getpid()}.{next(_numbers)}"
    stderr = bytearray()
    process: subprocess.Popen[bytes] | None = None
    drain: threading.Thread | None = None
    watchdog = None
    try:
        # A signal must not end this process before it has taken charge of the new child: the child would go on alone.
        with signals_deferred():
            try:
                process = subprocess.Popen(
                    command,
                    env=minimal_environment(variables),
                    stdin=stdin,
                    stdout=subprocess.PIPE if pipe_stdout else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=pass_fds,
                    umask=0o077,
                )
            except OSError as error:
                what, why = f"{command[0]} cannot be started", error.strerror or str(error)
                raise ProgramMissingError(what, why=why, fix=f"ls -l {command[0]}") from error
            assert process.stderr is not None
            drain = threading.Thread(target=_read_all, args=(process.stderr, stderr, noise), daemon=True)
            drain.start()
            if watch is not None:
                watchdog = Watchdog(process.pid, program, variables.get("PGAPPNAME", ""), watch, partial(_end, process))
                watchdog.start()
        yield Child(process, program, stderr, drain, watchdog)
    except Exception:
        _raise_why(watchdog)
        raise
    else:
        _raise_why(watchdog)
    finally:
        if watchdog is not None:
            watchdog.over()
        if process is not None:
            _end(process)
            if drain is not None:
                drain.join()
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()


def capture(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    watch: Watch | None = None,
) -> tuple[int, bytes, str]:
    """Run a program with little output; return exit code, standard output and standard error."""
    with start(command, variables=variables, stdin=stdin, pipe_stdout=True, watch=watch) as child:
        assert child.process.stdout is not None
        output = child.process.stdout.read()
        code = child.wait()
        return code, output, child.stderr


def messages(stderr: str) -> tuple[str, ...]:
    """Split standard error into messages; detail, hint and continuation lines are joined to their message."""
    found: list[str] = []
    for line in stderr.splitlines():
        text = line.strip()
        if not text:
            continue
        if found and re.match(r"(?:\w+: )?(?:detail|hint|DETAIL|HINT|CONTEXT): |\s", line):
            found[-1] += " " + text
        else:
            found.append(text)
    return tuple(found)


def minimal_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """A program's environment: these variables, and this process's ``PATH``, ``HOME`` and ``LD_LIBRARY_PATH``."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", shared_libraries.VARIABLE) if name in os.environ}
    # LC_ALL=C gives English messages, which the diagnoses expect.
    return {**kept, "LC_ALL": "C", "TZ": "UTC", **variables}


def _read_all(pipe: IO[bytes], into: bytearray, noise: re.Pattern[bytes] | None = None) -> None:
    # Read to the end, because a full pipe would block the program. The beginning and the end, which contain the reason,
    # are kept.
    rest, limit = b"", _STDERR_LIMIT if noise is None else _LONG_STDERR
    while chunk := pipe.read1(65536):  # type: ignore[attr-defined]
        if noise is not None:
            *lines, rest = (rest + chunk).split(b"\n")
            chunk = b"".join(line + b"\n" for line in lines if b"TOC entry" in line or not noise.match(line))
        into += chunk
        if len(into) > 2 * limit:
            del into[limit : len(into) - limit]
    into += rest


def _raise_why(watchdog: Watchdog | None) -> None:
    error = watchdog.over() if watchdog else None
    if error is not None:
        raise error from None


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End the process; return ``False`` if it had already ended."""
    if process.poll() is not None:
        return False
    end_process(process, TERMINATE_SECONDS)
    return True


def _no_answer(program: str, _: SessionProgress | None) -> BackupError:
    return ProgramMissingError(
        f"{program} does not answer",
        why=f"it neither ended nor did anything for {_PROBE_SECONDS:.0f} s: the disk that it is on may hang",
        fix="df -h $PG_BIN_DIR; dmesg | tail",
    )


_PROBE = Watch(_PROBE_SECONDS, _no_answer)


@cache
def _version(path: str) -> str:
    code, output, stderr = capture((path, "--version"), watch=_PROBE)
    match = re.search(r"\(PostgreSQL\) (.+)", output.decode("utf-8", "replace"))
    if code or match is None:
        raise ProgramMissingError(
            f"{path} --version failed",
            why="it cannot run here, or is not a PostgreSQL program",
            said=" / ".join(messages(stderr)) or output.decode("utf-8", "replace") or f"exit code {code}",
            fix="install the client programs of the server's major version, or set PG_BIN_DIR to their folder",
        )
    return match.group(1).strip()


@cache
def _writes(pg_dump: str, spelled: str) -> bool:
    # pg_dump refuses an unknown compression before it connects. The host is a folder that does not exist, so that it
    # never connects.
    with tempfile.TemporaryDirectory() as folder:
        command = (pg_dump, "--format=custom", f"--compress={spelled}", "--no-password", f"--file={folder}/probe")
        code, _, stderr = capture(command, variables={"PGHOST": f"{folder}/none"}, watch=_PROBE)
    return code == 1 and "compress" not in stderr


def _reads(pg_restore: str, major: int, compression: Compression) -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(_empty_archive(major, compression))
        file.seek(0)
        code, _, stderr = capture((pg_restore, "--list"), stdin=file, watch=_PROBE)
    return code == 0 and "compression" not in stderr


def _empty_archive(major: int, compression: Compression) -> bytes:
    """A custom-format archive (version 1.15, or 1.14) without entries, to test what pg_restore can read.

    ``pg_restore --list`` exits with 0 and a warning if it does not support the compression. The layout is that of
    ``WriteHead`` in PostgreSQL 16's pg_backup_archiver.c: magic, version, sizes of int and offset, format, compression
    (before 1.15, gzip's level), seven time fields, database, two versions, number of entries.
    """

    def integer(value: int) -> bytes:
        return bytes([value < 0]) + struct.pack("<i", abs(value))

    def string(text: bytes) -> bytes:
        return integer(len(text)) + text

    named = major >= NAMED_SINCE
    said = bytes([compression.header_byte]) if named else integer(-1 if compression.header_byte else 0)
    head = b"PGDMP" + bytes([1, 15 if named else 14, 0, 4, 8, 1]) + said
    return head + integer(0) * 7 + string(b"probe") + string(b"16") * 2 + integer(0)

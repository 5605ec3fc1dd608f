"""Runs the user's own check on a drill's copy: a shell command, or an SQL file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ovia_backup_dagster.postgres.data_stream import Log, decode_text
from ovia_backup_dagster.postgres.programs import TERMINATE_SECONDS, Connection, Programs, minimal_environment
from ovia_backup_dagster.postgres.secrets import Secrets

_SHOWN_LINES = 20
_SHOWN_BYTES = 64 * 1024


def run_check_command(own: str, copy: Connection, programs: Programs, secrets: Secrets, log: Log) -> int:
    """Run a check, and log the end of its output; returns its exit code. All processes that it started are ended.

    Args:
        own: the command, or the name of a ``.sql`` file, which psql runs.
        copy: passed as ``DATABASE_URL`` and ``PG*``; the command gets none of our other settings.
        programs: psql.
        secrets: removed from our environment before the command starts, and from what is logged.
        log: receives the output.
    """
    secrets.forget()
    redact = secrets.redactor()
    command: Sequence[str] = ("/bin/sh", "-c", own)
    if own.endswith(".sql") and Path(own).is_file():
        options = ("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", f"--file={own}")
        command = (programs.path("psql"), *options)
    variables = {**copy.environment(), "DATABASE_URL": copy.url()}
    # Output goes to a file: processes that the command leaves running would keep a pipe open.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env=minimal_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        try:
            code = process.wait()
        finally:
            _end(process)
        output.seek(max(0, output.seek(0, os.SEEK_END) - _SHOWN_BYTES))
        lines = decode_text(output.read()).splitlines()[-_SHOWN_LINES:]
    for line in lines:
        log(f"own check: {redact(copy.redact(line))}")
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: a shell does not end the processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

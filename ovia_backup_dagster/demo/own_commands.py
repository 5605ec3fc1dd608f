"""Runs ``ovia-backup`` as a process of its own, as the demo's operator would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from ovia_backup_dagster.core.errors import ProgramError

COMMAND = (sys.executable, "-W", "ignore", "-m", "ovia_backup_dagster.cli.main")


def run_command(environment: Mapping[str, str], *arguments: str) -> str:
    """Run a command of ovia-backup, and return its standard output.

    Raises:
        ProgramError: it failed.
    """
    done = subprocess.run((*COMMAND, *arguments), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ProgramError(
            f"ovia-backup {' '.join(arguments)} failed", why=lines[-1] if lines else "", fix="make clean"
        )
    return done.stdout

"""Starts programs in a session of their own, and ends all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any


def start_group(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that :func:`end_group` ends all that it starts.

    A shell starts background jobs with SIGINT ignored, and programs inherit that; but Dagster ends its parts by SIGINT.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # programs inherit no handler, but the default
    try:
        return subprocess.Popen(command, start_new_session=True, **options)
    finally:
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all processes that it started: SIGINT first, then SIGTERM, then SIGKILL."""
    process.poll()
    for kind, seconds in ((signal.SIGINT, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        try:
            os.killpg(process.pid, kind)
            while time.monotonic() < deadline:
                process.poll()  # a zombie would count as alive
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return

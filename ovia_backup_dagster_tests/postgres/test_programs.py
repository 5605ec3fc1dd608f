"""Client programs end with the block that started them, whenever a signal arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

#: Delays a helper thread of ``start``, as on a loaded machine, so that the signal arrives meanwhile.
_CHILD = """
import signal, subprocess, sys, threading, time
from ovia_backup_dagster.postgres import programs
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
pids, popen, begin = [], subprocess.Popen, threading.Thread.start
def started(*arguments, **options):
    process = popen(*arguments, **options)
    pids.append(process.pid)
    if sys.argv[1] == "started":
        signalled()
    return process
def signalled():
    print(pids[0], flush=True)
    time.sleep(0.5)
def late(thread):
    begin(thread)
    if sys.argv[1] == "thread" and threading.current_thread() is threading.main_thread():
        signalled()
programs.subprocess.Popen, threading.Thread.start = started, late
with programs.start(("/bin/sleep", "60")) as child:
    if sys.argv[1] == "waiting":
        signalled()
    child.wait()
"""


@pytest.mark.parametrize("moment", ["started", "thread", "waiting"])
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_program_starts_ends_it(kind: signal.Signals, moment: str) -> None:
    """Otherwise an orphaned pg_dump would hold the volume's lock until it ends by itself."""
    command = [sys.executable, "-c", _CHILD, moment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.send_signal(kind)
        code = process.wait(30)
    left = False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        left = True
    assert (left, code) == (False, 143 if kind is signal.SIGTERM else -signal.SIGINT)

"""Ends a process that this one started. Which processes, and when, their owners decide.

``local_cluster`` ends what an interrupted drill left behind, by its folder.
"""

from __future__ import annotations

import subprocess


def end_process(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a process with SIGTERM, and with SIGKILL if it has not ended after so many seconds.

    On SIGTERM, a sandbox's launcher also ends the processes that its program started. SIGKILL would not let it.
    """
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""Ends a client program that hangs: it neither ends nor works, and its server reports no progress, either.

Any sign of life counts: processor time of the program or its children, which receiving and compressing use; and, asked
only if there is none, any change in what the server reports about the program's sessions (``stall``). So a slow dump is
left alone, and one that receives nothing is ended.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError

_POLL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SessionProgress:
    """A server's report about a program's sessions.

    Attributes:
        mark: a value that changes when they make progress.
        at: their last known activity, for messages.
        lock: the lock that they wait for, with its holder; empty if they wait for none.
    """

    mark: object
    at: str
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """How to watch a program.

    Attributes:
        seconds: how long it may make no progress.
        ask: asks its server about the sessions with an application name; ``None`` for a program without a server.
        processor_time: whether using it is a sign of life; not for a program that is busy while it waits.
        failed: makes the error from the program's name and the server's last answer.
    """

    seconds: float
    failed: Callable[[str, SessionProgress | None], BackupError]
    ask: Callable[[str], SessionProgress] | None = None
    processor_time: bool = True


class Watchdog(threading.Thread):
    """Watches one program until :meth:`over`.

    Attributes:
        error: why the watchdog is ending it; ``None`` if it is not.
        last: the server's last answer, if it was asked.
    """

    def __init__(self, pid: int, program: str, application: str, watch: Watch, end: Callable[[], bool]) -> None:
        super().__init__(name=f"watch {program}", daemon=True)
        self.error: BackupError | None = None
        self.last: SessionProgress | None = None
        self._pid, self._program, self._application = pid, program, application
        self._watch, self._end, self._over = watch, end, threading.Event()

    def over(self) -> BackupError | None:
        """Stop watching; return the error if the watchdog has ended the program."""
        self._over.set()
        if self.error is not None:
            self.join()  # otherwise do not wait: the thread may be asking a server
        return self.error

    def run(self) -> None:
        watch = self._watch
        began = alive = time.monotonic()
        used = mark = None
        poll = min(_POLL_SECONDS, watch.seconds / 5)
        while not self._over.wait(poll):
            if watch.processor_time and used != (used := _used(self._pid)):
                alive = time.monotonic()
                continue
            if watch.ask is not None:
                self.last = watch.ask(self._application)
                if mark != (mark := self.last.mark):
                    alive = time.monotonic()
            if time.monotonic() - max(alive, began) < watch.seconds or self._over.is_set():
                continue
            # Set the error before the program ends, because the reader of its output notices the end at once.
            self.error = watch.failed(self._program, self.last)
            if not self._end():
                self.error = None
            return


def _used(pid: int) -> Sequence[tuple[int, int]]:
    """Processor time of a process and its descendants. A process that cannot be examined counts as alive."""
    found, pids = [], [pid]
    for each in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            folder = Path(f"/proc/{each}")
            found.append((each, _time(folder)))
            for listed in (folder / "task").glob("*/children"):
                pids.extend(map(int, listed.read_text().split()))
    return found or [(pid, time.monotonic_ns())]


def _time(process: Path) -> int:
    """A process's time in nanoseconds; if the kernel does not count them, in ticks, mostly of 10 ms."""
    try:
        return int((process / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        return int(user) + int(system)

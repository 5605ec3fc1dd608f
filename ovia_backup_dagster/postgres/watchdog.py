"""Ends a client program that stands still: it neither ends nor works, and its server reports no progress either.

Any sign of life counts: processor time of the program or of what it has started (who receives or compresses uses some),
a file that grows, and, asked only while there is neither, whatever changes in what the server says of its sessions
(``stall``). So a dump that is slow is left alone, and one that receives nothing is not.
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
    """What a server says of a program's sessions.

    Attributes:
        mark: another one than the last means that they got on.
        at: what they were last seen at, for people.
        lock: what they wait for, and who holds it; empty when it is no lock.
    """

    mark: object
    at: str
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """How a program is watched.

    Attributes:
        seconds: for how long it may stand still.
        ask: what its server says of the sessions of that application name; ``None`` for a program without a server.
        failed: the error for the program's name and what its server said last.
    """

    seconds: float
    failed: Callable[[str, SessionProgress | None], BackupError]
    ask: Callable[[str], SessionProgress] | None = None


class Watchdog(threading.Thread):
    """Watches one program until :meth:`over`.

    Attributes:
        error: why it is being ended; ``None`` when it is not.
        last: what the server said last, if it was asked.
    """

    def __init__(self, pid: int, program: str, application: str, watch: Watch, end: Callable[[], bool]) -> None:
        super().__init__(name=f"watch {program}", daemon=True)
        self.error: BackupError | None = None
        self.last: SessionProgress | None = None
        self._pid, self._program, self._application = pid, program, application
        self._watch, self._end, self._over = watch, end, threading.Event()

    def over(self) -> BackupError | None:
        """The program has ended, or is no longer of interest; returns why, if this has ended it."""
        self._over.set()
        if self.error is not None:
            self.join()  # else not waited for: it may be asking a server
        return self.error

    def run(self) -> None:
        watch = self._watch
        began = alive = time.monotonic()
        used = mark = None
        poll = min(_POLL_SECONDS, watch.seconds / 5)
        while not self._over.wait(poll):
            if used != (used := _used(self._pid)):
                alive = time.monotonic()
                continue
            if watch.ask is not None:
                self.last = watch.ask(self._application)
                if mark != (mark := self.last.mark):
                    alive = time.monotonic()
            if time.monotonic() - max(alive, began) < watch.seconds or self._over.is_set():
                continue
            # Before it ends: who reads from it sees its end at once.
            self.error = watch.failed(self._program, self.last)
            if not self._end():
                self.error = None
            return


def _used(pid: int) -> Sequence[tuple[int, int]]:
    """Processor time of a process and its descendants. What cannot be looked at is taken for alive."""
    found, pids = [], [pid]
    for each in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            folder = Path(f"/proc/{each}")
            found.append((each, _time(folder)))
            for listed in (folder / "task").glob("*/children"):
                pids.extend(map(int, listed.read_text().split()))
    return found or [(pid, time.monotonic_ns())]


def _time(process: Path) -> int:
    """In nanoseconds; where the kernel does not count them, in its ticks, mostly hundredths of a second."""
    try:
        return int((process / "schedstat").read_text().split()[0])
    except FileNotFoundError:
        user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        return int(user) + int(system)

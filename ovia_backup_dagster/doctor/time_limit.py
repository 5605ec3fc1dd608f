"""Runs the checks of several parts at once, and ends in time even if one hangs: on a server, DNS, a volume, Docker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ovia_backup_dagster.doctor.report import Area, Observation, fail

#: A doctor takes a few seconds, and on a busy machine half a minute: all parts start at once, one of them Dagster.
SECONDS = 66.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part to check.

    Attributes:
        area: the area that it belongs to.
        look: runs its checks.
        what: its name in messages; the subject of "did not answer".
        fix: what to do if it does not answer.
    """

    area: Area
    look: Callable[[], Iterable[Observation]]
    what: str
    fix: str


def look_in_time(parts: Sequence[Part], seconds: float | None = None) -> Iterator[Observation]:
    """The lines of all parts, in order. A part that does not end in time gets a last line that says so.

    Args:
        parts: all start at once, so that each has the whole time. One that hangs is abandoned.
        seconds: the time limit for all parts together; ``None`` for ``SECONDS``.
    """
    deadline = time.monotonic() + (SECONDS if seconds is None else seconds)
    for part, told in [(part, _begin(part)) for part in parts]:
        while True:
            try:
                found = told.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                yield fail(part.area, f"{part.what} did not answer the doctor in time", part.fix)
                break
            if isinstance(found, BaseException):
                raise found
            if found is None:
                break
            yield found


def _begin(part: Part) -> queue.Queue[Observation | BaseException | None]:
    told: queue.Queue[Observation | BaseException | None] = queue.Queue()

    def look() -> None:
        try:
            for line in part.look():
                told.put(line)
            told.put(None)
        except BaseException as error:  # noqa: BLE001 - a defect of ours, raised again in the thread that waits
            told.put(error)

    threading.Thread(target=look, name=f"look at {part.area}", daemon=True).start()
    return told

"""Looks at several parts at once, and comes to an end in time, whatever hangs: a server, DNS, a volume, Docker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ovia_backup_dagster.doctor.report import Area, Observation, fail

#: With the start of the program, it is less than half a minute.
SECONDS = 24.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part to look at.

    Attributes:
        area: what it is a part of.
        look: looks at it.
        what: it, for people; the subject of "did not answer".
        fix: what to do when it does not answer.
    """

    area: Area
    look: Callable[[], Iterable[Observation]]
    what: str
    fix: str


def look_in_time(parts: Sequence[Part], seconds: float | None = None) -> Iterator[Observation]:
    """The lines of all parts, in order; a part that has not ended in time says so in a last line of its own.

    Args:
        parts: all are begun at once, so that each has the whole time. One that hangs is left behind.
        seconds: for all of them together; ``None``: the usual time.
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
        except BaseException as error:  # noqa: BLE001 - a defect of ours, which is to be seen where it is waited for
            told.put(error)

    threading.Thread(target=look, name=f"look at {part.area}", daemon=True).start()
    return told

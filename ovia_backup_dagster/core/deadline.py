"""A time limit for file operations that may hang: with a dead file server, every system call on a path hangs.

No signal and no flag ends such a call, so it runs in a thread, which is abandoned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ovia_backup_dagster.core.errors import StalledVolumeError
from ovia_backup_dagster.core.shell import shell_word

#: The time limit for one assessment of the volume, in seconds; it usually takes less than one. Dagster gives a sensor
#: 60, and the sensor assesses twice.
LOOK_SECONDS = 20.0

T = TypeVar("T")


class _Look(threading.Thread, Generic[T]):
    def __init__(self, look: Callable[[], T]) -> None:
        super().__init__(name="a look at the backup volume", daemon=True)
        self._look = look
        self.found: list[T] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.found.append(self._look())
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            self.error = error


#: Threads that missed their time limit, by volume: at most one hangs on each volume, however often this is called.
_hanging: dict[Path, threading.Thread] = {}


def within_deadline(seconds: float, root: Path, look: Callable[[], T]) -> T:
    """Run ``look`` on the volume at ``root``, and return its result.

    Args:
        seconds: the time limit.
        root: the backup folder.
        look: must only read, or be harmless whenever it ends: that may be long after it was abandoned.

    Raises:
        StalledVolumeError: ``look`` did not end within the time limit.
        BaseException: raised by ``look``.
    """
    hanging = _hanging.get(root)
    if hanging is not None:
        hanging.join(seconds)
        if hanging.is_alive():
            raise _stalled(seconds, root)
        _hanging.pop(root, None)
    thread = _Look(look)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _hanging[root] = thread
        raise _stalled(seconds, root)
    if thread.error is not None:
        raise thread.error
    return thread.found[0]


def _stalled(seconds: float, root: Path) -> StalledVolumeError:
    shown = shell_word(str(root))
    return StalledVolumeError(
        f"the backup volume {root} does not answer within {seconds:g} seconds",
        why="its file server, or the disk under it, hangs",
        fix=f"findmnt -T {shown}; dmesg | tail; see that its file server runs; then: timeout 10 ls {shown}",
    )

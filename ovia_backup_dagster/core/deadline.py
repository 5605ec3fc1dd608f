"""A time limit for file operations that may hang: with a dead file server, each call that names a file hangs.

No signal and no flag ends such a call, so it is left behind in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ovia_backup_dagster.core.errors import StalledVolumeError
from ovia_backup_dagster.core.shell import shell_word

#: How long a look at the volume may take in all, in seconds; it takes less than one as a rule. Dagster gives a
#: sensor 60, and it looks twice.
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
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error


#: Looks that have not ended in time, by their volume: one hangs there, and not one more with each call.
_hanging: dict[Path, threading.Thread] = {}


def within_deadline(seconds: float, root: Path, look: Callable[[], T]) -> T:
    """What ``look`` finds on the volume at ``root``.

    Args:
        seconds: how long it may take.
        root: the backup folder.
        look: reads, and changes nothing: it may come to its end long after it was given up.

    Raises:
        StalledVolumeError: it did not end in time.
        BaseException: what ``look`` raised.
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

"""Holds back signals for a moment in which they must not end this process.

The callers decide which moments: sending a signal to a program, taking back what an interrupted operation made.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

#: Signals that ask this process to end.
_DEFERRED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold back the signals that ask this process to end while the block runs, and deliver them after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread only
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _DEFERRED}
    # A handler that C installed (None) could not be put back.
    handlers = {number: each for number, each in handlers.items() if each not in (None, signal.SIG_IGN)}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in arrived:
            signal.raise_signal(each)

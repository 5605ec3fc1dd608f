"""Numbers and durations formatted for people. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


def human_bytes(count: float) -> str:
    """``1500`` -> ``1.5 kB``, in powers of 1000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(span: timedelta) -> str:
    """``1 d 2 h``, ``3 h 20 min``, ``5 min``, ``12 s``: at most two units, without the sign."""
    seconds = int(abs(span).total_seconds())
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{seconds} s"


def seconds(count: float) -> str:
    """``1.7 s``, ``42.0 s``; from a minute on, like :func:`duration`."""
    return f"{count:.1f} s" if count < 60 else duration(timedelta(seconds=count))


def some(names: Sequence[object], most: int = 5) -> str:
    """The first few items, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


#: The longest message: mail, chat and the UI's tables show this much.
MOST = 1000


def shortened(text: str, most: int = MOST) -> str:
    """The beginning and the end of ``text``, if it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    mark = f" … {len(text):,} characters … "
    end = max(0, most - len(mark)) // 3
    begin = max(0, most - len(mark) - end)
    return (text[:begin] + mark + text[len(text) - end :])[:most]


def signed(change: int) -> str:
    """``+1,200``, ``-3``, ``0``."""
    return f"{change:+,}" if change else "0"


#: How many lines are shown of a long list.
_SHOWN = 5


def joined(lines: Sequence[str]) -> str:
    """One line from many: the first few, and the number of the others."""
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return shortened("; ".join(lines[:_SHOWN]) + more)

"""Keeps secrets from the programs that we start: out of our environment, and out of what such a program prints.

A child gets an environment that is made for it, but every process of the same user may read the one that ours began
with (``/proc/PID/environ``): its bytes stay there whatever is unset. So they are overwritten where they stand.

That user can read the files of the settings, too: what must not have them at all is confined. For the same reason
``PR_SET_DUMPABLE`` is left alone: it would close ``/proc`` of this process to its own user, who then could not be told
which process holds a lock, and would close no file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

HIDDEN = "********"
#: Held by the thread that changes this process's environment for a moment.
ENVIRONMENT = threading.Lock()
#: ``env_start`` and ``env_end`` in /proc/PID/stat, counted from the third field (proc(5)).
_ENV_START, _ENV_END = 50 - 3, 51 - 3


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of our settings.

    Attributes:
        variables: names of the environment variables that hold one by value.
        read: gives the secrets as they are now.
    """

    variables: frozenset[str] = frozenset()
    read: Callable[[], Iterable[str]] = field(default=tuple, repr=False)

    def forget(self) -> None:
        """Remove the variables from this process's environment, for good; and whatever else has a secret as its value.

        Settings from code may have had theirs from a variable of any name. Only for a process that has read its
        settings, and starts no other that must read them.
        """
        secrets = frozenset(filter(None, self.read()))
        with ENVIRONMENT:
            names = self.variables | {name for name, value in os.environ.items() if value in secrets}
            for name in names:
                os.environ.pop(name, None)
            with contextlib.suppress(OSError, ValueError, IndexError):  # no Linux, no /proc: nothing to read there
                _overwrite(names)

    def redactor(self) -> Callable[[str], str]:
        """Hides the secrets as they are now, and as they are when it is used: a file may have been replaced since."""
        before = frozenset(self.read())

        def redact(text: str) -> str:
            for form in sorted(_forms(before.union(self.read())), key=len, reverse=True):
                text = text.replace(form, HIDDEN)
            return text

        return redact


def _forms(secrets: Iterable[str]) -> set[str]:
    """As they are written: as they are, or within a URL."""
    return {
        form
        for secret in secrets
        if secret
        for form in (secret, quote(secret, safe=""), quote(secret), quote_plus(secret))
    }


def _overwrite(variables: frozenset[str]) -> None:
    stat = Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    start, end = int(stat[_ENV_START]), int(stat[_ENV_END])
    for name, value_at, length in _entries(ctypes.string_at(start, end - start) if start else b""):
        if name in variables:
            ctypes.memset(start + value_at, 0, length)


def _entries(block: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, and where its value stands and how long it is, of each variable in the block."""
    at = 0
    for entry in block.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            yield os.fsdecode(name), at + len(name) + 1, len(value)
        at += len(entry) + 1

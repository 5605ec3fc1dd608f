"""Keeps secrets from the programs that we start: out of our environment, and out of a program's output.

A child gets an environment made for it. But every process of the same user can read the environment that this process
started with (``/proc/PID/environ``), and unsetting a variable does not change those bytes. So they are overwritten in
place.

The same user can read the settings' files, too; programs that must not read them are confined. That is also why
``PR_SET_DUMPABLE`` is not set: it would protect no file, but close ``/proc`` of this process to its own user, so that
messages could no longer name the process that holds a lock.
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
#: Held by a thread while it temporarily changes this process's environment.
ENVIRONMENT = threading.Lock()
#: ``env_start`` and ``env_end`` in /proc/PID/stat, counted from the third field (proc(5)).
_ENV_START, _ENV_END = 50 - 3, 51 - 3


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets in the settings.

    Attributes:
        variables: names of the environment variables whose values are secrets.
        read: returns the current secrets.
    """

    variables: frozenset[str] = frozenset()
    read: Callable[[], Iterable[str]] = field(default=tuple, repr=False)

    def forget(self) -> None:
        """Permanently remove from this process's environment the variables, and all others whose value is a secret.

        Settings made in code may have taken a secret from a variable of any name. Call this only in a process that has
        read its settings and starts no process that must read them.
        """
        secrets = frozenset(filter(None, self.read()))
        with ENVIRONMENT:
            names = self.variables | {name for name, value in os.environ.items() if value in secrets}
            for name in names:
                os.environ.pop(name, None)
            with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux, so there is no /proc to read from
                _overwrite(names)

    def redactor(self) -> Callable[[str], str]:
        """A function that hides the secrets of now and of the time of its call: a file may have been replaced since."""
        before = frozenset(self.read())

        def redact(text: str) -> str:
            for form in sorted(_forms(before.union(self.read())), key=len, reverse=True):
                text = text.replace(form, HIDDEN)
            return text

        return redact


def _forms(secrets: Iterable[str]) -> set[str]:
    """The spellings of the secrets: plain, and encoded for URLs."""
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
    """The name of each variable in the block, with its value's offset and length."""
    at = 0
    for entry in block.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            yield os.fsdecode(name), at + len(name) + 1, len(value)
        at += len(entry) + 1

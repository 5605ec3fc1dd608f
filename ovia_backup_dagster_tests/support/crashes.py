"""Kills an operation at each of its steps in turn, and runs actions as an unprivileged user.

Both in a forked child, so that tests see real files after the real end of a process.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

ORDINARY_USER = 65534
#: System calls that change a folder, or make a change durable.
STEPS = ("open", "fsync", "rename", "link", "unlink", "chmod", "fchmod", "fchown", "utime", "mkdir", "rmdir")


def killed_at_each_step(prepare: Callable[[], Callable[[], object]]) -> Iterator[int]:
    """Run an operation repeatedly, with ``kill -9`` before its 1st, 2nd, ... step; the last run is not killed.

    Args:
        prepare: makes a fresh volume before each run, and returns the operation on it.

    Yields:
        The number of each run, after its process has ended.
    """
    for number in count(1):
        operation = prepare()

        def run(operation: Callable[[], object] = operation, number: int = number) -> None:
            die_at(number)
            operation()

        code = in_a_child(run)
        assert code in (0, -signal.SIGKILL)
        yield number
        if code == 0:
            # An operation with few steps would prove nothing.
            assert number > 4
            return


def die_at(step: int) -> None:
    """Make this process kill itself before its ``step``-th step from now on."""
    left = step

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))


def in_a_child(action: Callable[[], object]) -> int:
    """Run the action in a forked child; return its exit code, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            # Skip the test runner's own exit: no teardown, no report.
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def raised_as_nobody(action: Callable[[], object]) -> BaseException | None:
    """The exception that the action raises for a user to whom file modes apply, unlike root.

    Root becomes an ordinary account; another user stays the same, so deny access by ``chmod`` and not by owner.
    """
    reading, writing = os.pipe()

    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(ORDINARY_USER)
            os.setuid(ORDINARY_USER)
        outcome: BaseException | None = None
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome = error
        os.write(writing, pickle.dumps(outcome))

    try:
        code = in_a_child(run)
    finally:
        os.close(writing)
    with open(reading, "rb") as file:
        answer = file.read()
    assert code == 0, "the child could not even report"
    outcome: BaseException | None = pickle.loads(answer)
    return outcome

"""Which of the tests marked ``exhaustive`` run: none, all, or the day's third. And the seed of their random moments.

An exhaustive test repeats for every step, mode or moment what the daily suite shows once for each kind. ``EXHAUSTIVE``
chooses: unset for none (``make test``), ``all`` (``make test-faults``), ``third`` (CI). The seed is the number of the
day, UTC, so that three days in a row run all of them; ``FAULTS_SEED`` repeats another run. Only the choice belongs
here; what a round does belongs to its test.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeVar

import pytest
from _pytest.mark import ParameterSet

MARK = "exhaustive"
THIRDS = 3
_EXHAUSTIVE = pytest.mark.exhaustive
Choice = Literal["", "third", "all"]


class Item(Protocol):
    """The part of a pytest item that is used."""

    @property
    def nodeid(self) -> str: ...


T = TypeVar("T", bound=Item)


def choice() -> Choice:
    """The value of ``EXHAUSTIVE``.

    Raises:
        ValueError: it has another value.
    """
    match os.environ.get("EXHAUSTIVE", ""):
        case "" | "third" | "all" as chosen:
            return chosen
        case other:
            raise ValueError(f"EXHAUSTIVE={other!r}: it is unset, third or all")


def seed() -> int:
    """The number that chooses the third and the random moments, the same in all processes of one run."""
    return int(os.environ.get("FAULTS_SEED") or datetime.now(UTC).toordinal())


def chosen(items: Sequence[T], which: Choice, number: int) -> list[T]:
    """The exhaustive tests that run, in their order.

    Args:
        number: the seed. Three seeds in a row choose each test exactly once.
    """
    if which == "all":
        return list(items)
    if which == "":
        return []
    return [item for item in items if zlib.crc32(item.nodeid.encode()) % THIRDS == number % THIRDS]


def thinned(cases: Iterable[object], *, daily: int = 1, together: bool = False) -> list[ParameterSet]:
    """Cases for ``pytest.mark.parametrize``: the first ``daily`` of them run daily, all others are exhaustive.

    Put first the case that stands for the others.

    Args:
        together: each case is the value of one argument, even if it is a tuple.
    """
    found = [case if isinstance(case, ParameterSet) else pytest.param(*_values(case, together)) for case in cases]
    return [
        *found[:daily],
        *(
            pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.exhaustive])
            for case in found[daily:]
        ),
    ]


def _values(case: object, together: bool) -> tuple[object, ...]:
    return case if isinstance(case, tuple) and not together else (case,)

"""Which of the tests marked ``exhaustive`` run: none, all, or the day's third. And the seed of their random moments.

An exhaustive test repeats for every step, mode or moment what the daily suite shows once for each kind. ``EXHAUSTIVE``
chooses: unset for none (``make test``), ``all`` (``make test-faults``), ``third`` (CI). The seed is the number of the
day, UTC, so that three days in a row run all of them; ``FAULTS_SEED`` repeats another run. Only the choice belongs
here; what a round does belongs to its test. So does how many examples a property is tried with.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeVar

import pytest
from _pytest.mark import ParameterSet
from hypothesis import settings

MARK = "exhaustive"
#: The profile of hypothesis for `make coverage`.
LINES = "lines"
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


def examples(daily: int, thorough: int = 0, **more: Any) -> settings:
    """Hypothesis's settings for a property: how many examples daily, and with the exhaustive tests.

    ``make coverage``, which needs each line once, takes as few as its profile.
    """
    if settings.get_current_profile_name() == LINES:
        return settings(**more)
    return settings(max_examples=thorough if thorough and choice() else daily, **more)


def thinned(cases: Iterable[object], *, daily: int = 1, together: bool = False) -> list[ParameterSet]:
    """Cases for ``pytest.mark.parametrize``: the first ``daily`` of them run daily, all others are exhaustive.

    Put first the case that stands for the others.

    Args:
        together: each case is the value of one argument, even if it is a tuple.
    """
    found = _parameter_sets(cases, together)
    return [*found[:daily], *map(_exhaustive, found[daily:])]


def sampled(cases: Iterable[object], *, every: int, together: bool = False) -> list[ParameterSet]:
    """Like :func:`thinned`, for many cases of which none stands for the others: every so many-th runs daily."""
    found = _parameter_sets(cases, together)
    return [case if number % every == 0 else _exhaustive(case) for number, case in enumerate(found)]


def _parameter_sets(cases: Iterable[object], together: bool) -> list[ParameterSet]:
    return [case if isinstance(case, ParameterSet) else pytest.param(*_values(case, together)) for case in cases]


def _exhaustive(case: ParameterSet) -> ParameterSet:
    return pytest.param(*case.values, id=case.id, marks=[*case.marks, _EXHAUSTIVE])


def _values(case: object, together: bool) -> tuple[object, ...]:
    return case if isinstance(case, tuple) and not together else (case,)

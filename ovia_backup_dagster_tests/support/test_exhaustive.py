"""The choice of exhaustive tests."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ovia_backup_dagster_tests.support.exhaustive import choice, chosen, seed, thinned


@dataclass(frozen=True)
class Named:
    nodeid: str


ITEMS = [Named(f"test_killed.py::test_at[{number}]") for number in range(300)]


def test_none_runs_by_default() -> None:
    assert chosen(ITEMS, "", 7) == []


def test_all_run_when_asked_for() -> None:
    assert chosen(ITEMS, "all", 7) == ITEMS


@pytest.mark.parametrize("first", [0, 1, 739_950])
def test_three_days_in_a_row_run_each_test_once(first: int) -> None:
    days = [chosen(ITEMS, "third", first + day) for day in range(3)]
    assert sorted((item for day in days for item in day), key=ITEMS.index) == ITEMS
    assert all(60 < len(day) < 140 for day in days)


def test_the_seed_repeats_another_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS_SEED", "12")
    assert seed() == 12


def test_an_unknown_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXHAUSTIVE", "most")
    with pytest.raises(ValueError, match="unset, third or all"):
        choice()


def test_the_first_cases_run_daily_the_others_exhaustively() -> None:
    cases = thinned([("a", 1), pytest.param("b", 2, id="second", marks=pytest.mark.faults), ("c", 3)], daily=1)
    assert [case.values for case in cases] == [("a", 1), ("b", 2), ("c", 3)]
    assert [[mark.name for mark in case.marks] for case in cases] == [[], ["faults", "exhaustive"], ["exhaustive"]]
    assert cases[1].id == "second"


def test_a_case_that_is_a_tuple_stays_a_tuple() -> None:
    assert [case.values for case in thinned([("a", 1)], together=True)] == [(("a", 1),)]

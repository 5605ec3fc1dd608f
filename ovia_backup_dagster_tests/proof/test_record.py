"""The record of a proof: the results of checks, and the checks that were not made."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.proof.check_results import NO_CODE, CheckResult, Result
from ovia_backup_dagster.proof.record import ProofRecord


@pytest.fixture
def record() -> ProofRecord:
    return ProofRecord(lambda _: None)


@pytest.mark.parametrize(
    ("check", "wrong", "odd", "result", "text"),
    [
        (Check.TABLES, ["a", "b"], ["c"], Result.FAILED, "a; b; c"),
        (Check.SCHEMA_TEXT, ["a"], [], Result.ODD, "a"),
        (Check.TABLES, [], ["c"], Result.ODD, "c"),
        (Check.TABLES, [], [], Result.PASSED, "well"),
    ],
)
def test_a_finding_is_as_severe_as_its_check(
    record: ProofRecord, check: Check, wrong: list[str], odd: list[str], result: Result, text: str
) -> None:
    record.add(check, wrong, odd=odd, passed="well")

    assert record.lines == [CheckResult(check=check, result=result, text=text)]
    assert record.failed is (result is Result.FAILED)


def test_a_check_not_made_is_listed_once_and_fails_nothing(record: ProofRecord) -> None:
    record.add(Check.OWN_CHECK, [], passed="DRILL_CHECK_COMMAND is not set", result=Result.NOT_MADE)
    record.list_unmade(Stage.DRILL)
    record.list_unmade(Stage.DRILL)

    assert [line.check for line in record.lines_in_order] == list(Check.at(Stage.DRILL))
    assert {line.result for line in record.lines} == {Result.NOT_MADE}
    assert {line.text for line in record.lines} == {NO_CODE, "DRILL_CHECK_COMMAND is not set"}
    assert not record.failed


def test_a_restore_tells_a_drills_check_from_one_without_code(record: ProofRecord) -> None:
    record.list_unmade(Stage.RESTORE)

    texts = {line.check: line.text for line in record.lines}
    assert texts.keys() == set(Check.at(Stage.DRILL))
    assert texts[Check.CONTROL] == "not a check of a restore"
    assert texts[Check.TABLES] == NO_CODE


def test_a_repeated_phase_adds_up_and_a_failed_one_counts(record: ProofRecord) -> None:
    with record.phase("restore"):
        pass
    before = record.phases["restore"]
    with pytest.raises(ValueError, match="no"), record.phase("restore"):
        raise ValueError("no")

    assert record.phases["restore"] > before
    assert list(record.seconds) == ["restore"]

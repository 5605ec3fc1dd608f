"""Copies on remotes in Dagster: a step and a check for each remote, and an alert about the one that fails."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.health.condition import ConditionLevel, Question, assess
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.support import CHAIN, DAILY_JOB, Location
from ovia_backup_dagster_tests.support.remotes import remote_settings

VERIFICATION_JOB = "offsite_verification_job"


@pytest.fixture
def two(new_location: NewLocation, tmp_path: Path) -> Location:
    """A location with two remotes, both ours."""
    statement_log._read.clear()
    location = new_location(**remote_settings(tmp_path, "first", "second-one"))
    offsite = location.system.offsite
    for remote in offsite.remotes():
        RemoteLog(remote, location.system.required_statement_log).initialize(datetime.now(UTC))
    return location


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    found = (each for each in result.get_asset_check_evaluations() if each.check_name.endswith("_remote"))
    return {each.asset_key.to_user_string(): each.passed for each in found}


def test_each_remote_has_a_step_after_the_chain(two: Location) -> None:
    result = two.run(DAILY_JOB)
    assert result.success
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert set(steps[: len(CHAIN)]) == set(CHAIN), "an upload does not delay the volume's steps"
    assert set(steps[len(CHAIN) :]) == {
        f"offsite_{what}_{remote}" for what in ("copy", "pruning") for remote in ("first", "second_one")
    }
    shown = result.asset_materializations_for_node("offsite_copy_first")[0].metadata
    assert (shown["copies"].value, shown["sent"].value) == (1, 1)
    verified = two.run(VERIFICATION_JOB)
    assert verified.success
    assert verified.asset_materializations_for_node("offsite_verification_second_one")[0].metadata["copies"].value == 1
    answer = assess(two.system, datetime.now(UTC)).answer(Question.COPIES)
    assert answer is not None
    assert (answer.level, answer.what.count("1 copy on")) == (ConditionLevel.OK, 2)


@pytest.mark.exhaustive
def test_one_remote_fails_and_all_else_goes_on(two: Location, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "first")
    result = two.run(DAILY_JOB)
    assert result.success, "the backup on the volume is good"
    assert checks(result) == {
        "offsite_copy_first": False,
        "offsite_copy_second_one": True,
        "offsite_pruning_second_one": True,
    }
    state = assess(two.system, datetime.now(UTC))
    assert state.kinds == "copies on first"
    assert "nothing can be copied to remote first: remote first has no marker" in state.trouble
    assert not (tmp_path / "first").exists()


def test_without_remotes_there_are_no_such_assets(location: Location) -> None:
    keys = location.defs.resolve_asset_graph().get_all_asset_keys()
    assert not [key for key in keys if key.path[-1].startswith("offsite")]

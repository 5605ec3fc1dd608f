"""A restore is finished with the steps that it began with, even if the code has another sequence by then.

Other versions are simulated by other sequences in the registry, which forked processes inherit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.core.errors import BackupError, JournalError, UnknownStepError
from ovia_backup_dagster.drill.runner import MADE_BY
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step, StopServices
from ovia_backup_dagster.restoration.step_data import StepData, SwapData
from ovia_backup_dagster.restoration.steps import registry
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.restore_copy import RestoreStep
from ovia_backup_dagster.restoration.steps.services import HealthStep, MigrateStep, StartStep, StopStep
from ovia_backup_dagster.restoration.steps.swap_step import SwapStep
from ovia_backup_dagster_tests.restoration.docker_engine import Engine
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import (
    REPLICAS,
    SWAP,
    Site,
    ended_as,
    killed_at,
    order,
    with_services,
    words_of,
    written,
)

HERE = Path(__file__).parents[1]


class WarmData(StepData):
    """Data of a step that no version has."""

    step = "warm"

    tables: int = 0


class WarmStep(TakenStep):
    """A step that no version has: one class, and its place in a sequence."""

    data = WarmData

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"warm {order.incoming}"

    def note(self) -> WarmData:
        return WarmData(tables=3)

    def take(self) -> WarmData:
        noted = self.work.journal.data(WarmData)
        return WarmData(notes=(f"{noted.tables} tables are warm",))

    def put_back(self) -> list[BackupError]:
        if self.work.journal.begun("warm"):
            self.work.note("warm", ["cold again"])
        return []


@contextmanager
def sequence(mode: Mode, *kinds: type[TakenStep]) -> Iterator[None]:
    """In the block, and in processes forked in it, a restore begins with this sequence."""
    with mock.patch.dict(registry.SEQUENCES, {mode: kinds}):
        yield


@pytest.fixture
def swarm(site: Site, tmp_path: Path) -> Iterator[tuple[Site, Engine]]:
    with with_services(site, tmp_path) as found:
        yield found


def journal_of(site: Site) -> Path:
    (path,) = (site.place.root / "restores").glob("*.journal")
    return path


# ------------------------------------------------------------------------------------------------- version 1

_STEPS_OF_0_1_0 = {
    Mode.SWAP: "restore, stop services, swap, migrate, start services, health",
    Mode.DROP: "drill, stop services, drop database, restore, name, migrate, start services, health",
    Mode.NEW: "restore, name, migrate, start services, health",
    Mode.UNDO: "stop services, swap, start services, health",
}


@pytest.mark.parametrize("mode", Mode)
def test_an_order_without_steps_has_those_of_version_1(mode: Mode) -> None:
    everything = {"services": {"api": None}, "migrate": "m", "health_url": "http://api/health", "takes_name": True}
    assert ", ".join(order(mode, **everything).steps) == _STEPS_OF_0_1_0[mode]
    with sequence(mode, WarmStep):
        assert ", ".join(order(mode, **everything).steps) == _STEPS_OF_0_1_0[mode]
        assert registry.steps_of(order(mode, **everything)) == ("warm",)


def test_every_step_of_version_1_is_known_forever() -> None:
    for text in _STEPS_OF_0_1_0.values():
        for word in text.split(", "):
            assert registry.find_kind(word) is not None, word
    assert {str(step) for step in Step} == set(", ".join(_STEPS_OF_0_1_0.values()).split(", "))


@given(
    mode=st.sampled_from(Mode),
    stop=st.sampled_from(StopServices),
    services=st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3)),
    migrate=st.sampled_from(["", "m"]),
    health=st.sampled_from(["", "h"]),
    takes_name=st.booleans(),
)
def test_new_restores_have_a_sound_order_of_steps(
    mode: Mode, stop: StopServices, services: dict[str, int | None], migrate: str, health: str, takes_name: bool
) -> None:
    asked = order(
        mode, stop_services=stop, services=services, migrate=migrate, health_url=health, takes_name=takes_name
    )
    steps: Sequence[str] = registry.steps_of(asked)
    assert len(set(steps)) == len(steps)
    changing = [step for step in (Step.DROP, Step.SWAP) if step in steps]
    if services and changing:
        assert steps.index(Step.STOP) < steps.index(changing[0]) < steps.index(Step.START)
        assert (steps[0] == Step.STOP) or stop is not StopServices.FIRST
    if Step.DROP in steps:
        assert steps.index(Step.DRILL) < steps.index(Step.DROP)
    if Step.SWAP in steps and Step.RESTORE in steps:
        assert steps.index(Step.RESTORE) < steps.index(Step.SWAP)
    assert (Step.NAME in steps) == (takes_name and mode in (Mode.DROP, Mode.NEW))
    assert (Step.HEALTH in steps) == bool(health)


# ------------------------------------------------------------------------------------------------- begun and resumed


def test_a_restore_resumes_in_its_stored_order(swarm: tuple[Site, Engine]) -> None:
    """The version that began it stops the services before it restores."""
    site, docker = swarm
    stop_first = (StopStep, RestoreStep, SwapStep, MigrateStep, StartStep, HealthStep)
    with sequence(Mode.SWAP, *stop_first), killed_at(0, before=False):
        assert site.restore().killed
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    own = words_of(Step.STOP, Step.RESTORE, Step.SWAP, Step.MIGRATE, Step.START, Step.HEALTH)
    assert written(site) == (own[0], *own)  # stopping was begun twice
    ended_as(site, "new")
    assert docker.replicas == {**REPLICAS, "migrate": 1}


@pytest.mark.parametrize("stored", thinned([True, False]), ids=["stored", "of version 1"])
def test_a_resume_skips_a_new_step_that_it_is_past(swarm: tuple[Site, Engine], stored: bool) -> None:
    """The upgrade has a new step before the swap; the resumed restore is already past it."""
    site, _ = swarm
    with killed_at(SWAP.index((JournalMark.DONE, Step.SWAP)), before=False):
        assert site.restore().killed
    if not stored:
        path = journal_of(site)
        first, rest = path.read_text(encoding="utf-8").split("\n", 1)
        said = json.loads(first)
        assert said.pop("steps") == [str(step) for mark, step in SWAP if mark is JournalMark.BEGUN]
        path.write_text(json.dumps(said) + "\n" + rest, encoding="utf-8")
    with sequence(Mode.SWAP, RestoreStep, WarmStep, StopStep, SwapStep, MigrateStep, StartStep, HealthStep):
        ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert written(site) == SWAP
    ended_as(site, "new")


# ------------------------------------------------------------------------------------------------- unknown steps


@pytest.mark.parametrize("before", thinned([True, False]), ids=["before it", "in it"])
def test_a_newer_versions_restore_is_left_unchanged(site: Site, before: bool) -> None:
    with sequence(Mode.SWAP, RestoreStep, WarmStep, SwapStep), killed_at(2 if before else 3, before=False):
        assert site.restore().killed
    said = journal_of(site).read_bytes()
    for verb in ("--resume", "--abort"):
        line = site.place.run("restore", verb).refused()
        assert "has the step 'warm', which this version does not know" in line
        assert f"use {MADE_BY}, or a newer one" in line
        assert "\n" not in line.strip()
    assert "--resume" in site.restore().refused()
    assert journal_of(site).read_bytes() == said
    with sequence(Mode.SWAP, RestoreStep, WarmStep, SwapStep):
        ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    ended_as(site, "new")


def test_the_record_of_a_newer_version_is_in_the_history(site: Site) -> None:
    """So are the subscriptions to enable again, and the server on which the database went live."""
    with sequence(Mode.SWAP, RestoreStep, WarmStep, SwapStep):
        assert site.restore().code == 0
    (record,) = site.records
    assert record.order.steps == ("restore", "warm", "swap")
    assert "3 tables are warm" in record.notes
    assert RestoreFolder(site.place.catalog).swap_that_kept(record.kept) == record


def test_a_new_step_is_noted_taken_and_put_back(site: Site) -> None:
    """A step needs only one class and a place in a sequence."""
    with sequence(Mode.SWAP, RestoreStep, WarmStep, SwapStep):
        plan = site.restore("--plan", confirm=False)
        assert "2. warm " in plan.output
        with killed_at(5, before=True):
            assert site.restore().killed
        assert Journal.read(journal_of(site)).data(WarmData).tables == 3
        ended = site.place.run("restore", "--abort")
        assert ended.code == 0, ended.output
    assert "cold again" in site.records[0].notes
    ended_as(site, "old")
    assert one(site.live, "SELECT 1") == 1


# ------------------------------------------------------------------------------------------------- the data of steps


def test_unreadable_step_data_is_refused_before_any_change(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    line = {"at": "2026-11-23T12:00:00Z", "mark": "begun", "step": "swap", "data": {"live_oid": "many"}}
    path.write_text(order().model_dump_json() + "\n" + json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(JournalError, match="cannot be understood: swap: live_oid: Input should be a valid integer"):
        registry.refuse_unknown(Journal.read(path))
    line["step"], line["data"] = "warm", {}
    path.write_text(order().model_dump_json() + "\n" + json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(UnknownStepError, match="has the step 'warm'"):
        registry.refuse_unknown(Journal.read(path))


def test_golden_journals_fit_the_models_of_their_steps() -> None:
    seen: set[str] = set()
    for path in sorted((HERE / "golden" / "volume" / "restores").glob("*.journal")):
        for entry in Journal.read(path).entries:
            kind = registry.find_kind(entry.step) if entry.step else None
            model: type[StepData] = kind.data if kind else StepData
            found = model.model_validate(entry.data)
            assert found.model_dump(mode="json", include=set(entry.data)) == entry.data, path.name
            seen |= {f"{entry.step}.{name}" for name in entry.data}
    assert {"swap.counters", "drop database.properties", "restore.proven", "migrate.runs"} <= seen


def test_unset_step_data_is_not_written(tmp_path: Path) -> None:
    """A journal of this version has the same fields as one of version 1."""
    path = tmp_path / "restores" / "x.journal"
    path.parent.mkdir()
    path.write_text(order().model_dump_json() + "\n", encoding="utf-8")
    journal = Journal.read(path)
    journal.write(JournalMark.BEGUN, Step.SWAP, SwapData(live_oid=1, incoming_oid=2))
    journal.write(JournalMark.DONE, Step.SWAP)
    data: list[Any] = [json.loads(line)["data"] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert data == [{"live_oid": 1, "incoming_oid": 2}, {}]

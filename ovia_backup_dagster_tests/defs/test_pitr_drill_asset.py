"""``pitr_drill`` in Dagster: what a drill that passes and one that fails record, and when the schedule launches one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster_tests.conftest import PASSWORD
from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.pitr.history import History, history_on, short_folder
from ovia_backup_dagster_tests.support.command_line import InProcessCli

SHOP = "shop"


@pytest.fixture(scope="module")
def history(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    volume = tmp_path_factory.mktemp("pitr") / "volume"
    with ground_on(full_bin_dir) as ground:
        ground.execute(f"CREATE DATABASE {SHOP}")
        with history_on(ground, volume, POSTGRES_DB=SHOP) as made:
            made.commit("rows", "CREATE TABLE orders AS SELECT n FROM generate_series(1, 50) n", database=SHOP)
            yield made


@pytest.fixture
def settings(history: History, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    with short_folder() as drills:
        found = history.ground.settings(
            history.volume, POSTGRES_DB=SHOP, POSTGRES_PASSWORD=PASSWORD, DRILL_DIR=str(drills)
        )
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        yield found


def _due(defs: dg.Definitions) -> dg.RunRequest | str:
    schedule = defs.resolve_schedule_def("pitr_drill_schedule")
    with dg.build_schedule_context(scheduled_execution_time=datetime.now(UTC)) as context:
        found = schedule.evaluate_tick(context)
    return found.skip_message or found.run_requests[0]  # type: ignore[index]


def test_drills_are_launched_when_due_and_recorded(history: History, settings: dict[str, str]) -> None:
    cli, defs = InProcessCli(settings), build_defs(Settings.load())
    job = defs.resolve_job_def("pitr_drill_job")
    assert _due(defs) == "there is no base backup yet"
    history.base_backup()
    assert "no verified dump ends after base backup" in str(_due(defs))
    history.commit("after", "CREATE TABLE later ()", database=SHOP)
    assert cli("dump").returncode == 0
    assert cli("verify").returncode == 0
    assert isinstance(_due(defs), dg.RunRequest)

    done = job.execute_in_process(raise_on_error=False)
    assert done.success
    checks = {each.check_name: each.passed for each in done.get_asset_check_evaluations()}
    assert len(checks) == 8
    assert all(checks.values())
    [materialized] = done.get_asset_materialization_events()
    shown = materialized.step_materialization_data.materialization.metadata
    assert shown["rows"].value == 50
    assert "passed a drill on" in str(_due(defs))

    # The dump is made to name the commit before its rows.
    history.commit("more", "INSERT INTO orders VALUES (51)", database=SHOP)
    history.running.until_safe()
    before = history.end_of("more")
    history.commit("last", "INSERT INTO orders VALUES (52)", database=SHOP)
    assert cli("dump").returncode == 0
    dump = max((history.volume / "daily").glob("*.dump"))
    path = dump.with_name(f"{dump.name}.json")
    manifest = json.loads(path.read_text())
    manifest["wal_point"] |= {"lsn": str(before.lsn), "xid": before.xid}
    path.write_text(json.dumps(manifest))
    assert cli("verify").returncode == 0
    done = job.execute_in_process(raise_on_error=False)
    assert not done.success
    assert [each.check_name for each in done.get_asset_check_evaluations() if not each.passed] == [
        "tables_equal_the_dump"
    ]
    assert done.get_asset_materialization_events() == []


def test_without_pitr_nothing_of_it_is_defined(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PITR_ENABLED")
    assert os.environ.get("PITR_ENABLED") is None
    keys = {key.to_user_string() for key in build_defs(Settings.load()).resolve_asset_graph().get_all_asset_keys()}
    assert "pitr_drill" not in keys
    assert "daily_dump" in keys

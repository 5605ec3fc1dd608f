"""Several databases in one code location, beside definitions of others: the databases share nothing with them.

Each database has its own names for everything that Dagster knows by name, and its texts use those names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.defs.database_names import LOCATION_NAMES, DatabaseNames
from ovia_backup_dagster.health.freshness import AGAIN
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    CHAIN,
    DAILY_JOB,
    Daemon,
    Location,
    failure,
    load,
    materialized,
    names_of,
    old_dump,
)

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

HOST = {"POSTGRES_HOST": "127.0.0.1"}


def of_other_people() -> dg.Definitions:
    """Definitions of others: a resource with the name that ours once had, and another executor."""

    @dg.asset(group_name="backup")
    def daily_report(backups: dg.ResourceParam[str]) -> None: ...

    @dg.op
    def restore() -> None: ...

    @dg.job
    def restore_job() -> None:
        restore()

    return dg.Definitions(
        assets=[daily_report], jobs=[restore_job], resources={"backups": "theirs"}, executor=dg.multiprocess_executor
    )


def merged(count: int) -> dg.Definitions:
    ours = (
        build_defs(load({**HOST, "POSTGRES_DB": f"db{n}", "BACKUP_DIR": f"/backups/{n}"}), prefix=f"db{n}")
        for n in range(count)
    )
    return dg.Definitions.merge(*ours, of_other_people())


def jobs_of(defs: dg.Definitions) -> list[dg.JobDefinition]:
    return [job for job in defs.resolve_all_job_defs() if not job.name.startswith("__")]


def ops_of(defs: dg.Definitions) -> Iterator[str]:
    for job in jobs_of(defs):
        yield from (node.name for node in job.graph.node_defs)


@pytest.mark.parametrize("count", [2, 30])
def test_databases_merge_with_other_definitions(count: int) -> None:
    defs = merged(count)
    dg.Definitions.validate_loadable(defs)
    assert defs.executor is dg.multiprocess_executor
    assert dict(defs.resources or {}) == {"backups": "theirs"}
    triggers = [str(trigger.name) for trigger in [*(defs.schedules or []), *(defs.sensors or [])]]
    names = [*(job.name for job in jobs_of(defs)), *triggers]
    # There is no remote, and point-in-time recovery is off.
    ours = [name for name in LOCATION_NAMES if not name.startswith(("offsite_", "base_backup_", "pitr_"))]
    assert len(set(names)) == len(names) == count * len(ours) + 1
    # Our jobs are already in their own process, and keep their executor whatever the others' is.
    assert {job.name for job in jobs_of(defs) if job.executor_def is not dg.in_process_executor} == {"restore_job"}


def test_every_name_is_prefixed() -> None:
    plain = build_defs(load({**HOST, "PITR_ENABLED": "true"}))
    ours = build_defs(load({**HOST, "PITR_ENABLED": "true"}), prefix="orders")
    for kind, names in names_of(plain).items():
        if kind == "pools":
            continue
        between = "_" if kind == "groups" else "/"
        assert names_of(ours)[kind] == {f"orders{between}{name}" for name in names}
    assert {job.name for job in jobs_of(ours)} == {f"orders_{job.name}" for job in jobs_of(plain)}
    assert set(ops_of(ours)) == {
        f"orders_{op}" if op in ("restore", "kept_databases", "history_pruning") else f"orders__{op}"
        for op in ops_of(plain)
    }
    for schedule in ours.schedules or []:
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.name.startswith("orders_")
        assert schedule.job_name.startswith("orders_")
    (sensor,) = ours.sensors or []
    assert (sensor.name, sensor.job_name) == ("orders_backup_freshness_sensor", "orders_freshness_alert_job")


def test_no_description_names_an_unprefixed_definition() -> None:
    """People would look in vain for a name that no definition has."""
    ours = build_defs(load({**HOST, "PITR_ENABLED": "true"}), prefix="orders")
    texts = [spec.description or "" for spec in ours.resolve_all_asset_specs()]
    texts += [str(each.description) for each in (*jobs_of(ours), *(ours.schedules or []), *(ours.sensors or []))]
    for job in jobs_of(ours):
        texts += [str(op.description) for op in job.graph.node_defs]
    found = {name for text in texts for name in re.findall(rf"\b\w*(?:{'|'.join(LOCATION_NAMES)})\b", text)}
    assert found == {"orders_kept_databases_job", "orders_backup_freshness_sensor"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AGAIN, AGAIN.replace(DAILY_JOB, f"orders_{DAILY_JOB}")),
        ("see retention_pruning, and orders/daily_dump", "see orders/retention_pruning, and orders/daily_dump"),
        ("orders_restore_job", "orders_restore_job"),
        ("launch restore_job with action: plan", "launch orders_restore_job with action: plan"),
        ("/backups/restore_drill/x", "/backups/restore_drill/x"),
    ],
)
def test_texts_use_the_prefixed_names(text: str, expected: str) -> None:
    names = DatabaseNames("orders", Path("/backups"), shares_location=True)
    assert names.in_words(text) == names.in_words(names.in_words(text)) == expected
    assert DatabaseNames("orders", Path("/backups")).in_words(text) == text


# ---------------------------------------------------------------- volumes


def pools_of(defs: dg.Definitions) -> dict[str, str]:
    assets = (defs.resolve_assets_def(spec.key) for spec in defs.resolve_all_asset_specs())
    pools = {asset.op.name: str(asset.op.pool) for asset in assets if asset.op.pool}
    for job in jobs_of(defs):
        pools |= {node.name: str(node.pool) for node in job.graph.node_defs if isinstance(node, dg.OpDefinition)}
    return pools


def test_runs_wait_only_for_runs_on_the_same_volume() -> None:
    folders = {"orders": "/backups", "people": "/backups", "crm": "/other/backups"}
    built = {name: build_defs(load({**HOST, "BACKUP_DIR": d}), prefix=name) for name, d in folders.items()}
    volume = {name: pools_of(defs)[f"{name}__daily_dump"] for name, defs in built.items()}
    restore = {name: pools_of(defs)[f"{name}_restore"] for name, defs in built.items()}
    drill = {name: pools_of(defs)[f"{name}__restore_drill"] for name, defs in built.items()}
    for pools in (volume, restore):
        assert pools["orders"] == pools["people"] != pools["crm"]
    assert len({*volume.values(), *restore.values(), *drill.values()}) == 2 + 2 + 3
    tags = {name: d.resolve_job_def(f"{name}_{DAILY_JOB}").tags["ovia/volume"] for name, d in built.items()}
    assert tags == folders


# ---------------------------------------------------------------- schedules


def crons(prefix: str, **settings: str) -> dict[str, str]:
    defs = build_defs(load({**HOST, **settings}), prefix=prefix)
    found = {}
    for schedule in defs.schedules or []:
        assert isinstance(schedule, dg.ScheduleDefinition)
        found[schedule.name.removeprefix(f"{prefix}_")] = str(schedule.cron_schedule)
    return found


def test_default_schedules_are_spread_over_the_hour() -> None:
    """By a function of the name: the same at each load and on each machine."""
    assert crons("orders")["daily_backup_schedule"] == "47 3 * * *"
    assert crons("orders")["restore_drill_schedule"] == "47 5 1 * *"
    minutes = {crons(f"db{n}")["daily_backup_schedule"].split()[0] for n in range(30)}
    assert len(minutes) > 15
    assert crons("")["daily_backup_schedule"] == "0 3 * * *"


def test_an_explicit_schedule_is_not_staggered() -> None:
    """Even if it equals the default."""
    found = crons("orders", BACKUP_SCHEDULE="0 3 * * *", DRILL_SCHEDULE="30 4 2 * *")
    assert found["daily_backup_schedule"] == "0 3 * * *"
    assert found["restore_drill_schedule"] == "30 4 2 * *"


# ---------------------------------------------------------------- runs


def shared(new: NewLocation, prefix: str, **settings: str) -> Location:
    location: Location = new(**settings)
    location.prefix = prefix
    return location


def test_the_chain_runs_under_its_prefixed_names(new_location: NewLocation) -> None:
    location = shared(new_location, "orders")
    result = location.run(f"orders_{DAILY_JOB}")
    assert result.success, failure(result)
    assert list(materialized(result)) == [f"orders/{name}" for name in CHAIN]
    assert "this run made no dump" not in location.logs(result.run_id)


def test_sensor_and_alert_are_of_their_own_database(
    new_location: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another database's job failed on the same instance; our alert names only our own trouble and jobs."""
    theirs = shared(new_location, "people", POSTGRES_USER="nobody_of_that_name")
    assert not theirs.run(f"people_{DAILY_JOB}").success
    ours = shared(new_location, "orders", BACKUP_NOTIFY_URLS=people.url)
    old_dump(ours.catalog, timedelta(days=2))
    daemon = Daemon(ours, monkeypatch, clock=None)
    request = daemon.tick()
    assert request is not None
    assert ours.run(f"orders_{ALERT_JOB}", config=request.run_config, tags=request.tags).success
    (message,) = people.messages
    assert message["title"] == f"[orders/{ours.settings.postgres_db}] the newest backup is too old"
    assert f"launch orders_{DAILY_JOB} in the Dagster UI" in message["message"]
    assert "people" not in message["message"]
    # A failed run of our own is in the alert.
    ours.settings = ours.settings.model_copy(update={"postgres_user": "nobody_of_that_name"})
    assert not ours.run(f"orders_{DAILY_JOB}").success
    assert ours.run(f"orders_{ALERT_JOB}").success
    assert "Last failed run: " in people.messages[-1]["message"]


def test_a_plan_names_its_own_restore_job(new_location: NewLocation) -> None:
    location = shared(new_location, "orders")
    location.dump()
    config = {"ops": {"orders_restore": {"config": {"action": "plan"}}}}
    result = location.run("orders_restore_job", config=config)
    assert result.success, failure(result)
    said = location.logs(result.run_id)
    assert "launch orders_restore_job again, with the same fields, action: restore" in said
    assert not re.search(r"launch restore_job\b", said)


def test_the_alert_runs_with_another_executor(bare: NewLocation) -> None:
    """A launch from the asset graph uses the location's executor, and no resource of ours."""
    location = shared(bare, "orders")
    defs = dg.Definitions.merge(location.defs, of_other_people())
    job = defs.resolve_implicit_global_asset_job_def()
    assert job.executor_def is dg.multiprocess_executor
    key = dg.AssetKey(["orders", ALERT])
    assert job.execute_in_process(instance=location.instance, asset_selection=[key]).success

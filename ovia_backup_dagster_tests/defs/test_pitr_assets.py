"""Base backups in Dagster, with a real server and a receiver that runs: made, verified, pruned, and told of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.core.locking import reading
from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.base_manifest import BASE
from ovia_backup_dagster.pitr.bases import read_bases
from ovia_backup_dagster.pitr.receiver_status import read_status, write_status
from ovia_backup_dagster_tests.conftest import PASSWORD
from ovia_backup_dagster_tests.defs.receiver import Receiver as People
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    Daemon,
    Location,
    checks,
    failed_steps,
    failure,
    flip_byte,
    load,
    materialized,
    names_of,
    records,
)
from ovia_backup_dagster_tests.pitr.ground import Ground, ground_on
from ovia_backup_dagster_tests.pitr.receiving import Receiver, receiver, switch

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

CHAIN = ("base_backup", "base_backup_verification", "wal_archive_pruning")
JOB = "base_backup_job"
ON = {"POSTGRES_HOST": "db.example.org", "PITR_ENABLED": "true"}
#: A window of a tenth of a second: all but the newest base backup is before it.
NO_WINDOW = {"RECOVERY_WINDOW_DAYS": "0.000001"}


@pytest.fixture(scope="module")
def ground(full_bin_dir: Path) -> Iterator[Ground]:
    with ground_on(full_bin_dir, wal_keep_size="1GB") as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir(mode=0o700)
    return made


@contextmanager
def receiving(ground: Ground, folder: Path) -> Iterator[Receiver]:
    """A receiver; afterwards the server has no slot."""
    try:
        with receiver(ground, folder) as running:
            running.until(lambda status: status.confirmed_at)
            yield running
            running.end()
    finally:
        ground.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")


@pytest.fixture
def running(ground: Ground, folder: Path) -> Iterator[Receiver]:
    with receiving(ground, folder) as found:
        yield found


def location_on(ground: Ground, folder: Path, instance: dg.DagsterInstance, **more: str) -> Location:
    return Location(load(ground.settings(folder, PGPASSWORD=PASSWORD, **more)), instance)


def archive_of(ground: Ground, folder: Path) -> ClusterArchive:
    return ClusterArchive(folder, ground.facts.system_identifier)


# ---------------------------------------------------------------------------------------------- the code location


def test_without_recovery_there_are_no_such_definitions() -> None:
    off = build_defs(load({"POSTGRES_HOST": "db.example.org"}))
    assert not set(CHAIN) & names_of(off)["assets"]
    assert JOB not in {job.name for job in off.resolve_all_job_defs()}
    assert not [check for check in names_of(off)["checks"] if "recoverable" in check]


def test_with_recovery_the_definitions_have_their_names() -> None:
    on = build_defs(load(ON))
    dg.Definitions.validate_loadable(on)
    specs = {spec.key.to_user_string(): spec for spec in on.resolve_all_asset_specs()}
    assert [[dep.asset_key.to_user_string() for dep in specs[name].deps] for name in CHAIN] == [
        [],
        ["base_backup"],
        ["base_backup_verification"],
    ]
    found = {check.removeprefix("wal_archive_pruning:") for check in names_of(on)["checks"]}
    assert {"wal_archive_has_no_hole", "recovery_point_is_recent"} <= found
    assert {"base_backup_verification:base_backup_is_what_was_sent", f"{ALERT}:any_instant_recoverable"} <= found
    job = on.resolve_job_def(JOB)
    assert {key.to_user_string() for key in job.asset_layer.selected_asset_keys} == set(CHAIN)
    assert dict(job.tags) == {"ovia/database": "ovia", "ovia/long": "base", "dagster/max_runtime": "0"}
    [schedule] = [each for each in on.schedules or [] if each.name == "base_backup_schedule"]
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.job_name, schedule.cron_schedule) == (JOB, "30 1 * * 6")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    pools = {on.resolve_assets_def(dg.AssetKey(name)).op.pool for name in CHAIN}
    assert pools == {"base_backup"}, "no dump waits for a base backup"


def test_two_databases_share_a_location_one_with_recovery() -> None:
    on = build_defs(load({**ON, "POSTGRES_DB": "crm", "BASE_BACKUP_SCHEDULE": "0 2 * * 0"}), prefix="crm")
    off = build_defs(load({"POSTGRES_HOST": "db.example.org", "POSTGRES_DB": "shop"}), prefix="shop")
    both = dg.Definitions.merge(on, off)
    dg.Definitions.validate_loadable(both)
    assert {name for name in names_of(both)["assets"] if "base_backup" in name} == {
        "crm/base_backup",
        "crm/base_backup_verification",
    }
    [schedule] = [each for each in both.schedules or [] if each.name.endswith("base_backup_schedule")]
    assert isinstance(schedule, dg.ScheduleDefinition)
    assert (schedule.name, schedule.job_name) == ("crm_base_backup_schedule", "crm_base_backup_job")


def test_a_wrong_schedule_of_base_backups_is_a_problem() -> None:
    on = build_defs(load({**ON, "BASE_BACKUP_SCHEDULE": "weekly"}))
    dg.Definitions.validate_loadable(on)


# ---------------------------------------------------------------------------------------------- the chain


def test_the_job_makes_verifies_and_prunes(
    ground: Ground, folder: Path, running: Receiver, instance: dg.DagsterInstance
) -> None:
    location = location_on(ground, folder, instance, **NO_WINDOW)
    result = location.run(JOB)
    assert result.success, location.logs(result.run_id)
    made = materialized(result)
    assert tuple(made) == CHAIN
    [base] = read_bases(archive_of(ground, folder)).complete
    assert (base.verified, base.manifest.run_id) == (True, result.run_id)
    shown = made["base_backup"]
    assert (shown["base"], shown["size_bytes"]) == (base.folder.name, base.manifest.size_bytes)
    assert shown["start_lsn"] == base.manifest.start_lsn
    assert shown["data_bytes"] > shown["size_bytes"] > 0
    verified = made["base_backup_verification"]
    assert (verified["base"], verified["decoded_bytes"]) == (base.folder.name, base.manifest.data_bytes)
    assert all(passed for passed, _ in checks(result).values())
    assert len(checks(result)) == 3
    pruned = made["wal_archive_pruning"]
    assert (pruned["removed_bases"], pruned["holes"]) == (0, 0)
    assert pruned["rpo_seconds"] < 60
    assert pruned["worst_rpo_seconds"] is not None
    assert pruned["window_from"] <= pruned["window_to"]

    # With WAL after it, the second one makes the first superfluous, and the WAL before it.
    assert location.run(JOB).success
    name = switch(ground)
    running.until(lambda status: (status.archived or "") >= name)
    dry = location.materialize("wal_archive_pruning", wal_archive_pruning={"dry_run": True})
    plan = records(materialized(dry)["wal_archive_pruning"]["plan"])
    assert [each["decision"] for each in plan] == ["remove", "keep"]
    # One that is being recovered from stays, with its WAL.
    with reading(base.folder / BASE):
        held = location.materialize("wal_archive_pruning")
    assert materialized(held)["wal_archive_pruning"]["removed_segments"] == 0
    assert "could not yet remove, because it is being read" in location.logs(held.run_id)
    assert len(read_bases(archive_of(ground, folder)).complete) == 2
    second = location.materialize("wal_archive_pruning")
    pruned = materialized(second)["wal_archive_pruning"]
    assert pruned["removed_bases"] == 1
    assert pruned["removed_segments"] > 0
    assert pruned["wal_bytes_per_day"] > 0
    assert pruned["freed_bytes"] > base.manifest.size_bytes
    [kept] = read_bases(archive_of(ground, folder)).complete
    decisions = {str(each["base"]): (each["decision"], each["verified"]) for each in records(pruned["plan"])}
    assert decisions == {base.folder.name: ("remove", "good"), kept.folder.name: ("keep", "good")}
    assert f"removed base backup {base.folder.name}: " in location.logs(second.run_id)


def test_a_bad_base_backup_is_not_materialized_as_verified(
    ground: Ground, folder: Path, instance: dg.DagsterInstance
) -> None:
    location = location_on(ground, folder, instance, **NO_WINDOW)
    assert location.materialize("base_backup").success
    [base] = read_bases(archive_of(ground, folder)).complete
    flip_byte(base.folder / "base.tar.zst")
    result = location.materialize("base_backup_verification", "wal_archive_pruning")
    assert failed_steps(result) == ["base_backup_verification"]
    assert materialized(result) == {}
    assert checks(result) == {"base_backup_is_what_was_sent": (False, dg.AssetCheckSeverity.ERROR)}
    assert f"base backup {base.folder.name}" in failure(result)
    assert "base.tar.zst" in failure(result)

    # Pruning by hand refuses, and says how WAL arrives all the same.
    by_hand = location.materialize("wal_archive_pruning")
    assert failure(by_hand).startswith("nothing was removed: no base backup is verified")
    assert materialized(by_hand) == {}
    passed = {name: passed for name, (passed, _) in checks(by_hand).items()}
    assert passed == {"wal_archive_has_no_hole": True, "recovery_point_is_recent": False}
    assert (base.folder / BASE).exists()


def test_verification_takes_the_base_of_its_run_or_the_named(
    ground: Ground, folder: Path, instance: dg.DagsterInstance
) -> None:
    """Not the newest: another one may have been made meanwhile."""
    location = location_on(ground, folder, instance)
    first = location.materialize("base_backup")
    again = location.materialize("base_backup", "base_backup_verification")
    other = str(materialized(first)["base_backup"]["base"])
    assert materialized(again)["base_backup_verification"]["base"] == materialized(again)["base_backup"]["base"]
    named = location.materialize("base_backup_verification", base_backup_verification={"base": other})
    assert materialized(named)["base_backup_verification"]["base"] == other
    for wrong in ("2020-01-01_000000", f"../base/{other}", "/etc"):
        refused = location.materialize("base_backup_verification", base_backup_verification={"base": wrong})
        assert failure(refused).startswith(f"there is no base backup {wrong}")


def test_the_server_refuses_in_one_line(ground: Ground, folder: Path, instance: dg.DagsterInstance) -> None:
    with ground.without_replication_line():
        result = location_on(ground, folder, instance).run(JOB)
    assert failed_steps(result) == ["base_backup"]
    assert "pg_hba.conf" in failure(result)
    assert "\n" not in failure(result)


# ---------------------------------------------------------------------------------------------- told


def test_a_stopped_receiver_is_alerted_once_and_cleared(
    ground: Ground,
    folder: Path,
    running: Receiver,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    people: People,
) -> None:
    location = location_on(ground, folder, instance, BACKUP_NOTIFY_URLS=people.url)
    location.dump()
    assert location.run(JOB).success
    daemon = Daemon(location, monkeypatch, clock=None)
    assert daemon.tick() is None, "all is well"
    result = location.run(ALERT_JOB)
    assert checks(result)["any_instant_recoverable"] == (True, dg.AssetCheckSeverity.ERROR)
    assert materialized(result)[ALERT]["rpo_seconds"] < 60
    running.end()
    grow_old(folder, timedelta(minutes=9))
    assert daemon.run(daemon.tick())
    assert daemon.tick() is None, "one alert an episode"
    [message] = people.messages
    assert message["title"] == "[postgres] the WAL receiver has stopped"
    assert "the WAL receiver does not report: it was stopped; its last report is 9 min old" in message["message"]
    with receiver(ground, folder) as again:
        again.until(
            lambda status: status.confirmed_at and status.confirmed_at > datetime.now(UTC) - timedelta(minutes=1)
        )
        assert daemon.run(daemon.tick())
        again.end()
    assert people.messages[-1]["title"] == "[postgres] all is well with the backups again"
    assert "any instant from" in people.messages[-1]["message"].lower()


def grow_old(folder: Path, age: timedelta) -> None:
    """Date the receiver's report to the past."""
    status = read_status(folder)
    assert status is not None
    assert status.confirmed_at is not None
    write_status(
        folder,
        status.model_copy(update={"written_at": status.written_at - age, "confirmed_at": status.confirmed_at - age}),
    )

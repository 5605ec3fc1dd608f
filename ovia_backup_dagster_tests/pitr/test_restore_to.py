"""``ovia-backup restore --to``, ``recover`` and ``pitr-drill``: rows that were deleted come back, and go again."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.core.layout import RECOVERED
from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.pitr.extraction import is_extract
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster_tests.conftest import PASSWORD, admin
from ovia_backup_dagster_tests.faults.disks import tmpfs
from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.pitr.history import History, history_on, short_folder
from ovia_backup_dagster_tests.support.command_line import InProcessCli

SHOP = "shop"


@pytest.fixture(scope="module")
def history(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    """A shop with two base backups, whose orders were deleted between two marked instants."""
    volume = tmp_path_factory.mktemp("pitr") / "volume"
    with ground_on(full_bin_dir) as ground:
        ground.execute(f"CREATE DATABASE {SHOP}")
        with history_on(ground, volume, POSTGRES_DB=SHOP) as made:
            made.commit("orders", "CREATE TABLE orders (id int PRIMARY KEY, t text)", database=SHOP)
            made.commit("rows", "INSERT INTO orders SELECT n, 'x' FROM generate_series(1, 500) n", database=SHOP)
            made.base_backup()
            made.commit("good", "INSERT INTO orders VALUES (777, 'good')", database=SHOP)
            made.running.until_safe()
            yield made


@pytest.fixture(scope="module")
def drills() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture
def cli(history: History, drills: Path) -> InProcessCli:
    settings = history.ground.settings(
        history.volume, POSTGRES_DB=SHOP, POSTGRES_PASSWORD=PASSWORD, DRILL_DIR=str(drills), WAL_BEACON_SECONDS="1"
    )
    return InProcessCli(settings)


def rows(history: History) -> int:
    with admin(history.ground.cluster, SHOP) as session:
        found = session.execute("SELECT count(*) FROM orders").fetchone()
    assert found is not None
    return int(str(found[0]))


def clock(history: History) -> str:
    """The server's time now, with a moment before and after it in which nothing else is committed by a test."""
    time.sleep(0.01)
    with admin(history.ground.cluster) as session:
        found = session.execute("SELECT clock_timestamp()").fetchone()
    time.sleep(0.01)
    assert found is not None
    assert isinstance(found[0], datetime)
    return found[0].astimezone(UTC).isoformat(sep=" ")


def test_deleted_rows_come_back_and_an_undo_takes_them(history: History, cli: InProcessCli) -> None:
    at = clock(history)
    history.commit("harm", "DELETE FROM orders", database=SHOP)
    history.running.until_safe()
    plan = cli("restore", "--to", at, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert f"target: {at}" in plan.stdout
    assert f"first lost: transaction {history.commits['harm']} at" in plan.stdout
    assert "orders" in plan.stdout
    assert "time: unknown: no recovery drill has passed yet" in plan.stdout
    assert rows(history) == 0
    assert not (history.volume / RECOVERED).exists()
    done = cli("restore", "--to", at, "--yes-destroy", SHOP)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(history) == 501
    assert "recovered  to the commit at" in done.stdout
    [kept] = [line for line in done.stdout.splitlines() if line.startswith("the database before is kept")]
    assert "undo-restore" in kept
    undone = cli("undo-restore", "--yes-destroy", SHOP)
    assert undone.returncode == 0, undone.stderr
    assert rows(history) == 0
    # An extract is not a backup: nothing lists it, and it is not the latest.
    assert [path.suffix for path in (history.volume / RECOVERED).rglob("*.dump")] == [".dump"]
    code, listed = cli.json("list")
    assert (code, listed) == (0, [])


def test_before_last_drop_finds_the_instant(history: History, cli: InProcessCli) -> None:
    history.commit(
        "refill", "TRUNCATE orders", "INSERT INTO orders SELECT n FROM generate_series(1, 300) n", database=SHOP
    )
    history.commit("truncate", "TRUNCATE orders", database=SHOP)
    history.commit("later", "CREATE TABLE later AS SELECT 1 AS a", database=SHOP)
    history.running.until_safe()
    print(cli("restore", "--to", "before-last-drop", "--plan").stdout)
    code, plan = cli.json("restore", "--to", "before-last-drop", "--plan")
    assert code == 0
    assert plan["first_lost"]["xid"] == history.commits["truncate"]
    done = cli("restore", "--to", "before-last-drop", "--tables", "orders")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"public"."orders": 300 rows, as they were, are in schema restored_' in done.stdout
    assert "300 of them are missing now" in done.stdout
    assert rows(history) == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("note: to insert those: ")]
    history.commit("again", shlex.split(line)[-1], database=SHOP)
    assert rows(history) == 300
    history.commit("emptied", "TRUNCATE orders", database=SHOP)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("2001-01-01 00:00:00", "is before the first commit that can be recovered"),
        ("lsn:0/1", "is before the first commit that can be recovered"),
        ("FFFFFFFF/0", "is after the last known commit"),
        ("2026-11-30", "a day is not an instant"),
        ("12345", "a number can be a transaction or a day"),
        ("xid:3", "did not end in the WAL"),
        ("name:nowhere", "no restore point has this name"),
        ("tomorrow", "no restore point has this name"),
    ],
)
def test_an_impossible_target_is_refused(history: History, cli: InProcessCli, target: str, said: str) -> None:
    done = cli("restore", "--to", target, "--yes-destroy", SHOP)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Next: " in done.stderr


def test_a_backup_and_a_target_exclude_each_other(history: History, cli: InProcessCli) -> None:
    assert cli("restore", "latest", "--to", "1 minute ago").returncode == 2


def test_a_dump_and_a_recovery_prove_each_other(history: History, cli: InProcessCli) -> None:
    history.commit(
        "some", "TRUNCATE orders", "INSERT INTO orders SELECT n FROM generate_series(1, 40) n", database=SHOP
    )
    dumped = cli("dump")
    assert dumped.returncode == 0, dumped.stderr
    assert "the dump ends with the commit at" in dumped.stderr
    assert cli("verify", "latest").returncode == 0
    done = cli("pitr-drill")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is proven" in done.stdout
    assert "FAILED" not in done.stdout
    archive = history.archive
    [base] = archive.base_folders()
    assert (base / "drilled.json").exists()
    [evidence] = (archive.folder / "drills").glob("*.json")
    found = json.loads(evidence.read_text())
    assert {each["check"]: each["passed"] for each in found["findings"]} == dict.fromkeys(
        (
            "recovered_to_the_commit",
            "commit_before_is_there",
            "commit_after_is_not_there",
            "tables_equal_the_dump",
            "large_objects_equal_the_dump",
            "sequences_of_the_dump",
            "heap_and_indexes_agree",
            "negative_control",
        ),
        True,
    )
    assert "time: about" in cli("restore", "--to", "1 second ago", "--plan").stdout


def test_a_dump_that_differs_is_noticed(history: History, cli: InProcessCli) -> None:
    """The manifest of a dump is altered to name a commit that is one row too early."""
    history.commit("before", "INSERT INTO orders VALUES (9998, 'before')", database=SHOP)
    history.commit("extra", "INSERT INTO orders VALUES (9999, 'extra')", database=SHOP)
    assert cli("dump").returncode == 0
    [dump, *_] = sorted((history.volume / "daily").glob("*.dump"), reverse=True)
    manifest_path = dump.with_name(f"{dump.name}.json")
    manifest = json.loads(manifest_path.read_text())
    before = history.end_of("before")
    manifest["wal_point"] |= {"lsn": str(before.lsn), "xid": before.xid}
    manifest_path.write_text(json.dumps(manifest))
    assert cli("verify", "latest").returncode == 0
    done = cli("pitr-drill", dump.name)
    assert done.returncode == 1
    assert "tables_equal_the_dump          public.orders differ" in done.stdout, done.stdout
    assert "wrong: neither the dump nor the base backup was altered" in done.stdout
    dump.unlink()


def test_a_lost_server_is_recovered_into_a_folder(history: History, cli: InProcessCli) -> None:
    history.commit("newest", "INSERT INTO orders VALUES (12345)", database=SHOP)
    history.running.until_safe()
    with short_folder() as folder:
        # The server does not answer, as if it was gone.
        done = cli("recover", "--into", str(folder / "data"), POSTGRES_HOST="")
        assert done.returncode == 0, done.stderr
        assert "target: latest" in done.stdout
        assert f"{folder / 'data'} has the cluster as of" in done.stdout
        assert (folder / "data" / "PG_VERSION").read_text() == "16\n"
        assert not (folder / "data" / "recovery.signal").exists()
    assert os.listdir(history.volume / "pitr")


def test_a_plan_in_the_ui_recovers_and_a_restore_swaps(
    history: History, cli: InProcessCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cli.settings.items():
        monkeypatch.setenv(name, value)
    job = build_defs(Settings.load()).get_job_def("restore_job")

    def launched(**config: object) -> tuple[bool, dict[str, object]]:
        done = job.execute_in_process({"ops": {"restore": {"config": config}}}, raise_on_error=False)
        outputs = [each for each in done.all_events if each.event_type is dg.DagsterEventType.STEP_OUTPUT]
        return done.success, {k: v.value for each in outputs for k, v in each.step_output_data.metadata.items()}

    history.commit("ui", "TRUNCATE orders", "INSERT INTO orders VALUES (1)", database=SHOP)
    at = clock(history)
    history.commit("gone", "TRUNCATE orders", database=SHOP)
    history.running.until_safe()
    good, planned = launched(action="plan", to=at)
    assert good
    assert rows(history) == 0
    refused, _ = launched(action="restore", to=at, confirm=planned["confirm"])
    assert not refused
    assert str(planned["backup"]).startswith("recovered/")
    good, _ = launched(action="restore", backup=planned["backup"], confirm=planned["confirm"])
    assert good
    assert rows(history) == 1


@pytest.mark.parametrize("name", ["recovered/../../etc/passwd/x", "recovered/x/daily/none.dump", "/etc/passwd"])
def test_the_ui_opens_no_other_file(history: History, name: str) -> None:
    assert not is_extract(history.volume, name)


def test_a_full_scratch_disk_leaves_nothing(history: History, cli: InProcessCli, tmp_path: Path) -> None:
    with short_folder() as folder:
        small = folder / "small"
        with tmpfs(small, 20 * 1024 * 1024):
            small.chmod(0o711)
            before = sorted(path.name for path in (history.volume / RECOVERED).glob("*"))
            target = f"xid:{history.commits['good']}"
            done = cli("restore", "--to", target, "--yes-destroy", SHOP, DRILL_DIR=str(small))
            assert done.returncode == 1
            assert "DRILL_DIR" in done.stderr
            assert "Traceback" not in done.stderr
            assert sorted(path.name for path in (history.volume / RECOVERED).glob("*")) == before
            assert [name for name in os.listdir(small) if not name.startswith(".")] == []

"""Which commit a snapshot ends with: by hand, by property, and under writers on a real server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.pitr.drill_subject import find_subject
from ovia_backup_dagster.pitr.exact_snapshot import ExactSnapshots, Snapshot, last_seen
from ovia_backup_dagster.pitr.recovery_drill import RecoveryDriller
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import PASSWORD, admin
from ovia_backup_dagster_tests.pitr.ground import Ground, ground_on
from ovia_backup_dagster_tests.pitr.history import history_on, short_folder

AT = datetime(2026, 11, 30, tzinfo=UTC)
SHOP = "shop"


def commits(*xids: int) -> list[TransactionEnd]:
    """Commits in the order of the WAL."""
    return [TransactionEnd(Lsn(100 * number), xid, AT, True) for number, xid in enumerate(xids, 1)]


@pytest.mark.parametrize(
    ("snapshot", "order", "last", "exact"),
    [
        ("10:10:", [7, 8, 9], 9, True),
        ("8:10:8", [7, 8, 9], 9, False),  # 8 has written its commit, and is not seen yet
        ("8:10:8", [7, 9, 8], 9, True),
        ("10:10:", [7, 8, 9, 10, 11], 9, True),
        ("9:11:9", [10, 7, 9], 7, True),
        ("5:5:", [7, 8], None, True),
    ],
)
def test_the_last_commit_of_a_snapshot(snapshot: str, order: list[int], last: int | None, exact: bool) -> None:
    found, is_exact = last_seen(Snapshot.parse(snapshot), commits(*order))
    assert (found.xid if found else None, is_exact) == (last, exact)


@given(
    order=st.lists(st.integers(100, 140), unique=True, max_size=20),
    running=st.frozensets(st.integers(100, 140)),
    xmax=st.integers(100, 141),
)
def test_exact_means_that_all_before_are_seen(order: list[int], running: frozenset[int], xmax: int) -> None:
    running = frozenset(xid for xid in running if xid < xmax)
    snapshot = Snapshot(min(running, default=xmax), xmax, running)
    found, exact = last_seen(snapshot, commits(*order))
    seen = [snapshot.sees(xid) for xid in order]
    if found is None:
        assert not any(seen)
    else:
        until = order.index(found.xid) + 1
        assert exact == all(seen[:until])
        assert not any(seen[until:])


@given(xmax=st.integers(3, 2**40), back=st.integers(1, 2**30), ahead=st.integers(0, 2**30))
def test_the_wal_has_32_bits_of_a_number(xmax: int, back: int, ahead: int) -> None:
    snapshot = Snapshot(xmax, xmax, frozenset())
    if back < xmax:
        assert snapshot.sees((xmax - back) % 2**32)
    assert not snapshot.sees((xmax + ahead) % 2**32)


@pytest.fixture(scope="module")
def ground(full_bin_dir: Path) -> Iterator[Ground]:
    with ground_on(full_bin_dir, max_prepared_transactions="10") as made:
        made.execute(f"CREATE DATABASE {SHOP}")
        made.execute(
            "CREATE TABLE marks (n serial PRIMARY KEY, t text)",
            "CREATE TABLE counts (id int PRIMARY KEY, n int)",
            "INSERT INTO counts SELECT n, 0 FROM generate_series(1, 200) n",
            "CREATE UNLOGGED TABLE unsafe AS SELECT 1 AS a",
            database=SHOP,
        )
        yield made


@contextlib.contextmanager
def writing(ground: Ground, random: Random) -> Iterator[None]:
    """Three writers: one without waiting for the disk, all with savepoints, one with prepared transactions."""
    stop = threading.Event()

    def write(kind: int) -> None:
        own = Random(random.random())
        with admin(ground.cluster, SHOP) as session:
            if kind == 0:
                session.execute("SET synchronous_commit = off")
            for number in iter(int, 1):
                if stop.is_set():
                    return
                session.execute("BEGIN")
                session.execute("SAVEPOINT a")
                session.execute("INSERT INTO marks (t) VALUES (repeat('x', 50))")
                session.execute("UPDATE counts SET n = n + 1 WHERE id = %s", [own.randrange(1, 201)])
                session.execute("RELEASE a")
                if kind == 1 and own.random() < 0.1:
                    name = f"p{kind}_{own.randrange(10**9)}_{number}"
                    session.execute(f"PREPARE TRANSACTION '{name}'".encode())
                    session.execute(f"COMMIT PREPARED '{name}'".encode())
                else:
                    session.execute("COMMIT" if own.random() < 0.95 else "ROLLBACK")

    threads = [threading.Thread(target=write, args=(kind,)) for kind in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _prove(ground: Ground, volume: Path, rng: Random, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    with short_folder() as drills, history_on(ground, volume, POSTGRES_DB=SHOP) as history:
        settings = ground.settings(volume, POSTGRES_DB=SHOP, POSTGRES_PASSWORD=PASSWORD, DRILL_DIR=str(drills))
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        system = BackupSystem(Settings.load())
        history.base_backup()
        anchor = ExactSnapshots(system.pitr.source, system.programs, history.archive)
        with writing(ground, rng):
            for _ in range(rounds):
                dump = replace(system.dumper, anchor=anchor).dump(log=print)
                assert dump.manifest is not None
                assert dump.manifest.wal_point is not None
                assert dump.manifest.wal_point.lsn, dump.manifest.wal_point.why
                system.verifier.verify(dump, log=print)
        history.running.until_safe()
        for dump in system.catalog.backups():
            subject, archive = find_subject(system.catalog, dump.path.name)
            driller = RecoveryDriller(system.catalog, archive, system.programs, drills, 0.1)
            evidence = driller.drill(subject, launched_by="a test", log=print)
            assert list(evidence.failures()) == []
            found = {each.check.value: each.text for each in evidence.findings}
            assert "public.unsafe" in found["tables_equal_the_dump"]


def test_dumps_under_writers_equal_their_recoveries(
    ground: Ground, tmp_path: Path, rng: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prove(ground, tmp_path / "volume", rng, monkeypatch, rounds=1)


@pytest.mark.exhaustive
@pytest.mark.many_rounds
def test_many_dumps_under_writers_equal_their_recoveries(
    ground: Ground, tmp_path: Path, rng: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    _prove(ground, tmp_path / "volume", rng, monkeypatch, rounds=10)


def test_a_dump_without_wal_says_why(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No receiver works: the dump is made all the same."""
    monkeypatch.setattr("ovia_backup_dagster.pitr.exact_snapshot._SECONDS", 1.0)
    volume = tmp_path / "volume"
    archive = ground.archive(volume)
    settings = ground.settings(volume, POSTGRES_DB=SHOP, POSTGRES_PASSWORD=PASSWORD)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    system = BackupSystem(Settings.load())
    dump = replace(system.dumper, anchor=ExactSnapshots(system.pitr.source, system.programs, archive)).dump(log=print)
    assert dump.manifest is not None
    point = dump.manifest.wal_point
    assert point is not None
    assert (point.lsn, point.why) == ("", "the WAL up to the snapshot did not arrive within 30 s")

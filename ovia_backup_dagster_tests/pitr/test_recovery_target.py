"""A target is understood as it was written or refused, and is resolved to the commit at which PostgreSQL would stop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.core.pitr_errors import RecoveryTargetError
from ovia_backup_dagster.pitr.recovery_target import RecoveryTarget, TargetKind, parse_target
from ovia_backup_dagster.pitr.target_resolution import ResolvedTarget, resolve, stop_at_time
from ovia_backup_dagster.pitr.transaction_ends import TransactionEnd, read_ends
from ovia_backup_dagster.pitr.wal_position import Lsn, Timeline
from ovia_backup_dagster.postgres.programs import capture
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.received_shop import SHOP, Committed, Shop, recovered

NOW = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


# ---- what a person wrote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-30 10:00:01", "2026-11-30T09:00:01+00:00"),
        ("2026-11-30T10:00:01.250", "2026-11-30T09:00:01.250000+00:00"),
        ("2026-11-30 10:00", "2026-11-30T09:00:00+00:00"),
        ("2026-11-30 10:00:01Z", "2026-11-30T10:00:01+00:00"),
        ("2026-11-30 10:00:01 UTC", "2026-11-30T10:00:01+00:00"),
        ("2026-11-30 10:00:01+05:30", "2026-11-30T04:30:01+00:00"),
        ("2026-11-30 10:00:01 -03", "2026-11-30T13:00:01+00:00"),
        ("2026-11-29 10:00:01 America/New_York", "2026-11-29T15:00:01+00:00"),
        ("yesterday 23:30", "2026-11-29T22:30:00+00:00"),
        ("today 9:30:15", "2026-11-30T08:30:15+00:00"),
        ("12:30", "2026-11-30T11:30:00+00:00"),
        ("13:30", "2026-11-29T12:30:00+00:00"),
        ("5 minutes ago", "2026-11-30T11:55:00+00:00"),
        ("1 h 30 min ago", "2026-11-30T10:30:00+00:00"),
        ("90s ago", "2026-11-30T11:58:30+00:00"),
        ("2 days, 1 hour ago", "2026-11-28T11:00:00+00:00"),
        (" 5  Minutes   Ago ", "2026-11-30T11:55:00+00:00"),
    ],
)
def test_a_time_is_an_instant_in_utc(text: str, expected: str) -> None:
    if text.endswith("-03"):
        with pytest.raises(RecoveryTargetError, match="in the future"):
            parse_target(text, NOW, BERLIN)
        return
    found = parse_target(text, NOW, BERLIN)

    assert found.kind is TargetKind.TIME
    assert found.time is not None
    assert found.time.isoformat() == expected
    assert found.time.tzinfo is UTC


def test_a_time_without_a_day_says_which_day_it_is() -> None:
    assert parse_target("12:30", NOW, BERLIN).notes == (
        "12:30 without a day: today, 2026-11-30",
        "no zone was given: Europe/Berlin",
    )
    assert "13:30 without a day: yesterday, 2026-11-29" in parse_target("13:30", NOW, BERLIN).notes
    assert parse_target("2026-11-30 10:00:01Z", NOW, BERLIN).notes == ()


def test_other_targets_are_told_apart() -> None:
    assert parse_target("0/3000060", NOW).lsn == Lsn(0x3000060)
    assert parse_target("lsn:11/30", NOW).lsn == Lsn((0x11 << 32) + 0x30)
    assert parse_target("xid:1234", NOW).xid == 1234
    assert parse_target("XID 1234", NOW).xid == 1234
    assert parse_target("name:12:30 before the migration", NOW).name == "12:30 before the migration"
    assert parse_target("before_migration", NOW).name == "before_migration"
    assert parse_target("before-last-drop", NOW).kind is TargetKind.BEFORE_LAST_DROP


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1234", "write xid:1234"),
        ("20261130", "a number can be a transaction or a day"),
        ("11/30", "write lsn:11/30"),
        ("2026-11-30", "a day is not an instant"),
        ("yesterday", "a day is not an instant"),
        ("2026-13-30 10:00", "such a time does not exist"),
        ("25:00", "such a time does not exist"),
        ("2026-11-30 10:00:01 CET", "it is neither a time"),
        ("2026-11-30 10:00:01 Mars/Olympus", "is not a time zone"),
        ("2026-11-30 10:00:01 +99:00", "is not a time zone"),
        ("2026-12-01 10:00", "is in the future"),
        ("3 fortnights ago", "'fortnights' is not a unit of time"),
        ("99999999999999 days ago", "before the year 1"),
        ("900000 days ago", "before the year 1"),
        ("", "it is neither a time"),
        ("-1", "it is neither a time"),
    ],
)
def test_what_is_not_one_instant_is_refused(text: str, why: str) -> None:
    with pytest.raises(RecoveryTargetError) as error:
        parse_target(text, NOW, BERLIN)
    assert why in str(error.value)
    assert error.value.fix


def test_a_time_that_exists_twice_is_refused_with_both() -> None:
    with pytest.raises(RecoveryTargetError) as error:
        parse_target("2026-10-25 02:30", NOW, BERLIN)
    assert "exists twice: 2026-10-25 00:30:00 UTC and 2026-10-25 01:30:00 UTC" in str(error.value)
    assert parse_target("2026-10-25 02:30 +01:00", NOW, BERLIN).time == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_a_time_that_the_clock_skipped_is_refused_with_both() -> None:
    with pytest.raises(RecoveryTargetError) as error:
        parse_target("2026-03-29 02:30", NOW, BERLIN)
    assert "does not exist" in str(error.value)
    assert "2026-03-29 00:30:00 UTC or 2026-03-29 01:30:00 UTC" in str(error.value)


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        found = parse_target(text, NOW, BERLIN)
    except RecoveryTargetError:
        return
    given = (found.time, found.lsn, found.xid, found.name)
    assert sum(each is not None for each in given) == (found.kind is not TargetKind.BEFORE_LAST_DROP)
    assert found.time is None or found.time <= NOW


@given(
    st.integers(0, 26 * 365 * 86_400_000_000).map(
        lambda us: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    )
)
def test_an_instant_as_it_is_printed_is_that_instant(at: datetime) -> None:
    assert parse_target(f"{at:%Y-%m-%d %H:%M:%S.%f} UTC", NOW, BERLIN).time == at
    assert parse_target(at.isoformat(), NOW, BERLIN).time == at


# ---- which commit it is

T0 = datetime(2026, 11, 30, tzinfo=UTC)
end_lists = st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=25).map(
    lambda found: [
        TransactionEnd(Lsn(8 * n), n, T0 + timedelta(seconds=second), committed)
        for n, (second, committed) in enumerate(found)
    ]
)


@given(end_lists, st.integers(0, 30))
def test_a_time_stops_before_the_first_later_record(ends: list[TransactionEnd], second: int) -> None:
    target = T0 + timedelta(seconds=second)

    stop = stop_at_time(iter(ends), target)

    at_most = next((n for n, end in enumerate(ends) if end.time > target), len(ends))
    commits = [end for end in ends if end.committed]
    assert stop.kept == next((end for end in reversed(commits) if end.xid < at_most), None)
    assert stop.stopped == (ends[at_most] if at_most < len(ends) else None)
    assert stop.lost == next((end for end in commits if end.xid >= at_most), None)
    assert all(end.committed and end.xid > at_most and end.time <= target for end in stop.late)
    told = list(stop.notes(target))
    assert len(told) == bool(stop.late)
    if all(end.time <= target + timedelta(seconds=10) for end in ends):
        assert list(stop.late) == [end for end in commits if end.xid > at_most and end.time <= target]


def found(shop: Shop, target: RecoveryTarget | str, earliest: Lsn | None = None) -> ResolvedTarget:
    shop.receive()
    if isinstance(target, str):
        target = parse_target(target, datetime.now(UTC) + timedelta(minutes=1))
    return resolve(target, shop.reader, database=shop.database, names=shop.names(), earliest=earliest)


def at(instant: datetime) -> RecoveryTarget:
    return RecoveryTarget(TargetKind.TIME, instant.isoformat(), time=instant)


def entry(shop: Shop) -> Committed:
    return shop.commit("INSERT INTO ledger (note) VALUES ('x')")


def test_a_time_keeps_the_commits_until_then(shop: Shop) -> None:
    first, second, third = (entry(shop) for _ in range(3))

    between = found(shop, at(second.time + (third.time - second.time) / 2))
    exact = found(shop, at(second.time))
    just_before = found(shop, at(second.time - timedelta(microseconds=1)))

    for resolved in (between, exact):
        assert (resolved.xid, resolved.commit_time) == (second.xid, second.time)
        assert second.has(resolved.lsn)
        assert resolved.next_commit is not None
        assert (resolved.next_commit.xid, resolved.next_commit.time) == (third.xid, third.time)
        assert resolved.next_commit.text == "public.ledger: 1 inserted"
        assert resolved.notes == ()
    assert just_before.xid == first.xid


def test_a_time_on_an_idle_server_keeps_the_last_commit(shop: Shop) -> None:
    last = entry(shop)
    deadline = last.time + timedelta(milliseconds=50)
    while datetime.now(UTC) < deadline:
        time.sleep(0.01)
    shop.run("SELECT pg_logical_emit_message(true, 'ovia-backup', 'nonce')")

    resolved = found(shop, at(deadline))

    assert resolved.xid == last.xid
    assert resolved.next_commit is not None
    assert resolved.next_commit.text == "a beacon"


def test_a_time_after_the_last_commit_is_refused(shop: Shop) -> None:
    entry(shop)
    shop.receive()
    ends = list(read_ends(shop.reader, Timeline(1), Lsn(shop.here().bytes - 1000)))

    with pytest.raises(RecoveryTargetError) as error:
        resolve(at(ends[-1].time + timedelta(microseconds=1)), shop.reader)
    assert f"after the last known commit, at {ends[-1].time:%Y-%m-%d %H:%M:%S.%f} UTC" in str(error.value)
    assert f"--to {ends[-1].lsn}" in error.value.fix

    # So PostgreSQL would refuse the very time of the last commit, too: no later one shows that it is the last.
    with pytest.raises(RecoveryTargetError, match="after the last known commit"):
        resolve(at(ends[-1].time), shop.reader)


def test_a_target_before_the_base_backup_is_refused(shop: Shop) -> None:
    early = entry(shop)
    base = shop.here()
    entry(shop)
    third = entry(shop)

    for target in (at(early.time), RecoveryTarget(TargetKind.LSN, "early", lsn=early.before)):
        with pytest.raises(RecoveryTargetError) as error:
            found(shop, target, base)
        assert "is before the first commit that can be recovered" in str(error.value)
    assert found(shop, at(third.time), base).xid == third.xid


def test_wrong_file_times_change_nothing(shop: Shop) -> None:
    first, second = entry(shop), entry(shop)
    shop.receive()
    shop.run("SELECT pg_switch_wal()")
    entry(shop)
    shop.receive()

    def resolved() -> int:
        return resolve(at(first.time), shop.reader).xid

    times = {path: path.stat() for path in shop.archive.incoming.iterdir()}
    assert resolved() == first.xid
    for off in (-86400, 86400):
        for path, status in times.items():
            os.utime(path, (status.st_atime + off, status.st_mtime + off))
        assert resolved() == first.xid
    assert second.xid != first.xid


def test_a_position_keeps_what_was_committed_up_to_it(shop: Shop) -> None:
    first, second = entry(shop), entry(shop)
    by_time = found(shop, at(second.time - timedelta(microseconds=1)))

    # The position that the server told after the commit, that of the record itself, and those between.
    for position in (first.after, by_time.lsn, Lsn(by_time.lsn.bytes + 1), Lsn(second.before.bytes - 1)):
        assert found(shop, RecoveryTarget(TargetKind.LSN, str(position), lsn=position)).lsn == by_time.lsn
    assert found(shop, str(Lsn(by_time.lsn.bytes - 1))).xid < first.xid


def test_a_position_that_was_not_received_is_refused(shop: Shop) -> None:
    entry(shop)
    shop.receive()
    end = shop.here()
    last = list(read_ends(shop.reader, Timeline(1), Lsn(end.bytes - 1000)))[-1]

    assert resolve(RecoveryTarget(TargetKind.LSN, str(end), lsn=end), shop.reader).lsn == last.lsn
    with pytest.raises(RecoveryTargetError, match="after the last known commit"):
        resolve(RecoveryTarget(TargetKind.LSN, "beyond", lsn=Lsn(end.bytes + 1)), shop.reader)


def test_a_transaction_is_kept_if_it_committed(shop: Shop) -> None:
    wanted = entry(shop)
    shop.run("BEGIN", "INSERT INTO ledger (note) VALUES ('undone')")
    undone = shop.value("SELECT pg_current_xact_id()")
    shop.run("ROLLBACK", "BEGIN", "SAVEPOINT a", "INSERT INTO ledger (note) VALUES ('part')")
    top = shop.value("SELECT pg_current_xact_id()")
    part = shop.value("SELECT max(xmin::text::bigint) FROM ledger")
    shop.run("COMMIT")
    assert part != top

    resolved = found(shop, f"xid:{wanted.xid}")
    assert (resolved.xid, resolved.commit_time) == (wanted.xid, wanted.time)
    assert wanted.has(resolved.lsn)
    for xid, why in (
        (undone, "was rolled back"),
        (part, f"a savepoint) of transaction {top}"),
        (4000000000, "did not end in the WAL"),
    ):
        with pytest.raises(RecoveryTargetError) as error:
            found(shop, f"xid:{xid}")
        assert why in str(error.value)


def test_a_prepared_transaction_counts_when_it_commits(shop: Shop) -> None:
    shop.run("BEGIN", "INSERT INTO ledger (note) VALUES ('prepared')")
    xid = shop.value("SELECT pg_current_xact_id()")
    shop.run("PREPARE TRANSACTION 'later'")
    with pytest.raises(RecoveryTargetError, match="did not end in the WAL"):
        found(shop, f"xid:{xid}")
    between = entry(shop)
    before = shop.here()
    shop.run("COMMIT PREPARED 'later'")
    after = shop.here()

    resolved = found(shop, f"xid:{xid}")
    assert before <= resolved.lsn < after
    assert resolved.lsn > found(shop, f"xid:{between.xid}").lsn


def test_a_restore_point_keeps_what_was_before_it(shop: Shop) -> None:
    kept = entry(shop)
    shop.run("SELECT pg_create_restore_point('before the migration')")
    lost = entry(shop)

    resolved = found(shop, "before the migration")

    assert (resolved.kind, resolved.xid) == (TargetKind.NAME, kept.xid)
    assert kept.has(resolved.lsn)
    assert resolved.next_commit is not None
    assert resolved.next_commit.xid == lost.xid
    with pytest.raises(RecoveryTargetError, match=r"there are: .*before the migration"):
        found(shop, "before the migraton")
    shop.run("SELECT pg_create_restore_point('before the migration')")
    with pytest.raises(RecoveryTargetError, match="2 restore points have this name"):
        found(shop, "before the migration")


def test_before_last_drop_keeps_all_up_to_it(shop: Shop) -> None:
    shop.run("DROP TABLE IF EXISTS victim", "CREATE TABLE victim (id int)", "CREATE TABLE victim_too (id int)")
    first = shop.commit("DROP TABLE victim_too")
    with admin(shop.ground.cluster, SHOP) as other:
        # It drops first, and commits last: what was committed meanwhile is kept.
        other.execute("BEGIN")
        other.execute("DROP TABLE victim")
        xid = other.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        kept = entry(shop)
        other.execute("COMMIT")
    shop.run("CREATE TEMPORARY TABLE own (id int)", "DROP TABLE own")
    shop.run("BEGIN", "DROP TABLE ledger", "ROLLBACK")
    lost = entry(shop)
    shop.run("SELECT pg_logical_emit_message(true, 'ovia-backup', 'nonce')")

    resolved = found(shop, "before-last-drop")

    assert (resolved.xid, resolved.commit_time) == (kept.xid, kept.time)
    assert kept.has(resolved.lsn)
    assert resolved.next_commit is not None
    assert xid is not None
    assert resolved.next_commit.xid == xid[0]
    assert resolved.next_commit.lsn < lost.before
    assert any(
        note.startswith("not undone: DROP TABLE") and f"{first.time:%H:%M:%S.%f}" in note for note in resolved.notes
    )
    assert resolved.lines[2].startswith(f"first lost: transaction {xid[0]} at ")
    shop.run("CREATE TABLE victim (id int)")


def test_before_last_drop_finds_truncate_and_delete(shop: Shop) -> None:
    shop.run("INSERT INTO victim SELECT generate_series(1, 300)")
    for statement in ("DELETE FROM victim WHERE id > 100", "TRUNCATE victim"):
        kept = entry(shop)
        lost = shop.commit(statement)
        entry(shop)

        resolved = found(shop, "before-last-drop")

        assert kept.has(resolved.lsn)
        assert resolved.next_commit is not None
        assert resolved.next_commit.xid == lost.xid
        assert "public.victim" in resolved.next_commit.text


def test_without_a_drop_there_is_nothing_before_it(shop: Shop) -> None:
    entry(shop)
    start = shop.here()
    entry(shop)

    with pytest.raises(RecoveryTargetError, match="no table was dropped or truncated"):
        found(shop, "before-last-drop", start)


# ---- PostgreSQL agrees


@pytest.fixture(scope="module")
def base(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain base backup, made before what the tests recover to."""
    folder = tmp_path_factory.mktemp("base") / "base"
    connection = shop.ground.connection
    command = (
        shop.ground.programs.path("pg_basebackup"),
        f"--pgdata={folder}",
        "--format=plain",
        "--wal-method=none",
        "--checkpoint=fast",
        f"--dbname={connection.conninfo()}",
    )
    code, _, stderr = capture(command, variables=connection.environment())
    assert code == 0, stderr
    return folder


def ledger(cluster: object) -> list[int]:
    with admin(cluster, SHOP) as session:  # type: ignore[arg-type]
        return [int(str(row[0])) for row in session.execute("SELECT id FROM ledger ORDER BY id")]


@contextmanager
def writers(shop: Shop, count: int) -> Iterator[None]:
    """Sessions that commit all the time while the block runs."""
    over = threading.Event()

    def write() -> None:
        with admin(shop.ground.cluster, SHOP) as session:
            while not over.is_set():
                session.execute("INSERT INTO ledger (note) VALUES ('written')")

    threads = [threading.Thread(target=write) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_postgresql_recovers_to_just_before_the_drop(shop: Shop, base: Path) -> None:
    shop.run("INSERT INTO victim SELECT generate_series(1, 42)")
    kept = entry(shop)
    newest = shop.value("SELECT max(id) FROM ledger")
    shop.commit("DROP TABLE victim")
    entry(shop)

    resolved = found(shop, "before-last-drop")
    with recovered(shop, base, {"recovery_target_lsn": str(resolved.lsn)}) as copy, admin(copy, SHOP) as session:
        row = session.execute(
            "SELECT (pg_last_committed_xact()).xid::text::int, (SELECT count(*) FROM victim)"
        ).fetchone()

        assert row == (kept.xid, 42)
        assert ledger(copy)[-1] == newest
    shop.run("CREATE TABLE victim (id int)")


def ends_under_writers(shop: Shop, *, enough: Callable[[list[TransactionEnd]], bool]) -> list[TransactionEnd]:
    """The ends of many transactions that ran together, until there are enough."""
    start, ends = shop.here(), list[TransactionEnd]()
    while not enough(ends):
        enough_wal = Lsn(shop.here().bytes + 300_000)
        with writers(shop, 4):
            until(lambda enough_wal=enough_wal: shop.here() > enough_wal)  # type: ignore[misc]
        entry(shop)
        shop.receive()
        ends = list(read_ends(shop.reader, Timeline(1), start))
    return ends


def same_by_time_and_position(shop: Shop, base: Path, target: datetime) -> ResolvedTarget:
    """PostgreSQL recovers to the same rows by the time as by the position that it was resolved to."""
    resolved = resolve(at(target), shop.reader)
    with recovered(shop, base, {"recovery_target_lsn": str(resolved.lsn)}) as copy:
        by_position = ledger(copy)
    with recovered(shop, base, {"recovery_target_time": target.isoformat()}) as copy:
        assert ledger(copy) == by_position
    assert by_position
    return resolved


def test_postgresql_stops_at_the_same_commit_by_time(shop: Shop, base: Path, rng: Random) -> None:
    ends = ends_under_writers(shop, enough=bool)

    same_by_time_and_position(shop, base, rng.choice(ends[len(ends) // 4 : -5]).time)


@pytest.mark.exhaustive
def test_postgresql_stops_there_when_times_go_back(shop: Shop, base: Path, rng: Random) -> None:
    def disordered(ends: list[TransactionEnd]) -> list[datetime]:
        return [later.time for sooner, later in pairwise(ends) if later.time < sooner.time]

    ends = ends_under_writers(shop, enough=lambda ends: bool(disordered(ends)))

    for target in disordered(ends)[:2]:
        assert same_by_time_and_position(shop, base, target).notes[0].startswith("ambiguous by ")
    for _ in range(6):
        same_by_time_and_position(shop, base, rng.choice(ends[:-5]).time)

"""What is said of point-in-time recovery, from values alone: each trouble, its words, and which of several is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pytest

from ovia_backup_dagster.core import errors, pitr_errors
from ovia_backup_dagster.pitr.receiver_status import ReceiverState, ReceiverStatus, ReceiverTrouble
from ovia_backup_dagster.pitr.recovery_catalog import RecoveryCatalog
from ovia_backup_dagster.pitr.recovery_evidence import RecoveryEvidence
from ovia_backup_dagster.pitr.standing import PitrStanding, judge_pitr
from ovia_backup_dagster.pitr.standing_values import PitrFacts, PitrLimits, PitrPart
from ovia_backup_dagster_tests.pitr.archives import SIZE, base, catalog_with, forked, hour, segments
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status, recovery_evidence

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SECOND = timedelta(seconds=1)
LIMITS = PitrLimits(rpo=5 * MINUTE, window=7 * DAY, base_period=7 * DAY, drill_age=35 * DAY)
GIGABYTE = 10**9
#: The end of segment 47, of the second day.
NOW = hour(48)
CLUSTER, OTHER = "7300000000000000001", "7300000000000000002"


def catalog(*bases: object, **more: object) -> RecoveryCatalog:
    """A base backup made and drilled on the first day, and all WAL since."""
    given = {"whole": segments(1, *range(10, 48)), **more}
    return catalog_with(*(bases or (base(10.5, drilled=True),)), **given)  # type: ignore[arg-type]


def status(**changes: object) -> ReceiverStatus:
    """A report of a receiver that works."""
    found = receiver_status(
        NOW - SECOND,
        started_at=NOW - DAY,
        system_identifier=CLUSTER,
        timeline=1,
        confirmed_at=NOW - 8 * SECOND,
        worst={"2026-11-02T23:00:00+00:00": 21.0},
        slot_status="reserved",
        slot_safe_bytes=4 * GIGABYTE,
        slot_limit_bytes=4 * GIGABYTE,
    )
    return found.model_copy(update=changes)


def trouble(error: str, since: timedelta, account: str = "it failed", fix: str = "see to it") -> ReceiverTrouble:
    return ReceiverTrouble(error=error, account=account, fix=fix, since=NOW - since)


def facts(**changes: object) -> PitrFacts:
    found = PitrFacts(
        status=status(),
        free_bytes=100 * GIGABYTE,
        system_identifier=CLUSTER,
        catalog=catalog(),
        began_at=NOW - 30 * DAY,
        wal_bytes_per_day=GIGABYTE,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def judged(now: datetime = NOW, **changes: object) -> PitrStanding:
    return judge_pitr(facts(**changes), LIMITS, now)


def kinds(found: PitrStanding) -> list[str]:
    return [type(error).__name__ for error in found.troubles]


def the(found: PitrStanding, words: str) -> errors.BackupError:
    """The only trouble. Each has a cause and a next command."""
    [error] = found.troubles
    assert words in error.account
    assert error.reason
    assert error.fix
    return error


# ----------------------------------------------------------------------------------------------------- all is well


def test_a_receiver_that_works_and_a_good_base_are_no_trouble() -> None:
    found = judged()
    assert found.troubles == ()
    assert not found.urgent
    assert found.text == (
        "any instant from 2026-11-01 10:45:00 UTC to 2026-11-03 00:00:00 UTC can be recovered (1 d 13 h); "
        "what would be lost with the server now: the last 8.0 s"
    )
    assert (found.rpo_seconds, found.worst_rpo_seconds) == (8.0, 21.0)
    assert found.newest is found.verified is not None
    assert (found.holes, found.open_holes, found.described_holes, found.parts) == ((), (), (), ())
    assert judged(catalog=None).described_holes == ()
    assert found.drilled_at is not None


# ----------------------------------------------------------------------------------------------------- the receiver


def test_a_receiver_that_never_ran_is_told() -> None:
    found = judged(status=None)
    error = the(found, "no WAL receiver ever ran on this volume")
    assert isinstance(error, pitr_errors.ReceiverStoppedError)
    assert "ovia-backup wal receive" in error.fix
    assert (found.urgent, found.parts, found.rpo_seconds) == (True, (PitrPart.RECEIVING,), None)


@pytest.mark.parametrize(
    ("state", "words"),
    [(ReceiverState.STOPPED, "it was stopped"), (ReceiverState.RECEIVING, "it has ended, or hangs")],
)
def test_a_receiver_that_stopped_is_told_without_its_effects(state: ReceiverState, words: str) -> None:
    """What would be lost is part of the message, and no message of its own."""
    old = status(written_at=NOW - 20 * MINUTE, confirmed_at=NOW - 20 * MINUTE, state=state, slot_status="unreserved")
    found = judged(status=old)
    error = the(found, f"{words}; its last report is 20 min old, and what was committed since 2026-11-02 23:40:00 UTC")
    assert isinstance(error, pitr_errors.ReceiverStoppedError)
    assert (found.rpo_seconds, found.urgent) == (1200.0, True)


def test_a_report_counts_as_stale_after_a_minute() -> None:
    assert judged(status=status(written_at=NOW - MINUTE)).troubles == ()
    assert kinds(judged(status=status(written_at=NOW - MINUTE - SECOND))) == ["ReceiverStoppedError"]


def test_a_report_from_the_future_proves_nothing() -> None:
    """A dead receiver's report would stay fresh for as long as the clock was ahead."""
    assert judged(status=status(written_at=NOW + 5 * MINUTE)).troubles == ()
    found = judged(status=status(written_at=NOW + DAY, confirmed_at=NOW + DAY))
    assert isinstance(the(found, "is dated 1 d in the future"), errors.ClockError)


def test_changes_that_are_not_safe_in_time_are_told() -> None:
    assert judged(status=status(confirmed_at=NOW - 5 * MINUTE)).troubles == ()
    found = judged(status=status(confirmed_at=NOW - 6 * MINUTE))
    error = the(found, "the changes of the last 6 min would be lost with the server")
    assert isinstance(error, pitr_errors.RecoveryPointError)
    assert "RPO_MAX_SECONDS allows 5 min" in error.why
    assert found.urgent


def test_the_cause_of_unsafe_changes_is_the_receivers_own() -> None:
    """Also one that began moments ago, as one that comes and goes."""
    cause = trouble("ServerUnreachableError", SECOND, "no connection to db:5432", "pg_isready -h db")
    error = the(judged(status=status(confirmed_at=NOW - 6 * MINUTE, troubles=(cause,))), "no connection to db:5432")
    assert isinstance(error, pitr_errors.RecoveryPointError)
    assert error.fix == "pg_isready -h db"


@pytest.mark.parametrize(("began", "told"), [(4 * MINUTE, False), (6 * MINUTE, True)])
def test_a_first_beacon_is_awaited_from_the_archives_beginning(began: timedelta, told: bool) -> None:
    """A receiver that is restarted again and again has not just begun."""
    found = judged(status=status(confirmed_at=None, started_at=NOW - SECOND), began_at=NOW - began)
    assert (kinds(found) == ["RecoveryPointError"]) is told
    if told:
        the(found, "nothing that was committed is known to be safe here: no beacon has come back")


def test_a_first_beacon_without_an_archive_is_awaited_too() -> None:
    waiting = status(confirmed_at=None, started_at=NOW - 6 * MINUTE, system_identifier=None)
    assert kinds(judged(status=waiting, began_at=None, catalog=None))[0] == "RecoveryPointError"


def test_a_trouble_of_the_receiver_is_told_after_a_minute() -> None:
    def found(since: timedelta) -> PitrStanding:
        cause = trouble("AccessRefusedError", since, "WAL is not received: no pg_hba line", "append the line")
        return judged(status=status(troubles=(cause,)))

    assert found(MINUTE).troubles == ()
    [error] = found(MINUTE + SECOND).troubles
    assert isinstance(error, errors.AccessRefusedError)
    assert (error.account, error.fix) == ("WAL is not received: no pg_hba line", "append the line")
    assert found(2 * MINUTE).urgent


def test_one_trouble_of_the_server_is_told_the_most_causal() -> None:
    """A lost slot ends the connection; the receiver reports both."""
    both = (
        trouble("ConnectionLostError", 9 * MINUTE, "the connection broke"),
        trouble("SlotLostError", 8 * MINUTE, "slot ovia_backup has lost its WAL"),
        trouble("ServerUnreachableError", 7 * MINUTE, "no connection"),
    )
    found = judged(status=status(troubles=both, confirmed_at=NOW - 10 * MINUTE, slot_status="lost"))
    assert [error.account for error in found.troubles] == ["slot ovia_backup has lost its WAL"]


def test_troubles_of_disk_segment_and_server_are_each_told() -> None:
    several = (
        trouble("QuotaError", 9 * MINUTE, "the volume has no room for this user"),
        trouble("SegmentDamagedError", 8 * MINUTE, "segment 1 is damaged"),
        trouble("AuthenticationError", 7 * MINUTE, "the password is wrong"),
    )
    # That changes are not safe follows from these.
    found = judged(status=status(troubles=several, confirmed_at=NOW - 10 * MINUTE))
    assert kinds(found) == ["QuotaError", "SegmentDamagedError", "AuthenticationError"]
    assert found.parts == (PitrPart.ROOM, PitrPart.RECEIVING, PitrPart.CHAIN)


def test_a_trouble_of_an_unknown_class_is_told_all_the_same() -> None:
    """A newer receiver may have written the report."""
    [error] = judged(status=status(troubles=(trouble("LaterError", 2 * MINUTE, "it is so"),))).troubles
    assert (type(error), error.account) == (pitr_errors.WalError, "it is so")


# ----------------------------------------------------------------------------------------------------- the slot


def test_a_slot_that_lost_its_wal_is_told() -> None:
    found = judged(status=status(slot_status="lost", slot_safe_bytes=None))
    error = the(found, "slot ovia_backup has lost its WAL: the server removed WAL that was not received")
    assert isinstance(error, pitr_errors.SlotLostError)
    assert found.urgent


@pytest.mark.parametrize(
    ("slot", "safe", "limit", "low"),
    [
        ("reserved", None, None, False),
        ("extended", GIGABYTE, 4 * GIGABYTE, False),
        ("extended", GIGABYTE * 8 // 10, 4 * GIGABYTE, False),
        ("extended", GIGABYTE * 8 // 10 - 1, 4 * GIGABYTE, True),
        # A small limit is not low as long as the receiver keeps up.
        ("extended", 3 * SIZE, 4 * SIZE, False),
        ("reserved", 4 * SIZE, None, False),
        ("reserved", 4 * SIZE - 1, None, True),
        ("unreserved", None, None, True),
        ("unreserved", -5, 4 * GIGABYTE, True),
    ],
)
def test_a_slot_near_its_limit_is_told(slot: str, safe: int | None, limit: int | None, low: bool) -> None:
    found = judged(status=status(slot_status=slot, slot_safe_bytes=safe, slot_limit_bytes=limit))
    assert bool(found.troubles) is low
    if low:
        error = the(found, "slot ovia_backup will lose its WAL soon: the server keeps only ")
        assert isinstance(error, pitr_errors.SlotLostError)
        assert not found.urgent


# ----------------------------------------------------------------------------------------------------- the WAL


def test_a_hole_since_the_verified_base_is_told_with_its_edges() -> None:
    found = judged(catalog=catalog(whole=segments(1, *range(10, 20), *range(22, 48))))
    error = the(found, "WAL is missing since base backup 2026-11-01_103000")
    assert isinstance(error, pitr_errors.WalGapError)
    assert "between 000000010000000000000013 and 000000010000000000000016" in error.why
    assert "The last one before it is 2026-11-01 20:00:00 UTC" in error.why
    assert error.fix == "ovia-backup base-backup"
    assert (len(found.open_holes), found.urgent, found.parts) == (1, True, (PitrPart.CHAIN,))
    assert found.window is not None
    assert found.window.to_time == hour(20)


@pytest.mark.parametrize("start", [22.5, 30.5])
def test_a_hole_before_the_newest_verified_base_is_history(start: float) -> None:
    whole = segments(1, *range(10, 20), *range(22, 48))
    found = judged(catalog=catalog(base(10.5, drilled=True), base(start), whole=whole))
    assert (found.troubles, len(found.holes), found.open_holes) == ((), 1, ())
    assert ", and parts of the time since 2026-11-01 10:45:00 UTC; what would be lost" in found.text
    [text] = found.described_holes
    assert text.startswith("between 000000010000000000000013 (2026-11-01 20:00:00 UTC) and 000000010000000000000016 (")
    assert text.endswith("(2026-11-01 23:00:00 UTC), and so before the newest base backup")


def test_a_hole_before_an_unverified_base_is_still_told() -> None:
    whole = segments(1, *range(10, 20), *range(22, 48))
    found = judged(catalog=catalog(base(10.5, drilled=True), base(30.5, verified=None), whole=whole))
    error = the(found, "WAL is missing since base backup 2026-11-01_103000")
    assert error.fix.startswith("verify base backup 2026-11-02_063000, which is newer")


def test_a_base_whose_own_wal_was_never_received_is_told() -> None:
    found = judged(catalog=catalog(whole=segments(1, *range(14, 48))))
    error = the(found, "the segments before 00000001000000000000000E, which the base backup needs, are not there")
    assert isinstance(error, pitr_errors.WalGapError)


def test_wal_that_has_not_arrived_yet_is_no_hole() -> None:
    """A base backup ends moments before its WAL is here."""
    fresh = catalog(base(47.5, 48.75), whole=segments(1, 46, 47), unfinished=[(1, 48.25)])
    found = judged(catalog=fresh)
    assert found.troubles == ()
    assert found.window is None
    assert found.text.startswith("no instant can be recovered yet; ")


def test_several_holes_are_one_trouble() -> None:
    found = judged(catalog=catalog(whole=segments(1, *range(10, 20), 23, *range(26, 30), *range(33, 48))))
    the(found, "and there are 2 more holes")
    assert len(found.described_holes) == 3
    assert not [text for text in found.described_holes if "newest base backup" in text]


def test_a_promotion_that_was_followed_is_no_trouble() -> None:
    whole = segments(1, *range(10, 30)) | segments(2, *range(30, 48))
    found = judged(catalog=catalog(whole=whole, timelines=[forked(2, (1, 30.25))]))
    assert found.troubles == ()


def test_a_hole_on_an_abandoned_timeline_is_no_trouble() -> None:
    whole = segments(1, *range(10, 30), 40, 41) | segments(2, *range(30, 48))
    found = judged(catalog=catalog(whole=whole, timelines=[forked(2, (1, 30.25))]))
    assert found.troubles == ()


def test_a_fork_before_the_base_is_told() -> None:
    """The server was put back to a state before its base backup, and went on from there."""
    whole = segments(1, *range(4, 30)) | segments(2, *range(6, 48))
    found = judged(catalog=catalog(whole=whole, timelines=[forked(2, (1, 6.5))]))
    error = the(found, "no base backup is of the server's present timeline, 2")
    assert isinstance(error, pitr_errors.ServerReplacedError)
    assert found.urgent


# ----------------------------------------------------------------------------------------------------- base backups


@pytest.mark.parametrize("empty", [None, catalog_with(whole=segments(1, 10))])
def test_no_base_backup_is_told(empty: RecoveryCatalog | None) -> None:
    found = judged(catalog=empty)
    error = the(found, "there is no base backup")
    assert isinstance(error, pitr_errors.BaseBackupOverdueError)
    assert (found.urgent, found.parts) == (True, (PitrPart.BASES,))


def test_another_cluster_without_a_base_backup_is_told() -> None:
    found = judged(catalog=catalog_with(whole=segments(1, 10)), others=(OTHER,))
    error = the(found, f"the server is of another cluster, {CLUSTER}, which has no base backup")
    assert isinstance(error, pitr_errors.ServerReplacedError)
    assert OTHER in error.why


def test_another_cluster_with_a_base_backup_is_no_trouble() -> None:
    assert judged(others=(OTHER,)).troubles == ()


def test_bad_base_backups_alone_are_told() -> None:
    found = judged(catalog=catalog(base(10.5, verified=False), base(20.5, verified=False)))
    assert isinstance(the(found, "every base backup was found to be bad"), pitr_errors.BaseBackupError)
    assert found.urgent


def test_a_newer_bad_base_backup_is_told() -> None:
    found = judged(catalog=catalog(base(10.5, drilled=True), base(40.5, verified=False)))
    error = the(found, "base backup 2026-11-02_163000 is bad")
    assert isinstance(error, pitr_errors.BaseBackupError)
    assert not found.urgent
    assert judged(catalog=catalog(base(10.5, verified=False), base(40.5, drilled=True))).troubles == ()


def test_a_base_backup_that_stays_unverified_is_told() -> None:
    made = base(10.5, verified=None)
    assert old(made.finished_at + DAY, made).troubles == ()
    found = old(made.finished_at + DAY + SECOND, made)
    assert isinstance(the(found, "base backup 2026-11-01_103000 is not verified"), pitr_errors.BaseBackupOverdueError)


def old(now: datetime, *bases: object) -> PitrStanding:
    """As found later: the receiver works then, too, and WAL has arrived until then."""
    count = int((now - hour(0)) / timedelta(hours=1))
    then = catalog(*bases, whole=segments(1, *range(10, count)))
    working = status(written_at=now - SECOND, confirmed_at=now - 8 * SECOND)
    return judged(now=now, catalog=then, status=working, began_at=hour(10))


def test_a_base_backup_older_than_the_schedule_allows_is_told() -> None:
    made = base(10.5, drilled=True)
    assert old(made.started_at + 8 * DAY, made).troubles == ()
    found = old(made.started_at + 8 * DAY + SECOND, made)
    error = the(found, "the newest base backup is 8 d old: BASE_BACKUP_SCHEDULE makes one every 7 d")
    assert isinstance(error, pitr_errors.BaseBackupOverdueError)
    assert not found.urgent


def test_a_base_backup_from_the_future_is_told() -> None:
    found = judged(catalog=catalog(base(10.5, drilled=True), base(46.5), base(72, 73, name="2026-11-04_000000")))
    assert isinstance(the(found, "base backup 2026-11-04_000000 is dated 1 d in the future"), errors.ClockError)


def test_base_backups_without_a_drill_are_told_in_time() -> None:
    """Counted from the archive's beginning: base backups themselves are removed long before."""
    recent = base(10.5 + 24 * 31)
    assert old(hour(10) + 35 * DAY, recent).troubles == ()
    error = the(old(hour(10) + 35 * DAY + SECOND, recent), "no base backup was ever recovered in a drill")
    assert isinstance(error, pitr_errors.BaseBackupOverdueError)
    assert error.fix == "ovia-backup pitr-drill"


def test_a_drill_long_ago_is_told() -> None:
    drilled, recent = base(10.5, drilled=True), base(10.5 + 24 * 34)
    assert drilled.drilled_at is not None
    assert old(drilled.drilled_at + 35 * DAY, drilled, recent).troubles == ()
    error = the(old(drilled.drilled_at + 35 * DAY + MINUTE, drilled, recent), "the last drill of a base backup that ")
    assert "was 35 d ago" in error.what


def evidence(*, passed: bool, **changes: object) -> RecoveryEvidence:
    return recovery_evidence(NOW - DAY, passed=passed, **changes)


def test_a_drill_that_failed_is_told_until_one_passes() -> None:
    failed = evidence(passed=False, wrong="the dump is damaged")
    found = judged(last_drill=failed)
    error = the(found, "base backup 2026-11-01_103000 is not proven by ovia_daily_2026-11-02_030000.dump")
    assert isinstance(error, errors.DrillError)
    assert "public.people differs; the dump is damaged" in error.why
    assert (found.urgent, found.parts) == (False, (PitrPart.BASES,))
    assert judged(last_drill=evidence(passed=True)).troubles == ()


def test_a_base_backup_that_cannot_be_read_is_told() -> None:
    unusable = (("2026-11-02_000000", "it has no base.json"),)
    error = the(judged(unusable=unusable), "base backup 2026-11-02_000000 cannot be used: it has no base.json")
    assert isinstance(error, pitr_errors.BaseBackupError)
    assert kinds(judged(unusable=unusable, catalog=None)) == ["BaseBackupError"]


# ----------------------------------------------------------------------------------------------------- room


def test_a_full_volume_is_told_and_nothing_that_follows_from_it() -> None:
    """A receiver cannot write its report on a full disk."""
    stale = status(written_at=NOW - DAY, confirmed_at=NOW - DAY, slot_status="lost")
    found = judged(free_bytes=3 * SIZE - 1, status=stale)
    error = the(found, "the backup volume has no room for WAL: 3.1 MB free")
    assert isinstance(error, errors.DiskFullError)
    assert (found.urgent, found.parts) == (True, (PitrPart.ROOM,))
    assert kinds(judged(free_bytes=3 * SIZE, status=stale, wal_bytes_per_day=0)) == ["ReceiverStoppedError"]


def test_a_volume_that_will_be_full_is_told() -> None:
    """Old WAL is removed only after the next base backup, which needs room, too: in 5.4 days here."""
    needed = int((10.5 / 24 + 7 - 2) * GIGABYTE) + 1_000_000
    assert judged(free_bytes=needed).troubles == ()
    found = judged(free_bytes=needed - 1)
    error = the(found, "the backup volume will be full before the next base backup is made")
    assert isinstance(error, errors.DiskFullError)
    assert not found.urgent


def test_room_without_a_base_backup_is_for_a_day_of_wal() -> None:
    found = judged(catalog=None, free_bytes=GIGABYTE - 1)
    assert kinds(found) == ["BaseBackupOverdueError", "DiskFullError"]
    assert "full before tomorrow" in found.troubles[1].what


# ----------------------------------------------------------------------------------------------------- several


def test_independent_troubles_are_all_told_the_urgent_first() -> None:
    found = judged(
        status=status(slot_status="extended", slot_safe_bytes=1),
        catalog=catalog(base(10.5, drilled=True), base(40.5, verified=False), whole=segments(1, *range(10, 20), 30)),
        free_bytes=GIGABYTE,
    )
    assert kinds(found) == ["WalGapError", "DiskFullError", "SlotLostError", "BaseBackupError"]
    assert found.parts == tuple(PitrPart)


def test_no_cause_is_told_twice_in_any_combination() -> None:
    """Of each class one, and an urgent one never after one that can wait; each with cause and next command."""
    reports: Sequence[ReceiverStatus | None] = (
        None,
        status(),
        status(written_at=NOW - DAY),
        status(written_at=NOW + DAY),
        status(confirmed_at=NOW - DAY, slot_status="lost"),
        status(slot_status="unreserved"),
        status(troubles=(trouble("ServerReplacedError", DAY), trouble("DiskFullError", DAY))),
    )
    catalogs = (
        None,
        catalog(),
        catalog(base(10.5, verified=False)),
        catalog(base(10.5, verified=None), whole=segments(1, *range(10, 20), 30)),
        catalog(base(40.5), base(72, 73)),
        catalog(whole=segments(2, *range(6, 48)), timelines=[forked(2, (1, 6.5))]),
    )
    unusable = ((), (("2026-11-02_000000", "it has no base.json"),))
    for report, each, free, odd, others in product(reports, catalogs, (0, 10**9, 10**12), unusable, ((), (OTHER,))):
        found = judged(status=report, catalog=each, free_bytes=free, unusable=odd, others=others)
        assert len(set(kinds(found))) == len(found.troubles)
        assert [trouble.urgent for trouble in found.found] == sorted((t.urgent for t in found.found), reverse=True)
        assert all(error.reason or error.account for error in found.troubles)
        assert all(error.fix for error in found.troubles)
        assert found.text

"""A restore's journal, order and record, and the fate of a database that a restore replaced."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import JournalError, VolumeError
from ovia_backup_dagster.restoration import folder as restores
from ovia_backup_dagster.restoration.folder import RestoreFolder, RestoreStanding
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.record import Fate, fate, record_of
from ovia_backup_dagster.restoration.restore_order import Mode, Step, StopServices
from ovia_backup_dagster.restoration.step_data import RestoreData, StepData, StopData, SwapData
from ovia_backup_dagster_tests.support.restoring import NOW, order

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> RestoreFolder:
    found = RestoreFolder(Catalog(tmp_path, "ovia"))
    found.prepare()
    return found


# ------------------------------------------------------------------------------------------------- the fate


@given(keep=st.integers(0, 5), announced=st.none() | st.integers(0, 150), now=st.integers(0, 150))
@example(keep=2, announced=0, now=47)  # announced long ago, not yet due
@example(keep=2, announced=47, now=48)  # due, but announced only now
def test_no_database_is_dropped_unannounced_or_too_soon(keep: int, announced: int | None, now: int) -> None:
    """At any hour, with or without an announcement before."""
    told = None if announced is None else NOW + timedelta(hours=announced)
    what = fate(NOW, told, keep * DAY, NOW + timedelta(hours=now))
    if what is Fate.DROP:
        assert announced is not None
        assert announced >= 24 * (keep - 2)
        assert now >= announced + 24
        assert now >= 24 * keep > 0
    if what is Fate.ANNOUNCE:
        assert announced is None or announced < 24 * (keep - 2)
        assert now >= 24 * (keep - 2)
        assert keep > 0


@given(keep=st.integers(1, 60), every=st.integers(1, 48))
def test_each_kept_database_is_dropped_in_the_end(keep: int, every: int) -> None:
    now, announced = NOW, None
    while (what := fate(NOW, announced, keep * DAY, now)) is not Fate.DROP:
        if what is Fate.ANNOUNCE:
            announced = now
        now += timedelta(hours=every)
        assert now < NOW + (keep + 7) * DAY
    assert announced is not None


@given(keep=st.integers(1, 30), more=st.integers(1, 30))
def test_kept_databases_are_announced_again(keep: int, more: int) -> None:
    """With a longer retention, the announced day passes without a drop, so the drop is announced again."""
    told = NOW + (keep - 1) * DAY
    assert fate(NOW, told, keep * DAY, NOW + keep * DAY) is Fate.DROP
    longer = NOW + (keep + more) * DAY
    assert fate(NOW, told, (keep + more) * DAY, longer) is (Fate.DROP if more == 1 else Fate.ANNOUNCE)


# ------------------------------------------------------------------------------------------------- the steps


def test_the_steps_of_each_mode() -> None:
    everything = {"services": {"api": None}, "migrate": "migrate", "health_url": "http://api/health"}
    assert order(Mode.SWAP).steps == (Step.RESTORE, Step.SWAP)
    assert order(Mode.UNDO).steps == (Step.SWAP,)
    assert order(Mode.NEW).steps == (Step.RESTORE,)
    assert order(Mode.DROP).steps == (Step.DRILL, Step.DROP, Step.RESTORE)
    assert order(Mode.UNDO, **everything).steps == (Step.STOP, Step.SWAP, Step.START, Step.HEALTH)


@given(
    mode=st.sampled_from(Mode),
    stop=st.sampled_from(StopServices),
    services=st.dictionaries(st.sampled_from("abc"), st.none() | st.integers(0, 3)),
    migrate=st.sampled_from(["", "m"]),
    health=st.sampled_from(["", "h"]),
)
def test_services_stop_before_the_swap_and_start_after(
    mode: Mode, stop: StopServices, services: dict[str, int | None], migrate: str, health: str
) -> None:
    steps = order(mode, stop_services=stop, services=services, migrate=migrate, health_url=health).steps
    assert len(set(steps)) == len(steps)
    changing = [step for step in (Step.DROP, Step.SWAP) if step in steps]
    if services and changing:
        assert steps.index(Step.STOP) < steps.index(changing[0]) < steps.index(Step.START)
    if Step.DROP in steps:
        assert steps.index(Step.DRILL) < steps.index(Step.DROP)
    if Step.SWAP in steps and Step.RESTORE in steps:
        assert steps.index(Step.RESTORE) < steps.index(Step.SWAP)


# ------------------------------------------------------------------------------------------------- the journal


@given(cut=st.integers(0, 400))
def test_a_torn_journal_line_is_ignored(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = RestoreFolder(Catalog(tmp_path_factory.mktemp("volume"), "ovia"))
    folder.prepare()
    journal = folder.begin(order())
    journal.write(JournalMark.BEGUN, Step.RESTORE)
    whole = journal.path.read_bytes()
    journal.write(JournalMark.DONE, Step.RESTORE, StepData(notes=("x" * 200,)))
    last = journal.path.read_bytes()[len(whole) :]
    cut = min(cut, len(last) - 1)
    journal.path.write_bytes(whole + last[:cut])

    again = Journal.read(journal.path)
    assert [entry.mark for entry in again.entries] == [JournalMark.BEGUN]
    again.write(JournalMark.FAILED, Step.RESTORE, StepData(error="e"))
    assert [entry.mark for entry in Journal.read(journal.path).entries] == [JournalMark.BEGUN, JournalMark.FAILED]


def test_the_first_replicas_and_the_last_oid_count(folder: RestoreFolder) -> None:
    journal = folder.begin(order())
    for replicas, oid in ((3, 100), (0, 200)):
        journal.write(JournalMark.BEGUN, Step.STOP, StopData(replicas={"api": replicas}))
        journal.write(JournalMark.NOTED, Step.RESTORE, RestoreData(made=oid))
    assert journal.data(StopData) == StopData(replicas={"api": 3})
    assert journal.made == 200


def test_an_unfinished_restore_is_found_if_the_clock_went_back(folder: RestoreFolder) -> None:
    later = folder.begin(order(started_at=NOW + timedelta(hours=1)))
    later.write(JournalMark.FINISHED)
    folder.begin(order())
    found = folder.unfinished()
    assert found is not None
    assert found.order.started_at == NOW


def test_another_databases_restore_is_ignored(folder: RestoreFolder) -> None:
    folder.begin(order(database="other"))
    assert folder.unfinished() is None


def test_an_abandoned_restore_is_trouble_a_running_one_not(folder: RestoreFolder) -> None:
    assert folder.standing() == RestoreStanding(None, None)
    journal = folder.begin(order())
    with folder.lock("the swap of a backup", NOW):
        standing = folder.standing()
        assert "the swap of a backup" in (standing.at_work or "")
        assert standing.trouble is None
        # A journal that is being written must not count as damaged.
        journal.path.write_bytes(b"")
        assert folder.standing().trouble is None
    with pytest.raises(JournalError, match="cannot be understood"):
        folder.standing()
    journal.path.unlink()
    folder.begin(order()).write(JournalMark.BEGUN, Step.RESTORE)
    assert "the step 'restore' was begun" in str(folder.standing().trouble)


def test_a_journal_that_appears_while_listing_is_no_trouble(folder: RestoreFolder) -> None:
    folder.begin(order())
    with mock.patch.object(restores, "lock_holder", side_effect=[None, "the swap of a backup"]):
        assert folder.standing() == RestoreStanding("the swap of a backup", None)


def test_only_its_owner_can_read_a_journal(folder: RestoreFolder) -> None:
    """The journal of a drop holds the database's settings, which may be secret."""
    journal = folder.begin(order(Mode.DROP))
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_newer_versions_journal_is_refused(folder: RestoreFolder) -> None:
    journal = folder.begin(order())
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"version":1', b'"version":2'))
    with pytest.raises(VolumeError, match="newer ovia-backup") as caught:
        folder.unfinished()
    assert str(journal.path) in str(caught.value)
    assert "version: Input should be 1" in str(caught.value)


@pytest.mark.parametrize("text", [b"no journal\n", b"\xff\n", b"\n", b"[[[[\n", b'{"version":1}\n'])
def test_a_damaged_journal_is_reported_in_one_line(folder: RestoreFolder, text: bytes) -> None:
    journal = folder.begin(order())
    journal.path.write_bytes(text)
    with pytest.raises(JournalError, match="cannot be understood") as caught:
        folder.unfinished()
    assert "pydantic" not in str(caught.value)
    assert "\n" not in caught.value.account


# ------------------------------------------------------------------------------------------------- the record


def test_a_record_is_built_from_the_journal_alone(folder: RestoreFolder) -> None:
    journal = folder.begin(order())
    journal.write(JournalMark.BEGUN, Step.RESTORE)
    journal.write(JournalMark.FAILED, Step.RESTORE, StepData(error="the disk was full", fix="make room"))
    journal.write(JournalMark.BEGUN, Step.RESTORE)
    journal.write(JournalMark.DONE, Step.RESTORE, StepData(notes=("a", "a")))
    journal.write(JournalMark.BEGUN, Step.SWAP, SwapData(counters={"resets": "", "tables": {}}, subscriptions=("s",)))
    journal.write(JournalMark.DONE, Step.SWAP, SwapData(interruption_seconds=0.02, sessions_cut=3))
    journal.write(JournalMark.FINISHED)

    record = record_of(Journal.read(journal.path))
    assert (record.outcome, record.error, record.kept) == ("done", "", journal.order.kept)
    assert (record.notes, record.subscriptions, record.sessions_cut) == (("a",), ("s",), 3)
    assert record.counters == {"resets": "", "tables": {}}
    assert list(folder.newest_first()) == [record]
    folder.write(record, "page")
    assert list(folder.newest_first()) == [record]


@pytest.mark.parametrize("recorded", [False, True])
def test_restores_of_the_same_second_keep_their_order(folder: RestoreFolder, recorded: bool) -> None:
    """An undo right after a restore: by its file name it would sort before the restore."""
    began = []
    for backup in ("z.dump", "", "a.dump"):
        journal = folder.begin(order(started_at=folder.free(NOW), backup=backup))
        journal.write(JournalMark.FINISHED)
        if recorded:
            folder.write(record_of(journal), "page")
        began.append(backup)
    assert [record.order.backup for record in folder.newest_first()] == began[::-1]


def test_the_swapping_process_knows_when_it_swapped(folder: RestoreFolder) -> None:
    """A process that finds the swap done, after a kill, does not know when it happened."""
    by_name: dict[str, datetime | None] = {}
    for started, noted in ((NOW, SwapData(interruption_seconds=0.02)), (NOW + DAY, SwapData(notes=("made already",)))):
        journal = folder.begin(order(started_at=started, kept=f"kept_{started:%d}"))
        journal.write(JournalMark.BEGUN, Step.SWAP, SwapData(live_oid=1, incoming_oid=2))
        journal.write(JournalMark.DONE, Step.SWAP, noted)
        at = journal.entries[-1].at.replace(microsecond=0)
        journal.write(JournalMark.BEGUN, Step.START)
        journal.write(JournalMark.FINISHED)
        by_name[journal.order.kept] = at if noted.interruption_seconds else None
    for name, when in by_name.items():
        record = folder.swap_that_kept(name)
        assert record is not None
        assert (record.swapped_at, record.live_oid) == (when, 2)
    assert folder.swap_that_kept("another") is None


def test_a_record_has_the_error_that_caused_the_swap_back(folder: RestoreFolder) -> None:
    journal = folder.begin(order())
    for step in (Step.RESTORE, Step.SWAP):
        journal.write(JournalMark.BEGUN, step)
        journal.write(JournalMark.DONE, step)
    journal.write(JournalMark.BEGUN, Step.HEALTH)
    journal.write(JournalMark.FAILED, Step.HEALTH, StepData(error="health stayed red", fix="look"))
    journal.write(JournalMark.PUTTING_BACK, Step.SWAP, SwapData(was_live=True))
    journal.write(JournalMark.PUT_BACK)
    record = record_of(journal)
    assert (record.outcome, record.error, record.kept) == ("put back", "health stayed red", "")


@pytest.mark.parametrize(
    ("writes", "fix"),
    [
        ([], "--resume; or put everything back"),
        ([(JournalMark.BEGUN, Step.DROP)], "--resume; or put everything back"),
        ([(JournalMark.BEGUN, Step.DROP), (JournalMark.DONE, Step.DROP)], "--resume"),
        ([(JournalMark.BEGUN, Step.RESTORE), (JournalMark.PUTTING_BACK, None)], "put everything back"),
    ],
)
def test_an_unfinished_restore_names_the_next_command(
    folder: RestoreFolder, writes: list[tuple[JournalMark, Step | None]], fix: str
) -> None:
    journal = folder.begin(order(Mode.DROP))
    for mark, step in writes:
        journal.write(mark, step)
    said = journal.unfinished.fix
    assert fix in said
    assert ("--abort" in said) == ("put everything back" in fix)
    assert ("--resume" in said) == ("--resume" in fix)

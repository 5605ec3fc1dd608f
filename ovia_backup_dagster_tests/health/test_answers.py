"""The answers of a condition, one by one: each level, its words and the alert. No server, no Dagster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core import deadline
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import (
    BackupError,
    JournalError,
    RestoreUnfinishedError,
    SettingsError,
    VolumeError,
)
from ovia_backup_dagster.core.pitr_errors import ReceiverStoppedError
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.health.condition import (
    Condition,
    ConditionLevel,
    Question,
    about_backups,
    about_pitr,
    about_restores,
    about_volume,
    assess,
)
from ovia_backup_dagster.health.failed_runs import FailedRun, FailedRuns
from ovia_backup_dagster.health.freshness import judge_freshness
from ovia_backup_dagster.offsite.remote_record import RemoteRecord
from ovia_backup_dagster.offsite.remote_standing import RemoteStanding, judge_remote
from ovia_backup_dagster.pitr.recovery_catalog import Base, RecoveryCatalog
from ovia_backup_dagster.pitr.standing import PitrStanding, judge_pitr
from ovia_backup_dagster.pitr.standing_values import PitrFacts, PitrLimits
from ovia_backup_dagster.pitr.wal_position import SEGMENT_BYTES, Lsn, Segment
from ovia_backup_dagster.restoration.folder import RestoreFolder, RestoreStanding
from ovia_backup_dagster_tests.support.factories import (
    DAY,
    HOUR,
    NOW,
    drilled,
    judged,
    make_catalog,
    publish,
    verified_backup,
    write_dump,
)
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status

OK, WARNING, UNKNOWN, CRITICAL = ConditionLevel
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
MAX_AGE = 26 * HOUR
FAILED = FailedRun("daily_backup_job", "run-1", NOW - HOUR, "the disk is full")


@dataclass(frozen=True)
class Pitr:
    """Point-in-time recovery, with or without facts, or on a volume that cannot be read."""

    facts: PitrFacts | None = None
    error: VolumeError | None = None

    @property
    def enabled(self) -> bool:
        return self.facts is not None or self.error is not None

    def standing(self, now: datetime) -> PitrStanding:
        if self.error is not None:
            raise self.error
        assert self.facts is not None, "it is off"
        return judge_pitr(self.facts, PitrLimits(5 * MINUTE, 7 * DAY, 7 * DAY, 35 * DAY), now)


@dataclass(frozen=True)
class System:
    """The system that a condition describes, without settings."""

    catalog: Catalog
    max_age: timedelta = MAX_AGE
    drill_max_age: timedelta = 35 * DAY
    remotes: Mapping[str, RemoteRecord] = field(default_factory=dict)
    pitr: Pitr = Pitr()

    def remote_standings(self, now: datetime) -> tuple[RemoteStanding, ...]:
        return tuple(judge_remote(name, record, 2 * DAY, now) for name, record in self.remotes.items())

    @property
    def drills(self) -> DrillFolder:
        return DrillFolder(self.catalog)

    @property
    def restores(self) -> RestoreFolder:
        return RestoreFolder(self.catalog)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(make_catalog(tmp_path))


def answers(found: Condition) -> dict[Question, tuple[ConditionLevel, str]]:
    return {answer.question: (answer.level, answer.what) for answer in found.answers}


def backups(system: System):  # type: ignore[no-untyped-def]
    return about_backups(judge_freshness(system.catalog.backups(), MAX_AGE, NOW))


# --- The volume -----------------------------------------------------------------------------------------------------


def test_a_volume_without_errors_can_be_read() -> None:
    answer = about_volume([])
    assert (answer.question, answer.level, answer.text, answer.trouble) == (Question.VOLUME, OK, "it can be read", None)


def test_an_error_is_answered_with_its_cause_and_fix() -> None:
    error = VolumeError("the volume is gone", why="it was unmounted", fix="mount it")
    answer = about_volume([error, VolumeError("the volume is gone", why="it was unmounted", fix="mount it")])
    assert (answer.level, answer.what, answer.why, answer.fix) == (
        UNKNOWN,
        "the volume is gone",
        "it was unmounted",
        "mount it",
    )
    assert str(answer.trouble) == str(error)


def test_several_errors_are_all_named_with_the_first_fix() -> None:
    first = VolumeError("daily/ cannot be read", why="no rights", fix="chmod")
    answer = about_volume([first, VolumeError("drills/ cannot be read", why="no rights", fix="chown")])
    assert answer.what == "daily/ cannot be read: no rights; drills/ cannot be read: no rights"
    assert (answer.why, answer.fix, answer.trouble) == ("", "chmod", first)


# --- Backups --------------------------------------------------------------------------------------------------------


def test_no_backup_is_critical_and_cannot_be_verified(system: System) -> None:
    fresh, rejected, verified = backups(system)
    assert (fresh.level, fresh.what) == (CRITICAL, "there is no backup")
    assert (rejected.level, rejected.text) == (OK, "no newer backup is bad")
    assert (verified.level, verified.text, verified.trouble) == (UNKNOWN, "there is no backup to verify", None)


def test_the_newest_backup_is_described_by_its_state(system: System) -> None:
    backup = publish(system.catalog, NOW - 2 * HOUR)
    assert backups(system)[2].text == "the newest backup is not verified yet"
    backup = judged(system.catalog, backup)
    assert backups(system)[2].text == "the newest backup is verified"
    drilled(system.catalog, backup)
    fresh, _, verified = backups(system)
    assert verified.text == "the newest backup is proven"
    assert (fresh.level, verified.level) == (OK, OK)


def test_backups_that_stay_unverified_are_critical_once(system: System) -> None:
    for days in range(4):
        publish(system.catalog, NOW - days * DAY - HOUR)
    fresh, _, verified = backups(system)
    assert (fresh.level, fresh.trouble) == (OK, None)
    assert verified.level is CRITICAL
    assert verified.trouble is not None


def test_a_newer_bad_backup_is_reported_with_its_cause(system: System) -> None:
    verified_backup(system.catalog, NOW - 3 * HOUR)
    bad = judged(system.catalog, publish(system.catalog, NOW - HOUR), good=False)
    fresh, rejected, _ = backups(system)
    assert bad.problem is not None
    assert (fresh.level, rejected.level) == (OK, WARNING)
    assert (rejected.what, rejected.why, rejected.fix) == (f"{bad} is bad", bad.problem.reason, bad.problem.fix)
    assert rejected.trouble is not None


def test_two_bad_backups_are_counted_with_the_newest_cause(system: System) -> None:
    verified_backup(system.catalog, NOW - 4 * HOUR)
    newest, _ = (judged(system.catalog, publish(system.catalog, NOW - n * HOUR), good=False) for n in (1, 2))
    rejected = backups(system)[1]
    assert newest.problem is not None
    assert rejected.what == f"2 backups are bad, the newest of them {newest}"
    assert (rejected.why, rejected.fix) == (newest.problem.reason, newest.problem.fix)


def test_a_bad_backup_is_not_reported_beside_a_stale_one(system: System) -> None:
    verified_backup(system.catalog, NOW - 3 * DAY)
    judged(system.catalog, publish(system.catalog, NOW - HOUR), good=False)
    fresh, rejected, _ = backups(system)
    assert fresh.trouble is not None
    assert (rejected.level, rejected.trouble) == (WARNING, None)


# --- Restores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_work", "text"),
    [(None, "none is unfinished"), ("a restore since 10:00", "one is under way: a restore since 10:00")],
)
def test_restores_without_trouble_are_well(at_work: str | None, text: str) -> None:
    answer = about_restores(RestoreStanding(at_work, None))
    assert (answer.question, answer.level, answer.text) == (Question.RESTORES, OK, text)


def test_an_unfinished_restore_is_critical() -> None:
    error = RestoreUnfinishedError("not finished", why="killed", fix="resume")
    answer = about_restores(RestoreStanding(None, error))
    assert (answer.level, answer.text, answer.fix, answer.trouble) == (
        CRITICAL,
        "not finished: killed",
        "resume",
        error,
    )


# --- The whole condition --------------------------------------------------------------------------------------------


def test_a_system_without_trouble_is_ok(system: System) -> None:
    backup = drilled(system.catalog, verified_backup(system.catalog, NOW - HOUR))
    found = assess(system, NOW, runs=FailedRuns())
    assert answers(found) == {
        Question.VOLUME: (OK, "it can be read"),
        Question.FRESH: (OK, f"the newest backup, {backup}, is 1 h old (proven)"),
        Question.UNDAMAGED: (OK, "no newer backup is bad"),
        Question.VERIFIED: (OK, "the newest backup is proven"),
        Question.PROVEN: (OK, "no restore drill has passed yet"),
        Question.RESTORES: (OK, "none is unfinished"),
        Question.REPLACED: (OK, "the last run that drops replaced databases did not fail"),
        Question.COPIES: (OK, "OFFSITE_REMOTES names no remote"),
        Question.RUNS: (OK, "no failed run needs attention"),
        Question.SETTINGS: (OK, "all settings can be used"),
    }
    assert [answer.question for answer in found.answers] == [each for each in Question if each is not Question.PITR]
    assert (found.level, found.wrong, found.told, found.trouble, found.kinds) == (OK, (), (), "", "")
    assert (found.newest_verified, found.newest_proven, found.at_work, found.failed) == (backup, backup, (), None)
    assert found.found is not None
    assert found.found.newest == backup
    assert found.drills is not None
    assert found.restores is not None
    answer = found.answer(Question.FRESH)
    assert answer is not None
    assert answer.question is Question.FRESH


def test_the_newest_proven_and_verified_backups_are_named(system: System) -> None:
    older = drilled(system.catalog, verified_backup(system.catalog, NOW - 3 * HOUR))
    newer = verified_backup(system.catalog, NOW - 2 * HOUR)
    publish(system.catalog, NOW - HOUR)
    found = assess(system, NOW)
    assert (found.newest_verified, found.newest_proven) == (newer, older)


def test_without_dagster_its_questions_are_left_out(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    found = assess(system, NOW)
    assert {Question.REPLACED, Question.RUNS}.isdisjoint(answers(found))
    assert found.answer(Question.RUNS) is None


def test_unusable_settings_are_unknown_and_reported(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    error = SettingsError("POSTGRES_HOST is not set", fix="set it")
    found = assess(system, NOW, settings=error)
    answer = found.answer(Question.SETTINGS)
    assert answer is not None
    assert (answer.level, answer.what, answer.fix, answer.trouble) == (UNKNOWN, error.what, "set it", error)
    assert found.kinds == "backup"


def test_a_failed_run_beside_good_backups_is_reported(system: System) -> None:
    verified_backup(system.catalog, NOW - 2 * HOUR)
    found = assess(system, NOW, runs=FailedRuns(backup=FAILED, ended_early=FAILED))
    answer = found.answer(Question.RUNS)
    assert answer is not None
    assert (answer.level, answer.what) == (WARNING, FAILED.no_backup.what)
    assert answer.what.endswith(" UTC, and no backup was verified since")
    assert (found.failed, found.kinds) == (FAILED, "run")


def test_a_run_that_failed_before_a_verified_backup_is_fine(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR / 2)
    found = assess(system, NOW, runs=FailedRuns(backup=FAILED, ended_early=FAILED))
    assert (found.failed, found.told, answers(found)[Question.RUNS][0]) == (None, (), OK)


def test_a_failed_run_is_reported_with_the_stale_backup(system: System) -> None:
    verified_backup(system.catalog, NOW - 3 * DAY)
    early = FailedRun("daily_backup_job", "run-2", NOW - HOUR, "cancelled")
    found = assess(system, NOW, runs=FailedRuns(backup=FAILED, ended_early=early))
    answer = found.answer(Question.RUNS)
    assert answer is not None
    assert (answer.level, answer.what, answer.trouble) == (WARNING, early.text, None)
    assert found.failed is early
    assert [each.question for each in found.told] == [Question.FRESH]


def test_replaced_databases_that_stay_are_a_warning(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    failed = FailedRun("kept_databases_job", "run-3", NOW - HOUR, "no connection")
    found = assess(system, NOW, runs=FailedRuns(replaced=failed))
    answer = found.answer(Question.REPLACED)
    assert answer is not None
    assert answer.level is WARNING
    assert answer.what == failed.nothing_dropped.what
    assert "the run that failed is run-3" in answer.fix
    assert found.kinds == "kept"


def test_replaced_databases_that_stay_do_not_hide_a_failed_run(system: System) -> None:
    verified_backup(system.catalog, NOW - 2 * HOUR)
    failed = FailedRun("kept_databases_job", "run-3", NOW - HOUR, "no connection")
    found = assess(system, NOW, runs=FailedRuns(backup=FAILED, ended_early=FAILED, replaced=failed))
    assert (found.kinds, found.failed) == ("kept+run", FAILED)


def test_a_volume_that_is_gone_leaves_all_else_unknown(system: System) -> None:
    system.catalog.root.rename(system.catalog.root.with_name("away"))
    found = assess(system, NOW, runs=FailedRuns())
    unread = (UNKNOWN, "not known: the backup volume was not read")
    for question in (Question.FRESH, Question.UNDAMAGED, Question.VERIFIED, Question.PROVEN):
        assert answers(found)[question] == unread
    assert [answer.question for answer in found.told] == [Question.VOLUME]
    assert isinstance(found.told[0].trouble, BackupError)
    assert (found.found, found.drills, found.newest_verified) == (None, None, None)


def test_a_run_that_ended_as_a_backup_began_is_reported(system: System) -> None:
    verified_backup(system.catalog, FAILED.at)
    assert assess(system, NOW, runs=FailedRuns(backup=FAILED, ended_early=FAILED)).failed is FAILED


def test_a_proven_backup_is_the_newest_verified_too(system: System) -> None:
    older = drilled(system.catalog, verified_backup(system.catalog, NOW - 3 * HOUR))
    publish(system.catalog, NOW - HOUR)
    found = assess(system, NOW)
    assert (found.newest_verified, found.newest_proven) == (older, older)
    assert found.failed is None


def test_a_drilled_dump_without_a_verdict_is_not_proven(system: System) -> None:
    older = drilled(system.catalog, verified_backup(system.catalog, NOW - 3 * HOUR))
    drilled(system.catalog, write_dump(system.catalog, NOW - 2 * HOUR))
    assert assess(system, NOW).newest_proven == older


def test_the_lock_holder_is_at_work(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    with system.catalog.lock("pruning", NOW):
        (at_work,) = assess(system, NOW).at_work
    assert at_work.startswith("pruning (process ")


def test_a_volume_that_hangs_leaves_all_else_unknown(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    error, asked = VolumeError("it does not answer", why="its server hangs", fix="findmnt"), []

    def hangs(seconds: float, root: Path, _: Callable[[], object]) -> None:
        asked.append((seconds, root))
        raise error

    monkeypatch.setattr(deadline, "within_deadline", hangs)
    found = assess(system, NOW)
    assert asked == [(deadline.LOOK_SECONDS, system.catalog.root)]
    unread = (UNKNOWN, "not known: the backup volume was not read")
    assert answers(found) == {
        Question.VOLUME: (UNKNOWN, "it does not answer"),
        **dict.fromkeys((Question.FRESH, Question.UNDAMAGED, Question.VERIFIED, Question.PROVEN), unread),
        Question.RESTORES: unread,
        Question.COPIES: unread,
        Question.SETTINGS: (OK, "all settings can be used"),
    }
    assert (found.restores, found.at_work, found.level) == (None, (), UNKNOWN)


def test_a_journal_that_cannot_be_read_is_unknown(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    error = JournalError("the journal cannot be read", why="it is cut off", fix="look at it")

    def broken(_: RestoreFolder) -> RestoreStanding:
        raise error

    monkeypatch.setattr(RestoreFolder, "standing", broken)
    found = assess(system, NOW)
    answer = found.answer(Question.RESTORES)
    assert answer is not None
    assert (answer.level, answer.text, answer.trouble) == (
        UNKNOWN,
        "the journal cannot be read: it is cut off",
        error,
    )
    assert answers(found)[Question.VOLUME] == (OK, "it can be read")
    assert (found.kinds, found.newest_verified is not None) == ("restore", True)


# --- Point-in-time recovery -----------------------------------------------------------------------------------------


def pitr_facts(**changes: object) -> PitrFacts:
    """A receiver that works, on a cluster with a base backup."""
    made = Base(
        name="2026-06-14_120000",
        timeline=1,
        start=Lsn(0),
        end=Lsn(100),
        started_at=NOW - DAY,
        finished_at=NOW - DAY,
        size_bytes=1,
        verified=True,
        drilled_at=NOW - HOUR,
    )
    segment = Segment(1, 0)
    status = receiver_status(NOW, confirmed_at=NOW - 9 * SECOND)
    catalog = RecoveryCatalog(SEGMENT_BYTES, frozenset({segment}), {}, (made,), {segment: NOW})
    found = PitrFacts(status, 10**12, "7300000000000000001", catalog, NOW - DAY)
    return replace(found, **changes)  # type: ignore[arg-type]


def stopped(age: timedelta) -> PitrFacts:
    status = pitr_facts().status
    assert status is not None
    return pitr_facts(status=status.model_copy(update={"written_at": NOW - age, "confirmed_at": NOW - age}))


def test_recovery_that_works_is_answered_with_its_window(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    found = assess(replace(system, pitr=Pitr(pitr_facts())), NOW, runs=FailedRuns())
    assert [answer.question for answer in found.answers] == list(Question)
    answer = found.answer(Question.PITR)
    assert answer is not None
    assert (answer.level, answer.trouble) == (OK, None)
    assert answer.what.startswith(
        "any instant from 2026-06-14 12:00:00 UTC to 2026-06-15 12:00:00 UTC can be recovered"
    )
    assert answer.what.endswith("what would be lost with the server now: the last 9.0 s")
    assert (found.level, found.kinds) == (OK, "")
    assert found.pitr is not None
    assert found.pitr.text == answer.what


def test_recovery_that_is_off_is_not_asked_about(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    found = assess(system, NOW)
    assert (found.answer(Question.PITR), found.pitr, found.level) == (None, None, OK)


def test_a_stopped_receiver_is_critical_and_told_apart(system: System) -> None:
    """It has an alert of its own, and does not hide a failed run of the daily backup."""
    verified_backup(system.catalog, NOW - 2 * HOUR)
    down = replace(system, pitr=Pitr(stopped(HOUR)))
    found = assess(down, NOW, runs=FailedRuns(backup=FAILED, ended_early=FAILED))
    answer = found.answer(Question.PITR)
    assert answer is not None
    assert (answer.level, answer.what) == (CRITICAL, "the WAL receiver does not report")
    assert answer.fix.startswith("start its service")
    assert isinstance(answer.trouble, ReceiverStoppedError)
    assert (found.level, found.kinds) == (CRITICAL, "pitr receiving+run")
    assert [each.question for each in found.told] == [Question.RUNS, Question.PITR]


def test_an_old_base_backup_is_a_warning(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    catalog = pitr_facts().catalog
    assert catalog is not None
    older = replace(catalog, bases=(replace(catalog.bases[0], started_at=NOW - 9 * DAY),))
    found = assess(replace(system, pitr=Pitr(pitr_facts(catalog=older))), NOW)
    assert (found.level, found.kinds) == (WARNING, "pitr bases")


def test_several_troubles_of_recovery_are_one_answer(system: System) -> None:
    judged_now = Pitr(replace(stopped(HOUR), catalog=None)).standing(NOW)
    answer = about_pitr(judged_now)
    first, second = judged_now.troubles
    assert (answer.what, answer.why) == (f"{first.account}; {second.account}", "")
    assert answer.fix == f"{first.fix}; {second.fix}"
    assert answer.trouble is first


def test_recovery_on_a_volume_that_cannot_be_read_is_unknown(system: System) -> None:
    verified_backup(system.catalog, NOW - HOUR)
    error = VolumeError("a history file is damaged", why="it was cut off", fix="put it back")
    found = assess(replace(system, pitr=Pitr(error=error)), NOW)
    assert answers(found)[Question.PITR] == (UNKNOWN, "not known: the backup volume was not read")
    assert answers(found)[Question.VOLUME] == (UNKNOWN, "a history file is damaged")
    assert answers(found)[Question.FRESH][0] is OK

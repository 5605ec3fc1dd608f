"""Title and body of an alert and of the all-clear, for each kind of trouble. No server, no Dagster."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import (
    AuthenticationError,
    BackupError,
    ClockError,
    DiskFullError,
    DrillError,
    DrillOverdueError,
    JournalError,
    NotFreshError,
    StalledVolumeError,
    VolumeError,
)
from ovia_backup_dagster.core.pitr_errors import (
    BaseBackupError,
    BaseBackupOverdueError,
    ReceiverStoppedError,
    RecoveryPointError,
    ServerReplacedError,
    SlotLostError,
    WalGapError,
)
from ovia_backup_dagster.health.alert_message import Sender, alert, all_clear
from ovia_backup_dagster.health.condition import Answer, Condition, ConditionLevel, Question
from ovia_backup_dagster.health.failed_runs import FailedRun
from ovia_backup_dagster.health.freshness import Freshness, FreshnessLevel, judge_freshness
from ovia_backup_dagster.pitr.standing import PitrStanding
from ovia_backup_dagster.pitr.standing_values import PitrFacts
from ovia_backup_dagster_tests.support.factories import HOUR, NOW, judged, make_catalog, publish, verified_backup

SENDER = Sender("ovia", "ovia", "db.example", 5432, Path("/backups"))
MAX_AGE = 26 * HOUR


def wrong(question: Question, error: BackupError) -> Answer:
    return Answer(question, ConditionLevel.CRITICAL, error.what, error.reason, error.fix, error)


def condition(
    *answers: Answer,
    found: Freshness | None = None,
    verified: Backup | None = None,
    failed: FailedRun | None = None,
    pitr: PitrStanding | None = None,
) -> Condition:
    return Condition(answers, found, None, None, (), verified, None, (), failed, pitr)


def headline(answer: Answer) -> str:
    return alert(SENDER, condition(answer))[0]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question.VOLUME, "the backup volume cannot be read"),
        (Question.UNDAMAGED, "the newest backup is bad"),
        (Question.VERIFIED, "backups are made, but none is verified"),
        (Question.PROVEN, "the restore drill failed"),
        (Question.RESTORES, "a restore is unfinished"),
        (Question.REPLACED, "kept_databases_job failed"),
        (Question.RUNS, "the daily backup failed"),
        (Question.SETTINGS, "the backup settings are not usable"),
    ],
)
def test_the_title_names_what_is_wrong(question: Question, said: str) -> None:
    assert headline(wrong(question, VolumeError("it", why="so", fix="do"))) == f"[ovia] {said}"


@pytest.mark.parametrize(
    ("question", "error", "said"),
    [
        (Question.RESTORES, JournalError, "cannot tell whether a restore is unfinished"),
        (Question.VOLUME, StalledVolumeError, "the backup volume does not answer"),
        (Question.PROVEN, DrillOverdueError, "no restore drill has passed for a long time"),
        (Question.PITR, ReceiverStoppedError, "the WAL receiver has stopped"),
        (Question.PITR, RecoveryPointError, "recent changes are not safe"),
        (Question.PITR, ServerReplacedError, "the server was replaced, and has no base backup"),
        (Question.PITR, SlotLostError, "the server loses WAL that was not received"),
        (Question.PITR, WalGapError, "WAL is missing"),
        (Question.PITR, BaseBackupOverdueError, "a base backup is missing, old or not proven"),
        (Question.PITR, BaseBackupError, "a base backup is bad"),
        (Question.PITR, DrillError, "the drill of point-in-time recovery failed"),
        (Question.PITR, DiskFullError, "the backup volume is full, or will be"),
        (Question.PITR, AuthenticationError, "WAL is not received"),
    ],
)
def test_some_causes_have_a_title_of_their_own(question: Question, error: type[BackupError], said: str) -> None:
    assert headline(wrong(question, error("it", why="so", fix="do"))) == f"[ovia] {said}"


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (FreshnessLevel.STALE, "the newest backup is too old"),
        (FreshnessLevel.MISSING, "there is no backup"),
        (FreshnessLevel.FUTURE, "the newest backup is dated in the future"),
    ],
)
def test_the_title_says_why_backups_are_not_fresh(level: FreshnessLevel, said: str) -> None:
    error = (ClockError if level is FreshnessLevel.FUTURE else NotFreshError)("it", why="so", fix="do")
    found = Freshness(level, None, None, MAX_AGE, False, False)
    assert alert(SENDER, condition(wrong(Question.FRESH, error), found=found))[0] == f"[ovia] {said}"


def test_an_alert_has_cause_evidence_and_next_step(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    backup = verified_backup(catalog, NOW - 50 * HOUR)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert found.trouble is not None
    _, body = alert(SENDER, condition(wrong(Question.FRESH, found.trouble), found=found, verified=backup))
    assert body.splitlines() == [
        f"What: the newest backup, {backup}, is 2 d 2 h old, 1 d too old (verified).",
        "Where: ovia at db.example:5432; backups in /backups.",
        f"Likely cause: {found.trouble.why}",
        f"Last verified backup: {backup}.",
        f"Next: {found.trouble.fix}",
    ]


def test_a_failed_run_is_linked_and_replaces_the_guess(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert found.trouble is not None
    failed = FailedRun("daily_backup_job", "run-1", NOW - HOUR, "the disk is full")
    state = condition(wrong(Question.FRESH, found.trouble), found=found, failed=failed)
    linked = Sender("ovia", "ovia", "db.example", 5432, Path("/backups"), "https://dagster.example")
    lines = alert(linked, state)[1].splitlines()
    assert lines[2:5] == [
        "Last verified backup: none.",
        "Last failed run: run-1 at 2026-06-15 11:00 UTC. https://dagster.example/runs/run-1",
        "Why it failed: the disk is full",
    ]
    assert "Last failed run: run-1 at 2026-06-15 11:00 UTC." in alert(SENDER, state)[1].splitlines()
    assert "Likely cause" not in alert(SENDER, state)[1]


def test_bad_backups_are_named_with_their_reasons(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    bad = judged(catalog, publish(catalog, NOW - HOUR), good=False)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    assert found.trouble is not None
    lines = alert(SENDER, condition(wrong(Question.FRESH, found.trouble), found=found))[1].splitlines()
    assert f"Why newer ones are bad: {bad}: it does not decode." in lines
    assert not any(line.startswith("Likely cause") for line in lines)


@pytest.mark.parametrize(
    ("since", "said"),
    [
        ("2026-06-15T08:30:00+02:00", ["The trouble began 2026-06-15 06:30 UTC."]),
        ("yesterday", ["The trouble began yesterday."]),
        ("", []),
    ],
)
def test_the_all_clear_says_since_when(tmp_path: Path, since: str, said: list[str]) -> None:
    catalog = make_catalog(tmp_path)
    backup = verified_backup(catalog, NOW - HOUR)
    found = judge_freshness(catalog.backups(), MAX_AGE, NOW)
    title, body = all_clear(SENDER, condition(found=found), NOW + timedelta(minutes=1), since=since)
    assert title == "[ovia] all is well with the backups again"
    assert body.splitlines() == [f"The newest backup, {backup}, is 1 h old (verified).", *said]


def test_an_alert_about_recovery_says_why() -> None:
    """The cause is known, and no guess: how old the report is, and what is not safe."""
    error = ReceiverStoppedError("the WAL receiver does not report", why="its last report is 9 min old", fix="start it")
    _, body = alert(SENDER, condition(wrong(Question.PITR, error)))
    assert body.splitlines()[0] == "What: the WAL receiver does not report: its last report is 9 min old."
    assert body.splitlines()[-1] == "Next: start it"


def test_an_all_clear_says_what_can_be_recovered() -> None:
    standing = PitrStanding("any instant can be recovered", (), PitrFacts(None, 0), 1.0, None, None, None, None)
    _, body = all_clear(SENDER, condition(pitr=standing), NOW)
    assert body == "Any instant can be recovered."

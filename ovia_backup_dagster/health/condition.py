"""What is asked of the backups as a whole, and the answer to each question: pure, and without Dagster.

How old a backup may be, when a drill is due, what an unfinished restore is: that is decided where it belongs, in
``freshness``, ``drill`` and ``restoration``. Here every trouble that they name fails one question, so that what people
are told and what is shown red are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ovia_backup_dagster.core.errors import (
    BackupError,
    DrillError,
    JournalError,
    KeptDatabasesError,
    RestoreUnfinishedError,
    RunFailedError,
    SettingsError,
    VolumeError,
)
from ovia_backup_dagster.drill.folder import DrillStanding
from ovia_backup_dagster.health.freshness import Freshness, Level
from ovia_backup_dagster.restoration.folder import RestoreStanding


class Question(StrEnum):
    """What is asked. The value is the name of the asset check, too."""

    FRESH = "backups_fresh"
    VERIFIED = "backups_verified"
    PROVEN = "backups_proven"
    RESTORES = "restores_finished"
    RUNS = "runs_succeeded"
    SETTINGS = "settings_usable"

    @property
    def description(self) -> str:
        """What a person needs to know about it, in a sentence."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Question.FRESH: "The newest dump that is not bad is younger than BACKUP_MAX_AGE_HOURS.",
    Question.VERIFIED: "Dumps are read back to the last byte, and found good. The newest may still wait for it.",
    Question.PROVEN: "A restore drill has passed within DRILL_MAX_AGE_DAYS, and the last one did not fail.",
    Question.RESTORES: "No restore, from the UI or the command line, was left unfinished.",
    Question.RUNS: "The last runs of the daily backup and of kept_databases_job did not fail; or a newer backup is "
    "proven.",
    Question.SETTINGS: "The settings can be used.",
}


class Mark(StrEnum):
    """What the answer is."""

    WELL = "well"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question with its answer.

    Attributes:
        question: what was asked.
        mark: the answer.
        text: the same in a sentence for a person.
        fix: what to do, where something is wrong.
    """

    question: Question
    mark: Mark
    text: str
    fix: str = ""


def answers(
    troubles: Sequence[BackupError],
    found: Freshness | None,
    drills: DrillStanding | None,
    restores: RestoreStanding | None,
    failed_run: str,
    now: datetime,
) -> Iterator[Answer]:
    """Answer every question, in their order.

    Args:
        troubles: what people are told of; each makes one answer wrong.
        found: freshness; ``None`` when the volume could not be read.
        drills: how the drills stand; likewise.
        restores: how the restores stand; likewise.
        failed_run: the last run that failed, in a sentence; told of only where something is wrong with the backups.
        now: the present (UTC).
    """
    wrong: dict[Question, list[BackupError]] = {}
    for trouble in troubles:
        wrong.setdefault(_about(trouble, found, drills, restores), []).append(trouble)
    well = _well(found, drills, restores, now)
    for question in Question:
        if question in wrong:
            text = "; ".join(error.account for error in wrong[question])
            yield Answer(question, Mark.WRONG, text, "; ".join(filter(None, (e.fix for e in wrong[question]))))
        elif question is Question.RUNS and failed_run and troubles:
            yield Answer(question, Mark.WRONG, failed_run)
        elif text := well[question]:
            yield Answer(question, Mark.WELL, text)
        else:
            read = question is Question.VERIFIED and found is not None
            why = "there is no backup to verify" if read else "not known: the backup volume was not read"
            yield Answer(question, Mark.UNKNOWN, why)


def _about(
    trouble: BackupError, found: Freshness | None, drills: DrillStanding | None, restores: RestoreStanding | None
) -> Question:
    if isinstance(trouble, DrillError):
        return Question.PROVEN
    if isinstance(trouble, RestoreUnfinishedError | JournalError):
        return Question.RESTORES
    if isinstance(trouble, RunFailedError | KeptDatabasesError):
        return Question.RUNS
    if isinstance(trouble, SettingsError):
        return Question.SETTINGS
    if isinstance(trouble, VolumeError) and found is not None:
        # What could not be read is what there is no answer of.
        if drills is None:
            return Question.PROVEN
        if restores is None:
            return Question.RESTORES
    return Question.VERIFIED if found is not None and found.level is Level.UNPROVEN else Question.FRESH


def _well(
    found: Freshness | None, drills: DrillStanding | None, restores: RestoreStanding | None, now: datetime
) -> dict[Question, str]:
    """What is said where nothing is wrong; empty where that is not known."""
    proven = "the newest backup is proven" if found and found.proven else "the newest backup is not verified yet"
    restoring = f"one is under way: {restores.at_work}" if restores and restores.at_work else ""
    return {
        Question.FRESH: found.text if found else "",
        Question.VERIFIED: proven if found and found.newest else "",
        Question.PROVEN: drills.text(now) if drills else "",
        Question.RESTORES: (restoring or "none is unfinished") if restores else "",
        Question.RUNS: "no run has failed of which people would be told",
        Question.SETTINGS: "all of them can be used",
    }

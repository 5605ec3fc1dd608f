"""The condition of the backups as a whole: a list of questions, and the answer to each.

``status``, the sensor, the alert and the doctor all use it; none of them judges by itself. It reads the volume through
the catalog, and uses no server, clock or Dagster; Dagster's knowledge is passed in as ``FailedRuns``.
``freshness`` decides how old a backup may be, ``drill.folder`` when a drill is due, ``restoration.folder`` which
restore is unfinished. The words of the alert belong to ``alert_message``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from ovia_backup_dagster.core import deadline
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import (
    BackupError,
    BadBackupError,
    DrillOverdueError,
    JournalError,
    NotFreshError,
    RunFailedError,
    SettingsError,
    VolumeError,
)
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.drill.folder import DrillFolder, DrillStanding
from ovia_backup_dagster.health.failed_runs import FailedRun, FailedRuns
from ovia_backup_dagster.health.freshness import AGAIN, Freshness, FreshnessLevel, judge_freshness
from ovia_backup_dagster.offsite.remote_standing import RemoteStanding
from ovia_backup_dagster.pitr.standing import PitrStanding
from ovia_backup_dagster.restoration.folder import RestoreFolder, RestoreStanding


class ConditionLevel(StrEnum):
    """How bad an answer is. Ordered as written: the worst is last. The values are the monitoring plugins' words."""

    OK = "ok"
    WARNING = "warning"
    UNKNOWN = "unknown"
    CRITICAL = "critical"

    @property
    def exit_code(self) -> int:
        """The exit code of a monitoring plugin."""
        return _EXIT_CODES[self]


_EXIT_CODES = {
    ConditionLevel.OK: 0,
    ConditionLevel.WARNING: 1,
    ConditionLevel.CRITICAL: 2,
    ConditionLevel.UNKNOWN: 3,
}


class Question(StrEnum):
    """A question about the backups. The value is also the name of the asset check."""

    VOLUME = "volume_readable"
    FRESH = "backups_fresh"
    UNDAMAGED = "backups_undamaged"
    VERIFIED = "backups_verified"
    PROVEN = "backups_proven"
    RESTORES = "restores_finished"
    REPLACED = "replaced_databases_dropped"
    COPIES = "copies_elsewhere"
    PITR = "any_instant_recoverable"
    RUNS = "runs_succeeded"
    SETTINGS = "settings_usable"

    @property
    def description(self) -> str:
        """An explanation for people, in a sentence."""
        return _DESCRIPTIONS[self]

    @property
    def subject(self) -> str:
        """Its subject, in a word."""
        return _SUBJECTS[self]


_DESCRIPTIONS = {
    Question.VOLUME: "The backup volume can be read, and answers in time.",
    Question.FRESH: "The newest dump that is not bad is younger than BACKUP_MAX_AGE_HOURS.",
    Question.UNDAMAGED: "No dump that is newer than that one was found bad.",
    Question.VERIFIED: "Dumps are read back to the last byte and found good. The newest may not be verified yet.",
    Question.PROVEN: "A restore drill has passed within DRILL_MAX_AGE_DAYS, and the last one did not fail.",
    Question.RESTORES: "No restore, from the UI or the command line, was left unfinished.",
    Question.REPLACED: "The last run of kept_databases_job, which drops what restores have replaced, did not fail.",
    Question.COPIES: "Each remote has a fresh copy, and nothing there is damaged or gone. Good if no remote is set.",
    Question.PITR: "WAL arrives in time and without a hole; base backups are made in time, verified and drilled.",
    Question.RUNS: "The last run of the daily backup did not fail; or a newer backup is verified.",
    Question.SETTINGS: "The settings can be used.",
}
_SUBJECTS = {
    Question.VOLUME: "volume",
    Question.FRESH: "backup",
    Question.UNDAMAGED: "bad",
    Question.VERIFIED: "verification",
    Question.PROVEN: "drill",
    Question.RESTORES: "restore",
    Question.REPLACED: "replaced databases",
    Question.COPIES: "copies",
    Question.PITR: "recovery",
    Question.RUNS: "run",
    Question.SETTINGS: "settings",
}
#: Troubles of one kind share an alert. A new kind is reported at once, whatever was reported before.
_KINDS = {
    Question.PROVEN: "drill",
    Question.COPIES: "copies",
    Question.PITR: "pitr",
    Question.RESTORES: "restore",
    Question.REPLACED: "kept",
    Question.RUNS: "run",
}
#: The order in which troubles are reported. A failed run comes after an unfinished restore, which may be its cause.
_URGENCY = (
    *(Question.RESTORES, Question.RUNS, Question.VOLUME, Question.FRESH, Question.VERIFIED, Question.UNDAMAGED),
    *(Question.PITR, Question.PROVEN, Question.COPIES, Question.SETTINGS, Question.REPLACED),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: the question.
        level: how bad it is.
        what: the answer in a sentence for a person.
        why: the likely cause, if something is wrong.
        fix: the next command or action, if something is wrong.
        trouble: the error to report; ``None`` if all is well, or if another answer's trouble includes it.
    """

    question: Question
    level: ConditionLevel
    what: str
    why: str = ""
    fix: str = ""
    trouble: BackupError | None = None

    @property
    def text(self) -> str:
        """What and why, without the next step."""
        return f"{self.what}: {self.why}" if self.why else self.what


class WatchedPitr(Protocol):
    """The part of ``system.Pitr`` that a condition is assessed from."""

    @property
    def enabled(self) -> bool: ...

    def standing(self, now: datetime) -> PitrStanding: ...


class Watched(Protocol):
    """The part of ``system.BackupSystem`` that a condition is assessed from."""

    @property
    def catalog(self) -> Catalog: ...

    @property
    def drills(self) -> DrillFolder: ...

    @property
    def restores(self) -> RestoreFolder: ...

    @property
    def max_age(self) -> timedelta: ...

    @property
    def drill_max_age(self) -> timedelta: ...

    @property
    def pitr(self) -> WatchedPitr: ...

    def remote_standings(self, now: datetime) -> tuple[RemoteStanding, ...]: ...


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition of the backups.

    Attributes:
        answers: one for each question, in the questions' order; without those that only Dagster can answer, if its
            runs were not passed in, and without the one about point-in-time recovery, if that is off.
        found: freshness; ``None`` if the volume could not be read in time.
        drills: the standing of the restore drills; likewise.
        restores: the standing of the restores; likewise.
        remotes: the standing of each remote, as far as this host knows it.
        newest_verified: the newest verified backup.
        newest_proven: the newest proven backup.
        at_work: the processes that change the volume or restore now, in words.
        failed: the last run of the daily backup, if it failed and that matters.
        pitr: the standing of point-in-time recovery; ``None`` if it is off, or could not be read.
    """

    answers: tuple[Answer, ...]
    found: Freshness | None
    drills: DrillStanding | None
    restores: RestoreStanding | None
    remotes: tuple[RemoteStanding, ...]
    newest_verified: Backup | None
    newest_proven: Backup | None
    at_work: tuple[str, ...]
    failed: FailedRun | None
    pitr: PitrStanding | None = None

    @property
    def level(self) -> ConditionLevel:
        """The worst level of all answers."""
        return max((answer.level for answer in self.answers), key=list(ConditionLevel).index)

    @property
    def wrong(self) -> tuple[Answer, ...]:
        """The answers that report something wrong, the most urgent first, without those unknown because of another."""
        wrong = [a for a in self.answers if a.trouble or a.level in (ConditionLevel.WARNING, ConditionLevel.CRITICAL)]
        return tuple(sorted(wrong, key=lambda answer: _URGENCY.index(answer.question)))

    @property
    def told(self) -> tuple[Answer, ...]:
        """The answers to report, the most urgent first; empty exactly if all is well."""
        return tuple(answer for answer in self.wrong if answer.trouble)

    @property
    def trouble(self) -> str:
        """All troubles in a sentence; empty if all is well."""
        # The "what" of these errors is complete; their "why" is a guess. Why a run failed has its own line.
        enough = (NotFreshError, DrillOverdueError, RunFailedError)
        short = [isinstance(a.trouble, enough) and a.question is not Question.PITR for a in self.told]
        return shortened("; ".join(a.what if less else a.text for a, less in zip(self.told, short, strict=True)))

    @property
    def kinds(self) -> str:
        """The kinds of the troubles, in a word: a new kind is reported at once, whatever was reported before."""
        kinds = {_KINDS.get(answer.question, "backup") for answer in self.told}
        # Each remote, and each part of point-in-time recovery, has its own alert.
        apart = {f"copies on {remote.name}" for remote in self.remotes if remote.trouble}
        apart |= {f"pitr {part}" for part in (self.pitr.parts if self.pitr else ())}
        return "+".join(sorted(kinds - {"copies", "pitr"} | apart))

    def answer(self, question: Question) -> Answer | None:
        """The answer to one question; ``None`` if it was not asked."""
        return next((answer for answer in self.answers if answer.question is question), None)


def assess(
    system: Watched, now: datetime, *, settings: SettingsError | None = None, runs: FailedRuns | None = None
) -> Condition:
    """Read the volume, and answer every question. Ends within a time limit even if the volume hangs. Changes nothing.

    Args:
        system: the system whose backups are assessed.
        now: the present (UTC).
        settings: why the settings cannot be used, if they cannot; the volume is assessed anyway.
        runs: the failed runs that Dagster knows of; ``None`` leaves out the questions about them.
    """
    look: _Look | None
    try:
        look = deadline.within_deadline(deadline.LOOK_SECONDS, system.catalog.root, lambda: _look(system, now))
    except VolumeError as error:
        look = _Look(errors=(error,))
    except SettingsError as error:  # a key that the settings name cannot be used
        look, settings = None, settings or error
    answers = list(_about_the_volume(look, now)) if look else list(map(_unread, _OF_THE_VOLUME))
    look = look or _Look()
    if system.pitr.enabled:
        answers.append(about_pitr(look.pitr) if look.pitr else _unread(Question.PITR))
    answers.append(_about_settings(settings))
    failed = None
    if runs is not None:
        failed = _explaining(runs, look, answers)
        answers += [_about_replaced(runs.replaced), _about_runs(failed, answers)]
    answers.sort(key=lambda answer: list(Question).index(answer.question))
    return Condition(
        tuple(answers),
        look.found,
        look.drills,
        look.restores,
        look.remotes or (),
        look.newest_verified,
        look.newest_proven,
        look.at_work,
        failed,
        look.pitr,
    )


def about_backups(found: Freshness) -> tuple[Answer, Answer, Answer]:
    """Whether the newest backup is fresh, whether newer ones are bad, and whether backups are verified."""
    trouble = found.trouble
    unverified = found.level is FreshnessLevel.UNVERIFIED
    fresh = Answer(Question.FRESH, ConditionLevel.OK, found.text)
    if trouble is not None and not unverified:
        fresh = _wrong(Question.FRESH, ConditionLevel.CRITICAL, trouble)
    return fresh, _about_rejected(found, told=trouble is not None), _about_verification(found)


def _about_verification(found: Freshness) -> Answer:
    if found.newest is None:
        return Answer(Question.VERIFIED, ConditionLevel.UNKNOWN, "there is no backup to verify")
    if found.level is FreshnessLevel.UNVERIFIED and found.trouble is not None:
        return _wrong(Question.VERIFIED, ConditionLevel.CRITICAL, found.trouble)
    word = "proven" if found.proven else "verified" if found.verified else "not verified yet"
    return Answer(Question.VERIFIED, ConditionLevel.OK, f"the newest backup is {word}")


def _about_rejected(found: Freshness, *, told: bool) -> Answer:
    """``told``: whether the trouble about freshness already reports the bad backups."""
    if not found.rejected:
        return Answer(Question.UNDAMAGED, ConditionLevel.OK, "no newer backup is bad")
    newest = found.rejected[0]
    problem = newest.problem or BadBackupError(f"{newest} is bad", fix=AGAIN)
    if found.rejected[1:]:
        what = f"{len(found.rejected)} backups are bad, the newest of them {newest}"
        problem = BadBackupError(what, why=problem.why, fix=problem.fix)
    answer = _wrong(Question.UNDAMAGED, ConditionLevel.WARNING, problem)
    return replace(answer, trouble=None) if told else answer


def about_drills(drills: DrillStanding, now: datetime) -> Answer:
    """Whether backups are proven: a drill passed recently, or is not due yet, and the last one did not fail."""
    if drills.trouble is not None:
        return _wrong(Question.PROVEN, ConditionLevel.WARNING, drills.trouble)
    return Answer(Question.PROVEN, ConditionLevel.OK, drills.text(now))


def about_copies(remotes: Sequence[RemoteStanding]) -> Answer:
    """Whether each remote has a fresh copy and no damaged one, as far as this host knows."""
    troubles = [remote.trouble for remote in remotes if remote.trouble is not None]
    if not troubles:
        text = "; ".join(remote.text for remote in remotes) or "OFFSITE_REMOTES names no remote"
        return Answer(Question.COPIES, ConditionLevel.OK, text)
    return _all_wrong(Question.COPIES, ConditionLevel.WARNING, troubles)


def about_pitr(pitr: PitrStanding) -> Answer:
    """Whether WAL arrives, and whether base backups and WAL recover any instant of the window."""
    if not pitr.troubles:
        return Answer(Question.PITR, ConditionLevel.OK, pitr.text)
    level = ConditionLevel.CRITICAL if pitr.urgent else ConditionLevel.WARNING
    return _all_wrong(Question.PITR, level, pitr.troubles)


def about_restores(restores: RestoreStanding) -> Answer:
    """Whether a restore was left unfinished: then the wrong database or the wrong services may be live."""
    if restores.trouble is not None:
        return _wrong(Question.RESTORES, ConditionLevel.CRITICAL, restores.trouble)
    text = f"one is under way: {restores.at_work}" if restores.at_work else "none is unfinished"
    return Answer(Question.RESTORES, ConditionLevel.OK, text)


def about_volume(errors: Iterable[BackupError]) -> Answer:
    """Whether the volume could be read; if not, the errors."""
    said = list({str(error): error for error in errors}.values())
    if not said:
        return Answer(Question.VOLUME, ConditionLevel.OK, "it can be read")
    answer = _wrong(Question.VOLUME, ConditionLevel.UNKNOWN, said[0])
    return replace(answer, what="; ".join(error.account for error in said), why="") if said[1:] else answer


def about_journal(error: JournalError) -> Answer:
    """The answer if a restore's journal cannot be read: it is unknown whether the restore is unfinished."""
    return _wrong(Question.RESTORES, ConditionLevel.UNKNOWN, error)


def _about_settings(error: SettingsError | None) -> Answer:
    if error is not None:
        return _wrong(Question.SETTINGS, ConditionLevel.UNKNOWN, error)
    return Answer(Question.SETTINGS, ConditionLevel.OK, "all settings can be used")


def _about_replaced(failed: FailedRun | None) -> Answer:
    if failed is not None:
        return _wrong(Question.REPLACED, ConditionLevel.WARNING, failed.nothing_dropped)
    return Answer(Question.REPLACED, ConditionLevel.OK, "the last run that drops replaced databases did not fail")


def _about_runs(failed: FailedRun | None, others: Sequence[Answer]) -> Answer:
    if failed is None:
        return Answer(Question.RUNS, ConditionLevel.OK, "no failed run needs attention")
    if _backups_are_troubled(others):
        # The alert about the backups names the failed run, so it has no alert of its own.
        return Answer(Question.RUNS, ConditionLevel.WARNING, failed.text)
    return _wrong(Question.RUNS, ConditionLevel.WARNING, failed.no_backup)


def _explaining(runs: FailedRuns, look: _Look, others: Sequence[Answer]) -> FailedRun | None:
    """The failed run that explains a trouble of the backups, or that is a trouble itself."""
    if _backups_are_troubled(others):
        return runs.ended_early
    failed, verified = runs.backup, look.newest_verified
    return None if failed and verified and verified.started_at > failed.at else failed


def _backups_are_troubled(answers: Sequence[Answer]) -> bool:
    apart = (Question.PROVEN, Question.COPIES, Question.PITR, Question.RESTORES, Question.REPLACED)
    return any(answer.trouble and answer.question not in apart for answer in answers)


def _wrong(question: Question, level: ConditionLevel, error: BackupError) -> Answer:
    return Answer(question, level, error.what, error.reason, error.fix, error)


def _all_wrong(question: Question, level: ConditionLevel, errors: Sequence[BackupError]) -> Answer:
    """Several errors as one answer: the first is the one to report, and the words are those of all."""
    answer = _wrong(question, level, errors[0])
    if not errors[1:]:
        return answer
    fix = "; ".join(dict.fromkeys(error.fix for error in errors))
    return replace(answer, what="; ".join(error.account for error in errors), why="", fix=fix)


_OF_THE_VOLUME = (
    *(Question.VOLUME, Question.FRESH, Question.UNDAMAGED, Question.VERIFIED),
    *(Question.PROVEN, Question.RESTORES, Question.COPIES),
)


@dataclass(frozen=True, slots=True)
class _Look:
    """The facts read from the volume; the parts are those of :class:`Condition`.

    Attributes:
        errors: why parts could not be read.
    """

    found: Freshness | None = None
    drills: DrillStanding | None = None
    restores: RestoreStanding | None = None
    remotes: tuple[RemoteStanding, ...] | None = None
    pitr: PitrStanding | None = None
    newest_verified: Backup | None = None
    newest_proven: Backup | None = None
    at_work: tuple[str, ...] = ()
    errors: tuple[VolumeError, ...] = ()


def _look(system: Watched, now: datetime) -> _Look:
    catalog, look = system.catalog, _Look()
    try:
        found = judge_freshness(catalog.newest_first(), system.max_age, now)
        look = replace(look, found=found)
        look = replace(look, drills=system.drills.standing(system.drill_max_age, now))
        verified = found.newest if found.verified else catalog.newest(now, State.VERIFIED, State.PROVEN)
        proven = next((b for b in catalog.newest_first() if b.drilled and b.state(now).is_verified), None)
        look = replace(look, newest_verified=verified, newest_proven=proven)
        look = replace(look, remotes=system.remote_standings(now))
        look = replace(look, pitr=system.pitr.standing(now) if system.pitr.enabled else None)
    except VolumeError as error:
        look = replace(look, errors=(error,))
    # An unfinished restore may be why the application is down, so it is reported whatever else is wrong.
    try:
        restores = system.restores.standing()
        at_work = filter(None, (lock_holder(catalog.root), restores.at_work))
        return replace(look, restores=restores, at_work=tuple(at_work))
    except VolumeError as error:
        return replace(look, errors=(*look.errors, error))


def _about_the_volume(look: _Look, now: datetime) -> Iterator[Answer]:
    journals = [error for error in look.errors if isinstance(error, JournalError)]
    yield about_volume(error for error in look.errors if not isinstance(error, JournalError))
    if look.found:
        yield from about_backups(look.found)
    else:
        yield from map(_unread, (Question.FRESH, Question.UNDAMAGED, Question.VERIFIED))
    yield about_drills(look.drills, now) if look.drills else _unread(Question.PROVEN)
    yield about_copies(look.remotes) if look.remotes is not None else _unread(Question.COPIES)
    if look.restores:
        yield about_restores(look.restores)
    else:
        yield about_journal(journals[0]) if journals else _unread(Question.RESTORES)


def _unread(question: Question) -> Answer:
    return Answer(question, ConditionLevel.UNKNOWN, "not known: the backup volume was not read")

"""Takes one step of a restore, and records in the journal that it began, ended or failed.

``execution`` decides which step comes next, and what to do when one fails.
"""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.steps import registry
from ovia_backup_dagster.restoration.steps.step_context import Work


def take_step(work: Work, word: str) -> None:
    """Take the step with this word.

    Raises:
        BackupError: the step failed, or was taken in part; or the journal cannot be written.
    """
    journal = work.journal
    try:
        journal.write(JournalMark.BEGUN, word, note(work, word))
        data = registry.kind_of(word)(work).carry_out()
    except BackupError as error:
        journal.write(JournalMark.FAILED, word, StepData(error=error.account, fix=error.fix))
        raise
    journal.write(JournalMark.DONE, word, data)


def note(work: Work, word: str) -> StepData | None:
    """Data that a later process needs if this one is killed in the step; see :meth:`TakenStep.note`."""
    return registry.kind_of(word)(work).note()

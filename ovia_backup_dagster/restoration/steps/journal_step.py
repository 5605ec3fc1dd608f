"""The interface of a restore's steps. The steps themselves have modules of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.steps.step_context import Work


class TakenStep(ABC):
    """One step of one restore.

    A step may be taken twice: its process may have been killed before it wrote the result to the journal. So each step
    checks the current state before it changes anything.

    Attributes:
        data: the model of the step's journal data, with the step's word in the journal.
        work: the dependencies that all steps share.
    """

    data: ClassVar[type[StepData]]

    def __init__(self, work: Work) -> None:
        self.work = work

    @classmethod
    def needed(cls, order: Order) -> bool:
        """Whether this order takes the step, if its mode has the step."""
        del order
        return True

    @classmethod
    @abstractmethod
    def describe(cls, order: Order) -> str:
        """What the step will do, for people."""

    def note(self) -> StepData | None:
        """Data that a later process needs if this one is killed in the step; written before the step is taken.

        Raises:
            BackupError: the data cannot be read, so the step cannot be taken.
        """
        return None

    @abstractmethod
    def take(self) -> StepData | None:
        """Take the step; returns its data for the journal.

        Raises:
            BackupError: the step failed, or was taken in part.
        """

    def carry_out(self) -> StepData | None:
        """Take the step, or print what the operator must do instead; returns its data for the journal.

        Raises:
            BackupError: as :meth:`take`.
        """
        self.work.log(f"step: {self.data.step}")
        if self.work.by_hand and (text := self.by_hand()):
            self.work.log(text)
            return StepData(notes=(text,))
        return self.take()

    def by_hand(self) -> str:
        """Instructions if an operator handles the services; empty for a step that the program takes anyway."""
        return ""

    def put_back(self) -> list[BackupError]:
        """Undo what the step changed, if it was begun. Steps are put back from the last to the first.

        Returns:
            Problems that do not keep the restore from ending.

        Raises:
            BackupError: this failed; it can be tried again.
        """
        return []

    def clean_up(self) -> list[BackupError]:
        """Remove what the step left behind, after every step is put back: the services come up first.

        Returns, Raises: as :meth:`put_back`.
        """
        return []

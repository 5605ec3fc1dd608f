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

    It may be taken twice: the process that took it can have been killed before it could say so. So each looks at how
    things stand before it changes them.

    Attributes:
        data: what the journal carries of it, and the word by which the journal knows it.
        work: what it works with.
    """

    data: ClassVar[type[StepData]]

    def __init__(self, work: Work) -> None:
        self.work = work

    @classmethod
    def needed(cls, order: Order) -> bool:
        """Whether an order of a mode that has the step takes it."""
        del order
        return True

    @classmethod
    @abstractmethod
    def describe(cls, order: Order) -> str:
        """What it will do, for people."""

    def note(self) -> StepData | None:
        """What a later process needs to know if this one is killed in the step; written down before it is taken.

        Raises:
            BackupError: it cannot be found out, and so the step cannot be taken.
        """
        return None

    @abstractmethod
    def take(self) -> StepData | None:
        """Take it; returns what is to be noted of it.

        Raises:
            BackupError: it failed, or was taken in part.
        """

    def carry_out(self) -> StepData | None:
        """Take it, or tell a person to; returns what is to be noted of it.

        Raises:
            BackupError: as :meth:`take`.
        """
        self.work.log(f"step: {self.data.step}")
        if self.work.by_hand and (text := self.by_hand()):
            self.work.log(text)
            return StepData(notes=(text,))
        return self.take()

    def by_hand(self) -> str:
        """What a person does in its place, where a person sees to the services; empty where the program still does."""
        return ""

    def put_back(self) -> list[BackupError]:
        """Make what it changed as it was before, if it was begun; steps are put back from the last to the first.

        Returns:
            What is wrong, and no longer ours to wait for.

        Raises:
            BackupError: it could not be; it can be tried again.
        """
        return []

    def clean_up(self) -> list[BackupError]:
        """Remove what it left, once every step is put back: people wait for the services, and not for this.

        Returns, Raises: as :meth:`put_back`.
        """
        return []

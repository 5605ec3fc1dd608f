"""Runs the steps of a restore to the end, or puts them back; decides what follows a failed step.

However a restore ends, the live database is either the old one, complete, or the new one, verified against the backup.
If the process cannot ensure this, the journal enables the next process to. ``runner`` decides when a restore may begin,
resume or abort; ``steps`` defines how a step is taken.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from ovia_backup_dagster.core.errors import (
    BackupError,
    NoWayBackError,
    ServiceError,
    ServiceManagerRefusedError,
    ServiceManagerUnreachableError,
    VolumeError,
)
from ovia_backup_dagster.postgres.deferred_signals import signals_deferred
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.record import Record, record_of
from ovia_backup_dagster.restoration.request import command_to_give_up
from ovia_backup_dagster.restoration.restore_order import Mode, Step
from ovia_backup_dagster.restoration.restore_report import restore_page
from ovia_backup_dagster.restoration.step_data import StepData, StopData
from ovia_backup_dagster.restoration.steps import back
from ovia_backup_dagster.restoration.steps.forward import take_step
from ovia_backup_dagster.restoration.steps.progress import is_lost, is_named, is_torn
from ovia_backup_dagster.restoration.steps.restore_copy import drop_copy
from ovia_backup_dagster.restoration.steps.services import start_unnoted
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.swap import database_state


@dataclass(frozen=True, slots=True)
class StepByStep:
    """A running restore. The caller holds the folder's lock.

    Attributes:
        work: the dependencies of its steps.
        folder: receives its record.
    """

    work: Work
    folder: RestoreFolder

    def go_on(self) -> Record:
        """Take each remaining step; after a failure, put the restore back if possible.

        Raises:
            RestoreUnfinishedError: the restore can neither go on nor be put back now.
        """
        work, journal = self.work, self.work.journal
        try:
            for step in journal.order.steps:
                if not journal.done(step):
                    take_step(work, step)
        except BackupError as error:
            work.log(error.account)
            return self._after(error)
        except BaseException:
            # An operator cancelled, or this program has a defect: the process still runs, and cleans up.
            with signals_deferred():
                try:
                    self.put_back()
                except BackupError as left:
                    work.log(str(left))
            raise
        finally:
            work.let_dumps()
        return self._finished()

    def _after(self, error: BackupError) -> Record:
        """Respond to a failed step."""
        work, journal, order = self.work, self.work.journal, self.work.order
        try:
            live, lost = journal.live or is_named(work), is_lost(work)
        except BackupError as later:
            raise self._stuck(later) from None
        if not live or (order.auto_undo and order.mode is Mode.SWAP):
            if lost:
                raise self._stuck(error, f"; or give this backup up, to restore another: {command_to_give_up(order)}")
            return self.put_back(error)
        # The new database is live and equals the backup: it stays, and the services are scaled up again.
        try:
            if Step.START in order.steps and not journal.done(Step.START):
                if isinstance(error, ServiceError) and journal.entries[-1].step == Step.START:
                    raise error
                take_step(work, Step.START)
        except ServiceError:
            pass  # All were scaled. An unhealthy service does not keep the restore from ending; the record notes it.
        except VolumeError as later:
            start_unnoted(work)
            raise self._stuck(later) from None
        except BackupError as later:
            raise self._stuck(later) from None
        return self._finished()

    def _finished(self) -> Record:
        try:
            self.work.journal.write(JournalMark.FINISHED)
        except BackupError as error:
            raise self._stuck(error) from None
        return record_ended(self.folder, self.work.journal)

    def put_back(self, cause: BackupError | None = None) -> Record:
        """Put the whole restore back.

        Args:
            cause: the error that made it necessary, for the record; ``None`` if an operator asked for it.

        Raises:
            NoWayBackError: the old live database is gone.
            RestoreUnfinishedError: the restore cannot be put back now.
        """
        work, journal = self.work, self.work.journal
        try:
            back.require_way_back(work)
            work.log("putting everything back")
            with contextlib.suppress(VolumeError):
                # Most of putting back needs no journal: services must not stay down because the volume is full.
                journal.write(JournalMark.PUTTING_BACK)
            with signals_deferred():
                problems = back.put_back(work)
            for problem in problems:
                work.log(problem.account)
            causes = [*([cause] if cause else []), *problems]
            said = {"error": causes[0].account, "fix": causes[0].fix} if causes else {}
            notes = tuple(problem.account for problem in problems)
            journal.write(JournalMark.PUT_BACK, None, StepData(**said, notes=notes))
        except NoWayBackError:
            raise
        except BackupError as error:
            raise self._stuck(error) from None
        return record_ended(self.folder, self.work.journal)

    def give_up(self, *, elsewhere: bool) -> Record:
        """Give up a restore that can be neither finished nor put back, so that another backup can be restored.

        Args:
            elsewhere: the restore began on another server, which is gone.

        Raises:
            RestoreUnfinishedError: the restore cannot be given up now.
        """
        work, journal, order = self.work, self.work.journal, self.work.order
        replicas = journal.data(StopData).replicas or {}
        scale = "".join(f" --scale {shell_word(name)}={count}" for name, count in replicas.items())
        what = f"database {order.database} was dropped"
        error = f", and {order.database} was not restored from {order.backup or order.incoming}"
        fix = f"ovia-backup list; then: ovia-backup restore BACKUP --new-host{scale}"
        problems: list[BackupError] = []
        try:
            if elsewhere:
                what = f"the server at {order.place}, on which it began, is gone"
            elif is_torn(work):
                what = f"neither the old nor the new database of the {order.mode} is called {order.database}"
                error = ": they were renamed or dropped"
                problems = back.let_go(work)
                fix = "see what there is: psql -l; to restore: ovia-backup list; then: ovia-backup restore BACKUP"
                fix += "" if database_state(work.target, order.database).exists else " --new-host"
            else:
                drop_copy(work)
            for problem in problems:
                work.log(problem.account)
            notes = tuple(problem.account for problem in problems)
            journal.write(JournalMark.GIVEN_UP, None, StepData(error=f"{what}{error}", fix=fix, notes=notes))
        except BackupError as later:
            raise self._stuck(later, f"; or give it up: {command_to_give_up(order)}") from None
        return record_ended(self.folder, self.work.journal)

    def _stuck(self, error: BackupError, instead: str = "") -> BackupError:
        unfinished = self.work.journal.unfinished
        if isinstance(error, ServiceManagerUnreachableError | ServiceManagerRefusedError):
            instead += f"; where {self.work.manager.name} does not come back: the same with --without-services, and "
            instead += "services by hand"
        fix = "; then: ".join(filter(None, (error.fix, f"{unfinished.fix}{instead}")))
        return type(unfinished)(unfinished.what, why=error.account, fix=fix)


def record_ended(folder: RestoreFolder, journal: Journal) -> Record:
    """Write the record of an ended restore, and its page; if that fails, the returned record says so."""
    record = record_of(journal)
    try:
        folder.write(record, restore_page(record))
    except VolumeError as error:  # the journal holds the same facts
        return record.model_copy(update={"notes": (*record.notes, error.account)})
    return record

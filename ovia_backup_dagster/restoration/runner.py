"""Begins, resumes and aborts restores, and decides when each is allowed. The command line and Dagster call it.

``execution`` runs the steps; ``expiry`` handles the databases that restores replace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import BackupError, NoWayBackError, RestoreRefusedError
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.confirmation import Words, word_of
from ovia_backup_dagster.restoration.execution import StepByStep, record_ended
from ovia_backup_dagster.restoration.expiry import KeptDatabases
from ovia_backup_dagster.restoration.folder import RestoreFolder, backup_of
from ovia_backup_dagster.restoration.guards import is_elsewhere, refuse_full_volume, refuse_other_server, refuse_stale
from ovia_backup_dagster.restoration.journal import Journal
from ovia_backup_dagster.restoration.plan import RestorePlan
from ovia_backup_dagster.restoration.planner import Planner
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.restore_order import Order, Step
from ovia_backup_dagster.restoration.service_manager import ServiceManager, Services
from ovia_backup_dagster.restoration.steps.back import require_still_live
from ovia_backup_dagster.restoration.steps.progress import is_lost, is_torn
from ovia_backup_dagster.restoration.steps.registry import refuse_unknown
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.unfailing_log import never_failing


@dataclass(frozen=True, slots=True)
class Restorations:
    """The dependencies of restores.

    Attributes:
        driller: catalog, programs, and the drills so far.
        target: the live database, as the role that restores.
        services: the services to stop and start.
        manager: the service manager.
        by_hand: an operator handles the services of an unfinished restore.
    """

    driller: Driller
    target: Connection
    services: Services
    manager: ServiceManager
    by_hand: bool = False

    def without_services(self) -> Restorations:
        """A copy for when the service manager does not answer: an operator handles the services."""
        return replace(self, services=Services(), by_hand=True)

    @property
    def planner(self) -> Planner:
        return Planner(self.driller, self.target, self.services, self.manager)

    @property
    def _words(self) -> Words:
        return Words(self.driller.catalog)

    @property
    def kept_databases(self) -> KeptDatabases:
        """The databases that restores have replaced."""
        return KeptDatabases(self.target, self.folder)

    @property
    def folder(self) -> RestoreFolder:
        """The folder of journals and records."""
        return RestoreFolder(self.driller.catalog)

    def offer(self, plan: RestorePlan) -> str:
        """Store the plan, and return the word that lets a later process carry it out; empty if none is needed.

        Raises:
            VolumeError: the plan cannot be stored.
        """
        if not plan.destroys or plan.obstacles:
            return ""
        self.folder.prepare()
        return self._words.offer(plan.order, plan.backup, datetime.now(UTC))

    def run(self, plan: RestorePlan, confirmation: str, log: Log, *, word: str | None = None) -> Record:
        """Carry out a plan, and record the outcome.

        Args:
            plan: as the planner made it.
            confirmation: the database's name, as the operator repeated it.
            log: receives progress lines.
            word: instead of the name, the word that :meth:`offer` returned for this plan.

        Raises:
            RestoreRefusedError: the plan was not confirmed, or another restore is unfinished; nothing was touched.
            BackupError: there are obstacles; nothing was touched.
            LockHeldError: another restore is under way.
            RestoreUnfinishedError: the restore can be neither finished nor put back now.
        """
        plan.refuse()
        if word is None:
            plan.confirm(confirmation)
        log = never_failing(log)
        folder, now = self.folder, datetime.now(UTC)
        folder.prepare()
        refuse_full_volume(self.driller.catalog.root)
        purpose = f"the {plan.order.mode} of {plan.order.backup or plan.order.database}"
        with folder.lock(purpose, now), self._reading(plan.backup):
            if unfinished := folder.unfinished():
                raise unfinished.unfinished
            for journal in folder.unrecorded():
                record_ended(folder, journal)
            refuse_stale(self.target, plan.order)
            if word is not None and plan.destroys:
                self._words.redeem(word, plan.order, plan.backup, datetime.now(UTC))
            order = plan.order.model_copy(update={"started_at": folder.free(plan.order.started_at)})
            journal = folder.begin(order)
            with _telling(journal):
                return self._under_way(journal, plan.backup, log).go_on()

    def resume(self, log: Log) -> Record:
        """Finish a restore that a killed process began; if it was being put back, finish that.

        Raises:
            RestoreRefusedError: no restore is unfinished; or it began on another server.
            UnknownStepError: a newer version began it, with a step that this version does not know.
        """
        log = never_failing(log)
        with self._unfinished("resume") as journal:
            refuse_other_server(self.target, journal.order)
            if journal.putting_back:
                with contextlib.suppress(NoWayBackError):
                    return self._under_way(journal, None, log).put_back()
            require_still_live(self._under_way(journal, None, log).work)
            needed = Step.RESTORE in journal.order.steps and not journal.done(Step.RESTORE)
            backup = backup_of(journal.order, self.driller.catalog, datetime.now(UTC)) if needed else None
            with self._reading(backup):
                return self._under_way(journal, backup, log).go_on()

    def abort(self, log: Log, confirmation: str = "", *, word: str | None = None) -> Record:
        """Put back a restore that a killed process began; if that is impossible, give it up, so that another can begin.

        Args:
            log: receives progress lines.
            confirmation: the database's name, as the operator repeated it to give the restore up.
            word: instead of the name, the word of the restore, which this method logs; empty to put back only.

        Raises:
            RestoreRefusedError: no restore is unfinished; or it began on another server; or the word is another
                restore's.
            UnknownStepError: as for :meth:`resume`.
            NoWayBackError: the old live database is gone, so the restore can only be finished.
            RestoreUnfinishedError: the restore cannot be put back now.
        """
        log = never_failing(log)
        with self._unfinished("abort") as journal:
            restore, named = self._under_way(journal, None, log), confirmation == journal.order.database
            if word is not None:
                named = self._is_meant(journal.order, word, log)
            elsewhere = named and is_elsewhere(self.target, journal.order)
            if elsewhere or (named and (is_lost(restore.work) or is_torn(restore.work))):
                return restore.give_up(elsewhere=elsewhere)
            refuse_other_server(self.target, journal.order)
            return restore.put_back()

    def _is_meant(self, order: Order, word: str, log: Log) -> bool:
        """Whether the word belongs to this restore; a word copied from another restore must not give it up."""
        own = word_of(order)
        if word not in ("", own):
            raise RestoreRefusedError(
                f"nothing was done: {word} is not the word of the {order.mode} that is unfinished",
                why=f"that one began at {order.started_at:%Y-%m-%d %H:%M:%S} UTC",
                fix=f"to put it back: action: abort, without confirm; where that cannot be, to give it up: {own}",
            )
        if not word:
            log(f"where it can be neither finished nor put back, action: abort with confirm: {own} gives it up")
        return word == own

    def _under_way(self, journal: Journal, backup: Backup | None, log: Log) -> StepByStep:
        health_url = self.services.health_url
        work = Work(self.driller, self.target, self.manager, health_url, journal, backup, log, self.by_hand)
        return StepByStep(work, self.folder)

    @contextlib.contextmanager
    def _unfinished(self, verb: str) -> Iterator[Journal]:
        folder = self.folder
        folder.prepare()
        with folder.lock(f"ovia-backup restore --{verb}", datetime.now(UTC)):
            journal = folder.unfinished()
            if journal is None:
                raise RestoreRefusedError(
                    f"there is nothing to {verb}",
                    why=f"no restore of {self.target.database} is unfinished",
                    fix="ovia-backup restore --history",
                )
            refuse_unknown(journal)
            with _telling(journal):
                yield journal

    def _reading(self, backup: Backup | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if backup is None else self.driller.catalog.reading(backup)


@contextlib.contextmanager
def _telling(journal: Journal) -> Iterator[None]:
    """If the process is interrupted or fails because of a defect, tell the operator what is unfinished."""
    try:
        yield
    except BackupError:
        raise
    except BaseException as error:
        if journal.ended is not None:
            raise
        left = journal.unfinished
        if isinstance(error, Exception):
            said = f"{type(error).__name__}: {error}"
            raise type(left)(left.what, why=left.why, said=said, fix=left.fix) from error
        raise left from None

"""The order of events of a restore: confirm, write down, take each step, and at any failure put back what can be.

Whatever ends it, the live database is the old one, whole, or the new one, proven; and where this process could not see
to that, the journal lets the next one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import (
    BackupError,
    DiskFullError,
    NoWayBackError,
    RestoreRefusedError,
    ServiceError,
    ServiceManagerRefusedError,
    ServiceManagerUnreachableError,
    VolumeError,
)
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.session import connect, other_database, system_identifier
from ovia_backup_dagster.proof.target import uninterrupted
from ovia_backup_dagster.restoration import replaced_databases as kept_databases
from ovia_backup_dagster.restoration.confirmation import Words, word_of
from ovia_backup_dagster.restoration.folder import RestoreFolder, backup_of
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.order import Mode, Order, Step
from ovia_backup_dagster.restoration.plan import Planner, RestorePlan, Services, confirm
from ovia_backup_dagster.restoration.record import Fate, Record, fate, record_of
from ovia_backup_dagster.restoration.replaced_databases import Kept
from ovia_backup_dagster.restoration.restore_report import restore_page
from ovia_backup_dagster.restoration.service_manager import ServiceManager
from ovia_backup_dagster.restoration.steps import Steps, again, give_up
from ovia_backup_dagster.restoration.swap import database_state

_JOURNAL_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Restorations:
    """All that restores depend on.

    Attributes:
        driller: catalog, programs, and the drills so far.
        target: the live database, as the role that restores.
        services: what else is to be stopped and started.
        manager: whose services those are.
        by_hand: a person sees to the services of a restore that is unfinished.
    """

    driller: Driller
    target: Connection
    services: Services
    manager: ServiceManager
    by_hand: bool = False

    def without_services(self) -> Restorations:
        """The same, for a day on which Docker does not answer: services are a person's business."""
        return replace(self, services=Services(), by_hand=True)

    @property
    def planner(self) -> Planner:
        return Planner(self.driller, self.target, self.services, self.manager)

    @property
    def _words(self) -> Words:
        return Words(self.driller.catalog)

    @property
    def folder(self) -> RestoreFolder:
        """Where journals and records are."""
        return RestoreFolder(self.driller.catalog)

    def offer(self, plan: RestorePlan) -> str:
        """The word that lets a later process do what this plan shows; empty where nothing needs one.

        Raises:
            VolumeError: it cannot be kept.
        """
        if not plan.destroys or plan.obstacles:
            return ""
        self.folder.prepare()
        return self._words.offer(plan.order, plan.backup, datetime.now(UTC))

    def run(self, plan: RestorePlan, confirmation: str, log: Log, *, word: str | None = None) -> Record:
        """Do what was planned, and write down what came of it.

        Args:
            plan: as the planner made it.
            confirmation: the database's name, as a person repeated it.
            log: told what happens.
            word: instead of the name, the word that :meth:`offer` gave for such a plan.

        Raises:
            RestoreRefusedError: it was not confirmed, or another one is unfinished; nothing was touched.
            BackupError: there are obstacles; nothing was touched.
            LockHeldError: another restore is under way.
            RestoreUnfinishedError: it can neither go on nor be put back now.
        """
        plan.refuse()
        if word is None:
            plan.confirm(confirmation)
        log = _never_failing(log)
        folder, now = self.folder, datetime.now(UTC)
        folder.prepare()
        self._refuse_full_volume()
        purpose = f"the {plan.order.mode} of {plan.order.backup or plan.order.database}"
        with folder.lock(purpose, now), self._reading(plan.backup):
            if unfinished := folder.unfinished():
                raise unfinished.unfinished
            for journal in folder.unrecorded():
                self._record(journal)
            self._refuse_stale(plan.order)
            if word is not None and plan.destroys:
                self._words.redeem(word, plan.order, plan.backup, datetime.now(UTC))
            order = plan.order.model_copy(update={"started_at": folder.free(plan.order.started_at)})
            journal = folder.begin(order)
            with _telling(journal):
                return self._go_on(self._steps(journal, plan.backup, log))

    def resume(self, log: Log) -> Record:
        """Finish what a killed process had begun; if that was the way back, this.

        Raises:
            RestoreRefusedError: nothing is unfinished; or it was begun on another server.
        """
        log = _never_failing(log)
        with self._unfinished("resume") as journal:
            self._refuse_other_server(journal.order)
            if journal.putting_back:
                with contextlib.suppress(NoWayBackError):
                    return self._put_back(self._steps(journal, None, log))
            self._steps(journal, None, log).require_still_live()
            needed = Step.RESTORE in journal.order.steps and not journal.done(Step.RESTORE)
            backup = backup_of(journal.order, self.driller.catalog, datetime.now(UTC)) if needed else None
            with self._reading(backup):
                return self._go_on(self._steps(journal, backup, log))

    def abort(self, log: Log, confirmation: str = "", *, word: str | None = None) -> Record:
        """Put back what a killed process had begun; or give it up, where that cannot be, so that another can begin.

        Args:
            log: told what happens.
            confirmation: the database's name, as a person repeated it, to give it up.
            word: instead of the name, the word that this tells of the restore; empty to put back only.

        Raises:
            RestoreRefusedError: nothing is unfinished; or it was begun on another server; or the word is another's.
            NoWayBackError: what was live before is gone, so that only finishing helps.
            RestoreUnfinishedError: it cannot be put back now.
        """
        log = _never_failing(log)
        with self._unfinished("abort") as journal:
            steps, named = self._steps(journal, None, log), confirmation == journal.order.database
            if word is not None:
                named = self._is_meant(journal.order, word, log)
            if named and (self._is_elsewhere(journal.order) or steps.is_lost or steps.is_torn):
                return self._give_up(steps)
            self._refuse_other_server(journal.order)
            return self._put_back(steps)

    def _is_meant(self, order: Order, word: str, log: Log) -> bool:
        """Whether a word gives up this restore: one that was copied from another day must not."""
        own = word_of(order)
        if word not in ("", own):
            raise RestoreRefusedError(
                f"nothing was done: {word} is not the word of the {order.mode} that is unfinished",
                why=f"that was begun {order.started_at:%Y-%m-%d %H:%M:%S} UTC",
                fix=f"to put it back: action: abort, without confirm; where that cannot be, to give it up: {own}",
            )
        if not word:
            log(f"where it can be neither finished nor put back, action: abort with confirm: {own} gives it up")
        return word == own

    def kept(self) -> list[tuple[Kept, datetime | None]]:
        """The databases that can be gone back to, newest first; with when each was replaced (UTC), if it is known.

        Raises:
            ServerError: no connection, or it broke.
        """
        swaps: dict[str, datetime | None] = {}
        with contextlib.suppress(VolumeError):  # what the server keeps can be listed without them
            swaps = {record.kept: record.swapped_at for record in self.folder.newest_first()}
        found = kept_databases.kept(self.target, self.target.database)
        return [(each, swaps.get(each.name)) for each in found]

    def left(self) -> list[str]:
        """Copies that were to be dropped when their restore was put back, and could not be; as far as is recorded.

        Raises:
            ServerError: no connection, or it broke.
        """
        newest: dict[str, Record] = {}
        with contextlib.suppress(VolumeError):  # that they cannot be read is said of the volume
            for record in self.folder.newest_first():
                newest.setdefault(record.order.incoming, record)
        return [
            name
            for name, record in newest.items()
            # What an undo would have made live is no copy, and is kept; so is what was live for a while.
            if record.outcome == "put back" and Step.RESTORE in record.order.steps
            if name not in (record.order.database, record.kept)
            if database_state(self.target, name).exists
        ]

    def to_forget(self, name: str) -> Kept:
        """The kept database that somebody means to drop.

        Args:
            name: which; empty for the only one.

        Raises:
            RestoreRefusedError: there is none of that name, or there are several.
        """
        found = kept_databases.kept(self.target, self.target.database)
        if name or len(found) == 1:
            return kept_databases.replaced_database(found, name or found[0].name)
        raise RestoreRefusedError(
            "no database was dropped: it is not said which" if found else "there is no database to drop",
            why=f"kept: {', '.join(each.name for each in found) or 'none'}",
            fix="ovia-backup undo-restore --forget --yes-destroy NAME" if found else "ovia-backup undo-restore --list",
        )

    def forget(self, name: str, confirmation: str) -> list[str]:
        """Drop a kept database; returns what is left to do elsewhere.

        Args:
            name: which.
            confirmation: its name, as a person repeated it.

        Raises:
            RestoreRefusedError: there is none of that name, it was not confirmed, or a restore is unfinished.
        """
        kept_databases.replaced_database(kept_databases.kept(self.target, self.target.database), name)
        confirm(name, confirmation, f"--yes-destroy {shell_word(name)}")
        return self._forget(name)

    def _forget(self, name: str) -> list[str]:
        self.folder.prepare()
        with self.folder.lock("dropping a kept database", datetime.now(UTC)):
            if unfinished := self.folder.unfinished():
                raise unfinished.unfinished
            return kept_databases.drop_replaced(self.target, self.target.database, name)

    def expire(self, keep: timedelta, tell: Callable[[str, str], bool], now: datetime, log: Log) -> None:
        """Announce that kept databases will be dropped, and drop those whose time has come.

        Args:
            keep: how long they are kept; nothing is for ever.
            tell: sends a title and a text; whether anybody took them.
            now: the present (UTC).
            log: told what happens.

        Raises:
            BackupError: one could not be dropped, or nobody be told.
        """
        log = _never_failing(log)
        since = {each: swapped_at or each.at for each, swapped_at in self.kept()}
        errors: list[BackupError] = []
        for each, replaced_at in since.items():
            try:
                self._expire(each, list(since), replaced_at, keep, tell, now, log)
            except BackupError as error:  # the others have their time, too
                log(error.account)
                errors.append(error)
        if errors:
            raise errors[0]

    def _expire(
        self,
        each: Kept,
        found: Sequence[Kept],
        replaced_at: datetime,
        keep: timedelta,
        tell: Callable[[str, str], bool],
        now: datetime,
        log: Log,
    ) -> None:
        folder = self.folder
        what = fate(replaced_at, folder.announced(each.name), keep, now)
        if what is Fate.ANNOUNCE:
            title = f"database {each.name} will be dropped"
            until = max(replaced_at + keep, now + timedelta(days=1))
            text = (
                f"{each.name} was live as {self.target.database} until it was replaced, and is kept until "
                f"{until:%Y-%m-%d %H:%M} UTC (RESTORE_KEEP_DAYS). "
                f"To go back to it: {kept_databases.way_back(found, each.name)}. To keep it for good: "
                "ALTER DATABASE ... RENAME TO another name."
            )
            if tell(title, text):
                folder.prepare()
                folder.announce(each.name, now)
                log(title)
            else:
                log(f"{each.name} stays: nobody could be told that it will be dropped")
        elif what is Fate.DROP:
            left = self._forget(each.name)
            text = "; ".join(left) or f"the restore of {replaced_at:%Y-%m-%d %H:%M} UTC cannot be undone any more"
            log(f"dropped {each.name}: {text}")
            tell(f"database {each.name} was dropped", text)

    # ----

    def _steps(self, journal: Journal, backup: Backup | None, log: Log) -> Steps:
        return Steps(
            self.driller, self.target, self.manager, self.services.health_url, journal, backup, log, self.by_hand
        )

    def _go_on(self, steps: Steps) -> Record:
        journal = steps.journal
        try:
            for step in journal.order.steps:
                if not journal.done(step):
                    self._take(steps, step)
        except BackupError as error:
            steps.log(error.account)
            return self._after(steps, error)
        except BaseException:
            # Cancelled by a person, or a defect of ours: this process still lives, and cleans up.
            with uninterrupted():
                try:
                    self._put_back(steps)
                except BackupError as left:
                    steps.log(str(left))
            raise
        finally:
            steps.let_dumps()
        return self._finished(journal)

    def _take(self, steps: Steps, step: Step) -> None:
        journal = steps.journal
        try:
            journal.write(JournalMark.BEGUN, step, **steps.before(step))
            data = steps.take(step)
        except BackupError as error:
            journal.write(JournalMark.FAILED, step, error=error.account, fix=error.fix)
            raise
        journal.write(JournalMark.DONE, step, **data)

    def _after(self, steps: Steps, error: BackupError) -> Record:
        """What to do when a step failed."""
        journal, order = steps.journal, steps.order
        try:
            live, lost = journal.live or steps.is_named, steps.is_lost
        except BackupError as later:
            raise self._stuck(journal, later) from None
        if not live or (order.auto_undo and order.mode is Mode.SWAP):
            if lost:
                raise self._stuck(journal, error, f"; or give this backup up, to restore another: {give_up(order)}")
            return self._put_back(steps, error)
        # The new database is live, and proven: it stays, and the services get their replicas back.
        try:
            if Step.START in order.steps and not journal.done(Step.START):
                if isinstance(error, ServiceError) and journal.entries[-1].step is Step.START:
                    raise error
                self._take(steps, Step.START)
        except ServiceError:
            pass  # all were scaled; that one is not well is the restore's no longer, and its record says so
        except VolumeError as later:
            steps.start_unnoted()
            raise self._stuck(journal, later) from None
        except BackupError as later:
            raise self._stuck(journal, later) from None
        return self._finished(journal)

    def _finished(self, journal: Journal) -> Record:
        try:
            journal.write(JournalMark.FINISHED)
        except BackupError as error:
            raise self._stuck(journal, error) from None
        return self._record(journal)

    def _put_back(self, steps: Steps, cause: BackupError | None = None) -> Record:
        journal = steps.journal
        try:
            steps.require_way_back()
            steps.log("putting everything back")
            with contextlib.suppress(VolumeError):
                # Most of the way back needs no journal: services must not stay down for a volume that is full.
                journal.write(JournalMark.PUTTING_BACK)
            with uninterrupted():
                problems = steps.put_back()
            for problem in problems:
                steps.log(problem.account)
            causes = [*([cause] if cause else []), *problems]
            said = {"error": causes[0].account, "fix": causes[0].fix} if causes else {}
            journal.write(JournalMark.PUT_BACK, None, **said, notes=[problem.account for problem in problems])
        except NoWayBackError:
            raise
        except BackupError as error:
            raise self._stuck(journal, error) from None
        return self._record(journal)

    def _give_up(self, steps: Steps) -> Record:
        """End it where it can be neither finished nor put back, so that another backup can be restored."""
        journal, order = steps.journal, steps.order
        replicas = journal.data(Step.STOP).get("replicas", {})
        scale = "".join(f" --scale {shell_word(name)}={count}" for name, count in replicas.items())
        what = f"database {order.database} was dropped"
        error = f", and {order.database} was not restored from {order.backup or order.incoming}"
        fix = f"ovia-backup list; then: ovia-backup restore BACKUP --new-host{scale}"
        problems: list[BackupError] = []
        try:
            if self._is_elsewhere(order):
                what = f"the server at {order.place}, on which it was begun, is gone"
            elif steps.is_torn:
                what = f"neither the old nor the new database of the {order.mode} is called {order.database}"
                error = ": somebody has renamed or dropped them"
                problems = steps.let_go()
                fix = "see what there is: psql -l; to restore: ovia-backup list; then: ovia-backup restore BACKUP"
                fix += "" if database_state(self.target, order.database).exists else " --new-host"
            else:
                steps.drop_copy()
            for problem in problems:
                steps.log(problem.account)
            notes = [problem.account for problem in problems]
            journal.write(JournalMark.GIVEN_UP, error=f"{what}{error}", fix=fix, notes=notes)
        except BackupError as later:
            raise self._stuck(journal, later, f"; or give it up: {give_up(order)}") from None
        return self._record(journal)

    def _stuck(self, journal: Journal, error: BackupError, instead: str = "") -> BackupError:
        unfinished = journal.unfinished
        if isinstance(error, ServiceManagerUnreachableError | ServiceManagerRefusedError):
            instead += "; where Docker does not come back: the same with --without-services, and services by hand"
        fix = "; then: ".join(filter(None, (error.fix, f"{unfinished.fix}{instead}")))
        return type(unfinished)(unfinished.what, why=error.account, fix=fix)

    def _record(self, journal: Journal) -> Record:
        record = record_of(journal)
        try:
            self.folder.write(record, restore_page(record))
        except VolumeError as error:  # the journal says it all
            return record.model_copy(update={"notes": (*record.notes, error.account)})
        return record

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
            with _telling(journal):
                yield journal

    def _system_identifier(self) -> str | None:
        with connect(other_database(self.target, self.target.database)) as session:
            return system_identifier(session)

    def _is_elsewhere(self, order: Order) -> bool:
        """Whether it was begun on another server; here, databases of the same names are somebody else's."""
        here, target = self._system_identifier(), self.target
        if here is not None and order.system_identifier is not None:
            return here != order.system_identifier
        return (target.host, target.port) != (order.host, order.port)

    def _refuse_other_server(self, order: Order) -> None:
        if not self._is_elsewhere(order):
            return
        raise RestoreRefusedError(
            f"{self.target.host}:{self.target.port} is not the server that the {order.mode} of {order.database} was "
            "begun on",
            why=f"that was {order.place}, of system identifier {order.system_identifier or 'unknown'}; this is "
            f"{self._system_identifier() or 'unknown'}",
            fix="set RESTORE_POSTGRES_HOST and POSTGRES_HOST, POSTGRES_PORT as they were then; then try again; or, if "
            f"that server is gone for good: {give_up(order)}",
        )

    def _reading(self, backup: Backup | None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if backup is None else self.driller.catalog.reading(backup)

    def _refuse_stale(self, order: Order) -> None:
        """Hours may go by until the swap, or the drop, would find out."""
        found = database_state(self.target, order.database)
        if order.becomes == order.database and order.live_oid != (found.oid if found.exists else None):
            raise RestoreRefusedError(
                f"nothing was done: database {order.database} is not the one that was planned for",
                why="somebody has dropped, made or renamed it since, by another restore perhaps",
                fix=f"see what was done meanwhile: ovia-backup restore --history; then begin again: {again(order)}",
            )

    def _refuse_full_volume(self) -> None:
        root = self.driller.catalog.root
        free = shutil.disk_usage(root).free
        if free < _JOURNAL_BYTES:
            raise DiskFullError(
                f"the backup volume {root} has no room for a restore's journal",
                why=f"{human_bytes(free)} free",
                fix="make room: ovia-backup prune --dry-run; df -h $BACKUP_DIR",
            )


@contextlib.contextmanager
def _telling(journal: Journal) -> Iterator[None]:
    """Whoever ends this process, or meets a defect of ours, is told what is left unfinished."""
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


def _never_failing(log: Log) -> Log:
    """What is told may reach nobody: the reader of a pipe is ended by the same Ctrl-C, a storage of logs may be away.

    That is no reason to leave anything half done.
    """

    def tell(text: str) -> None:
        with contextlib.suppress(Exception):
            log(text)

    return tell

"""Each step of a restore: what is noted before it, how it is taken, and how it is put back.

A step may be taken twice: the process that took it can have been killed before it could say so. So each looks at how
things stand before it changes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.checks import Check, Stage
from ovia_backup_dagster.core.errors import (
    BackupError,
    BadBackupError,
    ConnectionLostError,
    CopyError,
    NoWayBackError,
    RestoreError,
    ServerUnreachableError,
    ServiceError,
    ServiceManagerRefusedError,
    VolumeError,
)
from ovia_backup_dagster.core.human_text import joined, shortened
from ovia_backup_dagster.core.naming import before_at, before_name
from ovia_backup_dagster.drill.runner import Choice, Driller, Where
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.session import other_database
from ovia_backup_dagster.proof import roles
from ovia_backup_dagster.proof import target as places
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.source_settings import put_in_effect, settings_of_backup, take_out
from ovia_backup_dagster.restoration.activity import written
from ovia_backup_dagster.restoration.application_health import wait_until_healthy
from ovia_backup_dagster.restoration.database_settings import Properties, apply, carry_over, properties
from ovia_backup_dagster.restoration.journal import Journal, JournalMark, Proven
from ovia_backup_dagster.restoration.order import Mode, Order, Step
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.service_manager import ServiceManager
from ovia_backup_dagster.restoration.subscriptions import (
    disable_subscriptions,
    drop_subscriptions,
    enable_subscriptions,
    subscriptions_of,
)
from ovia_backup_dagster.restoration.swap import (
    database_state,
    give_name,
    is_called,
    names_by_oid,
    obstacles,
    swap_databases,
    swap_outcome,
)

Data = Mapping[str, Any]
E = TypeVar("E", bound=BackupError)
_OF_SERVICES = (Step.STOP, Step.MIGRATE, Step.START, Step.HEALTH)
_STOP_SECONDS = 300.0
_START_SECONDS = 300.0
_MIGRATE_SECONDS = 1800.0
_HEALTH_SECONDS = 300.0
_SHOWN = 10
#: What only a drill does: it alters its copy, or hands it to others.
_NOT_IN_A_RESTORE = {
    Check.CONTAINED: "what the backup contains runs in this server, as the role that restores",
    Check.CONTROL: "no row of a database that is to be live is deleted; the monthly drill does that",
    Check.OWN_CHECK: "DRILL_CHECK_COMMAND is for copies; the services' own health is asked in the end",
}


@dataclass(slots=True)
class Steps:
    """The steps of one restore.

    Attributes:
        driller: catalog and programs; it drills before a database is dropped.
        target: the live database, as the role that restores.
        manager: whose services are stopped and started.
        health_url: as the settings have it now; the journal has it without its secrets.
        journal: what was done so far.
        backup: what is restored; ``None`` of an undo.
        log: told what happens.
        by_hand: a person stops, migrates, starts and asks the services, and is told which.
    """

    driller: Driller
    target: Connection
    manager: ServiceManager
    health_url: str
    journal: Journal
    backup: Backup | None
    log: Log
    by_hand: bool = False
    _dumps_held: contextlib.ExitStack | None = field(default=None, init=False)

    @property
    def order(self) -> Order:
        return self.journal.order

    def before(self, step: Step) -> Data:
        """What a later process needs to know if this one is killed in the step; written down before it is taken.

        Raises:
            BackupError: it cannot be found out, and so the step cannot be taken.
        """
        noted = self.journal.data(step)
        if step in (Step.STOP, Step.DROP, Step.SWAP) and not noted and self.order.mode is not Mode.NEW:
            # Since the plan was made, hours may have gone by.
            for name in (self.order.database, self.order.incoming):
                for obstacle in obstacles(self.target, name, mode_needs_swap=bool(self.order.kept)):
                    raise obstacle
            self._hold_dumps()
        if step is Step.STOP and "replicas" not in noted and not self.by_hand:
            return {"replicas": {name: self.manager.replicas(name) for name in self.order.services}}
        if step is Step.MIGRATE and "runs" not in noted and not self.by_hand:
            return {"runs": self.manager.runs(self.order.migrate, _MIGRATE_SECONDS)}
        if step is Step.DROP and "properties" not in noted:
            self._live()
            found = subscriptions_of(self.target, self.order.database) if self._exists(self.order.database) else []
            return {
                "properties": properties(self.target, self.order.database).to_json(),
                # They must go first, and with them goes who knows their slots.
                "dropped_subscriptions": {each.name: each.slot for each in found},
            }
        if step is Step.RESTORE and self.journal.attempts(step) == 0 and self._exists(self.order.incoming):
            raise CopyError(
                f"there is a database {self.order.incoming} at {self.order.place} already",
                why="somebody made it meanwhile",
                fix="psql -l; then begin again" + ("" if self.order.mode is Mode.NEW else f": {again(self.order)}"),
            )
        if step is Step.SWAP and "incoming_oid" not in noted:
            order = self.order
            incoming = database_state(self.target, order.incoming).oid
            if incoming != (order.incoming_oid or self.journal.made):
                raise self._replaced(order.incoming)
            return {
                "live_oid": self._live(),
                "incoming_oid": incoming,
                "subscriptions": [s.name for s in subscriptions_of(self.target, order.database) if s.enabled],
                # Now, while nobody writes in it.
                "counters": written(self.target, order.incoming).model_dump(mode="json"),
            }
        return {}

    def _live(self) -> int:
        """The live database, which must be the one that was shown to who confirmed."""
        found = database_state(self.target, self.order.database)
        if not found.exists or found.oid != self.order.live_oid:
            raise self._replaced(self.order.database)
        return found.oid

    def _replaced(self, database: str) -> RestoreError:
        return RestoreError(
            f"database {database} is not the one that the {self.order.mode} began with",
            why="somebody dropped, made or renamed it meanwhile",
            fix=f"psql -l; then begin again: {again(self.order)}",
        )

    def take(self, step: Step) -> Data:
        """Take the step; returns what is to be noted of it.

        Raises:
            BackupError: it failed, or was taken in part.
        """
        self.log(f"step: {step}")
        takers: dict[Step, Callable[[], Data]] = {
            Step.DRILL: self._drill,
            Step.STOP: self._stop,
            Step.DROP: self._drop,
            Step.RESTORE: self._restore,
            Step.SWAP: self._swap,
            Step.NAME: self._name,
            Step.MIGRATE: self._migrate,
            Step.START: self._start,
            Step.HEALTH: self._health,
        }
        if self.by_hand and step in _OF_SERVICES:
            self.log(self._to_do(step))
            return {"notes": [self._to_do(step)]}
        return takers[step]()

    # ---- the services

    def _to_do(self, step: Step) -> str:
        """What a person does instead of the step."""
        wanted = self._replicas
        texts = {
            Step.STOP: f"to be stopped by hand: {self.manager.scale_command(dict.fromkeys(wanted, 0))}",
            Step.MIGRATE: f"to be run by hand: {self.manager.run_once_command(self.order.migrate)}",
            Step.START: f"to be started by hand: {self.manager.scale_command(wanted)}",
            Step.HEALTH: f"to be asked by hand: {self.order.health_url}",
        }
        return texts[step]

    def start_unnoted(self) -> None:
        """Start the services where the journal cannot be written: they must not stay down for it."""
        if Step.START in self.order.steps:
            with contextlib.suppress(BackupError):
                self.take(Step.START)

    def _stop(self) -> Data:
        names = list(self.order.services)
        for name in names:
            self.manager.scale(name, 0)
        self.manager.wait_until_stopped(names, _STOP_SECONDS, self.log)
        return {}

    def _start(self) -> Data:
        wanted = self._replicas
        problems = self._scale({name: count for name, count in wanted.items() if count is not None})
        for problem in problems[1:]:
            self.log(problem.account)
        if problems:
            raise problems[0]
        return {"notes": [self._to_do(Step.START)]} if None in wanted.values() else {}

    @property
    def _replicas(self) -> dict[str, int | None]:
        """Of each service, in the end; ``None`` where it was stopped by hand, and nobody wrote down how many it had."""
        before = self.journal.data(Step.STOP).get("replicas", {})
        return {name: before.get(name) if count is None else count for name, count in self.order.services.items()}

    def _scale(self, wanted: Mapping[str, int]) -> list[ServiceError]:
        """Scale all, whatever becomes of one of them; returns what is wrong with those that are not well.

        Raises:
            ServiceManagerError: Docker does not answer, or refused to scale one.
        """
        problems: list[ServiceError] = []
        refusals: list[ServiceManagerRefusedError] = []
        scaled: list[tuple[str, int]] = []
        for name, count in wanted.items():
            with _collected(problems, ServiceError), _collected(refusals, ServiceManagerRefusedError):
                self.manager.scale(name, count)
                scaled.append((name, count))
        for name, count in scaled:
            with _collected(problems, ServiceError):
                self.manager.wait_until_running(name, count, _START_SECONDS, self.log)
        for refusal in refusals:
            raise refusal
        return problems

    def _migrate(self) -> Data:
        since = self.journal.data(Step.MIGRATE).get("runs")
        self.manager.run_once(self.order.migrate, _MIGRATE_SECONDS, self.log, since)
        return {}

    def _end_migration(self) -> None:
        """Nothing migrates the database that comes back."""
        journal, order = self.journal, self.order
        if not journal.begun(Step.MIGRATE) or journal.done(Step.MIGRATE):
            return
        if self.by_hand:
            self._note(
                Step.MIGRATE,
                [f"to be stopped by hand, if it still runs: {self.manager.scale_command({order.migrate: 0})}"],
            )
            return
        try:
            if self.manager.end(order.migrate, _STOP_SECONDS, self.log):
                self._note(Step.MIGRATE, [f"{order.migrate} was ended, and is at 0 replicas"])
        except ServiceError as error:
            self._note(Step.MIGRATE, [error.account])

    def _health(self) -> Data:
        if not self.health_url:
            return {"notes": ["health was not asked: HEALTH_URL is not set any more"]}
        wait_until_healthy(self.health_url, _HEALTH_SECONDS, self.log)
        return {}

    # ---- the database

    def _drill(self) -> Data:
        assert self.backup is not None
        self.let_dumps()  # as in `_restore`
        choice = Choice(Where.THROWAWAY, self.order.jobs)
        evidence = self.driller.drill(
            self.backup, choice, launched_by=self.order.launched_by, run_id=self.order.run_id, log=self.log
        )
        if evidence.trouble:
            raise evidence.trouble
        return {"evidence": evidence.filename, "notes": self._rehearse(self.backup)}

    def _rehearse(self, backup: Backup) -> list[str]:
        """Restore all but the data where it is to be restored: the drill was made by a superuser of its own server."""
        notes = self._make_roles(backup)
        copy, programs = self._copy_to_make(), self.driller.verifier.programs
        copy.drop()  # what a killed attempt left of it
        script = archives.database_text(programs, backup.path)
        notes += copy.create(script)
        try:
            listing = archives.contents_list(programs, backup.path)
            settings = put_in_effect(copy, settings_of_backup(backup, script, listing))
            restorer = Restorer(programs, copy.connection, copy.name, self.order.jobs, live=True, settings=settings)
            restorer.rehearse(backup.path, listing)
        except RestoreError as error:
            fix = f"nothing was dropped; let a superuser restore it (RESTORE_POSTGRES_USER), then: {again(self.order)}"
            raise RestoreError(error.what, why=error.why, said=error.said, fix=fix) from None
        finally:
            copy.drop()
        return notes

    def _drop(self) -> Data:
        self._hold_dumps()
        if self._exists(self.order.database):
            drop_subscriptions(self.target, self.order.database)
        self._copy(self.order.database).drop(self.order.live_oid)
        slots = filter(None, self._dropped_subscriptions.values())
        return {"notes": [f"to be dropped on its publisher: replication slot {slot}" for slot in slots]}

    @property
    def _dropped_subscriptions(self) -> Mapping[str, str | None]:
        """Name -> slot, of those that the database had that is dropped."""
        return dict(self.journal.data(Step.DROP).get("dropped_subscriptions", {}))

    def _exists(self, database: str) -> bool:
        return database_state(self.target, database).exists

    def _copy(self, database: str) -> places.Copy:
        return places.live_copy(self.target, database, f"database {database} on {self.order.place}")

    def _copy_to_make(self) -> places.Copy:
        """Of the owner of what it replaces, or stands beside: the role that restores may have its rights alone.

        Where there is no such database, it is of the role that restores, until the backup's own settings are made.
        """
        order, copy = self.order, self._copy(self.order.incoming)
        noted = self.journal.data(Step.DROP).get("properties")
        owner = Properties.from_json(noted).owner if noted else database_state(self.target, order.database).owner
        return replace(copy, owner=owner)

    def _restore(self) -> Data:
        assert self.backup is not None
        self.let_dumps()  # it may take hours; and the verdict on the backup is written under their lock
        order, backup = self.order, self.backup
        notes = self._make_roles(backup)
        copy = self._copy_to_make()
        if self.journal.attempts(Step.RESTORE) > 1:
            copy.drop(self.journal.made)  # what a killed attempt left of it
        if order.even_if_damaged:
            proof = self._proof(backup)
            proven = self._salvage(proof, copy, backup)
        else:
            proof = self._proof(backup)
            witness = proof.read_backup()
            if witness is None:
                raise RestoreError(
                    f"{backup} is damaged",
                    why="; ".join(line.text for line in proof.lines if line.result is Result.FAILED),
                    fix=""
                    if self.is_lost
                    else "choose another (ovia-backup list), or: "
                    + Wishes(backup=order.backup_path, mode=Mode.NEW, even_if_damaged=True).command(),
                )
            proof.prove_functions(copy)
            proof.restore(copy)
            proof.prove(copy)
            proof.analyze(copy)
            for check, why in _NOT_IN_A_RESTORE.items():
                proof.add(check, [], passed=why, result=Result.NOT_MADE)
            proof.list_unmade(Stage.RESTORE)
            proven = _proven(proof)
            failed = [line.text for line in proven.lines if line.result is Result.FAILED]
            if failed:
                raise RestoreError(
                    f"the copy {order.incoming} is not what {backup} holds",
                    why=joined(failed),
                    fix=""
                    if self.is_lost
                    else "nothing was replaced; choose another: ovia-backup list; or see: ovia-backup drill "
                    + self.driller.catalog.word(backup),
                )
        notes += self._to_refresh(proof)
        # Known as ours by how it was made until now, by its number from now on.
        self.journal.write(JournalMark.NOTED, Step.RESTORE, made=database_state(self.target, order.incoming).oid)
        take_out(copy)
        copy.release()
        if order.new_host or order.mode is Mode.NEW:
            # Nothing is there whose properties it takes over: it is as the backup's was.
            script = archives.database_text(self.driller.verifier.programs, backup.path)
            notes += copy.configure(script, swapped=order.mode is Mode.SWAP)
        elif order.mode is Mode.DROP:
            properties = Properties.from_json(self.journal.data(Step.DROP)["properties"])
            notes += apply(self.target, properties, order.incoming)
        return {"proven": proven.model_dump(mode="json"), "notes": notes}

    def _proof(self, backup: Backup) -> Proof:
        order = self.order
        rescue = Wishes(
            backup=order.backup_path,
            mode=Mode.NEW,
            new_host=order.new_host,
            create_roles=order.create_roles and not order.new_host,
            even_if_damaged=True,
        )
        driller = self.driller
        return Proof(driller.verifier, driller.source, backup, self.log, jobs=order.jobs, rescue=rescue.command())

    def _to_refresh(self, proof: Proof) -> list[str]:
        """What a person does for the materialized views that hold nothing, as they could not be refreshed."""
        empty = [view for view in proof.unrefreshed if not view.refreshed]
        notes = [
            f"to be refreshed by hand, in database {self.order.becomes}: {view.command} It could not be: {view.said}"
            for view in empty[:_SHOWN]
        ]
        if more := len(empty) - len(notes):
            listed = "SELECT schemaname, matviewname FROM pg_matviews WHERE NOT ispopulated;"
            notes.append(f"and {more:,} more, which this lists: {listed}")
        return notes

    def _make_roles(self, backup: Backup) -> list[str]:
        if not self.order.create_roles:
            return []
        try:
            saved = backup.saved_roles()
        except BadBackupError as error:
            if not self.order.even_if_damaged:
                raise
            return [f"no roles were made: {error.why}"]
        if saved is None:
            return ["no roles were saved with this backup: none were made"]
        # A new host gets all of them: that which dumps owns nothing, and is named by no object.
        schema = None if self.order.new_host else archives.schema_text(self.driller.verifier.programs, backup.path)
        server = other_database(self.target, self.order.database)
        lacking = roles.missing(server, saved, schema)
        notes = roles.create(server, saved, lacking, self.order.privileged_roles)
        return [shortened(f"made roles: {', '.join(lacking)}"), *notes] if lacking else notes

    def _salvage(self, proof: Proof, copy: places.Copy, backup: Backup) -> Proven:
        """Restore what can be; say what is not as it was when the backup was last read whole."""
        proof.read_manifest()
        proof.restore(copy, despite_errors=True)
        proof.take_stock(copy)
        lost = list(proof.lost)
        rows = proof.found.rows_by_table() if proof.found else {}
        for name, count in (backup.witness.rows_by_table() if backup.witness else {}).items():
            if name not in rows:
                lost.append(f"table {name} is missing; it had {count:,} rows")
            elif rows[name] != count:
                lost.append(f"table {name} has {rows[name]:,} of {count:,} rows")
        lost += proof.prove_computed(copy)
        return _proven(proof, lost)

    def _swap(self) -> Data:
        order, noted = self.order, self.journal.data(Step.SWAP)
        if self._swapped(noted):
            enable_subscriptions(self.target, order.database, order.subscriptions)
            return {"notes": ["the swap had been made already when its process ended"]}
        self._hold_dumps()
        notes: list[str] = []
        if order.mode is Mode.SWAP and not order.new_host:
            notes += carry_over(self.target, order.database, order.incoming)
        disable_subscriptions(self.target, order.database)
        oids = noted["live_oid"], noted["incoming_oid"]
        swapped = swap_databases(self.target, order.database, order.incoming, order.kept, oids=oids)
        enable_subscriptions(self.target, order.database, order.subscriptions)
        self.log(f"{order.database} is live: {swapped.seconds * 1000:.0f} ms of interruption")
        return {
            "interruption_seconds": round(swapped.seconds, 4),
            "sessions_cut": swapped.cut,
            "notes": notes,
        }

    def _name(self) -> Data:
        order, made = self.order, self.journal.made
        assert made is not None
        if self.is_named:
            return {"notes": ["it had its name already when its process ended"]}
        if self._exists(order.database):
            raise CopyError(
                f"{order.incoming} is proven, and cannot be named {order.database}: there is one at {order.place}",
                why="somebody has made it meanwhile",
                fix="see what is in it (psql -l); if it is to stay, rename it: ALTER DATABASE "
                f"{sql_identifier(order.database)} RENAME TO ...; else drop it",
            )
        give_name(self.target, order.incoming, order.database, oid=made)
        return {}

    @property
    def is_named(self) -> bool:
        """Whether what was restored has the live database's name, where there was none, whoever gave it.

        Raises:
            ServerError: it cannot be asked.
        """
        order, made = self.order, self.journal.made
        return order.takes_name and made is not None and is_called(self.target, order.database, made)

    def _swapped(self, noted: Data) -> bool:
        """Whether the swap was made, whoever made it.

        Raises:
            RestoreError: somebody else has renamed or dropped both of the databases since.
        """
        order, found = self.order, self._where(noted)
        if found == "torn":
            raise RestoreError(
                f"neither the old nor the new database is called {order.database}",
                why="somebody has renamed or dropped them since",
                fix=f"if what there is now is to stay, give this {order.mode} up: {give_up(order)}; else give "
                f"{order.database} its name back by hand: psql -l; ALTER DATABASE ... RENAME TO ...",
            )
        return found == "after"

    def _where(self, noted: Data) -> Literal["before", "after", "torn"]:
        return swap_outcome(self.target, self.order.database, (noted["live_oid"], noted["incoming_oid"]))

    def _hold_dumps(self) -> None:
        """Nobody dumps a database that is dropped or renamed; a dump is waited for while the services still run."""
        if self._dumps_held is None:
            order, held = self.order, contextlib.ExitStack()
            purpose = f"the {order.mode} of {order.database}"
            lock = self.driller.catalog.lock(
                purpose, datetime.now(UTC), lambda holder: self.log(f"waiting for {holder}")
            )
            held.enter_context(lock)
            self._dumps_held = held

    def let_dumps(self) -> None:
        """Dumps may begin again. Not sooner than when it is sure that nothing is swapped back."""
        if self._dumps_held is not None:
            self._dumps_held.close()
            self._dumps_held = None

    # ---- back

    @property
    def is_lost(self) -> bool:
        """Whether the live database was dropped, if only in part, so that this restore alone can bring it back.

        Raises:
            ServerError: it cannot be asked.
        """
        if self.order.mode is not Mode.DROP or not self.journal.begun(Step.DROP) or self.is_named:
            return False
        found = database_state(self.target, self.order.database)
        return self.journal.done(Step.DROP) or found.oid != self.order.live_oid or found.invalid

    @property
    def is_torn(self) -> bool:
        """Whether a swap was begun, and neither of its databases is the live one: somebody has seen to that.

        Raises:
            ServerError: it cannot be asked.
        """
        noted = self.journal.data(Step.SWAP)
        return "incoming_oid" in noted and self._where(noted) == "torn"

    def let_go(self) -> list[BackupError]:
        """Leave the databases of a torn swap as somebody has made them, and see to the services.

        Returns:
            What is wrong, as of :meth:`put_back`.

        Raises:
            BackupError: the services could not be seen to; it can be tried again.
        """
        noted = self.journal.data(Step.SWAP)
        whose = {noted["live_oid"]: "was live before", noted["incoming_oid"]: "was to be live"}
        called = names_by_oid(self.target, whose)
        notes = [
            f"what {what} is called {called[oid]} now" if oid in called else f"what {what} is gone"
            for oid, what in whose.items()
        ]
        if stopped := ", ".join(noted.get("subscriptions", ())):
            notes.append(f"subscriptions that may be disabled: {stopped}")
        self._note(Step.SWAP, notes)
        self._end_migration()
        return self._give_replicas_back()

    def require_way_back(self) -> None:
        """Refuse to put back what cannot be.

        Raises:
            NoWayBackError: what was live before is gone, or there was nothing before.
        """
        order, noted = self.order, self.journal.data(Step.SWAP)
        why, instead = "", ""
        if self.is_named:
            why = "this restore has made it, it is live, and may have been written to"
        elif self.is_lost:
            why = "mode drop has begun to drop it, and only a backup can bring it back"
            instead = f"; or give this backup up, to restore another: {give_up(order)}"
        elif "incoming_oid" in noted and self._swapped(noted):
            kept = database_state(self.target, order.kept)
            why = "" if kept.oid == noted["live_oid"] else f"what was live before is no longer there as {order.kept}"
        if why:
            raise NoWayBackError(
                f"database {order.database} cannot be put back",
                why=why,
                fix=f"to finish it: ovia-backup restore --resume{instead}",
            )

    def put_back(self) -> list[BackupError]:
        """Make all as it was before the restore: the live database, and the services' replicas.

        Returns:
            What is wrong, and no longer ours to wait for: services that have their replicas and are not well; a copy
            that cannot be dropped.

        Raises:
            BackupError: it could not be; it can be tried again.
        """
        order, journal = self.order, self.journal
        noted = journal.data(Step.SWAP)
        if "incoming_oid" in noted:
            if self._swapped(noted):
                # Noted first: what was live may have been written to, and is not dropped.
                aside = noted.get("aside") or self._aside()
                notes = [f"what was live stays as {aside}"]
                found = [each.name for each in subscriptions_of(self.target, order.database) if each.enabled]
                try:
                    journal.write(
                        JournalMark.PUTTING_BACK,
                        Step.SWAP,
                        was_live=True,
                        aside=aside,
                        aside_subscriptions=found,
                        notes=notes,
                    )
                except VolumeError:
                    self.start_unnoted()  # what is live stays so until the volume is well
                    raise
                self._end_migration()
                self._stop_again()
                disable_subscriptions(self.target, order.database)
                self.log(f"swapping back: {order.kept} becomes {order.database}")
                oids = noted["incoming_oid"], noted["live_oid"]
                swap_databases(self.target, order.database, order.kept, aside, oids=oids)
            elif self._was_live:
                self._end_migration()
                self._note_what_stays(noted)
            enable_subscriptions(self.target, order.database, noted["subscriptions"])
        if dropped := self._dropped_subscriptions:
            there = {each.name for each in subscriptions_of(self.target, order.database)}
            lost = [f"{name} (slot {slot})" for name, slot in dropped.items() if name not in there]
            if lost:
                self._note(Step.DROP, [f"subscriptions that were dropped before the drop failed: {', '.join(lost)}"])
        # People wait for the services, and nobody for the copy to go.
        problems = self._give_replicas_back()
        if order.mode is not Mode.UNDO and not self._was_live:
            problems += self._copy_left()
        return problems

    @property
    def _was_live(self) -> bool:
        """Whether what was to be live is known to have been, whatever it is called now: it may have been written to."""
        return self.journal.done(Step.SWAP) or self.journal.data(Step.SWAP).get("was_live", False)

    def _note_what_stays(self, noted: Data) -> None:
        """Say what has become of what was live, where it was not this process that put it aside."""
        order, oid = self.order, noted["incoming_oid"]
        name = names_by_oid(self.target, [oid]).get(oid, "")
        if name == noted.get("aside"):
            return  # a process that was killed did, and has said so
        notes, found = ["what was live for a while is gone: somebody has dropped it"], []
        if name:
            notes = [f"what was live for a while stays as {name}"]
            found = [each.name for each in subscriptions_of(self.target, name) if each.enabled]
            if before_at(name, order.database) is None:
                rename = f"ALTER DATABASE {sql_identifier(name)} RENAME TO {sql_identifier(self._aside())}"
                notes = [f"{notes[0]}; for undo-restore to know it: {rename}"]
        for note in notes:
            self.log(note)
        with contextlib.suppress(VolumeError):  # the way back does not wait for it
            self.journal.write(
                JournalMark.PUTTING_BACK, Step.SWAP, was_live=True, stays=name, aside_subscriptions=found, notes=notes
            )
        if found:
            disable_subscriptions(self.target, name)

    def require_still_live(self) -> None:
        """Refuse to go on after a swap that somebody has made undone by hand.

        Raises:
            RestoreError: what was live before is so again; or neither is.
        """
        order = self.order
        if self.journal.done(Step.SWAP) and not self._swapped(self.journal.data(Step.SWAP)):
            raise RestoreError(
                f"database {order.database} is not what the {order.mode} made live",
                why="somebody has gone back to what was live before, by renaming",
                fix="put everything back: ovia-backup restore --abort",
            )

    def _give_replicas_back(self) -> list[BackupError]:
        """As the services had them before; returns what is wrong with those that are not well."""
        before = self.journal.data(Step.STOP).get("replicas", {})
        if self.journal.begun(Step.STOP) and (self.by_hand or not before):
            counts = {name: before.get(name) for name in self.order.services}
            self._note(Step.START, [f"to be started by hand: {self.manager.scale_command(counts)}"])
        return [] if self.by_hand else [*self._scale(before)]

    def _copy_left(self) -> list[BackupError]:
        """Drop the copy. If somebody holds it, it stays: no reason to let nobody begin another restore."""
        order = self.order
        try:
            self.drop_copy()
        except (ServerUnreachableError, ConnectionLostError):
            raise
        except BackupError as error:
            drop = f"DROP DATABASE {sql_identifier(order.incoming)} WITH (FORCE)"
            return [CopyError(f"a copy is left, to be dropped by a superuser: {drop}", why=error.account)]
        return []

    def _note(self, step: Step, notes: list[str]) -> None:
        for note in notes:
            self.log(note)
        with contextlib.suppress(VolumeError):  # the way back does not wait for it
            self.journal.write(JournalMark.PUTTING_BACK, step, notes=notes)

    def drop_copy(self) -> None:
        """Drop what this restore has made, which was never live.

        Raises:
            BackupError: it could not be.
        """
        if self.journal.begun(Step.RESTORE) or self.journal.begun(Step.DRILL):
            self.log(f"dropping {self.order.incoming}")
            try:
                self._copy(self.order.incoming).drop(self.journal.made)
            except CopyError as error:
                self.log(error.account)  # not ours, and nothing of ours is left

    def _aside(self) -> str:
        """What a database is called that was live, and is no longer: one that is kept, like any other.

        Never by a name that it had before: what people were told of that one was another state of it.
        """
        at = datetime.now(UTC)
        while (name := before_name(self.order.database, at)) == self.order.incoming or self._exists(name):
            at += timedelta(seconds=1)
        return name

    def _stop_again(self) -> None:
        if not self.journal.begun(Step.START) or self.by_hand:
            return
        try:
            self._stop()
        except ServiceError as error:
            self.log(error.account)  # the swap ends its sessions, whatever becomes of it


def _proven(proof: Proof, lost: Sequence[str] = ()) -> Proven:
    return Proven(
        lines=proof.lines_in_order,
        tables=proof.tables,
        phases=proof.seconds,
        versions=proof.versions,
        database_bytes=proof.copy_bytes,
        lost=tuple(lost),
    )


@contextlib.contextmanager
def _collected(problems: list[E], kind: type[E]) -> Iterator[None]:
    try:
        yield
    except kind as problem:
        problems.append(problem)


def again(order: Order) -> str:
    """The command that begins such a swap, undo or drop anew."""
    if order.mode is Mode.UNDO:
        return f"ovia-backup undo-restore --kept {shell_word(order.incoming)}"
    return Wishes(backup=order.backup_path, mode=order.mode).command()


def give_up(order: Order) -> str:
    """The command that ends a restore which can neither be finished nor put back."""
    return f"ovia-backup restore --abort --yes-destroy {shell_word(order.database)}"

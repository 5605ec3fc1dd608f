"""The step that restores the backup beside the live database, or in its place, and compares it with the backup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import (
    BackupError,
    BadBackupError,
    ConnectionLostError,
    CopyError,
    RestoreError,
    ServerUnreachableError,
)
from ovia_backup_dagster.core.human_text import joined, shortened
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import other_database
from ovia_backup_dagster.proof import roles
from ovia_backup_dagster.proof import target as targets
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.source_settings import take_out
from ovia_backup_dagster.restoration.database_settings import Properties, apply
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.request import Wishes, command_to_repeat
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import DropData, Proven, RestoreData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.progress import is_lost, was_live
from ovia_backup_dagster.restoration.steps.step_context import Work
from ovia_backup_dagster.restoration.swap import database_state

_SHOWN = 10
#: Checks that only a drill makes, because they alter the copy or pass it to other programs.
_NOT_IN_A_RESTORE = {
    Check.CONTAINED: "code in the backup runs on this server, as the role that restores",
    Check.CONTROL: "no row of a database that is to be live is deleted; the monthly drill does that",
    Check.OWN_CHECK: "DRILL_CHECK_COMMAND is for copies; the services' own health is checked at the end",
}


class RestoreStep(TakenStep):
    """Restores a copy, and compares it with the backup."""

    data = RestoreData

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"restore into {order.incoming}" + ("" if order.even_if_damaged else ", and prove every row of it")

    def note(self) -> None:
        work, order = self.work, self.work.order
        if work.journal.attempts(self.data.step) == 0 and work.exists(order.incoming):
            raise CopyError(
                f"there is a database {order.incoming} at {order.place} already",
                why="another session created it meanwhile",
                fix="psql -l; then begin again" + ("" if order.mode is Mode.NEW else f": {command_to_repeat(order)}"),
            )

    def take(self) -> RestoreData:
        work = self.work
        assert work.backup is not None
        work.let_dumps()  # a restore may take hours, and the backup's verdict is written under the dumps' lock
        order, backup, journal = work.order, work.backup, work.journal
        notes = make_roles(work, backup)
        copy = copy_to_make(work)
        if journal.attempts(self.data.step) > 1:
            copy.drop(journal.made)  # left by a killed attempt
        proof = self._proof(backup)
        proven = _salvage(proof, copy, backup) if order.even_if_damaged else self._prove(proof, copy, backup)
        notes += self._to_refresh(proof)
        # Until now its connection limit identifies the database as this program's; from now on, its OID does.
        made = database_state(work.target, order.incoming).oid
        journal.write(JournalMark.NOTED, self.data.step, RestoreData(made=made))
        take_out(copy)
        copy.release()
        if order.new_host or order.mode is Mode.NEW:
            # There is no database to take properties from: the backup's own are applied.
            script = archives.database_text(work.driller.verifier.programs, backup.path)
            notes += copy.configure(script, swapped=order.mode is Mode.SWAP)
        elif order.mode is Mode.DROP:
            properties = Properties.from_json(journal.data(DropData).properties)
            notes += apply(work.target, properties, order.incoming)
        return RestoreData(proven=proven, notes=tuple(notes))

    def clean_up(self) -> list[BackupError]:
        """Drop the copy. If it cannot be dropped, only report that: another restore is still possible."""
        work, order = self.work, self.work.order
        if was_live(work):
            return []
        try:
            drop_copy(work)
        except (ServerUnreachableError, ConnectionLostError):
            raise
        except BackupError as error:
            drop = f"DROP DATABASE {sql_identifier(order.incoming)} WITH (FORCE)"
            return [CopyError(f"a copy is left, to be dropped by a superuser: {drop}", why=error.account)]
        return []

    def _prove(self, proof: Proof, copy: targets.Copy, backup: Backup) -> Proven:
        work, order = self.work, self.work.order
        witness = proof.read_backup()
        if witness is None:
            raise RestoreError(
                f"{backup} is damaged",
                why="; ".join(line.text for line in proof.lines if line.result is Result.FAILED),
                fix=""
                if is_lost(work)
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
                if is_lost(work)
                else "nothing was replaced; choose another: ovia-backup list; or see: ovia-backup drill "
                + work.driller.catalog.word(backup),
            )
        return proven

    def _proof(self, backup: Backup) -> Proof:
        order, driller = self.work.order, self.work.driller
        rescue = Wishes(
            backup=order.backup_path,
            mode=Mode.NEW,
            new_host=order.new_host,
            create_roles=order.create_roles and not order.new_host,
            even_if_damaged=True,
        )
        return Proof(driller.verifier, driller.source, backup, self.work.log, jobs=order.jobs, rescue=rescue.command())

    def _to_refresh(self, proof: Proof) -> list[str]:
        """Instructions for the materialized views that are empty because they could not be refreshed."""
        becomes = self.work.order.becomes
        empty = [view for view in proof.unrefreshed if not view.refreshed]
        notes = [
            f"to be refreshed by hand, in database {becomes}: {view.command} It could not be refreshed: {view.said}"
            for view in empty[:_SHOWN]
        ]
        if more := len(empty) - len(notes):
            listed = "SELECT schemaname, matviewname FROM pg_matviews WHERE NOT ispopulated;"
            notes.append(f"and {more:,} more, which this lists: {listed}")
        return notes


def copy_to_make(work: Work) -> targets.Copy:
    """The copy to restore into. It belongs to the live database's owner: the restoring role may have only its rights.

    If there is no live database, the restoring role owns the copy until the backup's own owner is applied.
    """
    order, copy = work.order, work.copy(work.order.incoming)
    noted = work.journal.data(DropData).properties
    owner = Properties.from_json(noted).owner if noted else database_state(work.target, order.database).owner
    return replace(copy, owner=owner)


def drop_copy(work: Work) -> None:
    """Drop the copy that this restore has made, and that was never live.

    Raises:
        BackupError: it could not be dropped.
    """
    if work.journal.begun(Step.RESTORE) or work.journal.begun(Step.DRILL):
        work.log(f"dropping {work.order.incoming}")
        try:
            work.copy(work.order.incoming).drop(work.journal.made)
        except CopyError as error:
            work.log(error.account)  # the database is another session's, so no copy of this restore is left


def make_roles(work: Work, backup: Backup) -> list[str]:
    """Create the roles that the server lacks, if the order says so; returns notes for the operator.

    Raises:
        BackupError: the saved roles cannot be read, or a role cannot be created.
    """
    order = work.order
    if not order.create_roles:
        return []
    try:
        saved = backup.saved_roles()
    except BadBackupError as error:
        if not order.even_if_damaged:
            raise
        return [f"no roles were created: {error.why}"]
    if saved is None:
        return ["no roles were saved with this backup: none were created"]
    # A new host gets all saved roles: the role that dumps owns nothing, and no object names it.
    schema = None if order.new_host else archives.schema_text(work.driller.verifier.programs, backup.path)
    server = other_database(work.target, order.database)
    lacking = roles.missing(server, saved, schema)
    notes = roles.create(server, saved, lacking, order.privileged_roles)
    return [shortened(f"created roles: {', '.join(lacking)}"), *notes] if lacking else notes


def _salvage(proof: Proof, copy: targets.Copy, backup: Backup) -> Proven:
    """Restore as much as possible; report what differs from the backup's last complete reading."""
    backup.require_stated_archive()
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


def _proven(proof: Proof, lost: Sequence[str] = ()) -> Proven:
    return Proven(
        lines=proof.lines_in_order,
        tables=proof.tables,
        phases=proof.seconds,
        versions=proof.versions,
        database_bytes=proof.copy_bytes,
        lost=tuple(lost),
    )

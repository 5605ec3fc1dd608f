"""The step before a database is dropped: the backup must restore in a throwaway cluster and on this server."""

from __future__ import annotations

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.source_settings import put_in_effect, settings_of_backup
from ovia_backup_dagster.restoration.request import command_to_repeat
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.step_data import DrillData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.restore_copy import copy_to_make, make_roles


class DrillStep(TakenStep):
    """Drills the backup, and rehearses its restore."""

    data = DrillData

    @classmethod
    def describe(cls, order: Order) -> str:
        del order
        return "prove in a throwaway cluster that the backup restores, and here that this role may restore it"

    def take(self) -> DrillData:
        work = self.work
        assert work.backup is not None
        work.let_dumps()  # a drill may take hours, and the backup's verdict is written under the dumps' lock
        choice = Choice(Where.THROWAWAY, work.order.jobs)
        evidence = work.driller.drill(
            work.backup, choice, launched_by=work.order.launched_by, run_id=work.order.run_id, log=work.log
        )
        if evidence.trouble:
            raise evidence.trouble
        return DrillData(evidence=evidence.filename, notes=tuple(self._rehearse(work.backup)))

    def _rehearse(self, backup: Backup) -> list[str]:
        """Restore all but the data on the target server: the drill ran as a superuser of its own server."""
        work = self.work
        notes = make_roles(work, backup)
        copy, programs = copy_to_make(work), work.driller.verifier.programs
        copy.drop()  # left by a killed attempt
        script = archives.database_text(programs, backup.path)
        notes += copy.create(script)
        try:
            listing = archives.contents_list(programs, backup.path)
            settings = put_in_effect(copy, settings_of_backup(backup, script, listing))
            restorer = Restorer(programs, copy.connection, copy.name, work.order.jobs, live=True, settings=settings)
            restorer.rehearse(backup.path, listing)
        except RestoreError as error:
            fix = "nothing was dropped; let a superuser restore it (RESTORE_POSTGRES_USER), then: " + command_to_repeat(
                work.order
            )
            raise RestoreError(error.what, why=error.why, said=error.said, fix=fix) from None
        finally:
            copy.drop()
        return notes

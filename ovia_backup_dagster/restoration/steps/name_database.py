"""The step that gives the restored database the live name, if no database has that name."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import CopyError
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.step_data import NameData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.progress import is_named
from ovia_backup_dagster.restoration.swap import give_name


class NameStep(TakenStep):
    """Renames the restored database; from then on it is live, and the restore cannot be put back."""

    data = NameData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return order.takes_name

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"rename {order.incoming} to {order.database}"

    def take(self) -> NameData | None:
        work = self.work
        order, made = work.order, work.journal.made
        assert made is not None
        if is_named(work):
            return NameData(notes=("it had its name already when its process ended",))
        if work.exists(order.database):
            raise CopyError(
                f"{order.incoming} is proven, and cannot be named {order.database}: one exists at {order.place}",
                why="another session created it meanwhile",
                fix="see what is in it (psql -l); if it is to stay, rename it: ALTER DATABASE "
                f"{sql_identifier(order.database)} RENAME TO ...; else drop it",
            )
        give_name(work.target, order.incoming, order.database, oid=made)
        return None

"""The step that copies chosen tables from the restored copy into a schema of the live database, and drops the copy."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.restore_copy import drop_copy
from ovia_backup_dagster.restoration.swap import database_state
from ovia_backup_dagster.restoration.table_copy import TableCopied, copy_tables, drop_schema


class TablesData(StepData):
    """Attributes:
    rows: of each copied table.
    """

    step = "copy tables"

    rows: dict[str, int] | None = None


class TablesStep(TakenStep):
    """Copies the tables, all or none; the rows that the live tables have are only read."""

    data = TablesData

    @classmethod
    def needed(cls, order: Order) -> bool:
        return bool(order.tables)

    @classmethod
    def describe(cls, order: Order) -> str:
        return (
            f"copy {', '.join(order.tables)} from there into the new schema {order.tables_schema} of "
            f"{order.database}, compare every row, and drop {order.incoming}"
        )

    def take(self) -> None:
        work, order = self.work, self.work.order
        if work.journal.data(TablesData).rows is None:
            work.live_oid()
            live, schema, mark = work.target, order.tables_schema, self._mark
            if drop_schema(live, schema, mark):
                work.log(f"dropped schema {schema}, which a killed attempt left")
            owner = database_state(live, order.database).owner
            copied = copy_tables(live.to(order.incoming), live, order.tables, schema, mark, owner, work.log)
            rows = {each.name: each.rows for each in copied}
            notes = (*(note for each in copied for note in _notes(order, each)), _undo(order))
            work.journal.write(JournalMark.NOTED, self.data.step, TablesData(rows=rows, notes=notes))
        drop_copy(work)

    def put_back(self) -> list[BackupError]:
        if self.work.journal.begun(self.data.step):
            drop_schema(self.work.target, self.work.order.tables_schema, self._mark)
        return []

    @property
    def _mark(self) -> str:
        return f"ovia-backup restore {self.work.order.filename}"


def _notes(order: Order, copied: TableCopied) -> list[str]:
    schema = order.tables_schema
    note = f"{copied.name}: {copied.rows:,} rows, as they were, are in schema {schema}"
    if not copied.insert:
        return [f"{note}; the live database has no such table with a primary key, so compare by hand"]
    if copied.missing is None:
        note += "; it is not known how many of them are missing now"
    else:
        note += f"; {copied.missing:,} of them are missing now, by primary key"
    return [note, f"to insert those: psql -d {shell_word(order.database)} -c {shell_word(copied.insert)}"]


def _undo(order: Order) -> str:
    drop = f"DROP SCHEMA {sql_identifier(order.tables_schema)} CASCADE"
    return (
        f"no table of {order.database} was changed; when the schema is not needed any more: "
        f"psql -d {shell_word(order.database)} -c {shell_word(drop)}"
    )

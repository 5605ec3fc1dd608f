"""The step that drops the live database, in mode drop. It records the database-level settings first."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.restoration.database_settings import properties
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.step_data import DropData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.subscriptions import drop_subscriptions, subscriptions_of


class DropStep(TakenStep):
    """Drops the live database."""

    data = DropData

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"DROP DATABASE {order.database}: its data is gone then"

    def note(self) -> DropData | None:
        work = self.work
        noted, database = work.journal.data(DropData), work.order.database
        work.refuse_obstacles(noted)
        if noted.properties:
            return None
        work.live_oid()
        found = subscriptions_of(work.target, database) if work.exists(database) else []
        return DropData(
            properties=properties(work.target, database).to_json(),
            # They must be dropped before the database, and only they know their slots.
            dropped_subscriptions={each.name: each.slot for each in found},
        )

    def take(self) -> DropData:
        work = self.work
        work.hold_dumps()
        if work.exists(work.order.database):
            drop_subscriptions(work.target, work.order.database)
        work.copy(work.order.database).drop(work.order.live_oid)
        slots = filter(None, work.journal.data(DropData).dropped_subscriptions.values())
        return DropData(notes=tuple(f"to be dropped on its publisher: replication slot {slot}" for slot in slots))

    def put_back(self) -> list[BackupError]:
        """A dropped database cannot be brought back. If the drop failed, note the subscriptions that are gone."""
        work = self.work
        if dropped := work.journal.data(DropData).dropped_subscriptions:
            there = {each.name for each in subscriptions_of(work.target, work.order.database)}
            lost = [f"{name} (slot {slot})" for name, slot in dropped.items() if name not in there]
            if lost:
                work.note(
                    self.data.step, [f"subscriptions that were dropped before the drop failed: {', '.join(lost)}"]
                )
        return []

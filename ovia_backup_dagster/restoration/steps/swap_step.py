"""The step that makes the restored database live in place of the old one, and swaps the two back.

``swap`` renames the databases.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.errors import BackupError, VolumeError
from ovia_backup_dagster.core.naming import before_at, before_name
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.restoration.activity import written
from ovia_backup_dagster.restoration.database_settings import carry_over
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.restoration.step_data import SwapData
from ovia_backup_dagster.restoration.steps.journal_step import TakenStep
from ovia_backup_dagster.restoration.steps.progress import is_swapped, was_live
from ovia_backup_dagster.restoration.steps.services import end_migration, start_unnoted, stop_again
from ovia_backup_dagster.restoration.subscriptions import disable_subscriptions, enable_subscriptions, subscriptions_of
from ovia_backup_dagster.restoration.swap import database_state, names_by_oid, swap_databases


class SwapStep(TakenStep):
    """Swaps the live database and the incoming one."""

    data = SwapData

    @classmethod
    def describe(cls, order: Order) -> str:
        return f"swap names: {order.database} becomes {order.kept}, {order.incoming} becomes {order.database}"

    def note(self) -> SwapData | None:
        work, order = self.work, self.work.order
        noted = work.journal.data(SwapData)
        work.refuse_obstacles(noted)
        if noted.oids is not None:
            return None
        incoming = database_state(work.target, order.incoming).oid
        if incoming != (order.incoming_oid or work.journal.made):
            raise work.replaced(order.incoming)
        return SwapData(
            live_oid=work.live_oid(),
            incoming_oid=incoming,
            subscriptions=self._enabled(order.database),
            # Read now, while no session writes to the database.
            counters=written(work.target, order.incoming).model_dump(mode="json"),
        )

    def take(self) -> SwapData:
        work, order = self.work, self.work.order
        oids = work.journal.data(SwapData).oids
        assert oids is not None  # noted before the step is taken
        if is_swapped(work, oids):
            enable_subscriptions(work.target, order.database, order.subscriptions)
            return SwapData(notes=("the swap had been made already when its process ended",))
        work.hold_dumps()
        notes: list[str] = []
        if order.mode is Mode.SWAP and not order.new_host:
            notes += carry_over(work.target, order.database, order.incoming)
        disable_subscriptions(work.target, order.database)
        swapped = swap_databases(work.target, order.database, order.incoming, order.kept, oids=oids)
        enable_subscriptions(work.target, order.database, order.subscriptions)
        work.log(f"{order.database} is live: {swapped.seconds * 1000:.0f} ms of interruption")
        return SwapData(interruption_seconds=round(swapped.seconds, 4), sessions_cut=swapped.cut, notes=tuple(notes))

    def put_back(self) -> list[BackupError]:
        work = self.work
        noted = work.journal.data(SwapData)
        if noted.oids is not None:
            if is_swapped(work, noted.oids):
                self._swap_back(noted, noted.oids)
            elif was_live(work):
                end_migration(work)
                self._note_what_stays(noted, noted.oids[1])
            enable_subscriptions(work.target, work.order.database, noted.subscriptions)
        return []

    def _swap_back(self, noted: SwapData, oids: tuple[int, int]) -> None:
        work, order = self.work, self.work.order
        # Noted first: the database that was live for a while may hold new rows, so it is not dropped.
        aside = noted.aside or self._aside()
        back = SwapData(
            was_live=True,
            aside=aside,
            aside_subscriptions=self._enabled(order.database),
            notes=(f"what was live stays as {aside}",),
        )
        try:
            work.journal.write(JournalMark.PUTTING_BACK, self.data.step, back)
        except VolumeError:
            start_unnoted(work)  # the restored database stays live until the journal can be written
            raise
        end_migration(work)
        stop_again(work)
        disable_subscriptions(work.target, order.database)
        work.log(f"swapping back: {order.kept} becomes {order.database}")
        swap_databases(work.target, order.database, order.kept, aside, oids=(oids[1], oids[0]))

    def _note_what_stays(self, noted: SwapData, oid: int) -> None:
        """Note the name of the database that was live for a while, if this process did not move it aside."""
        work, order = self.work, self.work.order
        name = names_by_oid(work.target, [oid]).get(oid, "")
        if name and name == noted.aside:
            return  # a killed process moved it aside, and noted that
        notes: list[str] = ["what was live for a while is gone: it was dropped by hand"]
        found: tuple[str, ...] = ()
        if name:
            notes = [f"what was live for a while stays as {name}"]
            found = self._enabled(name)
            if before_at(name, order.database) is None:
                rename = f"ALTER DATABASE {sql_identifier(name)} RENAME TO {sql_identifier(self._aside())}"
                notes = [f"{notes[0]}; for undo-restore to know it: {rename}"]
        for note in notes:
            work.log(note)
        stays = SwapData(was_live=True, stays=name, aside_subscriptions=found, notes=tuple(notes))
        with contextlib.suppress(VolumeError):  # a full volume must not stop putting back
            work.journal.write(JournalMark.PUTTING_BACK, self.data.step, stays)
        if found:
            disable_subscriptions(work.target, name)

    def _enabled(self, database: str) -> tuple[str, ...]:
        return tuple(each.name for each in subscriptions_of(self.work.target, database) if each.enabled)

    def _aside(self) -> str:
        """A new name for the database that was live for a while: it is kept, like any replaced database.

        Never an earlier name of that database: messages about that name meant an earlier state of it.
        """
        order, at = self.work.order, datetime.now(UTC)
        while (name := before_name(order.database, at)) == order.incoming or self.work.exists(name):
            at += timedelta(seconds=1)
        return name

"""The context that the steps of one restore share: their dependencies, the dumps' lock, and common refusals.

Each step's own work is in its own module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import RestoreError, VolumeError
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof import target as targets
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.request import command_to_repeat
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.restoration.service_manager import ServiceManager
from ovia_backup_dagster.restoration.step_data import StepData
from ovia_backup_dagster.restoration.swap import database_state, obstacles


@dataclass(slots=True)
class Work:
    """The dependencies of the steps of one restore.

    Attributes:
        driller: catalog and programs; it drills before a database is dropped.
        target: the live database, as the role that restores.
        manager: the service manager.
        health_url: the current ``HEALTH_URL``; the journal stores it without its secrets.
        journal: the steps taken so far.
        backup: the backup to restore; ``None`` for an undo.
        log: receives progress lines.
        by_hand: an operator handles the services; the steps only print the commands.
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

    def exists(self, database: str) -> bool:
        return database_state(self.target, database).exists

    def copy(self, database: str) -> targets.Copy:
        """A database on the target server, as a copy to restore into or to drop."""
        return targets.live_copy(self.target, database, f"database {database} on {self.order.place}")

    def live_oid(self) -> int:
        """The OID of the live database, which must be the one that the operator confirmed.

        Raises:
            RestoreError: another database has the live name, or none has.
        """
        found = database_state(self.target, self.order.database)
        if not found.exists or found.oid != self.order.live_oid:
            raise self.replaced(self.order.database)
        return found.oid

    def replaced(self, database: str) -> RestoreError:
        """The error for a database that is not the one that the restore began with."""
        return RestoreError(
            f"database {database} is not the one that the {self.order.mode} began with",
            why="another session dropped, created or renamed it meanwhile",
            fix=f"psql -l; then begin again: {command_to_repeat(self.order)}",
        )

    def refuse_obstacles(self, noted: StepData) -> None:
        """Check the obstacles again before the first disruptive step, then hold off dumps. The plan may be hours old.

        Args:
            noted: data from an earlier attempt at the step; if there is any, nothing is checked again.

        Raises:
            BackupError: a database cannot be renamed or dropped now.
            LockHeldError: a running dump did not end in time.
        """
        order = self.order
        if noted.model_fields_set or order.mode is Mode.NEW:
            return
        for name in (order.database, order.incoming):
            for obstacle in obstacles(self.target, name, mode_needs_swap=bool(order.kept)):
                raise obstacle
        self.hold_dumps()

    def hold_dumps(self) -> None:
        """Hold the dumps' lock, so that no dump of the outgoing database begins. Waits for a running dump."""
        if self._dumps_held is None:
            order, held = self.order, contextlib.ExitStack()
            purpose = f"the {order.mode} of {order.database}"
            lock = self.driller.catalog.lock(
                purpose, datetime.now(UTC), lambda holder: self.log(f"waiting for {holder}")
            )
            held.enter_context(lock)
            self._dumps_held = held

    def let_dumps(self) -> None:
        """Allow dumps again. Call this only when a swap back is ruled out."""
        if self._dumps_held is not None:
            self._dumps_held.close()
            self._dumps_held = None

    def note(self, step: str, notes: Sequence[str]) -> None:
        """Log notes while putting back, and write them to the journal if the volume allows it."""
        for note in notes:
            self.log(note)
        with contextlib.suppress(VolumeError):
            self.journal.write(JournalMark.PUTTING_BACK, step, StepData(notes=tuple(notes)))

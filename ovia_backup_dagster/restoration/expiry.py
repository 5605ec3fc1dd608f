"""The lifetime of replaced databases: lists them, drops them on request, announces the drop, and drops expired ones.

``replaced_databases`` finds and drops them on the server; ``record`` decides when one has expired.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.errors import BackupError, RestoreRefusedError, VolumeError
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.restoration import replaced_databases
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.plan import confirm
from ovia_backup_dagster.restoration.record import Fate, Record, fate
from ovia_backup_dagster.restoration.replaced_databases import Kept
from ovia_backup_dagster.restoration.restore_order import Step
from ovia_backup_dagster.restoration.swap import database_state
from ovia_backup_dagster.restoration.unfailing_log import never_failing


@dataclass(frozen=True, slots=True)
class KeptDatabases:
    """The databases that restores have replaced, and the copies that restores left behind.

    Attributes:
        target: the live database, as the role that restores.
        folder: holds the announcements and records.
    """

    target: Connection
    folder: RestoreFolder

    def newest_first(self) -> list[tuple[Kept, datetime | None]]:
        """The databases that can be swapped back, newest first; each with the time of the swap (UTC), if known.

        Raises:
            ServerError: no connection, or it broke.
        """
        swaps: dict[str, datetime | None] = {}
        with contextlib.suppress(VolumeError):  # the list does not depend on the records
            swaps = {record.kept: record.swapped_at for record in self.folder.newest_first()}
        found = replaced_databases.kept(self.target, self.target.database)
        return [(each, swaps.get(each.name)) for each in found]

    def copies_left(self) -> list[str]:
        """Copies that could not be dropped when their restore was put back, according to the records.

        Raises:
            ServerError: no connection, or it broke.
        """
        newest: dict[str, Record] = {}
        with contextlib.suppress(VolumeError):  # unreadable records are reported as a fault of the volume
            for record in self.folder.newest_first():
                newest.setdefault(record.order.incoming, record)
        return [
            name
            for name, record in newest.items()
            # A database that an undo would have made live is not a copy; one that was live for a while is kept.
            if record.outcome == "put back" and Step.RESTORE in record.order.steps
            if name not in (record.order.database, record.kept)
            if database_state(self.target, name).exists
        ]

    def find(self, name: str) -> Kept:
        """The kept database that the operator wants to drop.

        Args:
            name: its name; empty if there is only one.

        Raises:
            RestoreRefusedError: there is none with this name, or the name is empty and there is not exactly one.
        """
        found = replaced_databases.kept(self.target, self.target.database)
        if name or len(found) == 1:
            return replaced_databases.replaced_database(found, name or found[0].name)
        raise RestoreRefusedError(
            "no database was dropped: several are kept, none was named" if found else "there is no database to drop",
            why=f"kept: {', '.join(each.name for each in found) or 'none'}",
            fix="ovia-backup undo-restore --forget --yes-destroy NAME" if found else "ovia-backup undo-restore --list",
        )

    def drop(self, name: str, confirmation: str) -> list[str]:
        """Drop a kept database; returns what is left to do on other servers.

        Args:
            name: its name.
            confirmation: its name, as the operator repeated it.

        Raises:
            RestoreRefusedError: there is none with this name, it was not confirmed, or a restore is unfinished.
        """
        replaced_databases.replaced_database(replaced_databases.kept(self.target, self.target.database), name)
        confirm(name, confirmation, f"--yes-destroy {shell_word(name)}")
        return self._drop(name)

    def _drop(self, name: str) -> list[str]:
        self.folder.prepare()
        with self.folder.lock("dropping a kept database", datetime.now(UTC)):
            if unfinished := self.folder.unfinished():
                raise unfinished.unfinished
            return replaced_databases.drop_replaced(self.target, self.target.database, name)

    def expire(self, keep: timedelta, tell: Callable[[str, str], bool], now: datetime, log: Log) -> None:
        """Announce that kept databases will be dropped, and drop those that have expired.

        Args:
            keep: how long they are kept; zero keeps them forever.
            tell: sends a title and a text; returns whether a recipient accepted them.
            now: the present (UTC).
            log: receives progress lines.

        Raises:
            BackupError: a database could not be dropped.
        """
        log = never_failing(log)
        since = {each: swapped_at or each.at for each, swapped_at in self.newest_first()}
        errors: list[BackupError] = []
        for each, replaced_at in since.items():
            try:
                self._expire(each, list(since), replaced_at, keep, tell, now, log)
            except BackupError as error:  # the others may have expired, too
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
                f"To go back to it: {replaced_databases.way_back(found, each.name)}. To keep it for good: "
                "ALTER DATABASE ... RENAME TO another name."
            )
            if tell(title, text):
                folder.prepare()
                folder.announce(each.name, now)
                log(title)
            else:
                log(f"{each.name} stays: no one could be notified that it will be dropped")
        elif what is Fate.DROP:
            left = self._drop(each.name)
            text = "; ".join(left) or f"the restore of {replaced_at:%Y-%m-%d %H:%M} UTC cannot be undone any more"
            log(f"dropped {each.name}: {text}")
            tell(f"database {each.name} was dropped", text)

"""The three operations on a remote, each with its entry in what this host knows of the remote."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, LockHeldError
from ovia_backup_dagster.offsite.copying import Copied, Copier
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.remote_pruning import RemotePruned, RemotePruner
from ovia_backup_dagster.offsite.remote_record import RemoteRecord, RemoteRecords
from ovia_backup_dagster.offsite.remote_verification import RemoteVerified, RemoteVerifier, vanished
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.statement_log import StatementLog

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemoteOperations:
    """Copying to one remote, verification and retention there.

    Attributes:
        policy: the remote's retention.
    """

    catalog: Catalog
    log: StatementLog
    remote: Remote
    age: Age
    policy: Policy

    @property
    def record(self) -> RemoteRecord:
        """What this host knows of the remote.

        Raises:
            VolumeError: it cannot be read.
        """
        return self._records.read(str(self.remote))

    @property
    def _records(self) -> RemoteRecords:
        return RemoteRecords(self.catalog)

    def copy(self, now: datetime, log: Log) -> Copied:
        """Send what the remote lacks: as ``Copier.copy``.

        Raises:
            BackupError: as there; or an archive here is damaged, after all others were sent.
        """
        with self._recorded(now):
            expected = self.record.copies
            copied = Copier(self.catalog, self.log, self.remote, self.age, self.policy).copy(now, log)
            gone = tuple(vanished(self.remote, expected, copied.before))
            for line in gone:
                log(line)
            changes = {"findings": gone} if gone else {}
            self._update(copies=copied.copies, copies_bytes=copied.copies_bytes, copied_at=now, **changes)
            if copied.failed:
                raise next(iter(copied.failed.values()))
        return copied

    def verify(self, now: datetime, log: Log) -> RemoteVerified:
        """Check the remote: as ``RemoteVerifier.verify``."""
        with self._recorded(now):
            found = RemoteVerifier(self.catalog, self.log, self.remote, self.age, self.record).verify(now, log)
            self._update(
                copies=found.copies,
                copies_bytes=found.copies_bytes,
                verified_at=now,
                findings=found.findings,
                read_back=found.read_back or self.record.read_back,
                free_bytes=found.free_bytes,
            )
        return found

    def prune(self, now: datetime, log: Log, *, dry_run: bool = False) -> RemotePruned:
        """Remove what the retention does not keep: as ``RemotePruner.prune``."""

        def forget(archive: str) -> None:
            self._update(copies=tuple(each for each in self.record.copies if each != archive))

        pruner = RemotePruner(self.catalog, self.log, self.remote, self.policy)
        with self._recorded(now):
            pruned = pruner.prune(now, log, dry_run=dry_run, forget=forget)
            if not dry_run:
                self._update(copies=pruned.kept, copies_bytes=pruned.kept_bytes)
        return pruned

    def _update(self, **changes: object) -> None:
        self._records.update(str(self.remote), **changes)

    @contextlib.contextmanager
    def _recorded(self, now: datetime) -> Iterator[None]:
        """Record whether the operation failed; another process at work is no failure."""
        try:
            yield
        except LockHeldError:
            raise
        except BackupError as error:
            self._update(failed_at=now, failure=error.account)
            raise
        self._update(failure="")

"""The errors of WAL archiving and point-in-time recovery; ``errors`` has the base classes and all others."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError, NotFreshError, RestoreError, RestoreRefusedError


class WalError(BackupError):
    """WAL cannot be received or archived."""


class SlotLostError(WalError):
    """The server no longer has the WAL that the replication slot was to retain."""


class ServerReplacedError(WalError):
    """Another cluster, or another timeline than the archive's, answers under the server's address."""


class SegmentDamagedError(WalError):
    """A WAL segment does not match its name, or a record in it has a wrong checksum."""


class WalGapError(WalError):
    """Segments are missing in the WAL archive: no instant between them can be recovered."""


class ReceiverStoppedError(NotFreshError):
    """The WAL receiver does not report: it is not running, or hangs."""


class RecoveryPointError(NotFreshError):
    """More recent changes than RPO_MAX_SECONDS allows would be lost with the server."""


class BaseBackupError(BackupError):
    """A base backup could not be made, or is damaged or incomplete."""


class BaseBackupOverdueError(NotFreshError):
    """There is no base backup, or none that was verified or drilled in time."""


class RecoveryTargetError(RestoreRefusedError):
    """The instant to recover to is not in a recovery window, or is not one instant."""


class RecoveryError(RestoreError):
    """PostgreSQL could not recover a base backup to its target."""

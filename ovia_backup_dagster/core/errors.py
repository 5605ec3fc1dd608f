"""The exception tree. Every error that a user can meet is one of these.

Each says in one line what happened, why, and what to do next, without a secret. Raise the class that names the cause,
and do not log it as well. Any other exception that escapes is a defect of ours, and may show a traceback.
"""

from __future__ import annotations

from ovia_backup_dagster.core.human_text import MOST, shortened

#: The space that each part keeps if all are long: a program's own words are cut first, the remedy last.
_LEAST = {"said": 120, "what": 180, "why": 260, "fix": 400}
_BETWEEN = len(":  (). Next: ")


class BackupError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what failed, naming the thing (a file, a server, a setting).
        why: the likely cause.
        fix: the next command or action, for the person who reads the message.
        said: the message of PostgreSQL or the operating system, unchanged; alone if the cause is unknown.
    """

    #: Whether the same call may succeed a little later without anyone changing something.
    transient = False

    def __init__(self, what: str, *, why: str = "", fix: str = "", said: str = "") -> None:
        whole = {"what": what, "why": why, "fix": fix, "said": said}
        self._whole = {part: _one_line(text) for part, text in whole.items()}
        parts = _fitted(self._whole)
        self.what, self.why, self.fix, self.said = parts["what"], parts["why"], parts["fix"], parts["said"]
        super().__init__(self.what, self.why, self.fix, self.said)

    @property
    def whole(self) -> str:
        """The complete text, if the message was shortened; else empty."""
        parts = self._whole
        if _fitted(parts) == parts:
            return ""
        return "\n".join(f"{part}: {text}" for part, text in parts.items() if text)

    @property
    def reason(self) -> str:
        """Cause and original words together."""
        if not (self.why and self.said):
            return self.why or self.said
        return f"{self.why.rstrip('.')} ({self.said.rstrip('.')})"

    @property
    def account(self) -> str:
        """What and why, without the remedy."""
        return f"{self.what}: {self.reason}" if self.reason else self.what

    def __str__(self) -> str:
        return f"{self.account.rstrip('.')}. Next: {self.fix}" if self.fix else self.account

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments need help to survive pickling between processes.
        return (_rebuild, (type(self), *(self._whole[part] for part in ("what", "why", "fix", "said"))))


def _rebuild(cls: type[BackupError], what: str, why: str, fix: str, said: str) -> BackupError:
    return cls(what, why=why, fix=fix, said=said)


def _fitted(parts: dict[str, str]) -> dict[str, str]:
    """The parts of a message, shortened if together they exceed ``MOST`` characters."""
    found = dict(parts)
    for part, least in _LEAST.items():
        over = sum(map(len, found.values())) + _BETWEEN - MOST
        if over > 0:
            found[part] = shortened(found[part], max(least, len(found[part]) - over))
    return found


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class SettingsError(BackupError):
    """A setting is missing or has a value that cannot be used."""


# ---- the volume


class VolumeError(BackupError):
    """The backup folder cannot be read or written."""


class VolumeMissingError(VolumeError):
    """The backup folder does not exist: a wrong setting, or a volume that is not mounted."""


class DiskFullError(VolumeError):
    """The backup volume has, or would have, no room left."""


class QuotaError(DiskFullError):
    """The volume has room, but not for this user."""


class ReadOnlyVolumeError(VolumeError):
    """The volume's filesystem is mounted read-only."""


class DiskFailingError(VolumeError):
    """The disk under the volume no longer reads or writes."""


class StrangeFileError(VolumeError):
    """A file is not one that this system can have written: a FIFO, a link, or far too large."""


class NoLocksError(VolumeError):
    """The volume's filesystem has no locks, so nothing is written to it or removed from it."""


class StalledVolumeError(VolumeError):
    """The backup volume does not answer: its server or its disk hangs."""


class JournalError(VolumeError):
    """A restore's journal cannot be read, so it is unknown whether the restore is unfinished."""


class UnknownStepError(JournalError):
    """A restore's journal has a step that this version does not know: a newer one began the restore."""


class LockHeldError(BackupError):
    """Another operation holds the lock on the backup volume."""

    transient = True


class BackupNotFoundError(BackupError):
    """No backup has the given name."""


class NotVerifiedError(BackupError):
    """An operation that needs a verified backup was refused, because there is none."""


class NotVouchedError(NotVerifiedError):
    """No signed statement vouches for a backup, so it is neither verified nor opened."""


class StatementLogError(VolumeError):
    """The signed log of the backups is broken: changed, cut off, forged, or of another database or key."""


class BadBackupError(BackupError):
    """Verification found a backup to be bad."""


class NotFreshError(BackupError):
    """The newest backup is too old or missing, or backups are no longer verified."""


class ClockError(NotFreshError):
    """The newest backup is dated in the future: a clock is wrong, or was when it was made."""


class RunFailedError(BackupError):
    """The last run of the daily backup failed, and no later backup was verified."""


class KeptDatabasesError(BackupError):
    """The last run of the job that announces and drops replaced databases failed."""


class DrillError(BackupError):
    """A restore drill did not prove that a backup restores."""


class DrillOverdueError(DrillError):
    """No drill has passed for too long."""


class DrillLimitError(DrillError):
    """A copy's server took more memory, disk, processes or time than a drill may take, and was ended."""


class SandboxError(BackupError):
    """A program that reads untrusted data must be confined, but cannot be."""


class RestoreError(BackupError):
    """A backup could not be restored: its own statements failed."""


class RestoreRefusedError(RestoreError):
    """A restore was refused before it changed anything."""


class RestoreUnfinishedError(RestoreError):
    """A restore began, and was neither finished nor put back."""


class NoWayBackError(RestoreError):
    """A restore cannot be undone: the database that was live before is gone."""


class CopyError(BackupError):
    """There is no place to restore to, or this program did not create the database there and may not remove it."""


# ---- the server


class ServerError(BackupError):
    """The PostgreSQL server refused or failed."""


class ServerUnreachableError(ServerError):
    """No connection: refused, timed out, or no route."""

    transient = True


class HostUnknownError(ServerUnreachableError):
    """The host's name does not resolve; in Docker Swarm also briefly while a service starts."""


class ServerStartingError(ServerUnreachableError):
    """The server answers, but is starting, stopping or recovering."""


class ConnectionLostError(ServerError):
    """The connection broke while it was in use: the server was restarted, killed, or the network failed."""

    transient = True


class ServerSilentError(ConnectionLostError):
    """The server accepted the connection or a query, and then stopped answering."""


class TooManyConnectionsError(ServerError):
    """The server has no connection slot left for this role."""

    transient = True


class PoolerError(ServerError):
    """A connection pooler answers in the server's place, and keeps no session for its client."""


class LockTimeoutError(ServerError):
    """Another session kept a table locked for longer than the lock-wait timeout."""

    transient = True


class AdvisoryLockHeldError(LockTimeoutError):
    """Another session holds the advisory lock that our processes use to exclude each other."""


class LockStalledError(LockTimeoutError):
    """A client program was ended: it waited too long for another session's lock. A retry would wait again."""

    transient = False


class StatementCancelledError(ServerError):
    """An administrator cancelled the statement."""


class StatementTimeoutError(StatementCancelledError):
    """A timeout that is set for the role or the database ended the statement."""


class RecoveryConflictError(StatementCancelledError):
    """A standby cancelled the statement, because replay needed what it was reading."""

    transient = True


class MomentaryError(ServerError):
    """The server refused an operation that may succeed a moment later."""

    transient = True


class TransactionConflictError(ServerError):
    """Two transactions were in each other's way, and the server ended one: a deadlock, or a serialization failure."""

    transient = True


class AuthenticationError(ServerError):
    """The server did not accept the user name and password (or certificate)."""


class PasswordMissingError(AuthenticationError):
    """The server requires a password, and none was given."""


class RoleMissingError(AuthenticationError):
    """The server has no login role with this name."""


class AccessRefusedError(AuthenticationError):
    """The server's pg_hba.conf, or the database's CONNECT right, does not let this role connect from here."""


class TlsError(ServerError):
    """Client and server do not agree on TLS."""


class TlsRequiredError(TlsError):
    """The server requires TLS, and the client was told not to use it."""


class TlsRefusedError(TlsError):
    """The client requires TLS, and the server does not offer it."""


class CertificateError(TlsError):
    """The server's certificate is not trusted, or is for another host."""


class DatabaseMissingError(ServerError):
    """The server has no database with this name."""


class DatabaseInUseError(ServerError):
    """Sessions stayed connected to a database that must be without sessions for a moment."""

    transient = True


class PrivilegeError(ServerError):
    """The role lacks a right that a complete dump needs."""


class RowSecurityError(PrivilegeError):
    """Row security would leave rows out of the dump."""


class LargeObjectPrivilegeError(PrivilegeError):
    """The role may not read a large object."""


class ServerDiskFullError(ServerError):
    """The server's own disk is full, not the backup volume."""


class ServerMemoryError(ServerError):
    """The server does not have enough memory for the query."""

    transient = True


class LockTableFullError(ServerError):
    """The server's lock table has no room for all the tables that a dump or a restore locks at once."""


class RowTooLargeError(ServerError):
    """A row is larger than a dump can hold. Nothing is damaged."""


class ServerDataError(ServerError):
    """The server cannot read its own data: a page or an index is damaged. Restore a backup."""


# ---- the client programs


class ProgramError(BackupError):
    """A PostgreSQL client program failed in a way that has no class of its own."""


class ProgramMissingError(ProgramError):
    """A PostgreSQL client program is missing, or is another program."""


class StalledError(ProgramError):
    """A client program made no progress, and was ended. Not transient: we have waited long enough."""


class ProgramCrashedError(ProgramError):
    """A client program crashed: it met data that it cannot handle, or is broken."""


class ExtensionMissingError(ProgramError):
    """An extension of the source is not installed on the server that its backup is to be restored to."""


class VersionMismatchError(ProgramError):
    """The client programs and the server have different major versions."""


class CompressionUnsupportedError(ProgramError):
    """A client program was built without the requested compression."""


# ---- the archive


class ArchiveDamagedError(BackupError):
    """The archive does not decode, or differs from what was written. This is a verdict: the backup is bad."""


class ArchiveFormatError(BackupError):
    """The client cannot read the archive's format. This is not a verdict: a newer client may read it."""


# ---- Docker Swarm, and the application in it


class ServiceManagerError(BackupError):
    """The service manager (Docker Swarm) or a service did not do what a restore needs."""


class ServiceManagerUnreachableError(ServiceManagerError):
    """The service manager does not answer, or temporarily cannot."""

    transient = True


class ServiceManagerRefusedError(ServiceManagerError):
    """The service manager, or the filter in front of it, refuses the request."""


class ServiceError(ServiceManagerError):
    """A service, not its manager, is the problem, so asking the manager again does not help."""


class ServiceMissingError(ServiceError):
    """The service manager has no service with this name."""


class ServiceUnsuitableError(ServiceError):
    """A service is not of the kind that the operation needs: it is global, a job, or always restarted."""


class ServiceStuckError(ServiceError):
    """A service's tasks did not stop, or did not start, in time."""


class MigrationFailedError(ServiceManagerError):
    """The service that migrates the database did not complete."""


class HealthError(ServiceManagerError):
    """The application does not report that it is healthy."""


# ---- copies on remotes


class RemoteError(BackupError):
    """A remote, or a copy on it, cannot be used as it is."""


class RemoteUnreachableError(RemoteError):
    """No answer from the remote, or the connection was lost."""

    transient = True


class RemoteStalledError(RemoteError):
    """Nothing arrived for a long time, and the transfer was ended."""


class RemoteAccessError(RemoteError):
    """The remote refuses these credentials or what they may do there, or its host key is not the known one."""


class RemoteMissingError(RemoteError):
    """The bucket, folder or marker is not there: a wrong path, or a disk that is not mounted."""


class RemoteFullError(RemoteError):
    """The remote has no room left."""


class RemoteForeignError(RemoteError):
    """The remote belongs to another database, or another host writes a log of its own there."""


class RemoteLockedError(RemoteError):
    """The store refuses to delete an object before its lock ends."""


class CopyDamagedError(RemoteError):
    """A copy differs from what was sent: cut off, altered, replaced or incomplete."""


# ---- alerts


class NotificationError(BackupError):
    """An alert could not be delivered to anyone."""

    transient = True

"""The exception tree. Every error that a user can meet is one of these.

Each says in one line what happened, why, and what to do next, without a secret. Raise the class that names the cause,
and do not log it as well. Any other exception that escapes is a defect of ours, and may show a traceback.
"""

from __future__ import annotations

from ovia_backup_dagster.core.human_text import MOST, shortened

#: What each part may take at least, where all of them are long: what a program repeats goes first, the remedy last.
_LEAST = {"said": 120, "what": 180, "why": 260, "fix": 400}
_BETWEEN = len(":  (). Next: ")


class BackupError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what failed, naming the thing (a file, a server, a setting).
        why: the likely cause.
        fix: the next command or action, for the person who reads the message.
        said: what PostgreSQL or the operating system said, in its own words; alone when the cause is not known.
    """

    #: Whether the same call may succeed a little later with nothing changed by a person.
    transient = False

    def __init__(self, what: str, *, why: str = "", fix: str = "", said: str = "") -> None:
        whole = {"what": what, "why": why, "fix": fix, "said": said}
        self._whole = {part: _one_line(text) for part, text in whole.items()}
        parts = _fitted(self._whole)
        self.what, self.why, self.fix, self.said = parts["what"], parts["why"], parts["fix"], parts["said"]
        super().__init__(self.what, self.why, self.fix, self.said)

    @property
    def whole(self) -> str:
        """All that there is to say, where the message leaves out some of it; else empty."""
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
    """The parts of a message, shortened where they do not fit into one of ``MOST`` characters."""
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
    """The backup folder is not there: a wrong setting, or a volume that is not mounted."""


class DiskFullError(VolumeError):
    """The backup volume has, or would have, no room left."""


class QuotaError(DiskFullError):
    """The volume has room, but not for this user."""


class ReadOnlyVolumeError(VolumeError):
    """The volume's filesystem is mounted read-only."""


class DiskFailingError(VolumeError):
    """The disk under the volume does not read or write any more."""


class StrangeFileError(VolumeError):
    """What stands in a file's place is none that this system can have written: a FIFO, a link, one without end."""


class NoLocksError(VolumeError):
    """The volume's filesystem has no locks: nothing may be written or removed on it."""


class StalledVolumeError(VolumeError):
    """The backup volume does not answer: its server or its disk hangs."""


class JournalError(VolumeError):
    """A restore's journal cannot be read, so it is not known whether the restore is unfinished."""


class UnknownStepError(JournalError):
    """A restore's journal has a step that this version does not know: a newer one began the restore."""


class LockHeldError(BackupError):
    """Another operation holds the lock on the backup volume."""

    transient = True


class BackupNotFoundError(BackupError):
    """No backup answers to the name that was given."""


class NotVerifiedError(BackupError):
    """An operation that needs a verified backup was refused, because there is none."""


class BadBackupError(BackupError):
    """Verification found a backup to be bad."""


class NotFreshError(BackupError):
    """The newest backup is too old, missing, or none is verified any more."""


class ClockError(NotFreshError):
    """The newest backup is dated in the future: a clock is wrong, or was when it was made."""


class RunFailedError(BackupError):
    """The last run of the daily backup failed, and nothing has made up for it since."""


class KeptDatabasesError(BackupError):
    """The last run of the job that announces and drops what restores have kept failed."""


class DrillError(BackupError):
    """A restore drill did not prove that a backup restores."""


class DrillOverdueError(DrillError):
    """No drill has passed for too long."""


class DrillLimitError(DrillError):
    """A copy's server took more memory, disk, processes or time than a drill may take, and was ended."""


class SandboxError(BackupError):
    """A program that reads what others wrote cannot be confined, and must be."""


class RestoreError(BackupError):
    """A backup could not be restored: its own statements failed."""


class RestoreRefusedError(RestoreError):
    """A restore was refused before anything was touched."""


class RestoreUnfinishedError(RestoreError):
    """A restore was begun and neither finished nor put back."""


class NoWayBackError(RestoreError):
    """A restore cannot be put back: what was live before is gone."""


class CopyError(BackupError):
    """There is no place to restore to, or what stands there is not ours to remove."""


# ---- the server


class ServerError(BackupError):
    """The PostgreSQL server refused or failed."""


class ServerUnreachableError(ServerError):
    """No connection: refused, timed out, or no route."""

    transient = True


class HostUnknownError(ServerUnreachableError):
    """The host's name leads nowhere. In Docker Swarm also for a moment, while a service starts."""


class ServerStartingError(ServerUnreachableError):
    """The server is there, but starting, stopping or recovering."""


class ConnectionLostError(ServerError):
    """The connection broke while it was in use: the server was restarted, killed, or the network failed."""

    transient = True


class ServerSilentError(ConnectionLostError):
    """The server took the connection, or a question, and then said nothing more."""


class TooManyConnectionsError(ServerError):
    """The server has no connection slot left for this role."""

    transient = True


class PoolerError(ServerError):
    """A connection pooler answers in the server's place, and keeps no session for its client."""


class LockTimeoutError(ServerError):
    """Another session kept a table locked for longer than the lock-wait timeout."""

    transient = True


class AdvisoryLockHeldError(LockTimeoutError):
    """Another session holds an advisory lock by which one process of ours keeps another out."""


class LockStalledError(LockTimeoutError):
    """A client program was ended: it waited too long for another session's lock. Tried again, it would wait again."""

    transient = False


class StatementCancelledError(ServerError):
    """An administrator cancelled the statement."""


class StatementTimeoutError(StatementCancelledError):
    """A timeout that is set for the role or the database ended the statement."""


class RecoveryConflictError(StatementCancelledError):
    """A standby cancelled the statement, because replay needed what it was reading."""

    transient = True


class MomentaryError(ServerError):
    """The server refused something, and a moment later did it."""

    transient = True


class TransactionConflictError(ServerError):
    """Two transactions were in each other's way, and the server ended one: a deadlock, or a serialization failure."""

    transient = True


class AuthenticationError(ServerError):
    """The server did not accept the user name and password (or certificate)."""


class PasswordMissingError(AuthenticationError):
    """The server asks for a password, and none was given."""


class RoleMissingError(AuthenticationError):
    """The server has no login role of that name."""


class AccessRefusedError(AuthenticationError):
    """The server's pg_hba.conf, or the database's CONNECT right, lets this role not in from here."""


class TlsError(ServerError):
    """Client and server do not agree about TLS."""


class TlsRequiredError(TlsError):
    """The server asks for TLS, and the client was told not to use it."""


class TlsRefusedError(TlsError):
    """The client asks for TLS, and the server has none."""


class CertificateError(TlsError):
    """The server's certificate is not trusted, or is for another host."""


class DatabaseMissingError(ServerError):
    """The server has no database of that name."""


class DatabaseInUseError(ServerError):
    """Sessions stayed in a database that must be empty for a moment."""

    transient = True


class PrivilegeError(ServerError):
    """The role lacks a right that a whole dump needs."""


class RowSecurityError(PrivilegeError):
    """Row security would leave rows out of the dump."""


class LargeObjectPrivilegeError(PrivilegeError):
    """The role may not read a large object."""


class ServerDiskFullError(ServerError):
    """The server's own disk is full, not the backup volume."""


class ServerMemoryError(ServerError):
    """The server has no memory left for what it was asked."""

    transient = True


class LockTableFullError(ServerError):
    """The server's lock table has no room for all the tables that a dump or a restore locks at once."""


class RowTooLargeError(ServerError):
    """A row is larger than what a dump can hold of one. Nothing is damaged."""


class ServerDataError(ServerError):
    """The server cannot read its own data: a page or an index is damaged. Backups are what saves you now."""


# ---- the client programs


class ProgramError(BackupError):
    """A PostgreSQL client program failed in a way that has no class of its own."""


class ProgramMissingError(ProgramError):
    """A PostgreSQL client program is not there, or is something else."""


class StalledError(ProgramError):
    """A client program stood still, and was ended. Not transient: it has been waited for long enough."""


class ProgramCrashedError(ProgramError):
    """A client program ended by a fault of its own: it met what it was not written for, or is broken itself."""


class ExtensionMissingError(ProgramError):
    """An extension of the source is not installed where its backup is to be restored."""


class VersionMismatchError(ProgramError):
    """The client programs and the server are of different major versions."""


class CompressionUnsupportedError(ProgramError):
    """A client program was built without the compression that is asked for."""


# ---- the archive


class ArchiveDamagedError(BackupError):
    """The archive does not decode, or is not what was written. A verdict: this backup is bad."""


class ArchiveFormatError(BackupError):
    """The archive is of a format that this client cannot read. No verdict: a newer client may."""


# ---- Docker Swarm, and the application in it


class ServiceManagerError(BackupError):
    """The service manager (Docker Swarm), or a service in it, did not do what a restore needs."""


class ServiceManagerUnreachableError(ServiceManagerError):
    """The service manager does not answer, or answers that it cannot at the moment."""

    transient = True


class ServiceManagerRefusedError(ServiceManagerError):
    """The service manager, or the filter before it, refuses what it is asked."""


class ServiceError(ServiceManagerError):
    """A service itself, and not its manager, stands in the way: to ask the manager again is of no use."""


class ServiceMissingError(ServiceError):
    """The service manager has no service of that name."""


class ServiceUnsuitableError(ServiceError):
    """A service is not of the kind that the operation needs: global, a job, or one that is restarted for ever."""


class ServiceStuckError(ServiceError):
    """A service's tasks did not stop, or did not start, in time."""


class MigrationFailedError(ServiceManagerError):
    """The service that migrates the database did not complete."""


class HealthError(ServiceManagerError):
    """The application does not say that it is well."""


# ---- alerts


class NotificationError(BackupError):
    """An alert could not be delivered to anybody."""

    transient = True

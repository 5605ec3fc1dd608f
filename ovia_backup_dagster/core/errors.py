"""The exception tree. Every error that a person can meet is one of these.

Each says what happened, why, and what to do next, in one line, without a secret. Raise the class that
names the cause; do not log it as well. Anything else that escapes is a defect of ours, and may show a
traceback.
"""

from __future__ import annotations


class BackupError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what failed, naming the thing (a file, a server, a setting).
        why: the cause, as far as it is known.
        fix: the next command or action for the person who reads this.
    """

    #: Whether the same call may succeed a little later with nothing changed by a person.
    transient = False

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = _one_line(what)
        self.why = _one_line(why)
        self.fix = _one_line(fix)
        super().__init__(self.what, self.why, self.fix)

    def __str__(self) -> str:
        text = self.what if not self.why else f"{self.what}: {self.why}"
        if not self.fix:
            return text
        return f"{text.rstrip('.')}. Next: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments need help to survive pickling between processes.
        return (_rebuild, (type(self), self.what, self.why, self.fix))


def _rebuild(cls: type[BackupError], what: str, why: str, fix: str) -> BackupError:
    return cls(what, why=why, fix=fix)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class SettingsError(BackupError):
    """A setting is missing or has a value that cannot be used."""


class VolumeError(BackupError):
    """The backup folder cannot be read or written."""


class DiskFullError(VolumeError):
    """The backup volume has, or would have, no room left."""


class LockHeldError(BackupError):
    """Another operation holds the lock on the backup volume."""

    transient = True


class BackupNotFoundError(BackupError):
    """No backup answers to the name that was given."""


class NotProvenError(BackupError):
    """An operation that needs a proven backup was refused, because there is none."""


class ServerError(BackupError):
    """The PostgreSQL server refused or failed."""


class ServerUnreachableError(ServerError):
    """No connection: refused, unknown host, timed out, or the server is starting or stopping."""

    transient = True


class ConnectionLostError(ServerError):
    """The connection broke while it was in use: the server was restarted, killed, or the network failed."""

    transient = True


class TooManyConnectionsError(ServerError):
    """The server has no connection slot left for this role."""

    transient = True


class LockTimeoutError(ServerError):
    """A table stayed locked by somebody else for longer than the lock-wait timeout."""

    transient = True


class StatementCancelledError(ServerError):
    """The server cancelled a statement: an administrator, or ``statement_timeout``."""


class AuthenticationError(ServerError):
    """The server did not accept the user name and password (or certificate)."""


class TlsError(ServerError):
    """Client and server do not agree about TLS."""


class DatabaseMissingError(ServerError):
    """The server has no database of that name."""


class PrivilegeError(ServerError):
    """The role lacks a right that a whole dump needs."""


class VersionMismatchError(ServerError):
    """The client programs and the server are of different major versions."""


class ProgramError(BackupError):
    """A PostgreSQL client program is missing, or failed in a way that has no class of its own."""


class CompressionUnsupportedError(ProgramError):
    """A client program was built without the compression that is asked for."""


class ArchiveDamagedError(BackupError):
    """The archive does not decode, or is not what was written. A verdict: this backup is bad."""


class ArchiveFormatError(BackupError):
    """The archive is of a format that this client cannot read. No verdict: a newer client may."""


class NotificationError(BackupError):
    """An alert could not be delivered to anybody."""

    transient = True

"""The head of the signed log, as messages and the UI show it.

A person who has received it can tell a log that was cut off later. Reading it never fails: a message must go out also
if the log is broken, or the volume hangs. What a message says otherwise belongs to ``alert_message``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ovia_backup_dagster.core.deadline import within_deadline
from ovia_backup_dagster.core.errors import BackupError, StatementLogError

if TYPE_CHECKING:
    from ovia_backup_dagster.signing.statement_log import StatementLog

#: The time limit for reading the log, in seconds.
_SECONDS = 10.0


class Signing(Protocol):
    """The part of ``system.BackupSystem`` that has the log."""

    @property
    def statement_log(self) -> StatementLog | None: ...


def log_head(system: Signing) -> str:
    """``42 <sha256>``, or why it cannot be read and the next command; empty if backups are not signed."""
    try:
        log = system.statement_log
        if log is None:
            return ""
        return str(within_deadline(_SECONDS, log.root, log.chain).head)
    except StatementLogError as error:
        return f"it is broken: {error.account.rstrip('.')}. Next: ovia-backup log verify"
    except BackupError as error:
        return f"it was not read: {error}"


def with_log_head(body: str, system: Signing) -> str:
    """A message's body that ends with the head of the signed log, if backups are signed."""
    head = log_head(system)
    return "\n".join(filter(None, (body, f"Signed log: {head}" if head else "")))

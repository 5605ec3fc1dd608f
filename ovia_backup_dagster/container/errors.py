"""What a container of the stack says when it cannot do its part. What a whole Swarm refuses is ``swarm``'s."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError


class ContainerError(BackupError):
    """A container of the stack lacks what its role cannot do without."""


class NotThereYetError(ContainerError):
    """What a role depends on does not answer; it may only be starting."""

    transient = True

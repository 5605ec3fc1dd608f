"""Errors of a container of the stack. Errors of Docker Swarm itself are in ``swarm``."""

from __future__ import annotations

from ovia_backup_dagster.core.errors import BackupError


class ContainerError(BackupError):
    """A container lacks something that its role requires."""


class NotThereYetError(ContainerError):
    """A service that a role depends on does not answer; it may still be starting."""

    transient = True

"""What every command needs from its environment: the backup system that the settings describe, and the operator.

Arguments and options are in ``options``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovia_backup_dagster.system import BackupSystem


def system_from_environment() -> BackupSystem:
    """The backup system that the environment describes.

    Raises:
        SettingsError: a setting is wrong, or no database is named.
    """
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    settings = Settings.load()
    settings.require()
    return BackupSystem(settings)


def volume_from_environment() -> BackupSystem:
    """Like :func:`system_from_environment`, for commands that need no server: POSTGRES_HOST may be missing.

    Raises:
        SettingsError: a setting is wrong.
    """
    from ovia_backup_dagster.settings.model import Settings
    from ovia_backup_dagster.system import BackupSystem

    settings = Settings.load()
    settings.require_volume()
    return BackupSystem(settings)


def operator() -> str:
    """The user and host that run the command, as evidence and records name them."""
    import getpass
    import socket

    return f"{getpass.getuser()} on {socket.gethostname()}"

"""The order in which things are looked at. What each check does is its module's business."""

from __future__ import annotations

from collections.abc import Iterator

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.doctor import server, surroundings, volume
from ovia_backup_dagster.doctor.report import Area, Line, failed, ok
from ovia_backup_dagster.system import BackupSystem


def everything(system: BackupSystem) -> Iterator[Line]:
    """Look at everything but Dagster itself. Changes nothing.

    With settings that cannot be used, only they are looked at, and the client programs.
    """
    yield from surroundings.settings(system)
    yield from surroundings.programs(system)
    if system.settings.problems:
        return
    yield from server.server(system)
    yield from volume.volume(system)
    yield from volume.backups(system)
    yield from surroundings.alerts(system)


def code_server(system: BackupSystem) -> Iterator[Line]:
    """What a code server needs to be of use: settings, and a volume that can be read.

    Not the database: one that is down is no reason to restart the code server, whose sensor must tell people.
    """
    yield from surroundings.settings(system)
    try:
        newest = next(system.catalog.newest_first(), None)
    except BackupError as error:
        yield failed(Area.VOLUME, error)
    else:
        yield ok(Area.VOLUME, f"the volume can be read; the newest backup is {newest or 'not made yet'}")

"""The order in which things are looked at. What each check does is its module's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.doctor import drills, restores, server, surroundings, volume
from ovia_backup_dagster.doctor.report import Area, Level, Line, failed, ok
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
    yield from drills.drills(system)
    yield from restores.restores(system)
    yield from surroundings.alerts(system)


def code_server(system: BackupSystem) -> Iterator[Line]:
    """What a code server needs to be of use: settings, and a volume that can be read.

    Nothing of it fails: a container that is restarted for it again and again would have no sensor to tell people. The
    database is not even asked.
    """
    for line in surroundings.settings(system):
        yield replace(line, level=min(line.level, Level.WARN, key=list(Level).index))
    try:
        newest = next(system.catalog.newest_first(), None)
    except BackupError as error:
        yield replace(failed(Area.VOLUME, error), level=Level.WARN)
    else:
        yield ok(Area.VOLUME, f"the volume can be read; the newest backup is {newest or 'not made yet'}")

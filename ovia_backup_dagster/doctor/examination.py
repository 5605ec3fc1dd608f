"""The order of the checks. Each check is in the module of its area."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ovia_backup_dagster.core.deployment_hints import steps
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.doctor import (
    drill_area,
    environment_area,
    offsite_area,
    pitr_area,
    restore_area,
    server_area,
    volume_area,
)
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, failed, ok
from ovia_backup_dagster.doctor.time_limit import Part, look_in_time
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.system import BackupSystem


def everything(system: BackupSystem, *more: Part) -> Iterator[Observation]:
    """Check everything except Dagster itself, and ``more``. Changes nothing, and ends in time even if a check hangs.

    If the settings cannot be used, only the settings and the client programs are checked.
    """
    parts = _first(system)
    if not system.settings.problems:
        parts += _others(system)
    return look_in_time([*parts, *more])


def _first(system: BackupSystem) -> list[Part]:
    return [
        _part(
            Area.SETTINGS, environment_area.settings, system, "what the settings name", "ls -l the files that they name"
        ),
        _part(Area.PROGRAMS, environment_area.programs, system, "the client programs", "df -h $PG_BIN_DIR; pg_dump -V"),
    ]


def _others(system: BackupSystem) -> list[Part]:
    settings = system.settings
    root, folder = shell_word(str(settings.backup_dir)), shell_word(str(settings.drill_dir))
    hint = settings.deployment_hints.server
    ready = _is_ready(settings.postgres_host, settings.postgres_port, hint)
    target = _is_ready(
        settings.restore_postgres_host or settings.postgres_host,
        settings.restore_postgres_port or settings.postgres_port,
        hint if settings.restore_postgres_host is None else "",
    )
    services = "docker service ls" if settings.swarm_app_services or settings.swarm_migrate_service else ""
    disk = f"findmnt -T {root}; df -h {root}; dmesg | tail"
    return [
        _part(Area.SERVER, server_area.server, system, "the server", ready),
        _part(Area.VOLUME, volume_area.volume, system, "the backup volume", disk),
        _part(Area.BACKUPS, volume_area.backups, system, "the backup volume", disk),
        _part(Area.DRILLS, drill_area.drills, system, "what a drill depends on", f"df -h {folder}; {disk}; {target}"),
        _part(Area.RESTORES, restore_area.restores, system, "what a restore depends on", steps(target, services)),
        part_of_remotes(system),
        _part(Area.PITR, pitr_area.recovery, system, "what point-in-time recovery depends on", f"{ready}; {disk}"),
        _part(Area.ALERTS, environment_area.alerts, system, "what alerts depend on", "ls -l $BACKUP_NOTIFY_URLS_FILE"),
    ]


def part_of_remotes(system: BackupSystem, *names: str) -> Part:
    """The check of the remotes of these names (default: all), which asks each of them."""

    def look(system: BackupSystem) -> Iterator[Observation]:
        return offsite_area.remotes(system, *names)

    return _part(Area.REMOTES, look, system, "the remotes of OFFSITE_REMOTES", "rclone lsf REMOTE:PATH")


def _part(
    area: Area, look: Callable[[BackupSystem], Iterator[Observation]], system: BackupSystem, what: str, fix: str
) -> Part:
    return Part(area, lambda: look(system), what, fix)


def _is_ready(host: str | None, port: int, hint: str) -> str:
    name = shell_word(host or "")
    return steps(f"getent hosts {name}; pg_isready -t 5 -h {name} -p {port}", hint)


def code_server_needs(system: BackupSystem) -> Iterator[Observation]:
    """Check the needs of a code server: valid settings, and a readable volume.

    The worst level here is a warning: a failure would restart the container again and again, and its sensor could not
    alert people. The database is not queried.
    """
    for line in environment_area.settings(system):
        yield replace(line, level=min(line.level, Severity.WARN, key=list(Severity).index))
    try:
        newest = next(system.catalog.newest_first(), None)
    except BackupError as error:
        yield replace(failed(Area.VOLUME, error), level=Severity.WARN)
    else:
        found = "there is no backup yet" if newest is None else f"the newest backup is {newest}"
        yield ok(Area.VOLUME, f"the volume can be read; {found}")

"""Restores: whether one is unfinished, whether one could be made now, and what earlier ones have kept or left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.doctor.report import Area, Line, failed, ok, warn
from ovia_backup_dagster.postgres.client import Connection
from ovia_backup_dagster.postgres.drill import needed_bytes
from ovia_backup_dagster.postgres.executed import reach
from ovia_backup_dagster.postgres.kept import way_back
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.room import free_bytes
from ovia_backup_dagster.postgres.session import beside
from ovia_backup_dagster.postgres.swap import obstacles, standing
from ovia_backup_dagster.swarm.health import wait_until_healthy
from ovia_backup_dagster.system import BackupSystem

_HEALTH_SECONDS = 3.0


def restores(system: BackupSystem) -> Iterator[Line]:
    """Where no role is named that restores, whether it could is not looked at: that may be on purpose."""
    yield from _unfinished(system)
    settings, target = system.settings, system.restore_connection
    if settings.restore_postgres_user is None:
        text = f"no role but {target.user}, which dumps, is named here (RESTORE_POSTGRES_USER)"
        yield ok(Area.RESTORES, f"{text}: see docs/runbook.md, Being able to restore")
    else:
        try:
            yield from _database(system)
        except BackupError as error:
            yield _not_now(error)
    if settings.swarm_app_services or settings.swarm_migrate_service or settings.health_url:
        yield from _services(system)


def _unfinished(system: BackupSystem) -> Iterator[Line]:
    try:
        found = system.restorations.folder.standing()
    except BackupError as error:
        yield failed(Area.RESTORES, error)
        return
    if found.at_work:
        yield ok(Area.RESTORES, f"now at work: {found.at_work}")
    elif found.trouble:
        yield failed(Area.RESTORES, found.trouble)


def _database(system: BackupSystem) -> Iterator[Line]:
    target, keep = system.restore_connection, system.settings.restore_keep_days
    server = beside(target, target.database)
    where = f"{target.host}:{target.port}"
    live = standing(server, target.database)
    found = obstacles(server, target.database)
    for obstacle in found:
        yield _not_now(obstacle)
    if not found:
        yield ok(Area.RESTORES, f"role {target.user} may replace database {target.database} on {where}, and swap back")
    yield from _functions(system, server)
    free, needed = free_bytes(server), needed_bytes(live.size_bytes or 0)
    if live.size_bytes is not None and free is not None:
        room = f"a second copy: {human_bytes(free)} free on {where}, {human_bytes(needed)} needed"
        if free < needed:
            fix = "make room there; or, though it cannot be undone: ovia-backup restore BACKUP --mode drop"
            yield warn(Area.RESTORES, f"too little room for {room}", fix)
        else:
            yield ok(Area.RESTORES, f"room for {room}")
    replaced = dict(system.restorations.kept())
    for each, at in replaced.items():
        until = f"until {(at or each.at) + timedelta(days=keep):%Y-%m-%d}" if keep else "until it is dropped"
        size = f", {human_bytes(each.size_bytes)}" if each.size_bytes is not None else ""
        yield ok(Area.RESTORES, f"kept {until}: {each.name}{size}; {way_back(list(replaced), each.name)} swaps back")
    for name in system.restorations.left():
        fix = f"as a superuser, once nobody needs it: DROP DATABASE {sql_identifier(name)} WITH (FORCE)"
        yield warn(Area.RESTORES, f"{name} is left of a restore that was put back, and takes room", fix)


def _functions(system: BackupSystem, server: Connection) -> Iterator[Line]:
    """Of the newest backup, whose functions would run as a superuser."""
    with contextlib.suppress(BackupError):  # the backup's is said under backups
        newest = next(system.catalog.newest_first(), None)
        found = reach(server, system.programs, newest) if newest else None
        if found and found.functions:
            fix = "make a role that is no superuser (deploy/restore-role.sql), and name it: RESTORE_POSTGRES_USER"
            yield warn(Area.RESTORES, f"in a restore, {found}", fix)


def _services(system: BackupSystem) -> Iterator[Line]:
    settings, swarm = system.settings, system.restorations.swarm
    try:
        counts = [f"{name} {swarm.replicas(name)}" for name in settings.swarm_app_services]
        if settings.swarm_migrate_service:
            swarm.check_once(settings.swarm_migrate_service)
            counts.append(f"{settings.swarm_migrate_service} to migrate")
        if counts:
            yield ok(Area.RESTORES, f"services that a restore stops and starts: {', '.join(counts)}")
    except BackupError as error:
        yield _not_now(error)
    try:
        if settings.health_url:
            wait_until_healthy(settings.health_url, _HEALTH_SECONDS, lambda _: None)
            yield ok(Area.RESTORES, "HEALTH_URL says that the application is well")
    except BackupError as error:
        yield _not_now(error)


def _not_now(error: BackupError) -> Line:
    """Backups go on; a restore would be refused, or end with it."""
    return warn(Area.RESTORES, error.account, error.fix)

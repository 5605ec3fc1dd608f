"""Checks restores: whether one is unfinished, whether one could run now, and what earlier ones kept or left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from ovia_backup_dagster.core.errors import BackupError, JournalError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.doctor.report import Area, Observation, failed, from_answer, ok, warn
from ovia_backup_dagster.drill.placement import needed_bytes
from ovia_backup_dagster.health.condition import about_journal, about_restores
from ovia_backup_dagster.postgres.disk_space import free_bytes
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.session import other_database
from ovia_backup_dagster.proof.executed_functions import reach
from ovia_backup_dagster.restoration import archive_requirements, server_offers
from ovia_backup_dagster.restoration.application_health import wait_until_healthy
from ovia_backup_dagster.restoration.replaced_databases import way_back
from ovia_backup_dagster.restoration.requirements import unmet
from ovia_backup_dagster.restoration.swap import database_state, obstacles
from ovia_backup_dagster.system import BackupSystem

_HEALTH_SECONDS = 3.0


def restores(system: BackupSystem) -> Iterator[Observation]:
    """Obstacles to a restore today, for the role that restores, or if none is set, for the role that dumps."""
    yield from _unfinished(system)
    settings, target = system.settings, system.restore_connection
    try:
        found = obstacles(other_database(target, target.database), target.database)
        if found and settings.restore_postgres_user is None:
            yield _no_role(target, found)
        else:
            yield from _database(system, found)
    except BackupError as error:
        yield _not_now(error)
    if settings.swarm_app_services or settings.swarm_migrate_service or settings.health_url:
        yield from _services(system)


def _unfinished(system: BackupSystem) -> Iterator[Observation]:
    try:
        found = system.restores.standing()
    except JournalError as error:
        yield from_answer(Area.RESTORES, about_journal(error))
    except BackupError as error:
        yield failed(Area.RESTORES, error)
    else:
        if found.at_work or found.trouble:
            yield from_answer(Area.RESTORES, about_restores(found))


def _no_role(target: Connection, found: Sequence[BackupError]) -> Observation:
    """Report that no role for restores is set: the dumping role should only read, so a restore needs another role."""
    text = f"no role here may restore: RESTORE_POSTGRES_USER is not set, and as {target.user}, which dumps: "
    psql = f"psql -q -h {shell_word(target.host)} -p {target.port} -U SUPERUSER -d {shell_word(target.database)}"
    make = f"RESTORE_PASSWORD=... {psql} < deploy/restore-role.sql"
    then = "then set RESTORE_POSTGRES_USER=ovia_restore and RESTORE_POSTGRES_PASSWORD"
    return warn(Area.RESTORES, text + "; ".join(each.what for each in found), f"{make}; {then}")


def _database(system: BackupSystem, found: Sequence[BackupError]) -> Iterator[Observation]:
    target, keep = system.restore_connection, system.settings.restore_keep_days
    server = other_database(target, target.database)
    where = f"{target.host}:{target.port}"
    live = database_state(server, target.database)
    for obstacle in found:
        yield _not_now(obstacle)
    if not found:
        yield ok(Area.RESTORES, f"role {target.user} may replace database {target.database} on {where}, and swap back")
    yield from _newest_backup(system, server, live.owner)
    free, needed = free_bytes(server), needed_bytes(live.size_bytes or 0)
    if live.size_bytes is not None and free is not None:
        room = f"a second copy: {human_bytes(free)} free on {where}, {human_bytes(needed)} needed"
        if free < needed:
            fix = "make room there; or, though it cannot be undone: ovia-backup restore BACKUP --mode drop"
            yield warn(Area.RESTORES, f"too little room for {room}", fix)
        else:
            yield ok(Area.RESTORES, f"room for {room}")
    replaced = dict(system.restorations.kept_databases.newest_first())
    for each, at in replaced.items():
        until = f"until {(at or each.at) + timedelta(days=keep):%Y-%m-%d}" if keep else "until it is dropped"
        size = f", {human_bytes(each.size_bytes)}" if each.size_bytes is not None else ""
        yield ok(Area.RESTORES, f"kept {until}: {each.name}{size}; {way_back(list(replaced), each.name)} swaps back")
    for name in system.restorations.kept_databases.copies_left():
        fix = f"as a superuser, once it is no longer needed: DROP DATABASE {sql_identifier(name)} WITH (FORCE)"
        yield warn(Area.RESTORES, f"{name} is left over from a restore that was put back, and takes up space", fix)


def _newest_backup(system: BackupSystem, server: Connection, owner: str) -> Iterator[Observation]:
    """Objects of the newest backup that this server cannot create, and functions that would run as a superuser."""
    with contextlib.suppress(BackupError):  # problems of the backup are reported under backups
        newest = next(system.catalog.newest_first(), None)
        if newest is None or newest.foreign:
            return
        wanted = archive_requirements.requirements_of(system.programs, newest)
        # The check of the live database covers the rights of its owner.
        wanted = replace(wanted, owners=set(wanted.owners) - {owner})
        lacking, warnings = unmet(wanted, server_offers.offers_of(server, wanted, owner), max(2, system.restore_jobs()))
        yield from map(_not_now, lacking)
        yield from (warn(Area.RESTORES, text) for text in warnings)
        if not lacking:
            yield ok(
                Area.RESTORES, f"{server.host}:{server.port} has what {newest} needs, and {server.user} may make it"
            )
        found = reach(server, system.programs, newest)
        if found.functions:
            fix = "create a role that is not a superuser (deploy/restore-role.sql), and set RESTORE_POSTGRES_USER to it"
            yield warn(Area.RESTORES, f"in a restore, {found}", fix)


def _services(system: BackupSystem) -> Iterator[Observation]:
    settings, manager = system.settings, system.restorations.manager
    try:
        counts = [f"{name} {manager.replicas(name)}" for name in settings.swarm_app_services]
        if settings.swarm_migrate_service:
            manager.check_once(settings.swarm_migrate_service)
            counts.append(f"{settings.swarm_migrate_service} to migrate")
        if counts:
            yield ok(Area.RESTORES, f"services that a restore stops and starts: {', '.join(counts)}")
    except BackupError as error:
        yield _not_now(error)
    try:
        if settings.health_url:
            wait_until_healthy(settings.health_url, _HEALTH_SECONDS, lambda _: None)
            yield ok(Area.RESTORES, "HEALTH_URL reports that the application is healthy")
    except BackupError as error:
        yield _not_now(error)


def _not_now(error: BackupError) -> Observation:
    """A warning, not a failure: backups continue, but a restore would be refused or fail."""
    return warn(Area.RESTORES, error.account, error.fix)

"""Checks the prerequisites of restore drills, and whether drills pass."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.doctor.report import Area, Observation, fail, failed, from_answer, ok, warn
from ovia_backup_dagster.drill.escape_attempts import try_from_inside
from ovia_backup_dagster.drill.placement import Where, needed_bytes
from ovia_backup_dagster.drill.throwaway_cluster import remains, server_programs
from ovia_backup_dagster.health.condition import about_drills
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.sandbox import Confine
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.system import BackupSystem

_RIGHTS = "SELECT rolcreatedb OR rolsuper AS may FROM pg_roles WHERE rolname = current_user"


def drills(system: BackupSystem) -> Iterator[Observation]:
    """Whether a drill can run, and whether one has passed recently."""
    wanted = system.drill_choice().where
    try:
        bin_dir: Path | None = server_programs(system.programs)
    except BackupError as error:
        bin_dir = None
        if wanted is Where.THROWAWAY or (wanted is Where.AUTO and not system.driller.target_is_named):
            yield failed(Area.DRILLS, error)
    if wanted is Where.DATABASE or (wanted is Where.AUTO and bin_dir is None and system.driller.target_is_named):
        yield from _scratch_server(system)
    elif bin_dir is not None:
        yield ok(Area.DRILLS, f"throwaway clusters are made in {system.settings.drill_dir}, by {bin_dir}")
        yield from _folder(system, system.settings.drill_dir)
    yield from _sandbox(system)
    yield from _standing(system)


def _sandbox(system: BackupSystem) -> Iterator[Observation]:
    """Whether the code in a backup is confined while a drill restores it."""
    wanted = system.programs.sandbox.confine
    if wanted is Confine.OFF:
        text = "code in a backup runs unconfined in drills, and the archive is parsed unconfined: DRILL_SANDBOX=off"
        yield warn(Area.DRILLS, text, "unset DRILL_SANDBOX")
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            walls = try_from_inside(system.programs, Path(folder))
    except (BackupError, OSError) as error:
        yield fail(Area.DRILLS, f"the sandbox of drills cannot be tried: {error}", "df -h /tmp; ls -ld /tmp")
        return
    if walls.whole:
        yield ok(Area.DRILLS, f"what a backup contains is {walls.text}")
    else:
        level = fail if wanted is Confine.REQUIRE else warn
        fix = "run it under Linux 6.12 or newer, without a seccomp profile that forbids Landlock or filters"
        yield level(Area.DRILLS, f"what a backup contains is not well confined here: {walls.text}", fix)


def _scratch_server(system: BackupSystem) -> Iterator[Observation]:
    target = system.restore_connection
    try:
        with connect(target.to("postgres")) as session:
            row = session.execute(_RIGHTS).fetchone()
    except BackupError as error:
        yield failed(Area.DRILLS, error)
        return
    where = f"{target.host}:{target.port}"
    if row is None or not row["may"]:
        fix = "as a superuser there"
        sql = f"ALTER ROLE {sql_identifier(target.user)} CREATEDB"
        yield fail(Area.DRILLS, f"role {target.user} on {where} may not create a scratch database", fix, sql)
    else:
        yield ok(Area.DRILLS, f"scratch databases are made on {where}, by {target.user}")


def _folder(system: BackupSystem, folder: Path) -> Iterator[Observation]:
    shown = shell_word(str(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield fail(
            Area.DRILLS, f"{folder} is not a folder that this user may write to", f"ls -ld {shown}; set DRILL_DIR"
        )
        return
    left = remains(folder)
    if left:
        text = f"{len(left)} copies remain, kept on request or left by killed drills, such as {left[0]}"
        yield warn(Area.DRILLS, text, "nothing: the next drill removes them; at once: ovia-backup drill --remove-copy")
    try:
        newest = next(system.catalog.newest_first(), None)
        source = newest.manifest.database.size_bytes if newest and newest.manifest else None
    except BackupError:
        return  # reported under volume
    if newest is None or not source:
        return
    free, needed = shutil.disk_usage(folder).free, needed_bytes(source)
    if free < needed:
        text = f"{folder} has too little room for a copy: {human_bytes(free)} free, {human_bytes(needed)} needed"
        yield fail(Area.DRILLS, text, f"df -h {shown}; or set DRILL_DIR to a folder on a larger disk")
    else:
        yield ok(Area.DRILLS, f"room for a copy: {human_bytes(free)} free, {human_bytes(needed)} needed")


def _standing(system: BackupSystem) -> Iterator[Observation]:
    now = datetime.now(UTC)
    try:
        found = system.drills.standing(system.drill_max_age, now)
    except BackupError as error:
        yield failed(Area.DRILLS, error)
        return
    yield from_answer(Area.DRILLS, about_drills(found, now))

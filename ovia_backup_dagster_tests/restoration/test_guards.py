"""The guards of a restore, each provoked on a real server: a refused restore has changed nothing.

The tests follow the advice of the errors as written, and it works.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.core.errors import RestoreRefusedError, VolumeError
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode
from ovia_backup_dagster.swarm import docker_api
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port
from ovia_backup_dagster_tests.defs.support import flip_byte
from ovia_backup_dagster_tests.doctor.support import executable
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, filled, free, tmpfs
from ovia_backup_dagster_tests.faults.harness import Ended
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import Site, admin_of, killed_at, site_on, sql_in_server, untouched


def pasted(site: Site, line: str) -> Ended:
    """Run the last command that an error names, unchanged."""
    return site.place.run(*shlex.split(line.rpartition("ovia-backup ")[2]))


def obstacles_of(ended: Ended) -> list[str]:
    """The plan's obstacles, each with its remedy."""
    return [line for line in ended.output.splitlines() if line.startswith("Obstacle ")]


# ----------------------------------------------------------------------------------------------- all at once


def test_a_plan_lists_all_obstacles_at_once(full_server: PortCluster, full_bin_dir: Path, tmp_path: Path) -> None:
    """An obstacle does not stop the other checks, and the plan still says how long a restore takes and what is lost."""
    role = f"weak{os.getpid()}"
    silent = mock.patch.object(docker_api, "PATIENCE_SECONDS", 0.0)
    with site_on(full_server, full_bin_dir, tmp_path) as site, silent:
        execute(site.live, "CREATE EXTENSION pg_stat_statements", "CREATE PUBLICATION everything FOR ALL TABLES")
        site.backup, site.now = site.place.chain(), site.content()
        assert site.place.run("drill").code == 0
        sql_in_server(site, "CREATE ROLE {} LOGIN CONNECTION LIMIT 3", role)
        try:
            weak = site.with_settings(
                RESTORE_POSTGRES_USER=role, SWARM_APP_SERVICES="app", SWARM_DOCKER_URL="tcp://[::1]:1"
            )
            planned = weak.restore("--plan", confirm=False)
            line = planned.refused()
            wanted = [
                f"role {role} may not create or rename a database: it does not have CREATEDB. Next: as a superuser: ",
                f"database {site.live.database} belongs to postgres: role {role} does not have its rights. Next: ",
                "holds: extension pg_stat_statements: only a superuser may: it is not marked as trusted there. Next: ",
                "holds: publication FOR ALL TABLES everything: only a superuser may. Next: let a superuser restore",
                f"role {role} may have 3 sessions at a time: a restore with 2 jobs needs ",
                "Docker does not answer",
            ]
            found = obstacles_of(planned)
            assert [sum(words in each for each in found) for words in wanted] == [1] * len(wanted), found
            assert len(found) == len(wanted)
            assert f"nothing was done: {len(wanted)} obstacles stand in the way: 1. " in line
            assert line.endswith(f"ovia-backup restore {site.place.catalog.word(site.backup)} --plan")
            assert len(line) <= 1000
            assert re.search(r"^time +about .*, as the drill of ", planned.output, re.MULTILINE)
            assert re.search(r"^lost +what was written since the backup, ", planned.output, re.MULTILINE)
            # A confirmed restore is refused, too. With --json, each obstacle is an item of its own.
            assert weak.restore().refused() == line
            told = weak.restore("--plan", "--json", confirm=False)
            assert told.code == 1
            plan = json.loads(told.output[: told.output.rindex("}") + 1])
            assert [f"{each['what']}: {each['why']}" in "".join(found) for each in plan["obstacles"]].count(True) >= 6
            assert all(each["fix"] for each in plan["obstacles"])
            assert not list(site.place.root.glob("restores/*"))
            untouched(site)
        finally:
            sql_in_server(site, "DROP ROLE {}", role)


@pytest.mark.exhaustive
def test_a_last_drill_that_failed_is_mentioned(site: Site) -> None:
    """The restore may fail as the drill did. Without a passed drill, the last restore tells how long one takes."""
    assert site.restore().code == 0
    assert site.with_settings(DRILL_CHECK_COMMAND="false").place.run("drill").code == 1
    planned = site.restore("--plan", confirm=False)
    assert planned.code == 0, planned.output
    assert re.search(r"^Mind: the last drill, .* UTC, failed: .*: own_check_passes: ", planned.output, re.MULTILINE)
    assert re.search(r"^time +about .*, as the restore of ", planned.output, re.MULTILINE)
    doctor = site.with_settings(RESTORE_POSTGRES_USER=site.live.user).place.run("doctor")
    assert "own_check_passes: " in doctor.output


def test_a_role_without_createrole_is_reported(site: Site) -> None:
    """The remedy in the error works as written."""
    owner, role = (f"{who}_{site.live.database}" for who in ("owner", "backup"))
    sql_in_server(site, "CREATE ROLE {} LOGIN CREATEDB", role)
    sql_in_server(site, "CREATE ROLE {} NOLOGIN", owner)
    try:
        sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, role)
        for what in ("TABLE people", "TABLE identities", "TABLE person_identity_links", "MATERIALIZED VIEW counted"):
            execute(site.live, f"ALTER {what} OWNER TO {role}")
        execute(site.live, f"CREATE SCHEMA theirs AUTHORIZATION {owner}")
        site.backup = site.place.chain()
        execute(site.live, "DROP SCHEMA theirs")
        sql_in_server(site, "DROP ROLE {}", owner)
        weak = site.with_settings(RESTORE_POSTGRES_USER=role)
        line = weak.restore("--create-roles", "--plan", confirm=False).refused()
        roles = "the roles that the server lacks and give them what is theirs"
        assert f"role {role} may not create {roles}: {owner}" in line
        with admin_of(site) as session:
            session.execute(line.partition("as a superuser: ")[2].partition("; or ")[0])
        ended = weak.restore("--create-roles")
        assert ended.code == 0, ended.output
    finally:
        with admin_of(site) as session:
            for name in site.databases:
                session.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            session.execute(f"DROP ROLE IF EXISTS {owner}; DROP ROLE {role}")


# ----------------------------------------------------------------------------------------------- versions


@pytest.mark.exhaustive
@pytest.mark.parametrize("major", thinned([15, 17]))
def test_client_programs_of_another_major_are_refused(site: Site, bin_dir: Path, tmp_path: Path, major: int) -> None:
    """Another major's pg_restore can read the archive, but may send statements that the server does not know."""
    theirs = tmp_path / "bin"
    theirs.mkdir()
    for program in bin_dir.iterdir():
        (theirs / program.name).symlink_to(program)
    real = shlex.quote(str(bin_dir / "pg_restore"))
    (theirs / "pg_restore").unlink()
    executable(
        theirs / "pg_restore",
        f'[ "$1" = --version ] && echo "pg_restore (PostgreSQL) {major}.2" && exit; exec {real} "$@"',
    )
    other = site.with_settings(PG_BIN_DIR=str(theirs))
    assert other.place.run("verify", site.backup.path.name).code == 0
    for options in ((), ("--plan",), ("--mode", "drop"), ("--mode", "new"), ("--new-host",)):
        line = other.restore(*options, confirm="new" not in options).refused()
        assert f"pg_restore is of version {major}, and the server of version 16" in line
        assert "install PostgreSQL 16's client programs, or set PG_BIN_DIR" in line
    assert not list(site.place.root.glob("restores/*"))
    untouched(site)


# ----------------------------------------------------------------------------------------------- room


@contextmanager
def on_a_disk_of(size: int, bin_dir: Path) -> Iterator[PortCluster]:
    """A running server whose data directory is on a filesystem of ``size`` bytes."""
    cluster = PortCluster(bin_dir, Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp")), port=free_port())
    with tmpfs(cluster.folder, size):
        cluster.folder.chmod(0o755)
        try:
            cluster = replace(cluster, settings={"port": str(cluster.port), "max_wal_size": "64MB"})
            cluster.create()
            cluster.start()
            yield cluster
        finally:
            cluster.remove()
            cluster.folder.mkdir(exist_ok=True)
    cluster.folder.rmdir()


@pytest.mark.exhaustive
@needs_root
def test_a_server_without_room_for_the_copy_is_refused(bin_dir: Path, tmp_path: Path) -> None:
    """The free space is that of the server's disk, wherever this process runs."""
    with on_a_disk_of(200 * MEGABYTE, bin_dir) as cluster, site_on(cluster, bin_dir, tmp_path) as site:
        for mode in ("swap", "drop", "new"):
            line = site.restore("--mode", mode, confirm=mode != "new").refused()
            assert "too little room" in line
            assert re.search(r"\b1\d\d(\.\d)? MB free, 2\d\d(\.\d)? MB needed", line), line
            assert "undo-restore --list" in line
            assert ("--mode drop" in line) == (mode == "swap")
        assert not list(site.place.root.glob("restores/*"))
        untouched(site)
        subprocess.run(("mount", "-o", f"remount,size={600 * MEGABYTE}", str(cluster.folder)), check=True)
        planned = site.restore("--plan", confirm=False)
        assert planned.code == 0, planned.output
        assert free(cluster.folder) > 400 * MEGABYTE
        assert re.search(r"about 2\d\d(\.\d)? MB needed, [45]\d\d(\.\d)? MB free on the server", planned.output)


@pytest.mark.exhaustive
@needs_root
def test_a_volume_without_room_for_a_journal_is_refused(server: PortCluster, bin_dir: Path, tmp_path: Path) -> None:
    """Without a journal, a killed restore could not be finished."""
    root = tmp_path / "backups"
    with tmpfs(root, 16 * MEGABYTE), site_on(server, bin_dir, tmp_path) as site:
        with filled(root, 4 * MEGABYTE):
            for mode in ("swap", "drop", "new"):
                line = site.restore("--mode", mode, confirm=mode != "new").refused()
                assert f"the backup volume {root} has no room for a restore's journal: 4" in line
                assert "ovia-backup prune --dry-run" in line
            assert not list(root.glob("restores/*.journal"))
            assert not list(root.glob("drills/*.json"))
            untouched(site)
        ended = site.restore()
        assert ended.code == 0, ended.output
        assert site.content() == site.then


# ----------------------------------------------------------------------------------------------- the backup


def test_a_backup_that_failed_its_verification_is_refused(site: Site) -> None:
    content = site.backup.path.read_bytes()
    site.backup.path.write_bytes(content[: len(content) * 6 // 10])
    assert site.place.run("verify", site.backup.path.name).code == 1
    for mode in ("swap", "drop", "new"):
        line = site.restore("--mode", mode, confirm=mode != "new").refused()
        assert f"{site.backup} is known to be bad" in line
        assert "bytes long; it was" in line
        assert line.endswith(f"ovia-backup restore {site.backup.path.name} --mode new --even-if-damaged")
    assert not list(site.place.root.glob("restores/*"))
    untouched(site)
    ended = pasted(site, line)
    assert ended.code == 0, ended.output
    assert "lost:" in ended.output
    assert site.content() == site.now
    [made] = [name for name in site.databases if name != site.live.database]
    assert f"{made} is restored" in ended.output


@pytest.mark.parametrize("mode", thinned(["swap", "drop", "new"]))
def test_a_byte_that_the_disk_altered_is_found(site: Site, mode: str) -> None:
    """The file's size and modification time are unchanged, so its verdict still counts."""
    path, manifest = site.backup.path, site.backup.manifest
    assert manifest is not None
    before = path.stat()
    flip_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "(verified, " in site.restore("--plan", confirm=False).output
    ended = site.restore("--mode", mode, confirm=mode != "new")
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    said = f"was altered: its SHA-256 is {found[:16]}…, it was {manifest.sha256[:16]}… when it was written"
    assert said in ended.output
    untouched(site)


@pytest.mark.parametrize("mode", thinned(["swap", "drop", "new"]))
def test_a_backup_with_another_dumps_manifest_is_refused(site: Site, mode: str) -> None:
    """Archive and manifest are each intact but do not belong together, whatever an earlier verdict says."""
    other = site.place.chain()
    assert other.path != site.backup.path
    shutil.copyfile(other.sidecar(MANIFEST), site.backup.sidecar(MANIFEST))
    line = site.restore("--mode", mode, confirm=mode != "new").refused()
    assert "is known to be bad" in line
    assert f"its name is of {site.backup.started_at:%Y-%m-%d %H:%M:%S} UTC, its manifest of " in line
    untouched(site)


# ----------------------------------------------------------------------------------------------- extensions


@pytest.mark.exhaustive
def test_missing_extension_packages_are_refused_by_name(
    server: PortCluster, full_server: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    """A backup from a server with contrib is restored onto a server without it."""
    with site_on(full_server, full_bin_dir, tmp_path) as site:
        execute(
            site.live,
            "CREATE EXTENSION hstore; CREATE EXTENSION citext",
            "CREATE TABLE tags (id int, of_it hstore, name citext); INSERT INTO tags VALUES (1, 'a=>1', 'Ä')",
        )
        backup = site.place.chain()
        there = server.connection(site.live.database)
        elsewhere = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port))
        elsewhere.live, elsewhere.backup = there, backup

        def refused(*options: str) -> None:
            line = elsewhere.restore("--new-host", *options, confirm="new" not in options).refused()
            assert "lacks extensions that" in line
            assert "citext, hstore" in line
            assert "install their packages on that server" in line
            assert not list(site.place.root.glob("restores/*"))
            assert not list(site.place.root.glob("drills/*.json"))

        refused()
        refused("--mode", "new", "--into", f"{there.database}_look")
        assert elsewhere.databases == []
        sql_in_server(elsewhere, "CREATE DATABASE {}", there.database)
        try:
            execute(there, "CREATE TABLE theirs (id int)")
            elsewhere.now = elsewhere.content()
            refused()
            refused("--mode", "drop")
            untouched(elsewhere)
        finally:
            sql_in_server(elsewhere, "DROP DATABASE {} WITH (FORCE)", there.database)


# ----------------------------------------------------------------------------------------------- wrong databases


@pytest.mark.exhaustive
@pytest.mark.parametrize("known", [True, False], ids=["by its manifest", "by the archive itself"])
def test_another_databases_backup_is_refused(site: Site, known: bool) -> None:
    """It is in this database's folder, under this database's name."""
    other = f"{site.live.database}_other"
    sql_in_server(site, "CREATE DATABASE {} TEMPLATE {}", other, site.live.database)
    theirs = site.with_settings(POSTGRES_DB=other).place.chain()
    sql_in_server(site, "DROP DATABASE {}", other)
    path = site.backup.path
    for suffix in ("", MANIFEST):
        if suffix and not known:
            path.with_name(f"{path.name}{suffix}").unlink()
            continue
        shutil.copy2(theirs.path.with_name(f"{theirs.path.name}{suffix}"), path.with_name(f"{path.name}{suffix}"))
    os.utime(path, (0, 0))  # old enough not to count as being written
    if known:
        line = site.restore("--plan").refused()
        assert f"its name is of database {site.live.database}, its manifest of {other}" in line
        # Elsewhere, under a name without a date and a database, the backup is good.
        for suffix in ("", MANIFEST):
            shutil.move(path.with_name(f"{path.name}{suffix}"), site.place.root / f"theirs.dump{suffix}")
        site.backup = replace(site.backup, path=site.place.root / "theirs.dump")
    for options in ((), ("--plan",), ("--mode", "drop"), ("--mode", "drop", "--plan")):
        line = site.restore(*options).refused()
        assert f"is of database {other}, and not of {site.live.database}" in line
    assert not list(site.place.root.glob("restores/*"))
    untouched(site)
    # The command that the error names allows it; the plan then mentions it.
    planned = pasted(site, f"{line} --plan")
    assert planned.code == 0, planned.output
    assert f"Mind: it is of database {other}, and not of {site.live.database}" in planned.output
    assert site.restore("--mode", "new", "--into", f"{site.live.database}_look", confirm=False).code == 0


@pytest.mark.parametrize("mode", thinned(["swap", "drop"]))
def test_a_database_replaced_since_the_plan_is_refused(site: Site, mode: str) -> None:
    """Another session restored first. This is found before anything is restored, not hours later."""
    restorations = site.place.system.restorations
    planned = restorations.planner.plan(Wishes(mode=Mode(mode)), "a test", None, datetime.now(UTC))
    assert site.restore().code == 0
    before = len(site.records)
    with pytest.raises(RestoreRefusedError, match="is not the one that was planned for"):
        restorations.run(planned, site.live.database, print)
    assert len(site.records) == before
    assert len(site.databases) == 2


@pytest.mark.exhaustive
def test_nothing_is_planned_while_a_restore_is_unfinished(site: Site) -> None:
    """A plan would mistake what the unfinished restore left: a missing database, or a wrong one."""
    with killed_at(3, before=False):
        assert site.restore("--mode", "drop").killed
    for planned in (
        site.restore("--plan", confirm=False),
        site.restore("--new-host", "--plan", confirm=False),
        site.place.run("undo-restore", "--plan"),
    ):
        assert "ovia-backup restore --resume" in planned.refused()
    assert site.place.run("restore", "--resume").code == 0
    assert site.restore("--plan", confirm=False).code == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", thinned(["swap", "drop"]))
def test_a_role_with_only_the_owners_rights_can_restore(site: Site, mode: str) -> None:
    """The remedies set up the role. In ``public``, objects are created with the rights of the database's owner."""
    owner, role = (f"{who}_{site.live.database}" for who in ("owner", "backup"))
    sql_in_server(site, "CREATE ROLE {} NOLOGIN", owner)
    sql_in_server(site, "CREATE ROLE {} LOGIN", role)
    try:
        sql_in_server(site, "ALTER DATABASE {} OWNER TO {}", site.live.database, owner)
        for what in ("TABLE people", "TABLE identities", "TABLE person_identity_links", "MATERIALIZED VIEW counted"):
            execute(site.live, f"ALTER {what} OWNER TO {owner}")
        site.backup = site.place.chain()
        site.then = site.content()
        execute(site.live, "DELETE FROM people WHERE id = 1000")
        weak = site.with_settings(RESTORE_POSTGRES_USER=role)
        planned = weak.restore("--mode", mode, "--plan", confirm=False)
        assert "2 obstacles stand in the way: 1. role " in planned.refused()
        remedies = [line.partition("as a superuser: ")[2].partition("; or ")[0] for line in obstacles_of(planned)]
        assert len(remedies) == 2
        with admin_of(site) as session:
            for remedy in remedies:
                session.execute(remedy)
        ended = weak.restore("--mode", mode)
        assert ended.code == 0, ended.output
        assert site.content() == site.then
        assert (
            one(site.live, "SELECT datdba::regrole::text FROM pg_database WHERE datname = current_database()") == owner
        )
        if mode == "swap":
            assert weak.undo().code == 0
    finally:
        with admin_of(site) as session:
            for name in site.databases:
                session.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            session.execute(f"DROP ROLE {role}; DROP ROLE {owner}")


def test_the_same_obstacle_is_listed_once() -> None:
    found = Preflight(mock.Mock(), mock.Mock())
    for name in ("a.dump", "a.dump", "b.dump"):
        with found.collecting():
            raise VolumeError(f"{name} cannot be read", why="this user may not", fix="ls -l")

    assert [each.what for each in found.obstacles] == ["a.dump cannot be read", "b.dump cannot be read"]

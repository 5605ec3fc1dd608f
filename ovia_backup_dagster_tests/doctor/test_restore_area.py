"""The doctor's observations of restores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from unittest import mock

import pytest

from ovia_backup_dagster.core.locking import volume_lock
from ovia_backup_dagster.doctor import restore_area as restores_module
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.doctor.restore_area import restores
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.swarm import docker_api
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import execute, quiet
from ovia_backup_dagster_tests.doctor.support import as_it_should, new_role, system_of, the


@pytest.fixture
def here(database: Connection, volume: Path, bin_dir: Path) -> BackupSystem:
    """A system with a backup, whose role may restore."""
    made = system_of(database, volume, bin_dir, RESTORE_POSTGRES_USER=database.user)
    made.dumper.dump(log=quiet)
    return made


def lines(system: BackupSystem) -> list[Observation]:
    found = list(restores(system))
    assert {line.area for line in found} == {Area.RESTORES}
    return found


def test_a_system_that_can_restore_is_ok(here: BackupSystem, database: Connection) -> None:
    found = lines(here)
    assert as_it_should(found)
    the(found, f"role {database.user} may replace database {database.database} on ")
    the(found, "room for a second copy: ")
    the(found, f" needs, and {database.user} may make it")


def test_a_system_that_only_dumps_is_a_warning(database: Connection, volume: Path, bin_dir: Path) -> None:
    """It may be on purpose, but a restore then needs another role, which only a superuser can create."""
    role = new_role(database)
    [line] = lines(system_of(replace(database, user=role.user), volume, bin_dir))
    assert line.level is Severity.WARN
    assert f"no role here may restore: RESTORE_POSTGRES_USER is not set, and as {role.user}, which dumps: " in line.text
    assert "may not create or rename a database; database " in line.text
    assert (
        "< deploy/restore-role.sql; then set RESTORE_POSTGRES_USER=ovia_restore and RESTORE_POSTGRES_PASSWORD"
        in line.fix
    )


def test_the_dumping_role_may_also_restore(database: Connection, volume: Path, bin_dir: Path) -> None:
    found = lines(system_of(database, volume, bin_dir))
    assert as_it_should(found)
    the(found, f"role {database.user} may replace database {database.database} on ")


def test_a_role_that_may_not_restore_is_a_warning(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path
) -> None:
    role = new_role(database)
    found = lines(system_of(database, volume, bin_dir, RESTORE_POSTGRES_USER=role.user))
    line = the(found, "it does not have CREATEDB")
    assert (line.level, f'ALTER ROLE "{role.user}" CREATEDB' in line.fix) == (Severity.WARN, True)
    assert the(found, "does not have its rights").level is Severity.WARN
    assert not any("may replace" in line.text for line in found)


def test_a_role_that_cannot_log_in_is_a_warning(
    here: BackupSystem, database: Connection, volume: Path, bin_dir: Path
) -> None:
    [line] = lines(system_of(database, volume, bin_dir, RESTORE_POSTGRES_USER="nobody_of_that_name"))
    assert line.level is Severity.WARN
    assert "nobody_of_that_name" in line.text


def test_too_little_room_for_a_second_copy_is_a_warning(here: BackupSystem) -> None:
    with mock.patch.object(restores_module, "free_bytes", return_value=1000):
        line = the(lines(here), "too little room for a second copy: 1.0 kB free")
    assert (line.level, "--mode drop" in line.fix) == (Severity.WARN, True)


def test_replaced_databases_are_listed_with_their_undo(here: BackupSystem, database: Connection) -> None:
    name, newer = (f"{database.database}_before_2026010{day}030405" for day in (2, 3))
    execute(database.to("postgres"), f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        line = the(lines(here), f"kept until 2026-01-16: {name}")
        assert (line.level, line.text.endswith("; ovia-backup undo-restore swaps back")) == (Severity.OK, True)
        execute(database.to("postgres"), f"CREATE DATABASE {newer} TEMPLATE template0")
        found = lines(here)
        assert the(found, f": {newer}").text.endswith("; ovia-backup undo-restore swaps back")
        assert the(found, f": {name}").text.endswith(f"; ovia-backup undo-restore --kept {name} swaps back")
    finally:
        for each in (name, newer):
            execute(database.to("postgres"), f"DROP DATABASE IF EXISTS {each}")


def test_an_unfinished_restore_is_reported(here: BackupSystem, database: Connection) -> None:
    folder, name = here.restorations.folder, database.database
    folder.prepare()
    order = order_of(database, Mode.SWAP, incoming=f"{name}_restore_20260102030405")
    folder.begin(order).write(JournalMark.BEGUN, Step.RESTORE)
    with volume_lock(folder.path, purpose="the swap of a backup", now=datetime.now(UTC)):
        found = lines(here)
        assert the(found, "one is under way: the swap of a backup").level is Severity.OK
        assert as_it_should(found)
    line = the(lines(here), "is not finished")
    assert (line.level, "--resume" in line.fix, "--abort" in line.fix) == (Severity.FAIL, True, True)
    (folder.path / f"{order.filename}.journal").write_text("no journal\n", encoding="utf-8")
    assert the(lines(here), "cannot be understood").level is Severity.FAIL


@pytest.mark.parametrize(("mode", "is_left"), [(Mode.SWAP, True), (Mode.NEW, True), (Mode.UNDO, False)])
def test_only_a_copy_that_no_later_restore_owns_is_reported(
    here: BackupSystem, database: Connection, mode: Mode, is_left: bool
) -> None:
    folder, name = here.restorations.folder, database.database
    folder.prepare()
    order = order_of(database, mode, incoming=f"{name}_copy")
    execute(database.to("postgres"), f"CREATE DATABASE {order.incoming} TEMPLATE template0")
    try:
        folder.begin(order).write(JournalMark.PUT_BACK)
        found = [line for line in lines(here) if order.incoming in line.text]
        assert len(found) == is_left
        for line in found:
            assert (line.level, f'DROP DATABASE "{order.incoming}"' in line.fix) == (Severity.WARN, True)
        # Now the name is that of a database that a later restore made.
        newer = order.model_copy(update={"started_at": datetime(2026, 1, 3, tzinfo=UTC)})
        folder.begin(newer).write(JournalMark.FINISHED)
        assert as_it_should(lines(here))
    finally:
        execute(database.to("postgres"), f"DROP DATABASE {order.incoming}")


def order_of(database: Connection, mode: Mode, *, incoming: str) -> Order:
    return Order(
        mode=mode,
        started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        database=database.database,
        backup="a backup",
        host=database.host,
        port=database.port,
        incoming=incoming,
        launched_by="a test",
        made_by="a test",
    )


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/health"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "level"), [(200, Severity.OK), (503, Severity.WARN)])
def test_an_unhealthy_application_is_a_warning(
    database: Connection, volume: Path, bin_dir: Path, status: int, level: Severity
) -> None:
    with answering(status) as url, mock.patch.object(restores_module, "_HEALTH_SECONDS", 0.5):
        found = lines(system_of(database, volume, bin_dir, HEALTH_URL=url))
    assert found[-1].level is level
    assert "healthy" in found[-1].text or "503" in found[-1].text


def test_a_docker_that_does_not_answer_is_a_warning(database: Connection, volume: Path, bin_dir: Path) -> None:
    more = {"SWARM_APP_SERVICES": "ovia_ovia-api", "SWARM_DOCKER_URL": "tcp://127.0.0.1:1"}
    with mock.patch.object(docker_api, "PATIENCE_SECONDS", 0.0):
        line = the(lines(system_of(database, volume, bin_dir, **more)), "Docker does not answer")
    assert line.level is Severity.WARN

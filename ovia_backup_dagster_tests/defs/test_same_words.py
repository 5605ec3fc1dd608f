"""A failure has the same words on the command line, in Dagster's run and in the alert."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import dagster as dg
import pytest

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, execute, quiet
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import ALERT_JOB, Location, environment, failure, load
from ovia_backup_dagster_tests.faults.disks import tmpfs

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

Spoil = Callable[[Connection, PortCluster, Path], AbstractContextManager[dict[str, str]]]


def wrong_password(_: Connection, server: PortCluster, __: Path) -> AbstractContextManager[dict[str, str]]:
    tcp = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(server.port)}
    return nullcontext({**tcp, "POSTGRES_PASSWORD": "not-" + PASSWORD})


@contextmanager
def missing_right(database: Connection, _: PortCluster, __: Path) -> Iterator[dict[str, str]]:
    role = f"lesser_{database.database}"
    execute(database, f"CREATE ROLE {role} LOGIN")
    yield {"POSTGRES_USER": role}
    execute(database, f"DROP ROLE {role}")


def missing_database(_: Connection, __: PortCluster, ___: Path) -> AbstractContextManager[dict[str, str]]:
    return nullcontext({"POSTGRES_DB": "no_such_database"})


@contextmanager
def full_volume(_: Connection, __: PortCluster, volume: Path) -> Iterator[dict[str, str]]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")
    with tmpfs(volume, 200 * 1024):
        yield {}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_password, "the password here is not the server's"),
        (missing_right, "GRANT pg_read_all_data TO"),
        (missing_database, "POSTGRES_DB is wrong, or the database was dropped or renamed"),
        (full_volume, "the backup volume is full"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_failed_dump_is_reported_alike_everywhere(
    spoil: Spoil,
    words: str,
    database: Connection,
    server: PortCluster,
    volume: Path,
    bin_dir: Path,
    instance: dg.DagsterInstance,
    people: Receiver,
) -> None:
    with spoil(database, server, volume) as settings:
        variables = {**environment(database, volume, bin_dir, BACKUP_NOTIFY_URLS=people.url), **settings}
        location = Location(load(variables), instance)
        with pytest.raises(BackupError) as caught:
            location.system.dumper.dump(log=quiet)
        text = str(caught.value)
        assert words in text

        program = Path(sys.executable).with_name("ovia-backup")
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        command = [str(program), "dump"]
        cli = subprocess.run(
            command, env={**kept, **variables}, capture_output=True, text=True, check=False, timeout=120
        )
        assert (cli.returncode, cli.stdout) == (1, "")
        assert cli.stderr.splitlines()[-1] == f"ovia-backup: {text}"

        result = location.run()
        assert failure(result) == text
        event = next(event for event in result.all_events if event.is_step_failure)
        shown = event.step_failure_data.user_failure_data
        assert shown is not None
        values = {name: value.value for name, value in shown.metadata.items()}
        assert {caught.value.why, caught.value.fix} <= set(values.values())

        assert location.run(ALERT_JOB).success
        (message,) = people.messages
        assert f"Why it failed: {text}" in message["message"].splitlines()


def test_an_altered_archive_is_reported_alike_everywhere(
    database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance, people: Receiver
) -> None:
    variables = environment(database, volume, bin_dir, BACKUP_NOTIFY_URLS=people.url)
    location = Location(load(variables), instance)
    backup = location.dump()
    with open(backup.path, "r+b") as file:
        file.seek(backup.size_bytes // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))

    result = location.materialize("dump_verification")
    problem = location.catalog.backups()[0].problem

    assert problem is not None
    assert "was altered: its SHA-256 is" in problem.why
    assert failure(result) == str(problem)
    program = Path(sys.executable).with_name("ovia-backup")
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    cli = subprocess.run(
        [str(program), "verify"], env={**kept, **variables}, capture_output=True, text=True, check=False, timeout=120
    )
    assert cli.returncode == 1
    assert f"  {problem.why}" in cli.stdout.splitlines()
    assert cli.stderr.splitlines()[-1].endswith(f"Next: {problem.fix}")
    assert location.run(ALERT_JOB).success
    (message,) = people.messages
    assert f"Why newer ones are bad: {backup}: {problem.why}." in message["message"].splitlines()

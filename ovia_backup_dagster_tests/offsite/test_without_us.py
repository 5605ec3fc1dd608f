"""docs/restore-without-us.md, with nothing but the programs that it names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster_tests.conftest import REPOSITORY, execute
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place
from ovia_backup_dagster_tests.support.remotes import remote_settings

SCRIPT = re.search(r"```sh\n(#!/bin/bash\n.*?)```", (REPOSITORY / "docs/restore-without-us.md").read_text(), re.DOTALL)


@pytest.fixture
def place(database: Connection, bin_dir: Path, volume: Path, tmp_path: Path) -> Place:
    """A signed volume whose newest backup is on a remote."""
    statement_log._read.clear()
    found = place_for(database, bin_dir, volume, tmp_path)
    found = Place({**found.settings, **remote_settings(tmp_path, "vault")}, found.logs)
    found.chain()
    for command in (("offsite", "init"), ("offsite", "copy")):
        ended = found.run(*command)
        assert ended.code == 0, ended.output
    return found


def restored(
    place: Place, folder: Path, bin_dir: Path, database: Connection, new: str
) -> subprocess.CompletedProcess[str]:
    """Run the script in an empty folder with the two files of the printed page."""
    assert SCRIPT
    folder.mkdir()
    (folder / "restore-without-us.sh").write_text(SCRIPT[1])
    (folder / "verify_key.pub").write_text(Path(place.settings["BACKUP_VERIFY_KEY_FILE"]).read_text())
    identity = (folder.parent / "identity.txt").read_text().splitlines()[-1]
    (folder / "age_identity.txt").write_text(identity + "\n")
    remote = place.settings["OFFSITE_REMOTES"].partition("=")[2]
    programs = f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = {"PGHOST": database.host, "PGPORT": str(database.port), "PGUSER": database.user, "PATH": programs}
    return subprocess.run(
        ("bash", "restore-without-us.sh", remote, database.database, new),
        cwd=folder,
        env={**where, "TMPDIR": str(folder), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(connection: Connection, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(
        host=connection.host, port=connection.port, dbname=connection.database, user=connection.user
    ) as session:
        return session.execute(statement.encode()).fetchall()


def test_the_script_restores_from_nothing(place: Place, tmp_path: Path, bin_dir: Path, database: Connection) -> None:
    new = f"{database.database}_back"
    try:
        done = restored(place, tmp_path / "empty", bin_dir, database, new)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'Good "statement@ovia-backup" signature for ovia-backup' in done.stdout
        count = "SELECT count(*) FROM people"
        assert rows(database.to(new), count) == rows(database, count)
    finally:
        execute(database.to("postgres"), f'DROP DATABASE IF EXISTS "{new}"')


@pytest.mark.parametrize("forged", ["statements/00000001.json", "archive"])
def test_the_script_refuses_a_forgery(
    place: Place, tmp_path: Path, bin_dir: Path, database: Connection, forged: str
) -> None:
    [archive] = (tmp_path / "vault").glob("backups/*/*.dump.age")
    target = archive if forged == "archive" else tmp_path / "vault" / forged
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    new = f"{database.database}_forged"
    done = restored(place, tmp_path / "empty", bin_dir, database, new)
    assert done.returncode != 0
    assert rows(database.to("postgres"), f"SELECT 1 FROM pg_database WHERE datname = '{new}'") == []

"""The command line on forged or mixed-up backups, and on dumps of another source."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import DROP_ALL_TABLES, execute, snapshot
from ovia_backup_dagster_tests.support.command_line import Cli, made_earlier, one_line


def random_bytes_with_a_verdict(dump: Path) -> None:
    """Random bytes with the size and time of the verified archive."""
    status = dump.stat()
    dump.write_bytes(os.urandom(status.st_size))
    os.utime(dump, ns=(status.st_atime_ns, status.st_mtime_ns))


def yesterdays_unit_under_todays_name(dump: Path) -> None:
    name = BackupName.parse(made_earlier(dump, timedelta(days=1)))
    assert name is not None
    today = BackupName(name.database, Tier.DAILY, datetime.now(UTC)).filename
    for path in list(dump.parent.glob(f"{name.filename}*")):
        path.rename(path.with_name(path.name.replace(name.filename, today)))


@pytest.mark.parametrize(
    "forge",
    [random_bytes_with_a_verdict, yesterdays_unit_under_todays_name],
    ids=lambda forge: forge.__name__,
)
def test_a_forged_backup_is_bad_for_every_command(cli: Cli, volume: Path, forge) -> None:  # type: ignore[no-untyped-def]
    cli("dump")
    assert cli("verify").returncode == 0
    forge(next((volume / "daily").glob("*.dump")))
    (dump,) = (volume / "daily").glob("*.dump")
    before = snapshot(volume)

    code, (listed,) = cli.json("list")
    assert (code, listed["state"], listed["name"]) == (0, "bad", dump.name)
    assert listed["problem"]
    status = cli("status")
    assert status.returncode == 2
    assert "BACKUP CRITICAL - there is no backup but 1 bad one" in status.stdout
    assert f"bad: {dump.name}: " in status.stdout
    promoted = cli("promote", dump.name)
    assert (promoted.returncode, "is bad; only a verified" in promoted.stdout) == (1, True)
    one_line(cli("prune"), 1, "nothing was removed", "is bad")
    planned = cli("restore", dump.name, "--plan")
    assert (planned.returncode, f"{dump.name} is known to be bad" in planned.stdout + planned.stderr) == (1, True)
    assert snapshot(volume) == before
    assert cli("verify", dump.name).returncode == 1


def test_an_altered_globals_file_is_never_replayed(cli: Cli, volume: Path) -> None:
    """A drill creates all saved roles, but verifies the backup first, and finds it bad."""
    cli("dump")
    assert cli("verify").returncode == 0
    (roles,) = (volume / "daily").glob("*.globals.sql")
    roles.write_bytes(roles.read_bytes() + b"CREATE ROLE evil SUPERUSER LOGIN;\n")
    drilled = cli("drill")
    assert drilled.returncode == 1
    assert f"{roles.name} is " in drilled.stdout
    assert "bytes long; it was" in drilled.stdout
    assert cli.json("list")[1][0]["state"] == "bad"


def test_a_dump_of_another_source_waits_for_its_acceptance(
    cli: Cli,
    database: Connection,
    volume: Path,
    tmp_path: Path,
) -> None:
    settings = {"BACKUP_EXPECTED_TABLES": ""}
    cli("dump")
    assert cli("verify").returncode == 0
    (first,) = (volume / "daily").glob("*.dump")
    first = first.with_name(made_earlier(first, timedelta(hours=2)))
    with_all = snapshot(volume)
    execute(database, DROP_ALL_TABLES)
    cli("dump")
    verified = cli("verify", **settings)
    assert verified.returncode == 1
    assert "it holds no table at all" in verified.stdout
    wrong = max((volume / "daily").glob("*.dump"))
    assert f"Next: if that was meant: ovia-backup accept {wrong.name}; if not: check POSTGRES_HOST" in verified.stderr
    assert (volume / "daily" / f"{first.name}.held.json").exists()
    assert f"ovia-backup accept {wrong.name}" in cli("restore", wrong.name, "--plan").stderr

    assert cli("accept").returncode == 2
    accepted = cli("accept", wrong.name, **settings)
    assert accepted.returncode == 0, accepted.stderr
    assert f"{wrong.name} is verified\n  accepted: it holds no table at all" in accepted.stdout
    code, listed = cli.json("accept", wrong.name, **settings)
    assert (code, listed["state"], listed["accepted_by"] is not None) == (0, "proven", True)
    held = json.loads((volume / "daily" / f"{first.name}.held.json").read_bytes())
    assert held["released_at"] is not None
    assert {name: with_all[name] for name in with_all} == {name: snapshot(volume)[name] for name in with_all}
    cli("dump")
    assert cli("verify", **settings).returncode == 0
    shutil.copy2(first, tmp_path / first.name)
    one_line(cli("accept", str(tmp_path / first.name)), 1, "no backup called")

"""A day on which the old script as root and ours as an unprivileged user share a volume: real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.conftest import PASSWORD, NewDatabase, PortCluster, snapshot
from ovia_backup_dagster_tests.support.command_line import PROGRAM, Cli, one_line
from ovia_backup_dagster_tests.support.old_script import old_script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
US = "10001"
TO = ("--to", f"{US}:{US}")


@pytest.fixture
def volume() -> Iterator[Path]:
    """A volume that another user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
    folder.chmod(0o755)
    (folder / "backups").mkdir()
    yield folder / "backups"
    shutil.rmtree(folder)


def as_us(cli: Cli, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    user = ("setpriv", f"--reuid={US}", f"--regid={US}", "--clear-groups")
    return subprocess.run(
        [*user, str(PROGRAM), *arguments],
        env=cli.environment(HOME="/nonexistent", **settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.exhaustive
def test_both_systems_share_a_volume_for_a_day(
    new_database: NewDatabase, server: PortCluster, bin_dir: Path, volume: Path
) -> None:
    database = new_database()
    cli = Cli(
        {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_DB": database.database,
            "POSTGRES_USER": "postgres",
            "PGPASSWORD": PASSWORD,
            "BACKUP_DIR": str(volume),
            "BACKUP_LOCK_WAIT_MINUTES": "0",
            "PG_BIN_DIR": str(bin_dir),
        }
    )
    now = datetime.now(UTC).replace(microsecond=0)

    def old(at: datetime) -> None:
        dump = f"{bin_dir}/pg_dump -Fc -h {database.host} -p {database.port} -U postgres {database.database}"
        old_script(volume, at, dump=dump, database=database.database, LD_LIBRARY_PATH=str(bin_dir.parent / "lib"))

    for days in range(8, 0, -1):
        old(now - timedelta(days=days))
    # Before the hand-over, our user cannot dump to the volume.
    assert as_us(cli, "dump").returncode == 1
    code, answer = cli.json("hand-over", *TO)
    assert (code, answer["left_alone"]) == (0, [])
    assert answer["protected"] == answer["newly_protected"]
    assert len(answer["protected"]) >= 8
    before = {name: inode_and_content for name, inode_and_content in snapshot(volume).items() if name.endswith(".dump")}

    for command in (("verify", "--unverified"), ("dump",), ("verify",), ("promote",)):
        result = as_us(cli, *command)
        assert result.returncode in (0, 1 if command[0] == "promote" else 0), (command, result.stderr)
    made = json.loads(as_us(cli, "list", "--json").stdout)[0]["name"]
    for days in range(1, 10):
        old(now + timedelta(seconds=10 * days))
    assert not (volume / "daily" / made).exists()
    assert "began on" in as_us(cli, "doctor").stdout

    code, answer = cli.json("hand-over", "--finish", *TO)
    assert code == 0
    assert f"daily/{made}" in answer["came_back"]
    after = snapshot(volume)
    for name, inode_and_content in before.items():
        if not name.startswith(".handover"):
            assert after[name] == inode_and_content
    assert not [name for name in after if name.startswith(".handover")]
    assert {path.stat().st_uid for path in volume.rglob("*")} == {int(US)}
    listed = {one["name"]: one["state"] for one in json.loads(as_us(cli, "list", "--json").stdout)}
    assert listed[made] == "proven"
    result = as_us(cli, "verify", made)
    assert result.returncode == 0, result.stderr
    # From now on, our own retention decides.
    assert as_us(cli, "verify", "--unverified").returncode == 0
    result = as_us(cli, "prune")
    assert result.returncode == 0, result.stderr
    stand = sorted(json.loads(as_us(cli, "list", "--json").stdout), key=lambda one: str(one["started_at"]))
    dailies = [one["started_at"] for one in stand if one["tier"] == "daily"]
    assert dailies[0] == (now - timedelta(days=6)).isoformat()
    # The old script kept seven of the nine dumps that it made since the hand-over; we never saw the other two.
    assert len(dailies) == 6 + 1 + 7


@pytest.fixture
def alone(volume: Path) -> Cli:
    """As in a one-shot service, where no server is configured."""
    return Cli({"BACKUP_DIR": str(volume), "BACKUP_LOCK_WAIT_MINUTES": "0"})


def test_the_commands_report_what_they_did(alone: Cli, volume: Path) -> None:
    old_script(volume, datetime(2026, 6, 15, tzinfo=UTC))
    (volume / "lost+found").mkdir()
    result = alone("hand-over", *TO)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{volume} belongs to 10001:10001: 5 changed, 3 were right",
        "left alone, not ours: lost+found",
        "protected from the old script: 1 dumps, 1 of them now",
    ]
    assert "as root: ovia-backup hand-over --finish --to 10001:10001" in result.stderr
    (volume / "daily" / "ovia_daily_2026-06-15_000000.dump").unlink()
    result = alone("hand-over", "--finish", *TO)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [
        f"{volume} belongs to 10001:10001: 0 changed, 8 were right",
        "left alone, not ours: lost+found",
        "came back: daily/ovia_daily_2026-06-15_000000.dump",
        "the hand-over is over; 1 dumps came back",
    ]


@pytest.mark.parametrize("to", ["", "10001", "ovia:ovia", "1:2:3", "-1:5", "4294967295:1", "1:4294967295", "\u0661:1"])
def test_an_invalid_owner_is_refused(to: str, alone: Cli) -> None:
    result = alone("hand-over", f"--to={to}")
    assert result.returncode == 2
    assert "is not two numbers, such as 10001:10001" in result.stderr


def test_the_owner_is_required(alone: Cli, volume: Path) -> None:
    assert alone("hand-over").returncode == 2
    assert not list(volume.iterdir())


def test_a_folder_that_is_no_volume_is_refused(alone: Cli, tmp_path: Path) -> None:
    one_line(alone("hand-over", *TO, BACKUP_DIR="/etc"), 1, "/etc is not a backup volume", "set BACKUP_DIR")
    one_line(alone("hand-over", *TO, BACKUP_DIR="backups"), 1, "BACKUP_DIR", "is not an absolute path")
    one_line(alone("hand-over", *TO, BACKUP_DIR=str(tmp_path / "x")), 1, "does not exist")


def test_without_root_the_error_names_the_command(alone: Cli, volume: Path) -> None:
    old_script(volume, datetime(2026, 6, 15, tzinfo=UTC))
    one_line(as_us(alone, "hand-over", *TO), 1, "as root: ovia-backup hand-over --to 10001:10001")
    assert alone("hand-over", *TO).returncode == 0
    assert as_us(alone, "hand-over", *TO).returncode == 0
    assert as_us(alone, "hand-over", "--finish", *TO).returncode == 0

"""Volumes on filesystems that lack features of ext4.

The doctor names the missing feature. The program works around it where that is safe; otherwise it refuses.

A preloaded library (``filesystem.c``) fails the system calls that NAS, CIFS and FUSE filesystems fail.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.disks import Disk
from ovia_backup_dagster_tests.support.command_line import Cli
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import redated

SOURCE = Path(__file__).with_name("filesystem.c")


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library, for LD_PRELOAD."""
    library = tmp_path_factory.mktemp("lacking") / "lacking.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("no C compiler here")
    return library


@pytest.fixture
def cli(database: Connection, bin_dir: Path, volume: Path, lacking: Path) -> Cli:
    host = {"POSTGRES_HOST": database.host, "POSTGRES_PORT": str(database.port), "POSTGRES_USER": database.user}
    here = {"BACKUP_DIR": str(volume), "PG_BIN_DIR": str(bin_dir), "BACKUP_LOCK_WAIT_MINUTES": "0"}
    shim = {"LD_PRELOAD": str(lacking), "LACKING_DIR": str(volume)}
    return Cli({**host, "POSTGRES_DB": database.database, "BACKUP_EXPECTED_TABLES": "people", **here, **shim})


def lines_of(cli: Cli, level: str, **settings: str) -> list[str]:
    """The doctor's lines about the volume that have this level."""
    _, lines = cli.json("doctor", **settings)
    return [f"{line['text']} -> {line['fix']}" for line in lines if (line["area"], line["level"]) == ("volume", level)]


@pytest.mark.exhaustive
def test_backups_work_without_links_fsync_and_modes(cli: Cli, catalog: Catalog) -> None:
    lacks = {"LACKING_LINK": str(errno.EIO), "LACKING_FSYNC": str(errno.EINVAL), "LACKING_CHMOD": str(errno.EPERM)}
    for command in ("dump", "verify", "promote", "drill", "prune"):
        done = cli(command, **lacks)
        assert done.returncode == 0, done.stderr
    (daily,), (weekly,) = catalog.backups(Tier.DAILY), catalog.backups(Tier.WEEKLY)
    assert [each.state(datetime.now(UTC)) for each in (daily, weekly)] == [State.PROVEN, State.VERIFIED]
    assert daily.path.stat().st_ino != weekly.path.stat().st_ino
    assert daily.path.read_bytes() == weekly.path.read_bytes()
    said = "\n".join(lines_of(cli, "warn", **lacks))
    for words in (
        "has no hard links: a promoted backup is a copy, compared when it is made, and takes its own room (Input",
        "does not sync folders to the disk when asked to: after a power cut the newest backup may be missing",
        "keeps no modes: who may read a dump is decided by how it is mounted (Operation not permitted)",
    ):
        assert words in said
    assert not lines_of(cli, "fail", **lacks)
    assert "its filesystem has locks, hard links and modes, and syncs folders to the disk" in str(lines_of(cli, "ok"))
    assert not list(catalog.root.glob(".probe*"))


@pytest.mark.parametrize("code", thinned([errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP]))
def test_a_volume_without_locks_is_not_written_to(cli: Cli, catalog: Catalog, code: int) -> None:
    lacks = {"LACKING_FLOCK": str(code)}
    catalog.prepare()
    done = cli("dump", **lacks)
    assert done.returncode == 1
    assert "the backup folder's filesystem has no locks: without them" in done.stderr
    assert f"({os.strerror(code)}). Next: mount it with locks" in done.stderr
    assert "Traceback" not in done.stderr
    assert not catalog.backups()
    assert any("has no locks: nothing is written or removed there" in line for line in lines_of(cli, "fail", **lacks))


@pytest.mark.exhaustive
def test_a_volume_without_locks_is_listed_and_restored_from(cli: Cli, catalog: Catalog, volume: Path) -> None:
    assert cli("dump").returncode == 0
    (backup,) = catalog.backups()
    lacks = {"LACKING_FLOCK": str(errno.ENOLCK), "LACKING_DIR": str(volume)}
    for command in ("list", "status"):
        assert backup.path.name in cli(command, **lacks).stdout
    elsewhere = volume.with_name("elsewhere")
    elsewhere.mkdir()
    for command in ("drill", "verify"):
        done = cli(command, str(backup.path), BACKUP_DIR=str(elsewhere), **lacks)
        assert done.returncode == 0, done.stderr


def test_an_io_error_is_no_missing_filesystem_feature(cli: Cli, catalog: Catalog) -> None:
    done = cli("dump", LACKING_FSYNC=str(errno.EIO))
    assert done.returncode == 1
    assert "the disk, or the network to it, is failing" in done.stderr
    assert not catalog.backups()
    # The doctor reports the failing disk, and not a missing feature.
    failing = lines_of(cli, "fail", LACKING_FSYNC=str(errno.EIO))
    assert any("the disk, or the network to it, is failing (Input/output error)" in line for line in failing)
    assert not any("when asked to" in line for line in lines_of(cli, "warn", LACKING_FSYNC=str(errno.EIO)))


# ---------------------------------------------------------------------------------- attributes that bind root, too


@contextmanager
def attributed(letter: str, folder: Path) -> Iterator[None]:
    subprocess.run(["chattr", f"+{letter}", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{letter}", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 disk: the filesystem that the tests run on may lack attributes."""
    with Disk(tmp_path / "disk") as made:
        yield made.folder


@pytest.mark.exhaustive
@needs_root
def test_a_weekly_folder_that_is_immutable_stops_no_dump(cli: Cli, database: Connection, disk: Path) -> None:
    volume = {"BACKUP_DIR": str(disk), "BACKUP_DAILY_KEEP": "1"}
    catalog = Catalog(disk, database.database)
    catalog.prepare()
    with attributed("i", disk / "weekly"):
        for command in ("dump", "verify"):
            assert cli(command, **volume).returncode == 0
        done = cli("promote", **volume)
        assert done.returncode == 1
        why = f"the backup folder {disk}/weekly is not writable: {disk}/weekly has the attribute i (immutable"
        assert f"{why}; lsattr -d shows it), which binds root, too. Next: find out" in done.stderr
        assert f"as root: chattr -i {disk}/weekly" in done.stderr
        (line,) = lines_of(cli, "fail", **volume)
        assert why in line
        # Pruning still removes an expired backup.
        redated(catalog.backups()[0], datetime.now(UTC) - timedelta(days=3))
        for command in ("dump", "verify", "prune"):
            assert cli(command, **volume).returncode == 0
        assert len(catalog.backups()) == 1
    assert cli("promote", **volume).returncode == 0


@needs_root
@pytest.mark.parametrize(
    ("folder", "command"), thinned([("daily", "dump"), ("drills", "drill"), ("restores", "restore"), (".", "dump")])
)
def test_the_error_names_the_immutable_folder(
    cli: Cli, database: Connection, disk: Path, folder: str, command: str
) -> None:
    catalog = Catalog(disk, database.database)
    if folder != ".":
        assert cli("dump", BACKUP_DIR=str(disk)).returncode == 0
        (disk / folder).mkdir(exist_ok=True)
    with attributed("i", disk / folder):
        words = [command, *(["latest", "--mode", "new"] if command == "restore" else [])]
        done = cli(*words, BACKUP_DIR=str(disk))
        assert done.returncode == 1
        assert f"chattr -i {(disk / folder).resolve()}" in done.stderr
        assert f"{(disk / folder).resolve()} has the attribute i" in done.stderr
    assert len(catalog.backups()) == (folder != ".")


@needs_root
def test_a_refused_removal_names_the_blocking_attribute(cli: Cli, database: Connection, disk: Path) -> None:
    """The error names the attribute of the file, or that of its folder."""
    assert cli("dump", BACKUP_DIR=str(disk)).returncode == 0
    catalog = Catalog(disk, database.database)
    (backup,) = catalog.backups()
    with attributed("a", backup.path.parent):
        assert f"chattr -a {backup.path.parent}" in refusal(catalog, backup)
    with attributed("i", backup.path):
        assert f"chattr -i {backup.path}" in refusal(catalog, backup)


def refusal(catalog: Catalog, backup: Backup) -> str:
    with pytest.raises(Exception, match="cannot remove") as raised:
        remove_backup(catalog, backup)
    return str(raised.value)

"""What an operator has wrong about a remote, and programs that do not work: each is named, and nothing is changed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.errors import (
    BackupError,
    DiskFullError,
    ProgramMissingError,
    RemoteAccessError,
    RemoteError,
    RemoteForeignError,
    RemoteMissingError,
    SettingsError,
    VolumeError,
)
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import MARKER
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, filled, tmpfs
from ovia_backup_dagster_tests.offsite.ground import (
    BIG,
    KINDS,
    Ground,
    big,
    in_the_child,
    outcome,
    unchanged,
)
from ovia_backup_dagster_tests.offsite.servers import RCLONE, Resetting, obscured
from ovia_backup_dagster_tests.offsite.site import made_site
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import NOW

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# ------------------------------------------------------------------------------------------- what an operator has wrong


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_wrong_credentials_are_named(ground: Ground) -> None:
    assert ground.server is not None
    if ground.server.kind == "s3":
        ground.server.configure(secret_access_key="wrong")
    else:
        ground.server.configure(**{"pass": obscured("wrong")})  # type: ignore[arg-type]
    with unchanged(ground.site), pytest.raises(RemoteAccessError, match="refuses these credentials"):
        ground.site.copy()


@pytest.mark.exhaustive
def test_a_missing_bucket_is_named(ground: Ground) -> None:
    assert ground.server is not None
    shutil.rmtree(ground.server.folder / "bucket")
    with unchanged(ground.site), pytest.raises(RemoteMissingError, match="is new, its path is wrong"):
        ground.site.copy()
    assert not (ground.server.folder / "bucket").exists(), "and it is not made"
    with pytest.raises(RemoteMissingError):
        ground.site.remote_log.initialize(NOW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", KINDS, indirect=True)
def test_nothing_is_done_without_the_marker(ground: Ground) -> None:
    ground.site.remote.delete(MARKER)
    before = ground.site.objects()
    for act in (ground.site.copy, lambda: ground.site.operations.prune(NOW, print)):
        with unchanged(ground.site), pytest.raises(RemoteMissingError, match="has no marker"):
            act()
    assert ground.site.objects() == before


@pytest.mark.exhaustive
@pytest.mark.parametrize("ground", ["sftp"], indirect=True)
def test_a_server_of_another_host_key_is_refused(ground: Ground) -> None:
    assert ground.server is not None
    ground.server.configure(known_hosts_file="")
    with pytest.raises(RemoteAccessError, match="would accept any host key"):
        ground.site.copy()
    ground.server.configure()
    known = ground.server.config.with_name("known_hosts").read_text()
    ground.server.kill()
    ground.server.key.unlink()
    ground.server.start()
    ground.server.config.with_name("known_hosts").write_text(known)
    with unchanged(ground.site), pytest.raises(RemoteAccessError, match="is not the one in known_hosts_file"):
        ground.site.copy()


@pytest.mark.exhaustive
def test_an_encrypted_configuration_needs_its_password(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ground.server is not None
    command = (
        RCLONE,
        "--config",
        ground.server.config,
        "config",
        "encryption",
        "set",
        "--password-command",
        "echo open",
    )
    subprocess.run(command, check=True, capture_output=True)
    for password, words in (("", "set RCLONE_CONFIG_PASS"), ("wrong", "wrong password|RCLONE_CONFIG_PASS")):
        monkeypatch.setenv("RCLONE_CONFIG_PASS", password)
        with unchanged(ground.site), pytest.raises(SettingsError, match=f"RCLONE_CONFIG=.*({words})"):
            ground.site.copy()
    monkeypatch.setenv("RCLONE_CONFIG_PASS", "open")
    ground.site.backup(NOW)
    assert len(ground.site.copy().sent) == 1


@pytest.mark.exhaustive
def test_a_clock_that_differs_from_the_stores_is_named(ground: Ground) -> None:
    """A proxy sets the time of each request back by a day, as the clock of the host would. S3 looks at it first."""
    assert ground.server is not None
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y%m%dT%H%M%SZ}".encode()

    def late(data: bytes) -> bytes:
        return re.sub(rb"(?i)(x-amz-date: )\d{8}T\d{6}Z", rb"\g<1>" + yesterday, data)

    with Resetting(ground.server.port, altered=late) as proxy:
        ground.server.configure(proxy.port)
        with unchanged(ground.site), pytest.raises(RemoteAccessError, match="the clock of this host differs") as told:
            ground.site.copy()
    assert told.value.fix.startswith("timedatectl")


@pytest.mark.parametrize(
    "recipient",
    thinned(("age1yubikey1q2w7u3vpya839jxxuq8g0sedh3d740d4xvn639sqhr95ejj8vu3hyfumptt", "ssh-ed25519 AAAA", "--help")),
)
def test_a_recipient_that_runs_a_plugin_is_refused(recipient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFSITE_RECIPIENTS", recipient)
    assert any("OFFSITE_RECIPIENTS" in problem for problem in Settings.load().problems)


@pytest.mark.exhaustive
def test_two_hosts_do_not_share_a_remote(tmp_path: Path, age: Age, clock: object) -> None:
    """A second volume with the same key, as after a clone of the host."""
    first = made_site(tmp_path, age)
    second = first.at(tmp_path / "second", first.folder)
    first.backup()
    first.copy()
    before = first.objects()
    second.backup(NOW)
    for act in (second.copy, lambda: second.operations.prune(NOW, print), lambda: second.operations.verify(NOW, print)):
        with pytest.raises(RemoteForeignError, match="another host writes to it"):
            act()
    assert first.objects() == before


# ------------------------------------------------------------------------------------------------------------- programs


KILLED = "#!/bin/sh\nkill -9 $$\n"
OLD_AGE = '#!/bin/sh\necho "flag provided but not defined: -encrypt" >&2; exit 2\n'
OLD_RCLONE = '#!/bin/sh\necho "Error: unknown flag: --s3-no-check-bucket" >&2; exit 1\n'
#: It works for small inputs, and is killed in the middle of a large one.
HALF_AGE = '#!/bin/sh\n{age} "$@" | head -c 100000\n[ -e {mark} ] && kill -9 $$\ntouch {mark}\n'


@pytest.mark.parametrize(
    ("program", "text", "words"),
    thinned(
        (
            ("age", "", "age was not found in PATH"),
            ("rclone", OLD_RCLONE, "this rclone is too old"),
            ("age", KILLED, "it was ended by signal 9"),
            ("age", OLD_AGE, "flag provided but not defined"),
            ("age", HALF_AGE, "it was ended by signal 9"),
            ("age", "no program", "age does not work"),
            ("rclone", "", "rclone was not found"),
            ("rclone", KILLED, ""),
            ("rclone", "no program", "cannot be started"),
        ),
        daily=1,
    ),
)
def test_a_program_that_does_not_work_is_named(
    program: str, text: str, words: str, tmp_path: Path, age: Age, clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = made_site(tmp_path, age)
    site.backup(NOW, big(Random(1), MEGABYTE))
    real, before = age.path, site.objects()
    (tmp_path / "bin").mkdir()
    if text:
        path = tmp_path / "bin" / program
        path.write_text(text.format(age=real, mark=tmp_path / "mark") if text is HALF_AGE else text)
        path.chmod(0o755)
    for name in {"sh", "head", "touch", "age"} - {program}:
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if program == "rclone":
        monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    with unchanged(site), pytest.raises((ProgramMissingError, RemoteError), match=words or None) as refused:
        site.copy()
    assert refused.value.fix
    monkeypatch.undo()
    assert not any("receipt" in path for path in before)


# ------------------------------------------------------------------------------------------------------------- fetching


@pytest.mark.exhaustive
@pytest.mark.parametrize("wrong", ["another", "none", "missing", "garbage"])
def test_without_the_right_identity_the_setting_is_named(wrong: str, tmp_path: Path, age: Age, clock: object) -> None:
    site = made_site(tmp_path, age)
    site.backup()
    site.copy()
    other = tmp_path / "other.txt"
    if wrong == "another":
        subprocess.run(("age-keygen", "-o", other), check=True, capture_output=True)
    elif wrong == "garbage":
        other.write_text("not a key\n")
    elsewhere = replace(site, age=replace(age, identity=None if wrong == "none" else other))
    with pytest.raises(SettingsError, match="OFFSITE_IDENTITY_FILE"):
        elsewhere.fetch(tmp_path / "new")
    assert not list((tmp_path / "new" / "fetched").glob("*.*"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("room", [1, 7, 10])
def test_a_full_disk_here_leaves_nothing_of_the_file(
    room: int, tmp_path: Path, age: Age, clock: object, rng: Random
) -> None:
    """Too little from the start, or it fills up while the ciphertext, or the plain file, is written."""
    site = made_site(tmp_path, age)
    site.backup(NOW, big(rng))
    site.copy()
    with tmpfs(tmp_path / "new", 14 * MEGABYTE):
        folder, fetcher = tmp_path / "new", site.elsewhere(tmp_path / "new")
        offer = fetcher.find("latest", NOW)
        with pytest.MonkeyPatch.context() as patch, filled(folder, room * MEGABYTE):
            if room > 1:
                patch.setattr("ovia_backup_dagster.offsite.fetching._require_room", lambda *_: None)
            full = outcome(lambda: fetcher.fetch(offer, folder / "fetched", site.said.append))
        assert isinstance(full, VolumeError if room == 1 else DiskFullError), full
        assert {path.suffix for path in (folder / "fetched").iterdir()} <= {".json", ".sql"}
        assert fetcher.fetch(offer, folder / "fetched", site.said.append).stat().st_size > BIG


@pytest.mark.exhaustive
def test_a_fetch_that_was_killed_is_repeated(tmp_path: Path, age: Age, clock: object, rng: Random) -> None:
    site = made_site(tmp_path, age)
    new = site.backup(NOW, big(rng)).path
    site.copy()
    program = replace(site.remote.program, bandwidth="4M")
    slow = replace(site, remote=replace(site.remote, program=program))
    for _ in range(3):
        pid = in_the_child(lambda: slow.fetch(tmp_path / "new"))
        time.sleep(rng.uniform(0.5, 2.5))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    got = site.fetch(tmp_path / "new")
    assert got.read_bytes() == new.read_bytes()
    assert not list(got.parent.glob(".*"))


def test_errors_keep_to_one_line(tmp_path: Path, age: Age, clock: object) -> None:
    site = made_site(tmp_path, age)
    shutil.rmtree(site.folder)
    with pytest.raises(BackupError) as refused:
        site.copy()
    assert "\n" not in str(refused.value)

"""A backup copied by hand, and opened there without this program."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ovia_backup_dagster.core.errors import CopyDamagedError, RemoteAccessError, RemoteError, RemoteForeignError
from ovia_backup_dagster.offsite.manual_copy import ManualCopy, destination
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster_tests.conftest import free_port, quiet
from ovia_backup_dagster_tests.offsite.site import KEY, Site

PROGRAM = Program(stall_seconds=20)


def by_hand(site: Site, to: str, *, keys: bool) -> ManualCopy:
    age, log = (site.age, site.log) if keys else (None, None)
    return ManualCopy(site.catalog, destination(to, PROGRAM), age, log)


def shell(command: str, folder: Path) -> None:
    done = subprocess.run(("bash", "-euo", "pipefail", "-c", command), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_plain_copy_is_checked_by_sha256sum(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    made = by_hand(site, str(tmp_path / "stick"), keys=False).copy(backup, quiet)
    assert set(made) == set(os.listdir(tmp_path / "stick"))
    assert (tmp_path / "stick" / str(backup)).read_bytes() == backup.path.read_bytes()
    shell(f"sha256sum --check --strict {backup}.sha256", tmp_path / "stick")


def test_a_signed_copy_opens_with_common_programs(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    by_hand(site, str(tmp_path / "stick"), keys=True).copy(backup, quiet)
    public = KEY.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (tmp_path / "signers").write_text(f"ovia-backup {public}\n")
    commands = f"""
        ssh-keygen -Y verify -f ../signers -I ovia-backup -n statement@ovia-backup \
            -s {backup}.sha256.sig < {backup}.sha256
        for file in *.age; do age --decrypt -i {site.age.identity} -o "${{file%.age}}" "$file"; done
        sha256sum --check --strict {backup}.sha256"""
    shell(commands, tmp_path / "stick")


def test_no_file_of_the_destination_is_replaced(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    (tmp_path / f"{backup}").write_bytes(b"another")
    with pytest.raises(RemoteForeignError, match="a copy never replaces a file"):
        by_hand(site, str(tmp_path), keys=False).copy(backup, quiet)
    assert (tmp_path / f"{backup}").read_bytes() == b"another"


def test_a_file_that_rotted_is_not_copied(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    copier = by_hand(site, str(tmp_path / "stick"), keys=True)
    backup.path.write_bytes(b"\0" * backup.size_bytes)
    with pytest.raises((CopyDamagedError, Exception), match="is not the archive that was signed"):
        copier.copy(backup, quiet)
    assert not (tmp_path / "stick").exists()


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the ssh program reaches as ``me@box``, by a real SSH server with a key and a known host."""
    home, folder, port = tmp_path / "home", tmp_path / "served", free_port()
    (home / ".ssh").mkdir(mode=0o700, parents=True)
    folder.mkdir()
    for name in ("host", "user"):
        command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name)
        subprocess.run(command, check=True, capture_output=True)
    host = (home / "host.pub").read_text().rsplit(" ", 1)[0]
    (home / "known").write_text(f"[127.0.0.1]:{port} {host}\n")
    (home / "config").write_text(
        f"Host box\n HostName 127.0.0.1\n Port {port}\n IdentityFile {home}/user\n UserKnownHostsFile {home}/known\n"
    )
    served = (PROGRAM.path, "serve", "sftp", str(folder), "--addr", f"127.0.0.1:{port}", "--user", "me")
    keys = ("--key", str(home / "host"), "--authorized-keys", str(home / "user.pub"))
    # ssh finds its configuration by the account's folder, not by HOME: a program of that name gives it the file.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/config "$@"\n')
    (programs / "ssh").chmod(0o700)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with subprocess.Popen((*served, *keys), stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while not _listens(port):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield folder
        finally:
            server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.exhaustive
def test_a_copy_goes_through_ssh_and_its_known_hosts(site: Site, box: Path, tmp_path: Path) -> None:
    backup = site.backup()
    by_hand(site, "me@box:/in a/folder", keys=False).copy(backup, quiet)
    shell(f"sha256sum --check --strict {backup}.sha256", box / "in a/folder")
    known = tmp_path / "home/known"
    known.write_text(known.read_text().replace("AAAA", "AAAB"))
    with pytest.raises((RemoteAccessError, RemoteError)):
        by_hand(site, "me@box:/other", keys=False).copy(backup, quiet)
    assert not (box / "other").exists()

"""Key files: made for their owner alone, never overwritten, and refused with the setting's name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import SettingsError, VolumeError
from ovia_backup_dagster.signing.key_files import (
    SIGNING_KEY,
    VERIFY_KEY,
    NewFile,
    create_keys,
    fingerprint,
    pair_in,
    signing_key,
    verify_key,
    write_new,
)


def test_the_keys_are_one_pair_and_the_private_one_is_private(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", "ovia-backup")
    private = tmp_path / "keys" / SIGNING_KEY
    assert private.stat().st_mode & 0o777 == 0o600
    assert signing_key("K", private).public_key() == made == verify_key("K", tmp_path / "keys" / VERIFY_KEY)


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    made = create_keys(tmp_path, "ovia-backup")
    said = subprocess.run(("ssh-keygen", "-l", "-f", tmp_path / VERIFY_KEY), capture_output=True, text=True, check=True)
    assert said.stdout.split()[1] == fingerprint(made)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    create_keys(tmp_path, "ovia-backup")
    before = (tmp_path / SIGNING_KEY).read_bytes()
    with pytest.raises(VolumeError, match="exists already: a key is never overwritten"):
        create_keys(tmp_path, "ovia-backup")
    assert (tmp_path / SIGNING_KEY).read_bytes() == before


def test_of_several_files_all_or_none_are_written(tmp_path: Path) -> None:
    files = (NewFile("one", b"1"), NewFile("two", b"2", is_secret=False))
    with pytest.raises(VolumeError, match="cannot write the keys"):
        write_new(tmp_path / "new/keys", (*files, NewFile("x" * 300, b"3")))
    assert not (tmp_path / "new/keys").exists()
    (tmp_path / "two").write_bytes(b"other")
    with pytest.raises(VolumeError, match="two exists already"):
        write_new(tmp_path, files)
    assert (tmp_path / "two").read_bytes() == b"other"
    assert not (tmp_path / "one").exists()
    assert "1" not in repr(files[0])


def test_a_pair_is_found_whole_or_refused(tmp_path: Path) -> None:
    assert pair_in(tmp_path / "nowhere") is None
    made = create_keys(tmp_path / "a", "ovia-backup")
    found = pair_in(tmp_path / "a")
    assert found is not None
    assert found.public_key() == made
    create_keys(tmp_path / "b", "ovia-backup")
    (tmp_path / "b" / VERIFY_KEY).replace(tmp_path / "a" / VERIFY_KEY)
    with pytest.raises(SettingsError, match="are of two pairs"):
        pair_in(tmp_path / "a")
    with pytest.raises(SettingsError, match="cannot be read"):
        pair_in(tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "it is not an OpenSSH"),
        (b"ssh-ed25519 AAAA", "it is not an OpenSSH"),
        (b"\xff\xfe" * 40, "it is not an OpenSSH"),
    ],
)
@pytest.mark.parametrize("load", [signing_key, verify_key])
def test_an_unusable_key_names_its_setting(load: object, content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"BACKUP_A_KEY=.*{why}.*keys init"):
        load("BACKUP_A_KEY", path)  # type: ignore[operator]


@pytest.mark.parametrize("options", [("-t", "rsa", "-b", "2048", "-N", ""), ("-t", "ed25519", "-N", "a passphrase")])
def test_a_key_of_another_kind_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    subprocess.run(("ssh-keygen", "-q", *options, "-f", tmp_path / "key"), check=True)
    with pytest.raises(SettingsError, match=r"not of type Ed25519|has a passphrase"):
        signing_key("BACKUP_SIGNING_KEY_FILE", tmp_path / "key")

"""The remotes of OFFSITE_REMOTES: what is accepted, and rclone's argument for a path on one."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.core.remote_address import RemoteAddress, parse_remotes


def test_names_and_places_are_read_in_order() -> None:
    found = parse_remotes(" vault=vault:ovia backups/örders/ , nas=/mnt/nas ")
    assert found == (RemoteAddress("vault", "vault:ovia backups/örders"), RemoteAddress("nas", "/mnt/nas"))
    assert parse_remotes("") == ()


@pytest.mark.parametrize(
    ("target", "path", "argument"),
    [
        ("vault:", "x", "vault:x"),
        ("vault:a/b", "x/y", "vault:a/b/x/y"),
        ("vault:a/b", "", "vault:a/b"),
        ("/mnt/nas", "x", "/mnt/nas/x"),
        ("/", "x", "/x"),
    ],
)
def test_a_path_is_below_the_place(target: str, path: str, argument: str) -> None:
    [address] = parse_remotes(f"name={target}")
    assert address.at(path) == argument


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vault:x", "is not NAME=REMOTE:PATH"),
        ("Vault=vault:x", "is not NAME=REMOTE:PATH"),
        ("-o=vault:x", "is not NAME=REMOTE:PATH"),
        ("vault=relative/path", "or /FOLDER"),
        ("vault=", "or /FOLDER"),
        # A connection string may hold a password, and its options would reach rclone.
        ("vault=:s3,access_key_id=x:bucket", "or /FOLDER"),
        ("vault=--config:x", "or /FOLDER"),
        ("vault=nas:a/../b", "neither '..'"),
        ("vault=/mnt/..", "neither '..'"),
        ("vault=nas:a\nb", "control characters"),
        ("vault=nas:a, vault=nas:b", "name 'vault' occurs twice"),
        ("one=nas:a, two=nas:a/", "target 'nas:a' occurs twice"),
    ],
)
def test_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + said.replace("(", r"\(")):
        parse_remotes(text)

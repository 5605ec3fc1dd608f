"""Signatures: OpenSSH's own program accepts ours and the reverse, and no altered one holds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY, create_keys, signing_key, verify_key
from ovia_backup_dagster.signing.sshsig import NAMESPACE, SignatureError, sign, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MESSAGE = b'{"sequence": 1}\n'


def ssh_keygen(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(("ssh-keygen", *map(str, arguments)), input=stdin, capture_output=True, check=False)


def test_ssh_keygen_accepts_our_signature(tmp_path: Path) -> None:
    create_keys(tmp_path, "ovia-backup")
    key = signing_key("K", tmp_path / SIGNING_KEY)
    (tmp_path / "sig").write_bytes(sign(key, MESSAGE))
    (tmp_path / "signers").write_text(f"ovia-backup {(tmp_path / VERIFY_KEY).read_text()}")
    check = ("-Y", "verify", "-f", tmp_path / "signers", "-I", "ovia-backup", "-n", NAMESPACE, "-s", tmp_path / "sig")
    assert ssh_keygen(*check, stdin=MESSAGE).returncode == 0
    assert ssh_keygen(*check, stdin=MESSAGE + b" ").returncode != 0


def test_a_signature_of_ssh_keygen_holds(tmp_path: Path) -> None:
    """With a key that ssh-keygen made."""
    assert ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key").returncode == 0
    (tmp_path / "message").write_bytes(MESSAGE)
    for namespace in (NAMESPACE, "git"):
        (tmp_path / "message.sig").unlink(missing_ok=True)
        assert ssh_keygen("-Y", "sign", "-f", tmp_path / "key", "-n", namespace, tmp_path / "message").returncode == 0
        key, signature = verify_key("K", tmp_path / "key.pub"), (tmp_path / "message.sig").read_bytes()
        if namespace == NAMESPACE:
            verify(key, MESSAGE, signature)
        else:
            with pytest.raises(SignatureError, match="for another purpose"):
                verify(key, MESSAGE, signature)


def test_a_signature_of_another_key_does_not_hold() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(SignatureError, match="another key"):
        verify(KEY.public_key(), MESSAGE, sign(other, MESSAGE))


@given(st.binary(max_size=300))
def test_a_signature_holds_for_its_message_only(message: bytes) -> None:
    signature = sign(KEY, message)
    verify(KEY.public_key(), message, signature)
    with pytest.raises(SignatureError, match="one of the two was changed"):
        verify(KEY.public_key(), message + b"x", signature)


@given(st.data())
def test_an_altered_signature_does_not_hold(data: st.DataObject) -> None:
    """Any byte of it, also a line break."""
    signature = bytearray(sign(KEY, MESSAGE))
    position = data.draw(st.integers(0, len(signature) - 1))
    signature[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != signature[position]))
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), MESSAGE, bytes(signature))


@given(st.binary(max_size=400))
def test_no_other_bytes_are_a_signature(junk: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(KEY.public_key(), MESSAGE, junk)

"""Ed25519 keys in OpenSSH's files: made, and read at each use. What they sign belongs to ``sshsig``."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from ovia_backup_dagster.core.errors import SettingsError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error
from ovia_backup_dagster.core.shell import shell_word

#: The names of the two files that :func:`create_keys` writes.
SIGNING_KEY, VERIFY_KEY = "signing_key", "verify_key.pub"
_MAKE = "make a pair: ovia-backup keys init --to FOLDER"


def signing_key(variable: str, path: Path) -> Ed25519PrivateKey:
    """The private key in a file, without a passphrase.

    Raises:
        SettingsError: it cannot be read, or is not such a key; names the variable that names the file.
    """
    try:
        key = load_ssh_private_key(_read(variable, path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _unusable(variable, path, "it is not an OpenSSH private key, or has a passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(variable, path, "its key is not of type Ed25519")
    return key


def verify_key(variable: str, path: Path) -> Ed25519PublicKey:
    """The public key in a file (``ssh-ed25519 AAAA…``).

    Raises:
        SettingsError: it cannot be read, or is not such a key; names the variable that names the file.
    """
    try:
        key = load_ssh_public_key(_read(variable, path).strip())
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable(variable, path, "it is not an OpenSSH public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _unusable(variable, path, "its key is not of type Ed25519")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """The fingerprint, as ``ssh-keygen -l`` prints it."""
    blob = base64.b64decode(_public_text(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def create_keys(folder: Path, comment: str) -> Ed25519PublicKey:
    """Make a new pair of keys in two files of a folder: the private one is readable by its owner only.

    Raises:
        VolumeError: a file exists already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = f"{_public_text(key.public_key())} {comment}\n".encode()
    with as_volume_error(f"cannot write the keys to {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content, mode in ((SIGNING_KEY, private, 0o600), (VERIFY_KEY, public, 0o644)):
            try:
                descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except FileExistsError:
                raise VolumeError(
                    f"{folder / name} exists already",
                    why="a key is never overwritten: its backups could no longer be verified",
                    fix="choose another folder",
                ) from None
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    return key.public_key()


def _public_text(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = f"ls -l {shell_word(str(path))}; {_MAKE}"
        raise SettingsError(f"{variable}={path} cannot be read", why=error.strerror or "", fix=fix) from None


def _unusable(variable: str, path: Path, why: str) -> SettingsError:
    return SettingsError(f"{variable}={path} cannot be used", why=why, fix=_MAKE)

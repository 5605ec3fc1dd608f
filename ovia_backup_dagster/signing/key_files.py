"""Ed25519 keys in OpenSSH's files: made, and read at each use. What they sign belongs to ``sshsig``."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from ovia_backup_dagster.core.errors import SettingsError, VolumeError
from ovia_backup_dagster.core.files import as_volume_error, exists, sync_folder
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.signing.sshsig import public_text

#: The names of the two files of a pair.
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
    blob = base64.b64decode(public_text(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written beside the keys.

    Attributes:
        name: in the folder.
        content: may be a secret.
        is_secret: whether only the owner may read it.
    """

    name: str
    content: bytes = field(repr=False)
    is_secret: bool = True


def pair_files(key: Ed25519PrivateKey, comment: str) -> tuple[NewFile, NewFile]:
    """The two files of a pair."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = f"{public_text(key.public_key())} {comment}\n".encode()
    return NewFile(SIGNING_KEY, private), NewFile(VERIFY_KEY, public, is_secret=False)


def create_keys(folder: Path, comment: str) -> Ed25519PublicKey:
    """Make a new pair of keys in two files of a folder: the private one is readable by its owner only.

    Raises:
        VolumeError: a file exists already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    write_new(folder, pair_files(key, comment))
    return key.public_key()


def pair_in(folder: Path) -> Ed25519PrivateKey | None:
    """The private key of the pair that is in a folder; ``None`` if neither file is there.

    Raises:
        SettingsError: a file is missing or cannot be used, or the two are not of one pair.
        VolumeError: the folder cannot be read.
    """
    if not any(exists(folder / name) for name in (SIGNING_KEY, VERIFY_KEY)):
        return None
    key = signing_key("--to", folder / SIGNING_KEY)
    if verify_key("--to", folder / VERIFY_KEY) != key.public_key():
        why = f"{SIGNING_KEY} and {VERIFY_KEY} are of two pairs"
        raise SettingsError(f"--to={folder} cannot be used", why=why, fix="choose a new folder")
    return key


def write_new(folder: Path, files: Sequence[NewFile]) -> None:
    """Write new files into a folder, which is made if it is missing: all of them, or none.

    Raises:
        VolumeError: one exists already, or cannot be written.
    """
    with as_volume_error(f"cannot write the keys to {folder}"), _made(folder), contextlib.ExitStack() as undo:
        for file in files:
            path = folder / file.name
            try:
                mode = 0o600 if file.is_secret else 0o644
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except FileExistsError:
                raise VolumeError(
                    f"{path} exists already",
                    why="a key is never overwritten: its backups could no longer be verified",
                    fix="choose another folder",
                ) from None
            undo.callback(path.unlink, missing_ok=True)
            with open(descriptor, "wb") as opened:
                opened.write(file.content)
                opened.flush()
                os.fsync(opened.fileno())
        sync_folder(folder)
        undo.pop_all()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder; if it is made for the block and the block fails, it is removed again."""
    was_there = folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = f"ls -l {shell_word(str(path))}; {_MAKE}"
        raise SettingsError(f"{variable}={path} cannot be read", why=error.strerror or "", fix=fix) from None


def _unusable(variable: str, path: Path, why: str) -> SettingsError:
    return SettingsError(f"{variable}={path} cannot be used", why=why, fix=_MAKE)

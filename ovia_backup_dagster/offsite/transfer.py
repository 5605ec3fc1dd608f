"""Sends one file to a remote, encrypted, and fetches one back: hashes are taken in passing, and nothing is spooled."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

from ovia_backup_dagster.core.errors import BackupError, CopyDamagedError, RemoteStalledError
from ovia_backup_dagster.core.files import as_volume_error, reader
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.receipt import CopiedFile
from ovia_backup_dagster.postgres.programs import start
from ovia_backup_dagster.signing.statement import SignedFile

Log = Callable[[str], None]
_BLOCK = 1 << 18


class Readable(Protocol):
    """A stream that is read to its end."""

    def read(self, size: int, /) -> bytes: ...


#: How often progress is logged, in seconds.
_LOG_SECONDS = 30.0
#: How often a stream is begun again after the connection was lost.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file to send.

    Attributes:
        path: where it is.
        size_bytes, sha256: what was stated about it; another content is not sent.
    """

    path: Path
    size_bytes: int
    sha256: str


def send(
    source: PlainFile, age: Age | None, remote: Remote, path: str, *, log: Log, retry_seconds: float = 5.0
) -> CopiedFile:
    """Encrypt a file and write it to a remote; without ``age``, write it as it is.

    Raises:
        CopyDamagedError: the file is not the one that was stated.
        RemoteError: it could not be sent; after a lost connection, also not at the third attempt.
        SettingsError, ProgramMissingError, VolumeError: it cannot be encrypted or read.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _send_once(source, age, remote, path, log)
        except BackupError as error:
            if not error.transient or isinstance(error, RemoteStalledError) or attempt == _ATTEMPTS:
                raise
            log(f"{error.account}; attempt {attempt + 1} of {_ATTEMPTS} in {retry_seconds:.0f} s")
            time.sleep(retry_seconds)
    raise AssertionError


def _send_once(source: PlainFile, age: Age | None, remote: Remote, path: str, log: Log) -> CopiedFile:
    size_bytes = age.encrypted_size(source.size_bytes) if age else source.size_bytes
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    plain, sent, told, held_back = hashlib.sha256(), 0, time.monotonic(), b""
    with (
        _opened(source) as file,
        remote.writing(path, size_bytes) as stream,
        _Filter(age.encrypting() if age else ("cat",), file, plain.update) as encryption,
    ):
        while block := encryption.output.read(_BLOCK):
            for digest in (sha256, md5):
                digest.update(block)
            stream.write(held_back)
            held_back = block
            sent += len(block)
            if time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                log(f"{remote}: {human_bytes(sent)} of {human_bytes(size_bytes)} of {source.path.name}")
        # rclone takes the object for complete with its last byte: send that when the whole is known to be good.
        with as_volume_error(f"cannot read {source.path}"):
            code, stderr = encryption.end()
        if code and age:
            raise age.failed(stderr, code)
        if plain.hexdigest() != source.sha256:
            raise CopyDamagedError(
                f"{source.path.name} is not sent",
                why="its SHA-256 is not the one that was stated: it is damaged, or was replaced",
                fix=f"ovia-backup verify {source.path.name}",
            )
        if sent != size_bytes:
            raise CopyDamagedError(
                f"{source.path.name} was not encrypted as expected",
                why=f"age wrote {sent:,} bytes, and {size_bytes:,} were expected",
                fix="age --version; ovia-backup doctor",
            )
        stream.write(held_back)
    return CopiedFile(path=path, size_bytes=size_bytes, sha256=sha256.hexdigest(), md5=md5.hexdigest())


class _Filter:
    """A program between two pipes, fed by a thread of its own, because each pipe may block.

    Args:
        command: the program.
        source: what it reads.
        passing: called with each block that it is fed.
    """

    def __init__(self, command: Sequence[str], source: Readable, passing: Callable[[bytes], object]) -> None:
        self._command, self._source, self._passing = command, source, passing
        self._error: BaseException | None = None
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as held:
            self._child = held.enter_context(start(self._command, stdin=subprocess.PIPE, pipe_stdout=True))
            process = self._child.process
            assert process.stdin is not None
            assert process.stdout is not None
            self.output: IO[bytes] = process.stdout
            self._feeder = threading.Thread(target=self._feed, args=(process.stdin,), daemon=True)
            self._feeder.start()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # End the program first: the feeder may be writing to it.
        process = self._child.process
        if process.poll() is None:
            process.kill()
        self._feeder.join()
        self._held.close()

    def _feed(self, into: IO[bytes]) -> None:
        try:
            while block := self._source.read(_BLOCK):
                self._passing(block)
                with contextlib.suppress(BrokenPipeError):  # it has ended, and its exit code says why
                    into.write(block)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            with contextlib.suppress(OSError):
                into.close()

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and standard error. Raises what reading the source has raised."""
        code = self._child.wait()
        self._feeder.join()
        if self._error is not None:
            raise self._error
        return code, self._child.stderr


@contextlib.contextmanager
def _opened(source: PlainFile) -> Iterator[IO[bytes]]:
    try:
        with reader(source.path) as file:
            yield file
    except FileNotFoundError:
        raise CopyDamagedError(
            f"{source.path.name} is not sent",
            why="it is gone, and a statement names it",
            fix=f"ls -l {shell_word(str(source.path.parent))}; ovia-backup list",
        ) from None


def digest_of(remote: Remote, path: str) -> tuple[int, str]:
    """The size and the hex SHA-256 of an object, read whole.

    Raises:
        RemoteError: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    with remote.reading(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def plain_digest_of(remote: Remote, path: str, age: Age) -> tuple[int, str]:
    """The same of what an object decrypts to. Only the hash sees the plain text, so that it needs no disk.

    Raises:
        CopyDamagedError: it does not decrypt.
        RemoteError: it cannot be read.
        SettingsError, ProgramMissingError: it cannot be decrypted here.
    """
    digest, size = hashlib.sha256(), 0
    with remote.reading(path) as stream, _Filter(age.decrypting(), stream, len) as plain:
        while block := plain.output.read(_BLOCK):
            digest.update(block)
            size += len(block)
        code, stderr = plain.end()
    # After the transfer has been judged: a connection that was lost says nothing about the copy.
    if code:
        raise age.not_decrypted(path, stderr, code)
    return size, digest.hexdigest()


def fetch(remote: Remote, path: str, age: Age, target: Path, stated: SignedFile, *, log: Log) -> None:
    """Write a remote's file to ``target``, decrypted. The target is whole and as stated, or absent.

    Args:
        stated: the plain file, as it was signed; not much more than its ciphertext has is read.

    Raises:
        CopyDamagedError: it is not the file that was stated.
        RemoteError: it cannot be read.
        SettingsError, ProgramMissingError, VolumeError: it cannot be decrypted or written.
    """
    encrypted = target.with_name(f".{target.name}.age.tmp")
    plain = target.with_name(f".{target.name}.tmp")
    try:
        with as_volume_error(f"cannot write {encrypted}"):
            for left in (encrypted, plain):  # by a process that was killed
                left.unlink(missing_ok=True)
            download(remote, path, encrypted, most_bytes=_most_encrypted(stated.size_bytes), log=log)
            age.decrypt(encrypted, plain)
            encrypted.unlink()
            digest = hashlib.sha256()
            with open(plain, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
            if SignedFile(size_bytes=plain.stat().st_size, sha256=digest.hexdigest()) != stated:
                raise CopyDamagedError(
                    f"{target.name} on {remote} is not what was signed",
                    why="its SHA-256 differs: the file was replaced or altered there",
                    fix="fetch it from another remote: ovia-backup fetch BACKUP --from NAME",
                )
            plain.rename(target)
    finally:
        for left in (encrypted, plain):
            left.unlink(missing_ok=True)


def download(remote: Remote, path: str, target: Path, *, most_bytes: int, log: Log) -> tuple[int, str]:
    """Write a remote's object to a file as it is.

    Returns:
        Its size in bytes, and its hex SHA-256.

    Raises:
        CopyDamagedError: it is larger than ``most_bytes``.
        RemoteError: it cannot be read.
    """
    digest, size, told = hashlib.sha256(), 0, time.monotonic()
    with open(target, "xb", opener=_private) as file, remote.reading(path) as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > most_bytes:
                raise CopyDamagedError(
                    f"{path} on {remote} is larger than {human_bytes(most_bytes)}",
                    why="it is not what was sent",
                    fix="fetch it from another remote: ovia-backup fetch BACKUP --from NAME",
                )
            digest.update(block)
            file.write(block)
            if time.monotonic() - told > _LOG_SECONDS:
                told = time.monotonic()
                log(f"{remote}: {human_bytes(size)} of {path} fetched")
    return size, digest.hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _most_encrypted(size_bytes: int) -> int:
    """A bound for the ciphertext of a file: the header of many recipients, and 16 bytes for each 64 KiB."""
    return size_bytes + size_bytes // 4096 + 65536

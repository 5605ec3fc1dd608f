"""Runs the age program, which encrypts to a public key and decrypts with the identity that the host does not have.

age 1.1 and later. The size of a ciphertext is known beforehand: a header, and 16 bytes for each started 64 KiB.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import (
    BackupError,
    CopyDamagedError,
    DiskFullError,
    ProgramMissingError,
    SettingsError,
)
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.postgres.programs import capture, minimal_environment
from ovia_backup_dagster.postgres.watchdog import SessionProgress, Watch

_CHUNK, _TAG = 64 * 1024, 16
_INSTALL = "apt-get install age"
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Age:
    """The age program and the keys of one database's copies.

    Attributes:
        recipients: whom to encrypt to.
        identity: the file of the identity that decrypts; only where copies are restored.
    """

    recipients: tuple[str, ...] = ()
    identity: Path | None = None

    @property
    def path(self) -> str:
        """The program in PATH.

        Raises:
            ProgramMissingError: there is none.
        """
        if (found := shutil.which("age")) is None:
            raise ProgramMissingError("age was not found in PATH", why="copies are encrypted by it", fix=_INSTALL)
        return found

    def encrypting(self) -> tuple[str, ...]:
        """The command that encrypts its standard input.

        Raises:
            SettingsError: there is no recipient.
            ProgramMissingError: age is missing.
        """
        if not self.recipients:
            raise SettingsError(
                "OFFSITE_RECIPIENTS is not set",
                why="copies leave the host encrypted only",
                fix="ovia-backup keys init --to FOLDER makes an identity; then set OFFSITE_RECIPIENTS to its age1…",
            )
        return (self.path, "--encrypt", *(word for each in self.recipients for word in ("--recipient", each)))

    def encrypted(self, content: bytes) -> bytes:
        """A small content, encrypted.

        Raises:
            ProgramMissingError: age is missing, or does not work.
        """
        command, variables = self.encrypting(), minimal_environment({})
        try:
            done = subprocess.run(
                command, input=content, env=variables, capture_output=True, check=False, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self.failed(str(error), -1) from None
        if done.returncode:
            raise self.failed(done.stderr.decode("utf-8", "replace"), done.returncode)
        return done.stdout

    def encrypted_size(self, size_bytes: int) -> int:
        """The exact size of a ciphertext. The header's is measured, as it depends on the recipients.

        Raises:
            ProgramMissingError: age is missing, or does not work.
        """
        empty = len(self.encrypted(b""))
        return empty + size_bytes + _TAG * (max(1, -(-size_bytes // _CHUNK)) - 1)

    def decrypt(self, source: Path, target: Path) -> None:
        """Decrypt a file into another one, which is complete or absent.

        Raises:
            SettingsError: there is no identity, or it is not the right one.
            CopyDamagedError: the file was cut off or altered.
            ProgramMissingError: age is missing.
        """
        command = (*self.decrypting(), "--output", str(target), str(source))
        code, _, stderr = capture(command, watch=Watch(600, _hangs))
        if code:
            target.unlink(missing_ok=True)
            raise self.not_decrypted(source.name, stderr, code)

    def decrypting(self) -> tuple[str, ...]:
        """The command that decrypts.

        Raises:
            SettingsError: there is no identity.
            ProgramMissingError: age is missing.
        """
        if self.identity is None:
            raise SettingsError(
                "OFFSITE_IDENTITY_FILE is not set",
                why="the copy is encrypted to a key that this host does not have",
                fix="set it to the path of age_identity.txt, or type the identity in from the printed page",
            )
        return (self.path, "--decrypt", "--identity", str(self.identity))

    def not_decrypted(self, name: str, stderr: str, code: int) -> BackupError:
        """The error of a run that did not decrypt."""
        said = _words(stderr)
        if code < 0:
            return self.failed(stderr, code)
        if "no space left" in stderr:
            return DiskFullError(f"{name} cannot be decrypted", why="the disk is full", said=said, fix="df -h")
        if "no identity matched" in stderr:
            return SettingsError(
                f"OFFSITE_IDENTITY_FILE={self.identity} does not open the copy",
                why="it was encrypted to another key, or was replaced or altered",
                fix="use the identity that was in use when the copy was made; or another remote: ovia-backup fetch "
                "BACKUP --from NAME",
            )
        if re.search(r"identity|failed to open", stderr) and "no such file" in stderr:
            fix = f"ls -l {shell_word(str(self.identity))}"
            return SettingsError(f"OFFSITE_IDENTITY_FILE={self.identity} cannot be read", said=said, fix=fix)
        if re.search(r"malformed secret key|unknown identity|failed to parse|no secret keys found", stderr):
            fix = "set it to the path of age_identity.txt, a file with one line: AGE-SECRET-KEY-1…"
            return SettingsError(f"OFFSITE_IDENTITY_FILE={self.identity} cannot be used", said=said, fix=fix)
        return CopyDamagedError(
            f"{name} cannot be decrypted",
            why="it was cut off or altered",
            said=said,
            fix="fetch it from another remote: ovia-backup fetch BACKUP --from NAME",
        )

    def failed(self, stderr: str, code: int) -> BackupError:
        """The error of a program that does not work."""
        said = _words(stderr) or (f"it was ended by signal {-code}" if code < 0 else f"exit code {code}")
        return ProgramMissingError("age does not work", said=said, fix=f"age --version; {_INSTALL}")


def _words(stderr: str) -> str:
    lines: Sequence[str] = [
        line for line in stderr.splitlines() if line.strip() and "unexpected or unhelpful" not in line
    ]
    return lines[0].removeprefix("age: ").removeprefix("error: ") if lines else ""


def _hangs(program: str, _: SessionProgress | None) -> BackupError:
    return ProgramMissingError(f"{program} does not end", fix="df -h; dmesg | tail")

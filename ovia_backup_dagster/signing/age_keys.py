"""An age identity and its recipient, made by the program ``age-keygen``.

Copies that leave the host are encrypted to the recipient; only the identity decrypts them. The host needs the recipient
alone. The signing keys belong to ``key_files``, the page to print to ``recovery_page``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ovia_backup_dagster.core.errors import ProgramError, ProgramMissingError
from ovia_backup_dagster.core.files import NOTE_BYTES, read_small
from ovia_backup_dagster.signing.key_files import NewFile

AGE_IDENTITY, AGE_RECIPIENT = "age_identity.txt", "age_recipient.txt"
_PROGRAM = "age-keygen"
_SECONDS = 60
#: X25519 only: age looks for a plug-in of any other kind of recipient in PATH, and runs it.
_RECIPIENT = re.compile(r"^age1[02-9ac-hj-np-z]{58}$", re.MULTILINE)
_IDENTITY = re.compile(r"^AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class AgePair:
    """An identity and its recipient, each as far as it is known.

    Attributes:
        identity: the secret, ``AGE-SECRET-KEY-1…``; ``None`` if it is not on this host.
        recipient: ``age1…``; ``None`` if there is none.
    """

    identity: str | None = field(default=None, repr=False)
    recipient: str | None = None

    @property
    def files(self) -> tuple[NewFile, ...]:
        """The files of what is known."""
        found = []
        if self.identity is not None:
            found.append(NewFile(AGE_IDENTITY, f"{self.identity}\n".encode()))
        if self.recipient is not None:
            found.append(NewFile(AGE_RECIPIENT, f"{self.recipient}\n".encode(), is_secret=False))
        return tuple(found)


def new_age_pair() -> AgePair:
    """Make an identity, in memory only.

    Raises:
        ProgramMissingError: there is no age-keygen.
        ProgramError: it failed, or printed something else than keys of this kind.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise ProgramMissingError(
            f"{_PROGRAM} was not found in PATH",
            why="it makes the key that decrypts copies off this host",
            fix="apt-get install age; or, without such a key: ovia-backup keys init --without-age --to FOLDER",
        )
    identity = _IDENTITY.findall(_printed(program))
    recipient = _RECIPIENT.findall(_printed(program, "-y", given="".join(identity)))
    if (len(identity), len(recipient)) != (1, 1):
        raise _unusable("it did not print one key of age's own kind")
    return AgePair(identity[0], recipient[0])


def age_pair_in(folder: Path) -> AgePair:
    """What is in the files of a folder. A file that is missing or has another form is not known.

    Raises:
        VolumeError: a file cannot be read.
    """
    found = []
    for name, form in ((AGE_IDENTITY, _IDENTITY), (AGE_RECIPIENT, _RECIPIENT)):
        try:
            lines = form.findall(read_small(folder / name, NOTE_BYTES).decode("ascii", "replace"))
        except FileNotFoundError:
            lines = []
        found.append(lines[0] if len(lines) == 1 else None)
    return AgePair(*found)


def _printed(program: str, *arguments: str, given: str = "") -> str:
    variables = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        result = subprocess.run(
            (program, *arguments),
            input=given,
            env=variables,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unusable(type(error).__name__) from None
    if result.returncode != 0:
        # Its error output, but never what it printed: that is the secret.
        raise _unusable(result.stderr.strip().partition("\n")[0] or f"it ended with code {result.returncode}")
    return result.stdout


def _unusable(why: str) -> ProgramError:
    fix = f"try it: {_PROGRAM} --version; or: ovia-backup keys init --without-age --to FOLDER"
    return ProgramError(f"{_PROGRAM} made no key", why=why, fix=fix)

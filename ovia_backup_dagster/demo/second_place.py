"""The demo's copies: signed and encrypted to a second folder, and brought back where there is nothing else.

Needs the age program; without it, the demo makes no copies, and says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.demo.own_commands import run_command
from ovia_backup_dagster.signing.age_keys import AGE_IDENTITY, AGE_RECIPIENT
from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY

_REMOTE = "second"
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SecondPlace:
    """A remote of the demo, which is a folder beside its backups.

    Attributes:
        folder: the demo's.
    """

    folder: Path

    @property
    def place(self) -> Path:
        """Where the copies are."""
        return self.folder / _REMOTE

    @property
    def _keys(self) -> Path:
        return self.folder / "keys"

    @property
    def possible(self) -> bool:
        """Whether copies can be made here."""
        return all(shutil.which(program) for program in ("age", "age-keygen"))

    def settings(self) -> dict[str, str]:
        """The settings that sign the demo's backups and copy them; empty where that is not possible."""
        if not self.possible or not (self._keys / AGE_RECIPIENT).exists():
            return {}
        return {
            "BACKUP_SIGNING_KEY_FILE": str(self._keys / SIGNING_KEY),
            "BACKUP_VERIFY_KEY_FILE": str(self._keys / VERIFY_KEY),
            "OFFSITE_REMOTES": f"{_REMOTE}={self.place}",
            "OFFSITE_RECIPIENTS": (self._keys / AGE_RECIPIENT).read_text("utf-8").strip(),
        }

    def prepare(self, environment: Mapping[str, str], log: Log) -> dict[str, str]:
        """Make the keys and the remote, once, and take earlier backups into the signed log; returns the environment.

        Raises:
            ProgramError: a command failed.
        """
        if not self.possible:
            log("no copies to a second place: the age program is missing (apt-get install age)")
            return dict(environment)
        volume = Path(environment["BACKUP_DIR"])
        if volume.exists() and not volume.is_dir():
            return dict(environment)  # the job reports it
        if not (self._keys / AGE_RECIPIENT).exists():
            run_command(environment, "keys", "init", "--to", str(self._keys))
        signed = {**environment, **self.settings()}
        self.place.mkdir(exist_ok=True)
        volume.mkdir(mode=0o700, exist_ok=True)
        run_command(signed, "keys", "adopt")
        run_command(signed, "offsite", "init")
        return signed

    def bring_back(self, environment: Mapping[str, str]) -> str:
        """Fetch the newest copy into an empty folder, with the public key and the identity only, and verify it.

        Returns:
            The verification's result in a line; empty where no copies are made.

        Raises:
            ProgramError: a command failed.
        """
        if "OFFSITE_REMOTES" not in environment:
            return ""
        elsewhere = self.folder / "another-machine"
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir(mode=0o700)
        there = {name: value for name, value in environment.items() if name != "BACKUP_SIGNING_KEY_FILE"}
        there |= {"BACKUP_DIR": str(elsewhere), "OFFSITE_IDENTITY_FILE": str(self._keys / AGE_IDENTITY)}
        archive = run_command(there, "fetch", "latest").splitlines()[-1]
        return run_command(there, "verify", archive).splitlines()[-1]

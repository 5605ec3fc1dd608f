"""Settings for signed and encrypted copies on folders, with new keys."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY, create_keys


def new_age(folder: Path) -> Age:
    """A new identity, made by age-keygen, and its recipient."""
    identity = folder / "identity.txt"
    subprocess.run(("age-keygen", "-o", identity), check=True, capture_output=True)
    return Age((identity.read_text("utf-8").partition("public key: ")[2].split()[0],), identity)


def remote_settings(folder: Path, *names: str) -> dict[str, str]:
    """Settings for remotes of these names, each an empty folder below ``folder``, and for new keys beside them."""
    create_keys(folder / "keys", "the tests")
    age = new_age(folder)
    for name in names:
        (folder / name).mkdir()
    return {
        "BACKUP_SIGNING_KEY_FILE": str(folder / "keys" / SIGNING_KEY),
        "BACKUP_VERIFY_KEY_FILE": str(folder / "keys" / VERIFY_KEY),
        "OFFSITE_REMOTES": ", ".join(f"{name}={folder / name}" for name in names),
        "OFFSITE_RECIPIENTS": ",".join(age.recipients),
    }

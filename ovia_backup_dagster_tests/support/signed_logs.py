"""Signed logs as they were some hours ago, or as a person with the key, or without it, may have changed them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY, pair_files, write_new
from ovia_backup_dagster.signing.sshsig import sign


def forgotten() -> None:
    """What this process has read: another process would not know it."""
    statement_log._read.clear()


def key_settings(folder: Path, key: Ed25519PrivateKey) -> dict[str, str]:
    """The settings for a pair of keys, whose files this writes."""
    folder.mkdir(exist_ok=True)
    write_new(folder, pair_files(key, "ovia-backup"))
    return {
        "BACKUP_SIGNING_KEY_FILE": str(folder / SIGNING_KEY),
        "BACKUP_VERIFY_KEY_FILE": str(folder / VERIFY_KEY),
    }


def statement_paths(root: Path, database: str) -> list[Path]:
    """The files of a log's statements, in order."""
    return sorted((root / "statements" / database).glob("*.json"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}), "utf-8")


def signed_again(path: Path, key: Ed25519PrivateKey) -> None:
    path.with_name(f"{path.name}.sig").write_bytes(sign(key, path.read_bytes()))


def aged(root: Path, database: str, key: Ed25519PrivateKey, hours: float) -> datetime:
    """Let the last statement be that old; return the present."""
    now, last = datetime.now(UTC), statement_paths(root, database)[-1]
    at = now - timedelta(hours=hours)
    edit(last, at=at.isoformat(), expires_at=(at + statement_log.VALID).isoformat())
    signed_again(last, key)
    forgotten()
    return now

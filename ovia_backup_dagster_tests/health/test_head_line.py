"""The head of the signed log in messages: what a person can note, and never an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.health.head_line import log_head, with_log_head
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.support.signed_logs import edit, forgotten, statement_paths

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass(frozen=True)
class Signed:
    statement_log: StatementLog | None


class Unusable:
    @property
    def statement_log(self) -> StatementLog | None:
        raise SettingsError("BACKUP_VERIFY_KEY_FILE=x cannot be read", why="No such file", fix="ls -l x")


@pytest.fixture
def log(tmp_path: Path) -> StatementLog:
    forgotten()
    log = StatementLog(tmp_path, "shop", KEY.public_key(), KEY)
    log.published("a.dump", 1, "a" * 64, {})
    return log


def test_a_message_ends_with_the_head(log: StatementLog) -> None:
    head = log.chain().head
    assert with_log_head("All is well.", Signed(log)) == f"All is well.\nSigned log: 1 {head.sha256}"
    assert with_log_head("", Signed(log)) == f"Signed log: 1 {head.sha256}"


def test_without_keys_a_message_stays_as_it_is() -> None:
    assert with_log_head("All is well.", Signed(None)) == "All is well."


def test_a_broken_log_is_named_with_the_next_command(log: StatementLog, tmp_path: Path) -> None:
    edit(statement_paths(tmp_path, "shop")[0], backup="b.dump")
    forgotten()
    said = with_log_head("All is well.", Signed(log)).splitlines()
    assert said[0] == "All is well."
    assert said[1].startswith("Signed log: it is broken: the signature of statement 1 is invalid: ")
    assert said[1].endswith(". Next: ovia-backup log verify")
    assert len(said) == 2


def test_unusable_keys_are_named_in_the_message() -> None:
    assert log_head(Unusable()) == (
        "it was not read: BACKUP_VERIFY_KEY_FILE=x cannot be read: No such file. Next: ls -l x"
    )

"""The age identity, by the real age-keygen: age itself decrypts with it what was encrypted to its recipient."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import ProgramError, ProgramMissingError
from ovia_backup_dagster.signing.age_keys import AGE_IDENTITY, AGE_RECIPIENT, AgePair, age_pair_in, new_age_pair
from ovia_backup_dagster.signing.key_files import write_new


def test_age_decrypts_with_the_identity(tmp_path: Path) -> None:
    made = new_age_pair()
    write_new(tmp_path, made.files)
    identity, recipient = tmp_path / AGE_IDENTITY, tmp_path / AGE_RECIPIENT
    assert [path.stat().st_mode & 0o777 for path in (identity, recipient)] == [0o600, 0o644]
    sealed = subprocess.run(("age", "-R", recipient), input=b"a dump", capture_output=True, check=True).stdout
    opened = subprocess.run(("age", "-d", "-i", identity), input=sealed, capture_output=True, check=True).stdout
    assert opened == b"a dump"
    assert age_pair_in(tmp_path) == made
    assert str(made.identity) not in repr(made)
    identity.unlink()
    assert age_pair_in(tmp_path) == AgePair(None, made.recipient)


def test_a_recipient_of_a_plug_in_is_not_known(tmp_path: Path) -> None:
    (tmp_path / AGE_RECIPIENT).write_text("age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t\n")
    assert age_pair_in(tmp_path) == AgePair()


def test_without_age_keygen_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissingError, match=r"apt-get install age.*--without-age"):
        new_age_pair()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo AGE-SECRET-KEY-1XXX; echo no room >&2; exit 3", "no room"),
        ("exit 3", "it ended with code 3"),
        ("echo AGE-PLUGIN-SECRET-1XXX", "did not print one key of age's own kind"),
        (f"echo AGE-SECRET-KEY-1{'Q' * 58}", "did not print one key of age's own kind"),
        ("exec /nonexistent", "age-keygen made no key"),
    ],
)
def test_a_program_that_makes_no_key_is_refused(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "age-keygen"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError, match=said) as caught:
        new_age_pair()
    assert "SECRET" not in str(caught.value)

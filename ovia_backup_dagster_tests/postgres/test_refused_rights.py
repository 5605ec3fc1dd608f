"""The error of a restore that stops for a missing right or a missing role."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.proof.archive_entries import ArchiveEntry
from ovia_backup_dagster.proof.load_rounds import Failure
from ovia_backup_dagster.proof.violations import Met, error_of

RESCUE = "ovia-backup restore x --mode new --even-if-damaged"


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("permission denied for function pg_ls_waldir", "let a superuser restore it"),
        ("must be owner of function hstore", "let a superuser restore it"),
        ('permission denied to change owner of event trigger "e"', "--create-privileged-role NAME"),
        ("only superuser can define a leakproof function", "let a superuser restore it"),
        ('role "app reader" does not exist', "--create-roles"),
    ],
)
def test_the_fix_of_a_missing_right_does_not_blame_the_source(said: str, fix: str) -> None:
    error = error_of("the restore failed", [Met(Failure(ArchiveEntry(0, "", "", 0), ""), said, "GRANT")], (), RESCUE)
    assert fix in error.fix
    assert RESCUE not in error.fix
    assert said in error.account


def test_another_failure_keeps_its_fix() -> None:
    met = Met(Failure(ArchiveEntry(0, "", "", 0), ""), 'relation "t" does not exist', "CREATE VIEW v")
    assert RESCUE in error_of("the restore failed", [met], (), RESCUE).fix

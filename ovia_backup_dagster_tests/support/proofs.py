"""A proof that has read its backup, a copy that goes live, and the proof's lines by check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof.check_results import CheckResult
from ovia_backup_dagster.proof.prover import Proof
from ovia_backup_dagster.proof.target import Copy, live_copy
from ovia_backup_dagster.restoration.swap import database_state
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.support.drilling import Drilling


@contextmanager
def going_live(source: Connection, name: str) -> Iterator[Copy]:
    """A live copy beside the source; a database that is made there is dropped afterwards."""
    copy = live_copy(source, name, f"database {name}")
    try:
        yield copy
    finally:
        copy.drop(database_state(source, name).oid)


def proof_of(drilling: Drilling, backup: Backup, log: list[str] | None = None, *, jobs: int = 2) -> Proof:
    """A proof that has read its backup."""
    said = quiet if log is None else log.append
    proof = Proof(drilling.driller.verifier, drilling.source, backup, said, jobs=jobs)
    proof.read_backup()
    return proof


def lines_of(proof: Proof) -> dict[Check, CheckResult]:
    return {line.check: line for line in proof.lines}

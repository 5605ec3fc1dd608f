"""What the tests of the restore drill share: they dump, verify and drill a database, as the scheduled jobs do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof.check_results import NO_CODE, CheckResult, Result
from ovia_backup_dagster_tests.conftest import PortCluster, admin, quiet

THROWAWAYS = Path("/tmp")


@dataclass
class Drilling:
    """One database and its backups."""

    source: Connection
    bin_dir: Path
    volume: Path
    expectations: Expectations = Expectations()  # noqa: RUF009 - frozen

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.volume, self.source.database, lock_wait_seconds=0)

    @property
    def programs(self) -> Programs:
        return Programs(self.bin_dir)

    @property
    def driller(self) -> Driller:
        verifier = Verifier(self.catalog, self.programs, self.expectations)
        return Driller(verifier, self.source, THROWAWAYS, self.source)

    def dump(self) -> Backup:
        """A new verified backup."""
        dumper = Dumper(self.catalog, self.source, self.programs, lock_wait_timeout_seconds=1)
        backup = dumper.dump(log=quiet)
        verified = self.driller.verifier.verify(backup, log=quiet)
        assert verified.judgement.good, verified.judgement.reasons
        return verified.backup

    def drill(self, where: Where = Where.THROWAWAY, *, driller: Driller | None = None) -> Evidence:
        """Drill the newest backup."""
        driller = driller or self.driller
        return driller.drill(driller.find("latest"), Choice(where), launched_by="a test", log=quiet)

    def dump_and_drill(self, where: Where = Where.THROWAWAY) -> Evidence:
        self.dump()
        return self.drill(where)


def by_check(evidence: Evidence) -> dict[Check, CheckResult]:
    """Check -> its line; asserts that each check was made at most once."""
    lines = {line.check: line for line in evidence.lines}
    assert len(lines) == len(evidence.lines)
    assert NO_CODE not in {line.text for line in evidence.lines}
    return lines


def not_passed(evidence: Evidence) -> dict[Check, str]:
    """The checks that were made and did not pass: check -> text."""
    return {
        line.check: line.text
        for line in evidence.lines
        if line.result not in (Result.PASSED, Result.NOT_MADE) or line.check not in by_check(evidence)
    }


def assert_passed(evidence: Evidence, *odd: Check) -> None:
    """Assert that the drill passed, and that no check was odd but these."""
    assert evidence.passed, evidence.failures
    assert set(not_passed(evidence)) <= set(odd), not_passed(evidence)
    assert by_check(evidence).keys() == set(Check.at(Stage.DRILL))


@contextmanager
def database(cluster: PortCluster, name: str, options: str = "") -> Iterator[Connection]:
    """A new empty database with any name, dropped after the block."""
    quoted = sql.Identifier(name)
    with admin(cluster) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 " + options).format(quoted))
    try:
        yield cluster.connection(name)
    finally:
        with admin(cluster) as session:
            session.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(quoted))


def one(connection: Connection, query: str) -> object:
    """The first value in the result of a query."""
    with psycopg.connect(
        host=connection.host, port=connection.port, dbname=connection.database, user=connection.user
    ) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def as_role(connection: Connection, user: str) -> Connection:
    return replace(connection, user=user)

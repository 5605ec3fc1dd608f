"""Statistics, which no dump contains: runs ANALYZE on a restored copy, and checks that every table has some."""

from __future__ import annotations

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.proof.record import ProofRecord
from ovia_backup_dagster.proof.restore_messages import SURROUNDINGS

#: ANALYZE gives every table a number of rows.
_WITHOUT_STATISTICS = """
    SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.reltuples < 0 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1
"""


def analyze(copy: Connection, programs: Programs, options: str, jobs: int, record: ProofRecord) -> None:
    """Run ANALYZE on a copy.

    Args:
        copy: the database.
        programs: vacuumdb is used.
        options: ``PGOPTIONS`` of the sessions that fill the copy.
        jobs: how many tables to analyze at a time.
        record: receives the result.

    Raises:
        ServerError: the server or its disk failed, which is not a finding about the copy.
    """
    command: tuple[str, ...] = (
        programs.path("vacuumdb"),
        "--analyze-only",
        "--no-password",
        "--quiet",
        f"--jobs={jobs}",
        # vacuumdb reads -d as a connection string.
        f"--dbname={copy.conninfo()}",
    )
    command = programs.confined(command, server=copy)
    with record.phase("analyze"):
        watching = watch(programs, copy, work_counts=True)
        variables = {**copy.environment(), **in_english(copy, options)}
        code, _, stderr = capture(command, variables=variables, watch=watching)
    what = f"ANALYZE of {copy} failed"
    if code == 0:
        # vacuumdb skips tables that this role may not analyze, and still ends with 0.
        with connect(copy) as session:
            without = [row["name"] for row in session.execute(_WITHOUT_STATISTICS)]
        odd = [f"without statistics: {name}" for name in without]
        record.add(Check.ANALYZED, [], odd=odd, passed="done")
        return
    error = diagnose_program(stderr, what=what, connection=copy, exit_code=code)
    record.add(Check.ANALYZED, [error.account])
    if isinstance(error, SURROUNDINGS):
        raise error

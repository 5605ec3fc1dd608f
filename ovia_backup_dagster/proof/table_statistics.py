"""The statistics that no dump carries: ANALYZE of a restored copy, and the check that every table has some."""

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
    """Give a copy statistics.

    Args:
        copy: the database.
        programs: vacuumdb is used.
        options: ``PGOPTIONS`` of what fills the copy.
        jobs: how many tables at a time.
        record: the result is noted there.

    Raises:
        ServerError: the server or its disk failed, which says nothing about the copy.
    """
    command: tuple[str, ...] = (
        programs.path("vacuumdb"),
        "--analyze-only",
        "--no-password",
        "--quiet",
        f"--jobs={jobs}",
        # -d is read as a connection string, so it is given one.
        f"--dbname={copy.conninfo()}",
    )
    command = programs.confined(command, server=copy)
    with record.phase("analyze"):
        watching = watch(programs, copy, work_counts=True)
        variables = {**copy.environment(), **in_english(copy, options)}
        code, _, stderr = capture(command, variables=variables, watch=watching)
    what = f"ANALYZE of {copy} failed"
    if code == 0:
        # It passes over what this role may not analyze, and is content.
        with connect(copy) as session:
            without = [row["name"] for row in session.execute(_WITHOUT_STATISTICS)]
        odd = [f"without statistics: {name}" for name in without]
        record.add(Check.ANALYZED, [], odd=odd, passed="done")
        return
    error = diagnose_program(stderr, what=what, connection=copy, exit_code=code)
    record.add(Check.ANALYZED, [error.account])
    if isinstance(error, SURROUNDINGS):
        raise error

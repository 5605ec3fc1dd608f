"""(a)-(d): the daily job beside pg_dump, the old script's and ours, and beside COPY alone."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.measure import Json, alternate, ratio, run, say, seconds, summary, target
from benchmarks.world import BIN, DAGSTER, DEFINITIONS, World, libpq
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS

_TABLES = """
    SELECT format('COPY %I.%I (%s) TO STDOUT;', n.nspname, c.relname, string_agg(quote_ident(a.attname), ', '
                  ORDER BY a.attnum))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') GROUP BY n.nspname, c.relname, c.oid
    ORDER BY c.oid
"""


def measure(world: World, megabytes: int) -> Json:
    """Five rounds of all four sides."""
    database = world.database(megabytes)
    job = _Job(world, database)
    old = PgDump(world, database, "--format=custom")
    dumper = Dumper(job.catalog, database, Programs(BIN))
    ours = PgDump(
        world, database, *dumper._options(dumper.programs.choose_compression("auto"), "UTF8"), PGOPTIONS=SESSION_OPTIONS
    )
    copy = Copy(world, database)
    sides = {"job": job.run, "old_script": old.run, "pg_dump": ours.run, "copy": copy.run}
    say("to warm up: a COPY and a job")
    copy.run()
    job.run()
    job.parts.clear()
    samples = alternate(sides)
    ratios = {
        "a/b": ratio(samples["job"], samples["old_script"]),
        "a/c": ratio(samples["job"], samples["pg_dump"]),
        "c/d": ratio(samples["pg_dump"], samples["copy"]),
    }
    return {
        "database_bytes": world.size_bytes(database),
        "archive_bytes": {"old_script": old.bytes, "pg_dump": ours.bytes},
        "decoded_bytes": job.decoded_bytes,
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "job_parts": {name: summary([part[name] for part in job.parts]) for name in job.parts[0]},
        "ratios": ratios,
        "targets": [
            target("a/b", "the daily job / the old script's pg_dump", ratios["a/b"]["median"], 0.5),
            target("a/c", "the daily job / our pg_dump", ratios["a/c"]["median"], 1.7),
            target("c/d", "our pg_dump / COPY to nowhere", ratios["c/d"]["median"], 1.4),
        ],
    }


class _Job:
    """``dagster job execute``: the run from its first event to its last."""

    def __init__(self, world: World, database: Connection) -> None:
        self.environment = world.environment(database)
        self.catalog = Catalog(Path(self.environment["BACKUP_DIR"]), database.database)
        self.parts: list[dict[str, float]] = []
        self.decoded_bytes = 0

    def run(self) -> float:
        whole = run(
            (*DAGSTER, "job", "execute", "--module-name", DEFINITIONS, "--job", "daily_backup_job"), self.environment
        )
        events = _events(self.environment["DAGSTER_HOME"])
        # Before that, the process creates the run, which the daemon does in production.
        first, last = events["PIPELINE_START"], events["PIPELINE_SUCCESS"]
        # The run's own figures for its two long parts; the rest is Dagster, promotion and pruning.
        backup = self._newest()
        assert backup.manifest is not None
        assert backup.judgement is not None
        assert backup.witness is not None
        dump, verify = backup.manifest.seconds, backup.judgement.seconds
        self.decoded_bytes = backup.witness.decoded_bytes
        steps = {"dump": dump, "verification": verify, "other": last - first - dump - verify}
        self.parts.append({**steps, "process": whole})
        return last - first

    def _newest(self) -> Backup:
        return self.catalog.backups()[0]


def _events(home: str) -> dict[str, float]:
    """Kind of event -> the instant of its last event in the newest run."""
    import dagster as dg

    with dg.DagsterInstance.from_config(home) as instance:
        run = instance.get_runs(limit=1)[0]
        logs = instance.all_logs(run.run_id)
    return {entry.dagster_event.event_type_value: entry.timestamp for entry in logs if entry.dagster_event}


class PgDump:
    """pg_dump into a file; the time includes fsync."""

    def __init__(self, world: World, database: Connection, *options: str, **variables: str) -> None:
        self.target = world.path("pg_dump")
        self.command: tuple[str | Path, ...] = (BIN / "pg_dump", *options, f"--file={self.target}")
        self.environment = {**libpq(database), **variables}
        self.bytes = 0

    def run(self) -> float:
        taken = run(self.command, self.environment) + seconds(self._sync)
        self.bytes = self.target.stat().st_size
        self.target.unlink()
        return taken

    def _sync(self) -> None:
        with open(self.target, "rb") as file:
            os.fsync(file.fileno())


class Copy:
    """COPY of all tables in one session, as pg_dump reads them, without storing the rows."""

    def __init__(self, world: World, database: Connection) -> None:
        self.environment = {**libpq(database), "PGOPTIONS": SESSION_OPTIONS}
        psql: tuple[str | Path, ...] = (BIN / "psql", "--no-psqlrc", "--quiet")
        script = world.path("copy.sql")
        run((*psql, "--tuples-only", "--no-align", f"--command={_TABLES}"), self.environment, script)
        self.command = (*psql, "--set=ON_ERROR_STOP=1", f"--file={script}")

    def run(self) -> float:
        return run(self.command, self.environment)

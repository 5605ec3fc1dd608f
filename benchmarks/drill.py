"""(j, k, n): the drill beside a restore into production and counting, and unconfined; reading the copy, and a dump."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.measure import Json, alternate, ratio, run, say, seconds, summary, target
from benchmarks.world import BIN, OVIA_BACKUP, World, libpq
from ovia_backup_dagster.core.manifest import Manifest, parse_sidecar
from ovia_backup_dagster.drill.throwaway_cluster import throwaway
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.session_settings import SESSION_OPTIONS
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster.proof.roles import replay
from ovia_backup_dagster.proof.target import Copy

#: The defaults of PostgreSQL's image, as the old stack ran it: committed data is on disk.
PRODUCTION = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
_COUNT = """
    SELECT format('SELECT count(*) FROM %I.%I', schemaname, tablename)
    FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') \\gexec
"""


def measure(world: World, megabytes: int) -> Json:
    """All comparisons, their sides in turns."""
    database = world.database(megabytes)
    drills = world.path("drills")
    drills.mkdir(mode=0o711)
    environment = world.environment(database, DRILL_DIR=str(drills), POSTGRES_DB=database.database)
    for command in (("dump",), ("verify",)):
        run((OVIA_BACKUP, *command), environment)
    volume = Path(environment["BACKUP_DIR"])
    (backup,) = volume.glob("daily/*.dump")
    old = world.path("old-script")
    run((BIN / "pg_dump", "--format=custom", f"--file={old}"), libpq(database))
    production = Cluster(BIN, world.path("production"), settings=PRODUCTION)
    production.create()
    production.start()
    try:
        run((BIN / "psql", "--quiet", f"--file={backup}.globals.sql"), libpq(production.connection()))
        samples = alternate(
            {
                "drill": lambda: run((OVIA_BACKUP, "drill"), environment | {"DRILL_SANDBOX": "require"}),
                "unconfined": lambda: run((OVIA_BACKUP, "drill"), environment | {"DRILL_SANDBOX": "off"}),
                "old": lambda: _old_way(production, database.database, old),
            }
        )
    finally:
        production.remove()
    drills_made = (json.loads(path.read_text("utf-8")) for path in sorted(volume.glob("drills/*.json")))
    evidence = [drill for drill in drills_made if drill["confinement"].startswith("confined")]
    reread = _reread(world, database, backup, drills)
    whole = ratio(samples["drill"], samples["old"])
    again = ratio(reread["read"], reread["dump"])
    walls = ratio(samples["drill"], samples["unconfined"])
    found = {
        "database_bytes": world.size_bytes(database),
        "copy_bytes": evidence[-1]["copy_bytes"],
        "seconds": {name: summary(taken) for name, taken in {**samples, **reread}.items()},
        "phases": {name: summary([drill["phases"][name] for drill in evidence]) for name in evidence[-1]["phases"]},
        "recovery": summary([drill["recovery_seconds"] for drill in evidence]),
        "ratios": {"j": whole, "k": again, "n": walls},
        "targets": [
            target("j", "the whole drill / restore into production and count(*)", whole["median"], 0.75),
            target("k", "reading the copy / a bare `-Z0` dump of it", again["median"], 1.5),
            target("n", "the confined drill / the same unconfined", walls["median"], 1.02),
        ],
    }
    shutil.rmtree(volume)
    old.unlink()
    return found


def _old_way(production: Cluster, database: str, archive: Path) -> float:
    admin = libpq(production.connection())
    run((BIN / "createdb", "--template=template0", database), admin)
    try:
        return restore_and_count(production, database, archive)
    finally:
        run((BIN / "dropdb", database), admin)


def restore_and_count(production: Cluster, database: str, archive: Path) -> float:
    """Seconds of the old runbook's way: pg_restore with one process, and count(*) of every table."""
    there = libpq(production.connection(database))
    counting = production.folder / "count.sql"
    counting.write_text(_COUNT, "utf-8")
    taken = run((BIN / "pg_restore", "--exit-on-error", f"--dbname={database}", archive), there)
    return taken + run((BIN / "psql", "--no-psqlrc", "--quiet", f"--file={counting}"), there)


def _reread(world: World, database: Connection, backup: Path, folder: Path) -> dict[str, list[float]]:
    say("  reading a copy")
    programs = Programs(BIN)
    manifest = parse_sidecar(Manifest, backup.with_name(f"{backup.name}.json").read_bytes(), backup.name)
    with throwaway(
        programs, folder, database.database, manifest.database.bootstrap_superuser, keep=False, log=say
    ) as copy:
        _fill(programs, copy, backup)
        reader = CopyReader(programs, copy.connection, SESSION_OPTIONS, "UTF8")
        target_file = world.path("bare")
        bare = (BIN / "pg_dump", "--format=custom", "--compress=none", f"--file={target_file}")
        reader.read()
        return alternate(
            {
                "read": lambda: seconds(reader.read),
                "dump": lambda: run(bare, libpq(copy.connection)),
            }
        )


def _fill(programs: Programs, copy: Copy, backup: Path) -> None:
    replay(copy.server, backup.with_name(f"{backup.name}.globals.sql").read_bytes())
    copy.create(archives.database_text(programs, backup))
    restorer = Restorer(programs, copy.connection, copy.name, 2)
    restorer.restore(backup, archives.contents_list(programs, backup), None, say)

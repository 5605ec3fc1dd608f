"""(g): peaks of memory with databases of three sizes: ours, Dagster's run, and PostgreSQL's programs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Json, peaks, say, target
from benchmarks.world import DAGSTER, DEFINITIONS, OVIA_BACKUP, World


def measure(world: World, megabytes: int) -> Json:
    """A tenth of the size, the size, and four times as much; each command once: a peak is the same every time."""
    sizes = (megabytes // 10, megabytes, megabytes * 4)
    found: Json = {"databases": [], "targets": []}
    for size in sizes:
        database = world.database(size)
        environment = world.environment(database)
        say(f"memory with {size:,} MB")
        commands = {
            "dump": (OVIA_BACKUP, "dump"),
            "verify": (OVIA_BACKUP, "verify"),
            "job": (*DAGSTER, "job", "execute", "--module-name", DEFINITIONS, "--job", "daily_backup_job"),
        }
        peak = {name: peaks(command, environment) for name, command in commands.items()}
        for dump in Path(environment["BACKUP_DIR"]).rglob("*.dump"):
            dump.unlink()
        found["databases"].append({"database_bytes": world.size_bytes(database), "peak_mb": peak})
        say(f"  {peak}")
    for name, title in (("dump", "`ovia-backup dump`"), ("verify", "`ovia-backup verify`"), ("job", "the daily job")):
        values = [entry["peak_mb"][name]["self"] for entry in found["databases"]]
        found["targets"].append(
            target("g", f"memory of {title}: largest less smallest", max(values) - min(values), 20.0, "MB")
        )
    return found

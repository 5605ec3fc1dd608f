"""What pg_dump's compression costs, beside (c) and (d): the next levels, on the same database."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.dump import Copy, PgDump
from benchmarks.measure import Json, alternate, ratio, summary
from benchmarks.world import World

_ROUNDS = 3
_LEVELS = ("lz4", "zstd:1", "zstd:2", "zstd:3")


def measure(world: World, megabytes: int) -> Json:
    """Three rounds."""
    database = world.database(megabytes)
    dumps = {level: PgDump(world, database, "--format=custom", f"--compress={level}", "--no-sync") for level in _LEVELS}
    sides: dict[str, Callable[[], float]] = {level: dump.run for level, dump in dumps.items()}
    samples = alternate({**sides, "copy": Copy(world, database).run}, _ROUNDS)
    return {
        "database_bytes": world.size_bytes(database),
        "archive_bytes": {level: dump.bytes for level, dump in dumps.items()},
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "ratios": {level: ratio(samples[level], samples["copy"]) for level in _LEVELS},
        "targets": [],
    }

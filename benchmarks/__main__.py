"""``python -m benchmarks``: measure, write ``results.json``, and make ``docs/performance.md`` of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
    barman,
    compression,
    computed,
    drill,
    dump,
    latency,
    listing,
    memory,
    offsite,
    pitr,
    restore,
    signing,
    start,
    verification,
)
from benchmarks.measure import Json, say
from benchmarks.world import BIN, World, world
from ovia_backup_dagster.postgres.programs import Programs
from tools.performance import PAGE, RESULTS, rendered

MEGABYTES = 1000


def main() -> None:
    """The results of a part replace its former ones; a part that fails leaves them."""
    parts: dict[str, Callable[[World, int], Json]] = {
        "dump": dump.measure,
        "computed": computed.measure,
        "compression": compression.measure,
        "verification": verification.measure,
        "drill": drill.measure,
        "restore": restore.measure,
        "start": lambda world, _: start.measure(world),
        "listing": lambda world, _: listing.measure(world),
        "latency": lambda world, _: latency.measure(world),
        "signing": lambda world, _: signing.measure(world),
        "offsite": offsite.measure,
        "pitr": pitr.measure,
        "barman": barman.measure,
        "memory": memory.measure,
    }
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--only", help=f"parts, by commas: {', '.join(parts)}")
    parser.add_argument("--megabytes", type=int, default=MEGABYTES, help="size of the database, to try things out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="another file, which no page is made of")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [name for name in parts if name != "barman" or barman.given()]
    if unknown := set(wanted) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if "barman" in wanted and not barman.given():
        parser.error(f"set {barman.VARIABLE} to Barman's program: see benchmarks/barman.py")
    if not (BIN / "postgres").exists():
        parser.error("the full PostgreSQL build is missing: make bench fetches it")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in a shell's background ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    clock = time.monotonic()
    with world() as here:
        for name in wanted:
            say(f"{name}: {(sys.modules[f'benchmarks.{name}'].__doc__ or '').splitlines()[0]}")
            _write(options.results, name, {**_surroundings(), **parts[name](here, options.megabytes)})
    say(f"done in {(time.monotonic() - clock) / 60:.1f} min")


def _surroundings() -> Json:
    """What the figures depend on, without the machine's name and place."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "dagster": version("dagster"),
        "postgresql": Programs(BIN).version("pg_dump"),
    }


def _write(path: Path, part: str, found: Json) -> None:
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results[part] = found
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    if path == RESULTS:
        # From the file, in which the new results are sorted, too.
        PAGE.write_text(rendered(json.loads(path.read_text("utf-8"))), "utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)

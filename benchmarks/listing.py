"""(f): the sensor's tick and ``ovia-backup list`` on volumes with many backups."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from unittest import mock

from benchmarks.measure import ROUNDS, Json, alternate, run, say, seconds, summary, target
from benchmarks.world import OVIA_BACKUP, World
from ovia_backup_dagster.core.backup_statements import record_judgement
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import LargeObjects, TableWitness, Witness
from ovia_backup_dagster_tests.support import factories

COUNTS = (10, 1_000, 10_000)
_TABLES = 30


def measure(world: World, counts: tuple[int, ...] = COUNTS) -> Json:
    """Five ticks and listings on each volume; every seventh backup is a weekly one."""
    found: Json = {"volumes": [], "targets": []}
    for backups in counts:
        environment = world.environment(None)
        catalog = Catalog(Path(environment["BACKUP_DIR"]), environment["POSTGRES_DB"])
        say(f"making a volume with {backups:,} backups")
        _fill(catalog, backups)
        with _settings(environment):
            sides: dict[str, Callable[[], float]] = {
                "tick": _Tick().run,
                "list": _listing,
                "list_process": partial(_process, environment),
            }
            for side in sides.values():
                side()
            samples = alternate(sides, ROUNDS)
        found["volumes"].append({"backups": backups, "seconds": {n: summary(s, 4) for n, s in samples.items()}})
    tick = found["volumes"][-1]["seconds"]["tick"]["median"]
    found["targets"].append(target("f", f"sensor tick with {counts[-1]:,} backups", tick * 1000, 50.0, "ms"))
    return found


def _process(environment: dict[str, str]) -> float:
    return run((OVIA_BACKUP, "list", "--json"), environment)


def _fill(catalog: Catalog, backups: int) -> None:
    """Add verified backups, the newest an hour old, one for each day before it, with witnesses of realistic size."""
    catalog.prepare()
    newest = datetime.now(UTC).replace(microsecond=0) - factories.HOUR
    with mock.patch("os.fsync"):  # ten thousand calls would take minutes
        for number in range(backups):
            tier = Tier.WEEKLY if number % 7 == 6 else Tier.DAILY
            at = newest - number * factories.DAY
            if tier is Tier.DAILY:
                backup = factories.publish(catalog, at)
            else:
                backup = factories.write_dump(catalog, at, tier)
                backup.sidecar(".json").write_text(factories.make_manifest(at).to_json())
            record_judgement(catalog, backup, factories.make_judgement(backup, good=True, at=at), _witness())


def _witness() -> Witness:
    names = [f"public.table_{number}" for number in range(_TABLES)]
    columns = "(id, name, email, created_at, updated_at, attributes)"
    return Witness(
        tables=tuple(TableWitness(name=n, columns=columns, rows=12_345, sha256="0123456789abcdef" * 4) for n in names),
        sequences={f"{name}_id_seq": "12345, true" for name in names},
        large_objects=LargeObjects(),
        contents=tuple(f"{kind} public {n} ovia" for n in names for kind in ("TABLE", "TABLE DATA", "INDEX", "ACL")),
        partitions={},
        schema_sha256="0" * 64,
        decoded_bytes=10**9,
        archive_client="16.15",
    )


class _Tick:
    """An evaluation of the sensor, as in the code server."""

    def __init__(self) -> None:
        import dagster as dg

        from ovia_backup_dagster.defs.code_location import build_defs
        from ovia_backup_dagster.settings.model import Settings

        self._defs = build_defs(Settings.load())
        self._sensor = self._defs.resolve_sensor_def("backup_freshness_sensor")
        self._instance = dg.DagsterInstance.ephemeral()

    def run(self) -> float:
        import dagster as dg

        context = dg.build_sensor_context(instance=self._instance, definitions=self._defs)
        with context:
            return seconds(lambda: self._skipped(context))

    def _skipped(self, context: object) -> None:
        data = self._sensor.evaluate_tick(context)  # type: ignore[arg-type]
        assert data.skip_message is not None, "all is well on this volume"


def _listing() -> float:
    """The work of the process after its start."""
    from ovia_backup_dagster.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()):
        return seconds(lambda: main(["list", "--json"], standalone_mode=False))


@contextmanager
def _settings(environment: dict[str, str]) -> Iterator[None]:
    with mock.patch.dict(os.environ, environment, clear=True):
        yield

"""(i): what importing and starting cost beyond Dagster's own, and how soon the command line answers."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import Json, alternate, run, summary, target
from benchmarks.world import DAGSTER, DEFINITIONS, OVIA_BACKUP, PYTHON, World

_TRIVIAL = """import dagster as dg


@dg.asset
def one() -> None: ...


defs = dg.Definitions(assets=[one])
"""


def measure(world: World) -> Json:
    """As processes: an import, and ``dagster definitions validate``, which loads a location as a server does."""
    folder = world.path("trivial")
    folder.mkdir()
    (folder / "trivial.py").write_text(_TRIVIAL)
    environment = {**world.environment(None), "PYTHONPATH": str(folder)}

    def process(*command: str) -> Callable[[], float]:
        return lambda: run(command, environment)

    def starting(module: str) -> Callable[[], float]:
        return process(*DAGSTER, "definitions", "validate", "--module-name", module)

    sides = {
        "import_dagster": process(PYTHON, "-c", "import dagster"),
        "import_trivial": process(PYTHON, "-c", "import trivial"),
        "import_ours": process(PYTHON, "-c", f"import {DEFINITIONS}"),
        "start_trivial": starting("trivial"),
        "start_ours": starting(DEFINITIONS),
        "help": process(str(OVIA_BACKUP), "--help"),
    }
    for side in sides.values():
        side()  # compile the modules
    samples = alternate(sides)
    differences = {
        name: [ours - theirs for ours, theirs in zip(samples[f"{name}_ours"], samples[f"{name}_trivial"], strict=True)]
        for name in ("import", "start")
    }
    more = {name: summary(values) for name, values in differences.items()}
    return {
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "above_dagster": more,
        "targets": [
            target("i", f"{name} of ours less that of a location with one asset", values["median"], 0.5, "s")
            for name, values in more.items()
        ],
    }

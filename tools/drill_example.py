"""docs/drill-example.md, and the part of it that docs/drills.md shows: ``python -m tools.drill_example``.

The example is the evidence of a real drill of the demo's database: ``docs/drill-example.json``.
"""

from __future__ import annotations

from ovia_backup_dagster.core.manifest import parse_sidecar
from ovia_backup_dagster.drill.drill_report import drill_page
from ovia_backup_dagster.drill.evidence import Evidence
from tools.pages import DOCS, with_part

PAGE = DOCS / "drill-example.md"
DRILLS = DOCS / "drills.md"


def example() -> str:
    """The page of the example."""
    path = PAGE.with_suffix(".json")
    return drill_page(parse_sidecar(Evidence, path.read_bytes(), path.name))


def rendered(drills: str) -> str:
    """The page about drills, with the example's table of checks."""
    table = example().partition("## What was proven\n")[2].partition("\n## ")[0].lstrip("\n")
    return with_part(drills, "drill", table)


if __name__ == "__main__":
    PAGE.write_text(example(), "utf-8")
    DRILLS.write_text(rendered(DRILLS.read_text("utf-8")), "utf-8")

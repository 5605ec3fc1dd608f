"""How a figure and a table of figures look in the pages that are made of ``results.json``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.measure import Json


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(value: Json, digits: int = 2, times: float = 1) -> str:
    """The median of a summary, with the lowest and the highest in parentheses."""
    median, least, most = (f"{value[name] * times:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


def megabytes(size: int) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:,.0f} MB"

"""Whether the values that a copy computes equal the source's: generated columns, materialized views.

Pure functions over two records. ``postgres.computed_values`` takes a record; ``comparison`` compares the data that a
dump holds: rows, sequences, large objects.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.core.manifest import Computed, ComputedTable, ComputedView

_WHY_GENERATED = (
    "the rows are the backup's, and the expression gave another result here: a function in it was changed after rows "
    "were written (any UPDATE of these computes it again), or it depends on what no dump holds (a setting, the clock, "
    "the user, another table, the version of an extension or locale), whatever IMMUTABLE says"
)
_WHY_VIEW = (
    "refreshed from the backup's rows; the source's may have been stale, if its tables changed after its last REFRESH, "
    "or it depends on the clock, the user or chance"
)


@dataclass(slots=True)
class Compared:
    """The outcome of a comparison.

    Attributes:
        bad: generated columns with other values, a line for each table.
        odd: materialized views with other rows.
        columns, views: how many are equal.
        left_out: tables and views that were not compared, each with the reason.
    """

    bad: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    columns: int = 0
    views: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def made(self) -> bool:
        """Whether the check was made: something was compared, or there was nothing to compare."""
        return bool(self.bad or self.odd or self.columns or self.views) or not self.left_out

    @property
    def wrong(self) -> list[str]:
        """The bad differences, with an explanation; empty if there are none."""
        return [f"{joined(self.bad)}: {_WHY_GENERATED}"] if self.bad else []

    @property
    def strange(self) -> list[str]:
        """The odd differences, with an explanation; empty if there are none."""
        return [f"{joined(self.odd)}: {_WHY_VIEW}"] if self.odd else []

    @property
    def equal(self) -> str:
        """The number of equal columns and views, for people."""
        counts = ((self.columns, "generated column"), (self.views, "materialized view"))
        counted = [f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in counts if count]
        if counted:
            return f"{' and '.join(counted)} as in the source"
        return "" if self.left_out else "the source has neither generated columns nor materialized views"

    @property
    def not_compared(self) -> str:
        """The tables and views that were not compared, and why; empty if all were compared."""
        return f"not compared: {joined(self.left_out)}" if self.left_out else ""


def compare(source: Computed, copy: Computed) -> Compared:
    """Compare a copy with the source at the time of the dump.

    Args:
        source: the record that the dump made of the source.
        copy: the record of the copy.
    """
    found = Compared()
    if source.why:
        found.left_out.append(f"nothing could be recorded when the dump was made: {source.why}")
    found.left_out += [f"{name} ({why})" for name, why in sorted(source.left_out.items())]
    for name, table in sorted(source.tables.items()):
        if why := _compare_table(found, name, table, copy):
            found.left_out.append(f"{name} ({why})")
    for name, view in sorted(source.views.items()):
        if why := _compare_view(found, name, view, copy):
            found.left_out.append(f"{name} ({why})")
    return found


def _compare_table(found: Compared, name: str, before: ComputedTable, copy: Computed) -> str:
    """Compare a table; returns why it could not be compared, or an empty text."""
    after = copy.tables.get(name)
    if after is None:
        return copy.left_out.get(name) or copy.why or "it has no generated columns in the copy"
    # Other checks report both differences.
    if before.rows != after.rows:
        return f"{after.rows:,} rows in the copy, {before.rows:,} in the source"
    if before.key != after.key:
        return "another primary key in the copy"
    different = sorted(name for name, value in before.columns.items() if after.columns.get(name) != value)
    found.columns += len(before.columns) - len(different)
    if different:
        columns = f"column{'' if len(different) == 1 else 's'} {', '.join(different)}"
        found.bad.append(f"table {name} has other values in generated {columns} than the source had")
    return ""


def _compare_view(found: Compared, name: str, before: ComputedView, copy: Computed) -> str:
    """Compare a materialized view; returns why it could not be compared, or an empty text."""
    after = copy.views.get(name)
    if after is None:
        return copy.left_out.get(name) or copy.why or "it is not in the copy"
    if after.hash is None and before.hash is not None:
        return "it could not be refreshed"
    if before.rows != after.rows:
        found.odd.append(f"materialized view {name} has {after.rows:,} rows, and had {before.rows:,} in the source")
    elif before != after:
        found.odd.append(f"materialized view {name} has other values than it had in the source")
    else:
        found.views += 1
    return ""

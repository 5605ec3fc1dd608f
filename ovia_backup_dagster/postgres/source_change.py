"""Decides whether a dump is of the same source as those before it: a pure function that describes the differences.

A wrong host or an empty database can be dumped without an error, and after a week such dumps would replace the real
ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ovia_backup_dagster.core.verdict import Witness


def strangeness(
    witness: Witness,
    cluster: str | None,
    *,
    previous: tuple[str, Witness] | None,
    known: tuple[str, str] | None,
    meant: Collection[str | None] = (),
) -> Iterator[str]:
    """Yield the signs that a dump is of another source than those before it.

    Args:
        witness: the dump's contents.
        cluster: the dump's system identifier; ``None``, if it is unknown, is not a sign.
        previous: name and contents of the last verified dump before it.
        known: name and system identifier of the last verified dump before it whose identifier is known.
        meant: system identifiers of other clusters that the dump may be of.
    """
    if known is not None and cluster not in (None, known[1], *meant):
        yield f"it is of another cluster: system identifier {cluster}, that of {known[0]} is {known[1]}"
    tables = _tables(witness)
    before = _tables(previous[1]) if previous else None
    if not tables and before != set():
        yield "it holds no table at all"
    elif previous and before and not tables & before:
        yield f"none of the tables of {previous[0]} is in it"


def _tables(witness: Witness) -> set[str]:
    """The names of all tables, including those without data of their own."""
    # The entries are TABLE schema name owner; a table with "TABLE DATA schema name owner" has the former, too.
    entries = (entry.split(" ") for entry in witness.contents if entry.startswith("TABLE "))
    bare = {".".join(words[1:3]) for words in entries if len(words) > 2 and words[1] not in ("DATA", "ATTACH")}
    return set(witness.rows_by_table()) | bare

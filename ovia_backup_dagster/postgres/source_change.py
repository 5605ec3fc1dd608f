"""Whether a dump is of what was backed up before: a pure function, with the differences in words.

A wrong host or an empty database dumps without an error, and a week of such dumps would push the real ones out.
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
    """What is another source in a dump than in those before it.

    Args:
        witness: what the dump holds.
        cluster: its system identifier; one that is not known makes no difference.
        previous: name and reading of the last verified dump before it.
        known: name and system identifier of the last verified dump before it whose identifier is known.
        meant: identifiers of clusters that it may be of as well.
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
    """All tables, those without data of their own among them."""
    # TABLE schema name owner; and "TABLE DATA schema name owner", of which the table itself has an entry, too.
    entries = (entry.split(" ") for entry in witness.contents if entry.startswith("TABLE "))
    bare = {".".join(words[1:3]) for words in entries if len(words) > 2 and words[1] not in ("DATA", "ATTACH")}
    return set(witness.rows_by_table()) | bare

"""Whether a restored copy equals its archive: compares two readings, by pure functions.

Different content is bad. The same content in another order, or SQL that is written differently, is odd. What was the
same in the source is not a finding. ``copy_restoration`` and ``copy_comparison`` make and read the copy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.core.verdict import LargeObjects, TableWitness, Witness
from ovia_backup_dagster.postgres.quoting import without_literals
from ovia_backup_dagster.proof import grants
from ovia_backup_dagster.proof.grants import without_owner
from ovia_backup_dagster.proof.schema_text import Key, canonical, describe_object, sections, with_roles_sorted

#: Entries of a contents list that are not restored: they would connect to other servers, and block DROP DATABASE.
_LEFT_OUT = re.compile(r"(?:(?:COMMENT|SECURITY LABEL) - )?(?:PUBLICATION|SUBSCRIPTION)\b")
#: The entries among these that are restored into a database that goes live: other servers subscribe to it.
_PUBLICATION = re.compile(r"(?:(?:COMMENT|SECURITY LABEL) - )?PUBLICATION\b")
#: Entries about privileges.
_PRIVILEGES = re.compile(r"(?:DEFAULT )?ACL ")
#: initdb creates this schema; it has an entry only if its owner was changed.
_PUBLIC = "SCHEMA - public "
_STRUCTURE = re.compile(
    r"(?:CONSTRAINT|CHECK CONSTRAINT|FK CONSTRAINT|INDEX|INDEX ATTACH|TABLE ATTACH|MATERIALIZED VIEW|TRIGGER|POLICY"
    r"|ROW SECURITY|STATISTICS|RULE|EVENT TRIGGER) "
)
#: The parts of an object's SQL that PostgreSQL writes back unchanged, and that change its meaning: columns with their
#: types, constraints, disabled triggers and rules. Expressions are not among them.
_MEANING = re.compile(
    r"^    (?!(?:ADD )?CONSTRAINT |WHEN |ELSE )\S.*?(?=,?$| (?:DEFAULT|NOT NULL|GENERATED|COLLATE)\b)"
    r"|CONSTRAINT .*? CHECK\b"
    r"|\bNOT (?:NULL|VALID)\b|\bDEFAULT\b|\bGENERATED (?:ALWAYS|BY DEFAULT)\b|\bUN(?:LOGGED|IQUE)\b|\bUSING \w+"
    r"|\b(?:DISABLE|ENABLE ALWAYS|ENABLE REPLICA) \w+|\bFORCE ROW LEVEL SECURITY\b"
    r"|\bON (?:DELETE|UPDATE) [A-Z]+(?: (?:NULL|DEFAULT))?|\bINITIALLY DEFERRED\b|\b(?:NOT )?DEFERRABLE\b",
    re.MULTILINE,
)
_BOUND = (
    "TABLE",
    "FOREIGN TABLE",
    "DOMAIN",
    "INDEX",
    "TRIGGER",
    "RULE",
    "CONSTRAINT",
    "CHECK CONSTRAINT",
)
#: Kinds whose SQL PostgreSQL writes back unchanged.
_LITERAL_KINDS = (
    "TYPE",
    "FK CONSTRAINT",
    "SEQUENCE",
    "SEQUENCE OWNED BY",
    "ROW SECURITY",
    "INDEX ATTACH",
)
#: Kinds whose SQL counts as the same if only casts and parentheses in expressions differ.
_CANONICAL_KINDS = ("POLICY", "FUNCTION", "PROCEDURE", "AGGREGATE", "EVENT TRIGGER", "VIEW")
_LARGE_OBJECT = re.compile(rb" LARGE OBJECT (\d+) ")
_OF_LARGE_OBJECT = "ACL - LARGE OBJECT "
#: Kinds whose text may hold secrets: passwords, or anything that a user wrote into a function or comment.
_SECRETIVE = ("USER MAPPING", "SERVER", "FUNCTION", "PROCEDURE", "SUBSCRIPTION", "FOREIGN DATA WRAPPER", "COMMENT")
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Unordered:
    """One table's rows, independent of their order.

    Attributes:
        rows: how many.
        total: the sum modulo 2**256 of the SHA-256 of each row.
    """

    rows: int
    total: int


def unequal_tables(original: Witness, copy: Witness) -> tuple[str, ...]:
    """The tables that differ by any byte: in columns, rows, content or order; or that one side lacks."""
    before, after = _by_name(original), _by_name(copy)
    return tuple(name for name in sorted({*before, *after}) if before.get(name) != after.get(name))


def comparable(name: str, original: Witness, copy: Witness, columns: Callable[[str], Sequence[str]]) -> bool:
    """Whether an unequal table may still hold the same rows, in another order of rows or columns."""
    before, after = _by_name(original).get(name), _by_name(copy).get(name)
    if before is None or after is None or before.rows != after.rows:
        return False
    return sorted(columns(before.columns)) == sorted(columns(after.columns))


def table_differences(
    original: Witness, copy: Witness, rows: Mapping[str, tuple[Unordered, Unordered]]
) -> tuple[list[str], list[str]]:
    """The bad and the odd differences of the tables, a line for each table.

    Args:
        original, copy: both readings, in order.
        rows: table that may hold the same rows in another order -> both sides' rows, independent of order.
    """
    bad, odd = [], []
    before, after = _by_name(original), _by_name(copy)
    for name in unequal_tables(original, copy):
        if name not in after:
            bad.append(f"table {name} is not in the copy; the backup holds {before[name].rows:,} rows of it")
        elif name not in before:
            bad.append(f"table {name} is in the copy, but not in the backup")
        elif before[name].rows != after[name].rows:
            bad.append(
                f"table {name} has {after[name].rows:,} rows in the copy and {before[name].rows:,} in the backup"
            )
        elif name not in rows:
            bad.append(f"table {name} has other columns in the copy: {after[name].columns}, not {before[name].columns}")
        elif rows[name][0] != rows[name][1]:
            bad.append(f"table {name} differs in the content of its {before[name].rows:,} rows")
        else:
            odd.append(f"table {name} holds the same rows, in another order of rows or columns")
    return bad, odd


def sequence_differences(original: Witness, copy: Witness) -> list[str]:
    """Sequences that are missing, added, or have another value."""
    before, after = original.sequences, copy.sequences
    return [
        f"sequence {name}: {after.get(name, 'missing')} in the copy, {before.get(name, 'missing')} in the backup"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def large_object_differences(original: LargeObjects, copy: LargeObjects) -> list[str]:
    """One line if the large objects differ."""
    if original == copy:
        return []
    if original.count != copy.count:
        return [f"the copy has {copy.count:,} large objects, the backup {original.count:,}"]
    return [f"the content of the {original.count:,} large objects differs"]


def large_object_note_differences(
    original: Sequence[bytes], copy: Sequence[bytes], *, with_privileges: bool
) -> list[str]:
    """One line if the privileges or comments of large objects differ.

    Args:
        original, copy: the statements that set them.
        with_privileges: whether the copy was given the source's privileges.
    """
    before, after = (
        Counter(each for each in statements if with_privileges or not each.startswith((b"GRANT ", b"REVOKE ")))
        for statements in (original, copy)
    )
    missing, added = before - after, after - before
    named = {match[1].decode() for each in (missing, added) for text in each if (match := _LARGE_OBJECT.search(text))}
    return [f"privileges or comments differ of large objects: {joined(sorted(named, key=int))}"] if named else []


def left_out(entry: str, *, live: bool = False) -> bool:
    """Whether an entry of a contents list is not restored.

    Args:
        entry: ``TYPE schema name owner``.
        live: whether the database goes live: then it gets publications.
    """
    return _LEFT_OUT.match(entry) is not None and not (live and _PUBLICATION.match(entry))


def is_structure(entry: str) -> bool:
    """Whether an entry is a part of a table besides its columns and rows: a constraint, an index, a trigger."""
    return _STRUCTURE.match(entry) is not None


def contents_differences(
    original: Sequence[str],
    copy: Sequence[str],
    *,
    with_owners: bool,
    live: bool = False,
    roles: Collection[str] = (),
    without: Collection[str] = (),
) -> list[str]:
    """Entries that only one of the contents lists has, except those that are not restored.

    The owner of a part of another object is not compared: that object has its own entry. Privileges are compared by
    their meaning (:func:`compare_privileges`).

    Args:
        original, copy: entries, ``TYPE schema name owner``.
        with_owners: whether the copy has the source's owners and privileges.
        live: whether the copy has the source's publications.
        roles: all possible owners.
        without: further entries that were not restored into the copy.
    """
    before = Counter(entry for entry in original if not left_out(entry, live=live) and entry not in without)
    after = Counter(entry for entry in copy if not left_out(entry, live=live))
    if with_owners:
        before, after = (_by_object(entries, roles) for entries in (before, after))
    else:
        before, after = _without_owners(before, after)
    missing, added = before - after, after - before
    return [f"missing in the copy: {entry}" for entry in sorted(missing.elements())] + [
        f"only in the copy: {entry}" for entry in sorted(added.elements())
    ]


def _by_object(entries: Counter[str], roles: Collection[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for entry, count in entries.items():
        if not _PRIVILEGES.match(entry) or entry.startswith(_OF_LARGE_OBJECT):
            found[without_owner(entry, roles)] += count
    return found


def schema_differences(original: bytes, copy: bytes) -> list[str]:
    """Objects whose SQL differs, each with its first differing line; text that may hold secrets is left out.

    One line for all objects: PostgreSQL writes many CHECKs back differently, so each monthly drill finds them.
    """
    before, after = (sections(with_roles_sorted(text)) for text in (original, copy))
    both = (key for key in before.keys() & after.keys() if key[0] not in grants.KINDS)
    different = sorted(key for key in both if before[key].sql != after[key].sql)
    if not different:
        return []
    examples = (_first_difference(key, before[key].sql, after[key].sql) for key in different)
    example = next((f", such as: {example}" for example in examples if example), "")
    return [f"PostgreSQL writes back differently: {joined([describe_object(key) for key in different])}{example}"]


def compare_privileges(original: bytes, copy: bytes, makers: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Objects on which other roles have other privileges, which is bad; and owners that no dump saves, which is odd.

    Args:
        original, copy: the schemas' SQL.
        makers: both servers' bootstrap superusers, who own the objects of extensions and initdb.
    """
    before, after = sections(original), sections(copy)
    return grants.privilege_differences(before, after, makers), grants.owner_differences(before, after, makers)


def owner_names(schema: bytes) -> set[str]:
    """The roles that the SQL of a schema names as owners."""
    return grants.owners(sections(schema))


def structure_differences(original: bytes, copy: bytes) -> list[str]:
    """Objects whose meaning differs: a column's type, a CHECK, NOT NULL, a disabled trigger.

    Also differences in access: a policy, the rights that a function runs with, a view's options.
    """
    # quote_all_identifiers decides whether names are quoted.
    before, after = (sections(with_roles_sorted(text).replace(b'"', b"")) for text in (original, copy))
    lines = []
    for key in sorted(before.keys() & after.keys()):
        one, other = before[key].sql, after[key].sql
        if one == other:
            continue
        if key[0] in _LITERAL_KINDS:
            lines.append(f"{describe_object(key)} differs")
        elif key[0] in _BOUND:
            missing, added = _meaning(one), _meaning(other)
            missing, added = missing - added, added - missing
            if missing or added:
                what = ", ".join([*(f"not {text}" for text in missing), *(f"but {text}" for text in added)])
                lines.append(f"{describe_object(key)} differs: {what[:_WIDTH]}")
        elif key[0] in _CANONICAL_KINDS and canonical(one) != canonical(other):
            example = _first_difference(key, one, other)
            lines.append(f"{describe_object(key)} differs" + (f": {example}" if example else ""))
    return lines


def _by_name(witness: Witness) -> dict[str, TableWitness]:
    return {table.name: table for table in witness.tables}


def _without_owners(before: Counter[str], after: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Both lists without owners and privileges.

    Names hold spaces, so an entry does not say where its owner begins. All entries of the copy have the same owner.
    """
    wanted: Counter[str] = Counter()
    heads = Counter(entry.rpartition(" ")[0] for entry in after.elements() if not _PRIVILEGES.match(entry))
    found = heads.copy()
    for entry in before.elements():
        if _PRIVILEGES.match(entry):
            continue
        head = entry
        while " " in head:
            head = head.rpartition(" ")[0]
            if found[head] > 0:
                break
        else:
            head = entry
        found[head] -= 1
        wanted[head] += 1
    given = next((head for head in wanted if head.startswith(_PUBLIC) and wanted[head] > heads[head]), "")
    wanted[given] = 0
    return wanted, heads


def _meaning(section: bytes) -> Counter[str]:
    text = without_literals(section.decode("utf-8", "backslashreplace"))
    return Counter(" ".join(match[0].split()) for match in _MEANING.finditer(text))


def _first_difference(key: Key, before: bytes, after: bytes) -> str:
    if key[0] in _SECRETIVE:
        return ""
    one, other = (without_literals(text.decode("utf-8", "backslashreplace")).splitlines() for text in (before, after))
    for left, right in zip(one, other, strict=False):
        if left != right:
            return f"{left.strip()[:_WIDTH]} | {right.strip()[:_WIDTH]}"
    return ""

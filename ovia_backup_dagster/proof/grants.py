"""Compares the privileges in two schemas, independent of the roles that created the objects.

pg_dump saves the grants beyond an object's initial privileges. A table of the backup is created with its owner, and the
owner is compared. Objects of an extension or of initdb belong to the role that ran ``CREATE EXTENSION``, or to the
bootstrap superuser, whose name may differ. For these objects, only other roles' privileges are the same in a copy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from ovia_backup_dagster.proof.schema_text import Key, Section, describe_object

KINDS = ("ACL", "DEFAULT ACL")
#: Entries that are part of another object. They name the owner, too, but the object's own entry counts.
_OF_ANOTHER = re.compile(
    r"(?:ACL|COMMENT|SECURITY LABEL|TABLE DATA|TABLE ATTACH|SEQUENCE SET|SEQUENCE OWNED BY|MATERIALIZED VIEW DATA"
    r"|DEFAULT|(?:CHECK |FK )?CONSTRAINT|INDEX|INDEX ATTACH|TRIGGER|RULE|POLICY|ROW SECURITY|USER MAPPING"
    r"|PUBLICATION TABLES? ?(?:IN SCHEMA)?) (?!ACL )"
)
_STATEMENT = re.compile(rb'(GRANT|REVOKE) (.*) (?:TO|FROM) ("(?:[^"]|"")+"|[^\s";]+)( WITH GRANT OPTION)?;', re.DOTALL)
_NAME = re.compile(r"(?:FOREIGN DATA WRAPPER|FOREIGN SERVER|[A-Z]+) ")
#: Kinds of objects that can have privileges, as their sections name them.
_OBJECTS = (
    "TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE", "FUNCTION", "PROCEDURE", "AGGREGATE", "TYPE",
    "SHELL TYPE", "DOMAIN", "SCHEMA", "PROCEDURAL LANGUAGE", "FOREIGN DATA WRAPPER", "SERVER",
)  # fmt: skip
_ROUTINES = ("FUNCTION ", "PROCEDURE ")


def owners(schema: Mapping[Key, Section]) -> set[str]:
    """The roles that a schema names as owners."""
    return {section.owner for section in schema.values()} - {"", "-"}


def without_owner(entry: str, roles: Collection[str]) -> str:
    """An entry of a contents list without its owner, if it is part of an object that has its own entry.

    Args:
        entry: ``TYPE schema name owner``.
        roles: all possible owners: names may contain spaces, so an entry does not show where the owner begins.
    """
    if not _OF_ANOTHER.match(entry):
        return entry
    parts = entry.split(" ")
    # Try the longest name first: its end may be another role's name.
    for at in range(3, len(parts)):
        if " ".join(parts[at:]) in roles:
            return " ".join(parts[:at])
    return entry


def privilege_differences(
    before: Mapping[Key, Section], after: Mapping[Key, Section], makers: Collection[str]
) -> list[str]:
    """Objects on which other roles have other privileges.

    Args:
        before, after: the backup's schema and the copy's.
        makers: both servers' bootstrap superusers.
    """
    made_here, lines = _made_here(before), []
    for key in sorted(key for key in {*before, *after} if key[0] in KINDS):
        whose = {each[key].owner for each in (before, after) if key in each}
        mine: set[str] = set()
        if not made_here(key):
            mine = {*makers, *(whose if len(whose) > 1 or key not in before or key not in after else ())}
        one, other = (_given(each.get(key), mine) for each in (before, after))
        if one != other:
            missing, added = one - other, other - one
            what = [f"{len(missing)} missing"] * bool(missing) + [f"{len(added)} more"] * bool(added)
            lines.append(f"privileges differ: {describe_object(key)} ({', '.join(what)} in the copy)")
    return lines


def owner_differences(
    before: Mapping[Key, Section], after: Mapping[Key, Section], makers: Collection[str]
) -> list[str]:
    """Objects of extensions whose owner was changed later, which no dump records."""
    made_here = _made_here(before)
    return [
        f"{describe_object(key)[len('acl ') :]} belongs to {after[key].owner} in the copy, "
        f"and to {section.owner} in the source: pg_dump does not save the owner of what an extension made"
        for key, section in sorted(before.items(), key=lambda item: item[0])
        if key[0] == "ACL" and key in after and not made_here(key)
        if section.owner not in makers and section.owner != after[key].owner
    ]


def _made_here(schema: Mapping[Key, Section]) -> Callable[[Key], bool]:
    """Returns a function that tells whether a privilege is on an object of the backup."""
    objects: dict[str, set[str]] = {}
    for kind, where, name in schema:
        if kind in _OBJECTS:
            # Entries of privileges write a function's arguments differently.
            objects.setdefault(where, set()).update((name, name.partition("(")[0]))

    def made_here(key: Key) -> bool:
        kind, where, name = key
        if kind != "ACL":
            return True  # default privileges belong to no object
        known, of = objects.get(where, set()), _NAME.sub("", name, count=1)
        if name.startswith("COLUMN "):
            parts = of.split(".")
            return any(".".join(parts[:at]) in known for at in range(1, len(parts)))
        return (of.partition("(")[0] if name.startswith(_ROUTINES) else of) in known

    return made_here


def _given(section: Section | None, mine: Collection[str]) -> Counter[bytes]:
    """The grants and revocations, without those of the roles in ``mine``.

    A privilege that is revoked and granted again counts as unchanged: only its grantor differs, as the owner does.
    """
    found: Counter[bytes] = Counter()
    revoked: Counter[tuple[bytes, bytes]] = Counter()
    for statement in filter(None, (section.sql if section else b"").splitlines()):
        match = _STATEMENT.fullmatch(statement)
        if match is None:
            found[statement] += 1
            continue
        verb, what, grantee, option = match.groups()
        if _role(grantee) in mine:
            continue
        if verb == b"REVOKE":
            revoked[what, grantee] += 1
        elif not option and revoked[what, grantee]:
            revoked[what, grantee] -= 1
            continue
        else:
            found[statement] += 1
    found.update(Counter({b"REVOKE " + what + b" FROM " + whom: n for (what, whom), n in revoked.items() if n}))
    return found


def _role(quoted: bytes) -> str:
    name = quoted.decode("utf-8", "backslashreplace")
    return name[1:-1].replace('""', '"') if name.startswith('"') else name

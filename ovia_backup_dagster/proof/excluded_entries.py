"""Finds the entries that are not restored into a scratch database: others use its server, so a drill creates no roles.

pg_restore leaves out owners and privileges by an option. This module finds the entries that need a role that the server
lacks, or that the drilling role may not create. A throwaway cluster and a database that goes live get all entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.postgres.archive import encoding, in_utf8, schema_text
from ovia_backup_dagster.postgres.globals_file import name_of
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof.schema_text import NAME, POLICY, Key, describe_object, sections

_USER_MAPPING = re.compile(rb"CREATE USER MAPPING FOR (?P<roles>" + NAME.pattern + rb") SERVER ")
_NAMES_ROLES = {"POLICY": POLICY, "USER MAPPING": _USER_MAPPING}
_PUBLIC = "public"
_ABOUT = ("COMMENT", "SECURITY LABEL")


@dataclass(frozen=True, slots=True)
class Withheld:
    """The entries that are not restored into a copy.

    Attributes:
        entries: entries of the contents list, ``TYPE schema name owner``.
        notes: the left-out entries with the reason, a line each.
    """

    entries: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def withheld(server: Connection, programs: Programs, archive: Path) -> Withheld:
    """Find the entries of an archive that this role cannot create on a server unless roles are created there.

    Raises:
        BackupError: the archive or the server's roles cannot be read.
    """
    with connect(server) as session:
        there = {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        row = session.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    superuser = row is not None and row["rolsuper"]
    text = schema_text(programs, archive)
    found = sections(text)
    why: dict[Key, str] = {}
    for key, section in found.items():
        if lacking := sorted(set(_roles(key, in_utf8(section.sql, encoding(text)))) - there):
            why[key] = f"the server has no role {', '.join(lacking)}"
        elif key[0] == "EVENT TRIGGER" and not superuser:
            why[key] = "only a superuser makes event triggers"
    about = {_unquoted(each) for key in why for each in _about(key)}
    left_out = [key for key in found if key in why or (key[0] in _ABOUT and _unquoted(key[1:]) in about)]
    entries = (" ".join((*key, found[key].owner)) for key in left_out)
    return Withheld(
        frozenset(entries), tuple(f"left out: {describe_object(key)}, as {reason}" for key, reason in why.items())
    )


def _roles(key: Key, sql: bytes) -> Iterator[str]:
    names_roles = _NAMES_ROLES.get(key[0])
    match = names_roles.search(sql) if names_roles else None
    names = map(name_of, NAME.findall(match["roles"])) if match else ()
    return (name for name in names if name != _PUBLIC)


def _about(key: Key) -> Iterator[tuple[str, str]]:
    """Schema and name of comments on the object; the name of a comment on a policy ends with the table's name."""
    kind, schema, name = key
    if kind != "POLICY":
        yield schema, f"{kind} {name}"
        return
    words = name.split(" ")  # both names may hold spaces
    for at in range(1, len(words)):
        yield schema, f"POLICY {' '.join(words[at:])} ON {' '.join(words[:at])}"


def _unquoted(name: tuple[str, str]) -> tuple[str, str]:
    """A name without quotes: only a comment's name quotes the names of objects, if they need quotes."""
    return name[0], name[1].replace('"', "")

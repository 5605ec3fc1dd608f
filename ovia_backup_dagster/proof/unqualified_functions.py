"""Functions that name what they use without its schema, as an archive's own text shows them.

A restore gives them no ``search_path``, and so they find nothing. What a server says of them is the business of
``search_path``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ovia_backup_dagster.proof.archive_objects import ArchiveObject, ArchiveObjects
from ovia_backup_dagster.proof.routine_text import CLAUSE, body_of, quote_ident, relations_in, words_in


@dataclass(frozen=True, slots=True)
class Leaning:
    """A function that says of what it uses only the name, not where it is.

    Attributes:
        signature: as ``ALTER FUNCTION`` takes it.
        schemas: where that is, as SQL writes them.
    """

    signature: str
    schemas: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What makes it independent of the session, as SQL."""
        return f"ALTER FUNCTION {self.signature} SET search_path = {', '.join((*self.schemas, 'pg_temp'))}"


def signature_of(function: ArchiveObject) -> str:
    """As ``ALTER FUNCTION`` takes it."""
    return f"{quote_ident(function.schema)}.{function.name}"


def leaning_among(called: Iterable[ArchiveObject], archive: ArchiveObjects) -> list[Leaning]:
    """Those of an archive's functions that name what they use without its schema.

    Args:
        called: functions that look names up as they run.
        archive: all of its objects.
    """
    found = []
    for function in called:
        schemas = _unqualified(function, archive)
        if schemas:
            names = tuple(dict.fromkeys(map(quote_ident, (function.schema, *schemas))))
            found.append(Leaning(signature_of(function), names))
    return found


def _unqualified(function: ArchiveObject, archive: ArchiveObjects) -> list[str]:
    """The schemas of what a function names without one."""
    body = body_of(function.text)
    clauses = " ".join(CLAUSE.findall(body))
    found = []
    for named, words, text, end in (
        (archive.routines, words_in(body), body, r"\s*\("),
        (archive.relations, relations_in(body), clauses, ""),
    ):
        for name in sorted(words & named.keys()):
            bare = rf'(?<![.\w"])"?{re.escape(name)}"?(?!\w|"|\s*\.){end}'
            if re.search(bare, text, re.IGNORECASE):
                found += sorted(other.schema for other in named[name] if other.number != function.number)
    return found

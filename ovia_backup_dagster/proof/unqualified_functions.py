"""Functions that use unqualified names, found in an archive's text.

A restore runs them without a ``search_path``, so they do not find their objects. ``search_path`` finds such functions
from a server's messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ovia_backup_dagster.proof.archive_objects import ArchiveObject, ArchiveObjects
from ovia_backup_dagster.proof.routine_text import CLAUSE, body_of, quote_ident, relations_in, words_in


@dataclass(frozen=True, slots=True)
class Leaning:
    """A function that uses unqualified names.

    Attributes:
        signature: as ``ALTER FUNCTION`` takes it.
        schemas: the schemas of the objects that it uses, as SQL writes them.
    """

    signature: str
    schemas: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """The SQL that makes it independent of the session's ``search_path``."""
        return f"ALTER FUNCTION {self.signature} SET search_path = {', '.join((*self.schemas, 'pg_temp'))}"


def signature_of(function: ArchiveObject) -> str:
    """The function's signature, as ``ALTER FUNCTION`` takes it."""
    return f"{quote_ident(function.schema)}.{function.name}"


def leaning_among(called: Iterable[ArchiveObject], archive: ArchiveObjects) -> list[Leaning]:
    """The functions of an archive that use unqualified names.

    Args:
        called: functions that look names up when they run.
        archive: the archive's objects.
    """
    found = []
    for function in called:
        schemas = _unqualified(function, archive)
        if schemas:
            names = tuple(dict.fromkeys(map(quote_ident, (function.schema, *schemas))))
            found.append(Leaning(signature_of(function), names))
    return found


def _unqualified(function: ArchiveObject, archive: ArchiveObjects) -> list[str]:
    """The schemas of the objects that a function names without a schema."""
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

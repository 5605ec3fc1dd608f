"""The SQL of a schema as pg_dump and pg_restore write it: one section for each object, and what it means.

Only how the text is taken apart. What a difference between two of them is called is the business of ``comparison``,
what privileges they give that of ``grants``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Type, schema and name of an object.
Key = tuple[str, str, str]

_SECTION = re.compile(rb"^-- (?:Data for )?Name: (.*); Type: (.*); Schema: (.*); Owner: (.*)\n", re.MULTILINE)
_END = b"--\n-- PostgreSQL database dump complete\n--"
#: What a literal is, then what PostgreSQL writes in other places, or not at all, when it writes an expression back.
_MEANINGLESS = re.compile(
    r"(?P<literal>'(?:[^']|'')*'|\$(?P<tag>\w*)\$(?s:.*?)\$(?P=tag)\$)"
    r"|::(?:character varying|bit varying|double precision|(?:timestamp|time)(?:\(\d\))? with(?:out)? time zone"
    r'|interval(?: (?:year|month|day|hour|minute|second))?(?: to (?:month|hour|minute|second))?|(?:\w+\.)*\w+|"[^"]*")'
    r"(?:\(\d+(?:,\d+)?\))?(?:\[\d*\])*"
    r"|[()\s]+"
)


@dataclass(frozen=True, slots=True)
class Section:
    """All objects of one type, schema and name: overloaded functions' comments, a role's grants.

    Attributes:
        owner: as its head names it: of what a comment or a privilege is about, whose that is.
        sql: without heads; in an order of its own.
    """

    owner: str
    sql: bytes


def sections(text: bytes) -> dict[Key, Section]:
    """The SQL of each object; in whatever order those stand that are called the same."""
    text = text.rstrip().removesuffix(_END)
    matches = list(_SECTION.finditer(text))
    bodies: dict[Key, list[bytes]] = {}
    owner: dict[Key, str] = {}
    ends = [*(match.start() for match in matches[1:]), len(text)]
    for match, end in zip(matches, ends, strict=False):
        name, kind, schema, whose = (part.decode("utf-8", "backslashreplace") for part in match.groups())
        body = text[match.end() : end]
        bodies.setdefault((kind, schema, name), []).append(body.removesuffix(b"--\n").strip(b"\n"))
        owner[kind, schema, name] = whose
    return {key: Section(owner[key], b"\n".join(sorted(parts))) for key, parts in bodies.items()}


def canonical(sql: bytes) -> str:
    """SQL without casts, parentheses and white space outside its literals.

    PostgreSQL writes an expression back with others of these than it was given: ``varchar IN ('a', 'b')`` is
    ``(ARRAY['a'::varchar, 'b'::varchar])::text[]`` in a source and ``ARRAY[('a'::varchar)::text, ...]`` in its copy.
    """
    text = sql.decode("utf-8", "backslashreplace")
    return _MEANINGLESS.sub(lambda match: match["literal"] or " ", text).replace("  ", " ")


def named(key: Key) -> str:
    """The object, for people."""
    kind, schema, name = key
    return f"{kind.lower()} {name}" if schema == "-" else f"{kind.lower()} {name} in {schema}"

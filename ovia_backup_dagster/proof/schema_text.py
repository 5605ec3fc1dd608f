"""The SQL of a schema as pg_dump and pg_restore write it: one section for each object.

This module only parses the text. ``comparison`` names the differences between two schemas, ``grants`` the privileges.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Type, schema and name of an object.
Key = tuple[str, str, str]

_SECTION = re.compile(rb"^-- (?:Data for )?Name: (.*); Type: (.*); Schema: (.*); Owner: (.*)\n", re.MULTILINE)
_END = b"--\n-- PostgreSQL database dump complete\n--"
_NAME = rb'(?:"(?:[^"]|"")+"|[^\s",;()]+)'
_TABLE = rb'(?:"(?:[^"]|"")+"|[^\s",;()])+'
#: A policy's head, and the roles that it applies to.
POLICY = re.compile(
    rb"(?P<head>CREATE POLICY " + _NAME + rb" ON " + _TABLE + rb"(?: AS RESTRICTIVE)?(?: FOR [A-Z]+)? TO )"
    rb"(?P<roles>" + _NAME + rb"(?:, " + _NAME + rb")*)"
)
#: One name, as SQL has it.
NAME = re.compile(_NAME)
#: Literals, casts, names, signs; white space is none of them.
_TOKEN = re.compile(
    r"(?P<literal>'(?:[^']|'')*'|\$(?P<tag>\w*)\$(?s:.*?)\$(?P=tag)\$)"
    r"|(?P<cast>::(?:character varying|bit varying|double precision"
    r"|(?:timestamp|time)(?:\(\d\))? with(?:out)? time zone"
    r"|interval(?: (?:year|month|day|hour|minute|second))?(?: to (?:month|hour|minute|second))?"
    r'|(?:(?:\w+|"[^"]*")\.)*(?:\w+|"[^"]*"))(?:\(\d+(?:,\d+)?\))?(?:\[\d*\])*)'
    r'|"[^"]*"|\w+|[^\w\s]'
)


@dataclass(frozen=True, slots=True)
class Section:
    """All objects of one type, schema and name, such as the comments of overloaded functions, or a role's grants.

    Attributes:
        owner: the owner in its head; for a comment or a privilege, that is the owner of its object.
        sql: without heads, sorted.
    """

    owner: str
    sql: bytes


def sections(text: bytes) -> dict[Key, Section]:
    """The SQL of each object; objects with the same name are sorted, so their order does not matter."""
    text = text.rstrip().removesuffix(_END)
    matches = list(_SECTION.finditer(text))
    bodies: dict[Key, list[bytes]] = {}
    owner: dict[Key, str] = {}
    ends = [*(match.start() for match in matches[1:]), len(text)]
    for match, end in zip(matches, ends, strict=False):
        name, kind, schema, whose = (part.decode("utf-8", "backslashreplace") for part in match.groups())
        body = text[match.end() : end]
        bodies.setdefault((kind, schema, name), []).append(
            body.removeprefix(b"--\n").removesuffix(b"--\n").strip(b"\n")
        )
        owner[kind, schema, name] = whose
    return {key: Section(owner[key], b"\n".join(sorted(parts))) for key, parts in bodies.items()}


def with_roles_sorted(text: bytes) -> bytes:
    """The same SQL, with each policy's roles sorted: a server keeps them in the order in which they were created."""
    return POLICY.sub(_sorted_roles, text)


def _sorted_roles(match: re.Match[bytes]) -> bytes:
    # quote_all_identifiers decides whether names are quoted.
    roles: list[bytes] = sorted(NAME.findall(match["roles"]), key=lambda name: name.replace(b'"', b""))
    return bytes(match["head"]) + b", ".join(roles)


def canonical(sql: bytes) -> list[str]:
    """The words of SQL, without casts and the parentheses around cast expressions.

    PostgreSQL writes an expression back with other casts than it was given: ``varchar IN ('a', 'b')`` is
    ``(ARRAY['a'::varchar, 'b'::varchar])::text[]`` in a source and ``ARRAY[('a'::varchar)::text, ...]`` in its copy.
    """
    words: list[str] = []
    open_at: list[int] = []
    closed: dict[int, int] = {}
    for match in _TOKEN.finditer(sql.decode("utf-8", "backslashreplace")):
        last = len(words) - 1
        if match["cast"]:
            if last in closed and words[last] == ")":
                words[closed[last]] = words[last] = ""
                words.append("")  # so that the next cast does not remove these parentheses, too
            continue
        words.append(match[0])
        if match[0] == "(":
            open_at.append(last + 1)
        elif match[0] == ")" and open_at:
            closed[last + 1] = open_at.pop()
    return [word for word in words if word]


def describe_object(key: Key) -> str:
    """The object, for people."""
    kind, schema, name = key
    return f"{kind.lower()} {name}" if schema == "-" else f"{kind.lower()} {name} in {schema}"

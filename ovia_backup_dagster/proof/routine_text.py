"""Finds the names in a routine's SQL: the words of its body, possible relations, and the functions that it calls.

Only the text is read; it finds too much rather than too little. ``archive_objects`` maps the names to objects.
"""

from __future__ import annotations

import re

_SIMPLE = re.compile(r"[a-z_][a-z0-9_$]*")
#: Matches a body that builds SQL at run time.
DYNAMIC = re.compile(r"\bexecute\b|\bquery_to_xml\b|\bplpy\b|\bspi_\w+", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
#: A string, with its quotes.
LITERAL = re.compile(r"'(?:[^']|'')*'")
_BODY = re.compile(r"\bAS (\$\w*\$)(.*?)\1|\bAS '((?:[^']|'')*)'|\b(RETURN\b.*|BEGIN ATOMIC\b.*)", re.DOTALL)
#: A word after one of these keywords may be a relation.
CLAUSE = re.compile(
    r"\b(?:from|join|into|update|using|table|only)\b(.*?)"
    r"(?=\b(?:where|group|order|having|limit|on|set|values|union|loop|select)\b|;|\)|$)",
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_WORD = re.compile(r'"((?:[^"]|"")*)"|([^\W\d][\w$]*)')
#: A default is not evaluated for a column whose value is in the rows.
_DEFAULT = re.compile(r" DEFAULT (?!.* GENERATED ).*?(?= NOT NULL|,?$)", re.MULTILINE)
#: A call of a function with its schema.
CALL = re.compile(r'[\w"]\.(?:\w+|"[^"]+")\(')
_BARE_CALL = re.compile(r'(?<![.\w"])"?([^\W\d][\w$]*)"?\s*\(')


def evaluated_text(text: str) -> str:
    """An object's SQL without the columns' defaults, which are not evaluated for the rows of an archive."""
    return _DEFAULT.sub("", text)


def calls(text: str, function: str) -> bool:
    """Whether SQL names a function."""
    return function.lower() in words_in(text)


def body_of(text: str) -> str:
    """A function's body without comments; its literals are kept only if it builds SQL at run time."""
    match = _BODY.search(text)
    body = next((part for part in (match[2], match[3], match[4]) if part is not None), "") if match else text
    body = _COMMENT.sub(" ", body)
    return body if DYNAMIC.search(body) else LITERAL.sub(" ", body)


def relations_in(body: str) -> set[str]:
    """Words that may name a relation: those after FROM and similar keywords; all words if SQL is built at run time."""
    if DYNAMIC.search(body):
        return words_in(body)
    quoted: dict[str, str] = {}

    def aside(match: re.Match[str]) -> str:
        # A quoted name may contain words that would end the clause.
        stands = f"q{len(quoted)}_"
        quoted[stands] = match[1].replace('""', '"').lower()
        return stands

    body = _QUOTED.sub(aside, body)
    return {quoted.get(word, word) for clause in CLAUSE.findall(body) for word in words_in(clause)}


def words_in(text: str) -> set[str]:
    """All names in SQL, in lower case and without quotes."""
    return {(quoted.replace('""', '"') or bare).lower() for quoted, bare in _WORD.findall(text)}


def quote_ident(name: str) -> str:
    """A name as SQL writes it: quoted only if necessary."""
    return name if _SIMPLE.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def called_without_schema(text: str) -> set[str]:
    """The functions that a routine calls without naming their schema, in lower case."""
    return {match[1].lower() for match in _BARE_CALL.finditer(body_of(text))}

"""What a routine's SQL names: the words of its body, those that may be relations, the functions that it calls.

Read off the text alone, and rather too much than too little. Which objects those words are is the business of
``archive_objects``.
"""

from __future__ import annotations

import re

_SIMPLE = re.compile(r"[a-z_][a-z0-9_$]*")
#: Puts together at run time what it reads.
DYNAMIC = re.compile(r"\bexecute\b|\bquery_to_xml\b|\bplpy\b|\bspi_\w+", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
#: A string, with its quotes.
LITERAL = re.compile(r"'(?:[^']|'')*'")
_BODY = re.compile(r"\bAS (\$\w*\$)(.*?)\1|\bAS '((?:[^']|'')*)'|\b(RETURN\b.*|BEGIN ATOMIC\b.*)", re.DOTALL)
#: What comes after one of these words may be a relation.
CLAUSE = re.compile(
    r"\b(?:from|join|into|update|using|table|only)\b(.*?)"
    r"(?=\b(?:where|group|order|having|limit|on|set|values|union|loop|select)\b|;|\)|$)",
    re.IGNORECASE | re.DOTALL,
)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_WORD = re.compile(r'"((?:[^"]|"")*)"|([^\W\d][\w$]*)')
#: A default is not evaluated for a column that the rows bring.
_DEFAULT = re.compile(r" DEFAULT (?!.* GENERATED ).*?(?= NOT NULL|,?$)", re.MULTILINE)
#: A call of a function with its schema.
CALL = re.compile(r'[\w"]\.(?:\w+|"[^"]+")\(')
_BARE_CALL = re.compile(r'(?<![.\w"])"?([^\W\d][\w$]*)"?\s*\(')


def evaluated_text(text: str) -> str:
    """An object's SQL without the defaults of columns, which no row of an archive asks for."""
    return _DEFAULT.sub("", text)


def calls(text: str, function: str) -> bool:
    """Whether SQL names a function."""
    return function.lower() in words_in(text)


def body_of(text: str) -> str:
    """A function's, without comments; with what it puts together at run time where it does so."""
    match = _BODY.search(text)
    body = next((part for part in (match[2], match[3], match[4]) if part is not None), "") if match else text
    body = _COMMENT.sub(" ", body)
    return body if DYNAMIC.search(body) else LITERAL.sub(" ", body)


def relations_in(body: str) -> set[str]:
    """Words that may name a relation: those of FROM and the like; of what is put together at run time, any."""
    if DYNAMIC.search(body):
        return words_in(body)
    quoted: dict[str, str] = {}

    def aside(match: re.Match[str]) -> str:
        # A name may hold what ends a clause.
        stands = f"q{len(quoted)}_"
        quoted[stands] = match[1].replace('""', '"').lower()
        return stands

    body = _QUOTED.sub(aside, body)
    return {quoted.get(word, word) for clause in CLAUSE.findall(body) for word in words_in(clause)}


def words_in(text: str) -> set[str]:
    """All names in SQL, in lower case, quotes undone."""
    return {(quoted.replace('""', '"') or bare).lower() for quoted, bare in _WORD.findall(text)}


def quote_ident(name: str) -> str:
    """A name as SQL writes it: in quotes only where it needs them."""
    return name if _SIMPLE.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def called_without_schema(text: str) -> set[str]:
    """The functions that a routine calls without naming their schema, in lower case."""
    return {match[1].lower() for match in _BARE_CALL.finditer(body_of(text))}

"""Removes data values from PostgreSQL's messages: the one rule for records, evidence and logs.

A message names its object (a table, a column, a constraint), and many also quote a value: ``invalid input syntax for
type integer: "4111 1111"``. Names are kept, values are removed. Text in double quotes counts as a name only if the
preceding word says so; if the server merely looked for that name, it must also exist. All other quoted text counts as a
value, whatever the server's language. DETAIL, QUERY and STATEMENT contain rows and are left out. A message of ``RAISE``
comes from a user's function and may contain anything: only the function and its line are kept. Of CONTEXT, the line and
column of a COPY are kept.
"""

from __future__ import annotations

import re

import psycopg

#: Quoted text after one of these words is a name.
_NOUNS = (
    r"relation|table|column|constraint|index|view|sequence|type|domain|schema|role|roles|user|database|tablespace"
    r"|extension|function|procedure|aggregate|language|trigger|rule|policy|operator|class|family|collation|encoding"
    r"|parameter|publication|subscription|server|wrapper|method|option|attribute|partition|slot|configuration"
    r"|dictionary|template|parser|provider|locale|locale name:|pattern|file|directory|library|socket|host|host name"
    r"|server at|certificate for|skipping|dumping the contents of table"
)
_NAME = rf'\b(?:{_NOUNS})\s+"[^"]*"|^"[^"]*" is (?:not )?an? |"…"'
_QUOTE = re.compile(rf"(?P<name>{_NAME})|[\"»„«“‹`]|(?<!\w)'")
#: Text that may follow a value and states what is wrong with it.
_TAIL = re.compile(
    r"[\"»«“”›'`] ((?:is out of range for type [a-z0-9 ]+|not recognized|(?:does not|already) exists?)$)"
)
_LOOKED_FOR = re.compile(r"does not exist|recognized|not available|not found|is not an? ")
_VALUE = '"…"'
_BYTES = re.compile(r"0x[0-9a-f]{2}(?: 0x[0-9a-f]{2})*")
_NUMBER = re.compile(r"\bvalue -?\d[\d.]*")
#: The beginning of a program's own message, as opposed to the continuation of one of the server's.
_BEGINS = re.compile(r"(?:pg_\w+|psql|vacuumdb|initdb): |connection to server ")
#: ``ERROR:  ``, in any language: the text after it is the server's. libpq's own text contains no data.
_SERVER = re.compile(r"(?<![^\s])[^\W\d_]+:  ")
_RAISED = re.compile(r"PL/pgSQL\S* (?P<name>.+?) \S+ (?P<line>\d+) \S+ (?:RAISE|ASSERT)\s*$", re.MULTILINE)
#: Functions in other languages may print anything, too.
_FOREIGN = re.compile(r"PL/(?!pgSQL)\w+ function (?P<name>\"[^\"\n]*\"|\S+)")
_COPIED = re.compile(r"^CONTEXT:\s+COPY .+?, line (?P<line>\d+)(?:, column (?P<column>[^:\n]+))?", re.MULTILINE)


def without_values(text: str, known: str | None = None) -> str:
    """The first lines of the messages in a program's output, or of one message of the server, without values.

    Args:
        text: as it was printed.
        known: text with all existing names, needed if a user's function may have run, which can look up a value as if
            it were a name; ``None`` if none has run.
    """
    kept: list[str] = []
    dropping = False
    for line in text.splitlines():
        if not dropping or _BEGINS.match(line):
            server = _SERVER.search(line)
            kept.append(line[: server.end()] + _line(line[server.end() :], known) if server else line)
            # DETAIL and similar lines follow, or the rest of a value that contains a line feed.
            dropping = server is not None
    if raised := _RAISED.search(text) or _FOREIGN.search(text):
        where = f", line {raised['line']}" if "line" in raised.groupdict() else ""
        return "\n".join(_raised(line, f"raised by {raised['name'].removeprefix('function ')}{where}") for line in kept)
    if kept and (copied := _COPIED.search(text)):
        column = f", column {copied['column']}" if copied["column"] else ""
        kept[0] += f" (line {copied['line']}{column})"
    return "\n".join(kept)


def is_raised(text: str) -> bool:
    """Whether a user's function raised the message, which then says nothing about a server or a disk."""
    return bool(_RAISED.search(text) or _FOREIGN.search(text))


def raw_text(raw: bytes) -> str:
    """Bytes as text that can be written as JSON; invalid UTF-8 is escaped, so that different bytes stay different."""
    return raw.decode("utf-8", "backslashreplace")


def text_of(error: psycopg.Error | UnicodeError) -> str:
    """An error as a client program would print it: the server's message with its context, or libpq's own message."""
    diag = error.diag if isinstance(error, psycopg.Error) else None
    if diag is None or diag.message_primary is None:
        return str(error)
    return f"{diag.severity_nonlocalized or 'ERROR'}:  {diag.message_primary}\nCONTEXT:  {diag.context or ''}"


def said_by(error: psycopg.Error, known: str | None = None) -> str:
    """The server's message on one line, without values; ``known`` as in :func:`without_values`."""
    said = without_values(text_of(error), known)
    return _SERVER.sub("", said.partition("\n")[0], count=1).strip()


def _raised(line: str, by: str) -> str:
    server = _SERVER.search(line)
    return f"{line[: server.end()]}{by}" if server else line


def _line(line: str, known: str | None) -> str:
    found, at = "", 0
    looked_for = known is not None and _LOOKED_FOR.search(line)
    while match := _QUOTE.search(line, at):
        if match["name"] and not (looked_for and _quoted(match["name"]) not in (known or "")):
            found, at = found + line[at : match.end()], match.end()
            continue
        # A value may contain quotes, so its end cannot be determined.
        tail = _TAIL.search(line, match.start() + 1)
        start = match.start() + match[0].index('"') if match["name"] else match.start()
        found += line[at:start] + _VALUE + (f" {tail[1]}" if tail else "")
        at = len(line)
    return _NUMBER.sub("value …", _BYTES.sub("0x…", found + line[at:]))


def _quoted(name: str) -> str:
    return name.split('"')[1]

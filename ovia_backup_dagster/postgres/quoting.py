"""Quotes arbitrary names for SQL and the shell, on one line that can be printed and pasted."""

from __future__ import annotations

import re

from ovia_backup_dagster.core.shell import needs_escapes, shell_word

__all__ = ("shell_word", "sql_identifier", "sql_string", "without_literals")


def sql_identifier(name: str) -> str:
    """A name as a quoted identifier."""
    return _sql(name, '"')


def sql_string(text: str) -> str:
    """Text as a string constant."""
    return _sql(text, "'")


def _sql(text: str, quote: str) -> str:
    quoted = text.replace(quote, quote * 2)
    if not needs_escapes(text):
        return f"{quote}{quoted}{quote}"
    escaped = (c if c.isprintable() and c not in " \\" else f"\\+{ord(c):06X}" for c in quoted)
    return f"U&{quote}{''.join(escaped)}{quote}"


#: Literals, which may contain confidential values.
_LITERAL = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$(?s:.*?)\$\1\$")


def without_literals(text: str) -> str:
    """SQL with its literals removed."""
    return _LITERAL.sub("'…'", text)

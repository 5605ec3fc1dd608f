"""Names as SQL and the shell take them, whatever they contain, on one line that can be printed and pasted."""

from __future__ import annotations

import shlex


def sql_identifier(name: str) -> str:
    """A name, quoted."""
    return _sql(name, '"')


def sql_string(text: str) -> str:
    """A string constant."""
    return _sql(text, "'")


def shell_word(text: str) -> str:
    """One word for bash."""
    if not _needs_escapes(text):
        return shlex.quote(text)
    escaped = (c if c.isprintable() and c not in "'\\ " else f"\\U{ord(c):08X}" for c in text)
    return f"$'{''.join(escaped)}'"


def _sql(text: str, quote: str) -> str:
    quoted = text.replace(quote, quote * 2)
    if not _needs_escapes(text):
        return f"{quote}{quoted}{quote}"
    escaped = (c if c.isprintable() and c not in " \\" else f"\\+{ord(c):06X}" for c in quoted)
    return f"U&{quote}{''.join(escaped)}{quote}"


def _needs_escapes(text: str) -> bool:
    """Whether an error's one line would not keep it as it is."""
    return not text.isprintable() or text != " ".join(text.split())

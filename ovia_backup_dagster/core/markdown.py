"""Markdown for evidence pages. Names from databases are escaped, so that they stay text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table; the word ``none`` if there are no rows."""
    if not rows:
        return "none"
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bullets(texts: Iterable[str]) -> str:
    """A list of items, each of them Markdown."""
    return "\n".join(f"* {text}" for text in texts)


def plain(text: str) -> str:
    """Escape Markdown and HTML in a name from a database, and put it on one line."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#" else c if c.isprintable() else " " for c in text)


def code(text: str) -> str:
    """A name, as code."""
    return "`" + "".join(c if c.isprintable() else " " for c in text.replace("`", "'")) + "`"

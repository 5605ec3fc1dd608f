"""Markdown for evidence pages. Names from databases are escaped, so that they stay text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table; ``none`` without rows."""
    if not rows:
        return "none"
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bullets(texts: Iterable[str]) -> str:
    """A list; an item a text, which is Markdown."""
    return "\n".join(f"* {text}" for text in texts)


def plain(text: str) -> str:
    """Names come from databases and hold anything: no Markdown and no HTML of theirs, on one line."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>#" else c if c.isprintable() else " " for c in text)


def code(text: str) -> str:
    """A name, as code."""
    return "`" + "".join(c if c.isprintable() else " " for c in text.replace("`", "'")) + "`"

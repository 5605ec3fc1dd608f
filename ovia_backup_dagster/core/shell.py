"""Quotes words for a shell, whatever they contain, on one line that can be pasted."""

from __future__ import annotations

import shlex


def shell_word(text: str) -> str:
    """Quote a text as one word for bash."""
    if not needs_escapes(text):
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def needs_escapes(text: str) -> bool:
    """Whether an error, which is one line, would change the text."""
    return not text.isprintable() or text != " ".join(text.split())


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "'\\ ":
        return char
    # A file's name need not be UTF-8; Python shows such bytes as surrogates.
    byte = ord(char) - 0xDC00
    return f"\\x{byte:02X}" if 0x80 <= byte <= 0xFF else f"\\U{ord(char):08X}"

"""Translates a server's messages back into the English that the table of known messages contains.

Only the output of client programs needs this: a session receives a SQLSTATE. ``translations.json`` contains those
messages of PostgreSQL's own catalogues that the table looks for. Any other message is left unchanged, and a session
repeats the query (``server_language``).
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

#: ``FEHLER:  ``, the beginning of the server's text, with two spaces in any language (``fe-protocol3.c``, ``elog.c``).
SEVERITY = re.compile(r"(?<![^\s])([^\W\d_]+):  ")
_SEVERITIES = frozenset(("ERROR", "FATAL", "PANIC", "WARNING", "NOTICE", "LOG", "INFO", "DEBUG", "DETAIL", "HINT"))
PARTS = (
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "Read-only file system",
    "no encryption",
)
#: A placeholder of ``printf`` in a message, with or without the number of the argument.
_PLACE = re.compile(r"%(?:(\d+)\$)?(?:z|l|ll)?[sdumcxX]")


def english(text: str) -> str:
    """``text`` with every known message translated into English; the number of lines stays the same.

    Args:
        text: as a program printed it.
    """
    if not SEVERITY.search(text):
        return text
    for part, said in _parts():
        text = said.sub(part, text)
    known_here = [(message, known) for message, known in _messages() if known.word in text]
    found, at = "", 0
    for match in SEVERITY.finditer(text):
        if match.start() < at:
            continue
        severity = _severities().get(match[1], match[1])
        found += text[at : match.start()] + severity + ":  "
        at = match.end()
        for message, known in known_here:
            if said_here := known.pattern.match(text, at):
                # A translation may have more lines than the message.
                found += known.filled(message, said_here) + "\n" * said_here[0].count("\n")
                at = said_here.end()
                break
    return found + text[at:]


#: How characters may appear if the server has no encoding yet: the C library converts them to ASCII.
_WRITTEN = {
    "\n": r"\s+",
    "\N{NO-BREAK SPACE}": r"\s",
    "«": "(?:«|<<)",
    "»": "(?:»|>>)",
    "ä": "(?:ä|ae?|\\?)",
    "ö": "(?:ö|oe?|\\?)",
    "ü": "(?:ü|ue?|\\?)",
    "ß": "(?:ß|ss|\\?)",
    "é": "(?:é|e|\\?)",
    "à": "(?:à|a|\\?)",
}


class _Known:
    """A translated message, for finding it in a program's output."""

    def __init__(self, said: str) -> None:
        places, literals, pattern, at = [], [], "", 0
        for number, place in enumerate(_PLACE.finditer(said), 1):
            literals.append(said[at : place.start()])
            pattern += _literal(literals[-1]) + "(.+?)"
            places.append(int(place[1] or number))
            at = place.end()
        literals.append(said[at:])
        self._pattern = pattern + _literal(literals[-1]) + r"(?=\s*$)"
        self._places = places
        self.words = sum(map(len, literals))
        #: An ASCII part of the message, present whatever became of the other characters.
        self.word = max((word for text in literals for word in re.split(r"[^ -~]+", text)), key=len)

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self._pattern, re.MULTILINE)

    def filled(self, message: str, found: re.Match[str]) -> str:
        """The message in English, with the arguments that were found."""
        words = dict(zip(self._places, found.groups(), strict=True))
        numbers = iter(range(1, len(words) + 1))
        return _PLACE.sub(lambda _: words[next(numbers)], message)


def _literal(text: str) -> str:
    return "".join(_WRITTEN.get(char) or (re.escape(char) if char.isascii() else f"(?:{char}|\\?)") for char in text)


@cache
def _translations() -> dict[str, dict[str, str]]:
    text = files(__package__).joinpath("translations.json").read_text("utf-8")
    loaded: dict[str, dict[str, str]] = json.loads(text)
    return loaded


@cache
def _severities() -> dict[str, str]:
    return {said: word for said_in in _translations().values() for word, said in said_in.items() if word in _SEVERITIES}


@cache
def _parts() -> list[tuple[str, re.Pattern[str]]]:
    """Texts within messages: errors of the operating system, and the kind of connection."""
    return [
        (part, re.compile(_literal(said_in[part])))
        for said_in in _translations().values()
        for part in PARTS
        if part in said_in
    ]


@cache
def _messages() -> list[tuple[str, _Known]]:
    found = [
        (message, _Known(said))
        for said_in in _translations().values()
        for message, said in said_in.items()
        if message not in _SEVERITIES and message not in PARTS
    ]
    # A message with more text of its own is more specific.
    return sorted(found, key=lambda pair: -pair[1].words)

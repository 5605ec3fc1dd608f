"""Loads an archive's entries into a database, and what failed again after the rest, as often as that makes progress.

Which order that is decides ``proof.load_order``; how pg_restore is run, ``pg_restore``. Here is what became of a run,
entry by entry, and what is run again. Chance decides nothing: of several jobs it is known only which entries failed,
and those are run again one after the other, in the archive's order, which is also where their messages are taken from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.proof.archive_entries import ArchiveEntry

#: What pg_restore is told, to say at which entry an error was met.
VERBOSE = "--verbose"
#: What it then says besides, a line for each entry and more.
NOISE = re.compile(
    rb"pg_restore: (?:creating|processing|executing|connecting|launching|finished|entering|restoring|restored"
    rb"|dropping|skipping|started|reading|implied|allocating) "
)
#: It is written at once, and so is whole even where the messages of several jobs are mixed up.
_AT = re.compile(r"from TOC entry (\d+); ")
_STEP = re.compile(r"^pg_restore: (?:from TOC entry (\d+); .*|(error: (?s:.*?))(?=^pg_restore: |\Z))", re.MULTILINE)
#: It went on to its end.
_ENDED = "errors ignored on restore: "
#: A dump may hold its rows as commands.
_ROW = re.compile(
    r'^Command was: INSERT INTO ((?:"(?:[^"]|"")*"|[^\s".(]+)(?:\.(?:"(?:[^"]|"")*"|[^\s".(]+))?) ', re.MULTILINE
)
_OWNED = re.compile(r"^Command was: ALTER .* OWNER TO ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry that could not be made.

    Attributes:
        entry: which.
        message: as pg_restore printed it, with the command; empty where several jobs spoke at a time.
    """

    entry: ArchiveEntry
    message: str = ""

    @property
    def lasting(self) -> bool:
        """Whether it stands already, and only its owner could not be set: to make it again is no use."""
        return bool(_OWNED.search(self.message))


class BrokenOffError(Exception):
    """pg_restore did not go on to its end: what it was at is not known, or is damaged.

    Args:
        code: it ended with.
        stderr: what it said.
    """

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(code)
        self.code = code
        self.stderr = stderr


#: Runs pg_restore over some entries, in this order, with so many jobs: its exit code, and what it said.
Run = Callable[[Sequence[ArchiveEntry], int], tuple[int, str]]


@dataclass
class Loader:
    """One restore's.

    Attributes:
        run: pg_restore.
        clear: empties tables, by their names as SQL: of rows that are written as commands some may be there.
        alone: entries that one process makes, however many jobs there are.
        again: what failed at first and was made later, in order.
    """

    run: Run
    clear: Callable[[Sequence[str]], None]
    alone: Collection[int] = ()
    again: list[ArchiveEntry] = field(default_factory=list, init=False)
    _partly: list[str] = field(default_factory=list, init=False)

    def load(self, entries: Sequence[ArchiveEntry], jobs: int = 1) -> list[Failure]:
        """Run pg_restore once; returns what failed, in the order of the entries.

        Raises:
            BrokenOffError: it did not go on to its end.
        """
        if not entries:
            return []
        code, stderr = self.run(entries, jobs)
        if code == 0:
            return []
        if _ENDED not in stderr or not (failed := failed_of(stderr, entries)):
            raise BrokenOffError(code, stderr)
        self._partly = list(dict.fromkeys(_ROW.findall(stderr)))
        said = messages_of(stderr)
        return [
            Failure(entry, said.get(entry.number, "") if jobs == 1 or entry.number in self.alone else "")
            for entry in failed
        ]

    def rounds(self, failed: Sequence[Failure]) -> list[Failure]:
        """Load again what failed, one after the other, until a round makes no progress; returns what is left.

        Raises:
            BrokenOffError: pg_restore did not go on to its end.
        """
        lasting = [failure for failure in failed if failure.lasting]
        waiting = [failure for failure in failed if not failure.lasting]
        while waiting:
            entries = [failure.entry for failure in waiting]
            if self._partly:
                self.clear(self._partly)
            left = self.load(entries)
            still = {failure.entry.number for failure in left}
            self.again += [entry for entry in entries if entry.number not in still]
            lasting += [failure for failure in left if failure.lasting]
            left = [failure for failure in left if not failure.lasting]
            if len(left) == len(waiting):
                waiting = left
                break
            waiting = left
        return lasting + waiting


def numbers_in(stderr: str) -> set[int]:
    """Of the entries that an error was met at."""
    return set(map(int, _AT.findall(stderr)))


def failed_of(stderr: str, entries: Iterable[ArchiveEntry]) -> list[ArchiveEntry]:
    """Those of the entries that an error was met at, in their order."""
    at = numbers_in(stderr)
    return [entry for entry in entries if entry.number in at]


def messages_of(stderr: str) -> dict[int, str]:
    """What one job said of each entry: its first error; of one that exists already, what was said after that."""
    found: dict[int, list[str]] = {}
    number = 0
    for match in _STEP.finditer(stderr):
        if match[1]:
            number = int(match[1])
        else:
            found.setdefault(number, []).append(match[0])
    return {
        number: said[1] if len(said) > 1 and _OWNED.search(said[1]) and "already exists" in said[0] else said[0]
        for number, said in found.items()
    }

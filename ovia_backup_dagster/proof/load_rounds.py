"""Loads an archive's entries into a database, and loads failed ones again after the rest while that makes progress.

``load_order`` decides the order, and ``pg_restore`` runs the program. This module reads the outcome of a run, entry by
entry, and decides what is run again. The result does not depend on chance: several jobs only tell which entries failed;
these are run again one after the other, in the archive's order, and their messages are taken from that run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.proof.archive_entries import ArchiveEntry

#: Makes pg_restore name the entry of each error.
VERBOSE = "--verbose"
#: What it prints in addition then: a line for each entry, and more.
NOISE = re.compile(
    rb"pg_restore: (?:creating|processing|executing|connecting|launching|finished|entering|restoring|restored"
    rb"|dropping|skipping|started|reading|implied|allocating) "
)
#: Written by a single write, so it is whole even where the messages of several jobs are interleaved.
_AT = re.compile(r"from TOC entry (\d+); ")
_STEP = re.compile(r"^pg_restore: (?:from TOC entry (\d+); .*|(error: (?s:.*?))(?=^pg_restore: |\Z))", re.MULTILINE)
#: Printed when pg_restore went on to its end despite errors.
_ENDED = "errors ignored on restore: "
#: A dump may hold its rows as commands.
_ROW = re.compile(
    r'^Command was: INSERT INTO ((?:"(?:[^"]|"")*"|[^\s".(]+)(?:\.(?:"(?:[^"]|"")*"|[^\s".(]+))?) ', re.MULTILINE
)
_OWNED = re.compile(r"^Command was: ALTER .* OWNER TO ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry that could not be loaded.

    Attributes:
        entry: the entry.
        message: as pg_restore printed it, with the command; empty if several jobs printed at a time.
    """

    entry: ArchiveEntry
    message: str = ""

    @property
    def lasting(self) -> bool:
        """Whether the object exists, and only its owner could not be set: loading it again would not help."""
        return bool(_OWNED.search(self.message))


class BrokenOffError(Exception):
    """pg_restore ended early: it was killed, or the archive is damaged.

    Args:
        code: the exit code.
        stderr: what it printed.
    """

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(code)
        self.code = code
        self.stderr = stderr


#: Runs pg_restore on entries, in this order, with a number of jobs; returns its exit code and what it printed.
Run = Callable[[Sequence[ArchiveEntry], int], tuple[int, str]]


@dataclass
class Loader:
    """Loads the entries of one restore.

    Attributes:
        run: runs pg_restore.
        clear: empties tables, by their names as SQL: if rows are written as commands, some may be there.
        alone: numbers of the entries that a single process loads, whatever the number of jobs.
        again: entries that failed at first and were loaded later, in order.
    """

    run: Run
    clear: Callable[[Sequence[str]], None]
    alone: Collection[int] = ()
    again: list[ArchiveEntry] = field(default_factory=list, init=False)
    _partly: list[str] = field(default_factory=list, init=False)

    def load(self, entries: Sequence[ArchiveEntry], jobs: int = 1) -> list[Failure]:
        """Run pg_restore once; returns the failures, in the order of the entries.

        Raises:
            BrokenOffError: pg_restore ended early.
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
        """Load failed entries again, one after the other, until a round makes no progress; returns what still fails.

        Raises:
            BrokenOffError: pg_restore ended early.
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
    """The numbers of the entries that pg_restore reported an error for."""
    return set(map(int, _AT.findall(stderr)))


def failed_of(stderr: str, entries: Iterable[ArchiveEntry]) -> list[ArchiveEntry]:
    """The entries that pg_restore reported an error for, in their order."""
    at = numbers_in(stderr)
    return [entry for entry in entries if entry.number in at]


def messages_of(stderr: str) -> dict[int, str]:
    """The message of a single job for each entry: the first error; if the entry exists already, the second."""
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

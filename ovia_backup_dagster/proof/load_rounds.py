"""Loads an archive's entries into a database, and loads failed ones again after the rest while that makes progress.

``load_order`` decides the order, and ``pg_restore`` runs the program. This module reads the outcome of a run, entry by
entry, and decides which entries are loaded again. The result does not depend on chance: a run with several jobs only
tells which entries failed. These are run again one after the other, in the archive's order, and only the messages of
that run count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from ovia_backup_dagster.proof.archive_entries import ArchiveEntry

#: Makes pg_restore name the entry of each error.
VERBOSE = "--verbose"
#: The additional output of ``--verbose``: a line for each entry, and more.
NOISE = re.compile(
    rb"pg_restore: (?:creating|processing|executing|connecting|launching|finished|entering|restoring|restored"
    rb"|dropping|skipping|started|reading|implied|allocating) "
)
#: pg_restore writes this at once, so it is whole even if the messages of several jobs are interleaved.
_AT = re.compile(r"from TOC entry (\d+); ")
_STEP = re.compile(r"^pg_restore: (?:from TOC entry (\d+); .*|(error: (?s:.*?))(?=^pg_restore: |\Z))", re.MULTILINE)
#: The last line if pg_restore went on to the end despite errors.
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
        message: pg_restore's message, with the command; empty if several jobs printed at the same time.
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


#: Runs pg_restore on entries, in this order, with a number of jobs; returns its exit code and its messages.
Run = Callable[[Sequence[ArchiveEntry], int], tuple[int, str]]


@dataclass
class Loader:
    """Loads the entries of one restore.

    Attributes:
        run: runs pg_restore.
        clear: empties tables, named as in SQL: if a dump holds rows as INSERT commands, some may have been loaded.
        alone: numbers of the entries that are always loaded by a single job.
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
    """Entry -> its message, from a run with one job: the first error, or the second if the entry exists already."""
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

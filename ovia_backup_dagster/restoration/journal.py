"""The journal of a restore, in ``restores/`` on the backup volume: each step that it began and ended, and its outcome.

A restore writes a step into its journal before it takes the step. After any interruption, the journal tells the next
process what to finish or to put back. The record for people is derived from the journal alone. The data of each step is
defined in ``step_data``; how a step is taken, in ``steps``.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AwareDatetime, Field, ValidationError

from ovia_backup_dagster.core.errors import JournalError, RestoreUnfinishedError, VolumeError
from ovia_backup_dagster.core.files import WITNESS_BYTES, as_volume_error, open_plain, read_small
from ovia_backup_dagster.core.manifest import Sidecar, parse_sidecar
from ovia_backup_dagster.core.reserve import with_reserve
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import Proven, RestoreData, StepData

D = TypeVar("D", bound=StepData)


class JournalMark(StrEnum):
    """The event that a journal line records, of a step or of the whole restore."""

    BEGUN = "begun"
    #: Data learned in the middle of a step.
    NOTED = "noted"
    DONE = "done"
    FAILED = "failed"
    #: The restore is being put back; it can no longer go forward.
    PUTTING_BACK = "putting back"
    #: The whole restore ended: it succeeded, or everything was put back.
    FINISHED = "finished"
    PUT_BACK = "put back"
    #: It could be neither finished nor put back, and an operator gave it up by name.
    GIVEN_UP = "given up"


#: The outcome of a restore, by the mark that ended its journal.
OUTCOMES = {JournalMark.FINISHED: "done", JournalMark.PUT_BACK: "put back", JournalMark.GIVEN_UP: "given up"}


class JournalEntry(Sidecar):
    """A line of the journal.

    Attributes:
        at: UTC.
        mark: what happened.
        step: the step, by its word; ``None`` for the whole restore.
        data: what a later process needs, as stored; :meth:`Journal.data` parses it.
    """

    at: AwareDatetime
    mark: JournalMark
    step: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class Journal:
    """The journal of one restore. Only its process writes it, under the folder's lock."""

    def __init__(self, path: Path, order: Order, entries: list[JournalEntry]) -> None:
        self.path = path
        self.order = order
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read a journal. A last line that a kill cut off counts as not written.

        Raises:
            VolumeError: it cannot be read.
            JournalError: it cannot be parsed.
        """
        with as_volume_error(f"cannot read {path}"):
            lines = read_small(path, WITNESS_BYTES).split(b"\n")
        try:
            entries = [parse_sidecar(JournalEntry, line, path.name) for line in lines[1:-1]]
            return cls(path, parse_sidecar(Order, lines[0], path.name), entries)
        except VolumeError as error:
            raise _not_understood(path, error.why) from None

    def write(self, mark: JournalMark, step: str | None = None, data: StepData | None = None) -> None:
        """Append a line; it is on disk when this returns.

        Args:
            mark: what happened.
            step: the step, by its word.
            data: what a later process needs; only set values are written.

        Raises:
            VolumeError, DiskFullError: it cannot be written, so the step must not be taken.
        """
        noted = data.model_dump(mode="json", include=data.model_fields_set) if data else {}
        entry = JournalEntry(at=datetime.now(UTC), mark=mark, step=step, data=noted)
        with as_volume_error(f"cannot write {self.path}"):
            root = self.path.parent.parent
            with_reserve(root, lambda: _append_line(self.path, entry.model_dump_json().encode()))
        self.entries.append(entry)

    def done(self, step: str) -> bool:
        """Whether the step is done."""
        return any(entry.step == step and entry.mark is JournalMark.DONE for entry in self.entries)

    def attempts(self, step: str) -> int:
        """How often the step was begun; each attempt may have been incomplete."""
        return sum(entry.step == step and entry.mark is JournalMark.BEGUN for entry in self.entries)

    def begun(self, step: str) -> bool:
        """Whether the step may have been taken, at least in part."""
        return self.attempts(step) > 0

    def data(self, kind: type[D]) -> D:
        """All data noted for a step. The first value of a field counts: a later attempt sees the first one's changes.

        Args:
            kind: the step's model.

        Raises:
            JournalError: the data cannot be parsed.
        """
        found: dict[str, Any] = {}
        for entry in self.entries:
            if entry.step == kind.step:
                found = {**entry.data, **found}
        try:
            return kind.model_validate(found)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            why = ": ".join([kind.step, *(str(part) for part in first["loc"]), first["msg"]])
            raise _not_understood(self.path, why) from None

    @property
    def ended(self) -> JournalMark | None:
        """The outcome; ``None`` while the restore still has to be finished or put back."""
        return next((entry.mark for entry in self.entries if entry.mark in OUTCOMES), None)

    @property
    def made(self) -> int | None:
        """The OID of the restored database once it passed its checks, from the last attempt."""
        noted = (entry.data.get("made") for entry in reversed(self.entries) if entry.step == Step.RESTORE)
        return next((oid for oid in noted if oid is not None), None)

    @property
    def putting_back(self) -> bool:
        """Whether putting back has begun."""
        return any(entry.mark is JournalMark.PUTTING_BACK for entry in self.entries)

    @property
    def live(self) -> bool:
        """Whether the restored database is live: swapped in, or given the live name."""
        return self.done(Step.SWAP) or self.done(Step.NAME)

    @property
    def proven(self) -> Proven | None:
        """The results of the checks, once they ran."""
        return self.data(RestoreData).proven

    @property
    def unfinished(self) -> RestoreUnfinishedError:
        """The error for an operator who wants to begin another restore."""
        last = next((entry for entry in reversed(self.entries) if entry.step), None)
        at = f"the step '{last.step}' was {last.mark}" if last else "nothing was done yet"
        resume, abort = "ovia-backup restore --resume", "put everything back: ovia-backup restore --abort"
        if self.putting_back:
            at, fix = "it was being put back", abort
        else:
            # After a drop, or if no database was live before, there is nothing to go back to.
            gone = self.done(Step.DROP) or (self.order.mode is Mode.NEW and self.live)
            fix = resume if gone else f"{resume}; or {abort}"
        return RestoreUnfinishedError(
            f"the {self.order.mode} of {self.order.backup or self.order.database}, begun "
            f"{self.order.started_at:%Y-%m-%d %H:%M:%S} UTC, is not finished",
            why=f"{at}, and then its process ended",
            fix=fix,
        )


def _not_understood(path: Path, why: str) -> JournalError:
    return JournalError(
        f"cannot tell whether a restore is unfinished: the journal {path} cannot be understood",
        why=why,
        fix="if a newer ovia-backup wrote it, use that one; else it is damaged: see which databases there are "
        f"(psql -l), put right what is not, then: mv {path} {path}.damaged",
    )


def _append_line(path: Path, line: bytes) -> None:
    """Append a line; it is on disk when this returns."""
    descriptor = open_plain(path, os.O_RDWR | os.O_APPEND)
    try:
        _cut_torn_line(descriptor)
        _write_all(descriptor, line + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> None:
    """Remove a last line that a kill cut off, so that it does not become the beginning of the next line."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0)
    if not text.endswith(b"\n"):
        os.ftruncate(descriptor, text.rfind(b"\n") + 1)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]

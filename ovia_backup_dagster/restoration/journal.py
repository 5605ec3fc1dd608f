"""What was done of a restore so far, and how it ended: its journal in ``restores/`` on the backup volume.

A restore writes each step into its journal before it takes it. Whatever ends it, the journal tells the next process
what there is to finish or to put back, and the record for people is made from the journal alone. What it carries of
each step is stated in ``step_data``; how a step is taken belongs to ``steps``.
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
    """What the journal says of a step, or of all of it."""

    BEGUN = "begun"
    #: Found out in the middle of a step.
    NOTED = "noted"
    DONE = "done"
    FAILED = "failed"
    #: From here on there is only the way back.
    PUTTING_BACK = "putting back"
    #: The whole restore, and nothing is left to do: it succeeded, or all was put back.
    FINISHED = "finished"
    PUT_BACK = "put back"
    #: It could be neither finished nor put back, and a person gave it up, by name.
    GIVEN_UP = "given up"


#: What came of a restore, by the mark that ended its journal.
OUTCOMES = {JournalMark.FINISHED: "done", JournalMark.PUT_BACK: "put back", JournalMark.GIVEN_UP: "given up"}


class JournalEntry(Sidecar):
    """A line of the journal.

    Attributes:
        at: UTC.
        mark: what happened.
        step: to which step, by its word; ``None`` at the end of it all.
        data: what a later process needs to know, as it is on the disk; :meth:`Journal.data` understands it.
    """

    at: AwareDatetime
    mark: JournalMark
    step: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class Journal:
    """What one restore has done. Only its process writes it, under the folder's lock."""

    def __init__(self, path: Path, order: Order, entries: list[JournalEntry]) -> None:
        self.path = path
        self.order = order
        self.entries = entries

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read one; a last line that a kill tore is as if it had not been written.

        Raises:
            VolumeError: it cannot be read.
            JournalError: it cannot be understood.
        """
        with as_volume_error(f"cannot read {path}"):
            lines = read_small(path, WITNESS_BYTES).split(b"\n")
        try:
            entries = [parse_sidecar(JournalEntry, line, path.name) for line in lines[1:-1]]
            return cls(path, parse_sidecar(Order, lines[0], path.name), entries)
        except VolumeError as error:
            raise _not_understood(path, error.why) from None

    def write(self, mark: JournalMark, step: str | None = None, data: StepData | None = None) -> None:
        """Add a line; it is on the disk when this returns.

        Args:
            mark: what happened.
            step: to which step, by its word.
            data: what a later process needs to know; of it, what is set.

        Raises:
            VolumeError, DiskFullError: it cannot be written, and so the step must not be taken.
        """
        noted = data.model_dump(mode="json", include=data.model_fields_set) if data else {}
        entry = JournalEntry(at=datetime.now(UTC), mark=mark, step=step, data=noted)
        with as_volume_error(f"cannot write {self.path}"):
            root = self.path.parent.parent
            with_reserve(root, lambda: _append_line(self.path, entry.model_dump_json().encode()))
        self.entries.append(entry)

    def done(self, step: str) -> bool:
        """Whether the step is behind us."""
        return any(entry.step == step and entry.mark is JournalMark.DONE for entry in self.entries)

    def attempts(self, step: str) -> int:
        """How often the step was begun; it may have been taken in part each time."""
        return sum(entry.step == step and entry.mark is JournalMark.BEGUN for entry in self.entries)

    def begun(self, step: str) -> bool:
        """Whether the step may have been taken, if only in part."""
        return self.attempts(step) > 0

    def data(self, kind: type[D]) -> D:
        """All that was noted of a step; what was noted first holds: a second attempt sees a changed world.

        Args:
            kind: the step's model.

        Raises:
            JournalError: what was noted cannot be understood.
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
        """How it ended; ``None`` while there is something to finish or to put back."""
        return next((entry.mark for entry in self.entries if entry.mark in OUTCOMES), None)

    @property
    def made(self) -> int | None:
        """The database that was made, by its OID, once it was proven; of several attempts, the last one's."""
        noted = (entry.data.get("made") for entry in reversed(self.entries) if entry.step == Step.RESTORE)
        return next((oid for oid in noted if oid is not None), None)

    @property
    def putting_back(self) -> bool:
        """Whether the way back was begun."""
        return any(entry.mark is JournalMark.PUTTING_BACK for entry in self.entries)

    @property
    def live(self) -> bool:
        """Whether what was restored is what people use: swapped in, or given the name."""
        return self.done(Step.SWAP) or self.done(Step.NAME)

    @property
    def proven(self) -> Proven | None:
        """What the proof found, once there was one."""
        return self.data(RestoreData).proven

    @property
    def unfinished(self) -> RestoreUnfinishedError:
        """What to tell a person who wants to begin another one."""
        last = next((entry for entry in reversed(self.entries) if entry.step), None)
        at = f"the step '{last.step}' was {last.mark}" if last else "nothing was done yet"
        resume, abort = "ovia-backup restore --resume", "put everything back: ovia-backup restore --abort"
        if self.putting_back:
            at, fix = "it was being put back", abort
        else:
            # What is live by being made, or was dropped, has nothing before it to go back to.
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
    """On the disk, when this returns."""
    descriptor = open_plain(path, os.O_RDWR | os.O_APPEND)
    try:
        _cut_torn_line(descriptor)
        _write_all(descriptor, line + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_line(descriptor: int) -> None:
    """What a kill left of a line must not become the beginning of the next."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0)
    if not text.endswith(b"\n"):
        os.ftruncate(descriptor, text.rfind(b"\n") + 1)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]

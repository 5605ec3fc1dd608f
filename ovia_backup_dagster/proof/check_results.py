"""The results of the checks on a restored copy, as a drill's evidence and a restore's record store them.

``core.check_registry`` lists the checks; the modules of this package and of ``drill`` make them.
"""

from __future__ import annotations

from enum import StrEnum

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.manifest import Sidecar

#: Text for a check that is registered for a stage, but was not made although the stage was completed.
NO_CODE = "it is registered, and no code makes it: report that"


class Result(StrEnum):
    """The result of a check."""

    PASSED = "passed"
    ODD = "odd"
    FAILED = "failed"
    NOT_MADE = "not made"


class CheckResult(Sidecar):
    """A check with its result, in words for a person."""

    check: Check
    result: Result
    text: str

    @property
    def lacks_code(self) -> bool:
        """Whether the check is registered, but no code makes it."""
        return self.result is Result.NOT_MADE and self.text == NO_CODE


class CopiedTable(Sidecar):
    """A table of the copy: its rows, and its bytes on disk with indexes and TOAST."""

    name: str
    rows: int
    size_bytes: int

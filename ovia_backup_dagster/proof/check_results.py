"""What came of the checks that a restored copy is judged by: the words of a drill's evidence and a restore's record.

Which checks there are says ``core.check_registry``; how each is made, the modules of this room and of ``drill``.
"""

from __future__ import annotations

from enum import StrEnum

from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.manifest import Sidecar

#: Of a check that is registered for what was done to its end, and was not made.
NO_CODE = "it is registered, and no code makes it: report that"


class Result(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    ODD = "odd"
    FAILED = "failed"
    NOT_MADE = "not made"


class CheckResult(Sidecar):
    """One check with its result, in words for a person."""

    check: Check
    result: Result
    text: str

    @property
    def lacks_code(self) -> bool:
        """Whether the check is registered, and no code makes it."""
        return self.result is Result.NOT_MADE and self.text == NO_CODE


class CopiedTable(Sidecar):
    """A table of the copy: its rows, and its bytes on disk with indexes and TOAST."""

    name: str
    rows: int
    size_bytes: int

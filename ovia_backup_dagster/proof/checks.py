"""The checks that a restored copy is judged by, and what came of each: the words of evidence and record.

How a check is made is the business of ``prover`` and of the drill.
"""

from __future__ import annotations

from enum import StrEnum

from ovia_backup_dagster.core.manifest import Sidecar


class DrillCheck(StrEnum):
    """What a drill proves, in this order. The value is the name of the asset check, too."""

    UNALTERED = "archive_is_what_was_written"
    CONTAINED = "drill_contained"
    FUNCTIONS = "functions_gain_no_rights"
    EXTENSIONS = "extensions_as_in_source"
    ROLES = "roles_as_saved"
    RESTORED = "restored_without_errors"
    TABLES = "rows_and_content_equal"
    SEQUENCES = "sequences_equal"
    LARGE_OBJECTS = "large_objects_equal"
    CONTENTS = "contents_equal"
    STRUCTURE = "constraints_and_indexes_as_in_source"
    SCHEMA_TEXT = "schema_text_equal"
    MATERIALIZED_VIEWS = "materialized_views_refreshed"
    COMPUTED = "computed_values_equal"
    TABLES_PRESENT = "expected_tables_present"
    TABLES_HOLD_ROWS = "expected_tables_hold_rows"
    ROWS_KEPT = "tables_kept_their_rows"
    ANALYZED = "analyzed"
    CONTROL = "negative_control"
    OWN_CHECK = "own_check_passes"

    @property
    def is_odd(self) -> bool:
        """Whether a finding is odd (the data is proven) rather than bad."""
        return self in (
            DrillCheck.FUNCTIONS,
            DrillCheck.SCHEMA_TEXT,
            DrillCheck.MATERIALIZED_VIEWS,
            DrillCheck.ROWS_KEPT,
        )

    @property
    def description(self) -> str:
        """What a person needs to know about the check, in a sentence."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    DrillCheck.UNALTERED: "Size and SHA-256 of the file are those taken when it was written.",
    DrillCheck.CONTAINED: "What the backup contains ran confined: from inside, nothing outside could be read, written, "
    "reached or signalled.",
    DrillCheck.FUNCTIONS: "No function of a role that is no superuser is run as one, on a server that others use.",
    DrillCheck.EXTENSIONS: "The source's extensions are there; another version of one is odd.",
    DrillCheck.ROLES: "Roles, with what they may do, are those that were saved. Another setting or comment is odd.",
    DrillCheck.RESTORED: "pg_restore restored all of it and met no error.",
    DrillCheck.TABLES: "Every table was read back: its rows and their content are the backup's. Another order is odd.",
    DrillCheck.SEQUENCES: "Every sequence stands where it stood.",
    DrillCheck.LARGE_OBJECTS: "Every large object is there, with its content, its privileges and its comment.",
    DrillCheck.CONTENTS: "Every object of the backup is in the copy, with its owner and privileges, and no other.",
    DrillCheck.STRUCTURE: "Constraints, indexes, triggers, policies and views are the backup's, and valid.",
    DrillCheck.SCHEMA_TEXT: "Objects have the same SQL. PostgreSQL writes some back differently: odd, not wrong.",
    DrillCheck.MATERIALIZED_VIEWS: "All that were populated were refreshed. If not, the data is proven all the same.",
    DrillCheck.COMPUTED: "Generated columns hold what they held in the source. Another content of a materialized view, "
    "which may have been stale there, is odd.",
    DrillCheck.TABLES_PRESENT: "The tables named in BACKUP_EXPECTED_TABLES are in the copy.",
    DrillCheck.TABLES_HOLD_ROWS: "Those tables hold rows, where BACKUP_REQUIRE_ROWS asks for it.",
    DrillCheck.ROWS_KEPT: "No table is gone or has less than half the rows of the proven backup before it.",
    DrillCheck.ANALYZED: "The copy has statistics, without which it would be slow.",
    DrillCheck.CONTROL: "One row was deleted in the copy, and the comparison noticed: it can see.",
    DrillCheck.OWN_CHECK: "DRILL_CHECK_COMMAND, run on the copy, ended with code 0.",
}


class Result(StrEnum):
    """What came of a check."""

    PASSED = "passed"
    ODD = "odd"
    FAILED = "failed"
    NOT_MADE = "not made"


class Line(Sidecar):
    """One check with its result, in words for a person."""

    check: DrillCheck
    result: Result
    text: str


class CopiedTable(Sidecar):
    """A table of the copy: its rows, and its bytes on disk with indexes and TOAST."""

    name: str
    rows: int
    size_bytes: int

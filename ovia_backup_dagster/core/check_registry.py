"""The registry of checks: each check of a backup, or of a copy restored from it, is listed once.

To add a check, add a member here and the code that makes the check. Until some code makes it, drills and restores list
it as "not made". Only name, stages, severity and description belong here. The result of a check is a ``Finding``
(``core.verdict``) or a ``CheckResult`` (``proof.check_results``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Stage(StrEnum):
    """The stage in which a check is made."""

    #: The archive is read to its last byte.
    VERIFICATION = "verification"
    #: The backup is restored into a copy, which is compared with it.
    DRILL = "drill"
    #: The same for a database that goes live.
    RESTORE = "restore"


class CheckSeverity(StrEnum):
    """The severity of a finding: bad blocks the following steps, odd only warns."""

    BAD = "bad"
    ODD = "odd"


_VERIFICATION = (Stage.VERIFICATION,)
_PROOF = (Stage.DRILL, Stage.RESTORE)
_BOTH = (*_VERIFICATION, *_PROOF)
_DRILL = (Stage.DRILL,)


class Check(StrEnum):
    """A check. The value is its name in sidecars and evidence, and the asset check's name.

    Stages list their checks in the order of this registry.

    Attributes:
        stages: the stages in which it is made.
        severity: the severity of its findings.
        description: an explanation for people, in one or two sentences.
    """

    stages: tuple[Stage, ...]
    severity: CheckSeverity
    description: str

    def __new__(cls, name: str, stages: tuple[Stage, ...], severity: CheckSeverity, description: str) -> Self:
        check = str.__new__(cls, name)
        check._value_ = name
        check.stages, check.severity, check.description = stages, severity, description
        return check

    # fmt: off
    MATCHES_MANIFEST = (
        "archive_matches_manifest", _VERIFICATION, CheckSeverity.BAD,
        "Archive, roles, manifest and name are of one dump, with the sizes and SHA-256 taken when they were written.",
    )
    DECODES = (
        "archive_decodes", _VERIFICATION, CheckSeverity.BAD,
        "Every byte of the archive was decoded by pg_restore, and every table's data is whole.",
    )
    UNALTERED = (
        "archive_is_what_was_written", _PROOF, CheckSeverity.BAD,
        "Size and SHA-256 of the file are those taken when it was written.",
    )
    CONTAINED = (
        "drill_contained", _DRILL, CheckSeverity.BAD,
        ("What the backup contains ran confined: from inside, nothing outside could be read, written, reached or "
         "signalled."),
    )
    FUNCTIONS = (
        "functions_gain_no_rights", _PROOF, CheckSeverity.ODD,
        "No function of a role that is not a superuser is run as one, on a server that others use.",
    )
    EXTENSIONS = (
        "extensions_as_in_source", _PROOF, CheckSeverity.BAD,
        "The source's extensions are there; another version of one is odd.",
    )
    ROLES = (
        "roles_as_saved", _PROOF, CheckSeverity.BAD,
        "Roles, with what they may do, are those that were saved. Another setting or comment is odd.",
    )
    RESTORED = (
        "restored_without_errors", _PROOF, CheckSeverity.BAD,
        "pg_restore restored all of it and met no error.",
    )
    TABLES = (
        "rows_and_content_equal", _PROOF, CheckSeverity.BAD,
        "Every table was read back: its rows and their content are the backup's. Another order is odd.",
    )
    SEQUENCES = (
        "sequences_equal", _PROOF, CheckSeverity.BAD,
        "Every sequence has the value that the backup holds.",
    )
    LARGE_OBJECTS = (
        "large_objects_equal", _PROOF, CheckSeverity.BAD,
        "Every large object is there, with its content, its privileges and its comment.",
    )
    CONTENTS = (
        "contents_equal", _PROOF, CheckSeverity.BAD,
        "Every object of the backup is in the copy, with its owner and privileges, and no other.",
    )
    STRUCTURE = (
        "constraints_and_indexes_as_in_source", _PROOF, CheckSeverity.BAD,
        "Constraints, indexes, triggers, policies and views are the backup's, and valid.",
    )
    SCHEMA_TEXT = (
        "schema_text_equal", _PROOF, CheckSeverity.ODD,
        "Objects have the same SQL. PostgreSQL writes some back differently: odd, not wrong.",
    )
    MATERIALIZED_VIEWS = (
        "materialized_views_refreshed", _PROOF, CheckSeverity.ODD,
        "All populated materialized views were refreshed. If not, the data is proven anyway.",
    )
    COMPUTED = (
        "computed_values_equal", _PROOF, CheckSeverity.BAD,
        ("Generated columns hold what they held in the source. Another content of a materialized view, which may have "
         "been stale there, is odd."),
    )
    TABLES_PRESENT = (
        "expected_tables_present", _BOTH, CheckSeverity.BAD,
        "The tables named in BACKUP_EXPECTED_TABLES are there.",
    )
    TABLES_HOLD_ROWS = (
        "expected_tables_hold_rows", _BOTH, CheckSeverity.BAD,
        "Those tables hold rows, where BACKUP_REQUIRE_ROWS asks for it.",
    )
    ROWS_KEPT = (
        "tables_kept_their_rows", _BOTH, CheckSeverity.ODD,
        "No table is gone or lost more than half its rows since the previous verified dump.",
    )
    NO_WARNINGS = (
        "dump_without_warnings", _VERIFICATION, CheckSeverity.ODD,
        "pg_dump had nothing to warn about (things it left out).",
    )
    SOURCE = (
        "source_is_the_one_backed_up", _VERIFICATION, CheckSeverity.BAD,
        ("The cluster is that of the last verified dump, and some of its tables are there, unless a person has "
         "accepted that (ovia-backup accept) or a restore went live there."),
    )
    ANALYZED = (
        "analyzed", _PROOF, CheckSeverity.BAD,
        "The copy has statistics, without which it would be slow.",
    )
    CONTROL = (
        "negative_control", _DRILL, CheckSeverity.BAD,
        "One row was deleted in the copy, and the comparison noticed it.",
    )
    OWN_CHECK = (
        "own_check_passes", _DRILL, CheckSeverity.BAD,
        "DRILL_CHECK_COMMAND, run on the copy, ended with code 0.",
    )
    # fmt: on

    @classmethod
    def at(cls, stage: Stage) -> tuple[Check, ...]:
        """The checks of a stage, in order."""
        return tuple(check for check in cls if stage in check.stages)

    @property
    def is_odd(self) -> bool:
        """Whether a finding is odd (warn and go on) rather than bad (block)."""
        return self.severity is CheckSeverity.ODD

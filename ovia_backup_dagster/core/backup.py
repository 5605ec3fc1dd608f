"""One backup with everything known about it: verdicts, drills, holds, and its state at an instant.

``backup_files`` reads its files; ``catalog`` lists the existing backups.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

from ovia_backup_dagster.core.archive_header import MAGIC, parse_header
from ovia_backup_dagster.core.backup_files import BackupFiles
from ovia_backup_dagster.core.errors import (
    BadBackupError,
    VolumeError,
)
from ovia_backup_dagster.core.files import (
    exists,
)
from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import (
    ACCEPTED,
    DRILLED,
    HELD,
    MANIFEST,
    PROMOTED,
    VERIFIED,
)
from ovia_backup_dagster.core.statement_coverage import Unit, contradictions, is_about
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import (
    Acceptance,
    Drills,
    Hold,
    Judgement,
    PromotionRecord,
    Verification,
    Witness,
    bad_backup,
)

#: How far the clocks of two machines may differ before a date counts as in the future.
CLOCK_TOLERANCE = timedelta(minutes=5)
#: The old script may still be writing a dump without a manifest that is younger than this.
SETTLING = timedelta(minutes=15)
S = TypeVar("S", bound=Sidecar)


class State(StrEnum):
    """The state of a backup. The value is shown to people; docs/glossary.md defines each."""

    PROVEN = "proven"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    BAD = "bad"
    BEING_WRITTEN = "being written"

    @property
    def is_verified(self) -> bool:
        """Whether the whole backup was read back and found good. A proven backup is verified, too."""
        return self in (State.PROVEN, State.VERIFIED)

    @property
    def may_be_good(self) -> bool:
        """Whether it is complete, and not known to be bad."""
        return self not in (State.BAD, State.BEING_WRITTEN)

    @property
    def former(self) -> str:
        """The word of 0.1.0, in which "proven" meant verified; readers of the JSON may still use it."""
        return {State.VERIFIED: "proven", State.UNVERIFIED: "unproven"}.get(self, self.value)


@dataclass(frozen=True)
class Backup(BackupFiles):
    """A dump on the volume with its sidecars, each read on first use.

    Attributes:
        path: the dump.
        name: the parsed file name.
        size_bytes, mtime_ns: of the dump, when it was listed.
    """

    name: BackupName
    size_bytes: int
    mtime_ns: int

    @property
    def tier(self) -> Tier:
        return self.name.tier

    @property
    def started_at(self) -> datetime:
        """When the dump began (UTC)."""
        return self.name.started_at

    @cached_property
    def verification(self) -> Verification | None:
        """All judgements so far; ``None`` if there are none, or the sidecar cannot be read."""
        # An unreadable verdict counts as none; verifying again repairs it.
        with contextlib.suppress(VolumeError):
            return self.parsed(VERIFIED)
        return None

    @cached_property
    def unit(self) -> Unit | None:
        """What a statement must cover; ``None`` if the manifest cannot be read: then no statement counts."""
        unit = self._unit_of_manifest
        if unit is not None and unit.archive_sha256 is None and self.judgement is not None:
            return replace(unit, archive_sha256=self.judgement.sha256)
        return unit

    @cached_property
    def hold(self) -> Hold | None:
        """The hold that makes retention keep it, if there is one.

        Raises:
            VolumeError: there is a hold that cannot be read.
        """
        hold = self.parsed(HELD)
        # If the hold's coverage cannot be compared, the hold counts: a removal cannot be undone.
        return hold if hold is None or self.unit is None or is_about(hold, self.unit) else None

    @cached_property
    def acceptance(self) -> Acceptance | None:
        """The acceptance of a backup of another source, if there is one."""
        with contextlib.suppress(VolumeError):
            accepted = self.parsed(ACCEPTED)
            return accepted if accepted and self.unit and is_about(accepted, self.unit) else None
        return None

    @cached_property
    def promotion(self) -> PromotionRecord | None:
        """The daily backup that it was promoted from, if that was recorded."""
        with contextlib.suppress(VolumeError):
            promoted = self.parsed(PROMOTED)
            return promoted if promoted and self.unit and is_about(promoted, self.unit) else None
        return None

    @cached_property
    def judgement(self) -> Judgement | None:
        """The newest judgement, if it covers the backup's current files."""
        if self.verification is None or self._unit_of_manifest is None:
            return None
        last = self.verification.judgements[-1]
        return last if is_about(last, self._unit_of_manifest) else None

    @property
    def once_verified(self) -> bool:
        """Whether any judgement that covers the current files found the backup good."""
        judgements = self.verification.judgements if self.verification else ()
        return self.unit is not None and any(each.good and is_about(each, self.unit) for each in judgements)

    @property
    def witness(self) -> Witness | None:
        """The archive's contents, if the current file was judged good."""
        return self.verification.witness if self.verification and self.judgement and self.judgement.good else None

    @property
    def system_identifier(self) -> str | None:
        """The system identifier of its source cluster; ``None`` if unknown."""
        with contextlib.suppress(VolumeError):
            return self.manifest.database.system_identifier if self.manifest else None
        return None

    @property
    def changed(self) -> bool:
        """Whether the backup changed since it was judged."""
        return self.verification is not None and self.judgement is None

    @cached_property
    def contradictions(self) -> tuple[str, ...]:
        """Why name, manifest and archive are not of one dump, as far as the archive's header shows."""
        manifest = None
        with contextlib.suppress(VolumeError):  # a newer version may have written it
            manifest = self.manifest
        if manifest is None:
            return ()
        broken, header = [], None
        if self._head is not None and self.is_archive:
            try:
                header = parse_header(self._head)
            except ValueError as error:
                broken.append(f"the archive's beginning is damaged: {error}")
        # A file outside the volume may have any name.
        name = BackupName.parse(self.path.name)
        return (*contradictions(manifest, name=name, size_bytes=self.size_bytes, header=header), *broken)

    @cached_property
    def drills(self) -> Drills | None:
        """All restore drills so far; ``None`` if there are none, or the sidecar cannot be read."""
        with contextlib.suppress(VolumeError):
            return self.parsed(DRILLED)
        return None

    @property
    def drilled(self) -> bool:
        """Whether the newest drill passed, and covers the backup's current files."""
        if self.drills is None or self.unit is None:
            return False
        last = self.drills.drills[-1]
        return last.passed and is_about(last, self.unit)

    @cached_property
    def problem(self) -> BadBackupError | None:
        """Why the backup is bad; ``None`` if it is not. Only this property decides that."""
        if self.judgement is not None and not self.judgement.good:
            return self.judgement.problem(str(self))
        if not self.is_archive:
            why = "it is not an archive: the dump failed before it began"
            if self.foreign:
                why = f"it is {self.foreign[0]}, and no archive of pg_dump's custom format"
            elif self.size_bytes >= len(MAGIC):
                why = "it is not an archive: it was overwritten, or is another program's"
            return bad_backup(str(self), why)
        return bad_backup(str(self), "; ".join(self.contradictions)) if self.contradictions else None

    def state(self, now: datetime) -> State:
        """Its state at ``now`` (UTC)."""
        if self.judgement is None:
            untouched = timedelta(seconds=now.timestamp() - self.mtime_ns / 1e9)
            # A file dated far in the future must not count as being written until that date.
            if -SETTLING < untouched < SETTLING and not exists(self.sidecar(MANIFEST)):
                return State.BEING_WRITTEN
        if self.problem is not None:
            return State.BAD
        if self.judgement is None or not self.is_vouched:
            return State.UNVERIFIED
        return State.PROVEN if self.drilled else State.VERIFIED

    @cached_property
    def _unit_of_manifest(self) -> Unit | None:
        """Like ``unit``, without the verdict."""
        with contextlib.suppress(VolumeError):
            archive_sha256 = self.manifest.sha256 if self.manifest else None
            return Unit(self.size_bytes, self.mtime_ns, archive_sha256, self.manifest_sha256)
        return None

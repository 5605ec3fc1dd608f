"""One backup and what is known of it: verdicts, drills, holds, and its state at an instant.

Its files belong to ``backup_files``; which backups exist, to ``catalog``.
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

#: Clocks of two machines may differ this much before a date counts as lying in the future.
CLOCK_TOLERANCE = timedelta(minutes=5)
#: A dump without a manifest may still be being written by the old script until it is this old.
SETTLING = timedelta(minutes=15)
S = TypeVar("S", bound=Sidecar)


class State(StrEnum):
    """What is known about a backup. The value is what a person reads; docs/glossary.md says what each means."""

    PROVEN = "proven"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    BAD = "bad"
    BEING_WRITTEN = "being written"

    @property
    def is_verified(self) -> bool:
        """Whether all of it was read back and found good; one that is proven is verified, too."""
        return self in (State.PROVEN, State.VERIFIED)

    @property
    def may_be_good(self) -> bool:
        """Whether it is complete, and not known to be bad."""
        return self not in (State.BAD, State.BEING_WRITTEN)

    @property
    def former(self) -> str:
        """As 0.1.0 called it, where proven meant verified: what reads JSON may still look for that."""
        return {State.VERIFIED: "proven", State.UNVERIFIED: "unproven"}.get(self, self.value)


@dataclass(frozen=True)
class Backup(BackupFiles):
    """A dump on the volume with its sidecars, which are read when they are first asked for.

    Attributes:
        path: the dump.
        name: what its file name says.
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
        """Every judgement so far; ``None`` without any, or when the sidecar cannot be read."""
        # A verdict that cannot be read proves nothing, and verifying again repairs it.
        with contextlib.suppress(VolumeError):
            return self.parsed(VERIFIED)
        return None

    @cached_property
    def unit(self) -> Unit | None:
        """What a statement about it must fit; ``None`` when its manifest cannot be read: then none does."""
        unit = self._unit_of_manifest
        if unit is not None and unit.archive_sha256 is None and self.judgement is not None:
            return replace(unit, archive_sha256=self.judgement.sha256)
        return unit

    @cached_property
    def hold(self) -> Hold | None:
        """Why retention must keep it, if it must.

        Raises:
            VolumeError: there is a hold that cannot be read.
        """
        hold = self.parsed(HELD)
        # Where nothing can be compared it holds: removal is what cannot be undone.
        return hold if hold is None or self.unit is None or is_about(hold, self.unit) else None

    @cached_property
    def acceptance(self) -> Acceptance | None:
        """That it is of another source, and that a person meant that."""
        with contextlib.suppress(VolumeError):
            accepted = self.parsed(ACCEPTED)
            return accepted if accepted and self.unit and is_about(accepted, self.unit) else None
        return None

    @cached_property
    def promotion(self) -> PromotionRecord | None:
        """Which daily backup it is, if it was promoted and that was written down."""
        with contextlib.suppress(VolumeError):
            promoted = self.parsed(PROMOTED)
            return promoted if promoted and self.unit and is_about(promoted, self.unit) else None
        return None

    @cached_property
    def judgement(self) -> Judgement | None:
        """The newest judgement, if it is about the backup as it is now."""
        if self.verification is None or self._unit_of_manifest is None:
            return None
        last = self.verification.judgements[-1]
        return last if is_about(last, self._unit_of_manifest) else None

    @property
    def once_verified(self) -> bool:
        """Whether any judgement on the backup as it is now found it good."""
        judgements = self.verification.judgements if self.verification else ()
        return self.unit is not None and any(each.good and is_about(each, self.unit) for each in judgements)

    @property
    def witness(self) -> Witness | None:
        """What the archive holds, if a judgement on the file as it is now says that it is good."""
        return self.verification.witness if self.verification and self.judgement and self.judgement.good else None

    @property
    def system_identifier(self) -> str | None:
        """Of the cluster that it was made of; ``None`` when that is not known."""
        with contextlib.suppress(VolumeError):
            return self.manifest.database.system_identifier if self.manifest else None
        return None

    @property
    def changed(self) -> bool:
        """Whether there is a verdict, but none on the backup as it is now."""
        return self.verification is not None and self.judgement is None

    @cached_property
    def contradictions(self) -> tuple[str, ...]:
        """Why name, manifest and archive are not of one dump, as far as a look at their first bytes tells."""
        manifest = None
        with contextlib.suppress(VolumeError):  # it may be a newer program's
            manifest = self.manifest
        if manifest is None:
            return ()
        broken, header = [], None
        if self._head is not None and self.is_archive:
            try:
                header = parse_header(self._head)
            except ValueError as error:
                broken.append(f"the archive's beginning is damaged: {error}")
        # Elsewhere a person may have given it any name.
        name = BackupName.parse(self.path.name)
        return (*contradictions(manifest, name=name, size_bytes=self.size_bytes, header=header), *broken)

    @cached_property
    def drills(self) -> Drills | None:
        """Every restore drill so far; ``None`` without any, or when the sidecar cannot be read."""
        with contextlib.suppress(VolumeError):
            return self.parsed(DRILLED)
        return None

    @property
    def drilled(self) -> bool:
        """Whether the newest drill is about the backup as it is now, and proved that it restores."""
        if self.drills is None or self.unit is None:
            return False
        last = self.drills.drills[-1]
        return last.passed and is_about(last, self.unit)

    @cached_property
    def problem(self) -> BadBackupError | None:
        """Why it is bad, if it is: the one place that decides so, whatever else is said of it."""
        if self.judgement is not None and not self.judgement.good:
            return self.judgement.problem(str(self))
        if not self.is_archive:
            why = "it is no archive: the dump failed before it began"
            if self.foreign:
                why = f"it is {self.foreign[0]}, and no archive of pg_dump's custom format"
            elif self.size_bytes >= len(MAGIC):
                why = "it is no archive: it was overwritten, or is another program's"
            return bad_backup(str(self), why)
        return bad_backup(str(self), "; ".join(self.contradictions)) if self.contradictions else None

    def state(self, now: datetime) -> State:
        """What is known about it at ``now`` (UTC)."""
        if self.judgement is None:
            untouched = timedelta(seconds=now.timestamp() - self.mtime_ns / 1e9)
            # One that was written by a clock far ahead must not count as unfinished until that day comes.
            if -SETTLING < untouched < SETTLING and not exists(self.sidecar(MANIFEST)):
                return State.BEING_WRITTEN
        if self.problem is not None:
            return State.BAD
        if self.judgement is None:
            return State.UNVERIFIED
        return State.PROVEN if self.drilled else State.VERIFIED

    @cached_property
    def _unit_of_manifest(self) -> Unit | None:
        """As ``unit``, without what a verdict says."""
        with contextlib.suppress(VolumeError):
            archive_sha256 = self.manifest.sha256 if self.manifest else None
            return Unit(self.size_bytes, self.mtime_ns, archive_sha256, self.manifest_sha256)
        return None

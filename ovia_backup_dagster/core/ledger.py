"""What the volume's operations tell a ledger of backups, and the files that it vouches for.

Publication, promotion, removal and every new sidecar are reported here, with the bytes that were written: what is only
read back from the volume is never reported, because another process may have changed it. The signed log (``signing``)
is a ledger; without keys, :data:`UNSIGNED` records nothing and vouches for everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ovia_backup_dagster.core.errors import NotVouchedError


class Ledger(Protocol):
    """Records what became of backups. An archive is named by its file name, a sidecar by its suffix.

    Each recording method raises ``StatementLogError`` if the log is broken, ``SettingsError`` without a signing key,
    and ``VolumeError`` if the statement cannot be written.
    """

    @property
    def can_record(self) -> bool:
        """Whether this process has the key; a machine that only restores has not."""

    def require_key(self) -> None:
        """Raise ``SettingsError`` without the key, before a file is written that would then not count."""

    def published(self, archive: str, size_bytes: int, sha256: str, sidecars: Mapping[str, bytes]) -> None:
        """An archive was written, with these sidecars; reported before it gets its final name."""

    def promoted(self, source: str, archive: str, copied: Mapping[str, bytes], written: Mapping[str, bytes]) -> None:
        """An archive got a second name, with copies of the source's sidecars and with new ones.

        Of the copies only those count that are what was written last for the source.
        """

    def wrote(self, archive: str, suffix: str, content: bytes) -> None:
        """A sidecar of a finished backup was written."""

    def removed(self, archive: str) -> None:
        """A backup was removed."""

    def require_sound(self) -> None:
        """Raise ``StatementLogError`` if the log is broken, so that nothing is listed by it."""

    def files_of(self, archive: str, *, on_volume: bool = True) -> Mapping[str, str] | None:
        """The files that count for a backup: suffix -> hex SHA-256, the archive's suffix being empty.

        Empty if no statement vouches for it; ``None`` if every file counts, because the volume is not signed.

        Args:
            on_volume: whether the backup is on the volume, where one that was removed no longer counts. A copy
                elsewhere outlives the removal.
        """


class Unsigned:
    """The ledger of a volume without keys."""

    can_record = True

    def require_key(self) -> None:
        """None is needed."""

    def published(self, archive: str, size_bytes: int, sha256: str, sidecars: Mapping[str, bytes]) -> None:
        """Record nothing."""

    def promoted(self, source: str, archive: str, copied: Mapping[str, bytes], written: Mapping[str, bytes]) -> None:
        """Record nothing."""

    def wrote(self, archive: str, suffix: str, content: bytes) -> None:
        """Record nothing."""

    def removed(self, archive: str) -> None:
        """Record nothing."""

    def require_sound(self) -> None:
        """There is no log."""

    def files_of(self, archive: str, *, on_volume: bool = True) -> None:
        """Every file counts."""


UNSIGNED: Ledger = Unsigned()


def not_vouched(archive: str) -> NotVouchedError:
    """The error for a backup that no statement vouches for."""
    return NotVouchedError(
        f"no signed statement vouches for {archive}",
        why="it was written without the signing key, or by someone else, or its statement was removed",
        fix="use a backup that ovia-backup list shows as verified; if you know where this one comes from: "
        f"ovia-backup keys adopt {archive}",
    )

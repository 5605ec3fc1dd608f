"""The files of one backup on disk: its archive and its sidecars, each read on first use.

``backup`` derives the backup's state from them; ``sidecars`` lists the kinds of sidecars.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ovia_backup_dagster.core.archive_header import HEAD_BYTES, MAGIC
from ovia_backup_dagster.core.errors import NotVouchedError, StrangeFileError, VolumeError
from ovia_backup_dagster.core.files import file_sha256, read_small, reader
from ovia_backup_dagster.core.ledger import UNSIGNED, Ledger, not_vouched
from ovia_backup_dagster.core.manifest import Manifest, Sidecar, is_newer, parse_sidecar
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, SidecarKind, most_bytes
from ovia_backup_dagster.core.verdict import bad_backup

M = TypeVar("M", bound=Sidecar)


@dataclass(frozen=True)
class BackupFiles:
    """An archive and the sidecars beside it.

    Attributes:
        path: the archive.
        ledger: vouches for its files; a sidecar that it does not vouch for counts as none.
        on_volume: whether it is in a tier's folder, and not a copy elsewhere that a person named by its path.
    """

    path: Path
    ledger: Ledger = field(default=UNSIGNED, repr=False, compare=False, kw_only=True)
    on_volume: bool = field(default=True, repr=False, compare=False, kw_only=True)

    def __str__(self) -> str:
        return self.path.name

    def sidecar(self, kind: SidecarKind[Any] | str) -> Path:
        """The path of a sidecar, whether or not it exists. An unregistered kind is given by its suffix."""
        return self.path.with_name(f"{self.path.name}{kind}")

    def read_sidecar(self, kind: SidecarKind[Any] | str) -> bytes | None:
        """A sidecar's content; ``None`` if there is none.

        Raises:
            VolumeError: it cannot be read.
        """
        try:
            return read_small(self.sidecar(kind), most_bytes(str(kind)))
        except FileNotFoundError:
            return None

    def parsed(self, kind: SidecarKind[M]) -> M | None:
        """A parsed sidecar; ``None`` if there is none.

        Raises:
            VolumeError: it cannot be read, or does not have the form that this version writes.
        """
        content = self.read_sidecar(kind)
        if content is None or kind.model is None:
            return None
        if not self._counts(kind, content):
            return None
        return parse_sidecar(kind.model, content, self.sidecar(kind).name)

    @property
    def manifest(self) -> Manifest | None:
        """The manifest; ``None`` for the old script's dumps, and if it is unusable (``manifest_trouble``).

        Raises:
            VolumeError: a newer version wrote it, or a foreign file is in its place.
        """
        return self._manifest_read[0]

    @property
    def manifest_trouble(self) -> str:
        """Why its manifest is unusable: empty, cut off, or not a manifest. Empty if it can be read.

        A sound archive must not be lost with its manifest, so the backup then counts as one without.

        Raises:
            VolumeError: as ``manifest``.
        """
        return self._manifest_read[1]

    @cached_property
    def _manifest_read(self) -> tuple[Manifest | None, str]:
        text = self._manifest_text
        if text is None:
            return None, ""
        if not self._counts(MANIFEST, text):
            return None, "no signed statement vouches for its manifest: the backup is treated as one without"
        try:
            return parse_sidecar(Manifest, text, self.sidecar(MANIFEST).name), ""
        except VolumeError as error:
            if is_newer(text):
                raise
            why = error.why if text.strip(b"\0 \n") else "it is empty" if not text else "it holds nothing but NUL bytes"
            return None, f"its manifest cannot be read ({why}): the backup is treated as one without"

    @cached_property
    def _manifest_text(self) -> bytes | None:
        return self.read_sidecar(MANIFEST)

    @property
    def manifest_sha256(self) -> str | None:
        """The SHA-256 of the manifest's file; ``None`` without one.

        Raises:
            VolumeError: it cannot be read.
        """
        text = self._manifest_text
        return None if text is None else hashlib.sha256(text).hexdigest()

    @cached_property
    def _stated(self) -> Mapping[str, str] | None:
        return self.ledger.files_of(self.path.name, on_volume=self.on_volume)

    def _counts(self, kind: SidecarKind[Any], content: bytes) -> bool:
        """Whether a sidecar's content is the one that was stated, or needs no statement."""
        if self._stated is None or kind.counts_unsigned:
            return True
        return self._stated.get(kind.suffix) == hashlib.sha256(content).hexdigest()

    @property
    def stated_sha256(self) -> str | None:
        """The archive's SHA-256 as a signed statement names it; ``None`` without one."""
        return None if self._stated is None else self._stated.get("")

    @property
    def is_vouched(self) -> bool:
        """Whether a signed statement vouches for its archive, together with the manifest that is there now.

        The archive itself is compared with its SHA-256 when it is verified, drilled or restored.
        """
        if self._stated is None:
            return True
        return "" in self._stated and self._stated.get(MANIFEST.suffix) == self.manifest_sha256

    def require_vouched(self) -> None:
        """Refuse a backup that a client program must not open.

        Raises:
            NotVouchedError: no signed statement vouches for it.
        """
        if not self.is_vouched:
            raise not_vouched(self.path.name)

    def require_stated_archive(self) -> None:
        """Refuse an archive whose bytes are not those that a signed statement names. Reads all of it, if it is signed.

        Raises:
            NotVouchedError: it was altered, or replaced by another.
            VolumeError: it cannot be read.
        """
        self.require_vouched()
        if self.stated_sha256 is not None and file_sha256(self.path) != self.stated_sha256:
            raise NotVouchedError(
                f"{self} is not the archive that was signed",
                why="its SHA-256 differs: it is damaged, or was replaced",
                fix="use another backup: ovia-backup list; if you know that the damage is an accident, unset "
                "BACKUP_VERIFY_KEY_FILE for this command",
            )

    @cached_property
    def _head(self) -> bytes | None:
        """The archive's first bytes; ``None`` if this user may not read them."""
        try:
            with reader(self.path) as file:
                return file.read(HEAD_BYTES)
        except StrangeFileError:
            return b""
        except (OSError, VolumeError):
            return None

    @property
    def is_archive(self) -> bool:
        """Whether the file begins like pg_dump's custom format: the old script left empty files behind.

        A file that this user may not read counts as an archive; verification reports the reason.
        """
        return self._head is None or self._head.startswith(MAGIC)

    @property
    def foreign(self) -> tuple[str, str] | None:
        """Another format that the first bytes show, and the command that restores it by hand."""
        head, path = self._head or b"", shell_word(str(self.path))
        if head.startswith(MAGIC):
            return None
        if head[257:262] == b"ustar":
            return "a tar archive", f"createdb NEW && pg_restore --dbname=NEW {path}"
        if head.lstrip(b"\xef\xbb\xbf\r\n ").startswith(b"--"):
            return "a plain SQL dump, which psql reads", (
                f"createdb NEW && psql --set=ON_ERROR_STOP=1 --dbname=NEW --file={path}"
            )
        return None

    def altered_files(self, *, complete: bool = True) -> tuple[str, ...]:
        """Alterations of the other files that were made with the archive, one line each.

        Args:
            complete: whether all must exist; a copied dump may lack some.

        Raises:
            VolumeError: a file or the manifest cannot be read.
        """
        files = self.manifest.files if self.manifest else {}
        there = {suffix: self.read_sidecar(suffix) for suffix in files}
        looked_at = [suffix for suffix in files if complete or there[suffix] is not None]
        wrong = {suffix: files[suffix].difference(there[suffix]) for suffix in looked_at}
        return tuple(f"{self.sidecar(suffix).name} {text}" for suffix, text in wrong.items() if text)

    def saved_roles(self) -> bytes | None:
        """The roles that were saved with it, as SQL; ``None`` if none were saved or the file is missing.

        Also ``None`` without a manifest: the file is then not of this program.

        Raises:
            BadBackupError: the file was changed.
            VolumeError: the file cannot be read.
        """
        if self.manifest is None:
            return None
        saved = self.read_sidecar(GLOBALS)
        facts = self.manifest.files.get(GLOBALS.suffix)
        # Older versions recorded no hash of the roles.
        wrong = facts.difference(saved) if facts and saved is not None else ""
        if wrong:
            raise bad_backup(str(self), f"{self.sidecar(GLOBALS).name} {wrong}")
        return saved

"""The registry of the files beside an archive, for every operation on a backup's files.

To add a kind, add one line here: it is then published, promoted, removed, swept and handed over with the others. Its
model (``manifest``, ``verdict``) defines its content, ``backup_files`` reads it, and ``statement_coverage`` defines
what a statement covers, which a signature would sign.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ovia_backup_dagster.core.files import SIDECAR_BYTES, WITNESS_BYTES
from ovia_backup_dagster.core.manifest import FileFacts, Manifest, Sidecar
from ovia_backup_dagster.core.naming import SUFFIX
from ovia_backup_dagster.core.verdict import Acceptance, Drills, Hold, PromotionRecord, Verification

M = TypeVar("M", bound=Sidecar)


@dataclass(frozen=True, slots=True)
class SidecarKind(Generic[M]):
    """One kind of sidecar; as text, its suffix.

    Attributes:
        suffix: the suffix after the archive's name: ``.verified.json``.
        word: its content in a word, for people.
        model: the model of its content; ``None`` if this program does not parse it.
        made_with_dump: whether it is published with the archive and never changes; otherwise it is written later.
        hashed: whether the manifest holds its length and SHA-256.
        promoted: whether a promotion copies it to the other tier.
        needed: whether the backup is incomplete without it: if it cannot be read, the backup is not promoted.
        max_bytes: its size limit for reading, in bytes.
        counts_unsigned: whether it counts although no signed statement vouches for it: a removal cannot be undone.
    """

    suffix: str
    word: str
    model: type[M] | None = None
    made_with_dump: bool = False
    hashed: bool = False
    promoted: bool = True
    needed: bool = False
    max_bytes: int = SIDECAR_BYTES
    counts_unsigned: bool = False

    def __str__(self) -> str:
        return self.suffix


#: All kinds, in the order in which they are published and removed; the archive is published after them, and removed
#: before them. The manifest is the last kind, because it identifies the dump that the others belong to.
SIDECAR_KINDS: list[SidecarKind[Any]] = []


def _kind(kind: SidecarKind[M]) -> SidecarKind[M]:
    SIDECAR_KINDS.append(kind)
    return kind


UNREADABLE: SidecarKind[Sidecar] = _kind(SidecarKind(".verified.json.unreadable", "unreadable verdict"))
PROMOTED = _kind(SidecarKind(".promoted.json", "promotion", PromotionRecord, promoted=False))
ACCEPTED = _kind(SidecarKind(".accepted.json", "acceptance", Acceptance))
HELD = _kind(SidecarKind(".held.json", "hold", Hold, counts_unsigned=True))
DRILLED = _kind(SidecarKind(".drilled.json", "drill", Drills))
VERIFIED = _kind(SidecarKind(".verified.json", "verdict", Verification, needed=True, max_bytes=WITNESS_BYTES))
GLOBALS: SidecarKind[Sidecar] = _kind(
    SidecarKind(".globals.sql", "roles", made_with_dump=True, hashed=True, needed=True, max_bytes=WITNESS_BYTES)
)
MANIFEST = _kind(SidecarKind(".json", "manifest", Manifest, made_with_dump=True, needed=True))


def archive_of(filename: str) -> str | None:
    """The name of a sidecar's archive; ``None`` if the file is not a sidecar."""
    for kind in SIDECAR_KINDS:
        archive = filename.removesuffix(kind.suffix)
        if archive != filename and archive.endswith(SUFFIX):
            return archive
    return None


def most_bytes(suffix: str) -> int:
    """The size limit for reading a sidecar, in bytes; also for kinds of a newer program that are unknown here."""
    return next((kind.max_bytes for kind in SIDECAR_KINDS if kind.suffix == suffix), SIDECAR_BYTES)


def made_with_dump(contents: Mapping[SidecarKind[Any], bytes]) -> Iterator[tuple[SidecarKind[Any], bytes]]:
    """The sidecars that are published with an archive, in order.

    Raises:
        ValueError: one of the kinds is not made with a dump.
    """
    if later := [kind.word for kind in contents if not kind.made_with_dump]:
        raise ValueError(f"not made with a dump: {', '.join(later)}")
    return ((kind, contents[kind]) for kind in SIDECAR_KINDS if kind in contents)


def facts_for_manifest(contents: Mapping[SidecarKind[Any], bytes]) -> dict[str, FileFacts]:
    """The facts that the manifest holds about the files that are made with the archive."""
    return {kind.suffix: FileFacts.of(content) for kind, content in contents.items() if kind.hashed}

"""What a remote has of a database's backups, and which of it counts. Pure.

A file is there if a receipt that counts names it, and the listing has it with the receipt's size. A copy is complete if
its archive and what was made with it are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.offsite.layout import IMMUTABLE, Listing, file_path
from ovia_backup_dagster.offsite.receipt import CopiedFile, Marker, Receipt
from ovia_backup_dagster.signing.chain import Chain, Known
from ovia_backup_dagster.signing.statement import ARCHIVE, Standing

#: What is known of a backup that may be restored.
GOOD = (Standing.VERIFIED, Standing.PROVEN)


@dataclass(frozen=True)
class Copies:
    """One remote's objects, after the checks that concern all of them.

    Attributes:
        marker: whose remote it is.
        listing: its objects.
        chain: the signed log.
        receipts: archive -> its receipts whose signature, remote, backup and statement fit, the newest last.
        refused: path of a receipt -> why it does not count.
    """

    marker: Marker
    listing: Listing
    chain: Chain
    receipts: Mapping[str, Sequence[Receipt]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def sent(self, archive: str) -> dict[str, CopiedFile]:
        """Path -> file, for all that was sent of a backup; a file that was sent again is the newer one."""
        receipts = self.receipts.get(archive, ())
        return {file.path: file for receipt in receipts for file in receipt.files.values()}

    def there(self, archive: str) -> dict[str, CopiedFile]:
        """The same for the files that are there."""
        sent = self.sent(archive).items()
        return {path: file for path, file in sent if self.listing.sizes.get(path) == file.size_bytes}

    def lacks(self, archive: str, *, immutable: bool = False) -> bool:
        """Whether a file that the log states is not there.

        Args:
            immutable: ask for the archive, and what was made with it, alone.
        """
        there, files = self.there(archive), self.chain.known[archive].files
        wanted = [suffix for suffix in files if suffix in IMMUTABLE or not immutable]
        return ARCHIVE not in files or any(file_path(archive, each, files[each].sha256) not in there for each in wanted)

    def known(self, archive: str) -> Known:
        """What counts for a copy: a hold or a drill of the same archive in another tier counts for it, too."""
        own = self.chain.known[archive]
        same = [own, *(self.chain.known[each] for each in self._names[self._identity(archive)])]
        until = max((each.held_until for each in same if each.held_until is not None), default=None)
        proven = own.standing is Standing.VERIFIED and any(each.standing is Standing.PROVEN for each in same)
        return replace(own, held_until=until, standing=Standing.PROVEN if proven else own.standing)

    def _identity(self, archive: str) -> tuple[object, object]:
        """The same for the names of one archive in several tiers."""
        name, files = BackupName.parse(archive), self.chain.known[archive].files
        return name and name.started_at, files[ARCHIVE].sha256 if ARCHIVE in files else archive

    @cached_property
    def _names(self) -> Mapping[tuple[object, object], Sequence[str]]:
        found: dict[tuple[object, object], list[str]] = {}
        for archive in self.chain.known:
            found.setdefault(self._identity(archive), []).append(archive)
        return found

    @property
    def complete(self) -> list[tuple[BackupName, Known]]:
        """The complete copies, newest first."""
        names = [(BackupName.parse(archive), archive) for archive in self.receipts if archive in self.chain.known]
        found = [(name, archive) for name, archive in names if name and not self.lacks(archive, immutable=True)]
        ordered = sorted(found, key=lambda each: (each[0].started_at, each[1]), reverse=True)
        return [(name, self.known(archive)) for name, archive in ordered]

    def size_of(self, archive: str) -> int:
        """The bytes that a copy has on the remote."""
        return self.listing.size_of(archive)

"""A signed volume with backups that no server made, and a remote reached by the real rclone and age."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.remote_address import parse_remotes
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.offsite.copying import Copied, Copier
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.fetching import Fetcher
from ovia_backup_dagster.offsite.layout import file_path
from ovia_backup_dagster.offsite.operations import RemoteOperations
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing import log_replica, statement_log
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.support.factories import CONTENT, DAY, NOW, judged, publish

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
POLICY = Policy({Tier.DAILY: 14, Tier.WEEKLY: 8}, Weekday.SUNDAY, ZoneInfo("UTC"))


@dataclass
class Site:
    """A signed volume, a remote, and the keys."""

    root: Path
    remote: Remote
    age: Age
    database: str = "ovia"
    policy: Policy = POLICY
    key: Ed25519PrivateKey = KEY
    said: list[str] = field(default_factory=list)

    @property
    def log(self) -> StatementLog:
        return StatementLog(self.root, self.database, self.key.public_key(), self.key)

    @property
    def catalog(self) -> Catalog:
        catalog = Catalog(self.root, self.database, ledger=self.log)
        catalog.prepare()
        return catalog

    @property
    def remote_log(self) -> RemoteLog:
        return RemoteLog(self.remote, self.log)

    @property
    def operations(self) -> RemoteOperations:
        """Copying, verification and retention, as on the host that makes backups: without the identity."""
        return RemoteOperations(self.catalog, self.log, self.remote, replace(self.age, identity=None), self.policy)

    @property
    def folder(self) -> Path:
        """The remote, if it is a folder."""
        return Path(self.remote.address.target)

    def backup(self, at: datetime = NOW - DAY, content: bytes = CONTENT) -> Backup:
        return self.catalog.refresh(judged(self.catalog, publish(self.catalog, at, content=content)))

    def copy(self) -> Copied:
        sender = replace(self.age, identity=None)
        return Copier(self.catalog, self.log, self.remote, sender, self.policy).copy(NOW, self.said.append)

    def object(self, archive: str, suffix: str = "") -> str:
        """The path of a backup's file on the remote."""
        return file_path(archive, suffix, self.log.chain().known[archive].files[suffix].sha256)

    def at(self, root: Path, folder: Path) -> Site:
        """The same site with other folders."""
        [address] = parse_remotes(f"nas={folder}")
        return replace(self, root=root, remote=replace(self.remote, address=address), said=[])

    def elsewhere(self, root: Path) -> Fetcher:
        """Another machine, with the public key and the identity only, and an empty folder."""
        return Fetcher(self.remote, StatementLog(root, self.database, self.key.public_key()), self.age)

    def fetch(self, root: Path, wanted: str = "latest") -> Path:
        """Fetch a backup on another machine."""
        fetcher = self.elsewhere(root)
        return fetcher.fetch(fetcher.find(wanted, NOW), root / "fetched", self.said.append)

    def objects(self) -> dict[str, int]:
        return {path: stored.size_bytes for path, stored in self.remote.listing().items()}


class Clock(datetime):
    """The clock of the signed log."""

    at = NOW

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return cls.at


def set_clock(patch: pytest.MonkeyPatch) -> None:
    """Let the signed log have a clock that tests set."""
    for module in (statement_log, log_replica):
        patch.setattr(module, "datetime", Clock)
    Clock.at = NOW


def made_site(folder: Path, age: Age, name: str = "NAS für alle") -> Site:
    """A site whose remote is a folder with blanks and umlauts in its name. The clock must be set."""
    statement_log._read.clear()
    (folder / name).mkdir()
    [address] = parse_remotes(f"nas={folder / name}")
    found = Site(folder / "volume", Remote(address, Program(stall_seconds=20)), age)
    found.catalog.prepare()
    found.remote_log.initialize(NOW)
    return found

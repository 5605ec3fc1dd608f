"""A signed volume with backups that no server made, and remotes reached by the real rclone and age."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
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
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.support.factories import DAY, NOW, verified_backup

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
    said: list[str] = field(default_factory=list)

    @property
    def log(self) -> StatementLog:
        return StatementLog(self.root, self.database, KEY.public_key(), KEY)

    @property
    def catalog(self) -> Catalog:
        catalog = Catalog(self.root, self.database, ledger=self.log)
        catalog.prepare()
        return catalog

    @property
    def remote_log(self) -> RemoteLog:
        return RemoteLog(self.remote, self.log)

    def backup(self, at: datetime = NOW - DAY) -> Backup:
        return self.catalog.refresh(verified_backup(self.catalog, at))

    def copy(self) -> Copied:
        sender = replace(self.age, identity=None)
        return Copier(self.catalog, self.log, self.remote, sender, self.policy).copy(NOW, self.said.append)

    def elsewhere(self, root: Path) -> Fetcher:
        """Another machine, with the public key and the identity only, and an empty folder."""
        return Fetcher(self.remote, StatementLog(root, self.database, KEY.public_key()), self.age)

    def fetch(self, root: Path, wanted: str = "latest") -> Path:
        """Fetch a backup on another machine."""
        fetcher = self.elsewhere(root)
        return fetcher.fetch(fetcher.find(wanted, NOW), root / "fetched", self.said.append)

    def objects(self) -> dict[str, int]:
        return {path: stored.size_bytes for path, stored in self.remote.listing().items()}


@pytest.fixture(scope="session")
def age(tmp_path_factory: pytest.TempPathFactory) -> Age:
    """A new identity, made by age-keygen."""
    identity = tmp_path_factory.mktemp("age") / "identity.txt"
    subprocess.run(("age-keygen", "-o", identity), check=True, capture_output=True)
    recipient = identity.read_text().partition("public key: ")[2].split()[0]
    return Age((recipient,), identity)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock of the signed log."""

    class Clock(datetime):
        at = NOW

        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return cls.at

    monkeypatch.setattr(statement_log, "datetime", Clock)
    return lambda at: setattr(Clock, "at", at)


@pytest.fixture
def site(tmp_path: Path, age: Age, clock: Callable[[datetime], None]) -> Site:
    """A site whose remote is a folder with blanks and umlauts in its name."""
    statement_log._read.clear()
    folder = tmp_path / "NAS für alle"
    folder.mkdir()
    [address] = parse_remotes(f"nas={folder}")
    found = Site(tmp_path / "volume", Remote(address, Program(stall_seconds=20)), age)
    found.catalog.prepare()
    found.remote_log.initialize(NOW)
    return found

"""A signed volume: what no statement vouches for is not verified, not kept for it, and opened by no client program."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.backup_statements import record_hold
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import NotVouchedError, SettingsError
from ovia_backup_dagster.core.ledger import UNSIGNED
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, VERIFIED
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import Expectations, Hold
from ovia_backup_dagster.postgres import archive
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.adoption import adopt, unsigned
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.conftest import quiet

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Volume:
    """A database's signed volume."""

    def __init__(self, root: Path, database: Connection, programs: Programs) -> None:
        self.log = StatementLog(root, database.database, KEY.public_key(), KEY)
        self.catalog = Catalog(root, database.database, ledger=self.log)
        self.dumper = Dumper(self.catalog, database, programs, lock_wait_timeout_seconds=1)
        self.verifier = Verifier(self.catalog, programs, Expectations(("people",), True))

    def good(self) -> Backup:
        verified = self.verifier.verify(self.dumper.dump(log=quiet), log=quiet)
        assert verified.judgement.good
        return verified.backup

    def state(self, backup: Backup) -> State:
        return self.catalog.refresh(backup).state(datetime.now(UTC))


@pytest.fixture
def signed(volume: Path, database: Connection, programs: Programs) -> Volume:
    statement_log._read.clear()
    return Volume(volume, database, programs)


def test_a_daily_chain_is_verified_and_promoted(signed: Volume) -> None:
    made = signed.good()
    assert signed.state(made) is State.VERIFIED
    weekly = promote_backup(signed.catalog, made, Tier.WEEKLY, datetime.now(UTC))
    assert signed.state(weekly) is State.VERIFIED
    remove_backup(signed.catalog, made)
    assert signed.log.files_of(made.path.name) == {}
    assert [statement.event for statement in signed.log.check_each()] == ["backup", "evidence", "promoted", "removed"]


def age(backup: Backup) -> None:
    """Date it an hour back: without a manifest it may still be being written."""
    at = backup.path.stat().st_mtime - 3600
    os.utime(backup.path, (at, at))


def forge_verdict(_: Volume, backup: Backup, other: Backup) -> None:
    """Of another dump, made to fit."""
    text = other.sidecar(VERIFIED).read_text()
    old, new = other.judgement, backup
    assert old is not None
    assert old.sha256
    assert backup.manifest is not None
    for before, after in (
        (old.sha256, backup.manifest.sha256),
        (other.manifest_sha256, backup.manifest_sha256),
        (str(old.size_bytes), str(new.size_bytes)),
        (str(old.mtime_ns), str(new.mtime_ns)),
    ):
        text = text.replace(str(before), str(after))
    backup.sidecar(VERIFIED).write_text(text)


def replay(_: Volume, backup: Backup, other: Backup) -> None:
    """Another dump under this one's name, with all of its sidecars."""
    shutil.copy2(other.path, backup.path)
    for kind in (MANIFEST, GLOBALS, VERIFIED):
        shutil.copy2(other.sidecar(kind), backup.sidecar(kind))


def drop_manifest(_: Volume, backup: Backup, other: Backup) -> None:
    """As the old script left its dumps: without a manifest nothing names the archive's SHA-256."""
    shutil.copy2(other.path, backup.path)
    for kind in (MANIFEST, GLOBALS, VERIFIED):
        backup.sidecar(kind).unlink(missing_ok=True)
    age(backup)


def edit_manifest(_: Volume, backup: Backup, __: Backup) -> None:
    path = backup.sidecar(MANIFEST)
    path.write_bytes(path.read_bytes() + b"\n")


def forget_statement(signed: Volume, backup: Backup, _: Backup) -> None:
    signed.log.removed(backup.path.name)


FORGERIES: dict[str, tuple[Callable[[Volume, Backup, Backup], object], bool]] = {
    "a verdict of another dump": (forge_verdict, True),
    "another dump under its name": (replay, False),
    "another dump without a manifest": (drop_manifest, False),
    "a manifest with one byte more": (edit_manifest, False),
    "a removed one that came back": (forget_statement, False),
}


@pytest.mark.parametrize(("forge", "opens"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_is_neither_verified_nor_opened(
    signed: Volume,
    forge: Callable[[Volume, Backup, Backup], object],
    opens: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A forged verdict does not count; the dump itself is sound, and can be verified again."""
    other, backup = signed.good(), signed.dumper.dump(log=quiet)
    forge(signed, backup, other)
    assert signed.state(backup) is State.UNVERIFIED
    if opens:
        assert signed.verifier.verify(backup, log=quiet).judgement.good
        return
    opened: list[Path] = []
    argument = archive.argument

    def noted(path: Path) -> str:
        opened.append(path)
        return argument(path)

    monkeypatch.setattr(archive, "argument", noted)
    with pytest.raises(NotVouchedError, match=r"no signed statement vouches for .*keys adopt"):
        signed.verifier.verify(backup, log=quiet)
    assert signed.verifier.verify_unverified(log=quiet) == []
    with pytest.raises(NotVouchedError), signed.catalog.reading(signed.catalog.refresh(backup)):
        pytest.fail("an unfinished restore would go on with it")
    assert not opened
    assert signed.state(backup) is State.UNVERIFIED


def test_edited_roles_are_found(signed: Volume) -> None:
    backup = signed.dumper.dump(log=quiet)
    with backup.sidecar(GLOBALS).open("ab") as file:
        file.write(b"ALTER ROLE reporting SUPERUSER;\n")
    assert not signed.verifier.verify(backup, log=quiet).judgement.good


def test_an_altered_archive_is_bad(signed: Volume) -> None:
    backup = signed.dumper.dump(log=quiet)
    content = bytearray(backup.path.read_bytes())
    content[len(content) // 2] ^= 1
    backup.path.write_bytes(content)
    assert not signed.verifier.verify(backup, log=quiet).judgement.good


def test_an_unsigned_hold_still_keeps_its_backup(signed: Volume) -> None:
    """A removal cannot be undone, so a hold counts without a statement."""
    backup = signed.good()
    hold = Hold(until=datetime(2099, 1, 1, tzinfo=UTC), reason="by hand")
    unsigned_catalog = Catalog(signed.catalog.root, signed.catalog.database)
    record_hold(unsigned_catalog, backup, hold)
    assert signed.catalog.refresh(backup).hold is not None


def test_earlier_backups_count_once_they_are_adopted(
    signed: Volume, database: Connection, programs: Programs, volume: Path
) -> None:
    """Also the old script's, without a manifest: its SHA-256 is then the one that was adopted."""
    before = Dumper(Catalog(volume, database.database), database, programs)
    plain, old = before.dump(log=quiet), before.dump(log=quiet)
    for kind in (MANIFEST, GLOBALS):
        old.sidecar(kind).unlink()
    now = datetime.now(UTC)
    assert [str(backup) for backup in unsigned(signed.catalog, now)] == [str(plain)], "the other may be being written"
    age(old)
    backups = unsigned(signed.catalog, now)
    assert [str(backup) for backup in backups] == sorted([str(plain), str(old)])
    for backup in backups:
        assert str(backup) in adopt(signed.log, backup)
    assert not unsigned(signed.catalog, now)
    for backup in (plain, old):
        assert signed.verifier.verify(signed.catalog.refresh(backup), log=quiet).judgement.good
    content = bytearray(old.path.read_bytes())
    content[len(content) // 2] ^= 1
    old.path.write_bytes(content)
    age(old)
    found = signed.verifier.verify(signed.catalog.refresh(old), log=quiet).judgement
    assert "when it was adopted" in found.reasons[0]


def test_without_the_signing_key_no_dump_appears(volume: Path, database: Connection, programs: Programs) -> None:
    log = StatementLog(volume, database.database, KEY.public_key())
    catalog = Catalog(volume, database.database, ledger=log)
    with pytest.raises(SettingsError, match="BACKUP_SIGNING_KEY_FILE is not set"):
        Dumper(catalog, database, programs).dump(log=quiet)
    assert not volume.exists()


def test_without_keys_every_file_counts(volume: Path) -> None:
    assert Catalog(volume, "shop").ledger is UNSIGNED
    assert UNSIGNED.files_of("any") is None

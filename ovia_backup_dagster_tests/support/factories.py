"""Factories for the core layer's tests: fake dumps in a real folder, and their sidecars.

Nothing here asserts anything, and nothing speaks to PostgreSQL: a dump is a few bytes with the right name.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.archive_header import HEAD_BYTES, MAGIC, parse_header
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.backup_statements import record_drill, record_hold, record_judgement
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.manifest import DatabaseFacts, FileFacts, Manifest
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import publish_backup
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, SIDECAR_KINDS
from ovia_backup_dagster.core.statement_coverage import Covered
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import (
    DrillRecord,
    Finding,
    Hold,
    Judgement,
    LargeObjects,
    TableWitness,
    Verification,
    Witness,
)
from ovia_backup_dagster.drill.drill_report import drill_page
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.proof.check_results import CheckResult, Result

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CONTENT = b"PGDMP: not really, but the core layer does not read it"
ROLES = b"CREATE ROLE ovia;\n"


def make_catalog(root: Path, database: str = "ovia") -> Catalog:
    """A catalog whose folders exist."""
    catalog = Catalog(root, database)
    catalog.prepare()
    return catalog


def make_facts(database: str = "ovia") -> DatabaseFacts:
    return DatabaseFacts(
        name=database,
        server_version="16.15",
        server_version_num=160015,
        system_identifier="7300000000000000000",
        bootstrap_superuser="postgres",
        owner="ovia",
        encoding="UTF8",
        collate="C.UTF-8",
        ctype="C.UTF-8",
        locale_provider="libc",
    )


def archive(at: datetime = NOW, database: str = "ovia", server: str = "16.15", minor: int = 15) -> bytes:
    """The header of an archive of pg_dump 16, with some bytes after it."""

    def integer(value: int) -> bytes:
        return bytes([value < 0]) + struct.pack("<i", abs(value))

    def string(text: str) -> bytes:
        return integer(len(text.encode())) + text.encode()

    compression = b"\x01" if minor >= 15 else integer(-1)
    at = at.astimezone(UTC)
    times = (at.second, at.minute, at.hour, at.day, at.month - 1, at.year - 1900, 0)
    head = MAGIC + bytes([1, minor, 0, 4, 8, 1]) + compression + b"".join(map(integer, times))
    return head + string(database) + string(server) + string("16.15") + bytes(64)


def make_manifest(
    started_at: datetime = NOW,
    content: bytes = CONTENT,
    warnings: tuple[str, ...] = (),
    database: str = "ovia",
    roles: bytes | None = None,
) -> Manifest:
    return Manifest(
        database=make_facts(database),
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=10),
        seconds=10.0,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        compression="gzip:1",
        options=("--format=custom",),
        session_options="",
        client_version="16.15",
        warnings=warnings,
        files={} if roles is None else {str(GLOBALS): FileFacts.of(roles)},
        made_by="the tests",
    )


def make_witness(rows: Mapping[str, int] | None = None, partitions: Mapping[str, str] | None = None) -> Witness:
    """A witness with these numbers of rows: table -> rows."""
    tables = {"public.people": 3} if rows is None else rows
    return Witness(
        tables=tuple(TableWitness(name=n, columns="(id)", rows=r, sha256="0" * 64) for n, r in tables.items()),
        sequences={},
        large_objects=LargeObjects(),
        contents=(),
        partitions=dict(partitions or {}),
        schema_sha256="0" * 64,
        decoded_bytes=0,
        archive_client="16.15",
    )


def make_judgement(backup: Backup, *, good: bool, at: datetime = NOW) -> Judgement:
    """A judgement on the file as it is now."""
    status = backup.path.stat()
    sha256 = hashlib.sha256(backup.path.read_bytes()).hexdigest()
    return Judgement(
        covered=Covered(archive_sha256=sha256, manifest_sha256=backup.manifest_sha256),
        at=at,
        good=good,
        findings=() if good else (Finding(check=Check.DECODES, text="it does not decode"),),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=sha256,
        seconds=1.0,
    )


def write_dump(
    catalog: Catalog, started_at: datetime, tier: Tier = Tier.DAILY, *, content: bytes = CONTENT, age: timedelta = HOUR
) -> Backup:
    """A dump of the old script: without sidecars, last written ``age`` before ``NOW``."""
    name = BackupName(catalog.database, tier, started_at)
    path = catalog.folder(tier) / name.filename
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)
    set_mtime(path, NOW - age)
    status = path.stat()
    return Backup(path, name, status.st_size, status.st_mtime_ns)


def publish(catalog: Catalog, started_at: datetime, *, content: bytes = CONTENT) -> Backup:
    """A dump of this system, with manifest and globals, not verified yet."""
    name = BackupName(catalog.database, Tier.DAILY, started_at)
    temporary = catalog.temporary(name)
    temporary.touch(0o600)  # as the caller of pg_dump does
    temporary.write_bytes(content)
    manifest = make_manifest(name.started_at, content, database=catalog.database, roles=ROLES)
    return publish_backup(catalog, temporary, name, {GLOBALS: ROLES, MANIFEST: manifest.to_json().encode()})


def redated(backup: Backup, at: datetime, *, keep: bool = False) -> Backup:
    """The same backup, as if it had been made at ``at``: changes its name, manifest, archive header and sidecars.

    The archive is a new file with the old one's times; the old backup stays if ``keep`` is set.
    """
    name = BackupName(backup.name.database, backup.tier, at)
    target = backup.path.with_name(name.filename)
    manifest, text = backup.manifest, backup.read_sidecar(MANIFEST)
    changed: dict[bytes, bytes] = {}
    content = backup.path.read_bytes()
    if manifest is not None and text is not None:
        written = _written_at(content, name.started_at)
        ended = name.started_at + (manifest.finished_at - manifest.started_at)
        sha256 = hashlib.sha256(written).hexdigest() if manifest.sha256 == _sha256(content) else manifest.sha256
        facts = {"started_at": name.started_at, "finished_at": ended, "sha256": sha256}
        moved = manifest.model_copy(update=facts).to_json().encode()
        changed = {
            text: moved,
            _sha256(content).encode(): _sha256(written).encode(),
            _sha256(text).encode(): _sha256(moved).encode(),
        }
        content = written
    for kind in SIDECAR_KINDS:
        sidecar = backup.read_sidecar(kind)
        if sidecar is not None:
            for before, after in changed.items():
                sidecar = sidecar.replace(before, after)
            target.with_name(f"{target.name}{kind}").write_bytes(sidecar)
            if target != backup.path and not keep:
                backup.sidecar(kind).unlink()
    mode = backup.path.stat().st_mode
    if not keep:
        backup.path.unlink()
    target.write_bytes(content)
    target.chmod(mode)
    os.utime(target, ns=(backup.mtime_ns, backup.mtime_ns))
    return Backup(target, name, len(content), backup.mtime_ns)


def with_roles(backup: Backup, roles: bytes | None) -> Backup:
    """The same backup, as if these roles had been saved with it, or none."""
    manifest, text = backup.manifest, backup.read_sidecar(MANIFEST)
    assert manifest is not None
    assert text is not None
    files = {} if roles is None else {str(GLOBALS): FileFacts.of(roles)}
    changed = manifest.model_copy(update={"files": files, "globals_included": roles is not None}).to_json().encode()
    backup.sidecar(GLOBALS).unlink(missing_ok=True)
    for kind in SIDECAR_KINDS:
        sidecar = backup.read_sidecar(kind)
        if sidecar is not None:
            said = sidecar.replace(text, changed).replace(_sha256(text).encode(), _sha256(changed).encode())
            backup.sidecar(kind).write_bytes(said)
    if roles is not None:
        backup.sidecar(GLOBALS).write_bytes(roles)
    return Backup(backup.path, backup.name, backup.size_bytes, backup.mtime_ns)


def _written_at(content: bytes, at: datetime) -> bytes:
    """An archive's content with another time in its header."""
    try:
        header = parse_header(content[:HEAD_BYTES])
    except ValueError:
        header = None
    if header is None:
        return content
    begun = at.astimezone(UTC)
    times = (begun.second, begun.minute, begun.hour, begun.day, begun.month - 1, begun.year - 1900)
    offset = len(MAGIC) + 7  # version (3 bytes), two sizes, format, compression: as of format 1.15
    return content[:offset] + b"".join(struct.pack("<bi", 0, value) for value in times) + content[offset + 30 :]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def judged(catalog: Catalog, backup: Backup, *, good: bool = True) -> Backup:
    return record_judgement(catalog, backup, make_judgement(backup, good=good), make_witness() if good else None)


def verified_backup(catalog: Catalog, started_at: datetime, tier: Tier = Tier.DAILY) -> Backup:
    """A verified, good backup."""
    made = publish(catalog, started_at) if tier is Tier.DAILY else write_dump(catalog, started_at, tier)
    return judged(catalog, made)


def drilled(catalog: Catalog, backup: Backup, *, passed: bool = True, at: datetime = NOW) -> Backup:
    """Record that a drill restored the backup as it is now."""
    status = backup.path.stat()
    record = DrillRecord(
        at=at,
        passed=passed,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        covered=backup.unit.covered if backup.unit else None,
        evidence=f"{at:%Y-%m-%d_%H%M%S}_{backup.path.stem}.json",
    )
    return record_drill(catalog, backup, record, backup.path.parent)


def drill_evidence(catalog: Catalog, at: datetime, *, passed: bool = True, why: str = "it does not restore") -> Path:
    """Write the evidence that a drill leaves in ``drills/``; return its path."""
    backup = BackupName(catalog.database, Tier.DAILY, at - HOUR)
    check = Check.RESTORED
    line = CheckResult(check=check, result=Result.PASSED if passed else Result.FAILED, text="" if passed else why)
    evidence = Evidence(
        started_at=at,
        finished_at=at + timedelta(seconds=5),
        passed=passed,
        database=catalog.database,
        backup=backup.filename,
        tier=Tier.DAILY.value,
        backup_started_at=backup.started_at,
        backup_bytes=len(CONTENT),
        backup_sha256=hashlib.sha256(CONTENT).hexdigest(),
        manifest=True,
        launched_by="the tests",
        place="throwaway cluster",
        jobs=2,
        versions={"pg_restore": "16.15"},
        lines=(line,),
        phases={"restore": 2.0},
        recovery_seconds=2.0 if passed else None,
        made_by="the tests",
    )
    folder = DrillFolder(catalog)
    folder.prepare(at)
    return folder.write(evidence, drill_page(evidence))


def held(catalog: Catalog, backup: Backup, until: datetime, released_at: datetime | None = None) -> Backup:
    hold = Hold(until=until, reason="people shrank from 10 to 1 rows", released_at=released_at)
    record_hold(catalog, backup, hold)
    return catalog.refresh(backup)


def verification_of(backup: Backup) -> Verification:
    assert backup.verification is not None
    return backup.verification


def set_mtime(path: Path, at: datetime) -> None:
    moment = int(at.timestamp()) * 10**9
    os.utime(path, ns=(moment, moment))


def names(folder: Path) -> set[str]:
    """Everything in a folder, hidden files included."""
    return set(os.listdir(folder))

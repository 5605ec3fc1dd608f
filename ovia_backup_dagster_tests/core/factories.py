"""Small makers of what the core layer's tests need: fake dumps on a real folder, and their sidecars.

Nothing here asserts anything, and nothing speaks to PostgreSQL: a dump is a few bytes with the right name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.catalog import Backup, Catalog
from ovia_backup_dagster.core.drill import DrillCheck, DrillFolder, Evidence, Line, Result
from ovia_backup_dagster.core.drill_page import page
from ovia_backup_dagster.core.manifest import DatabaseFacts, Manifest
from ovia_backup_dagster.core.naming import BackupName, Tier
from ovia_backup_dagster.core.verdict import (
    Check,
    DrillRecord,
    Finding,
    Hold,
    Judgement,
    LargeObjects,
    TableWitness,
    Verification,
    Witness,
)

NOW = datetime(2026, 6, 15, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
CONTENT = b"PGDMP: not really, but nobody in the core layer reads it"


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


def make_manifest(
    started_at: datetime = NOW, content: bytes = CONTENT, warnings: tuple[str, ...] = (), database: str = "ovia"
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
        made_by="the tests",
    )


def make_witness(rows: Mapping[str, int] | None = None, partitions: Mapping[str, str] | None = None) -> Witness:
    """An archive's reading with so many rows a table."""
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
    return Judgement(
        at=at,
        good=good,
        findings=() if good else (Finding(check=Check.DECODES, text="it does not decode"),),
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=hashlib.sha256(backup.path.read_bytes()).hexdigest(),
        seconds=1.0,
    )


def write_dump(
    catalog: Catalog, started_at: datetime, tier: Tier = Tier.DAILY, *, content: bytes = CONTENT, age: timedelta = HOUR
) -> Backup:
    """What the old script left: a dump without any sidecar, last written ``age`` before ``NOW``."""
    name = BackupName(catalog.database, tier, started_at)
    path = catalog.folder(tier) / name.filename
    path.write_bytes(content)
    path.chmod(0o600)
    set_mtime(path, NOW - age)
    status = path.stat()
    return Backup(path, name, status.st_size, status.st_mtime_ns)


def publish(catalog: Catalog, started_at: datetime, *, content: bytes = CONTENT) -> Backup:
    """What this system leaves: a dump with manifest and globals, not verified yet."""
    name = BackupName(catalog.database, Tier.DAILY, started_at)
    temporary = catalog.temporary(name)
    temporary.touch(0o600)  # as pg_dump's caller sees to it
    temporary.write_bytes(content)
    return catalog.publish(temporary, name, make_manifest(started_at, content), b"CREATE ROLE ovia;\n")


def judged(catalog: Catalog, backup: Backup, *, good: bool = True) -> Backup:
    return catalog.record(backup, make_judgement(backup, good=good), make_witness() if good else None)


def proven(catalog: Catalog, started_at: datetime, tier: Tier = Tier.DAILY) -> Backup:
    """A verified, good backup."""
    made = publish(catalog, started_at) if tier is Tier.DAILY else write_dump(catalog, started_at, tier)
    return judged(catalog, made)


def drilled(catalog: Catalog, backup: Backup, *, passed: bool = True, at: datetime = NOW) -> Backup:
    """Say that a drill restored it, as it is now."""
    status = backup.path.stat()
    record = DrillRecord(
        at=at,
        passed=passed,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        evidence=f"{at:%Y-%m-%d_%H%M%S}_{backup.path.stem}.json",
    )
    return catalog.record_drill(backup, record, backup.path.parent)


def drill_evidence(catalog: Catalog, at: datetime, *, passed: bool = True, why: str = "it does not restore") -> Path:
    """What a drill leaves in ``drills/``; returns its path."""
    backup = BackupName(catalog.database, Tier.DAILY, at - HOUR)
    check = DrillCheck.RESTORED
    line = Line(check=check, result=Result.PASSED if passed else Result.FAILED, text="" if passed else why)
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
    return folder.write(evidence, page(evidence))


def held(catalog: Catalog, backup: Backup, until: datetime, released_at: datetime | None = None) -> Backup:
    hold = Hold(until=until, reason="people shrank from 10 to 1 rows", released_at=released_at)
    catalog.set_hold(backup, hold)
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

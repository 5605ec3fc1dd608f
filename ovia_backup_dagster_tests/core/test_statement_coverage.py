"""Which statements count for a backup, and which do not, being forged, copied or swapped: on a real folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.archive_header import HEAD_BYTES, parse_header
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.backup_statements import record_acceptance, record_drill
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BadBackupError, NotVerifiedError
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.sidecars import (
    ACCEPTED,
    DRILLED,
    GLOBALS,
    HELD,
    MANIFEST,
    PROMOTED,
    SIDECAR_KINDS,
    VERIFIED,
    SidecarKind,
)
from ovia_backup_dagster.core.statement_coverage import Covered, Statement
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import Acceptance, DrillRecord, Hold, Judgement, PromotionRecord
from ovia_backup_dagster.health.freshness import judge_freshness
from ovia_backup_dagster.retention import holding, promote_and_prune, promotion
from ovia_backup_dagster.retention.plan import candidate
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.support.factories import (
    CONTENT,
    DAY,
    HOUR,
    NOW,
    ROLES,
    archive,
    drilled,
    held,
    judged,
    make_catalog,
    make_manifest,
    publish,
    set_mtime,
    verified_backup,
    write_dump,
)

AT = NOW - 2 * HOUR
POLICY = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path / "backups")


def made(catalog: Catalog, at: datetime, content: bytes | None = None) -> Backup:
    """A verified backup with a real header; all of them have the same size."""
    return judged(catalog, publish(catalog, at, content=content or archive(at)))


def copied(source: Backup, target: Backup, *kinds: SidecarKind[Any]) -> Backup:
    """``target`` with sidecars of another backup; its own size and times stay."""
    for kind in kinds:
        shutil.copy2(source.sidecar(kind), target.sidecar(kind))
    return Backup(target.path, target.name, target.path.stat().st_size, target.path.stat().st_mtime_ns)


# --- The archive's own header -------------------------------------------------------------------------------------


@pytest.mark.parametrize("minor", [12, 13, 14, 15, 16])
def test_the_headers_of_all_known_versions_are_read(minor: int) -> None:
    header = parse_header(archive(NOW, "o'via", "16.15 (Debian 16.15-1)", minor))
    assert header is not None
    assert (header.database, header.server_version) == ("o'via", "16.15 (Debian 16.15-1)")
    assert (header.created_at, header.client_version) == (NOW, "16.15")


def test_a_header_of_an_unknown_version_is_ignored() -> None:
    assert parse_header(archive(minor=17)) is None
    assert parse_header(CONTENT) is None


def test_a_header_that_is_cut_off_anywhere_is_broken() -> None:
    whole = archive().removesuffix(bytes(64))
    assert parse_header(whole) is not None
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"no archive|cut off"):
            parse_header(whole[:length])


def test_random_bytes_raise_no_other_error() -> None:
    for seed in range(2000):
        noise = b"PGDMP\x01\x0f\x00" + (seed.to_bytes(2, "big") + os.urandom(100))
        try:
            parse_header(noise[:HEAD_BYTES])
        except ValueError as error:
            assert "cut off" in str(error)  # noqa: PT017 - not every one is


# --- Forged backups are bad without a full reading ------------------------------------------------------------------


def random_bytes(catalog: Catalog) -> Backup:
    """Random bytes with a well-formed verdict, though they were never verified."""
    return judged(catalog, publish(catalog, AT, content=b"\x8f" * len(CONTENT)))


def random_bytes_of_the_old_script(catalog: Catalog) -> Backup:
    return judged(catalog, write_dump(catalog, AT, content=b"\x8f" * len(CONTENT)))


def yesterdays_unit_under_todays_name(catalog: Catalog) -> Backup:
    old = made(catalog, AT - DAY)
    name = BackupName(catalog.database, Tier.DAILY, AT)
    for suffix in ("", *map(str, SIDECAR_KINDS)):
        if old.sidecar(suffix).exists():
            shutil.copy2(old.sidecar(suffix), old.path.with_name(name.filename + suffix))
    remove_backup(catalog, old)
    return Backup(old.path.with_name(name.filename), name, old.size_bytes, old.mtime_ns)


def yesterdays_archive_under_todays_manifest(catalog: Catalog) -> Backup:
    """Size and time are the same: only the header shows it without reading the whole archive for its hash."""
    backup = made(catalog, AT)
    backup.path.write_bytes(archive(AT - DAY))
    os.utime(backup.path, ns=(backup.mtime_ns, backup.mtime_ns))
    return backup


def another_databases_archive(catalog: Catalog) -> Backup:
    return made(catalog, AT, archive(AT, "vaio"))


def another_databases_manifest(catalog: Catalog) -> Backup:
    backup = publish(catalog, AT)
    backup.sidecar(MANIFEST).write_text(make_manifest(AT, database="other").to_json())
    return judged(catalog, replace(backup))


def another_servers_archive(catalog: Catalog) -> Backup:
    return made(catalog, AT, archive(AT, server="15.19"))


def a_truncated_archive(catalog: Catalog) -> Backup:
    backup = made(catalog, AT)
    os.truncate(backup.path, backup.size_bytes - 1)
    os.utime(backup.path, ns=(backup.mtime_ns, backup.mtime_ns))
    return backup


def an_archive_that_ends_in_its_header(catalog: Catalog) -> Backup:
    return made(catalog, AT, archive(AT)[:30])


FORGED = [
    random_bytes,
    random_bytes_of_the_old_script,
    yesterdays_unit_under_todays_name,
    yesterdays_archive_under_todays_manifest,
    another_databases_archive,
    another_databases_manifest,
    another_servers_archive,
    a_truncated_archive,
    an_archive_that_ends_in_its_header,
]


@pytest.mark.parametrize("forge", FORGED, ids=lambda forge: forge.__name__)
def test_a_forged_backup_is_bad_everywhere(catalog: Catalog, forge: Callable[[Catalog], Backup]) -> None:
    before = [verified_backup(catalog, NOW - days * DAY) for days in range(9, 1, -1)]
    backup = forge(catalog)
    (backup,) = [each for each in catalog.backups() if each.path == backup.path]
    assert backup.state(NOW) is State.BAD
    assert backup.problem is not None
    assert backup.problem.why
    found = judge_freshness(catalog.newest_first(), timedelta(hours=26), NOW)
    assert found.rejected == (backup,)
    assert found.newest == before[-1]
    assert catalog.newest(NOW, State.VERIFIED, State.PROVEN) == before[-1]
    assert not promotion.decide_promotion(backup, Tier.WEEKLY, [], POLICY, NOW).promote
    with pytest.raises(NotVerifiedError, match="is bad"):
        promote_and_prune.prune(catalog, POLICY, NOW)
    assert set(catalog.backups()) == {*before, backup}


def test_two_swapped_archives_are_both_bad(catalog: Catalog) -> None:
    one, two = made(catalog, AT - DAY), made(catalog, AT)
    contents = one.path.read_bytes(), two.path.read_bytes()
    for backup, content in zip((two, one), contents, strict=True):
        backup.path.write_bytes(content)
        os.utime(backup.path, ns=(backup.mtime_ns, backup.mtime_ns))
    assert [backup.state(NOW) for backup in catalog.backups()] == [State.BAD, State.BAD]


def test_a_backup_with_a_true_header_is_verified(catalog: Catalog) -> None:
    backup = made(catalog, AT)
    assert (backup.state(NOW), backup.contradictions) == (State.VERIFIED, ())
    for minutes in (-4, 4):  # a clock that was adjusted meanwhile
        at = AT - DAY + minutes * timedelta(minutes=1)
        assert made(catalog, AT - DAY + minutes * HOUR, archive(at + minutes * HOUR)).state(NOW) is State.VERIFIED


def test_a_copy_of_another_name_keeps_its_verdict(catalog: Catalog) -> None:
    backup = made(catalog, AT)
    folder = catalog.root.parent
    for suffix in ("", MANIFEST, GLOBALS, VERIFIED):
        shutil.copy2(backup.sidecar(suffix), folder / f"for the auditors.dump{suffix}")
    elsewhere = catalog.find(str(folder / "for the auditors.dump"), NOW)
    assert elsewhere.state(NOW) is State.VERIFIED


# --- Statements on another backup -----------------------------------------------------------------------------------


@pytest.fixture
def pair(catalog: Catalog) -> tuple[Backup, Backup]:
    """A backup with many statements, and an unverified one of the same size and age."""
    about = held(catalog, drilled(catalog, made(catalog, AT - DAY)), NOW + DAY)
    assert about.unit is not None
    record_acceptance(
        catalog, about, Acceptance(covered=about.unit.covered, at=NOW, by="a person", system_identifier="1", found=())
    )
    other = publish(catalog, AT, content=archive(AT))
    os.utime(other.path, ns=(about.mtime_ns, about.mtime_ns))
    return catalog.refresh(about), catalog.refresh(other)


def test_a_backups_own_statements_count(pair: tuple[Backup, Backup]) -> None:
    about, _ = pair
    assert (about.state(NOW), about.drilled) == (State.PROVEN, True)
    assert about.hold is not None
    assert about.acceptance is not None


def test_statements_on_another_backup_do_not_count(pair: tuple[Backup, Backup]) -> None:
    about, other = pair
    assert about.size_bytes == other.size_bytes
    other = copied(about, other, VERIFIED, DRILLED, HELD, ACCEPTED)
    assert other.verification is not None
    assert other.state(NOW) is State.UNVERIFIED
    assert (other.drilled, other.hold, other.acceptance, other.witness) == (False, None, None, None)
    assert candidate(other, NOW).held_until is None


def test_a_bad_verdict_on_another_backup_does_not_count(catalog: Catalog, pair: tuple[Backup, Backup]) -> None:
    about, other = pair
    other = judged(catalog, other)
    judged(catalog, about, good=False)
    assert copied(about, other, VERIFIED).state(NOW) is State.UNVERIFIED


def test_a_promotion_of_another_backup_does_not_count(catalog: Catalog) -> None:
    one, two = (promote_backup(catalog, made(catalog, at), Tier.WEEKLY, NOW) for at in (AT - 8 * DAY, AT))
    assert one.promotion is not None
    assert one.promotion.promoted_from == BackupName(catalog.database, Tier.DAILY, AT - 8 * DAY).filename
    assert copied(one, two, PROMOTED).promotion is None
    assert two.state(NOW) is State.VERIFIED


def test_every_file_of_a_backup_is_promoted_and_removed(catalog: Catalog) -> None:
    about = held(catalog, drilled(catalog, made(catalog, AT)), NOW + DAY)
    assert about.unit is not None
    accepted = Acceptance(covered=about.unit.covered, at=NOW, by="a person", system_identifier="1", found=("x",))
    about = record_acceptance(catalog, about, accepted)
    about.sidecar(".verified.json.unreadable").write_bytes(b"history")
    weekly = promote_backup(catalog, about, Tier.WEEKLY, NOW)
    assert {suffix for suffix in SIDECAR_KINDS if weekly.sidecar(suffix).exists()} == set(SIDECAR_KINDS)
    assert (weekly.state(NOW), weekly.drilled, weekly.acceptance) == (State.PROVEN, True, accepted)
    assert weekly.hold == about.hold
    remove_backup(catalog, weekly)
    assert list(catalog.folder(Tier.WEEKLY).iterdir()) == []


def test_a_release_applies_to_both_copies(catalog: Catalog) -> None:
    about = held(catalog, made(catalog, AT), NOW + DAY)
    promote_backup(catalog, about, Tier.WEEKLY, NOW)
    holding.release(catalog, about, NOW)
    assert catalog.held(NOW) == []


def test_a_verdict_does_not_cover_an_altered_manifest(catalog: Catalog) -> None:
    backup = drilled(catalog, made(catalog, AT))
    text = backup.sidecar(MANIFEST).read_bytes()
    backup.sidecar(MANIFEST).write_bytes(text.replace(b'"16.15"', b'"16.15" '))
    backup = catalog.refresh(backup)
    assert (backup.state(NOW), backup.drilled) == (State.UNVERIFIED, False)
    backup.sidecar(MANIFEST).write_bytes(text)
    assert catalog.refresh(backup).state(NOW) is State.PROVEN


def test_a_verdict_on_a_removed_manifest_does_not_count(catalog: Catalog) -> None:
    backup = made(catalog, AT)
    backup.sidecar(MANIFEST).unlink()
    set_mtime(backup.path, NOW - HOUR)
    assert catalog.refresh(backup).state(NOW) is State.UNVERIFIED


# --- What older programs wrote --------------------------------------------------------------------------------------


def without_covered(backup: Backup) -> Backup:
    """As an older program wrote it: without hash of the manifest, and without hashes in drills and holds."""
    for suffix, lists in ((VERIFIED, "judgements"), (DRILLED, "drills"), (HELD, "")):
        path = backup.sidecar(suffix)
        said = json.loads(path.read_bytes())
        for statement in said[lists] if lists else [said]:
            for field in ("covered", *(() if lists else ("size_bytes", "mtime_ns", "cause"))):
                del statement[field]
        path.write_text(json.dumps(said))
    return Backup(backup.path, backup.name, backup.size_bytes, backup.mtime_ns)


def test_statements_of_older_programs_count(catalog: Catalog, pair: tuple[Backup, Backup]) -> None:
    about = without_covered(pair[0])
    assert b"covered" not in b"".join(about.sidecar(suffix).read_bytes() for suffix in (VERIFIED, DRILLED, HELD))
    assert (about.state(NOW), about.drilled) == (State.PROVEN, True)
    assert about.hold is not None


def test_an_older_verdict_must_fit_the_archive(catalog: Catalog, pair: tuple[Backup, Backup]) -> None:
    about, other = pair
    other = copied(without_covered(about), other, VERIFIED)
    assert other.state(NOW) is State.UNVERIFIED


def test_a_verdict_on_an_old_dump_covers_its_size_and_time(catalog: Catalog) -> None:
    one, two = (judged(catalog, write_dump(catalog, NOW - days * DAY)) for days in (1, 2))
    assert one.state(NOW) is State.VERIFIED
    set_mtime(two.path, NOW - 9 * HOUR)
    assert copied(one, two, VERIFIED).state(NOW) is State.UNVERIFIED


def test_a_drill_of_an_old_dump_covers_the_verified_file(catalog: Catalog) -> None:
    backup = judged(catalog, write_dump(catalog, AT))
    status = backup.path.stat()
    record = DrillRecord(
        at=NOW,
        passed=True,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        evidence="x",
        covered=Covered(archive_sha256="1" * 64, manifest_sha256=None),
    )
    assert not record_drill(catalog, backup, record, backup.path.parent).drilled
    assert drilled(catalog, catalog.refresh(backup)).drilled


# --- The roles' file ------------------------------------------------------------------------------------------------


def test_saved_roles_must_match_the_manifest(catalog: Catalog) -> None:
    backup = made(catalog, AT)
    assert (backup.saved_roles(), backup.altered_files()) == (ROLES, ())
    for content in (ROLES.replace(b"ovia", b"evil"), ROLES + b"ALTER ROLE evil SUPERUSER;\n", b""):
        backup.sidecar(GLOBALS).write_bytes(content)
        (wrong,) = catalog.refresh(backup).altered_files()
        assert f"{backup}.globals.sql" in wrong
        with pytest.raises(BadBackupError, match=r"globals\.sql (was altered|is \d+ bytes long)"):
            catalog.refresh(backup).saved_roles()
    backup.sidecar(GLOBALS).unlink()
    assert catalog.refresh(backup).altered_files() == (f"{backup}.globals.sql is missing",)
    assert catalog.refresh(backup).altered_files(complete=False) == ()
    assert catalog.refresh(backup).saved_roles() is None


def test_roles_without_a_manifest_are_not_used(catalog: Catalog) -> None:
    backup = write_dump(catalog, AT)
    backup.sidecar(GLOBALS).write_bytes(b"CREATE ROLE evil SUPERUSER;\n")
    assert backup.saved_roles() is None


def test_roles_that_an_older_program_saved_are_read(catalog: Catalog) -> None:
    backup = write_dump(catalog, AT)
    backup.sidecar(MANIFEST).write_text(make_manifest(AT).to_json().replace(' "files": {},\n', ""))
    backup.sidecar(GLOBALS).write_bytes(ROLES)
    assert backup.saved_roles() == ROLES


def test_a_manifest_that_names_a_path_is_refused(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    text = backup.sidecar(MANIFEST).read_text()
    for suffix in ("/../../etc/passwd", "..", "", "x.sql"):
        backup.sidecar(MANIFEST).write_text(text.replace('".globals.sql"', f'"{suffix}"'))
        assert "files" in catalog.refresh(backup).manifest_trouble


def test_each_statement_names_what_it_covers() -> None:
    """A signature would sign ``covered``, so no statement may lack it."""
    statements = (Judgement, DrillRecord, Hold, Acceptance, PromotionRecord)
    assert set(Statement.__subclasses__()) == set(statements)
    assert set(Covered.model_fields) == {"archive_sha256", "manifest_sha256"}

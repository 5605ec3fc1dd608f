"""A new kind of sidecar, which only this test registers, is treated like the others everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core import takeover
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import StrangeFileError
from ovia_backup_dagster.core.manifest import Manifest, Sidecar
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, publish_backup, remove_backup
from ovia_backup_dagster.core.sidecars import (
    GLOBALS,
    MANIFEST,
    SIDECAR_KINDS,
    VERIFIED,
    SidecarKind,
    archive_of,
    facts_for_manifest,
)
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster_tests.support.factories import (
    CONTENT,
    NOW,
    ROLES,
    make_catalog,
    make_manifest,
    names,
    verified_backup,
)

OTHERS = [tier for tier in Tier if tier is not Tier.DAILY]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path / "volume")


@pytest.fixture
def signature() -> Iterator[SidecarKind[Sidecar]]:
    kind: SidecarKind[Sidecar] = SidecarKind(".signature", "signature", made_with_dump=True, hashed=True, needed=True)
    SIDECAR_KINDS.insert(0, kind)
    yield kind
    SIDECAR_KINDS.remove(kind)


@pytest.mark.parametrize("tier", OTHERS)
def test_a_new_kind_is_promoted_and_removed_with_the_rest(
    catalog: Catalog, signature: SidecarKind[Sidecar], tier: Tier
) -> None:
    backup = verified_backup(catalog, NOW)
    backup.sidecar(signature).write_bytes(b"signed")
    catalog.prepare(tier)
    promoted = promote_backup(catalog, backup, tier, NOW)
    assert promoted.read_sidecar(signature) == b"signed"
    for each in (backup, promoted):
        assert remove_backup(catalog, each)
        assert names(each.path.parent) == set()


def test_a_new_sidecar_kind_is_published_and_immutable(catalog: Catalog, signature: SidecarKind[Sidecar]) -> None:
    made: dict[SidecarKind[Any], bytes] = {signature: b"signed", GLOBALS: ROLES}
    manifest: Manifest = make_manifest(NOW).model_copy(update={"files": facts_for_manifest(made)})
    name = BackupName("ovia", Tier.DAILY, NOW)
    catalog.temporary(name).write_bytes(CONTENT)
    contents = {**made, MANIFEST: manifest.to_json().encode()}
    backup = publish_backup(catalog, catalog.temporary(name), name, contents)
    assert backup.read_sidecar(signature) == b"signed"
    assert backup.altered_files() == ()
    backup.sidecar(signature).write_bytes(b"forged")
    (line,) = backup.altered_files()
    assert line.startswith(f"{backup}.signature was altered")


def test_a_new_kind_is_swept_with_the_rest(catalog: Catalog, signature: SidecarKind[Sidecar]) -> None:
    backup = verified_backup(catalog, NOW)
    backup.sidecar(signature).write_bytes(b"signed")
    assert sweep_abandoned(catalog) == []
    backup.path.unlink()
    assert backup.sidecar(signature) in sweep_abandoned(catalog)
    assert names(backup.path.parent) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_a_new_kind_is_handed_over_with_the_rest(catalog: Catalog, signature: SidecarKind[Sidecar]) -> None:
    backup = verified_backup(catalog, NOW)
    backup.sidecar(signature).write_bytes(b"signed")
    found = takeover.begin(catalog.root, takeover.Owner(10001, 10001), NOW)
    assert f"daily/{backup}.signature" in found.changed
    assert backup.sidecar(signature).stat().st_uid == 10001


def test_a_needed_kind_that_cannot_be_read_stops_a_promotion(catalog: Catalog, signature: SidecarKind[Sidecar]) -> None:
    backup = verified_backup(catalog, NOW)
    backup.sidecar(signature).mkdir()
    with pytest.raises(StrangeFileError):
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert catalog.backups(Tier.WEEKLY) == []


def test_later_statements_are_not_published_with_a_dump(catalog: Catalog) -> None:
    name = BackupName("ovia", Tier.DAILY, NOW)
    catalog.temporary(name).write_bytes(CONTENT)
    with pytest.raises(ValueError, match="not made with a dump: verdict"):
        publish_backup(catalog, catalog.temporary(name), name, {VERIFIED: b"{}"})
    assert catalog.backups() == []


def test_the_manifest_is_the_last_kind_and_suffixes_differ() -> None:
    assert SIDECAR_KINDS[-1] is MANIFEST
    assert len({kind.suffix for kind in SIDECAR_KINDS}) == len({kind.word for kind in SIDECAR_KINDS}) == 8


@pytest.mark.parametrize("kind", SIDECAR_KINDS, ids=str)
def test_a_sidecar_names_its_archive(kind: SidecarKind[Any]) -> None:
    assert archive_of(f"x.dump{kind}") == "x.dump"
    assert archive_of(f"x.dump.tmp{kind}") is None

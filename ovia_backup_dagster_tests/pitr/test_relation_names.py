"""Names are kept for as long as WAL needs them, and pages that are damaged or strange name nothing wrong."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.catalog_pages import relations_on_page
from ovia_backup_dagster.pitr.relation_names import (
    NamedRelation,
    RelationNames,
    RelationRecord,
    recorded_names,
    relations_folder,
    remove_old_names,
    superseded,
)

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
instants = st.integers(0, 100).map(lambda hours: BEGIN + timedelta(hours=hours))
records = st.lists(st.tuples(st.integers(1, 3), instants), max_size=20, unique=True)


@given(records, instants, st.integers(0, 100))
def test_what_is_removed_names_nothing_that_is_needed(
    written: list[tuple[int, datetime]], before: datetime, later_hours: int
) -> None:
    kept = set(written) - superseded(written, before)

    needed_at = before + timedelta(hours=later_hours)
    for database in {oid for oid, _ in written}:
        there = [each for each in written if each[0] == database and each[1] <= needed_at]
        if there:
            assert max(there) in kept
    old = [each for each in kept if each[1] <= before]
    assert len(old) == len({oid for oid, _ in old})


def test_old_records_are_removed_from_the_volume(tmp_path: Path) -> None:
    archive = ClusterArchive(tmp_path, "7")
    (tmp_path / "pitr").mkdir()
    archive.create(ClusterFacts(system_identifier="7", major=16))
    folder = relations_folder(archive)
    folder.mkdir()
    for day in (1, 2, 3):
        record = RelationRecord(
            recorded_at=BEGIN.replace(day=day),
            database="shop",
            database_oid=5,
            schemas={2200: "public"},
            relations=(NamedRelation(oid=16385, file=16385 + day, name=f"public.t{day}", kind="r"),),
        )
        (folder / f"2026-11-0{day}_000000_5.json").write_text(record.model_dump_json())
    (folder / "notes.txt").write_text("not ours")

    removed = remove_old_names(archive, BEGIN.replace(day=2, hour=12))

    assert [path.name for path in removed] == ["2026-11-01_000000_5.json"]
    assert [each.relations[0].name for each in recorded_names(archive)] == ["public.t2", "public.t3"]
    assert (folder / "notes.txt").exists()


def test_a_name_is_found_by_oid_and_by_each_file() -> None:
    first = NamedRelation(oid=16385, file=16385, name="public.old", kind="r")
    later = first.model_copy(update={"file": 17000, "name": "public.new"})
    names = RelationNames.of(
        [
            RelationRecord(recorded_at=BEGIN, database="shop", database_oid=5, schemas={}, relations=(each,))
            for each in (first, later)
        ],
        {(5, 18000): "public.told"},
    )

    def name(found: NamedRelation | None) -> str:
        return found.name if found else ""

    assert name(names.of_oid(5, 16385)) == "public.new"
    assert (name(names.of_file(5, 16385)), name(names.of_file(5, 17000))) == ("public.old", "public.new")
    assert (name(names.of_oid(6, 16385)), name(names.of_file(5, 18000))) == ("", "public.told")
    assert names.databases == {"shop": 5}


@given(st.binary(max_size=400), st.integers(0, 0xFFFF), st.integers(0, 40))
def test_no_page_makes_the_reader_fail(noise: bytes, lower: int, pointers: int) -> None:
    header = struct.pack("<QHHHHHHI", 0, 0, 0, lower, 0, 0, 0, 0)
    pages = (noise, header + noise, header + struct.pack("<I", pointers | 1 << 15 | 200 << 17) * pointers + noise)

    for page in pages:
        for found in relations_on_page(page):
            assert found.oid > 0
            assert len(found.kind) == 1

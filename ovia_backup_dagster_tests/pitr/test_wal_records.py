"""The reader of WAL misses no record where its batches meet, and knows where a record ends."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.pitr import wal_records
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.segment_files import compress, last_page_with_a_record
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Lsn, Segment, Timeline
from ovia_backup_dagster.pitr.wal_records import WalReader, check_records
from ovia_backup_dagster_tests.pitr.received_shop import Shop, shop_on
from ovia_backup_dagster_tests.support.exhaustive import thinned

_LSN = re.compile(rb".* lsn: (?P<lsn>\w+/\w+), prev ")


@pytest.fixture(scope="module")
def shop(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop of this module's own: others would read the much WAL that it writes."""
    with shop_on(full_bin_dir, tmp_path_factory.mktemp("shop") / "volume") as shop:
        yield shop


def test_a_record_across_two_batches_is_read(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.run("CREATE TABLE long_rows (note text)", "ALTER TABLE long_rows ALTER COLUMN note SET STORAGE plain")
    start = shop.here()
    # Nearly as long as a page, so that one of them goes across the border of two segments.
    shop.run("INSERT INTO long_rows SELECT repeat('x', 8000) FROM generate_series(1, 4200)")
    shop.receive()
    size = shop.archive.facts.segment_bytes
    assert shop.here().bytes // size >= start.bytes // size + 2

    at_once = list(shop.reader.records(Timeline(1), start))
    monkeypatch.setattr(wal_records, "AT_ONCE", 1)
    one_by_one = list(shop.reader.records(Timeline(1), start))
    some = list(shop.reader.records(Timeline(1), start, at_once[200].lsn))
    matches = [Lsn.parse(m["lsn"].decode()) for m in shop.reader.matches(_LSN, Timeline(1), start)]

    assert one_by_one == at_once
    assert some == at_once[:200]
    assert matches == [record.lsn for record in at_once]
    assert sum(record.text.startswith("INSERT") for record in at_once) == 4200


@pytest.mark.parametrize("at_once", thinned([1, 2]))
def test_a_record_longer_than_a_batch_is_read(shop: Shop, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    start = shop.here()
    for what, length in (("long", 2_500_000), ("short", 10), ("longer", 5_000_000)):
        shop.run(f"SELECT pg_logical_emit_message(true, '{what}', repeat('message', {length}))")
    end = shop.here()
    shop.receive()
    size = shop.archive.facts.segment_bytes
    assert end.bytes // size >= start.bytes // size + 3

    monkeypatch.setattr(wal_records, "AT_ONCE", 64)
    expected = [(record.lsn, record.text[:40]) for record in shop.reader.records(Timeline(1), start, end)]
    monkeypatch.setattr(wal_records, "AT_ONCE", at_once)

    assert [(record.lsn, record.text[:40]) for record in shop.reader.records(Timeline(1), start, end)] == expected
    assert {"long", "short", "longer"} <= {text.split('"')[1] for _, text in expected if text.startswith("MESSAGE")}


def test_the_empty_rest_of_a_segment_is_passed_over(shop: Shop) -> None:
    shop.run("SELECT pg_logical_emit_message(true, 'test', 'before')")
    empty = Lsn(shop.here().bytes + 100_000)
    shop.run("SELECT pg_switch_wal()", "SELECT pg_logical_emit_message(true, 'test', 'after')")
    shop.receive()

    found = [record for record in shop.reader.records(Timeline(1), empty) if record.rmgr == "LogicalMessage"]

    assert len(found) == 2  # the other one is written by `receive`
    assert found[0].lsn > empty


@pytest.mark.parametrize("moment", ["reader", "start_program"])
@pytest.mark.parametrize("becomes", ["finished", "archived"])
def test_a_segment_is_read_while_it_is_renamed(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, becomes: str
) -> None:
    """pg_receivewal renames a finished segment at any moment; the receiver then archives and removes it."""
    start = shop.here()
    shop.run("SELECT pg_logical_emit_message(true, 'test', 'here')")
    shop.receive()
    end, archive = shop.here(), ClusterArchive(tmp_path, shop.archive.system_identifier)
    archive.create(shop.archive.facts)
    [segment] = [each for each, path in shop.archive.received().items() if path.name.endswith(PARTIAL)]
    finished = archive.incoming / archive.name(segment)
    unfinished = finished.with_name(f"{finished.name}{PARTIAL}")
    shutil.copyfile(shop.archive.received()[segment], unfinished)
    then = getattr(wal_records, moment)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        if unfinished.exists():
            unfinished.rename(finished)
            if becomes == "archived":
                compress(finished, archive.archived(segment))
                finished.unlink()
        return then(*arguments, **options)

    monkeypatch.setattr(wal_records, moment, meanwhile)
    found = list(WalReader(archive, shop.ground.programs).records(Timeline(1), start, end))
    assert not unfinished.exists()
    assert [record.rmgr for record in found].count("LogicalMessage") == 2  # the other one is written by `receive`


def test_a_record_ends_where_the_next_begins(shop: Shop) -> None:
    start = shop.here()
    shop.run(
        "CREATE TABLE wide (note text)",
        "INSERT INTO wide SELECT repeat('x', g) FROM generate_series(1, 1500) g",
        "SELECT pg_switch_wal()",
        "INSERT INTO wide SELECT repeat('x', g) FROM generate_series(1, 300) g",
    )
    shop.receive()
    size = shop.archive.facts.segment_bytes

    records = list(shop.reader.records(Timeline(1), start))

    assert len(records) > 1800
    assert [record.end(size) for record in records[:-1]] == [record.lsn for record in records[1:]]


def test_the_last_page_with_a_record_is_found(shop: Shop) -> None:
    """With the next segment: what ends in the segment itself was decoded with it."""
    start = shop.here()
    shop.run("CREATE TABLE wide_rows (note text)", "ALTER TABLE wide_rows ALTER COLUMN note SET STORAGE plain")
    for statement in (
        "INSERT INTO wide_rows SELECT repeat('x', 8000) FROM generate_series(1, 2100)",
        "SELECT pg_switch_wal()",
        "SELECT pg_logical_emit_message(false, 'test', 'ends with a switch')",
        "SELECT pg_switch_wal()",
        "SELECT pg_logical_emit_message(false, 'test', repeat('many pages', 400000))",
        "SELECT pg_logical_emit_message(false, 'test', repeat('many segments', 3000000))",
        "INSERT INTO wide_rows SELECT repeat('y', 8000 - i) FROM generate_series(1, 4200) i",
    ):
        shop.run(statement)
    shop.receive()
    size, received = shop.archive.facts.segment_bytes, shop.archive.received()
    begins: dict[int, Lsn] = {}
    for record in shop.reader.records(Timeline(1), start):
        begins[record.lsn.bytes // size] = record.lsn
    finished = [segment for segment in received if segment.number >= start.bytes // size][:-1]
    assert len(finished) >= 6

    for segment in finished:
        path = received[segment]
        page = last_page_with_a_record(path, 8192)
        lsn = begins.get(segment.number)
        assert page == (lsn.bytes % size // 8192 * 8192 if lsn else 0), segment
        # The record that ends in a later segment.
        until = min((number for number in begins if number > segment.number), default=0)
        if lsn and Segment(1, until) in finished:
            names = [shop.archive.name(Segment(1, number)) for number in range(segment.number, until + 1)]
            check_records(shop.ground.programs, path.parent, names, Lsn(segment.start(size).bytes + page))
    assert any(segment.number not in begins for segment in finished)

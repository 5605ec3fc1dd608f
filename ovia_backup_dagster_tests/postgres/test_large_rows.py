"""Fields and rows that are too large for pg_dump, and those that are just small enough."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.doctor import server_area as doctor
from ovia_backup_dagster.doctor.report import Severity
from ovia_backup_dagster.postgres import large_rows
from ovia_backup_dagster.postgres.data_stream import DataReader, UnorderedRows
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster_tests.conftest import PortCluster, execute, quiet
from ovia_backup_dagster_tests.doctor.support import system_of, the
from ovia_backup_dagster_tests.support.drilling import database as new_database


@pytest.fixture(scope="module")
def site(server: PortCluster) -> Iterator[Connection]:
    """A database with a field of 0.5 GB of one letter, which compresses to 6 MB."""
    with new_database(server, "site_of_large_fields") as source:
        execute(
            source,
            """CREATE TABLE "Big one" (id int, note text, "a file" bytea)""",
            """INSERT INTO "Big one" SELECT i, 'x', '\\x00' FROM generate_series(1, 99) i""",
            """INSERT INTO "Big one" VALUES (100, 'y', convert_to(repeat('x', 537000000), 'UTF8'))""",
            "CREATE TABLE fits (t text); INSERT INTO fits VALUES (repeat('x', 3000000))",
        )
        yield source


@pytest.mark.exhaustive
def test_a_too_large_row_of_small_fields_is_found(site: Connection) -> None:
    execute(site, "CREATE TABLE wide (a text, b text); INSERT INTO wide VALUES (repeat('x', 540000000))")
    execute(site, "UPDATE wide SET b = a")
    try:
        found, whole = large_rows.find_large_rows(site)
        assert whole
        assert large_rows.LargeRows("public.wide", 1, "a", binary=False) in found
        assert "two bytes" not in str(found[-1])
    finally:
        execute(site, "DROP TABLE wide")


@pytest.mark.exhaustive
def test_a_field_too_large_for_a_dump_is_no_damage(site: Connection, tmp_path: Path, bin_dir: Path) -> None:
    catalog = Catalog(tmp_path / "backups", site.database)
    with pytest.raises(errors.RowTooLargeError) as raised:
        Dumper(catalog, site, Programs(bin_dir)).dump(log=quiet)
    error = raised.value
    assert error.why == (
        '1 row of table public."Big one" holds more than pg_dump can read, most of it in column "a file": the text '
        "of a row must be under 1 GB, in which each byte of a bytea takes two"
    )
    assert "invalid memory alloc request size" in error.said
    assert "failing" not in str(error)
    assert 'UPDATE public."Big one" SET "large_object" = lo_from_bytea(0, "a file"), "a file" = NULL WHERE' in error.fix
    assert not catalog.backups()

    line = the(doctor.server(system_of(site, tmp_path / "backups", bin_dir)), "holds more than pg_dump can read")
    assert (line.level, line.fix) == (Severity.FAIL, error.fix)

    # The advised SQL works.
    (add, update) = error.fix.partition(": ")[2].partition("; then")[0].split("; ")
    execute(site, add, update)
    assert large_rows.find_large_rows(site) == ([], True)
    assert Dumper(catalog, site, Programs(bin_dir)).dump(log=quiet).size_bytes


@pytest.mark.exhaustive
def test_a_search_that_takes_too_long_says_so(site: Connection) -> None:
    assert large_rows.find_large_rows(site, 0.0) == ([], False)


def test_a_row_of_many_chunks_is_joined_once() -> None:
    """If each chunk were joined on arrival, half a gigabyte would take hours."""
    row = b"x" * 40_000_000
    text = b"COPY public.t (a) FROM stdin;\n" + row + b"\n" + b"y\n\\.\n\n"
    rows = UnorderedRows(["a"])
    reader = DataReader(io.BytesIO(text), lambda _: rows)
    assert reader.read()
    wanted = sum(int.from_bytes(hashlib.sha256(line).digest(), "big") for line in (row, b"y"))
    assert (rows.rows, rows.total) == (2, wanted % 2**256)

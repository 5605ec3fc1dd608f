"""Reading an archive: it must find exactly what the database held, whatever the names and the data."""

from __future__ import annotations

import gzip
import hashlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.verdict import Witness
from ovia_backup_dagster.postgres import archive, data_stream
from ovia_backup_dagster.postgres.archive import read_archive
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.local_cluster import Cluster
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster_tests.conftest import NewDatabase, admin, execute, quiet
from ovia_backup_dagster_tests.support.archives import restored, rows_in
from ovia_backup_dagster_tests.support.crashes import raised_as_nobody
from ovia_backup_dagster_tests.support.exhaustive import thinned


def test_a_file_without_read_permission_is_reported_with_a_fix() -> None:
    """pg_restore names neither the cause nor a fix, and its failure is not a verdict."""
    with tempfile.TemporaryDirectory(prefix="ovia-t-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        closed = Path(folder) / "a.dump"
        closed.touch(mode=0o000)
        error = raised_as_nobody(lambda: archive.argument(closed))
    assert isinstance(error, errors.VolumeError)
    assert (error.said, "belong to another user" in error.why) == ("Permission denied", True)
    assert "chown -R USER" in error.fix


def test_a_witness_has_the_rows_of_the_database(dumper: Dumper, database: Connection, programs: Programs) -> None:
    witness = read_archive(programs, dumper.dump(log=quiet).path)

    assert {table.name: table.rows for table in witness.tables} == rows_in(database)
    assert witness.sequences["public.audit_event_number"] == "2241, true"
    assert witness.large_objects.count == 2
    assert witness.partitions["public.audit_events_default"] == "public.audit_events"
    assert "TABLE public people ovia" in witness.contents
    assert len(witness.contents) > 200
    assert witness.rows_by_table()["public.audit_events"] == 2200


def test_a_restored_copy_is_dumped_with_the_same_content(
    dumper: Dumper, database: Connection, programs: Programs, volume: Path
) -> None:
    first = dumper.dump(log=quiet)
    copy = restored(database, first.path, f"{database.database}_copy", programs)
    try:
        again = Dumper(Catalog(volume, copy.database), copy, programs).dump(log=quiet)
    finally:
        execute(replace(database, database="postgres"), f"DROP DATABASE {copy.database} WITH (FORCE)")

    one, two = read_archive(programs, first.path), read_archive(programs, again.path)

    # In ask_notes, columns change their order. In sync_batches, rows do: it is partitioned by a hash of an enum's
    # internal numbers, which now and then come out the same.
    assert contents_differ(one, two) - {"public.sync_batches"} == {"public.ask_notes"}
    assert one.sequences == two.sequences
    assert one.large_objects == two.large_objects
    assert one.rows_by_table() == two.rows_by_table()
    # A restore under another name leaves out the database's own settings and owner.
    assert [c for c in one.contents if "DATABASE" not in c] == [c for c in two.contents if "DATABASE" not in c]


def contents_differ(one: Witness, two: Witness) -> set[str]:
    a, b = ({table.name: (table.rows, table.sha256) for table in witness.tables} for witness in (one, two))
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def test_one_changed_value_changes_one_table(dumper: Dumper, database: Connection, programs: Programs) -> None:
    before = read_archive(programs, dumper.dump(log=quiet).path)
    execute(database, "UPDATE kpi_snapshots SET value = value + 1 WHERE id = 7")

    after = read_archive(programs, dumper.dump(log=quiet).path)

    assert contents_differ(before, after) == {"public.kpi_snapshots"}


def test_a_changed_large_object_is_found(dumper: Dumper, database: Connection, programs: Programs) -> None:
    before = read_archive(programs, dumper.dump(log=quiet).path)
    execute(database, r"SELECT lo_put(900002, 50000, '\x00')")

    after = read_archive(programs, dumper.dump(log=quiet).path)

    assert before.large_objects.count == after.large_objects.count
    assert before.large_objects.content != after.large_objects.content


def test_a_large_object_is_read_though_strings_do_not_conform(
    dumper: Dumper, database: Connection, programs: Programs
) -> None:
    before = read_archive(programs, dumper.dump(log=quiet).path)
    execute(database, f'ALTER DATABASE "{database.database}" SET standard_conforming_strings = off')

    after = read_archive(programs, dumper.dump(log=quiet).path)

    assert after.large_objects == before.large_objects
    assert contents_differ(before, after) == set()


def test_a_changed_schema_changes_no_content(dumper: Dumper, database: Connection, programs: Programs) -> None:
    before = read_archive(programs, dumper.dump(log=quiet).path)
    execute(database, "COMMENT ON TABLE people IS 'changed'")

    after = read_archive(programs, dumper.dump(log=quiet).path)

    assert before.schema_sha256 != after.schema_sha256
    assert contents_differ(before, after) == set()
    assert read_archive(programs, dumper.dump(log=quiet).path).schema_sha256 == after.schema_sha256


ODD_NAMES = [
    "COPY x (a) FROM stdin;",
    "semi;colon",
    "new\nline;\nCOPY y FROM stdin;\n\\.\n",
    'quo"te',
    "apo'strophe",
    "par(en)thesis",
    "--comment",
    "dot.ted",
    "Ünï cödé",
    " ",
    "a\u20285; 1 2 TABLE DATA public fake x",
    "form\ffeed\vand\u0085next line",
    "INHERITS (public.people)",
]


@pytest.mark.parametrize("name", thinned(ODD_NAMES, daily=4))
def test_objects_with_odd_names_are_read(name: str, dumper: Dumper, database: Connection, programs: Programs) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    literal = "'" + name.replace("'", "''") + "'"
    execute(
        database,
        f"CREATE SCHEMA {quoted}",
        f"CREATE TABLE {quoted}.{quoted} ({quoted} text DEFAULT {literal}, n serial)",
        f"INSERT INTO {quoted}.{quoted} ({quoted}) SELECT {literal} FROM generate_series(1, 3)",
        f'CREATE SEQUENCE {quoted}.{quoted[:-1]}_s" START 41',
        f"COMMENT ON TABLE {quoted}.{quoted} IS {literal}",
        f"CREATE FUNCTION {quoted}.{quoted}() RETURNS text LANGUAGE sql AS $$ SELECT {literal} $$",
        f"CREATE TABLE {quoted}.parent (id int) PARTITION BY RANGE (id)",
        f'CREATE TABLE {quoted}.{quoted[:-1]}_1" PARTITION OF {quoted}.parent FOR VALUES FROM (0) TO (10)',
        f"INSERT INTO {quoted}.parent VALUES (1), (2)",
    )

    witness = read_archive(programs, dumper.dump(log=quiet).path)

    assert {table.name: table.rows for table in witness.tables} == rows_in(database)
    assert len(witness.sequences) == 7
    assert 2 in [count for table, count in witness.rows_by_table().items() if table.endswith(".parent")]


def test_data_that_looks_like_the_stream_is_read_as_data(
    dumper: Dumper, database: Connection, programs: Programs
) -> None:
    execute(
        database,
        "CREATE TABLE traps (t text)",
        r"INSERT INTO traps VALUES ('\.'), (E'a\n\\.\nb'), (E'\n'), (''), (NULL), ('COPY x FROM stdin;'), "
        r"(E'\r\n'), (E'\\'), (repeat(E'\\.\n', 400000)), (repeat('x', 3000000))",
    )

    witness = read_archive(programs, dumper.dump(log=quiet).path)

    assert {table.name: table.rows for table in witness.tables}["public.traps"] == 10


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "EUC_TW"])
def test_an_archive_of_another_encoding_is_read(
    encoding: str, server: Cluster, programs: Programs, volume: Path, new_database: NewDatabase
) -> None:
    name = f"enc_{encoding.lower()}"
    with admin(server) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'".encode())
    connection = server.connection(name)
    try:
        word = {"LATIN1": "ß", "SQL_ASCII": "ß", "EUC_JP": "日本"}.get(encoding, "plain")
        execute(
            connection,
            "SET client_encoding = 'UTF8'",
            "CREATE TABLE t (x text)",
            f"INSERT INTO t VALUES ('abc'), ('{word}')",
        )
        backup = Dumper(Catalog(volume, name), connection, programs).dump(log=quiet)
    finally:
        with admin(server) as session:
            session.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    assert [(t.name, t.rows) for t in read_archive(programs, backup.path).tables] == [("public.t", 2)]


# ------------------------------------------------------------------------------------------ what cannot be read


def test_zstd_needs_a_client_with_zstd(
    new_full_database: NewDatabase, full_bin_dir: Path, programs: Programs, volume: Path
) -> None:
    database = new_full_database()
    backup = Dumper(Catalog(volume, database.database), database, Programs(full_bin_dir)).dump(log=quiet)

    with pytest.raises(errors.CompressionUnsupportedError, match="does not support compression with zstd"):
        read_archive(programs, backup.path)
    assert read_archive(Programs(full_bin_dir), backup.path).rows > 6000


def test_an_archive_of_a_newer_format_is_no_damage(dumper: Dumper, programs: Programs, tmp_path: Path) -> None:
    content = bytearray(dumper.dump(log=quiet).path.read_bytes())
    content[6] = 99  # the format's minor version
    newer = tmp_path / "newer.dump"
    newer.write_bytes(content)

    with pytest.raises(errors.ArchiveFormatError, match=r"unsupported version \(1\.99\)"):
        read_archive(programs, newer)


#: Kind of damage -> how to damage a whole archive, and the reported cause; covers each cause of the table.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "the file is empty: the dump failed before it began"),
    "three bytes": (lambda whole: whole[:3], "the file is truncated: the dump, or a copy of it, was interrupted"),
    "cut in the header": (lambda whole: whole[:20], "the file is truncated"),
    "cut in the contents list": (lambda whole: whole[:400], "the file is truncated"),
    "cut in the data": (lambda whole: whole[: len(whole) // 2], "the file is truncated"),
    "cut before the last byte": (lambda whole: whole[:-1], "the file is truncated"),
    "plain SQL": (lambda _: b"--\n-- PostgreSQL database dump\n--\n\nSET x = 1;\n", "it is a plain SQL dump"),
    "text": (
        lambda _: b"not an archive at all\n" * 50,
        "the file is not an archive: it was overwritten, or another program wrote it",
    ),
    "zeros": (lambda _: b"\0" * 9999, "the file is not an archive"),
    "compressed once more": (gzip.compress, "the file is not an archive"),
    "an altered byte": (
        lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 0xFF]) + whole[len(whole) // 2 + 1 :],
        "its content was altered after it was written: a failing disk or memory, or a bad copy",
    ),
}


@pytest.mark.parametrize("kind", thinned(DAMAGES, daily=4))
def test_each_kind_of_damage_is_reported_with_its_cause(kind: str, dumper: Dumper, programs: Programs) -> None:
    backup = dumper.dump(log=quiet)
    damage, cause = DAMAGES[kind]
    backup.path.write_bytes(damage(backup.path.read_bytes()))

    with pytest.raises(errors.ArchiveDamagedError) as caught:
        read_archive(programs, backup.path)

    error = caught.value
    assert error.why.startswith(cause)
    assert error.said.startswith("pg_restore: error: ")
    assert error.what == f"archive {backup.path.name} is damaged"
    assert "\n" not in str(error)
    assert str(error).endswith("Next: use another backup: ovia-backup list")
    assert not error.transient


def test_every_cause_of_damage_is_provoked() -> None:
    causes = {cause for _, cause in archive._DAMAGES}
    assert causes == {cause for cause in causes if any(cause.startswith(said) for _, said in DAMAGES.values())}


def test_truncation_is_found_without_a_manifest(dumper: Dumper, programs: Programs, tmp_path: Path) -> None:
    content = dumper.dump(log=quiet).path.read_bytes()
    path = tmp_path / "truncated.dump"
    for part in range(1, 25):
        path.write_bytes(content[: len(content) * part // 25])

        with pytest.raises(errors.ArchiveDamagedError):
            read_archive(programs, path)


# ------------------------------------------------------------------------------------------ the parser alone


class Chunks(io.BytesIO):
    """A stream that returns chunks of the given lengths, whatever length is requested."""

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        super().__init__(data)
        self.lengths = lengths

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[: self.lengths.pop()] if self.lengths else buffer)


LINES = st.sampled_from([b"1\ta", b"", b"\\\\.", b"\\N", b".", b"x" * 5, b"COPY z FROM stdin;", b"--"])
TABLES = st.dictionaries(
    st.sampled_from([b"public.a", b'"S"."t ""; x"', b'p."new\nline"', b"p.c"]), st.lists(LINES, max_size=8), max_size=4
)


@settings(max_examples=400, deadline=None)
@given(TABLES, st.lists(st.integers(1, 12), max_size=60))
def test_chunk_boundaries_change_nothing(tables: dict[bytes, list[bytes]], lengths: list[int]) -> None:
    stream = b"--\n-- a comment; with 'quotes\n--\n\nSET x = 'a;\nb';\n\\restrict abc\n\n"
    for name, rows in tables.items():
        stream += b"COPY " + name + b' (a, "b) FROM stdin;") FROM stdin;\n' + b"".join(r + b"\n" for r in rows)
        stream += b"\\.\n\n\nSELECT pg_catalog.setval('public.s', 7, true);\n"

    reader = data_stream.DataReader(Chunks(stream, lengths), data_stream.ordered)

    assert reader.read()
    assert {name: (t.rows, t.digest.hexdigest()) for name, t in reader.data.tables.items()} == {
        name.decode(): (len(rows), hashlib.sha256(b"".join(r + b"\n" for r in rows)).hexdigest())
        for name, rows in tables.items()
    }
    assert reader.data.read_bytes == len(stream)
    assert reader.data.sequences == ({"public.s": "7, true"} if tables else {})


def test_a_statement_longer_than_the_buffer_is_read() -> None:
    text = b"x;'';" * 1_000_000
    stream = b"INSERT INTO public.t VALUES ('" + text + b"');\nCOPY public.u (a) FROM stdin;\n" + text + b"\n\\.\n"

    reader = data_stream.DataReader(Chunks(stream, []), data_stream.ordered)

    assert reader.read()
    assert reader.data.inserts
    assert reader.data.tables["public.u"].rows == 1
    assert reader.data.tables["public.u"].digest.digest() == hashlib.sha256(text + b"\n").digest()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.lists(st.integers(1, 12), max_size=60))
def test_a_stream_that_ends_early_is_incomplete(cut: int, lengths: list[int]) -> None:
    stream = b"SET a = 1;\nCOPY public.t (a) FROM stdin;\n" + b"1\n2\n3\n" * 20 + b"\\.\n"

    assert not data_stream.DataReader(Chunks(stream[: -min(cut, 110)], lengths), data_stream.ordered).read()

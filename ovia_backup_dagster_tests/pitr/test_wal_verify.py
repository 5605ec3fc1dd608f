"""``ovia-backup wal verify`` on the WAL of a real server: what is missing or damaged is seen, and named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.errors import VersionMismatchError
from ovia_backup_dagster.pitr import wal_verification
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.recovery_catalog import Base
from ovia_backup_dagster.pitr.segment_files import compress, decompress, read_header
from ovia_backup_dagster.pitr.wal_position import Lsn, Segment, Timeline, history_name
from ovia_backup_dagster.pitr.wal_verification import ArchiveVerification, verify_archive
from ovia_backup_dagster.postgres.programs import Programs
from ovia_backup_dagster_tests.conftest import admin
from ovia_backup_dagster_tests.pitr.archives import DAY_ZERO, HOUR, forked, put_base, put_history
from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.support.command_line import InProcessCli

SIZE = 16 * 1024 * 1024
#: Fills more than two segments, so that one segment has nothing but the middle of it.
LONG_MESSAGE_BYTES = 40_000_000


@dataclass(frozen=True)
class Real:
    """An archive of a real server's WAL, and the segments as the server wrote them.

    Attributes:
        archive: where a test does as it likes.
        written: the server's files.
        segments: rows; hardly anything; then the beginning, the middle and the end of one record.
        programs: pg_waldump.
    """

    archive: ClusterArchive
    written: Path
    segments: list[Segment]
    programs: Programs

    def name(self, index: int) -> str:
        return self.archive.name(self.segments[index])

    def put(self, content: bytes | bytearray, segment: Segment) -> None:
        """Archive other content under a segment's name, sealed as if it had been received so."""
        source = self.archive.incoming / "content"
        source.write_bytes(content)
        compress(source, self.archive.archived(segment))
        source.unlink()

    def content(self, index: int) -> bytearray:
        return bytearray((self.written / self.name(index)).read_bytes())

    def found(self, *, records: bool = False) -> dict[str, str]:
        """The findings, by name."""
        return findings(verify_archive(self.archive, self.programs if records else None))

    def base(self, start: Lsn, end: Lsn, **values: bool | None) -> Base:
        verified = values.get("verified", True)
        return Base("2026-11-01_000000", 1, start, end, DAY_ZERO, DAY_ZERO + HOUR, 402, verified)


def findings(verification: ArchiveVerification) -> dict[str, str]:
    found = {each.name: each.text for each in verification.findings}
    assert len(found) == len(verification.findings)
    return found


@pytest.fixture(scope="module")
def template(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("wal")
    written = folder / "written"
    written.mkdir()
    with ground_on(full_bin_dir, wal_keep_size="1GB") as ground:
        archive = ground.archive(folder / "volume")
        with admin(ground.cluster) as session:

            def switch() -> Segment:
                row = session.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
                assert row is not None
                segment = Segment.parse(str(row[0]))
                assert segment is not None
                return segment

            session.execute("SELECT pg_switch_wal()")
            session.execute("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 5000) n")
            first = switch()
            session.execute("INSERT INTO t VALUES (1)")
            switch()
            session.execute(f"SELECT pg_logical_emit_message(true, 'long', repeat('x', {LONG_MESSAGE_BYTES}))")
            last = switch()
        ground.cluster.stop()
        segments = [Segment(1, number) for number in range(first.number, last.number + 1)]
        for segment in segments:
            shutil.copy(ground.cluster.data / "pg_wal" / archive.name(segment), written)
            compress(written / archive.name(segment), archive.archived(segment))
        yield Real(archive, written, segments, ground.programs)


@pytest.fixture
def real(template: Real, tmp_path: Path) -> Real:
    """A copy of the archive, for one test."""
    volume = tmp_path / "volume"
    shutil.copytree(template.archive.root, volume)
    return Real(
        ClusterArchive(volume, template.archive.system_identifier),
        template.written,
        template.segments,
        template.programs,
    )


def only(real: Real, index: int) -> None:
    """Leave one segment, which is read faster than all."""
    for each in real.segments:
        if each != real.segments[index]:
            real.archive.archived(each).unlink()


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# --- Segments -------------------------------------------------------------------------------------------------------


def test_a_sound_archive_has_no_findings(real: Real) -> None:
    assert len(real.segments) == 5
    put_base(real.archive, real.base(real.segments[0].start(SIZE), Lsn(real.segments[0].start(SIZE).bytes + 400)))
    found = verify_archive(real.archive, real.programs)

    assert found.findings == ()
    assert (found.segments, found.wal_bytes, found.bases, found.records) == (5, 5 * SIZE, 1, True)


@pytest.mark.parametrize("index", [0, 1])
def test_a_flipped_bit_anywhere_is_seen(real: Real, rng: Random, index: int) -> None:
    only(real, index)
    path = real.archive.archived(real.segments[index])
    good = path.read_bytes()
    # Among them the bits of zstd's frame header, which zstd itself does not check.
    for bit in (36, 39, 41, *rng.sample(range(len(good) * 8), 12)):
        flip(path, bit)
        assert list(real.found()) == [real.name(index)], f"bit {bit} of {len(good) * 8}"
        path.write_bytes(good)
    assert real.found() == {}


def test_a_deleted_segment_is_seen_as_a_gap(real: Real) -> None:
    real.archive.archived(real.segments[1]).unlink()
    assert real.found() == {real.name(1): f"missing between {real.name(0)} and {real.name(2)}"}

    real.archive.archived(real.segments[2]).unlink()
    assert real.found(records=True) == {
        real.name(1): f"missing, as all to {real.name(2)}, between {real.name(0)} and {real.name(3)}"
    }


def test_a_segment_deleted_before_what_is_received_now_is_seen(real: Real) -> None:
    """The newest archived segment is not the end: WAL is being received after it."""
    newest = Segment(1, real.segments[-1].number + 1)
    content = real.content(0)
    content[8:16] = newest.start(SIZE).bytes.to_bytes(8, "little")
    (real.archive.incoming / f"{real.archive.name(newest)}.partial").write_bytes(content)
    assert real.found() == {}

    real.archive.archived(real.segments[-1]).unlink()
    assert real.found() == {real.name(-1): f"missing between {real.name(-2)} and {real.archive.name(newest)}"}


def test_beside_a_damaged_segment_the_others_are_sound(real: Real) -> None:
    flip(real.archive.archived(real.segments[1]), 4000)

    assert list(real.found(records=True)) == [real.name(1)]


def test_a_truncated_segment_is_seen(real: Real, rng: Random) -> None:
    only(real, 0)
    path = real.archive.archived(real.segments[0])
    good = path.read_bytes()
    for length in (0, 3, len(good) - 40, len(good) - 1, *rng.sample(range(len(good)), 4)):
        path.write_bytes(good[:length])
        assert "checksum" in real.found()[real.name(0)], length


def test_a_segment_of_another_cluster_is_seen(real: Real) -> None:
    content = real.content(1)
    content[24:32] = (7300000000000000009).to_bytes(8, "little")
    real.put(content, real.segments[1])

    assert real.found() == {real.name(1): "it is of cluster 7300000000000000009"}


def test_a_segment_of_another_place_is_seen(real: Real) -> None:
    real.put(real.content(0), real.segments[1])
    real.put(real.content(2)[: SIZE // 2], real.segments[2])
    real.put(b"no WAL" * 100, real.segments[3])

    found = real.found()
    assert found[real.name(1)] == f"it begins at {real.segments[0].start(SIZE)}"
    assert found[real.name(2)] == f"it has {SIZE // 2:,} bytes"
    assert "the disk altered it, or another program wrote it" in found[real.name(3)]
    assert len(found) == 3


def test_the_first_file_of_a_timeline_may_begin_as_its_parent(real: Real) -> None:
    """As PostgreSQL copies it. A file whose timeline never had this place is not what its name says."""
    border = (real.segments[1].start(SIZE).bytes + 100) / (1024 * 1024)
    put_history(real.archive, forked(2, (1, border)))
    moved = Segment(2, real.segments[1].number)
    os.rename(real.archive.archived(real.segments[1]), real.archive.archived(moved))
    for segment in real.segments[2:]:
        real.archive.archived(segment).unlink()
    assert real.found(records=True) == {}

    wrong = Segment(2, real.segments[2].number)
    real.put(real.content(2), wrong)
    assert real.found() == {real.archive.name(wrong): "it is of timeline 1"}


def test_a_missing_or_damaged_history_file_is_seen(real: Real) -> None:
    content = real.content(1)
    content[4:8] = (2).to_bytes(4, "little")
    real.archive.archived(real.segments[1]).unlink()
    real.put(content, Segment(2, real.segments[1].number))
    for segment in real.segments[2:]:
        real.archive.archived(segment).unlink()

    assert real.found() == {history_name(2): "missing: what its timeline goes on from is unknown"}
    put_history(real.archive, Timeline(2)).write_text("1\tnowhere\n")
    (text,) = real.found().values()
    assert "what can be recovered is unknown" in text
    assert "00000002.history is damaged" in text


def test_an_unfinished_segment_in_the_archive_is_read_too(real: Real) -> None:
    only(real, 0)
    source = real.written / real.name(1)
    path = real.archive.archived_partial(real.segments[1])
    compress(source, path)
    assert real.found() == {}

    path.write_bytes(path.read_bytes()[:-1])
    assert list(real.found()) == [path.name]
    compress(source, real.archive.archived_partial(real.segments[2]))
    assert real.found()[f"{real.name(2)}.partial.zst"] == f"it begins at {real.segments[1].start(SIZE)}"


def test_what_is_pruned_meanwhile_is_no_finding(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ClusterArchive.archived_segments(real.archive)
    for segment in listed[:2]:
        real.archive.archived(segment).unlink()
    monkeypatch.setattr(ClusterArchive, "archived_segments", lambda _: listed)

    assert real.found(records=True) == {}


def test_what_is_pruned_before_its_records_are_read_is_none(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = real.segments[:2]

    def pruning(source: Path, target: Path) -> None:
        while pruned:
            real.archive.archived(pruned.pop()).unlink()
        decompress(source, target)

    monkeypatch.setattr(wal_verification, "decompress", pruning)
    assert real.found(records=True) == {}
    assert not pruned


# --- Records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_damaged_records_are_seen_with_records(real: Real, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """The server's disk altered them before they were sent: the archive has what was received."""
    monkeypatch.setattr(wal_verification, "AT_ONCE", at_once)
    for index, place in ((0, SIZE // 1000), (1, 60), (4, SIZE // 5)):
        content = real.content(index)
        content[place] ^= 0x10
        real.put(content, real.segments[index])
    assert real.found() == {}

    found = real.found(records=True)
    # A record that begins in one segment and is damaged in another is named by its beginning.
    assert list(found) == [real.name(0), real.name(1), real.name(2)]
    assert "a record in it has a wrong checksum" in found[real.name(0)]
    assert "incorrect resource manager data checksum" in found[real.name(0)]
    assert f"could not find a valid record after {real.segments[1].start(SIZE)}" in found[real.name(1)]


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_a_record_over_several_segments_is_no_damage(real: Real, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """pg_waldump cannot begin where no record begins, or where the first one does not end."""
    monkeypatch.setattr(wal_verification, "AT_ONCE", at_once)
    assert read_header(real.written / real.name(3)).begins_a_record is False
    assert real.found(records=True) == {}

    real.archive.archived(real.segments[4]).unlink()
    assert real.found(records=True) == {}
    real.archive.archived(real.segments[2]).unlink()
    assert list(real.found(records=True)) == [real.name(2)], "which is missing"


def test_records_need_the_programs_of_the_server(real: Real) -> None:
    facts = ClusterFacts(system_identifier=real.archive.system_identifier, major=15)
    (real.archive.folder / "cluster.json").write_text(facts.to_json())

    with pytest.raises(VersionMismatchError, match="pg_waldump 16 cannot read the WAL of PostgreSQL 15"):
        real.found(records=True)
    assert real.found() == {}


# --- Base backups ---------------------------------------------------------------------------------------------------


def test_what_lacks_in_a_base_backup_is_seen(real: Real) -> None:
    start = real.segments[0].start(SIZE)
    folder = put_base(real.archive, real.base(start, Lsn(start.bytes + 400)))
    assert real.found() == {}

    (folder / "base.tar").write_bytes(b"short")
    assert real.found() == {folder.name: "base.tar has 5 of 400 bytes"}
    (folder / "base.tar").unlink()
    assert real.found() == {folder.name: "base.tar is missing"}
    (folder / "base.json").unlink()
    assert real.found() == {folder.name: "no base backup: it has no base.json"}


def test_a_base_backup_that_is_of_no_use_is_seen(real: Real) -> None:
    start = real.segments[0].start(SIZE)
    folder = put_base(real.archive, real.base(start, Lsn(start.bytes + 400), verified=False))
    assert real.found() == {folder.name: "its verification found it to be bad"}
    shutil.rmtree(folder)

    put_base(real.archive, real.base(start, real.segments[2].start(SIZE)))
    real.archive.archived(real.segments[1]).unlink()
    found = real.found()
    assert found[folder.name] == f"cannot be recovered: segment {real.name(1)}, which the base needs, is missing"
    assert found[real.name(1)].startswith("missing between")


# --- The command ----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_found(real: Real) -> None:
    cli = InProcessCli({"BACKUP_DIR": str(real.archive.root), "PG_BIN_DIR": str(real.programs.bin_dir)})
    good = cli("wal", "verify", "--records")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == (
        f"cluster {real.archive.system_identifier}: 5 segments (83.9 MB of WAL) read and decoded, 0 base backups: "
        "nothing is missing or damaged\n"
    )

    real.archive.archived(real.segments[1]).unlink()
    bad = cli("wal", "verify")
    assert bad.returncode == 1
    assert bad.stdout.splitlines()[0] == f"{real.name(1)}: missing between {real.name(0)} and {real.name(2)}"
    assert bad.stdout.splitlines()[1].endswith("0 base backups: findings: 1")
    assert "Next: ovia-backup recovery-window" in bad.stderr
    code, data = cli.json("wal", "verify")
    assert (code, data[0]["segments"], data[0]["findings"][0]["name"]) == (1, 4, real.name(1))
    assert json.dumps(data)


def test_without_an_archive_the_command_fails(tmp_path: Path) -> None:
    found = InProcessCli({"BACKUP_DIR": str(tmp_path)})("wal", "verify")

    assert found.returncode == 1
    assert found.stderr.startswith("ovia-backup: no WAL was ever received on this volume. Next: ")

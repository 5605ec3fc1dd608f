"""Archived segments: compressed, sealed, and any change in them seen."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from random import Random

import pytest
import zstandard

from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError
from ovia_backup_dagster.pitr.segment_files import (
    compress,
    content,
    decompress,
    read_header,
    require_sealed,
    sha256_of_content,
)
from ovia_backup_dagster.pitr.wal_position import Lsn

SIZE = 1024 * 1024


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A header, some bytes that compress badly, and zeros, as in a segment that an idle server switched from."""
    head = struct.pack("<HHIQIIQII", 0xD113, 2, 3, 5 * SIZE, 0, 0, 7300000000000000000, SIZE, 8192)
    path = tmp_path / "000000030000000000000005"
    path.write_bytes((head + Random(1).randbytes(300)).ljust(SIZE, b"\0"))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


@pytest.fixture
def archived(segment: Path) -> Path:
    target = segment.with_name(f"{segment.name}.zst")
    assert compress(segment, target) == target.stat().st_size
    return target


def seen(path: Path) -> bool:
    try:
        require_sealed(path)
    except SegmentDamagedError:
        return True
    return False


def test_an_archived_segment_is_what_was_received(segment: Path, archived: Path, tmp_path: Path) -> None:
    decompress(archived, tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == segment.read_bytes()
    assert archived.stat().st_mtime == 1_700_000_000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert not seen(archived)
    header = read_header(segment)
    assert (header.timeline, header.address, header.segment_bytes) == (3, Lsn(5 * SIZE), SIZE)
    assert header.system_identifier == "7300000000000000000"


def test_a_zstd_decoder_passes_over_the_seal(segment: Path, archived: Path) -> None:
    """As the program ``zstd -d`` does, for a rescue without this program."""
    with archived.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        assert reader.read(2 * SIZE) == segment.read_bytes()
        assert (reader.read(), file.read()) == (b"", b"")


def test_any_flipped_bit_of_an_archived_segment_is_seen(archived: Path, tmp_path: Path) -> None:
    good, flipped = archived.read_bytes(), tmp_path / "flipped.zst"
    assert len(good) < 1000
    bits = [
        *range(14 * 8),
        *Random(3).sample(range(14 * 8, len(good) * 8), 100),
        *range(len(good) * 8 - 320, len(good) * 8),
    ]
    for bit in bits:
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(changed)
        assert seen(flipped), f"bit {bit}"


def test_a_segment_that_is_cut_off_or_longer_is_seen(archived: Path, tmp_path: Path) -> None:
    good, other = archived.read_bytes(), tmp_path / "other.zst"
    for changed in (
        *(good[:length] for length in range(0, len(good), 3)),
        good[:-1],
        good + b"\0",
        good + good,
        good[1:],
    ):
        other.write_bytes(changed)
        assert seen(other), len(changed)


def test_no_damage_yields_other_content(segment: Path, archived: Path, tmp_path: Path) -> None:
    """Recovery reads segments without looking at the seal: it refuses, or gets what was received."""
    good, flipped, want = archived.read_bytes(), tmp_path / "flipped.zst", sha256_of_content(archived)
    bits = [*range(14 * 8), *Random(2).sample(range(14 * 8, len(good) * 8), 100)]
    refused = 0
    for bit in bits:
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(changed)
        try:
            found = sha256_of_content(flipped)
        except SegmentDamagedError:
            refused += 1
        else:
            assert found == want, f"bit {bit}"
    for length in range(0, len(good), 7):
        flipped.write_bytes(good[:length])
        try:
            assert b"".join(content(flipped)) == segment.read_bytes()
        except SegmentDamagedError:
            refused += 1
    assert refused > 100


def test_a_disk_that_writes_something_else_is_seen(
    segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is published, and the segment stays where it was received."""
    real = os.fsync

    def altering(descriptor: int) -> None:
        real(descriptor)
        os.pwrite(descriptor, b"\xff", 40)

    monkeypatch.setattr(os, "fsync", altering)
    with pytest.raises(SegmentDamagedError):
        compress(segment, tmp_path / "target.zst")
    assert [path.name for path in tmp_path.iterdir()] == [segment.name]


def test_a_file_that_is_no_segment_has_no_header(tmp_path: Path) -> None:
    for number, text in enumerate((b"", b"\0" * 100, b"short", b"text " * 100)):
        path = tmp_path / str(number)
        path.write_bytes(text)
        with pytest.raises(SegmentDamagedError, match="does not begin like a WAL segment"):
            read_header(path)

"""Compressions: which settings are valid, and how each major of pg_dump takes them."""

from __future__ import annotations

import pytest

from ovia_backup_dagster.core.compressions import AUTOMATIC, compression_of, is_compression, spelled_for


@pytest.mark.parametrize("text", ["auto", "none", "0", "6", "zstd", "zstd:3", "gzip:1", "lz4", "zstd:level=3,long"])
def test_a_valid_compression_is_recognized(text: str) -> None:
    assert is_compression(text)


@pytest.mark.parametrize("text", ["", "none:1", "10", "-1", "xz", "zstd:", "ZSTD", "zstd 3", "gzip:1\n"])
def test_an_invalid_compression_is_refused(text: str) -> None:
    assert not is_compression(text)


def test_automatic_prefers_zstd_to_gzip() -> None:
    assert AUTOMATIC == ("zstd:2", "gzip:1")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("zstd:3", "zstd"), ("gzip", "gzip"), ("6", "gzip"), ("0", "none"), ("none", "none"), ("lz4:1", "lz4")],
)
def test_a_spelling_names_its_compression(spelling: str, name: str) -> None:
    assert compression_of(spelling).name == name


@pytest.mark.parametrize(
    ("major", "spelling", "taken"),
    [
        (16, "zstd:3", "zstd:3"),
        (16, "gzip:1", "gzip:1"),
        (16, "none", "none"),
        (15, "none", "0"),
        (15, "gzip", "6"),
        (15, "gzip:1", "1"),
        (13, "gzip:level=9", "9"),
        (13, "4", "4"),
        (17, "4", "4"),
    ],
)
def test_pg_dump_15_and_older_take_the_level_alone(major: int, spelling: str, taken: str) -> None:
    assert spelled_for(major, spelling) == taken


@pytest.mark.parametrize(
    ("major", "spelling", "said"),
    [
        (15, "zstd:3", "pg_dump 15 has no zstd: PostgreSQL 16 is the first"),
        (13, "lz4", "pg_dump 13 has no lz4: PostgreSQL 16 is the first"),
        (15, "gzip:level=9,x=1", "pg_dump 15 takes a level of gzip alone, and not 'level=9,x=1'"),
    ],
)
def test_a_compression_that_an_old_pg_dump_lacks_is_an_error(major: int, spelling: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spelled_for(major, spelling)

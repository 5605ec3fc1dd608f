"""Tar files are read strictly: what PostgreSQL does not write is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.pitr.tar_stream import TarFormatError, tar_entries

NAMES = st.lists(st.sampled_from(["base", "global", "1", "16384", "pg_wal", "ümlaut"]), min_size=1, max_size=4)
FILES = st.dictionaries(NAMES.map("/".join), st.binary(max_size=3000), max_size=5)


def packed(files: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, content in files:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def read(content: bytes) -> dict[bytes, bytes]:
    return {entry.path: b"".join(blocks) for entry, blocks in tar_entries(io.BytesIO(content))}


@given(FILES)
def test_what_was_packed_is_read(files: dict[str, bytes]) -> None:
    found = read(packed((named(name), content) for name, content in files.items()))

    assert found == {name.encode(): content for name, content in files.items()}


@given(FILES, st.data())
def test_a_cut_tar_file_is_noticed(files: dict[str, bytes], data: st.DataObject) -> None:
    whole = packed((named(name), content) for name, content in files.items())
    end = len(whole.rstrip(b"\0"))

    with pytest.raises(TarFormatError, match="it ends within"):
        read(whole[: data.draw(st.integers(0, end))])


@given(FILES, st.data())
def test_a_flipped_bit_changes_what_is_read(files: dict[str, bytes], data: st.DataObject) -> None:
    """Or it is refused. Only in a header, a terminator of the checksum may differ."""
    whole = bytearray(packed((named(name), content) for name, content in files.items()))
    at = data.draw(st.integers(0, len(whole) - 1))
    before = read(bytes(whole))
    terminators = {end + 154 + n for end in _headers(bytes(whole)) for n in range(2)}
    whole[at] ^= 1 << data.draw(st.integers(0, 7))

    try:
        found = read(bytes(whole))
    except TarFormatError:
        return
    assert found != before or at in terminators


def _headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar.getmembers()]


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (named("base/1", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
        (named("base/1", tarfile.LNKTYPE, "base/2"), "neither a file nor a folder"),
        (named("base/1", tarfile.FIFOTYPE), "neither a file nor a folder"),
        (named("base/1", tarfile.CHRTYPE), "neither a file nor a folder"),
        (named("../evil"), "leads out of the data directory"),
        (named("/etc/passwd"), "leads out of the data directory"),
        (named("base/../../evil", tarfile.DIRTYPE), "leads out of the data directory"),
        (named("base/" + "x" * 120), "neither a file nor a folder"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_entries_are_refused(info: tarfile.TarInfo, why: str, form: int) -> None:
    if form == tarfile.USTAR_FORMAT and len(info.name) > 100:
        info.name = "x/" * 55 + "x"  # the beginning goes to the header's prefix
    expected = why if form != tarfile.GNU_FORMAT else "neither a file nor a folder"

    with pytest.raises(TarFormatError, match=expected):
        read(packed([(info, b"")], form))


def test_what_follows_the_end_is_refused() -> None:
    with pytest.raises(TarFormatError, match="there is data after its end"):
        read(packed([(named("a"), b"a")]) + packed([(named("b"), b"b")]))


def test_a_size_of_more_than_8_gb_is_read() -> None:
    header = bytearray(packed([(named("big"), b"")])[:512])
    size = 9 * 1024**3
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)

    entry, _ = next(tar_entries(io.BytesIO(bytes(header))))

    assert entry.size_bytes == size

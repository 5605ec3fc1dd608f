"""Sidecars that were forged or damaged by a disk: each is refused quickly, in one line, and never trusted."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovia_backup_dagster.core import manifest
from ovia_backup_dagster.core.errors import StrangeFileError, VolumeError
from ovia_backup_dagster.core.files import SIDECAR_BYTES, WITNESS_BYTES, open_plain, read_small
from ovia_backup_dagster.core.manifest import Manifest, Sidecar, parse_sidecar
from ovia_backup_dagster.core.verdict import Verification, Witness
from ovia_backup_dagster.restoration.journal import JournalEntry, JournalMark
from ovia_backup_dagster_tests.support.factories import NOW, make_manifest, make_witness

ENTRY = '{"at": "2026-06-15T12:00:00Z", "mark": "begun", "data": {"x": %s}}'
GOOD = make_manifest().to_json()
DIGITS = 10**6

FORGED = {
    "a million brackets": "[" * 10**6,
    "a million objects": '{"a":' * 10**6,
    "brackets in a field": ENTRY % ("[" * 10**6 + "]" * 10**6),
    "a deep field": ENTRY % ("[" * 300 + "]" * 300),
    "a million digits": ENTRY % ("9" * DIGITS),
    "a million digits in a known field": GOOD.replace('"seconds": 10.0', f'"seconds": {"9" * DIGITS}'),
    "a fraction of a million digits": ENTRY % ("0." + "9" * DIGITS),
    "an exponent of a million digits": ENTRY % ("1e" + "9" * DIGITS),
    "infinity, written out": ENTRY % "1e999",
    "not a number": ENTRY % "NaN",
    "infinity": ENTRY % "-Infinity",
    "a key twice": GOOD.replace('"seconds"', '"sha256": "' + "0" * 64 + '", "seconds"', 1),
    "a key twice, inside": ENTRY % '{"a": 1, "a": 2}',
    "half a surrogate": ENTRY % r'"\ud800"',
    "a NUL": ENTRY % '"a\0b"',
    "two documents": GOOD + GOOD,
    "a byte order mark": "\ufeff" + GOOD,
    "nothing": "",
    "a list": "[]",
    "null": "null",
    "nine million values": ENTRY % ("[" + "0," * 9_000_000 + "0]"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_sidecar_cannot_be_read(name: str) -> None:
    for model in (Manifest, JournalEntry, Verification):
        clock = time.process_time()
        with pytest.raises(VolumeError, match=r"^sidecar x\.json cannot be read: ") as refused:
            parse_sidecar(model, FORGED[name], "x.json")
        assert time.process_time() - clock < 2
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize("content", [b"\xff\xfe{}", GOOD.encode("utf-16"), GOOD.encode("utf-32"), b"{\xc3}"])
def test_a_sidecar_that_is_not_utf8_cannot_be_read(content: bytes) -> None:
    with pytest.raises(VolumeError, match="cannot be read"):
        parse_sidecar(Manifest, content, "x.json")


@pytest.mark.parametrize(
    "value",
    ["9" * 4000, "1.7976931348623157e+308", "5e-324", '"%s"' % ("9" * DIGITS), '"[[[[{{{{,,,,"', '"\\ud83d\\ude00"'],
)
def test_extreme_values_that_we_may_write_are_read(value: str) -> None:
    assert parse_sidecar(JournalEntry, ENTRY % value, "x").data == {"x": json.loads(value)}


def test_a_witness_of_many_tables_is_read() -> None:
    """Of 10,000 tables with 40 columns each: an eighth of the limits at most."""
    columns = ", ".join(f"column_{number}" for number in range(40))
    witness = make_witness({f"public.table_{number}": number for number in range(10_000)})
    tables = tuple(table.model_copy(update={"columns": f"({columns})"}) for table in witness.tables)
    witness = witness.model_copy(update={"tables": tables, "contents": tuple(map(str, range(50_000)))})
    text = witness.to_json()
    assert len(text) < WITNESS_BYTES / 8
    assert sum(map(text.count, "[{,")) < manifest._MOST_VALUES / 8
    assert parse_sidecar(Witness, text, "x") == witness


def test_sidecars_that_we_write_are_read_back() -> None:
    entry = JournalEntry(
        at=NOW, mark=JournalMark.NOTED, data={"a": [1, 2.5, None, "\N{GRINNING FACE}\0\n"], "b": {"c": {}}}
    )
    for sidecar in (make_manifest(warnings=("\x1b[31m",)), make_witness(), entry):
        kind: type[Sidecar] = type(sidecar)
        assert parse_sidecar(kind, sidecar.to_json(), "x") == sidecar


# ------------------------------------------------------------------------------------------ files


def test_a_file_that_grows_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 11)
    assert read_small(path, 11) == b"x" * 11
    with pytest.raises(StrangeFileError, match=re.escape("it is larger than 10 B")):
        read_small(path, 10)
    # A file in /proc: its size is 0, but it has content.
    with pytest.raises(StrangeFileError, match="larger"):
        read_small(Path("/proc/self/maps"), 100)


@pytest.mark.parametrize("limit", [SIDECAR_BYTES, WITNESS_BYTES])
def test_a_file_of_a_terabyte_is_not_read(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 10**12)
    clock = time.process_time()
    with pytest.raises(StrangeFileError, match="cannot be read: it is larger than"):
        read_small(path, limit)
    assert time.process_time() - clock < 0.1


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"xx")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        for name in ("fifo", "nothing", "."):
            with pytest.raises((VolumeError, FileNotFoundError)):
                open_plain(tmp_path / name)
        with pytest.raises(VolumeError):
            read_small(tmp_path / "file", 1)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("put", [os.mkfifo, lambda path: path.symlink_to("other"), Path.mkdir])
def test_a_special_file_put_there_before_the_open_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Callable[[Path], None]
) -> None:
    """Between lstat and open, something else takes the file's place."""
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "other").touch()
    real: Any = os.lstat

    def replaced(what: Path) -> os.stat_result:
        found: os.stat_result = real(what)
        path.unlink()
        put(path)
        return found

    monkeypatch.setattr(os, "lstat", replaced)
    with pytest.raises(VolumeError, match="file cannot be read"):
        open_plain(path)

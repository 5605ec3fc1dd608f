"""The comparison with other tools: the tests that it names exist, and it lists exactly the sources that it uses."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "comparison.md").read_text("utf-8")


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)

    assert len(named) >= 8
    for file, function in named:
        assert f"def {function}(" in (TESTS / file).read_text("utf-8"), f"{file}::{function}"


def test_every_source_is_used_listed_and_has_an_address() -> None:
    text, table = TEXT.split("| sources | |")
    used = set(re.findall(r"\[([A-Z]\d+)\]", text))
    listed = set(re.findall(r"\[([A-Z]\d+)\] ", table))
    addresses = set(re.findall(r"^\[([A-Z]\d+)\]: https://", table, re.MULTILINE))

    assert used == listed == addresses


def test_each_row_has_a_cell_for_each_tool() -> None:
    features = TEXT.split("## Features")[1].split("\n## ")[0]
    rows = [line for line in features.splitlines() if line.startswith("|")]

    assert {row.count("|") for row in rows} == {8}

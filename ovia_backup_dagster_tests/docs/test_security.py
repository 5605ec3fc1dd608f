"""The threat model: each claim names a test or a file that exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "security.md").read_text("utf-8")


def test_every_named_test_exists() -> None:
    code = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", TEXT)

    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in code] == []


def test_every_named_file_exists() -> None:
    folders = (TESTS, TESTS.parent, TESTS.parent / "ovia_backup_dagster")
    named = re.findall(r"`([\w.-]+/[\w./-]+)`", TEXT)

    assert named
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_every_attempt_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and line.count("|") == 4]
    attempts = [row for row in rows if "| attempt |" not in row]

    assert len(attempts) > 15
    assert [row for row in attempts if not re.search(r"`[\w/.]*test_\w+", row.split("|")[3])] == []

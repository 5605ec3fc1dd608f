"""No fault that was not survived, and none that was not provoked, becomes a line of docs/reliability.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.reliability import FAMILIES, PAGE, page


def outcomes(folder: Path, **changed: Any) -> Path:
    """A full run, in which all went well but for what is given."""
    for module in FAMILIES:
        entry = {
            "fault": f"fault of {module}",
            "how": "so",
            "times": 1000,
            "where": "a|b",
            "saw": "well",
            "then": "well",
        }
        outcome = {"test": f"x/{module}.py::test_of_it", "outcome": "teardown", "reason": "", "seed": "7", "full": True}
        outcome |= {"entries": [entry], **(changed if module == "test_disk" else {})}
        (folder / f"{module}.json").write_text(json.dumps(outcome))
    return folder


def test_a_line_for_each(tmp_path: Path) -> None:
    text = page(outcomes(tmp_path))
    assert "| fault of test_disk | so | 1,000 | a\\|b | well | well |" in text
    assert "FAULTS_SEED=7`" in text


@pytest.mark.parametrize("outcome", ["failed", "call", "setup"])
def test_nothing_is_written_when_one_failed_or_did_not_end(outcome: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not survived"):
        page(outcomes(tmp_path, outcome=outcome))


def test_nothing_is_written_of_a_quick_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="full run"):
        page(outcomes(tmp_path, full=False))


def test_nothing_is_written_when_a_family_is_missing(tmp_path: Path) -> None:
    (outcomes(tmp_path) / "test_disk.json").unlink()
    with pytest.raises(SystemExit, match=r"test_disk.py was not run"):
        page(tmp_path)


def test_what_could_not_be_provoked_is_said(tmp_path: Path) -> None:
    text = page(outcomes(tmp_path, outcome="skipped", reason="mounting needs root"))
    assert "fault of test_disk" not in text
    assert "| of it | not on this machine: mounting needs root | 0 | | | |" in text


def test_the_page_names_no_machine() -> None:
    text = PAGE.read_text("utf-8")
    assert "/tmp/" not in text
    assert "](/" not in text

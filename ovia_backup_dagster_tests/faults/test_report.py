"""docs/reliability.md lists a fault as survived only if a full run provoked it and its test passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.reliability import FAMILIES, PAGE, page


def outcomes(folder: Path, **changed: Any) -> Path:
    """The outcomes of a full run in which every test passed; ``changed`` applies to test_disk."""
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


def test_each_survived_fault_has_a_line(tmp_path: Path) -> None:
    text = page(outcomes(tmp_path))
    assert "| fault of test_disk | so | 1,000 | a\\|b | well | well |" in text
    assert "FAULTS_SEED=7`" in text


@pytest.mark.parametrize("outcome", ["failed", "call", "setup"])
def test_no_page_if_a_test_failed_or_did_not_end(outcome: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not survived"):
        page(outcomes(tmp_path, outcome=outcome))


def test_no_page_after_a_quick_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="full run"):
        page(outcomes(tmp_path, full=False))


def test_no_page_if_a_family_was_not_run(tmp_path: Path) -> None:
    (outcomes(tmp_path) / "test_disk.json").unlink()
    with pytest.raises(SystemExit, match=r"test_disk.py was not run"):
        page(tmp_path)


def test_a_skipped_fault_is_listed_with_its_reason(tmp_path: Path) -> None:
    text = page(outcomes(tmp_path, outcome="skipped", reason="mounting needs root"))
    assert "fault of test_disk" not in text
    assert "| of it | not on this machine: mounting needs root | 0 | | | |" in text


def test_the_page_names_no_machine() -> None:
    text = PAGE.read_text("utf-8")
    assert "/tmp/" not in text
    assert "](/" not in text

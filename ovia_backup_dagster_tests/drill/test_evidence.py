"""A drill's evidence: written once, read back, judged, and shown as a page."""

from __future__ import annotations

import contextlib
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import DrillError, DrillOverdueError, VolumeError
from ovia_backup_dagster.drill.drill_report import CHECKLIST, drill_page
from ovia_backup_dagster.drill.folder import DrillFolder, judge_drills
from ovia_backup_dagster.proof.check_results import CheckResult, CopiedTable, Result
from ovia_backup_dagster_tests.support.evidence import evidence, failed
from ovia_backup_dagster_tests.support.factories import DAY, NOW, make_catalog, verified_backup

MAX_AGE = timedelta(days=35)


@pytest.fixture
def folder(tmp_path: Path) -> DrillFolder:
    made = DrillFolder(make_catalog(tmp_path / "backups"))
    made.prepare(NOW)
    return made


# ---------------------------------------------------------------- the folder


def test_evidence_is_read_as_written(folder: DrillFolder) -> None:
    path = folder.write(evidence(), drill_page(evidence()))

    assert path.name == "2026-06-15_120000_ovia_daily_2026-06-15_030000.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_suffix(".md").read_text("utf-8") == drill_page(evidence())
    assert list(folder.newest_first()) == [evidence()]


def test_evidence_is_never_rewritten(folder: DrillFolder) -> None:
    path = folder.write(evidence(), "first")

    with pytest.raises(VolumeError, match="never rewritten"):
        folder.write(failed(), "second")

    assert path.with_suffix(".md").read_text("utf-8") == "first"
    assert [found.passed for found in folder.newest_first()] == [True]


def test_evidence_of_this_database_comes_newest_first(folder: DrillFolder) -> None:
    for days, database in ((3, "ovia"), (1, "other"), (2, "ovia"), (0, "ovia")):
        folder.write(evidence(started_at=NOW - days * DAY, database=database), "")

    assert [NOW - found.started_at for found in folder.newest_first()] == [0 * DAY, 2 * DAY, 3 * DAY]


def test_unreadable_evidence_is_left_out(folder: DrillFolder) -> None:
    folder.write(evidence(), "")
    (folder.path / "2027-01-01_000000_x.json").write_text("{", "utf-8")
    (folder.path / "2027-01-02_000000_x.json").write_text(evidence().to_json().replace('"version": 1', '"version": 9'))

    assert [found.started_at for found in folder.newest_first()] == [NOW]


def test_without_a_folder_there_are_no_drills(tmp_path: Path) -> None:
    here = DrillFolder(Catalog(tmp_path, "ovia"))

    assert list(here.newest_first()) == []
    assert here.since() is None
    assert here.standing(MAX_AGE, NOW).trouble is None


def test_a_hostile_name_stays_in_the_folder(folder: DrillFolder) -> None:
    path = folder.write(evidence(backup="../../'; rm -rf ~\n.dump"), "")

    assert path.parent == folder.path
    assert re.fullmatch(r"[A-Za-z0-9_%-]+\.json", path.name)


def test_the_start_of_drills_is_written_once(folder: DrillFolder) -> None:
    folder.prepare(NOW + 9 * DAY)

    assert folder.since() == NOW


# ---------------------------------------------------------------- the standing of drills


def test_a_killed_drill_is_reported_until_another_ends(folder: DrillFolder) -> None:
    backup = verified_backup(folder._catalog, NOW)
    with contextlib.suppress(KeyboardInterrupt), folder.lock(backup, NOW), folder.under_way(backup, NOW):
        # Neither a running drill nor one that a signal ended is reported.
        assert folder.standing(MAX_AGE, NOW).trouble is None
        raise KeyboardInterrupt
    assert folder.standing(MAX_AGE, NOW).trouble is None

    killed = os.fork()
    if killed == 0:
        with folder.lock(backup, NOW), folder.under_way(backup, NOW):
            os._exit(9)
    os.waitpid(killed, 0)
    trouble = folder.standing(MAX_AGE, NOW).trouble
    assert type(trouble) is DrillError
    assert f"the restore drill of {backup} did not end" in str(trouble)

    with folder.lock(backup, NOW), folder.under_way(backup, NOW):
        pass
    assert folder.standing(MAX_AGE, NOW).trouble is None


def test_a_drill_that_passed_is_enough_for_35_days() -> None:
    drills = [evidence()]

    assert judge_drills(drills, NOW - 400 * DAY, MAX_AGE, NOW + MAX_AGE).trouble is None
    trouble = judge_drills(drills, NOW - 400 * DAY, MAX_AGE, NOW + MAX_AGE + timedelta(seconds=1)).trouble
    assert isinstance(trouble, DrillOverdueError)
    assert "35 d" in str(trouble)


def test_a_failed_drill_is_trouble_until_one_passes() -> None:
    later = NOW + DAY

    found = judge_drills([failed(started_at=later), evidence()], NOW, MAX_AGE, later)
    assert type(found.trouble) is DrillError
    assert "table public.people differs" in str(found.trouble)
    assert found.last_passed == evidence()

    assert judge_drills([evidence(started_at=later), failed()], NOW, MAX_AGE, later).trouble is None


def test_before_the_first_drill_is_due_there_is_no_alert() -> None:
    assert judge_drills([], NOW, MAX_AGE, NOW + MAX_AGE).trouble is None
    assert "due by 2026-07-20" in judge_drills([], NOW, MAX_AGE, NOW).text(NOW)
    assert isinstance(judge_drills([], NOW, MAX_AGE, NOW + MAX_AGE + DAY).trouble, DrillOverdueError)
    assert judge_drills([], None, MAX_AGE, NOW).trouble is None


def test_an_error_is_listed_once_among_the_failures() -> None:
    line = CheckResult(check=Check.RESTORED, result=Result.FAILED, text="the restore failed: no")
    found = evidence(passed=False, lines=(line,), error="the restore failed: no", fix="fix the cause")

    assert found.failures == ("the restore failed: no",)
    assert found.trouble is not None
    assert found.trouble.fix == "fix the cause"


# ---------------------------------------------------------------- the page


def test_the_page_of_a_drill_that_passed() -> None:
    text = drill_page(evidence())

    assert text.startswith("# Restore drill of `ovia_daily_2026-06-15_030000.dump`: passed\n")
    assert "Recovery time to expect: **10.5 s**" in text
    assert "an operator" in text
    assert "| `public.people` | 5,000 | 8.2 kB |" in text
    assert all(check.value in text for check in Check.at(Stage.DRILL))
    assert text.count("- [x] ") == len(CHECKLIST)


def test_the_page_of_a_failed_drill_has_cause_and_advice() -> None:
    text = drill_page(failed(error="it stopped", fix="ovia-backup list"))

    assert "FAILED" in text
    assert "* table public.people differs" in text
    assert "Next: ovia-backup list" in text
    assert text.count("- [ ] ") == len(CHECKLIST)


def test_names_from_the_database_are_no_markdown() -> None:
    hostile = "x|y`z\n# head <img src=x> [a](b) **bold**"
    line = CheckResult(check=Check.TABLES, result=Result.ODD, text=hostile)
    text = drill_page(
        evidence(lines=(line,), tables=(CopiedTable(name=hostile, rows=1, size_bytes=1),), launched_by=hostile)
    )

    assert "\n# head" not in text
    assert "<img" not in text.replace("\\<img", "").replace("`x\\|y'z # head <img", "")
    assert "[a](b)" not in text.replace("`x\\|y'z # head <img src=x> [a](b) **bold**`", "")
    for row in (row for row in text.splitlines() if row.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4)

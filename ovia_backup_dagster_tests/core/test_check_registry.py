"""The registry of checks: its members, and that a member is noticed which no code makes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ovia_backup_dagster.core.check_registry import Check, CheckSeverity, Stage
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof.check_results import NO_CODE, Result
from ovia_backup_dagster_tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "ovia_backup_dagster"
REGISTRY = Path("core") / "check_registry.py"
PROGRAM = Path(sys.executable).with_name("ovia-backup")
NEW = '    NEW = ("something_new_holds", _PROOF, CheckSeverity.BAD, "Something new holds.")\n    # fmt: on\n'
SPECS = (
    "import json; from ovia_backup_dagster.definitions import defs; "
    "print(json.dumps({spec.name: [spec.description, spec.blocking] for asset in defs.assets "
    "for spec in asset.check_specs}))"
)


def test_each_check_is_described_once() -> None:
    assert Counter(check.description for check in Check).most_common(1)[0][1] == 1
    for check in Check:
        assert check.stages
        assert re.fullmatch(r"[a-z_]+", check.value)
        assert check.description.endswith(".")
        assert check.is_odd is (check.severity is CheckSeverity.ODD)


def test_a_stage_has_its_checks_in_the_order_of_the_registry() -> None:
    registry = list(Check)
    for stage in Stage:
        places = [registry.index(check) for check in Check.at(stage)]
        assert places == sorted(places)
        assert places
    # A restore makes no check that a drill does not.
    assert set(Check.at(Stage.RESTORE)) < set(Check.at(Stage.DRILL))


def test_each_check_is_made_by_code() -> None:
    source = "".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path != PACKAGE / REGISTRY)
    assert [check.name for check in Check if f"Check.{check.name}" not in source] == []


@pytest.mark.exhaustive
def test_a_check_that_no_code_makes_is_listed_as_not_made(
    database: Connection, bin_dir: Path, volume: Path, tmp_path: Path
) -> None:
    package = tmp_path / "edited" / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    registry = package / REGISTRY
    assert registry.read_text("utf-8").count("    # fmt: on\n") == 1
    registry.write_text(registry.read_text("utf-8").replace("    # fmt: on\n", NEW), "utf-8")
    variables = {
        **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        "PYTHONPATH": str(package.parent),
        "POSTGRES_HOST": database.host,
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_DB": database.database,
        "POSTGRES_USER": database.user,
        "BACKUP_DIR": str(volume),
        "BACKUP_EXPECTED_TABLES": "people",
        "PG_BIN_DIR": str(bin_dir),
    }

    def run(*command: str) -> str:
        ended = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    volume.mkdir()
    for verb in ("dump", "verify", "drill"):
        run(str(PROGRAM), verb)

    (evidence,) = (volume / "drills").glob("*.json")
    assert {line["check"]: line for line in json.loads(evidence.read_text("utf-8"))["lines"]}[
        "something_new_holds"
    ] == {"check": "something_new_holds", "result": Result.NOT_MADE, "text": NO_CODE}
    assert f"| something_new_holds | not made | {NO_CODE} |" in evidence.with_suffix(".md").read_text("utf-8")
    assert json.loads(run(sys.executable, "-c", SPECS))["something_new_holds"] == ["Something new holds.", True]

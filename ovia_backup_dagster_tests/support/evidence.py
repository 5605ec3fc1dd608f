"""Evidence of a drill that passed, and of one that failed, made without a drill."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.proof.check_results import CheckResult, CopiedTable, Result
from ovia_backup_dagster_tests.support.factories import NOW


def evidence(**changes: Any) -> Evidence:
    """Evidence of a drill that passed."""
    passed: dict[str, Any] = {
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=20),
        "passed": True,
        "database": "ovia",
        "backup": "ovia_daily_2026-06-15_030000.dump",
        "tier": "daily",
        "backup_started_at": NOW - timedelta(hours=9),
        "backup_bytes": 1234567,
        "backup_sha256": "ab" * 32,
        "manifest": True,
        "launched_by": "an operator",
        "place": "throwaway cluster",
        "jobs": 2,
        "versions": {"copy": "16.15", "source": "16.14"},
        "lines": tuple(
            CheckResult(check=check, result=Result.PASSED, text="all right") for check in Check.at(Stage.DRILL)
        ),
        "tables": (CopiedTable(name="public.people", rows=5000, size_bytes=8192),),
        "copy_bytes": 9_000_000,
        "decoded_bytes": 5_000_000,
        "phases": {"hash": 0.5, "restore": 10.0},
        "recovery_seconds": 10.5,
        "made_by": "the tests",
    }
    return Evidence(**(passed | changes))


def failed(**changes: Any) -> Evidence:
    lines = (CheckResult(check=Check.TABLES, result=Result.FAILED, text="table public.people differs"),)
    return evidence(passed=False, lines=lines, recovery_seconds=None, **changes)

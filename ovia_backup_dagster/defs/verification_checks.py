"""Verification's checks as Dagster asset checks: their specs, and a judgement as their results."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.verdict import Judgement
from ovia_backup_dagster.defs import metadata

#: Before what a check found that passed all the same.
ODD = "Odd, and worth a look: "
#: Each is made only where those before it found nothing; all others are made together, after these.
_ONE_BY_ONE = (Check.MATCHES_MANIFEST, Check.DECODES)
_TOGETHER = tuple(check for check in Check.at(Stage.VERIFICATION) if check not in _ONE_BY_ONE)
_ROUNDS = (*((check,) for check in _ONE_BY_ONE), _TOGETHER)


def check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """A spec for each check. Bad blocks what is downstream; odd warns and lets it go on."""
    return [
        dg.AssetCheckSpec(
            check.value,
            asset=asset,
            description=f"{check.description} {'Warns' if check.is_odd else 'Blocks'}.",
            blocking=not check.is_odd,
        )
        for check in Check.at(Stage.VERIFICATION)
    ]


def check_results(judgement: Judgement, backup: str) -> Iterator[dg.AssetCheckResult]:
    """A result for each check. What is odd passes, with a note: Dagster shows a warning as failed.

    A check that could not be made has not passed, and says why: left out, it would count as failed without a word.
    """
    unmade = ""
    for checks in _ROUNDS:
        if unmade:
            for check in checks:
                yield dg.AssetCheckResult(
                    check_name=check.value,
                    passed=False,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"not looked at, because {unmade}",
                    metadata={"backup": backup},
                )
            continue
        wrong: list[str] = []
        for check in checks:
            findings = [finding.text for finding in judgement.findings if finding.check is check]
            wrong += findings
            yield dg.AssetCheckResult(
                check_name=check.value,
                passed=check.is_odd or not findings,
                severity=dg.AssetCheckSeverity.WARN if check.is_odd else dg.AssetCheckSeverity.ERROR,
                description=shortened((ODD if check.is_odd and findings else "") + "; ".join(findings)) or None,
                metadata={"backup": backup, **({"findings": metadata.of_list(findings)} if findings else {})},
            )
        unmade = "; ".join(wrong)

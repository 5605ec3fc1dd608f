"""The checks of verification as Dagster asset checks: their specs, and the results of a judgement."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.verdict import Judgement
from ovia_backup_dagster.defs import metadata

#: Before the findings of a check that passed.
ODD = "Odd, and worth a look: "
#: Each of these is made only if those before it found nothing; all other checks are made together after them.
_ONE_BY_ONE = (Check.MATCHES_MANIFEST, Check.DECODES)
_TOGETHER = tuple(check for check in Check.at(Stage.VERIFICATION) if check not in _ONE_BY_ONE)
_ROUNDS = (*((check,) for check in _ONE_BY_ONE), _TOGETHER)


def check_specs(asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """A spec for each check. A bad finding blocks downstream assets; an odd one only warns."""
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
    """A result for each check. An odd finding passes, with a note, because Dagster shows a warning as failed.

    A check that was not made does not pass, and says why; without a result Dagster would show no reason.
    """
    unmade = ""
    for checks in _ROUNDS:
        if unmade:
            for check in checks:
                yield dg.AssetCheckResult(
                    check_name=check.value,
                    passed=False,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=f"not checked, because {unmade}",
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

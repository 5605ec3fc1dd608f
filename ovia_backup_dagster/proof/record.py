"""The results of a proof so far: check results, seconds and versions, for a drill's evidence or a restore's record.

The modules that make the checks decide what counts as a finding; this one only stores it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.postgres.data_stream import Log
from ovia_backup_dagster.proof.check_results import NO_CODE, CheckResult, Result


@dataclass
class ProofRecord:
    """The results of one proof.

    Attributes:
        log: receives progress lines.
        lines: a result for each check, in the order in which they were made.
        phases: name -> seconds, in order.
        versions: program or server -> version.
    """

    log: Log
    lines: list[CheckResult] = field(default_factory=list, init=False)
    phases: dict[str, float] = field(default_factory=dict, init=False)
    versions: dict[str, str] = field(default_factory=dict, init=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to those of the phase."""
        clock = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - clock

    def add(
        self,
        check: Check,
        wrong: Sequence[str],
        *,
        odd: Sequence[str] = (),
        passed: str = "",
        result: Result = Result.PASSED,
    ) -> None:
        """Note the result of a check: the wrong findings, or else the odd ones, or else that it passed.

        Args:
            check: the check.
            wrong: findings of the check's own severity.
            odd: findings that are odd, whatever the check's severity.
            passed: the text if nothing was found.
            result: the result if nothing was found; ``NOT_MADE`` if the check could not be made.
        """
        if wrong:
            result = Result.ODD if check.is_odd else Result.FAILED
            text = joined([*wrong, *odd])
        elif odd:
            result, text = Result.ODD, joined(odd)
        else:
            text = passed
        self.lines.append(CheckResult(check=check, result=result, text=text))
        self.log(f"{check.value}: {result.value}" + (f" ({text})" if text else ""))

    def list_unmade(self, stage: Stage) -> None:
        """Note each check that was not made, at the end of a stage, so that a check without code is reported.

        A restore also notes the checks that only a drill makes.
        """
        made = {line.check for line in self.lines}
        for check in dict.fromkeys((*Check.at(Stage.DRILL), *Check.at(stage))):
            if check not in made:
                text = NO_CODE if stage in check.stages else f"not a check of a {stage.value}"
                self.add(check, [], passed=text, result=Result.NOT_MADE)

    @property
    def lines_in_order(self) -> tuple[CheckResult, ...]:
        """The results, in the order of the registry of checks."""
        order = list(Check)
        return tuple(sorted(self.lines, key=lambda line: order.index(line.check)))

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(line.result is Result.FAILED for line in self.lines)

    @property
    def seconds(self) -> dict[str, float]:
        """The phases, to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.phases.items()}

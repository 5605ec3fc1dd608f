"""The failed runs that only Dagster knows of, as part of the condition. Pure; ``defs`` queries Dagster."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ovia_backup_dagster.core.errors import KeptDatabasesError, RunFailedError
from ovia_backup_dagster.health.freshness import AGAIN


@dataclass(frozen=True, slots=True)
class FailedRun:
    """The last run of a job, if it failed.

    Attributes:
        job: its job's name.
        run_id: Dagster's.
        at: when it ended (UTC).
        reason: the failed step's message.
    """

    job: str
    run_id: str
    at: datetime
    reason: str

    @property
    def text(self) -> str:
        """When and why it failed, in a sentence for a person."""
        return f"{self._what}: {self.reason}"

    @property
    def _what(self) -> str:
        return f"{self.job} failed at {self.at:%Y-%m-%d %H:%M} UTC"

    @property
    def no_backup(self) -> RunFailedError:
        """The trouble, if the run should have made a backup."""
        what = f"{self._what}, and no backup was verified since"
        return RunFailedError(what, why=self.reason, fix=f"fix the cause, then {AGAIN}")

    @property
    def nothing_dropped(self) -> KeptDatabasesError:
        """The trouble, if the run should have dropped the databases that restores have replaced."""
        what = f"{self._what}, and the replaced databases stay"
        fix = f"fix the cause, then launch {self.job} in the Dagster UI; the run that failed is {self.run_id}"
        return KeptDatabasesError(what, why=self.reason, fix=fix)


@dataclass(frozen=True, slots=True)
class FailedRuns:
    """The last runs of the jobs whose failures are reported.

    Attributes:
        backup: the last run of the daily backup, if it failed and Dagster will not retry it.
        ended_early: the last run of the daily backup, if it failed or was cancelled, which explains a missing backup.
        replaced: the last run of the job that drops the databases that restores have replaced, if that failed.
    """

    backup: FailedRun | None = None
    ended_early: FailedRun | None = None
    replaced: FailedRun | None = None

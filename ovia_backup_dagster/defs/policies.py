"""How Dagster treats our runs: tags, priorities, time limits, freshness policy, retries, and errors as failures.

Names of definitions do not belong here: see ``database_names``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, PRIORITY_TAG, ROOT_RUN_ID_TAG

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem

OWNERS = ["team:ovia-operations"]

VOLUME_TAG = "ovia/volume"
#: Distinguishes the runs of different databases, which may share a Dagster instance and the names of their jobs.
DATABASE_TAG = "ovia/database"

MAX_RETRIES = 3
#: On runs that may take hours: dagster.yaml limits them, to leave slots for all other runs.
LONG_TAG = "ovia/long"
#: On runs that copy to remotes: only their containers reach them (``run_launcher``).
OFFSITE_TAG = "ovia/offsite"
#: Exempts a run from `max_runtime_seconds`, after which run monitoring ends a run.
NO_TIME_LIMIT = {dg.MAX_RUNTIME_SECONDS_TAG: "0"}
#: A drill ends itself at its limit, with evidence. Dagster ends it only this much later.
_TIME_TO_END = timedelta(minutes=15)


class Priority(IntEnum):
    """The order in which runs leave the queue: those that a person waits for come before those of a schedule (0)."""

    ALERT = 3
    RESTORE = 2
    DOCTOR = 1
    DRILL = -1

    @property
    def tag(self) -> dict[str, str]:
        return {PRIORITY_TAG: str(self.value)}


def database_tags(settings: Settings) -> dict[str, str]:
    """The tag of every run of this database: ``ovia``, or ``crm/ovia`` with a prefix.

    Databases on two servers may have the same name; the prefix tells them apart. It is one tag, because a search for
    runs cannot ask for the absence of a tag. Its value is unique even if names contain slashes.
    """
    prefix, database = settings.backup_asset_prefix, settings.postgres_db
    return {DATABASE_TAG: f"{prefix}/{database}" if prefix or "/" in database else database}


def run_tags(settings: Settings) -> dict[str, str]:
    """The tags of a run that writes to this volume."""
    return {**database_tags(settings), VOLUME_TAG: str(settings.backup_dir), LONG_TAG: "dump"}


def drill_tags(settings: Settings) -> dict[str, str]:
    """The tags of a drill: a separate time limit, and a low priority, so that no backup waits for it in the queue."""
    most = timedelta(hours=settings.drill_max_hours) + _TIME_TO_END
    limit = {dg.MAX_RUNTIME_SECONDS_TAG: f"{most.total_seconds():.0f}"}
    return {**database_tags(settings), **limit, **Priority.DRILL.tag, LONG_TAG: "drill"}


def repeated(run: dg.DagsterRun) -> str | None:
    """The id of the run that this one repeats, launched by a person, Dagster's retries, or a program."""
    tags = (run.tags.get(PARENT_RUN_ID_TAG), run.tags.get(ROOT_RUN_ID_TAG))
    return next(filter(None, (run.parent_run_id, run.root_run_id, *tags)), None)


def freshness_policy(system: BackupSystem) -> dg.FreshnessPolicy:
    """The freshness policy shown in the UI. It considers events, not files, and sends no alert: the sensor does."""
    fail = max(system.max_age, timedelta(minutes=1))  # Dagster's minimum
    warn = fail - timedelta(hours=1)
    return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn if warn > timedelta(hours=1) else None)


@contextmanager
def errors_as_failures(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    system: BackupSystem,
    words: Callable[[str], str],
    *,
    retry: bool = True,
) -> Iterator[None]:
    """Turn our errors into Dagster's: a transient error is retried, any other fails at once, with a one-line message.

    Args:
        context: of the op.
        system: has the seconds to wait before a retry.
        words: rewrites a text for readers of the UI.
        retry: whether the op may be retried at all.
    """
    try:
        yield
    except BackupError as error:
        if error.whole:
            context.log.debug(error.whole)
        failure = dg.Failure(words(str(error)), metadata=words_of(error, words), allow_retries=False)
        if retry and error.transient and context.retry_number < MAX_RETRIES:
            wait = system.retry_seconds * 2**context.retry_number
            context.log.warning(f"{error.account}. Trying again in {wait:.0f} s")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from failure
        # Without the traceback, which would bury the message.
        raise failure from None


def words_of(error: BackupError, words: Callable[[str], str]) -> dict[str, dg.MetadataValue]:
    """The parts of an error's message, as metadata of the failure."""
    said = {
        "what": error.what,
        "why": error.why,
        "said": error.said,
        "next": error.fix,
        "kind": type(error).__name__,
    }
    return {name: dg.MetadataValue.text(words(text)) for name, text in said.items() if text}

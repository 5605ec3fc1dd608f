"""How Dagster is to treat our work: tags, priorities, freshness, retries, and errors in its terms.

What things are called does not belong here: that is ``database_names``.
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
#: Two databases may share a Dagster instance, and their jobs' names with it.
DATABASE_TAG = "ovia/database"

MAX_RETRIES = 3
#: On runs that may take hours: dagster.yaml leaves slots of the queue to all others.
LONG_TAG = "ovia/long"
#: Run monitoring ends every run after `max_runtime_seconds`, but for one with this.
NO_TIME_LIMIT = {dg.MAX_RUNTIME_SECONDS_TAG: "0"}
#: A drill ends itself, with evidence; Dagster ends one that does not get there.
_TIME_TO_END = timedelta(minutes=15)


class Priority(IntEnum):
    """What leaves the queue first: what a person waits for, before what a schedule has asked for (0)."""

    ALERT = 3
    RESTORE = 2
    DOCTOR = 1
    DRILL = -1

    @property
    def tag(self) -> dict[str, str]:
        return {PRIORITY_TAG: str(self.value)}


def database_tags(settings: Settings) -> dict[str, str]:
    """What marks a run of this database: ``ovia``, or ``crm/ovia`` where there is a prefix.

    Two databases on two servers may share their name: the prefix tells them apart. One tag, since a search for runs
    cannot ask for a tag's absence; and never the same for two, whatever slashes their names contain.
    """
    prefix, database = settings.backup_asset_prefix, settings.postgres_db
    return {DATABASE_TAG: f"{prefix}/{database}" if prefix or "/" in database else database}


def run_tags(settings: Settings) -> dict[str, str]:
    """What marks one that works on this volume, too."""
    return {**database_tags(settings), VOLUME_TAG: str(settings.backup_dir), LONG_TAG: "dump"}


def drill_tags(settings: Settings) -> dict[str, str]:
    """What marks one that drills: it has a time limit of its own, and no backup waits for it in the queue."""
    most = timedelta(hours=settings.drill_max_hours) + _TIME_TO_END
    limit = {dg.MAX_RUNTIME_SECONDS_TAG: f"{most.total_seconds():.0f}"}
    return {**database_tags(settings), **limit, **Priority.DRILL.tag, LONG_TAG: "drill"}


def repeated(run: dg.DagsterRun) -> str | None:
    """The run that this one repeats, for a person, Dagster's retries, or a program."""
    tags = (run.tags.get(PARENT_RUN_ID_TAG), run.tags.get(ROOT_RUN_ID_TAG))
    return next(filter(None, (run.parent_run_id, run.root_run_id, *tags)), None)


def freshness_policy(system: BackupSystem) -> dg.FreshnessPolicy:
    """The freshness policy shown in the UI. It looks at events, not at files, and sends no alert: the sensor does."""
    fail = max(system.max_age, timedelta(minutes=1))  # Dagster takes no less
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
    """Turn our errors into Dagster's: what may pass is tried again, what will not fails at once, in one line.

    Args:
        context: of the op.
        system: says how long to wait before a transient failure is tried again.
        words: how what is said is put for readers of the UI.
        retry: whether the op may be taken twice at all.
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
        # The words are the message; our frames would only bury them.
        raise failure from None


def words_of(error: BackupError, words: Callable[[str], str]) -> dict[str, dg.MetadataValue]:
    """An error's words one by one, for the page of a failure."""
    said = {
        "what": error.what,
        "why": error.why,
        "said": error.said,
        "next": error.fix,
        "kind": type(error).__name__,
    }
    return {name: dg.MetadataValue.text(words(text)) for name, text in said.items() if text}

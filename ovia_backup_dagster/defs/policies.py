"""How Dagster is to treat our work: names, pools, tags, freshness, retries, and errors in its terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import dagster as dg

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.settings import Settings
from ovia_backup_dagster.system import BackupSystem

DAILY_BACKUP_JOB = "daily_backup_job"
FRESHNESS_ALERT_JOB = "freshness_alert_job"
DOCTOR_JOB = "doctor_job"
RESTORE_DRILL_JOB = "restore_drill_job"

BACKUP_GROUP = "backup"
ALERT_GROUP = "alerts"
OWNERS = ["team:ovia-operations"]

#: One run at a time may touch a volume. The lock on the volume is what guarantees it; the pool lets the UI show
#: that a run waits. Limits hold when a run is dequeued, so a tag limit stands beside it (see dagster.yaml).
POOL = "backup_volume"
#: Drills only read the volume, and may take hours: they wait for each other, and no backup waits for them.
DRILL_POOL = "restore_drill"
VOLUME_TAG = "ovia/volume"
#: Two databases may share a Dagster instance, and their jobs' names with it.
DATABASE_TAG = "ovia/database"

MAX_RETRIES = 3


def run_tags(settings: Settings) -> dict[str, str]:
    """What marks a run that works on this database and this volume."""
    return {DATABASE_TAG: settings.postgres_db, VOLUME_TAG: str(settings.backup_dir)}


def freshness(backups: BackupSystem) -> dg.FreshnessPolicy:
    """Shown in the UI. It looks at events, not at files, and tells nobody: the sensor does."""
    fail = max(backups.max_age, timedelta(minutes=1))  # Dagster takes no less
    warn = fail - timedelta(hours=1)
    return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn if warn > timedelta(hours=1) else None)


@contextmanager
def explained(context: dg.AssetExecutionContext, backups: BackupSystem) -> Iterator[None]:
    """Turn our errors into Dagster's: what may pass is tried again, what will not fails at once, in one line."""
    try:
        yield
    except BackupError as error:
        failure = dg.Failure(str(error), metadata=_metadata(error), allow_retries=False)
        if error.transient and context.retry_number < MAX_RETRIES:
            wait = backups.retry_seconds * 2**context.retry_number
            context.log.warning(f"{error.account}. Trying again in {wait:.0f} s")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait) from failure
        # The words are the message; our frames would only bury them.
        raise failure from None


def _metadata(error: BackupError) -> dict[str, dg.MetadataValue]:
    words = {
        "what": error.what,
        "why": error.why,
        "said": error.said,
        "next": error.fix,
        "kind": type(error).__name__,
    }
    return {name: dg.MetadataValue.text(text) for name, text in words.items() if text}

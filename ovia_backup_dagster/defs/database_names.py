"""The names of one database's definitions: assets, ops, jobs, schedules, sensor, groups and pools.

A prefix distinguishes the names of several databases. The definitions themselves are elsewhere; ``policies`` decides
how Dagster treats a run.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from ovia_backup_dagster.settings.model import Settings

DAILY_BACKUP_JOB = "daily_backup_job"
FRESHNESS_ALERT_JOB = "freshness_alert_job"
DOCTOR_JOB = "doctor_job"
RESTORE_DRILL_JOB = "restore_drill_job"
RESTORE_JOB = "restore_job"
KEPT_DATABASES_JOB = "kept_databases_job"
HISTORY_PRUNING_JOB = "history_pruning_job"
OFFSITE_VERIFICATION_JOB = "offsite_verification_job"
BASE_BACKUP_JOB = "base_backup_job"
PITR_DRILL_JOB = "pitr_drill_job"

DAILY_BACKUP_SCHEDULE = "daily_backup_schedule"
RESTORE_DRILL_SCHEDULE = "restore_drill_schedule"
HISTORY_PRUNING_SCHEDULE = "history_pruning_schedule"
KEPT_DATABASES_SCHEDULE = "kept_databases_schedule"
OFFSITE_VERIFICATION_SCHEDULE = "offsite_verification_schedule"
BASE_BACKUP_SCHEDULE = "base_backup_schedule"
PITR_DRILL_SCHEDULE = "pitr_drill_schedule"
FRESHNESS_SENSOR = "backup_freshness_sensor"

DAILY_DUMP = "daily_dump"
DUMP_VERIFICATION = "dump_verification"
WEEKLY_PROMOTION = "weekly_promotion"
RETENTION_PRUNING = "retention_pruning"
FRESHNESS_ALERT = "backup_freshness_alert"
RESTORE_DRILL = "restore_drill"
DOCTOR = "backup_doctor"
BASE_BACKUP = "base_backup"
BASE_BACKUP_VERIFICATION = "base_backup_verification"
WAL_ARCHIVE_PRUNING = "wal_archive_pruning"
PITR_DRILL = "pitr_drill"

#: The assets of the daily backup, in order.
DAILY_CHAIN = (DAILY_DUMP, DUMP_VERIFICATION, WEEKLY_PROMOTION, RETENTION_PRUNING)
#: The assets of a base backup, in order.
BASE_CHAIN = (BASE_BACKUP, BASE_BACKUP_VERIFICATION, WAL_ARCHIVE_PRUNING)

#: Names that are unique within a code location: jobs, schedules and the sensor.
LOCATION_NAMES = (
    DAILY_BACKUP_JOB,
    FRESHNESS_ALERT_JOB,
    DOCTOR_JOB,
    RESTORE_DRILL_JOB,
    RESTORE_JOB,
    KEPT_DATABASES_JOB,
    HISTORY_PRUNING_JOB,
    OFFSITE_VERIFICATION_JOB,
    BASE_BACKUP_JOB,
    PITR_DRILL_JOB,
    DAILY_BACKUP_SCHEDULE,
    RESTORE_DRILL_SCHEDULE,
    HISTORY_PRUNING_SCHEDULE,
    KEPT_DATABASES_SCHEDULE,
    OFFSITE_VERIFICATION_SCHEDULE,
    BASE_BACKUP_SCHEDULE,
    PITR_DRILL_SCHEDULE,
    FRESHNESS_SENSOR,
)
#: The names of all assets of remotes begin with it.
_OFFSITE = "offsite_"
_ASSETS = (*DAILY_CHAIN, *BASE_CHAIN, FRESHNESS_ALERT, RESTORE_DRILL, PITR_DRILL, DOCTOR)
#: One of these names as a whole word, without a prefix.
_NAME = re.compile(rf"(?<![\w/])(?:{'|'.join((*LOCATION_NAMES, *_ASSETS))})(?![\w/])")


@dataclass(frozen=True, slots=True)
class DatabaseNames:
    """The names of one database's definitions.

    Attributes:
        prefix: distinguishes this database from others in the Dagster instance; empty for the only one.
        volume: the folder of its backups.
        shares_location: whether the code location may hold other databases. If so, the names of jobs, schedules, sensor
            and ops begin with the prefix, too; otherwise Dagster tells them apart by the code location.
    """

    prefix: str
    volume: Path
    shares_location: bool = False

    @classmethod
    def of(cls, settings: Settings, *, shares_location: bool = False) -> DatabaseNames:
        """The names for these settings."""
        return cls(settings.backup_asset_prefix, settings.backup_dir, shares_location)

    def key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.prefix, asset] if self.prefix else [asset])

    def asset_op(self, asset: str) -> str:
        """The name of the asset's op in run configuration."""
        return self.key(asset).to_python_identifier()

    def in_location(self, name: str) -> str:
        """The name of a job, schedule, sensor or op in its code location."""
        return self._prefixed(name) if self.shares_location else name

    def in_words(self, text: str) -> str:
        """The text with the name of each mentioned job, asset or trigger replaced by its name for this database."""
        if not (self.shares_location and self.prefix):
            return text
        return _NAME.sub(self._in_words, text)

    def _in_words(self, found: re.Match[str]) -> str:
        name = found[0]
        return self.key(name).to_user_string() if name in _ASSETS else self.in_location(name)

    @property
    def backup_group(self) -> str:
        return self._prefixed("backup")

    @property
    def alert_group(self) -> str:
        return self._prefixed("alerts")

    @property
    def volume_pool(self) -> str:
        """The pool that lets one run at a time work on a volume.

        The lock on the volume guarantees that; the pool lets the UI show that a run waits. Dagster applies the limit
        of a pool when it takes a run from the queue; dagster.yaml sets a tag limit as well.
        """
        return self._of_volume("backup_volume")

    @property
    def drill_pool(self) -> str:
        """The pool of drills. They only read the volume and may take hours: only drills wait for each other here."""
        return self._prefixed("restore_drill")

    @property
    def restore_pool(self) -> str:
        """The pool of restores: one at a time (the lock in ``restores/`` guarantees it). None waits for a drill."""
        return self._of_volume("restore")

    @property
    def base_pool(self) -> str:
        """The pool of base backups: one at a time (a lock of their own guarantees it). A dump may run beside one."""
        return self._of_volume("base_backup")

    def remote_pool(self, remote: str) -> str:
        """The pool of a remote: one run at a time works there (its lock on the volume guarantees it)."""
        return self._prefixed(f"offsite_{remote}")

    @staticmethod
    def offsite_copy(remote: str) -> str:
        """The asset that copies to a remote; a name of Dagster has no hyphens."""
        return f"{_OFFSITE}copy_{remote.replace('-', '_')}"

    @staticmethod
    def offsite_pruning(remote: str) -> str:
        """The asset that removes copies from a remote."""
        return f"{_OFFSITE}pruning_{remote.replace('-', '_')}"

    @staticmethod
    def offsite_verification(remote: str) -> str:
        """The asset that checks the copies on a remote."""
        return f"{_OFFSITE}verification_{remote.replace('-', '_')}"

    @property
    def schedule_minute(self) -> int:
        """The minute of the default schedules: the same at each load, and different for most databases."""
        return int.from_bytes(hashlib.sha256(self.prefix.encode()).digest()[:4]) % 60

    def _of_volume(self, name: str) -> str:
        """The name of a pool that all databases on one volume share.

        In separate code locations the same path may be another volume, so there the prefix tells them apart.
        """
        if not self.shares_location:
            return self._prefixed(name)
        folder = re.sub(r"\W", "_", self.volume.name, flags=re.ASCII)
        mark = hashlib.sha256(str(self.volume).encode()).hexdigest()[:6]
        return f"{name}_{folder}_{mark}"

    def _prefixed(self, name: str) -> str:
        return f"{self.prefix}_{name}" if self.prefix else name


def is_offsite(key: dg.AssetKey) -> bool:
    """Whether an asset is about copies on a remote, of any database."""
    return key.path[-1].startswith(_OFFSITE)

"""Point-in-time recovery: the WAL that is received, base backups, and how far back a restore can go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from ovia_backup_dagster.settings.secret_files import password_from
from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import CronExpression, Identifier, number


def _slot(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]{1,63}", value):
        raise ValueError(f"{value!r} is not the name of a slot: letters a-z, digits and underscores")
    return value


def _rate(value: str) -> str:
    # The limits are those of pg_basebackup --max-rate: 32 kB to 1 GB a second.
    match = re.fullmatch(r"(\d{1,7})([kM]?)", value)
    if value and not (match and 32 <= int(match[1]) * (1024 if match[2] == "M" else 1) <= 1024 * 1024):
        raise ValueError(f"{value!r} is not a rate of pg_basebackup: 32k to 1024M bytes a second")
    return value


class PitrSettings(SettingsGroup):
    """The WAL receiver and its role, base backups, and the recovery window."""

    title = "Point-in-time recovery"

    pitr_enabled: bool = setting(
        "PITR_ENABLED",
        default=False,
        help="Whether WAL is received and base backups are made, so that a restore can go to any instant.",
        shown="false",
    )
    wal_postgres_user: Identifier = setting(
        "WAL_POSTGRES_USER",
        default="ovia_wal",
        help="The role that receives WAL and makes base backups, with REPLICATION: `deploy/wal-role.sql`.",
    )
    wal_postgres_password: SecretStr | None = setting(
        "WAL_POSTGRES_PASSWORD", help="Its password. Or use the next one, or `PGPASSFILE`.", shown="none"
    )
    wal_postgres_password_file: Path | None = setting(
        "WAL_POSTGRES_PASSWORD_FILE", help="File whose first line is the password; read at each use.", shown="none"
    )
    wal_slot: Annotated[str, AfterValidator(_slot)] = setting(
        "WAL_SLOT",
        default="ovia_backup",
        help="The replication slot that keeps WAL on the server until it is here. One per receiver.",
    )
    wal_beacon_seconds: Annotated[float, number(1, 3600, "seconds between 1 and an hour")] = setting(
        "WAL_BEACON_SECONDS",
        default=10.0,
        help="How often a message is written into the WAL and awaited here: that measures what would be lost.",
        shown="10",
    )
    rpo_max_seconds: Annotated[float, number(1, 7 * 86400, "seconds between 1 and a week")] = setting(
        "RPO_MAX_SECONDS",
        default=300.0,
        help="An alert is sent when the newest change that is safe here is older than this.",
        shown="300",
    )
    recovery_window_days: Annotated[float, number(0, 3660, "days between 0 and 10 years", above=True)] = setting(
        "RECOVERY_WINDOW_DAYS", default=7.0, help="How far back any instant can be recovered.", shown="7"
    )
    base_backup_schedule: CronExpression = setting(
        "BASE_BACKUP_SCHEDULE", default="30 1 * * 6", help="When to make a base backup, as a cron expression."
    )
    base_backup_max_rate: Annotated[str, AfterValidator(_rate)] = setting(
        "BASE_BACKUP_MAX_RATE",
        default="",
        help="Limit of a base backup, in bytes a second, such as `50M` (pg_basebackup's `--max-rate`).",
        shown="no limit",
    )

    def wal_password(self) -> SecretStr | None:
        """The password of the role that receives WAL. Its file is read at each call.

        Raises:
            SettingsError: the file cannot be read, or is empty.
        """
        if self.wal_postgres_password is not None or self.wal_postgres_password_file is None:
            return self.wal_postgres_password
        return password_from("WAL_POSTGRES_PASSWORD_FILE", self.wal_postgres_password_file)

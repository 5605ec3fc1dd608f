"""Remotes: where copies go, to whom they are encrypted, and how many are kept there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import (
    Bandwidth,
    CronExpression,
    Kept,
    KeptOrNone,
    Recipients,
    Remotes,
    number,
)


class OffsiteSettings(SettingsGroup):
    """Copies on remotes."""

    title = "Copies on remotes"

    offsite_remotes: Remotes = setting(
        "OFFSITE_REMOTES",
        default=(),
        help="Where each verified backup is copied to: `name=remote:path, …`, where rclone's configuration file has "
        "`remote`; a mounted folder is `name=/folder`. One place per database.",
        shown="none",
    )
    rclone_config: Path | None = setting(
        "RCLONE_CONFIG",
        help="rclone's configuration file, with the credentials of the remotes: a secret.",
        shown="none: folders only",
    )
    offsite_recipients: Recipients = setting(
        "OFFSITE_RECIPIENTS",
        default=(),
        help="To whom copies are encrypted: recipients of age (`age1…`), separated by commas. The identity that "
        "decrypts does not belong on the host that makes backups.",
        shown="none",
    )
    offsite_identity_file: Path | None = setting(
        "OFFSITE_IDENTITY_FILE",
        help="The identity of age that decrypts: set it where copies are fetched, drilled or read back.",
        shown="none",
    )
    offsite_daily_keep: Kept = setting(
        "OFFSITE_DAILY_KEEP", default=14, help="Days of which each remote keeps a backup."
    )
    offsite_weekly_keep: Kept = setting(
        "OFFSITE_WEEKLY_KEEP", default=8, help="Weeks of which each remote keeps a backup."
    )
    offsite_monthly_keep: KeptOrNone = setting(
        "OFFSITE_MONTHLY_KEEP", default=12, help="Months of which each remote keeps a backup."
    )
    offsite_yearly_keep: KeptOrNone = setting(
        "OFFSITE_YEARLY_KEEP", default=3, help="Years of which each remote keeps a backup."
    )
    offsite_lock_days: Annotated[int, number(0, 36500, "days between 0 and 100 years")] = setting(
        "OFFSITE_LOCK_DAYS",
        default=0,
        help="For how many days an S3 store locks each new object (object lock, mode COMPLIANCE); 0 for no lock.",
    )
    offsite_max_age_hours: Annotated[float, number(0, 24 * 366, "hours between 0 and a year", above=True)] = setting(
        "OFFSITE_MAX_AGE_HOURS",
        default=50.0,
        help="An alert is sent when the newest copy on a remote is older than this.",
        shown="50",
    )
    offsite_verification_schedule: CronExpression = setting(
        "OFFSITE_VERIFICATION_SCHEDULE",
        default="0 7 * * 0",
        help="When to check the copies on every remote, as a cron expression.",
    )
    offsite_bandwidth: Bandwidth = setting(
        "OFFSITE_BANDWIDTH",
        default="",
        help="rclone's `--bwlimit`: `10M` bytes a second, or by time of day `08:00,512k 19:00,off`.",
        shown="no limit",
    )
    offsite_stall_minutes: Annotated[float, number(0, 24 * 60, "minutes between 0 and a day", above=True)] = setting(
        "OFFSITE_STALL_MINUTES",
        default=10.0,
        help="A transfer that does not move for so long is ended.",
        shown="10",
    )

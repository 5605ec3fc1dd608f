"""How many backups of each tier are kept, and which are promoted to it. ``retention.plan`` uses these settings."""

from __future__ import annotations

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import Kept, KeptOrNone, WeekdayName


class RetentionSettings(SettingsGroup):
    """One setting per tier, and the day of the weekly backup."""

    title = "Retention"

    backup_weekly_day: WeekdayName = setting(
        "BACKUP_WEEKLY_DAY",
        default="sunday",
        help="The day of the week whose dump is kept as the weekly backup.",
    )
    backup_daily_keep: Kept = setting("BACKUP_DAILY_KEEP", default=7, help="Days with a verified dump to keep.")
    backup_weekly_keep: Kept = setting("BACKUP_WEEKLY_KEEP", default=4, help="Weeks to keep.")
    backup_monthly_keep: KeptOrNone = setting(
        "BACKUP_MONTHLY_KEEP",
        default=0,
        help="Months to keep the first verified dump of; 0: no monthly backups are made.",
    )
    backup_yearly_keep: KeptOrNone = setting(
        "BACKUP_YEARLY_KEEP", default=0, help="Years to keep the first verified dump of; 0: no yearly backups are made."
    )

"""How many backups of each tier are kept, and which become the tier's. What decides by it is ``retention.plan``."""

from __future__ import annotations

from ovia_backup_dagster.settings.registry import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import Kept, WeekdayName


class RetentionSettings(SettingsGroup):
    """One setting a tier, and the day of the weekly one."""

    title = "Retention"

    backup_weekly_day: WeekdayName = setting(
        "BACKUP_WEEKLY_DAY", default="sunday", help="Whose dump is kept as the weekly."
    )
    backup_daily_keep: Kept = setting("BACKUP_DAILY_KEEP", default=7, help="Days with a proven dump to keep.")
    backup_weekly_keep: Kept = setting("BACKUP_WEEKLY_KEEP", default=4, help="Weeks to keep.")

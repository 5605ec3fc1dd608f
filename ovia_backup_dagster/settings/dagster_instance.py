"""The Dagster instance that runs the backups: names, address, and how long its history is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import AssetPrefix, WebAddress, number


class DagsterSettings(SettingsGroup):
    """Settings for Dagster alone; the command line uses none of them."""

    title = "Dagster"

    backup_asset_prefix: AssetPrefix = setting(
        "BACKUP_ASSET_PREFIX",
        default="",
        help="Prefix of every asset key, group and pool. For a second database in the same Dagster.",
        shown="none",
    )
    dagster_public_url: Annotated[WebAddress, AfterValidator(lambda url: url.rstrip("/"))] | None = setting(
        "DAGSTER_PUBLIC_URL", help="Where people reach the UI; alerts link to it.", shown="none"
    )
    # At least 30: a continuing alert needs the runs of its first days to know whether people were notified.
    dagster_keep_runs_days: Annotated[int, number(30, 36600, "days between 30 and a century")] = setting(
        "DAGSTER_KEEP_RUNS_DAYS",
        default=400,
        help="Days to keep Dagster's runs, with their events and output: a year of drills stays plotted.",
    )

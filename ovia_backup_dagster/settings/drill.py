"""When and where drills restore, and their limits. The settings of restores are in ``restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import CronExpression, SocketFolder, jobs, number


class DrillSettings(SettingsGroup):
    """Schedule, place, sandbox and limits of drills."""

    title = "Drills"

    drill_schedule: CronExpression = setting(
        "DRILL_SCHEDULE", default="0 5 1 * *", help="When to drill automatically, as a cron expression."
    )
    drill_where: Literal["auto", "throwaway", "database"] = setting(
        "DRILL_WHERE",
        default="auto",
        help="Where drills restore to: `throwaway`, a cluster beside the run; `database`, a scratch database "
        "`<db>_restore_test` on the server that `RESTORE_POSTGRES_*` name; `auto`, the first, or the second where "
        "server programs are missing and `RESTORE_POSTGRES_HOST` is set.",
    )
    drill_jobs: Annotated[int, jobs(2)] = setting(
        "DRILL_JOBS", default=0, help="Parallel restore jobs, at least 2.", shown="the cores"
    )
    drill_dir: SocketFolder = setting(
        "DRILL_DIR",
        default=Path("/tmp"),  # noqa: S108 - mkdtemp makes a private folder in it
        help="Where throwaway clusters are made; at most 60 bytes long. Needs 1.25 times the database's size.",
    )
    drill_sandbox: Literal["auto", "require", "off"] = setting(
        "DRILL_SANDBOX",
        default="auto",
        help="Whether what runs or parses a backup's content is confined (Landlock and seccomp): `auto`, where the "
        "kernel can, and the evidence says how; `require`, and where it cannot, drills and verification are refused; "
        "`off`.",
    )
    drill_check_command: str = setting(
        "DRILL_CHECK_COMMAND",
        default="",
        help="A shell command, or an `.sql` file, to run on each drill's copy: migrations, an application's health "
        "check. It gets `DATABASE_URL` and libpq's `PG*`, and none of these variables; what it prints is logged "
        "without our secrets.",
        shown="none",
    )
    drill_max_age_days: Annotated[float, number(0, 3660, "days between 0 and ten years", above=True)] = setting(
        "DRILL_MAX_AGE_DAYS",
        default=35.0,
        help="An alert is sent when the last drill that passed is older than this.",
        shown="35",
    )
    drill_max_hours: Annotated[float, number(0, 24 * 31, "hours between 0 and a month", above=True)] = setting(
        "DRILL_MAX_HOURS", default=6.0, help="A drill that takes longer is ended, and has failed.", shown="6"
    )

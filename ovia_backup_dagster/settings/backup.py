"""When, where and how dumps are made, and what they must contain. ``retention`` has how long they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from ovia_backup_dagster.core.compressions import AUTOMATIC, is_compression
from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import AbsoluteFolder, CommaList, CronExpression, TimeZone, number

#: Tables whose absence makes a dump of Ovia's own database bad.
OVIA_TABLES = ("people", "identities", "person_identity_links")


def _compression(value: str) -> str:
    if not is_compression(value):
        raise ValueError(f"{value!r} is neither auto nor pg_dump's spelling, such as zstd:3 or gzip:1")
    return value


class BackupSettings(SettingsGroup):
    """The volume, the schedule, the dump, and the expectations for it."""

    title = "Backups"

    backup_dir: AbsoluteFolder = setting("BACKUP_DIR", default=Path("/backups"), help="The backup volume.")
    backup_schedule: CronExpression = setting(
        "BACKUP_SCHEDULE", default="0 3 * * *", help="When to back up, as a cron expression."
    )
    backup_timezone: TimeZone = setting(
        "BACKUP_TIMEZONE", default="UTC", help="Time zone of the schedule, of days and of weeks. Names are in UTC."
    )
    backup_expected_tables: CommaList | None = setting(
        "BACKUP_EXPECTED_TABLES",
        help="Comma list of tables (`name` or `schema.name`) without which a dump is bad.",
        shown=f"{','.join(OVIA_TABLES)} for database `ovia`, else none",
    )
    backup_require_rows: bool | None = setting(
        "BACKUP_REQUIRE_ROWS", help="Whether those tables must hold rows.", shown="true for database `ovia`, else false"
    )
    backup_compression: Annotated[str, AfterValidator(_compression)] = setting(
        "BACKUP_COMPRESSION",
        default="auto",
        help=f"`auto` ({' where both programs can, else '.join(AUTOMATIC)}), or pg_dump's own spelling.",
    )
    backup_lock_wait_minutes: Annotated[float, number(0, 24 * 60, "minutes between 0 and a day")] = setting(
        "BACKUP_LOCK_WAIT_MINUTES", default=30.0, help="How long to wait for another operation's lock.", shown="30"
    )
    # 0 is refused: a limit of a day has the same effect as none.
    backup_stall_minutes: Annotated[float, number(0, 24 * 60, "minutes, more than 0 and at most a day", above=True)] = (
        setting(
            "BACKUP_STALL_MINUTES",
            default=30.0,
            help="How long a client program, such as pg_dump, may make no progress while the server reports none "
            "of it either; then it is ended.",
            shown="30",
        )
    )

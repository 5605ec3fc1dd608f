"""Where backups are restored to, as which role, and how long the replaced database is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import SecretStr

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import Host, Identifier, Port, jobs, number


class RestoreSettings(SettingsGroup):
    """What differs from the connection that dumps, and the limits of restores."""

    title = "Restores"

    restore_postgres_host: Host | None = setting(
        "RESTORE_POSTGRES_HOST", help="Server to restore to, and for scratch databases.", shown="`POSTGRES_HOST`"
    )
    restore_postgres_port: Port | None = setting("RESTORE_POSTGRES_PORT", help="Its port.", shown="`POSTGRES_PORT`")
    restore_postgres_user: Identifier | None = setting(
        "RESTORE_POSTGRES_USER",
        help="Role there that restores: what `deploy/restore-role.sql` creates. A superuser would run the functions in "
        "a backup as one.",
        shown="`POSTGRES_USER`",
    )
    restore_postgres_password: SecretStr | None = setting(
        "RESTORE_POSTGRES_PASSWORD",
        help="Its password; or use the next one.",
        shown="none; with the same role, its own",
    )
    restore_postgres_password_file: Path | None = setting(
        "RESTORE_POSTGRES_PASSWORD_FILE", help="File whose first line is that password.", shown="none"
    )
    restore_jobs: Annotated[int, jobs(1)] = setting(
        "RESTORE_JOBS", default=0, help="Parallel restore jobs, at least 1.", shown="the cores"
    )
    restore_keep_days: Annotated[float, number(0, 3660, "days between 0 and ten years")] = setting(
        "RESTORE_KEEP_DAYS",
        default=14.0,
        help="Days that the database which a restore replaced is kept, to go back to; 0 is forever. An alert is "
        "sent two days before.",
        shown="14",
    )

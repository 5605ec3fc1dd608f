"""When and where people are notified that backups are stale, and commands that messages add."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import SecretStr

from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.settings.secret_files import urls_from
from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import HintLines, NotifyUrls, number


class NotificationSettings(SettingsGroup):
    """The age that raises an alert, Apprise's URLs, and the deployment's commands."""

    title = "Alerts and messages"

    backup_max_age_hours: Annotated[float, number(0, 24 * 366, "hours between 0 and a year", above=True)] = setting(
        "BACKUP_MAX_AGE_HOURS",
        default=26.0,
        help="An alert is sent when the newest dump that is not bad is older than this.",
        shown="26",
    )
    backup_notify_urls: NotifyUrls = setting(
        "BACKUP_NOTIFY_URLS",
        default=(),
        help="Where alerts go: Apprise URLs, separated by commas. Or use the next one.",
        shown="none",
    )
    backup_notify_urls_file: Path | None = setting(
        "BACKUP_NOTIFY_URLS_FILE",
        help="File with these URLs, separated by commas or lines; lines that begin with `#` are comments. Read at each "
        "use.",
        shown="none",
    )
    deployment_hints: HintLines = setting(
        "DEPLOYMENT_HINTS",
        default=Hints(),
        help="Commands of this deployment that messages add, one per line: `NAME: COMMAND`. NAME is `server` (whether "
        "it runs, and its log), `disk` (the server's), `network`, `upgrade` (of the server), `volume`, `daemon` or "
        "`code_server`. `deploy/stack.yml` sets them.",
        shown="none",
    )

    def notify_urls(self) -> tuple[SecretStr, ...]:
        """The URLs that alerts are sent to. The file is read at each call, so that a rotated file is used.

        Raises:
            SettingsError: no alert can be sent, because the file cannot be read or holds no URLs.
        """
        path = self.backup_notify_urls_file
        if path is None:
            return self.backup_notify_urls
        try:
            return (*self.backup_notify_urls, *urls_from("BACKUP_NOTIFY_URLS_FILE", path))
        except SettingsError:
            # Both are set. That is a problem, but its alert must still reach people.
            if self.backup_notify_urls:
                return self.backup_notify_urls
            raise

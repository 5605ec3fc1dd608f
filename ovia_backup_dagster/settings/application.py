"""The application that uses the database: the services that a restore stops and starts, and their health check."""

from __future__ import annotations

from ovia_backup_dagster.settings.setting_definition import SettingsGroup, setting
from ovia_backup_dagster.settings.value_types import CommaList, WebAddress


class ApplicationSettings(SettingsGroup):
    """Services of Docker Swarm, and the address of the application's health check."""

    title = "Application"

    swarm_app_services: CommaList = setting(
        "SWARM_APP_SERVICES",
        default=(),
        help="Comma list of Docker services that write to the database: a restore stops them, and starts them again.",
        shown="none",
    )
    swarm_migrate_service: str = setting(
        "SWARM_MIGRATE_SERVICE",
        default="",
        help="The one-shot service that migrates a restored database.",
        shown="none",
    )
    swarm_docker_url: str | None = setting(
        "SWARM_DOCKER_URL", help="Where Docker's manager answers.", shown="`DOCKER_HOST`, else its socket"
    )
    health_url: WebAddress = setting(
        "HEALTH_URL",
        default="",
        help="The URL that answers when the services are healthy; checked after a restore.",
        shown="none",
        secret=True,
    )

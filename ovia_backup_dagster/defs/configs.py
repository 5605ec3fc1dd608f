"""What the launchpad asks. Types only: each guard stands in ``core``, because validators run too late here."""

from __future__ import annotations

import dagster as dg
from pydantic import Field


class BackupChoice(dg.Config):
    """Which backup an asset works on."""

    backup: str = Field(
        default="",
        description="Name of a backup on the volume, or `latest`. Empty: the dump that this run made; in a run "
        "without a dump, the newest.",
    )


class PruningConfig(dg.Config):
    """How to prune."""

    dry_run: bool = Field(default=False, description="Only say what would be removed, and why.")


class AlertConfig(dg.Config):
    """Why the alert is materialized."""

    all_clear: bool = Field(default=False, description="Say that it is over, instead of what is wrong.")
    episode: str = Field(default="", description="When the trouble began; set by the sensor.")

"""What the launchpad asks. Types only: each guard stands in ``core``, because validators run too late here."""

from __future__ import annotations

from enum import StrEnum

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


class HistoryConfig(dg.Config):
    """How to end Dagster's history."""

    dry_run: bool = Field(default=False, description="Only say which runs would be removed.")


class DrillPlace(StrEnum):
    """Where a drill restores to. The launchpad takes a member's name, not its value: they are the same."""

    setting = "setting"
    auto = "auto"
    throwaway = "throwaway"
    database = "database"


class DrillConfig(dg.Config):
    """How to drill."""

    backup: str = Field(
        default="latest",
        description="Name of a backup in either tier, or `latest`: the newest that is not known to be bad.",
    )
    where: DrillPlace = Field(
        default=DrillPlace.setting,
        description="`throwaway`: a PostgreSQL of its own beside the run. `database`: a scratch database on the server "
        "that RESTORE_POSTGRES_* name. `auto`: whichever is possible. `setting`: as DRILL_WHERE says.",
    )
    jobs: int = Field(default=0, ge=0, le=64, description="Restored at a time, at least 2; 0: as DRILL_JOBS says.")
    keep_copy: bool = Field(
        default=False,
        description="Leave the copy for a look, until the next drill. In a container of its own a throwaway copy ends "
        "with the run: restore into a database then.",
    )


class AlertConfig(dg.Config):
    """Why the alert is materialized."""

    all_clear: bool = Field(default=False, description="Say that it is over, instead of what is wrong.")
    episode: str = Field(default="", description="When the trouble began; set by the sensor.")

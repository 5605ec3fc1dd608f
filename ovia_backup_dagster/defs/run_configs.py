"""What the launchpad asks. Types only: guards stand in ``core`` and ``restoration``; validators run too late here."""

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


class VerificationConfig(BackupChoice):
    """How to verify."""

    accept: bool = Field(
        default=False,
        description="The dump is of another cluster than those before it, or its tables are gone, and that is meant: "
        "it is judged again, and is what later dumps are compared with.",
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
        description="Name of a backup in any tier, or `latest`: the newest that is not known to be bad.",
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
    trust_archive: bool = Field(
        default=False,
        description="With `database`: restore even where a superuser would run functions of others on the cluster that "
        "is backed up.",
    )


class RestoreAction(StrEnum):
    """What is asked for. The launchpad takes a member's name, not its value: they are the same."""

    plan = "plan"
    plan_undo = "plan_undo"
    restore = "restore"
    undo = "undo"
    resume = "resume"
    abort = "abort"


class RestoreMode(StrEnum):
    """How a backup gets to its place."""

    swap = "swap"
    drop = "drop"
    new = "new"


class RestoreConfig(dg.Config):
    """What to restore, and how."""

    action: RestoreAction = Field(
        default=RestoreAction.plan,
        description="`plan` only says what would be done, and prints the word for `confirm`; `plan_undo` does so of an "
        "undo. `restore` does it. `undo` swaps back to the database before. `resume` and `abort` finish, or put back, "
        "what a killed run had begun.",
    )
    confirm: str = Field(
        default="",
        description="The word that a plan of the same options has printed, such as `ovia-20261129T183005Z`: without "
        "it, nothing that touches the live database is done. It holds for an hour, and once. With `abort`: the word "
        "that an abort has told, to give up a restore that can be neither finished nor put back.",
    )
    backup: str = Field(
        default="latest",
        description="Name of a backup in any tier, or `latest`: the newest that is not known to be bad.",
    )
    kept: str = Field(
        default="", description="With `undo` and `plan_undo`: the kept database to go back to. Empty: the newest."
    )
    mode: RestoreMode = Field(
        default=RestoreMode.swap,
        description="`swap`: beside the live database, proven, then in its place; can be undone. `drop`: for a server "
        "too small for two; cannot be undone. `new`: into a database of its own.",
    )
    into: str = Field(default="", description="With `new`: the database to make. Empty: `<db>_restore_<time>`.")
    jobs: int = Field(default=0, ge=0, le=64, description="Restored at a time; 0: as RESTORE_JOBS says.")
    stop_services_first: bool = Field(
        default=False, description="Stop the services of SWARM_APP_SERVICES at once, rather than at the swap."
    )
    replicas: dict[str, int] = Field(
        default={}, description="Replicas of a service in the end, if not as before: `{ovia_ovia-api: 1}`."
    )
    new_host: bool = Field(default=False, description="The server is not the one that was backed up.")
    create_roles: bool = Field(
        default=False,
        description="Make the roles that the server lacks, as they were saved, but without passwords and without power "
        "over others.",
    )
    privileged_roles: list[str] = Field(
        default=[],
        description="Roles to make with all that they had, as SUPERUSER, BYPASSRLS and memberships.",
    )
    even_if_damaged: bool = Field(default=False, description="With `new`: restore what can be, say what was lost.")
    auto_undo: bool = Field(default=False, description="Swap back if the migration fails, or HEALTH_URL stays red.")
    without_services: bool = Field(
        default=False, description="Neither stop, migrate, start nor ask services, as when Docker does not answer."
    )


class AlertConfig(dg.Config):
    """Why the alert is materialized."""

    all_clear: bool = Field(default=False, description="Say that it is over, instead of what is wrong.")
    episode: str = Field(default="", description="When the trouble began; set by the sensor.")

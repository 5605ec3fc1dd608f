"""The fields of the Launchpad. Types only: guards are in ``core`` and ``restoration``; validators run too late here."""

from __future__ import annotations

from enum import StrEnum

import dagster as dg
from pydantic import Field


class BackupChoice(dg.Config):
    """Which backup an asset works on."""

    backup: str = Field(
        default="",
        description="Name of a backup on the volume, or `latest`. Empty: the dump of this run, or the newest dump if "
        "this run makes none.",
    )


class VerificationConfig(BackupChoice):
    """How to verify."""

    accept: bool = Field(
        default=False,
        description="Accept a dump of another cluster than the earlier dumps, or with tables missing, because that is "
        "intended. It is judged again, and later dumps are compared with it.",
    )


class PruningConfig(dg.Config):
    """How to prune."""

    dry_run: bool = Field(default=False, description="Only show what would be removed, and why.")


class BaseChoice(dg.Config):
    """Which base backup an asset works on."""

    base: str = Field(
        default="",
        description="Name of a base backup, such as `2026-11-28_013000`. Empty: the base backup of this run, or the "
        "newest if this run makes none.",
    )


class HistoryConfig(dg.Config):
    """How to prune Dagster's history."""

    dry_run: bool = Field(default=False, description="Only show which runs would be removed.")


class DrillPlace(StrEnum):
    """Where a drill restores to. The Launchpad takes a member's name, not its value, so both are the same."""

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
        description="`throwaway`: a temporary PostgreSQL server beside the run. `database`: a scratch database on the "
        "server that RESTORE_POSTGRES_* name. `auto`: the one that is possible. `setting`: the value of DRILL_WHERE.",
    )
    jobs: int = Field(
        default=0, ge=0, le=64, description="Parallel restore jobs, at least 2; 0: the value of DRILL_JOBS."
    )
    keep_copy: bool = Field(
        default=False,
        description="Keep the restored copy for inspection until the next drill. If each run has its own container, a "
        "throwaway copy ends with the run; use `database` then.",
    )
    trust_archive: bool = Field(
        default=False,
        description="With `database`: restore even if a superuser would run other users' functions on the cluster that "
        "is backed up.",
    )


class RestoreAction(StrEnum):
    """What the run does. The Launchpad takes a member's name, not its value, so both are the same."""

    plan = "plan"
    plan_undo = "plan_undo"
    restore = "restore"
    undo = "undo"
    resume = "resume"
    abort = "abort"


class RestoreMode(StrEnum):
    """How a backup becomes a database."""

    swap = "swap"
    drop = "drop"
    new = "new"


class RestoreConfig(dg.Config):
    """What to restore, and how."""

    action: RestoreAction = Field(
        default=RestoreAction.plan,
        description="`plan` only shows what would be done, and prints the word for `confirm`; `plan_undo` does so for "
        "an undo. `restore` restores. `undo` swaps back to a replaced database. `resume` finishes what a killed "
        "run began; `abort` reverts it.",
    )
    confirm: str = Field(
        default="",
        description="The word printed by a plan of the same options, such as `ovia-20261129T183005Z`. Without it, no "
        "action touches the live database. Valid once, for an hour. With `abort`: the word printed by an earlier "
        "abort, to give up a restore that can be neither finished nor reverted.",
    )
    backup: str = Field(
        default="latest",
        description="Name of a backup in any tier, or `latest`: the newest that is not known to be bad. Or what a plan "
        "with `to` printed: `recovered/...`.",
    )
    to: str = Field(
        default="",
        description="With `plan`: recover the database as it was at an instant, and plan with that: a time such as "
        "`2026-11-30 10:00:01` or `5 minutes ago`, a position in the WAL, `xid:N`, a restore point, or "
        "`before-last-drop`. The plan prints the `backup` to restore.",
    )
    kept: str = Field(
        default="", description="With `undo` and `plan_undo`: the replaced database to swap back to. Empty: the newest."
    )
    mode: RestoreMode = Field(
        default=RestoreMode.swap,
        description="`swap`: restore beside the live database, compare every row, then swap; can be undone. `drop`: "
        "drop the live database first, on a server too small for both; cannot be undone. `new`: restore into a new "
        "database.",
    )
    tables: list[str] = Field(
        default=[],
        description="Only these tables: restore the backup into a separate database, compare, copy them into a new "
        "schema of the live database, and print the statement that inserts the missing rows. No table there is "
        "changed; leave `mode` as it is.",
    )
    into: str = Field(default="", description="With `new`: the database to create. Empty: `<db>_restore_<time>`.")
    jobs: int = Field(default=0, ge=0, le=64, description="Parallel restore jobs; 0: the value of RESTORE_JOBS.")
    stop_services_first: bool = Field(
        default=False, description="Stop the services of SWARM_APP_SERVICES at the start, not only at the swap."
    )
    replicas: dict[str, int] = Field(
        default={}, description="Replicas of a service after the restore, if not as before: `{ovia_ovia-api: 1}`."
    )
    new_host: bool = Field(default=False, description="The server is not the one that was backed up.")
    create_roles: bool = Field(
        default=False,
        description="Create the roles that the server lacks, as they were saved, but without passwords and without "
        "privileges over other roles.",
    )
    privileged_roles: list[str] = Field(
        default=[],
        description="Roles to create with all their attributes, such as SUPERUSER and BYPASSRLS, and memberships.",
    )
    even_if_damaged: bool = Field(
        default=False, description="With `new`: restore what is readable, and report what was lost."
    )
    auto_undo: bool = Field(
        default=False, description="Swap back if the migration fails, or if HEALTH_URL does not become healthy."
    )
    without_services: bool = Field(
        default=False, description="Do not stop, migrate, start or query any services; for when Docker does not answer."
    )


class AlertConfig(dg.Config):
    """Why the alert is materialized."""

    all_clear: bool = Field(default=False, description="Send the all-clear if nothing is wrong.")
    episode: str = Field(default="", description="When the trouble began (UTC); set by the sensor.")


class PitrDrillConfig(dg.Config):
    """Which dump is compared with a recovery."""

    backup: str = Field(
        default="latest",
        description="Name of a verified backup, or `latest`: the newest that says which commit it ends with.",
    )

"""The backup system of one database, built from its settings and used by both Dagster and the command line.

Only composition belongs here. Each part is built on access, so that loading never fails; a part raises
``SettingsError`` if the settings are invalid.

A new part that acts on each backup, such as a copy to a remote, is built here and called by ``defs.backup_assets`` and
by a command of ``cli``. A figure about the state of the backups, such as a metric, comes from ``health.condition``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.core.ledger import UNSIGNED
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.notifications.apprise_sender import Notifier
from ovia_backup_dagster.postgres.programs import Connection, Programs, Variables
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster.postgres.secrets import Secrets
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.settings.model import Settings, secret_variables

if TYPE_CHECKING:
    from ovia_backup_dagster.drill.placement import Choice
    from ovia_backup_dagster.drill.runner import Driller
    from ovia_backup_dagster.offsite.encryption import Age
    from ovia_backup_dagster.offsite.fetching import Fetcher
    from ovia_backup_dagster.offsite.operations import RemoteOperations
    from ovia_backup_dagster.offsite.rclone import Remote
    from ovia_backup_dagster.offsite.rclone_program import Program
    from ovia_backup_dagster.offsite.remote_standing import RemoteStanding
    from ovia_backup_dagster.pitr_parts import PitrParts
    from ovia_backup_dagster.postgres.dump import Dumper
    from ovia_backup_dagster.postgres.verification import Verifier
    from ovia_backup_dagster.restoration.runner import Restorations
    from ovia_backup_dagster.signing.statement_log import StatementLog


@dataclass(frozen=True)
class BackupSystem:
    """The parts, built from the settings.

    A part that acts on a server or a volume raises ``SettingsError`` if the settings are invalid.

    Attributes:
        settings: the database's settings.
        retry_seconds: how long to wait before the first retry after a transient failure.
    """

    settings: Settings
    retry_seconds: float = 30.0

    @property
    def watched(self) -> BackupSystem:
        """The same system for monitoring: invalid settings are a reason to alert, not a reason to stop monitoring.

        Raises:
            SettingsError: POSTGRES_HOST is not set, so there is nothing to monitor.
        """
        if self.settings.postgres_host is None:
            self.settings.require()
        # Monitoring signs nothing, so that a signing key that cannot be used does not stop it.
        update = {"problems": (), "backup_signing_key_file": None}
        return BackupSystem(self.settings.model_copy(update=update), self.retry_seconds)

    @property
    def settings_error(self) -> SettingsError | None:
        """Why the settings, or the keys that they name, cannot be used, if they cannot."""
        try:
            self.settings.require()
            self.statement_log  # noqa: B018 - reads the keys
        except SettingsError as error:
            return error
        return None

    @property
    def catalog(self) -> Catalog:
        self.settings.require()
        settings = self.settings
        wait_seconds = settings.backup_lock_wait_minutes * 60
        return Catalog(settings.backup_dir, settings.postgres_db, wait_seconds, ledger=self.statement_log or UNSIGNED)

    @property
    def statement_log(self) -> StatementLog | None:
        """The signed log; ``None`` without a key.

        Raises:
            SettingsError: a key cannot be used, or the two are not of one pair.
        """
        return _statement_log(self.settings)

    @property
    def required_statement_log(self) -> StatementLog:
        """The signed log, for commands that are about it.

        Raises:
            SettingsError: there is none, or a key cannot be used.
        """
        if (log := self.statement_log) is None:
            raise SettingsError("BACKUP_VERIFY_KEY_FILE is not set", fix="ovia-backup keys init --to FOLDER")
        return log

    def remote_standings(self, now: datetime) -> tuple[RemoteStanding, ...]:
        """The standing of each remote, as far as this host knows it. Asks none of them.

        Raises:
            VolumeError: a record cannot be read.
        """
        from ovia_backup_dagster.offsite.remote_record import RemoteRecords
        from ovia_backup_dagster.offsite.remote_standing import judge_remote

        records, most = RemoteRecords(self.catalog), timedelta(hours=self.settings.offsite_max_age_hours)
        names = [address.name for address in self.settings.offsite_remotes]
        return tuple(judge_remote(name, records.read(name), most, now) for name in names)

    @property
    def offsite(self) -> Offsite:
        """Copies on remotes."""
        return Offsite(self)

    @property
    def pitr(self) -> PitrParts:
        """Point-in-time recovery. Few commands need it."""
        from ovia_backup_dagster.pitr_parts import PitrParts

        return PitrParts(self)

    @property
    def connection(self) -> Connection:
        self.settings.require()
        return Connection(
            host=self.settings.postgres_host or "",
            port=self.settings.postgres_port,
            database=self.settings.postgres_db,
            user=self.settings.postgres_user,
            password=self.settings.password(),
            libpq=self.settings.libpq,
            variables=Variables(hints=self.settings.deployment_hints),
        )

    @property
    def programs(self) -> Programs:
        settings = self.settings
        sandbox = Sandbox(Confine(settings.drill_sandbox))
        return Programs(settings.pg_bin_dir, sandbox, settings.backup_stall_minutes * 60)

    @property
    def dumper(self) -> Dumper:
        # PostgreSQL's driver is slow to import and large; what only reads the volume or copies it does without.
        from ovia_backup_dagster.postgres.dump import Dumper

        return Dumper(
            self.catalog,
            self.connection,
            self.programs,
            self.settings.backup_compression,
            anchor=self.pitr.anchor(),
            # Drills become due with the first dump.
            published=lambda: self.drills.prepare(datetime.now(UTC)),
        )

    @property
    def verifier(self) -> Verifier:
        from ovia_backup_dagster.postgres.verification import Verifier

        expectations = Expectations(self.settings.expected_tables, self.settings.require_rows)
        return Verifier(
            self.catalog, self.programs, expectations, self.secrets, went_live_on=self.restores.went_live_on
        )

    @property
    def driller(self) -> Driller:
        from ovia_backup_dagster.drill.runner import Driller

        settings = self.settings
        return Driller(
            verifier=self.verifier,
            source=self.connection,
            folder=settings.drill_dir,
            target=self.restore_connection,
            target_is_named=settings.restore_postgres_host is not None,
            own_check=settings.drill_check_command,
            max_hours=settings.drill_max_hours,
            secrets=self.secrets,
        )

    @property
    def secrets(self) -> Secrets:
        return Secrets(secret_variables(), self.settings.secrets)

    @property
    def restore_connection(self) -> Connection:
        """The connection to the server that is restored to, as the role for restores."""
        settings = self.settings
        settings.require()
        return Connection(
            host=settings.restore_postgres_host or settings.postgres_host or "",
            port=settings.restore_postgres_port or settings.postgres_port,
            database=settings.postgres_db,
            user=settings.restore_postgres_user or settings.postgres_user,
            password=settings.restore_password(),
            libpq=settings.libpq,
            variables=Variables(
                **settings.restore_variables,
                # The hints describe the server of this deployment, not a separate restore server.
                hints=settings.deployment_hints if settings.restore_postgres_host is None else Hints(),
            ),
        )

    @property
    def restorations(self) -> Restorations:
        # The Docker client is slow to import, and no other part needs it.
        from ovia_backup_dagster.restoration.runner import Restorations
        from ovia_backup_dagster.restoration.service_manager import Services
        from ovia_backup_dagster.swarm.docker_services import Swarm

        settings = self.settings
        services = Services(settings.swarm_app_services, settings.swarm_migrate_service, settings.health_url)
        return Restorations(self.driller, self.restore_connection, services, Swarm(settings.swarm_docker_url))

    def restore_jobs(self, jobs: int = 0) -> int:
        """The number of parallel restore jobs: ``jobs``, else RESTORE_JOBS, else one per processor."""
        return jobs or self.settings.restore_jobs or len(os.sched_getaffinity(0))

    def drill_choice(
        self, *, where: str = "", jobs: int = 0, keep: bool = False, trust_archive: bool = False
    ) -> Choice:
        """The options of a drill: those given, and the settings for the rest."""
        from ovia_backup_dagster.drill.placement import Choice, Where

        settings = self.settings
        most = jobs or settings.drill_jobs or len(os.sched_getaffinity(0))
        return Choice(
            where=Where(where or settings.drill_where), jobs=max(2, most), keep=keep, trust_archive=trust_archive
        )

    @property
    def drills(self) -> DrillFolder:
        return DrillFolder(self.catalog)

    @property
    def restores(self) -> RestoreFolder:
        """The records and journals of restores on the volume. Reading them needs neither a server nor Docker."""
        return RestoreFolder(self.catalog)

    @property
    def drill_max_age(self) -> timedelta:
        return timedelta(days=self.settings.drill_max_age_days)

    @property
    def policy(self) -> Policy:
        self.settings.require()
        return Policy(
            keep={tier: getattr(self.settings, f"backup_{tier}_keep") for tier in Tier},
            weekly_day=Weekday[self.settings.backup_weekly_day.upper()],
            timezone=self.timezone,
        )

    @property
    def timezone(self) -> ZoneInfo:
        return ZoneInfo(self.settings.backup_timezone)

    @property
    def max_age(self) -> timedelta:
        return timedelta(hours=self.settings.backup_max_age_hours)

    @property
    def notifier(self) -> Notifier:
        """The notifier. Reads the URL file on each access, so that a rotated file takes effect.

        Raises:
            SettingsError: the file cannot be read.
        """
        return Notifier(self.settings.notify_urls())


def _statement_log(settings: Settings) -> StatementLog | None:
    if settings.backup_verify_key_file is None:
        if settings.backup_signing_key_file is None:
            return None
        raise SettingsError(
            "BACKUP_VERIFY_KEY_FILE is not set",
            why="BACKUP_SIGNING_KEY_FILE is, and what it signs is checked with the public key of the pair",
            fix="name the file verify_key.pub that ovia-backup keys init made",
        )
    # Few commands need them, and status must answer at once.
    from ovia_backup_dagster.signing.key_files import fingerprint, signing_key, verify_key
    from ovia_backup_dagster.signing.statement_log import StatementLog

    public = verify_key("BACKUP_VERIFY_KEY_FILE", settings.backup_verify_key_file)
    private = None
    if settings.backup_signing_key_file is not None:
        private = signing_key("BACKUP_SIGNING_KEY_FILE", settings.backup_signing_key_file)
        if private.public_key() != public:
            raise SettingsError(
                "BACKUP_SIGNING_KEY_FILE and BACKUP_VERIFY_KEY_FILE are of two pairs",
                why=f"a statement that the first signs would not hold with the second, {fingerprint(public)}",
                fix="name the two files that one call of ovia-backup keys init or keys rotate made",
            )
    return StatementLog(settings.backup_dir, settings.postgres_db, public, private)


@dataclass(frozen=True)
class Offsite:
    """Copies of one database's backups on remotes. Few commands need them, so each part is imported on access."""

    system: BackupSystem

    def remotes(self, *names: str, as_of: datetime | None = None) -> list[Remote]:
        """The remotes of these names, in the order of the settings (default: all).

        Args:
            as_of: read the versions of that instant (UTC), on stores that keep versions.

        Raises:
            SettingsError: there is none, or none of a name.
        """
        from ovia_backup_dagster.offsite.rclone import Remote

        settings = self.system.settings
        settings.require_volume()
        known = {address.name: address for address in settings.offsite_remotes}
        if not known:
            raise SettingsError("OFFSITE_REMOTES is not set", fix="name a place for copies: docs/offsite.md")
        if unknown := [name for name in names if name not in known]:
            why = f"OFFSITE_REMOTES has {', '.join(known)}"
            raise SettingsError(f"there is no remote {unknown[0]!r}", why=why, fix="ovia-backup offsite list")
        wanted = [address for name, address in known.items() if not names or name in names]
        return [Remote(address, self.program, settings.offsite_lock_days, as_of=as_of) for address in wanted]

    @property
    def program(self) -> Program:
        """The rclone program, with the settings that concern every remote."""
        from ovia_backup_dagster.offsite.rclone_program import Program

        settings = self.system.settings
        return Program(settings.rclone_config, settings.offsite_stall_minutes * 60, settings.offsite_bandwidth)

    @property
    def age(self) -> Age:
        """The program that encrypts copies, with the keys of the settings."""
        from ovia_backup_dagster.offsite.encryption import Age

        return Age(self.system.settings.offsite_recipients, self.system.settings.offsite_identity_file)

    @property
    def policy(self) -> Policy:
        """What each remote keeps."""
        return Policy(
            keep={tier: getattr(self.system.settings, f"offsite_{tier}_keep") for tier in Tier},
            weekly_day=Weekday[self.system.settings.backup_weekly_day.upper()],
            timezone=self.system.timezone,
        )

    def on(self, remote: Remote) -> RemoteOperations:
        """Copying to a remote, verification and retention there.

        Raises:
            SettingsError: the signed log has no key.
        """
        from ovia_backup_dagster.offsite.operations import RemoteOperations

        return RemoteOperations(self.system.catalog, self.system.required_statement_log, remote, self.age, self.policy)

    def fetcher(self, remote: Remote) -> Fetcher:
        """What brings backups back from a remote.

        Raises:
            SettingsError: the signed log has no key.
        """
        from ovia_backup_dagster.offsite.fetching import Fetcher

        return Fetcher(remote, self.system.required_statement_log, self.age)

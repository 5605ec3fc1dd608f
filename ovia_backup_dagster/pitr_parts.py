"""The parts of point-in-time recovery of one database's server, built from its settings.

As in ``system``, only composition belongs here; each part is built on access.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.postgres.programs import Connection, Variables

if TYPE_CHECKING:
    from ovia_backup_dagster.pitr.archive import ClusterArchive
    from ovia_backup_dagster.pitr.base_backup import BaseBackupMaker
    from ovia_backup_dagster.pitr.exact_snapshot import ExactSnapshots
    from ovia_backup_dagster.pitr.extraction import Extractor
    from ovia_backup_dagster.pitr.recovery_evidence import RecoveryEvidence
    from ovia_backup_dagster.pitr.recovery_plan import RecoveryPlanner
    from ovia_backup_dagster.pitr.relation_names import RelationRecord
    from ovia_backup_dagster.pitr.standing import PitrStanding
    from ovia_backup_dagster.pitr.wal_pruning import PrunedArchive
    from ovia_backup_dagster.pitr.wal_receiver import WalReceiver
    from ovia_backup_dagster.pitr.wal_source import WalSource
    from ovia_backup_dagster.system import BackupSystem


@dataclass(frozen=True)
class PitrParts:
    """Point-in-time recovery of one database's server. Few commands need it, so each part is imported on access."""

    system: BackupSystem

    @property
    def enabled(self) -> bool:
        """Whether PITR_ENABLED is true."""
        return self.system.settings.pitr_enabled

    @property
    def window(self) -> timedelta:
        """How far back any instant is to be recoverable."""
        return timedelta(days=self.system.settings.recovery_window_days)

    def wait_for_wal(self, archive: ClusterArchive, base: str, log: Callable[[str], None]) -> None:
        """Wait until the WAL of a base backup is here, if it is being received; a minute at most.

        Raises:
            VolumeError: the volume cannot be read.
        """
        from ovia_backup_dagster.pitr.standing_values import PitrPart
        from ovia_backup_dagster.pitr.wal_arrival import wait_for_wal

        seconds = 60.0 if PitrPart.RECEIVING not in self.standing(datetime.now(UTC)).parts else 0.0
        if not wait_for_wal(archive, base, seconds):
            log(f"WAL that base backup {base} needs has not arrived")

    @property
    def base_period(self) -> timedelta:
        """The longest time between two base backups by their schedule."""
        from ovia_backup_dagster.settings.cron import longest_pause_days

        return timedelta(days=longest_pause_days(self.system.settings.base_backup_schedule))

    def standing(self, now: datetime) -> PitrStanding:
        """How point-in-time recovery stands, by the files on the volume. Asks no server.

        Raises:
            VolumeError: the volume cannot be read.
        """
        from ovia_backup_dagster.pitr.standing import judge_pitr
        from ovia_backup_dagster.pitr.standing_reader import read_facts
        from ovia_backup_dagster.pitr.standing_values import PitrLimits

        settings = self.system.settings
        limits = PitrLimits(
            rpo=timedelta(seconds=settings.rpo_max_seconds),
            window=self.window,
            base_period=self.base_period,
            drill_age=self.system.drill_max_age,
        )
        return judge_pitr(read_facts(settings.backup_dir, now), limits, now)

    def require_enabled(self) -> None:
        """Refuse what needs WAL where none is received.

        Raises:
            SettingsError: PITR_ENABLED is false, or the settings are invalid.
        """
        self.system.settings.require()
        if not self.system.settings.pitr_enabled:
            raise SettingsError(
                "point-in-time recovery is off",
                why="PITR_ENABLED is not true",
                fix="prepare the server: deploy/wal-role.sql; then set PITR_ENABLED=true and: ovia-backup doctor",
            )

    @property
    def connection(self) -> Connection:
        """The connection to the database as the role that receives WAL.

        Raises:
            SettingsError: point-in-time recovery is off, or the password's file cannot be read.
        """
        self.require_enabled()
        settings = self.system.settings
        return replace(
            self.system.connection,
            user=settings.wal_postgres_user,
            password=settings.wal_password(),
            variables=Variables(
                user="WAL_POSTGRES_USER",
                password="WAL_POSTGRES_PASSWORD or WAL_POSTGRES_PASSWORD_FILE",  # noqa: S106 - their names
                hints=settings.deployment_hints,
            ),
        )

    @property
    def source(self) -> WalSource:
        """The server whose WAL is received.

        Raises:
            SettingsError: as :attr:`connection`.
        """
        from ovia_backup_dagster.pitr.wal_source import WalSource

        return WalSource(self.connection, self.system.settings.wal_slot)

    def receiver(self, log: Callable[[str], None]) -> WalReceiver:
        """What receives WAL until it is told to stop.

        Raises:
            SettingsError: as :attr:`connection`.
        """
        from ovia_backup_dagster.pitr.wal_receiver import WalReceiver

        settings = self.system.settings
        return WalReceiver(settings.backup_dir, self.source, self.system.programs, settings.wal_beacon_seconds, log)

    def archive(self) -> ClusterArchive:
        """The files of the server that answers. A new cluster's folders are made.

        Raises:
            SettingsError: as for :attr:`connection`.
            ServerError: the server does not answer.
            VolumeError: the folders cannot be made.
        """
        from ovia_backup_dagster.pitr.archive import ClusterArchive
        from ovia_backup_dagster.pitr.source_server import ask_source

        facts = ask_source(self.connection).facts
        archive = ClusterArchive(self.system.settings.backup_dir, facts.system_identifier)
        archive.create(facts)
        return archive

    @property
    def base_backups(self) -> BaseBackupMaker:
        """What makes base backups of the server that answers. Raises what :meth:`archive` raises."""
        from ovia_backup_dagster.pitr.base_backup import BaseBackupMaker

        settings = self.system.settings
        return BaseBackupMaker(
            self.archive(),
            self.connection,
            self.system.programs,
            settings.base_backup_max_rate,
            settings.backup_lock_wait_minutes * 60,
        )

    @property
    def planner(self) -> RecoveryPlanner:
        """What plans recoveries to an instant. It needs the volume alone."""
        from ovia_backup_dagster.pitr.recovery_plan import RecoveryPlanner

        system = self.system
        system.settings.require_volume()
        return RecoveryPlanner(
            system.settings.backup_dir,
            system.programs,
            system.timezone,
            self._live_names if system.settings.postgres_host else lambda: None,
        )

    def _live_names(self) -> RelationRecord | None:
        from ovia_backup_dagster.pitr.relation_names import read_relation_names
        from ovia_backup_dagster.postgres.session import connect

        with connect(self.system.connection) as session:
            return read_relation_names(session, datetime.now(UTC))

    @property
    def extractor(self) -> Extractor:
        """What recovers the database separately, and dumps it from there.

        Raises:
            SettingsError: the settings are invalid.
        """
        from ovia_backup_dagster.pitr.extraction import Extractor

        system = self.system
        return Extractor(
            system.catalog,
            system.verifier,
            system.programs,
            system.settings.backup_compression,
            system.settings.drill_dir,
            system.settings.drill_max_hours,
        )

    def drill(
        self, wanted: str, *, launched_by: str, run_id: str | None = None, log: Callable[[str], None]
    ) -> RecoveryEvidence:
        """Recover a cluster to the commit that a dump ends with, and compare the two.

        Args:
            wanted: a backup's name; ``latest`` is the newest verified one that says which commit it ends with.
            launched_by, run_id: for the evidence.
            log: receives progress.

        Raises:
            NotVerifiedError: there is no such dump.
            RecoveryTargetError: no base backup and WAL reach its commit.
            BackupError: the drill could not begin, or its evidence not be written.
        """
        from ovia_backup_dagster.pitr.drill_subject import find_subject
        from ovia_backup_dagster.pitr.recovery_drill import RecoveryDriller

        system = self.system
        system.secrets.forget()
        subject, archive = find_subject(system.catalog, wanted)
        folder, hours = system.settings.drill_dir, system.settings.drill_max_hours
        driller = RecoveryDriller(system.catalog, archive, system.programs, folder, hours)
        return driller.drill(subject, launched_by=launched_by, run_id=run_id, log=log)

    def why_no_drill(self, now: datetime) -> str:
        """Why no drill is due; empty if one is. Asks no server.

        Raises:
            SettingsError, VolumeError: the settings are invalid, or the volume cannot be read.
        """
        from ovia_backup_dagster.pitr.drill_subject import why_no_drill_is_due

        return why_no_drill_is_due(self.system.catalog, self.system.drill_max_age, now)

    def prune(self, archive: ClusterArchive, log: Callable[[str], None], *, dry_run: bool = False) -> PrunedArchive:
        """Remove the base backups and the WAL that RECOVERY_WINDOW_DAYS does not keep, and old files beside them.

        Args:
            archive: the cluster's files.
            log: receives each removal with its reason.
            dry_run: only say what would be removed.

        Raises:
            NotVerifiedError: no verified base backup can be recovered, so nothing was removed.
            LockHeldError: another process prunes.
            VolumeError: the files cannot be read, or some could not be removed.
        """
        from ovia_backup_dagster.pitr.tidying import prune_and_tell

        return prune_and_tell(archive, self.window, datetime.now(UTC), log, dry_run=dry_run)

    def anchor(self) -> ExactSnapshots | None:
        """What finds the commit that a dump ends with; ``None`` without point-in-time recovery, or if it cannot now.

        A dump does not fail for that.
        """
        from ovia_backup_dagster.core.errors import BackupError
        from ovia_backup_dagster.pitr.exact_snapshot import ExactSnapshots

        if not self.system.settings.pitr_enabled:
            return None
        try:
            return ExactSnapshots(self.source, self.system.programs, self.archive())
        except BackupError:
            return None

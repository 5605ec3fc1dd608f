"""Decides what a restore will do, and finds every obstacle, before anything is touched.

Planning queries the server and reads small files; it changes nothing. The backup itself is read when the restore
begins. ``preflight`` finds obstacles, ``plan_facts`` further facts; ``plan`` defines a plan and its confirmation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import RestoreRefusedError
from ovia_backup_dagster.core.naming import before_name, restore_name
from ovia_backup_dagster.drill.runner import MADE_BY, Driller
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.session import connect, other_database, system_identifier
from ovia_backup_dagster.restoration import plan_facts as facts
from ovia_backup_dagster.restoration.application_health import shown
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.plan import RestorePlan, replaced
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.preflight_roles import check_roles
from ovia_backup_dagster.restoration.preflight_services import check_services
from ovia_backup_dagster.restoration.preflight_tables import check_tables
from ovia_backup_dagster.restoration.replaced_databases import kept, replaced_database
from ovia_backup_dagster.restoration.request import Wishes, refuse_contradictions, refuse_impossible_name
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.restoration.service_manager import ServiceManager, Services
from ovia_backup_dagster.restoration.steps.registry import steps_of
from ovia_backup_dagster.restoration.swap import database_state, obstacles


@dataclass(frozen=True, slots=True)
class Planner:
    """The dependencies of planning.

    Attributes:
        driller: catalog, programs, and the drills so far.
        target: the live database, as the role that restores.
        services: the services to stop and start.
        manager: the service manager, which planning only queries.
    """

    driller: Driller
    target: Connection
    services: Services
    manager: ServiceManager

    def plan(self, wishes: Wishes, launched_by: str, run_id: str | None, now: datetime) -> RestorePlan:
        """Decide what the restore does. Obstacles are part of the plan.

        Raises:
            RestoreRefusedError: no plan is possible: the options contradict each other, or the backup cannot be
                restored here.
            RestoreUnfinishedError: another restore is unfinished. Its effects would look like obstacles, such as a
                missing database.
            BackupNotFoundError: there is no such backup.
            ServerError: no connection, or it broke.
        """
        refuse_contradictions(wishes)
        refuse_impossible_name(wishes.into)
        self._refuse_unknown_services(wishes)
        self._refuse_unfinished()
        backup = self._backup(wishes, now)
        server, found = self._server, Preflight(self.driller, self.target)
        with connect(server) as session:
            here = system_identifier(session)
            server_version = session.info.server_version // 10000
        wishes = replace(wishes, backup=backup.path.name if self.driller.catalog.holds(backup) else str(backup.path))
        found.version(server_version)
        live = database_state(server, self.target.database)
        known_bad = found.bad(backup, wishes, now)
        # Do not trust the metadata of a backup that is known to be bad.
        expected_here = known_bad or found.origin(backup, here, wishes)
        asked, mode = wishes, Mode.NEW if wishes.tables else wishes.mode
        if not live.exists and mode is not Mode.NEW:
            if not wishes.new_host:
                wishes = replace(wishes, mode=Mode.SWAP, auto_undo=False, new_host=True)
                if expected_here:  # otherwise the server is new, which is reported with the same remedy
                    found.obstacles.append(found.nothing_to_replace(f"make it from the backup: {wishes.command()}"))
            mode = Mode.NEW
        order = self._order(wishes, mode, live.oid if live.exists else None, backup, now)
        order = order.model_copy(
            update={
                "steps": steps_of(order),
                "system_identifier": here,
                "launched_by": launched_by,
                "run_id": run_id,
            }
        )
        if order.becomes == order.database and not known_bad:
            found.database(backup, wishes)
        found.places(order)
        if not known_bad:
            found.contents(order, backup, live)
            check_roles(found, order, backup, wishes)
        shown_facts, warnings = facts.facts_of_restore(self.driller, server, order, backup, live, now)
        if order.new_host and (held := found.held(backup)) not in ("", order.becomes):
            warnings.append(f"it is of database {held}, and not of {order.becomes}")
        found.functions(backup)
        check_tables(found, order, backup, live)
        check_services(found, order, self.manager)
        found.room(order, backup, live, wishes)
        return RestorePlan(
            order,
            backup,
            "" if mode is Mode.NEW else order.database,
            shown_facts | found.facts,
            (*warnings, *found.warnings),
            tuple(found.obstacles),
            asked.command(),
        )

    def _order(self, wishes: Wishes, mode: Mode, live_oid: int | None, backup: Backup, now: datetime) -> Order:
        new_host = wishes.new_host and mode is Mode.NEW and not wishes.even_if_damaged and not wishes.tables
        into = wishes.into or (self.target.database if new_host else "")
        at = self._free_instant(now)
        goes_live = mode is not Mode.NEW or into == self.target.database
        takes_name = goes_live and mode is not Mode.SWAP
        if goes_live and wishes.even_if_damaged:
            raise RestoreRefusedError(
                f"what is damaged does not go live as {self.target.database}",
                why="--even-if-damaged restores what can be read, and what is lost is not known yet",
                fix=f"choose another name: {replace(wishes, into=restore_name(self.target.database, at)).command()}",
            )
        return Order(
            mode=mode,
            started_at=now.replace(microsecond=0),
            database=self.target.database,
            backup=backup.path.name,
            backup_path=str(backup.path),
            backup_started_at=backup.started_at,
            host=self.target.host,
            port=self.target.port,
            # Under the live name, clients would connect to a database that is not complete yet.
            incoming=into if into and not takes_name else restore_name(self.target.database, at),
            takes_name=takes_name,
            live_oid=live_oid,
            kept=before_name(self.target.database, at) if mode is Mode.SWAP else "",
            jobs=wishes.jobs,
            stop_services=wishes.stop_services,
            services={name: wishes.replicas.get(name) for name in self.services.names} if goes_live else {},
            migrate=self.services.migrate if goes_live else "",
            health_url=self._health_url if goes_live else "",
            auto_undo=wishes.auto_undo,
            new_host=wishes.new_host,
            create_roles=wishes.create_roles or wishes.new_host or bool(wishes.privileged_roles),
            privileged_roles=tuple(wishes.privileged_roles),
            even_if_damaged=wishes.even_if_damaged,
            tables=tuple(wishes.tables),
            launched_by="",
            made_by=MADE_BY,
        )

    def plan_undo(self, launched_by: str, run_id: str | None, now: datetime, *, kept_name: str = "") -> RestorePlan:
        """Decide how to swap back to a replaced database. Obstacles are part of the plan.

        Args:
            kept_name: the database to swap back to; empty for the newest.

        Raises:
            RestoreRefusedError: there is no replaced database, or none with this name, or no live database.
            RestoreUnfinishedError, ServerError: as for :meth:`plan`.
        """
        self._refuse_unfinished()
        server, database = self._server, self.target.database
        kept_ones = kept(server, database)
        if not kept_ones:
            raise RestoreRefusedError(
                f"there is no database to go back to at {self.target.host}:{self.target.port}",
                why=f"none is called {database}_before_<time>: no restore has swapped, or it was forgotten",
                fix="restore the backup from before it: ovia-backup list",
            )
        with connect(server) as session:
            here = system_identifier(session)
        live, back = database_state(server, database), replaced_database(kept_ones, kept_name or kept_ones[0].name)
        record, at = RestoreFolder(self.driller.catalog).swap_that_kept(back.name), self._free_instant(now)
        order = Order(
            mode=Mode.UNDO,
            started_at=now.replace(microsecond=0),
            database=database,
            host=self.target.host,
            port=self.target.port,
            system_identifier=here,
            incoming=back.name,
            incoming_oid=database_state(server, back.name).oid,
            live_oid=live.oid,
            kept=before_name(database, at),
            services=dict.fromkeys(self.services.names),
            subscriptions=record.subscriptions if record else (),
            health_url=self._health_url,
            launched_by=launched_by,
            run_id=run_id,
            made_by=MADE_BY,
        )
        order = order.model_copy(update={"steps": steps_of(order)})
        found = Preflight(self.driller, self.target)
        if not live.exists:
            raise found.nothing_to_replace()
        for name in (database, back.name):
            # Report an obstacle of the role once.
            known = {each.what for each in found.obstacles}
            found.obstacles += [each for each in obstacles(server, name) if each.what not in known]
        until = replaced(back, record.swapped_at if record else None)
        shown_facts = {
            "undo": f"{back.name} ({facts.size(back.size_bytes)}), {until}, is live again",
            "kept": f"what is live now stays as {order.kept}; to swap back to it: ovia-backup undo-restore",
            "since": f"{facts.since_swap(server, database, record, live)}; it stays in {order.kept}",
            "sessions": facts.sessions([*live.sessions, *database_state(server, back.name).sessions]),
        }
        check_services(found, order, self.manager)
        command = "ovia-backup undo-restore" + (f" --kept {shell_word(kept_name)}" if kept_name else "")
        return RestorePlan(
            order, None, database, shown_facts | found.facts, tuple(found.warnings), tuple(found.obstacles), command
        )

    @property
    def _health_url(self) -> str:
        """The health check's URL without secrets, for the order."""
        return shown(self.services.health_url) if self.services.health_url else ""

    @property
    def _server(self) -> Connection:
        """A connection to a database other than the live one."""
        return other_database(self.target, self.target.database)

    def _free_instant(self, now: datetime) -> datetime:
        """The present, or the next second that is not in the name of another database of this server."""
        database = self.target.database
        while any(database_state(self._server, name(database, now)).exists for name in (restore_name, before_name)):
            now += timedelta(seconds=1)
        return now

    def _backup(self, wishes: Wishes, now: datetime) -> Backup:
        backup = self.driller.find(wishes.backup, anywhere=wishes.anywhere)
        backup = self.driller.catalog.settled(backup, now, "ovia-backup restore")
        if wishes.even_if_damaged:
            backup.require_stated_archive()
        if backup.foreign:
            what, by_hand = backup.foreign
            raise RestoreRefusedError(
                f"{backup} is {what}",
                why="only pg_dump's custom format can be restored here",
                fix=f"choose another (ovia-backup list); or by hand, into a database of its own: {by_hand}",
            )
        return backup

    def _refuse_unfinished(self) -> None:
        if trouble := RestoreFolder(self.driller.catalog).standing().trouble:
            raise trouble

    def _refuse_unknown_services(self, wishes: Wishes) -> None:
        if unknown := sorted(set(wishes.replicas) - set(self.services.names)):
            raise RestoreRefusedError(
                f"replicas were given for a service that no restore stops: {', '.join(unknown)}",
                why=f"SWARM_APP_SERVICES names: {', '.join(self.services.names) or 'none'}",
                fix="add it to SWARM_APP_SERVICES, or leave it out",
            )

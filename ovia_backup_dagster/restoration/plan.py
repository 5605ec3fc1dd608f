"""What a restore will do, decided and shown before anything is touched, with every reason not to.

A plan asks the server and reads small files; it changes nothing. The backup itself is read when the restore begins.
What stands in the way is found by ``preflight``, what people want to know besides by ``facts``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import BackupError, RestoreRefusedError
from ovia_backup_dagster.core.naming import before_name, restore_name
from ovia_backup_dagster.drill.runner import MADE_BY, Driller
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.postgres.session import connect, other_database, system_identifier
from ovia_backup_dagster.restoration import plan_facts as facts
from ovia_backup_dagster.restoration.application_health import shown
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.order import Mode, Order, Step
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.replaced_databases import Kept, kept, replaced_database
from ovia_backup_dagster.restoration.request import Wishes, refuse_contradictions, refuse_impossible_name
from ovia_backup_dagster.restoration.service_manager import ServiceManager
from ovia_backup_dagster.restoration.swap import database_state, obstacles

#: Of obstacles and their words, in the error that names them all.
_OBSTACLES, _WIDTH = 8, 90


@dataclass(frozen=True, slots=True)
class Services:
    """Which of Docker Swarm's services a restore stops, migrates with and asks, as the settings say.

    Attributes:
        names: of those that write to the database.
        migrate: the one-shot service that migrates it; empty for none.
        health_url: what answers when all is well; empty for nothing.
    """

    names: Sequence[str] = ()
    migrate: str = ""
    health_url: str = ""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What will be done.

    Attributes:
        order: all of it, decided.
        backup: what is restored; ``None`` of an undo.
        destroys: the name that a person must repeat to go on; empty when nothing of theirs is touched.
        facts: title -> what there is to know, for people.
        warnings: what deserves a second look.
        obstacles: why it cannot be done now, each with its remedy.
        command: what asks for this plan.
    """

    order: Order
    backup: Backup | None
    destroys: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    obstacles: tuple[BackupError, ...] = ()
    command: str = ""

    def lines(self) -> Iterator[str]:
        """For people: a fact each, then the steps."""
        width = max(map(len, self.facts), default=0)
        yield from (f"{title:<{width}}  {text}" for title, text in self.facts.items())
        for number, step in enumerate(self.order.steps, 1):
            yield f"{number}. {describe(step, self.order)}"
        yield from (f"Mind: {warning}" for warning in self.warnings)
        count = len(self.obstacles)
        yield from (f"Obstacle {number} of {count}: {each}" for number, each in enumerate(self.obstacles, 1))

    @property
    def refusal(self) -> BackupError | None:
        """The obstacle; or, of several, one that names them all, shortened: their remedies stand in the lines."""
        if len(self.obstacles) < 2:
            return next(iter(self.obstacles), None)
        named = [f"{number}. {_cut(each.what)}" for number, each in enumerate(self.obstacles[:_OBSTACLES], 1)]
        if more := len(self.obstacles) - len(named):
            named.append(f"and {more} more")
        return RestoreRefusedError(
            f"nothing was done: {len(self.obstacles)} obstacles stand in the way",
            why="; ".join(named),
            fix=f"remove each, as the plan says: {self.command} --plan",
        )

    def refuse(self) -> None:
        """Go no further where there are obstacles.

        Raises:
            BackupError: the :attr:`refusal`.
        """
        if self.refusal is not None:
            raise self.refusal

    def confirm(self, typed: str) -> None:
        """Go on only if the database's name was repeated.

        Raises:
            RestoreRefusedError: it was not.
        """
        name = self.destroys
        if name:
            confirm(name, typed, f"--yes-destroy {shell_word(name)}")


def confirm(name: str, typed: str, how: str) -> None:
    """Go on only if the name of what is at stake was repeated.

    Raises:
        RestoreRefusedError: it was not; says how it is.
    """
    if typed != name:
        raise RestoreRefusedError(
            f"nothing was done: the name that was given to confirm is not {name}",
            why=f"it was {typed!r}" if typed else "none was given",
            fix=f"if that is what you mean, repeat the name: {how}",
        )


def replaced(each: Kept, at: datetime | None) -> str:
    """Since when a kept database is not live any more, for people.

    Args:
        at: of the swap (UTC), if it is known.
    """
    if at is None:
        return f"named at {each.at:%Y-%m-%d %H:%M:%S} UTC; until when it was live is not known"
    return f"live until {at:%Y-%m-%d %H:%M:%S} UTC"


def as_dict(plan: RestorePlan) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "order": plan.order.model_dump(mode="json"),
        "destroys": plan.destroys or None,
        "steps": [describe(step, plan.order) for step in plan.order.steps],
        "facts": dict(plan.facts),
        "warnings": list(plan.warnings),
        "obstacles": [
            {"what": each.what, "why": each.why, "said": each.said, "fix": each.fix} for each in plan.obstacles
        ],
    }


def describe(step: Step, order: Order) -> str:
    """The step, in words for people."""
    services = ", ".join(order.services)
    other = order.incoming
    swapping = f"swap names: {order.database} becomes {order.kept}, {other} becomes {order.database}"
    return {
        Step.DRILL: "prove in a throwaway cluster that the backup restores, and here that this role may restore it",
        Step.STOP: f"stop {services}, and wait until none of their tasks runs",
        Step.DROP: f"DROP DATABASE {order.database}: its data is gone then",
        Step.RESTORE: f"restore into {other}" + ("" if order.even_if_damaged else ", and prove every row of it"),
        Step.SWAP: swapping,
        Step.NAME: f"rename {other} to {order.database}",
        Step.MIGRATE: f"run {order.migrate}, and wait until it has completed",
        Step.START: f"start {services}",
        Step.HEALTH: f"wait for {order.health_url}" + (", else swap back" if order.auto_undo else ""),
    }[step]


@dataclass(frozen=True, slots=True)
class Planner:
    """All that planning depends on.

    Attributes:
        driller: catalog, programs, and the drills so far.
        target: the live database, as the role that restores.
        services: what else is to be stopped and started.
        manager: whose services those are; only asked.
    """

    driller: Driller
    target: Connection
    services: Services
    manager: ServiceManager

    def plan(self, wishes: Wishes, launched_by: str, run_id: str | None, now: datetime) -> RestorePlan:
        """Decide. What stands in the way is in the plan.

        Raises:
            RestoreRefusedError: there is nothing to plan: the wishes contradict each other, or the backup is none that
                is restored here.
            RestoreUnfinishedError: another one is. What is wrong then looks like something else: a database that is
                missing, or is not the one that it was.
            BackupNotFoundError, ServerError: as they say.
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
        # What one says of itself that is known to be bad is not believed.
        expected_here = known_bad or found.origin(backup, here, wishes)
        asked, mode = wishes, wishes.mode
        if not live.exists and mode is not Mode.NEW:
            if not wishes.new_host:
                wishes = replace(wishes, mode=Mode.SWAP, auto_undo=False, new_host=True)
                if expected_here:  # else it is a new server, which is said with the same remedy
                    found.obstacles.append(found.nothing_to_replace(f"make it from the backup: {wishes.command()}"))
            mode = Mode.NEW
        order = self._order(wishes, mode, live.oid if live.exists else None, backup, now)
        order = order.model_copy(update={"system_identifier": here, "launched_by": launched_by, "run_id": run_id})
        if order.becomes == order.database and not known_bad:
            found.database(backup, wishes)
        found.places(order)
        if not known_bad:
            found.contents(order, backup, live)
            found.roles(order, backup, wishes)
        shown_facts, warnings = facts.facts_of_restore(self.driller, server, order, backup, live, now)
        if order.new_host and (held := found.held(backup)) not in ("", order.becomes):
            warnings.append(f"it is of database {held}, and not of {order.becomes}")
        found.functions(backup)
        found.services(order, self.manager)
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
        new_host = wishes.new_host and mode is Mode.NEW and not wishes.even_if_damaged
        into = wishes.into or (self.target.database if new_host else "")
        at = self._free_instant(now)
        goes_live = mode is not Mode.NEW or into == self.target.database
        takes_name = goes_live and mode is not Mode.SWAP
        if goes_live and wishes.even_if_damaged:
            raise RestoreRefusedError(
                f"what is damaged does not go live as {self.target.database}",
                why="--even-if-damaged restores what can be, and nobody knows yet what is lost",
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
            # Under the live name nobody is kept out of what is not whole yet.
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
            launched_by="",
            made_by=MADE_BY,
        )

    def plan_undo(self, launched_by: str, run_id: str | None, now: datetime, *, kept_name: str = "") -> RestorePlan:
        """Decide how to swap back to a database that was live before. What stands in the way is in the plan.

        Args:
            kept_name: which; empty for the newest.

        Raises:
            RestoreRefusedError: there is none, or none of that name, or nothing to replace.
            RestoreUnfinishedError, ServerError: as of :meth:`plan`.
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
        found = Preflight(self.driller, self.target)
        if not live.exists:
            raise found.nothing_to_replace()
        for name in (database, back.name):
            # What is wrong with the role is said once.
            known = {each.what for each in found.obstacles}
            found.obstacles += [each for each in obstacles(server, name) if each.what not in known]
        until = replaced(back, record.swapped_at if record else None)
        shown_facts = {
            "undo": f"{back.name} ({facts.size(back.size_bytes)}), {until}, is live again",
            "kept": f"what is live now stays as {order.kept}; to swap back to it: ovia-backup undo-restore",
            "since": f"{facts.since_swap(server, database, record, live)}; it stays in {order.kept}",
            "sessions": facts.sessions([*live.sessions, *database_state(server, back.name).sessions]),
        }
        found.services(order, self.manager)
        command = "ovia-backup undo-restore" + (f" --kept {shell_word(kept_name)}" if kept_name else "")
        return RestorePlan(
            order, None, database, shown_facts | found.facts, tuple(found.warnings), tuple(found.obstacles), command
        )

    @property
    def _health_url(self) -> str:
        """As an order may show it."""
        return shown(self.services.health_url) if self.services.health_url else ""

    @property
    def _server(self) -> Connection:
        """To a database that is there whatever becomes of the live one."""
        return other_database(self.target, self.target.database)

    def _free_instant(self, now: datetime) -> datetime:
        """Now, or the second soon after that no database beside the live one is named by."""
        database = self.target.database
        while any(database_state(self._server, name(database, now)).exists for name in (restore_name, before_name)):
            now += timedelta(seconds=1)
        return now

    def _backup(self, wishes: Wishes, now: datetime) -> Backup:
        backup = self.driller.find(wishes.backup, anywhere=wishes.anywhere)
        backup = self.driller.catalog.settled(backup, now, "ovia-backup restore")
        if backup.foreign:
            what, by_hand = backup.foreign
            raise RestoreRefusedError(
                f"{backup} is {what}",
                why="what is restored here is pg_dump's custom format",
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


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"

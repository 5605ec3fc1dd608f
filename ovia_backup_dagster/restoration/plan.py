"""What a restore will do, decided and shown before anything is touched, and every reason not to.

A plan asks the server and reads small files; it changes nothing. The backup itself is read when the restore begins.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ovia_backup_dagster.core.catalog import Backup, State
from ovia_backup_dagster.core.drill import Evidence
from ovia_backup_dagster.core.errors import (
    BackupError,
    DockerUnreachableError,
    ExtensionMissingError,
    RestoreRefusedError,
    VersionMismatchError,
)
from ovia_backup_dagster.core.naming import NAME_BYTES, BackupName, before_name, is_utf8, restore_name
from ovia_backup_dagster.core.restoration import Mode, Order, Record, RestoreFolder, Step, StopServices
from ovia_backup_dagster.core.words import duration, human_bytes
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres import executed, roles
from ovia_backup_dagster.postgres.client import Connection, Programs
from ovia_backup_dagster.postgres.drill import MADE_BY, Driller, needed_bytes
from ovia_backup_dagster.postgres.kept import Kept, kept, named
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.room import free_bytes
from ovia_backup_dagster.postgres.session import beside, connect, system_identifier
from ovia_backup_dagster.postgres.subscriptions import subscriptions
from ovia_backup_dagster.postgres.swap import ClientSession, Standing, obstacles, standing
from ovia_backup_dagster.postgres.written import Counters, Written, newest_timestamps, written_since
from ovia_backup_dagster.swarm.health import shown
from ovia_backup_dagster.swarm.services import Swarm

_SHOWN = 5


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
class Wishes:
    """What a person asks of a restore.

    Attributes:
        backup: a name, a path or ``latest``.
        anywhere: whether a path may lead out of the volume.
        mode: see :class:`Mode`.
        into: with ``new``, the name of the database to make; empty: ``<db>_restore_<time>``.
        jobs: at a time.
        stop_services: when.
        replicas: of a service, as it is to have in the end, rather than as before.
        new_host, create_roles, privileged_roles, even_if_damaged, auto_undo: as in :class:`Order`.
    """

    backup: str = "latest"
    anywhere: bool = True
    mode: Mode = Mode.SWAP
    into: str = ""
    jobs: int = 1
    stop_services: StopServices = StopServices.AT_SWAP
    replicas: Mapping[str, int] = field(default_factory=dict)
    new_host: bool = False
    create_roles: bool = False
    privileged_roles: Sequence[str] = ()
    even_if_damaged: bool = False
    auto_undo: bool = False

    def command(self) -> str:
        """The command that asks for this."""
        default = Wishes()
        parts = {
            f"--mode {self.mode}": self.mode is not default.mode,
            f"--into {shell_word(self.into)}": self.into != default.into,
            f"--stop-services {self.stop_services}": self.stop_services is not default.stop_services,
            **{f"--scale {shell_word(name)}={count}": True for name, count in self.replicas.items()},
            "--new-host": self.new_host,
            "--create-roles": self.create_roles,
            **{f"--create-privileged-role {shell_word(name)}": True for name in self.privileged_roles},
            "--even-if-damaged": self.even_if_damaged,
            "--auto-undo": self.auto_undo,
        }
        return " ".join(["ovia-backup restore", shell_word(self.backup), *(part for part in parts if parts[part])])


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done.

    Attributes:
        order: all of it, decided.
        backup: what is restored; ``None`` of an undo.
        destroys: the name that a person must repeat to go on; empty when nothing of theirs is touched.
        facts: title -> what there is to know, for people.
        warnings: what deserves a second look.
    """

    order: Order
    backup: Backup | None
    destroys: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people: a fact each, then the steps."""
        width = max(map(len, self.facts), default=0)
        yield from (f"{title:<{width}}  {text}" for title, text in self.facts.items())
        for number, step in enumerate(self.order.steps, 1):
            yield f"{number}. {describe(step, self.order)}"
        yield from (f"Mind: {warning}" for warning in self.warnings)

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


def as_dict(plan: Plan) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "order": plan.order.model_dump(mode="json"),
        "destroys": plan.destroys or None,
        "steps": [describe(step, plan.order) for step in plan.order.steps],
        "facts": dict(plan.facts),
        "warnings": list(plan.warnings),
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
        swarm: whose services those are; only asked.
    """

    driller: Driller
    target: Connection
    services: Services
    swarm: Swarm

    @property
    def programs(self) -> Programs:
        return self.driller.verifier.programs

    def plan(self, wishes: Wishes, launched_by: str, run_id: str | None, now: datetime) -> Plan:
        """Decide.

        Raises:
            RestoreRefusedError: there is a reason not to; says which, and what to do.
            BackupNotFoundError, BadBackupError, ServerError, SwarmError: as they say.
        """
        _refuse_contradictions(wishes)
        _refuse_impossible_name(wishes.into)
        self._refuse_unfinished()
        backup = self._backup(wishes, now)
        with connect(self._server) as session:
            here = system_identifier(session)
            server_version = session.info.server_version // 10000
        wishes = replace(wishes, backup=backup.path.name if self.driller.catalog.holds(backup) else str(backup.path))
        self._refuse_other_server(backup, here, wishes)
        self._refuse_other_version(server_version)
        live = standing(self._server, self.target.database)
        mode = wishes.mode
        if not live.exists and mode is not Mode.NEW:
            if not wishes.new_host:
                made = replace(wishes, mode=Mode.SWAP, auto_undo=False, new_host=True)
                raise self._nothing_to_replace(f"make it from the backup: {made.command()}")
            mode = Mode.NEW
        new_host = wishes.new_host and mode is Mode.NEW and not wishes.even_if_damaged
        into = wishes.into or (self.target.database if new_host else "")
        at = self._free_instant(now)
        goes_live = mode is not Mode.NEW or into == self.target.database
        takes_name = goes_live and mode is not Mode.SWAP
        if goes_live:
            self._refuse_other_database(backup, wishes)
        if goes_live and wishes.even_if_damaged:
            raise RestoreRefusedError(
                f"what is damaged does not go live as {self.target.database}",
                why="--even-if-damaged restores what can be, and nobody knows yet what is lost",
                fix=f"choose another name: {replace(wishes, into=restore_name(self.target.database, at)).command()}",
            )
        order = Order(
            mode=mode,
            started_at=now.replace(microsecond=0),
            database=self.target.database,
            backup=backup.path.name,
            backup_path=str(backup.path),
            backup_started_at=backup.started_at,
            host=self.target.host,
            port=self.target.port,
            system_identifier=here,
            # Under the live name nobody is kept out of what is not whole yet.
            incoming=into if into and not takes_name else restore_name(self.target.database, at),
            takes_name=takes_name,
            live_oid=live.oid if live.exists else None,
            kept=before_name(self.target.database, at) if mode is Mode.SWAP else "",
            jobs=wishes.jobs,
            stop_services=wishes.stop_services,
            services=self._services(wishes, goes_live),
            migrate=self.services.migrate if goes_live else "",
            health_url=self._health_url if goes_live else "",
            auto_undo=wishes.auto_undo,
            new_host=wishes.new_host,
            create_roles=wishes.create_roles or wishes.new_host or bool(wishes.privileged_roles),
            privileged_roles=tuple(wishes.privileged_roles),
            even_if_damaged=wishes.even_if_damaged,
            launched_by=launched_by,
            run_id=run_id,
            made_by=MADE_BY,
        )
        replaces = mode in (Mode.SWAP, Mode.DROP)
        if not replaces and standing(self._server, order.becomes).exists:
            raise RestoreRefusedError(
                f"there is a database {order.becomes} at {order.place} already",
                why="mode new makes a database, and touches no other",
                fix="choose another name: --into NAME",
            )
        for obstacle in obstacles(self._server, order.becomes, mode_needs_swap=mode is Mode.SWAP):
            raise obstacle
        if not order.even_if_damaged:
            self._refuse_missing_extensions(backup)
        if not order.create_roles:
            self._refuse_missing_roles(order, backup, wishes)
        facts, warnings = self._facts(order, backup, live, now)
        if order.create_roles:
            fact, without = self._roles(order, backup)
            facts |= fact
            warnings += without
        facts |= self._services_fact(order)
        self._refuse_full_disk(order, backup, live, facts, wishes)
        return Plan(order, backup, "" if mode is Mode.NEW else order.database, facts, tuple(warnings))

    def plan_undo(self, launched_by: str, run_id: str | None, now: datetime, *, kept_name: str = "") -> Plan:
        """Decide how to swap back to a database that was live before.

        Args:
            kept_name: which; empty for the newest.

        Raises:
            RestoreRefusedError: there is none, or none of that name, or there is a reason not to.
        """
        self._refuse_unfinished()
        server, database = self._server, self.target.database
        found = kept(server, database)
        if not found:
            raise RestoreRefusedError(
                f"there is no database to go back to at {self.target.host}:{self.target.port}",
                why=f"none is called {database}_before_<time>: no restore has swapped, or it was forgotten",
                fix="restore the backup from before it: ovia-backup list",
            )
        with connect(server) as session:
            here = system_identifier(session)
        live, back = standing(server, database), named(found, kept_name or found[0].name)
        record, at = RestoreFolder(self.driller.catalog).swap_that_kept(back.name), self._free_instant(now)
        order = Order(
            mode=Mode.UNDO,
            started_at=now.replace(microsecond=0),
            database=database,
            host=self.target.host,
            port=self.target.port,
            system_identifier=here,
            incoming=back.name,
            incoming_oid=standing(server, back.name).oid,
            live_oid=live.oid,
            kept=before_name(database, at),
            services=dict.fromkeys(self.services.names),
            subscriptions=record.subscriptions if record else (),
            health_url=self._health_url,
            launched_by=launched_by,
            run_id=run_id,
            made_by=MADE_BY,
        )
        if not live.exists:
            raise self._nothing_to_replace()
        for name in (database, back.name):
            for obstacle in obstacles(server, name):
                raise obstacle
        until = replaced(back, record.swapped_at if record else None)
        facts = {
            "undo": f"{back.name} ({_size(back.size_bytes)}), {until}, is live again",
            "kept": f"what is live now stays as {order.kept}; to swap back to it: ovia-backup undo-restore",
            "since": f"{self._since(record, live)}; it stays in {order.kept}",
            "sessions": _sessions([*live.sessions, *standing(server, back.name).sessions]),
        }
        return Plan(order, None, database, facts | self._services_fact(order))

    def _nothing_to_replace(self, instead: str = "") -> RestoreRefusedError:
        """What to do where the live database is gone: what a restore has kept may be newer than any backup."""
        server, database = self._server, self.target.database
        rename = "".join(
            f"go back to {each.name}, as it is: ALTER DATABASE {sql_identifier(each.name)} RENAME TO "
            f"{sql_identifier(database)}"
            for each in kept(server, database)[:1]
        )
        return RestoreRefusedError(
            f"there is no database {database} at {server.host}:{server.port} to replace",
            why="POSTGRES_DB is wrong, or this is a new server, or the database was dropped",
            fix="; or ".join(filter(None, (instead, rename))),
        )

    def _since(self, record: Record | None, live: Standing) -> str:
        """What was written since a swap; its counters are of the database that it made live, and of no other."""
        server, database = self._server, self.target.database
        if record is not None and record.counters and record.live_oid == live.oid:
            changes = written_since(server, database, Counters.model_validate(record.counters))
            if changes == []:
                return "nothing was written since the swap"
            if changes is not None:
                return "written since the swap: " + _some([_change(change) for change in changes])
        newest = _newest(server, database)
        return f"what was written since the swap is not known; newest: {newest or 'nothing with a time'}"

    @property
    def _health_url(self) -> str:
        """As an order may show it."""
        return shown(self.services.health_url) if self.services.health_url else ""

    # ---- what is asked of the server and the volume

    @property
    def _server(self) -> Connection:
        """To a database that is there whatever becomes of the live one."""
        return beside(self.target, self.target.database)

    def _free_instant(self, now: datetime) -> datetime:
        """Now, or the second soon after that no database beside the live one is named by."""
        database = self.target.database
        while any(standing(self._server, name(database, now)).exists for name in (restore_name, before_name)):
            now += timedelta(seconds=1)
        return now

    def _backup(self, wishes: Wishes, now: datetime) -> Backup:
        catalog = self.driller.catalog
        backup = self.driller.find(wishes.backup, anywhere=wishes.anywhere)
        backup = catalog.settled(backup, now, "ovia-backup restore")
        if backup.foreign:
            what, by_hand = backup.foreign
            raise RestoreRefusedError(
                f"{backup} is {what}",
                why="what is restored here is pg_dump's custom format",
                fix=f"choose another (ovia-backup list); or by hand, into a database of its own: {by_hand}",
            )
        if backup.state(now) is State.BAD and not wishes.even_if_damaged:
            problem = backup.problem
            strange = backup.judgement is not None and bool(backup.judgement.strange)
            meant = f"if it is what was meant: ovia-backup accept {catalog.word(backup)}; else " if strange else ""
            raise RestoreRefusedError(
                f"{backup} is known to be bad",
                why=problem.reason if problem else "its verification failed",
                fix=f"{meant}choose another (ovia-backup list); or take what can be had of it, into a database of its "
                "own: " + replace(wishes, mode=Mode.NEW, auto_undo=False, even_if_damaged=True).command(),
            )
        return backup

    def _refuse_unfinished(self) -> None:
        """What is wrong then looks like something else: a database that is missing, or is not the one that it was."""
        if trouble := RestoreFolder(self.driller.catalog).standing().trouble:
            raise trouble

    def _refuse_other_database(self, backup: Backup, wishes: Wishes) -> None:
        database, held = self.target.database, self._held(backup)
        if wishes.new_host or held in ("", database):
            return
        elsewhere = replace(wishes, mode=Mode.NEW, auto_undo=False, into=restore_name(database, backup.started_at))
        raise RestoreRefusedError(
            f"{backup} is of database {held}, and not of {database}",
            why="it stands among the wrong backups, or the database was renamed since",
            fix=f"choose another: ovia-backup list; for a look: {elsewhere.command()}; if it was renamed: "
            + replace(wishes, new_host=True).command(),
        )

    def _held(self, backup: Backup) -> str:
        """The name of the database that the backup was made of; empty where nobody knows."""
        if backup.manifest:
            return backup.manifest.database.name
        with contextlib.suppress(BackupError):  # what is damaged is said when it is read
            return archives.database_of(archives.contents_list(self.programs, backup.path))
        return ""

    def _refuse_other_server(self, backup: Backup, here: str | None, wishes: Wishes) -> None:
        manifest = backup.manifest
        there = manifest.database.system_identifier if manifest else None
        if wishes.new_host or here is None or there is None or here == there:
            return
        raise RestoreRefusedError(
            f"the server at {self.target.host}:{self.target.port} is not the one that {backup} was made of",
            why=f"its system identifier is {here}, the backup's {there}",
            fix="if it is the wrong one: RESTORE_POSTGRES_HOST, POSTGRES_HOST; if it is a new one: "
            + replace(wishes, new_host=True).command(),
        )

    def _refuse_other_version(self, server_major: int) -> None:
        ours = self.programs.major("pg_restore")
        if ours != server_major:
            raise VersionMismatchError(
                f"pg_restore is of version {ours}, and the server of version {server_major}",
                why="what one writes, the other may not take",
                fix=f"install PostgreSQL {server_major}'s client programs, or set PG_BIN_DIR to their folder",
            )

    def _refuse_missing_extensions(self, backup: Backup) -> None:
        """The drill before a drop cannot know: it has a server of its own."""
        if backup.manifest is None:
            return
        with connect(self._server) as session:
            available = {row["name"] for row in session.execute("SELECT name FROM pg_available_extensions")}
        if lacking := sorted(backup.manifest.database.extensions.keys() - available):
            raise ExtensionMissingError(
                f"the server at {self.target.host}:{self.target.port} lacks extensions that {backup} needs: "
                f"{', '.join(lacking)}",
                why="their packages are not installed there, or their files are gone",
                fix="install their packages on that server; then try again",
            )

    def _roles(self, order: Order, backup: Backup) -> tuple[dict[str, str], list[str]]:
        """Which roles are made, and what they are not given."""
        saved = backup.saved_roles()
        known = roles.saved(saved or b"")
        if unknown := [name for name in order.privileged_roles if name not in known]:
            raise RestoreRefusedError(
                f"no role {unknown[0]} was saved with {backup}",
                why=f"saved: {', '.join(known) or 'none'}",
                fix="name one of them, or leave --create-privileged-role out",
            )
        if saved is None:
            return {}, []
        schema = None if order.new_host else archives.schema_text(self.programs, backup.path)
        plan = roles.planned(self._server, saved, schema, order.privileged_roles)
        warnings = [
            f"role {each.name} is made without power over others ({'; '.join(each.left_out)}); with it: "
            f"--create-privileged-role {shell_word(each.name)}"
            for each in plan
            if each.left_out
        ]
        there = set(order.privileged_roles) - {each.name for each in plan}
        warnings += [f"role {name} is there already, or not needed: it is left as it is" for name in sorted(there)]
        return {"roles": f"made, without passwords: {', '.join(each.name for each in plan) or 'none'}"}, warnings

    def _refuse_missing_roles(self, order: Order, backup: Backup, wishes: Wishes) -> None:
        saved = backup.saved_roles()
        if saved is None:
            # The old script saved none. The restore says which is missing, before anything is replaced; but not before
            # a database is dropped, since the drill before that makes them up.
            if order.mode is Mode.DROP:
                self._refuse_unknown_roles(backup)
            return
        schema = archives.schema_text(self.programs, backup.path)
        if lacking := roles.missing(self._server, saved, schema):
            raise RestoreRefusedError(
                f"the server lacks roles that the backup's objects belong to: {', '.join(lacking)}",
                why="roles belong to the server, not to a database",
                fix=f"make them as they were saved: {replace(wishes, create_roles=True).command()}",
            )

    def _refuse_unknown_roles(self, backup: Backup) -> None:
        with connect(self._server) as session:
            there = {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
        if lacking := sorted(roles.named(archives.schema_text(self.programs, backup.path)) - there):
            raise RestoreRefusedError(
                f"the server lacks roles that the backup's objects belong to: {', '.join(lacking)}",
                why="none were saved with this backup",
                fix="make them, as a superuser: "
                + "; ".join(f"CREATE ROLE {sql_identifier(name)}" for name in lacking),
            )

    def _refuse_full_disk(
        self, order: Order, backup: Backup, live: Standing, facts: dict[str, str], wishes: Wishes
    ) -> None:
        manifest = backup.manifest
        size = (manifest.database.size_bytes if manifest else None) or backup.size_bytes
        needed = needed_bytes(size)
        free = free_bytes(self._server)
        if free is None:
            facts["space"] = f"about {human_bytes(needed)} needed; how much is free, this role may not ask the server"
            return
        if order.mode is Mode.DROP:
            free += live.size_bytes or 0
        facts["space"] = f"about {human_bytes(needed)} needed, {human_bytes(free)} free on the server"
        if free < needed:
            room = "make room there; what earlier restores have kept: ovia-backup undo-restore --list"
            drop = ""
            if order.mode is Mode.SWAP and not order.new_host:
                drop = "; or, if there is none to be made, replace the database without a way back: "
                drop += replace(wishes, mode=Mode.DROP, auto_undo=False).command()
            raise RestoreRefusedError(
                f"the server at {order.place} has too little room for what the backup becomes",
                why=f"{human_bytes(free)} free, {human_bytes(needed)} needed",
                fix=room + drop,
            )

    def _services(self, wishes: Wishes, goes_live: bool) -> dict[str, int | None]:
        unknown = sorted(set(wishes.replicas) - set(self.services.names))
        if unknown:
            raise RestoreRefusedError(
                f"replicas were given for a service that no restore stops: {', '.join(unknown)}",
                why=f"SWARM_APP_SERVICES names: {', '.join(self.services.names) or 'none'}",
                fix="add it to SWARM_APP_SERVICES, or leave it out",
            )
        if not goes_live:
            return {}
        return {name: wishes.replicas.get(name) for name in self.services.names}

    def _services_fact(self, order: Order) -> dict[str, str]:
        """What is to be stopped, as Docker knows it: not found out only once the new database waits to go live."""
        try:
            counts = {name: self.swarm.replicas(name) for name in order.services}
            if order.migrate:
                self.swarm.check_once(order.migrate)
        except DockerUnreachableError as error:
            by_hand = "or stop the services by hand, and go on without them: the same with --without-services"
            raise DockerUnreachableError(
                error.what, why=error.why, said=error.said, fix=f"{error.fix}; {by_hand}"
            ) from None
        if not counts:
            return {}
        when = "from the beginning" if order.steps[0] is Step.STOP else "for the last steps alone"
        replicas = ", ".join(f"{name} ({count} replicas)" for name, count in counts.items())
        return {"services": f"stopped {when}: {replicas}"}

    # ---- what is shown

    def _facts(self, order: Order, backup: Backup, live: Standing, now: datetime) -> tuple[dict[str, str], list[str]]:
        witness = backup.witness
        rows = f", {witness.rows:,} rows" if witness else ""
        known = backup.state(now)
        # One that stands elsewhere is nobody's to wait for.
        state = (State.UNPROVEN if known is State.BEING_WRITTEN else known).value
        state += ", restored by a drill" if backup.drilled else ""
        age = duration(now - backup.started_at)
        made, since = f"of {backup.started_at:%Y-%m-%d %H:%M:%S} UTC, {age} old", f"{age} ago"
        if backup.manifest is None and BackupName.parse(backup.path.name) is None:
            made = f"of an unknown time; the file is of {backup.started_at:%Y-%m-%d %H:%M:%S} UTC"
            since = "whenever that was made"
        facts = {
            "restore": f"{backup} {made} ({state}{rows}, {human_bytes(backup.size_bytes)})",
            "onto": f"database {order.database} at {order.place}"
            + (f" ({_size(live.size_bytes)})" if live.exists else ", which is made"),
        }
        if order.becomes != order.database:
            besides = "and roles that the server lacks; nothing" if order.create_roles else "nothing"
            facts["onto"] = f"a new database {order.becomes} at {order.place}; {besides} else is touched"
        warnings = []
        if order.mode in (Mode.SWAP, Mode.DROP):
            newest = _newest(self._server, order.database)
            facts["lost"] = f"what was written since the backup, {since}" + (f"; newest: {newest}" if newest else "")
            facts["sessions"] = _sessions(live.sessions)
        facts["time"] = _expected(backup, self.driller.drills.newest_first())
        if order.mode is Mode.SWAP:
            facts["undo"] = f"the old database stays as {order.kept}: ovia-backup undo-restore"
        if order.mode is Mode.DROP:
            facts["undo"] = "NONE: the old database is dropped before the backup is restored"
            warnings.append(f"database {order.database} is destroyed; mode swap would keep it")
        if backup.state(now) is not State.PROVEN:
            warnings.append("this backup is not proven yet: it is verified first, which takes as long as reading it")
        if not backup.manifest:
            without = backup.manifest_trouble or "it has no manifest"
            warnings.append(f"{without}: neither its server nor its roles are known")
        elif order.new_host and order.system_identifier in {backup.manifest.database.system_identifier} - {None}:
            warnings.append(f"{order.place} is no new host: it is the server that the backup was made of")
        if order.new_host and (held := self._held(backup)) not in ("", order.becomes):
            warnings.append(f"it is of database {held}, and not of {order.becomes}")
        warnings += self._functions(backup)
        found = subscriptions(self._server, order.database) if live.exists else []
        if found and order.mode is not Mode.NEW:
            after = "they are dropped with the database, and their slots are left on the publishers"
            if order.mode is Mode.SWAP:
                after = (
                    f"{order.kept} keeps them, disabled; until it is dropped, their slots keep WAL on the publishers"
                )
            warnings.append(f"subscriptions are not restored ({', '.join(each.name for each in found)}): {after}")
        return facts, warnings

    def _functions(self, backup: Backup) -> list[str]:
        """What would run with more rights than its owners have."""
        try:
            found = executed.reach(self._server, self.programs, backup)
        except BackupError as error:  # a damaged archive, of which something is to be saved
            return [f"which functions the restore runs is not known: {error.account}"]
        if not found.functions:
            return []
        return [f"{found}; let the role restore that deploy/restore-role.sql makes, or be sure of their owners"]


def _refuse_contradictions(wishes: Wishes) -> None:
    wrong = ""
    if wishes.even_if_damaged and wishes.mode is not Mode.NEW:
        wrong = "what is damaged must not go live: --even-if-damaged needs --mode new"
    elif wishes.into and wishes.mode is not Mode.NEW:
        wrong = "--into names a new database, and needs --mode new"
    elif wishes.auto_undo and wishes.mode is not Mode.SWAP:
        wrong = "--auto-undo swaps back, and needs --mode swap"
    if wrong:
        raise RestoreRefusedError("these options contradict each other", why=wrong, fix="ovia-backup restore --help")


def _refuse_impossible_name(name: str) -> None:
    count = len(name.encode(errors="surrogatepass"))
    if count > NAME_BYTES or not is_utf8(name):
        why = f"it has {count} bytes, and PostgreSQL takes {NAME_BYTES}" if is_utf8(name) else "it is not UTF-8"
        raise RestoreRefusedError(
            f"no database can be called {shell_word(name)}", why=why, fix="choose a shorter name: --into NAME"
        )


def _sessions(sessions: Sequence[ClientSession]) -> str:
    if not sessions:
        return "none to be cut"
    counted = Counter(map(str, sessions)).most_common()
    return f"{len(sessions)} will be cut: " + _some([f"{number} x {name}" for name, number in counted])


def _change(change: Written) -> str:
    counts = {"inserted": change.inserted, "updated": change.updated, "deleted": change.deleted}
    return f"{change.table} " + ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _size(count: int | None) -> str:
    return "of unknown size" if count is None else human_bytes(count)


def _newest(server: Connection, database: str) -> str:
    try:
        found = newest_timestamps(server, database)
    except BackupError:
        return ""  # a help for people, and no reason to refuse
    return ", ".join(f"{column} {at:%Y-%m-%d %H:%M:%S}" for column, at in found)


def _expected(backup: Backup, drills: Iterator[Evidence]) -> str:
    for evidence in drills:
        if evidence.passed and evidence.recovery_seconds and evidence.backup_bytes:
            proving = sum(evidence.phases.get(name, 0.0) for name in ("reading the copy", "comparison"))
            factor = backup.size_bytes / evidence.backup_bytes
            seconds = (evidence.recovery_seconds + proving) * factor
            about = duration(timedelta(seconds=seconds))
            return f"about {about}, as the drill of {evidence.started_at.astimezone(UTC):%Y-%m-%d} suggests"
    return "unknown: no drill has passed yet"

"""Finds every obstacle to a restore, all at once, before anything is touched.

The checks are independent: an obstacle that one finds does not keep the others from running. Other facts belong to
``plan_facts``, contradictory requests to ``request``, roles and services to ``preflight_roles`` and
``preflight_services``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.errors import (
    BackupError,
    RestoreRefusedError,
    ServerUnreachableError,
    VersionMismatchError,
)
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.naming import restore_name
from ovia_backup_dagster.drill.placement import needed_bytes
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.disk_space import free_bytes
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import other_database
from ovia_backup_dagster.proof import executed_functions
from ovia_backup_dagster.restoration import archive_requirements as backup_needs
from ovia_backup_dagster.restoration import server_offers
from ovia_backup_dagster.restoration.replaced_databases import kept
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.requirements import unmet
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.restoration.swap import DatabaseState, database_state, obstacles


@dataclass(slots=True)
class Preflight:
    """The findings so far.

    Attributes:
        driller: catalog, programs, and the drills so far.
        target: the live database, as the role that restores.
        obstacles: why the restore is not possible now, each with its remedy.
        facts: title -> text, for people.
        warnings: texts that deserve attention.
    """

    driller: Driller
    target: Connection
    obstacles: list[BackupError] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def programs(self) -> Programs:
        return self.driller.verifier.programs

    @property
    def server(self) -> Connection:
        """A connection to a database other than the live one."""
        return other_database(self.target, self.target.database)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn an error of the block into an obstacle, so that the next checks still run.

        Raises:
            ServerUnreachableError: the server cannot be reached.
        """
        try:
            yield
        except ServerUnreachableError:
            raise
        except BackupError as error:
            if str(error) not in map(str, self.obstacles):  # such as a file that several checks need
                self.obstacles.append(error)

    def refuse(self, what: str, why: str, fix: str) -> None:
        self.obstacles.append(RestoreRefusedError(what, why=why, fix=fix))

    # ---- the backup

    def bad(self, backup: Backup, wishes: Wishes, now: datetime) -> bool:
        """Whether the backup is known to be bad, unless ``even_if_damaged`` is set."""
        is_bad = backup.state(now) is State.BAD and not wishes.even_if_damaged
        if is_bad:
            problem = backup.problem
            strange = backup.judgement is not None and bool(backup.judgement.strange)
            word = self.driller.catalog.word(backup)
            meant = f"if it is what was meant: ovia-backup accept {word}; else " if strange else ""
            self.refuse(
                f"{backup} is known to be bad",
                problem.reason if problem else "its verification failed",
                f"{meant}choose another (ovia-backup list); or restore what can be read of it, into a database of its "
                "own: " + replace(wishes, mode=Mode.NEW, auto_undo=False, even_if_damaged=True).command(),
            )
        return is_bad

    def origin(self, backup: Backup, here: str | None, wishes: Wishes) -> bool:
        """Whether the backup is of this server, as far as is known, or ``new_host`` is set.

        Args:
            backup: the backup to restore.
            here: this server's system identifier, if known.
            wishes: ``new_host`` allows a backup of another server.
        """
        manifest = backup.manifest
        there = manifest.database.system_identifier if manifest else None
        if wishes.new_host or here is None or there is None or here == there:
            return True
        self.refuse(
            f"the server at {self.target.host}:{self.target.port} is not the one from which {backup} was made",
            f"its system identifier is {here}, the backup's {there}",
            "if it is the wrong one: RESTORE_POSTGRES_HOST, POSTGRES_HOST; if it is a new one: "
            + replace(wishes, new_host=True).command(),
        )
        return False

    def database(self, backup: Backup, wishes: Wishes) -> None:
        """Whether the backup is of the database that it would replace."""
        database, held = self.target.database, self.held(backup)
        if wishes.new_host or held in ("", database):
            return
        elsewhere = replace(wishes, mode=Mode.NEW, auto_undo=False, into=restore_name(database, backup.started_at))
        self.refuse(
            f"{backup} is of database {held}, and not of {database}",
            "it is in the wrong folder of backups, or the database was renamed since",
            f"choose another: ovia-backup list; for a look: {elsewhere.command()}; if it was renamed: "
            + replace(wishes, new_host=True).command(),
        )

    def held(self, backup: Backup) -> str:
        """The name of the backup's source database; empty if unknown."""
        if backup.manifest:
            return backup.manifest.database.name
        with contextlib.suppress(BackupError):  # damage is reported when the archive is read
            return archives.database_of(archives.contents_list(self.programs, backup.path))
        return ""

    # ---- the server

    def version(self, server_major: int) -> None:
        """Whether the client programs have the server's major version."""
        with self.collecting():
            ours = self.programs.major("pg_restore")
            if ours != server_major:
                raise VersionMismatchError(
                    f"pg_restore is of version {ours}, and the server of version {server_major}",
                    why="a server may refuse what another version's pg_restore sends",
                    fix=f"install PostgreSQL {server_major}'s client programs, or set PG_BIN_DIR to their folder",
                )

    def nothing_to_replace(self, instead: str = "") -> RestoreRefusedError:
        """The error if the live database is gone. It offers kept databases, which may be newer than any backup."""
        server, database = self.server, self.target.database
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

    def places(self, order: Order) -> None:
        """Whether the role may create, rename and drop the order's databases, and nothing blocks that."""
        with self.collecting():
            name = order.becomes
            if order.mode is Mode.NEW and database_state(self.server, name).exists:
                # Sessions that hold this database do not matter; missing rights of the role do.
                name = restore_name(self.target.database, order.started_at)
                self.refuse(
                    f"there is a database {order.becomes} at {order.place} already",
                    "mode new creates a database, and touches no other",
                    "choose another name: --into NAME",
                )
            self.obstacles += obstacles(self.server, name, mode_needs_swap=order.mode is Mode.SWAP)

    def room(self, order: Order, backup: Backup, live: DatabaseState, wishes: Wishes) -> None:
        """Whether the server has room for the restored database, as far as the role may query it."""
        manifest = backup.manifest
        size = (manifest.database.size_bytes if manifest else None) or backup.size_bytes
        needed, free = needed_bytes(size), free_bytes(self.server)
        if free is None:
            text = f"about {human_bytes(needed)} needed; this role may not ask the server how much is free"
            self.facts["space"] = text
            return
        if order.mode is Mode.DROP:
            free += live.size_bytes or 0
        self.facts["space"] = f"about {human_bytes(needed)} needed, {human_bytes(free)} free on the server"
        if free < needed:
            room = "make room there; what earlier restores have kept: ovia-backup undo-restore --list"
            drop = ""
            if order.mode is Mode.SWAP and not order.new_host:
                drop = "; or, if there is none to be made, replace the database without a way back: "
                drop += replace(wishes, mode=Mode.DROP, auto_undo=False).command()
            self.refuse(
                f"the server at {order.place} has too little room for the restored database",
                f"{human_bytes(free)} free, {human_bytes(needed)} needed",
                room + drop,
            )

    # ---- the backup's contents

    def contents(self, order: Order, backup: Backup, live: DatabaseState) -> None:
        """Whether this role can create the backup's objects on this server.

        Of a damaged backup, entries that cannot be created are reported and left out.
        """
        try:
            needs = backup_needs.requirements_of(self.programs, backup)
            if order.becomes == order.database:
                # Rights of the live database's owner are checked above.
                needs = replace(needs, owners=set(needs.owners) - {live.owner})
            found, warnings = unmet(needs, server_offers.offers_of(self.server, needs, live.owner), max(2, order.jobs))
        except BackupError as error:
            found, warnings = [error], []
        self.warnings += warnings
        if order.even_if_damaged:
            self.warnings += [each.account for each in found]
        else:
            self.obstacles += found

    def functions(self, backup: Backup) -> None:
        """Whether functions of the backup would run with more rights than their owners have."""
        try:
            found = executed_functions.reach(self.server, self.programs, backup)
        except BackupError as error:  # a damaged archive, of which the rest is to be restored
            self.warnings.append(f"it is not known which functions the restore runs: {error.account}")
            return
        if found.functions:
            instead = "restore as the role that deploy/restore-role.sql creates, or be sure of their owners"
            self.warnings.append(f"{found}; {instead}")

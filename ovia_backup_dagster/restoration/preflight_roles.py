"""Checks that the target server has the roles that a backup needs, or that the restore can create them.

``preflight`` finds all other obstacles.
"""

from __future__ import annotations

from dataclasses import replace

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import roles
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, Order


def check_roles(found: Preflight, order: Order, backup: Backup, wishes: Wishes) -> None:
    """Check that the server has the owners of the backup's objects, or list the roles that the restore creates."""
    with found.collecting():
        saved = backup.saved_roles()
        if order.create_roles:
            _roles_to_make(found, order, backup, saved)
        elif saved is not None:
            _missing_roles(found, backup, saved, wishes)
        elif order.mode is Mode.DROP:
            # The old script saved no roles. The restore reports a missing one before it replaces anything, but not
            # before a database is dropped, since the drill before that creates stand-ins.
            _unknown_roles(found, backup)


def _roles_to_make(found: Preflight, order: Order, backup: Backup, saved: bytes | None) -> None:
    known = roles.saved(saved or b"")
    if unknown := [name for name in order.privileged_roles if name not in known]:
        found.refuse(
            f"no role {unknown[0]} was saved with {backup}",
            f"saved: {', '.join(known) or 'none'}",
            "name one of them, or leave --create-privileged-role out",
        )
    if saved is None:
        return
    schema = None if order.new_host else archives.schema_text(found.programs, backup.path)
    plan = roles.planned(found.server, saved, schema, order.privileged_roles)
    found.warnings += [
        f"role {each.name} is created without power over others ({'; '.join(each.left_out)}); with it: "
        f"--create-privileged-role {shell_word(each.name)}"
        for each in plan
        if each.left_out
    ]
    there = set(order.privileged_roles) - {each.name for each in plan}
    found.warnings += [f"role {name} already exists, or is not needed: it is left unchanged" for name in sorted(there)]
    found.facts["roles"] = shortened(f"created, without passwords: {', '.join(each.name for each in plan) or 'none'}")
    _roles_to_give(found, backup, saved)


def _roles_to_give(found: Preflight, backup: Backup, saved: bytes) -> None:
    """Check that the restoring role can create the owners, and give objects to them."""
    needed = roles.missing(found.server, saved, archives.schema_text(found.programs, backup.path))
    if needed and not roles.may_make(found.server):
        alter = f"ALTER ROLE {sql_identifier(found.target.user)}"
        found.refuse(
            f"role {found.target.user} may not create the roles that the server lacks and give them what is theirs: "
            f"{', '.join(needed)}",
            "this takes CREATEROLE, and createrole_self_grant to act for the roles that it has created",
            f"as a superuser: {alter} CREATEROLE; {alter} SET createrole_self_grant = 'set, inherit'; or let a "
            "superuser restore: RESTORE_POSTGRES_USER",
        )


def _missing_roles(found: Preflight, backup: Backup, saved: bytes, wishes: Wishes) -> None:
    schema = archives.schema_text(found.programs, backup.path)
    if lacking := roles.missing(found.server, saved, schema):
        found.refuse(
            f"the server lacks roles that the backup's objects belong to: {', '.join(lacking)}",
            "roles belong to the server, not to a database",
            f"create them as they were saved: {replace(wishes, create_roles=True).command()}",
        )


def _unknown_roles(found: Preflight, backup: Backup) -> None:
    with connect(found.server) as session:
        there = {row["rolname"] for row in session.execute("SELECT rolname FROM pg_roles")}
    if lacking := sorted(roles.roles_named_in(archives.schema_text(found.programs, backup.path)) - there):
        found.refuse(
            f"the server lacks roles that the backup's objects belong to: {', '.join(lacking)}",
            "none were saved with this backup",
            "create them, as a superuser: " + "; ".join(f"CREATE ROLE {sql_identifier(name)}" for name in lacking),
        )

"""Which functions of an archive a restore runs, and whether they gain rights that their owners do not have.

A restore runs the functions of CHECK constraints, generated columns, indexes on expressions and materialized views, as
the role that restores. If that role is a superuser on a server that others use, the owner of such a function can become
a superuser, too. The archive's contents list records the source's ``pg_depend``, so it names every function that a
restored object depends on, also through operators, types, domains or views.

The contents list does not show calls in the body of a superuser's function, or the functions of an extension. So the
result names functions that are known to run; an empty result does not mean that none runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.postgres import archive
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.proof import roles

_SHOWN = 3
#: ``225; 1255 16394 FUNCTION m f(integer) mallory``, and the line after it.
_ENTRY = re.compile(r"^(\d+); (\d+) \d+ (.+)$(?:\n;\tdepends on:((?: \d+)*)$)?", re.MULTILINE)
#: OID of ``pg_proc``: it marks an entry as a function of any kind.
_FUNCTION = "1255"
#: Entries that a restore creates without running the functions that they depend on. All others are assumed to run them.
_ONLY_MADE = re.compile(
    r"(?:FUNCTION|PROCEDURE|AGGREGATE|VIEW|POLICY|TRIGGER|OPERATOR|OPERATOR CLASS|OPERATOR FAMILY|CAST|TYPE|SHELL TYPE"
    r"|DEFAULT|DEFAULT ACL|ACL|COMMENT|SECURITY LABEL|TRANSFORM) "
)
_TRIGGER = "TRIGGER "
#: Entries whose SQL must be read, because their dependencies do not tell enough.
_TELLING = (_TRIGGER, "CONSTRAINT ")
#: A drill deletes a row with session_replication_role = replica, so these triggers fire.
_FIRES = re.compile(rb" ENABLE (?:ALWAYS|REPLICA) TRIGGER ")
#: Such a constraint depends on its table alone. An operator with a schema before its name is not PostgreSQL's own.
_EXCLUDES = re.compile(rb" EXCLUDE USING [^;]*[\w\"]\.[\w\"]")
_POWER = """
    SELECT me.rolname AS name, me.rolsuper AS superuser,
           (SELECT string_agg(quote_ident(r.rolname), ', ' ORDER BY r.rolname) FROM pg_roles r
            WHERE (r.rolsuper OR r.rolname IN ('pg_execute_server_program', 'pg_write_server_files',
                                               'pg_read_server_files'))
            AND NOT me.rolsuper AND pg_has_role(me.oid, r.oid, 'MEMBER')) AS groups
    FROM pg_roles me WHERE me.rolname = current_user
"""


@dataclass(frozen=True, slots=True)
class Reach:
    """The rights that other roles' functions would gain by a restore.

    Attributes:
        role: the role that restores, and its power; empty if it has no power that a function could gain.
        functions: those that would run with it, as the archive's contents list names them, with their owners.
    """

    role: str
    functions: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.functions) - _SHOWN:,} more" if len(self.functions) > _SHOWN else ""
        count = f"{len(self.functions):,} function{'s' * (len(self.functions) != 1)}"
        return (
            f"{count} of roles that are not superusers run as {self.role}: {', '.join(self.functions[:_SHOWN])}{more}"
        )


def reach(server: Connection, programs: Programs, backup: Backup) -> Reach:
    """Find the functions that a restore of a backup would run with more rights than their owners have.

    Args:
        server: the target, connected to as the role that restores.
        programs: pg_restore is used.
        backup: the backup to restore.

    Raises:
        BackupError: the server, the archive or its saved roles cannot be read.
    """
    with connect(server) as session:
        power = session.execute(_POWER).fetchone()
        assert power is not None  # a session always has a role
        if not power["superuser"] and not power["groups"]:
            return Reach("", ())
        here = {
            row["rolname"]: bool(row["rolsuper"]) for row in session.execute("SELECT rolname, rolsuper FROM pg_roles")
        }
    saved = roles.saved_superusers(backup)
    # A superuser of this server may not have been one in the source.
    superusers = {name for name, is_one in here.items() if is_one and saved.get(name, True)}
    listing = archive.contents_list(programs, backup.path, "--verbose")
    with archive.use_list(listing, lambda entry: entry.startswith(_TELLING)) as telling:
        text = archive.schema_text(programs, backup.path, telling)
    who = f"{power['name']}, a {'superuser' if power['superuser'] else 'member of ' + power['groups']}"
    found = run_by_restore(
        listing,
        superusers,
        {*here, *saved},
        triggers_fire=_FIRES.search(text) is not None,
        all_may_run=_EXCLUDES.search(text) is not None,
    )
    return Reach(who, tuple(found))


def run_by_restore(
    listing: str,
    superusers: Collection[str],
    known: Collection[str],
    *,
    triggers_fire: bool = False,
    all_may_run: bool = False,
) -> list[str]:
    """The functions that a restore runs and that no superuser owns: a pure function.

    Args:
        listing: the output of ``pg_restore --list --verbose``.
        superusers: the names of the roles that are superusers.
        known: the names of all roles.
        triggers_fire: whether triggers fire in the restore or drill.
        all_may_run: whether any function may run, because the list does not name all dependencies.
    """
    entries = {match[1]: (match[2], match[3], (match[4] or "").split()) for match in _ENTRY.finditer(listing)}
    reached: set[str] = set()
    left = [number for number, (_, entry, _) in entries.items() if _runs(entry, triggers_fire=triggers_fire)]
    while left:
        number = left.pop()
        if number not in reached and number in entries:
            reached.add(number)
            left += entries[number][2]
    run = entries.keys() if all_may_run else reached
    found = (entry for number, (kind, entry, _) in entries.items() if number in run and kind == _FUNCTION)
    return sorted(entry for entry in found if not _of_superuser(entry, superusers, known))


def _runs(entry: str, *, triggers_fire: bool) -> bool:
    return _ONLY_MADE.match(entry) is None or (triggers_fire and entry.startswith(_TRIGGER))


def _of_superuser(entry: str, superusers: Collection[str], known: Collection[str]) -> bool:
    """Whether all roles that may own the entry are superusers. Its text does not show where the owner's name begins."""
    candidates = list(_owners(entry, known))
    return bool(candidates) and all(name in superusers for name in candidates)


def _owners(entry: str, known: Collection[str]) -> Iterator[str]:
    return (name for name in known if entry.endswith(f" {name}".replace("\n", " ").replace("\r", " ")))

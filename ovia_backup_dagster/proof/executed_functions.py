"""Which functions of an archive a restore runs, and whether that lends them rights that their owners have not.

A restore runs the functions of CHECK constraints, generated columns, indexes on expressions and materialized views, as
the role that restores. Where that role is a superuser on a server that others use, the owner of such a function can
become one, too. The archive's contents list says what depends on what, as the source's ``pg_depend`` had it: so what
anything depends on that a restore runs is named, be it through operators, types, domains or views.

What it cannot see: what the body of a superuser's function calls, and what an extension brings along. So it says what
is known to run, and never that nothing does.
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
#: ``pg_proc``: by it a function is known, whatever it is called.
_FUNCTION = "1255"
#: What a restore makes without running any function that it depends on. All else is taken to run them.
_ONLY_MADE = re.compile(
    r"(?:FUNCTION|PROCEDURE|AGGREGATE|VIEW|POLICY|TRIGGER|OPERATOR|OPERATOR CLASS|OPERATOR FAMILY|CAST|TYPE|SHELL TYPE"
    r"|DEFAULT|DEFAULT ACL|ACL|COMMENT|SECURITY LABEL|TRANSFORM) "
)
_TRIGGER = "TRIGGER "
#: Entries whose SQL says more than what they depend on.
_TELLING = (_TRIGGER, "CONSTRAINT ")
#: A drill takes a row away as replicas do, and so these fire.
_FIRES = re.compile(rb" ENABLE (?:ALWAYS|REPLICA) TRIGGER ")
#: Such a constraint depends on its table alone. What is not the system's own has its schema's name before it.
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
    """What a restore by a role would lend to others.

    Attributes:
        role: who restores, and with what power; empty where that role has none to lend.
        functions: those that would have it, as the archive's contents list names them, with their owners.
    """

    role: str
    functions: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.functions) - _SHOWN:,} more" if len(self.functions) > _SHOWN else ""
        count = f"{len(self.functions):,} function{'s' * (len(self.functions) != 1)}"
        return f"{count} of roles that are no superuser run as {self.role}: {', '.join(self.functions[:_SHOWN])}{more}"


def reach(server: Connection, programs: Programs, backup: Backup) -> Reach:
    """Look at what a restore of a backup would run with more rights than its owners have.

    Args:
        server: where, as the role that restores.
        programs: pg_restore is used.
        backup: which.

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
    # One of that name may be a superuser here, and have been none in the source.
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
        listing: as ``pg_restore --list --verbose`` prints it.
        superusers: the names of the roles that are superusers.
        known: the names of all roles.
        triggers_fire: whether there is a trigger that fires in a restore or a drill.
        all_may_run: whether something runs functions, and the list does not say which.
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
    """Where an entry's owner begins, it does not say: who could be the owner must be a superuser, each of them."""
    candidates = list(_owners(entry, known))
    return bool(candidates) and all(name in superusers for name in candidates)


def _owners(entry: str, known: Collection[str]) -> Iterator[str]:
    return (name for name in known if entry.endswith(f" {name}".replace("\n", " ").replace("\r", " ")))

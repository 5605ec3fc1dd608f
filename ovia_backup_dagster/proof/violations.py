"""Why an entry of an archive could not be restored: the rule that its rows break, and how to restore them anyway.

A table of PostgreSQL's messages, and the function that turns them into an error. Values of rows are never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.core.human_text import joined
from ovia_backup_dagster.postgres.quoting import without_literals
from ovia_backup_dagster.proof.load_rounds import Failure
from ovia_backup_dagster.proof.unqualified_functions import Leaning

_NAME = r'(?:"(?:[^"]|"")*"|[^\s".]+)(?:\.(?:"(?:[^"]|"")*"|[^\s".(]+))?'
_KEY = re.compile(rf"ADD CONSTRAINT (?P<name>{_NAME}) FOREIGN KEY \(.*?\) REFERENCES (?P<other>{_NAME})\(", re.DOTALL)
_OF = re.compile(
    rf"ALTER TABLE (?:ONLY )?(?P<table>{_NAME})|CREATE (?:UNIQUE )?INDEX .*? ON (?:ONLY )?(?P<indexed>{_NAME})"
)
#: Message -> its meaning; ``{table}`` is the table that was being loaded.
_BROKEN = (
    (
        re.compile(r'violates foreign key constraint "(?P<name>[^"]*)"'),
        "foreign key {name} ({table} → {other}) cannot be created",
    ),
    (
        re.compile(r'could not create unique index "(?P<name>[^"]*)"'),
        "unique {name} of {table} cannot be created: rows share a key",
    ),
    (
        re.compile(r'could not create exclusion constraint "(?P<name>[^"]*)"'),
        "exclusion constraint {name} of {table} cannot be created: rows conflict",
    ),
    (
        re.compile(r'conflicting key value violates exclusion constraint "(?P<name>[^"]*)"'),
        "exclusion constraint {name} of {table} is broken",
    ),
    (
        re.compile(r'duplicate key value violates unique constraint "(?P<name>[^"]*)"'),
        "unique {name} of {table} is broken: rows share a key",
    ),
    (
        re.compile(r'value for domain (?P<domain>\S+) violates check constraint "(?P<name>[^"]*)"'),
        "CHECK {name} of domain {domain} refuses a row of {table}",
    ),
    (re.compile(r'violates check constraint "(?P<name>[^"]*)"'), "CHECK {name} refuses a row of {table}"),
    (
        re.compile(r'check constraint "(?P<name>[^"]*)" of relation "[^"]*" is violated'),
        "CHECK {name} refuses a row of {table}",
    ),
    (
        re.compile(r'null value in column "(?P<name>[^"]*)" of relation'),
        "column {name} of {table} is NOT NULL, and a row has none",
    ),
    (
        re.compile(r'column "(?P<name>[^"]*)" of relation "[^"]*" contains null values'),
        "column {name} of {table} is NOT NULL, and a row has none",
    ),
    (
        re.compile(r"domain (?P<name>\S+) does not allow null values"),
        "domain {name} is NOT NULL, and a row of {table} has none",
    ),
)
#: Messages about missing privileges.
_RIGHTS = re.compile(
    r"permission denied|must be (?:a )?(?:owner|superuser|member)|must (?:be able|have)|only superuser"
)
_NO_ROLE = re.compile(r'role "(?P<name>(?s:.*?))" does not exist')
_SAID = 200


@dataclass(frozen=True, slots=True)
class Met:
    """An error without data values.

    Attributes:
        failure: the entry, and the complete message.
        said: the server's text, without values.
        command: the command that failed, without rows.
    """

    failure: Failure
    said: str
    command: str

    @property
    def table(self) -> str:
        """The table that was being loaded, if known."""
        if match := _OF.search(self.command):
            return match["table"] or match["indexed"]
        words = self.failure.entry.text.removeprefix("TABLE DATA ").split(" ")
        return ".".join(words[:2])

    @property
    def broken(self) -> str:
        """The rule that rows break, and its table; empty for any other error."""
        for pattern, text in _BROKEN:
            if match := pattern.search(self.said):
                return text.format_map({"table": self.table, "other": self._referenced, **match.groupdict()})
        if (key := _KEY.search(self.command)) and "exist" not in self.said and "permission" not in self.said:
            # In any language of the message.
            return f"foreign key {key['name']} ({self.table} → {key['other']}) cannot be created"
        return ""

    @property
    def text(self) -> str:
        """One line: the broken rule, or else the server's text."""
        return self.broken or f"{self._at}: {self.said}"[:_SAID]

    @property
    def _at(self) -> str:
        return self.failure.entry.text.rpartition(" ")[0]

    @property
    def _referenced(self) -> str:
        key = _KEY.search(self.command)
        return key["other"] if key else "the other table"


def error_of(what: str, met: Sequence[Met], leaning: Iterable[Leaning], rescue: str) -> RestoreError:
    """The error for entries that could not be restored.

    Args:
        what: names the failed operation.
        met: the errors, in the archive's order.
        leaning: functions that caused them.
        rescue: the command that restores the rows anyway; empty if there is none.
    """
    leaning = list(leaning)
    if leaning:
        names = joined([each.signature for each in leaning]).replace(";", ",")
        remedies = joined([each.remedy for each in leaning])
        return RestoreError(
            what,
            why=f"functions depend on search_path, which every restore sets to nothing: {names}",
            said=met[0].text,
            fix=_either(rescue, f"in the source, if it still exists: {remedies}; then dump and drill again"),
        )
    broken = list(dict.fromkeys(each.broken for each in met if each.broken))
    if broken:
        return RestoreError(
            f"{what}: {joined(broken)}",
            why="the backup holds all rows, and some break this rule, as the source let them: by a corrupt index, "
            "session_replication_role = replica, a changed function, or one that looks into rows that are not there "
            "yet; their values are not shown",
            fix=_either(
                rescue, "in the source, if it still exists, repair the rows or the rule; then dump and drill again"
            ),
        )
    said = joined(list(dict.fromkeys(each.said[:_SAID] for each in met)))
    if lacking := list(dict.fromkeys(match["name"] for each in met if (match := _NO_ROLE.search(each.said)))):
        return RestoreError(
            at_command(what, met[0].command),
            why=f"the server it is restored to has no role {joined(lacking)}",
            said=said,
            fix="make the roles as they were saved: ovia-backup restore --create-roles; or, for a drill, in a cluster "
            "of its own: ovia-backup drill --where throwaway",
        )
    if any(_RIGHTS.search(each.said) for each in met):
        return RestoreError(
            at_command(what, met[0].command),
            why="the role that restores, or the one that it is done for, may not do this: grants on what an extension "
            "or PostgreSQL itself has made, for one, are a superuser's",
            said=said,
            fix="let a superuser restore it: RESTORE_POSTGRES_USER=...; if one did, the role that is named must be one "
            "(--create-privileged-role NAME), or lacks a privilege in the source, too",
        )
    return RestoreError(
        at_command(what, met[0].command),
        why="it holds something that cannot be created again in this order, or not by this role",
        said=said,
        fix=_either(rescue, "in the source, if it still exists, repair what it is; then dump and drill again"),
    )


def _either(rescue: str, source: str) -> str:
    return f"to have every row that can be had: {rescue}; {source}" if rescue else source


def at_command(what: str, command: str) -> str:
    """``what``, with the command that failed, shortened and without literals."""
    at = " ".join(without_literals(command).split()).removesuffix(";")
    if len(at) > 120:
        at = at[:120] + "…"
    return f"{what}, at: {at}" if at else what

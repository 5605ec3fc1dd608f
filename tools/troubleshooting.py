"""docs/troubleshooting.md: every named failure, with cause and fix from the tables of diagnoses.

Failures whose cause is known only when they occur have no table: the page has their class's docstring.

``python -m tools.troubleshooting`` (``make docs``) writes it; a test compares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ovia_backup_dagster.core import errors, files, pitr_errors
from ovia_backup_dagster.postgres import archive, diagnosis
from ovia_backup_dagster.postgres.known_messages import KNOWN_MESSAGES
from tools.pages import DOCS

PAGE = DOCS / "troubleshooting.md"

_HEAD = """\
# When something fails

Made by `make docs` from the tables and the kinds of errors that the program itself uses. Every failure says four
things: what failed, the likely cause, what PostgreSQL or the operating system said, and what to do next; the same words
in the terminal, in the failed run of the UI, and in the alert. Capital words stand for what the message fills in. What
PostgreSQL says and no table here has is shown as it is.

Before anything fails: `ovia-backup doctor`. How the backups stand: `ovia-backup status`, `ovia-backup list`.
"""
_RESTORE = """\
The message names what was found, the likely cause and the next command, which depend on the situation. While a restore
is unfinished, no other begins: [what then](runbook.md#a-restore-was-killed-half-way).
"""
_OTHERS = """\
These, too, name cause and command in their message.
"""
_PLACEHOLDERS = ("host", "port", "user", "database", "role", "name", "set_password", "object")

_OF_RESTORES = (
    errors.RestoreError,
    errors.CopyError,
    errors.JournalError,
    errors.DatabaseInUseError,
    errors.ServiceManagerError,
)

Row = tuple[type[errors.BackupError], str, str]


def rendered() -> str:
    """The page for the present tables."""
    by_server = [row for row in _said() if issubclass(row[0], errors.ServerError)]
    by_programs = [row for row in _said() if not issubclass(row[0], errors.ServerError | errors.VolumeError)]
    damages = [
        (errors.ArchiveDamagedError, cause, "use another backup: `ovia-backup list`") for _, cause in archive._DAMAGES
    ]
    tables: dict[str, Sequence[Row]] = {
        "The server refuses, or goes away": by_server,
        "The client programs": by_programs,
        "The backup volume": list(files._DIAGNOSES.values()),
        "A backup is bad": damages,
    }
    explained = {kind for rows in tables.values() for kind, _, _ in rows}
    left = [kind for kind in kinds() if kind not in explained]
    of_restores = [kind for kind in left if issubclass(kind, _OF_RESTORES)]
    others = [kind for kind in left if kind not in of_restores]
    return _HEAD + "".join(
        (
            *(_section(title, rows) for title, rows in tables.items()),
            _names("A restore", _RESTORE, of_restores),
            _names("All others", _OTHERS, others),
        )
    )


def kinds() -> list[type[errors.BackupError]]:
    """All named failures, in the order of ``core.errors`` and ``core.pitr_errors``."""
    named = (*vars(errors).values(), *vars(pitr_errors).values())
    found = list(dict.fromkeys(kind for kind in named if isinstance(kind, type)))
    return [kind for kind in found if issubclass(kind, errors.BackupError) and kind is not errors.BackupError]


def _said() -> Iterator[Row]:
    names = {name: name.upper() for name in _PLACEHOLDERS} | {"role": "THE_ROLE", "name": "THE_DATABASE"}
    names |= {"login": "'THE_ROLE'", "literal": "'THE_DATABASE'"}
    names |= diagnosis._set_by(None)
    return ((d.error, diagnosis.likely_cause(d, None), d.fix.format_map(names)) for d in KNOWN_MESSAGES)


def _section(title: str, rows: Iterable[Row]) -> str:
    lines = [f"\n## {title}\n\n| error | likely cause | what to do |\n|---|---|---|\n"]
    lines += (f"| {kind.__name__} | {_cell(why)} | {_cell(fix)} |\n" for kind, why, fix in dict.fromkeys(rows))
    return "".join(lines)


def _names(title: str, about: str, found: Iterable[type[errors.BackupError]]) -> str:
    lines = [f"\n## {title}\n\n{about}\n| error | what it is |\n|---|---|\n"]
    lines += (f"| {kind.__name__} | {_cell(' '.join((kind.__doc__ or '').split()))} |\n" for kind in found)
    return "".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(rendered(), "utf-8")

"""docs/troubleshooting.md, from the tables of diagnoses: every failure that has a name, its cause and its remedy.

``python -m ovia_backup_dagster_tests.troubleshooting`` (``make docs``) writes it; a test compares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ovia_backup_dagster.core import errors, files
from ovia_backup_dagster.postgres import archive, diagnosis

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"

_HEAD = """\
# When something fails

Made by `make docs` from the tables that the program itself uses. Every failure says four things: what failed, the
likely cause, what PostgreSQL or the operating system said, and what to do next; the same words in the terminal, in the
failed run of the UI, and in the alert. Capital words stand for what the message fills in. A message that is not in
these tables is shown as it is.

Before anything fails: `ovia-backup doctor`. How the backups stand: `ovia-backup status`, `ovia-backup list`.
"""
_PLACEHOLDERS = ("host", "port", "user", "database", "role", "name", "set_password", "object")

Row = tuple[type[errors.BackupError], str, str]


def rendered() -> str:
    """The page as the tables are now."""
    by_server = [row for row in _said() if issubclass(row[0], errors.ServerError)]
    by_programs = [row for row in _said() if not issubclass(row[0], errors.ServerError | errors.VolumeError)]
    damages = [
        (errors.ArchiveDamagedError, cause, "use another backup: `ovia-backup list`") for _, cause in archive._DAMAGES
    ]
    return _HEAD + "".join(
        (
            _section("The server refuses, or goes away", by_server),
            _section("The client programs", by_programs),
            _section("The backup volume", files._DIAGNOSES.values()),
            _section("A backup is bad", damages),
        )
    )


def _said() -> Iterator[Row]:
    names = {name: name.upper() for name in _PLACEHOLDERS} | {"role": "THE_ROLE", "name": "THE_DATABASE"}
    return ((d.error, d.why, d.fix.format_map(names)) for d in diagnosis._DIAGNOSES)


def _section(title: str, rows: Iterable[Row]) -> str:
    lines = [f"\n## {title}\n\n| error | likely cause | what to do |\n|---|---|---|\n"]
    lines += (f"| {kind.__name__} | {_cell(why)} | {_cell(fix)} |\n" for kind, why, fix in dict.fromkeys(rows))
    return "".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


if __name__ == "__main__":
    PAGE.write_text(rendered(), "utf-8")

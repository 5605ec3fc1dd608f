"""The doctor's report: observations with a level (ok, warn, fail) and advice. The areas decide what is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import shortened
from ovia_backup_dagster.core.markdown import bullets, code, plain
from ovia_backup_dagster.health.condition import Answer, ConditionLevel


class Severity(StrEnum):
    """The level of an observation. Ordered as written: the worst is last."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Area(StrEnum):
    """The part that was checked."""

    SETTINGS = "settings"
    PROGRAMS = "programs"
    VOLUME = "volume"
    BACKUPS = "backups"
    SERVER = "server"
    RIGHTS = "rights"
    DRILLS = "drills"
    RESTORES = "restores"
    REMOTES = "remotes"
    PITR = "recovery"
    ALERTS = "alerts"
    DAGSTER = "dagster"

    @property
    def description(self) -> str:
        """What is checked, in a sentence."""
        return _DESCRIPTIONS[self]


#: Unknown is as bad as critical: if the condition cannot be determined, something fails already.
_SEVERITIES = {
    ConditionLevel.OK: Severity.OK,
    ConditionLevel.WARNING: Severity.WARN,
    ConditionLevel.UNKNOWN: Severity.FAIL,
    ConditionLevel.CRITICAL: Severity.FAIL,
}
_DESCRIPTIONS = {
    Area.SETTINGS: "The settings can be used, and the files that they name can be read.",
    Area.PROGRAMS: "The client programs are installed, have the right version, and have no known vulnerabilities.",
    Area.VOLUME: "The backup volume can be written to, is private, and has room; its folders and clock are right.",
    Area.BACKUPS: "The newest backup is fresh, and no crash left anything behind.",
    Area.SERVER: "The server answers, by a connection that is safe, and can be dumped.",
    Area.RIGHTS: "The role that dumps may read all that a dump reads.",
    Area.DRILLS: "A restore drill can be made, and the last one passed.",
    Area.RESTORES: "A restore can be made, and none is unfinished.",
    Area.REMOTES: "Each remote can be reached, is ours, and has fresh and complete copies.",
    Area.PITR: "WAL can be and is received, base backups can be and are made; or point-in-time recovery is off.",
    Area.ALERTS: "Alerts can be delivered.",
    Area.DAGSTER: "Dagster's daemons run, its triggers are on, and its limits keep runs apart.",
}


#: Limits that keep the Markdown below the 1,000 characters that Dagster's UI shows in place.
_MOST_SHOWN, _SHOWN_CHARACTERS = 5, 120


@dataclass(frozen=True, slots=True)
class Observation:
    """One finding of a check.

    Attributes:
        area: the part it belongs to.
        level: how serious it is.
        text: what was found, in one line.
        fix: how to fix it: a command for the shell, or an action.
        sql: statements to paste as a superuser in the database; ``fix`` is then the command that connects.
    """

    area: Area
    level: Severity
    text: str
    fix: str = ""
    sql: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Observation:
        """Parse the output of :meth:`as_dict`."""
        level = Severity(values["level"])
        return cls(Area(values["area"]), level, values["text"], values["fix"], tuple(values["sql"]))


def ok(area: Area, text: str) -> Observation:
    """Nothing to fix."""
    return Observation(area, Severity.OK, _printable(text))


def warn(area: Area, text: str, fix: str = "", *sql: str) -> Observation:
    """It works, but should be improved."""
    return Observation(area, Severity.WARN, _printable(text), _printable(fix), sql)


def fail(area: Area, text: str, fix: str = "", *sql: str) -> Observation:
    """A backup or an alert will fail."""
    return Observation(area, Severity.FAIL, _printable(text), _printable(fix), sql)


def _printable(text: str) -> str:
    """One line, whatever a table, a folder or a server's message contains."""
    return shortened("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def failed(area: Area, error: BackupError) -> Observation:
    """The error that an operation would raise, as a failure."""
    return fail(area, error.account, error.fix)


def from_answer(area: Area, answer: Answer) -> Observation:
    """An answer about the condition of the backups, in the words that ``status`` and alerts use."""
    return Observation(area, _SEVERITIES[answer.level], _printable(answer.text), _printable(answer.fix))


def worst(lines: Sequence[Observation]) -> Severity:
    """The worst level; ok if there are no lines."""
    return max((line.level for line in lines), key=list(Severity).index, default=Severity.OK)


def summary(lines: Sequence[Observation]) -> str:
    """``3 fail, 1 warn, 20 ok``."""
    counts = {level: sum(line.level is level for line in lines) for level in reversed(Severity)}
    return ", ".join(f"{count} {level}" for level, count in counts.items() if count)


def observations_of(lines: Sequence[Observation], area: Area) -> list[Observation]:
    """The lines of one area, the worst first."""
    return by_weight([line for line in lines if line.area is area])


def by_weight(lines: Sequence[Observation]) -> list[Observation]:
    """The worst first; lines of one level keep their order."""
    return sorted(lines, key=lambda line: list(Severity).index(line.level), reverse=True)


def markdown(lines: Sequence[Observation], *, named: bool = True) -> str:
    """As Markdown for a browser: an item per line, the worst first, with its fix.

    Args:
        lines: what was found.
        named: whether each item names its area.
    """
    return bullets(map(_item, by_weight(lines), [named] * len(lines))) if lines else "Nothing was checked."


def problems_markdown(lines: Sequence[Observation]) -> str:
    """The problems without their fixes: short, as Dagster's UI hides Markdown of 1,000 characters behind a link."""
    wrong = [line for line in by_weight(lines) if line.level is not Severity.OK]
    items = [f"**{line.level}** {line.area}: {plain(_beginning(line.text))}" for line in wrong[:_MOST_SHOWN]]
    if len(wrong) > _MOST_SHOWN:
        items.append(f"and {len(wrong) - _MOST_SHOWN} more: see the report")
    return f"{summary(lines)}\n\n{bullets(items)}".rstrip()


def _beginning(text: str) -> str:
    more = "\N{HORIZONTAL ELLIPSIS}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1].rstrip() + more


def _item(line: Observation, named: bool) -> str:
    area = f" {line.area}:" if named else ""
    item = f"**{line.level}**{area} {plain(line.text)}"
    if line.fix:
        item += f"\n  * Next: {plain(line.fix)}"
    if line.sql:
        item += "\n  * " + "\n  * ".join(map(code, line.sql))
    return item

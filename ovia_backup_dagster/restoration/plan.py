"""The plan of a restore: what it will do, and every obstacle. The operator confirms it before anything is touched.

``planner`` decides the plan's content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import BackupError, RestoreRefusedError
from ovia_backup_dagster.postgres.quoting import shell_word
from ovia_backup_dagster.restoration.replaced_databases import Kept
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.steps.registry import kind_of

#: Limits of the error that names all obstacles: how many, and characters of each.
_OBSTACLES, _WIDTH = 8, 90


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore will do.

    Attributes:
        order: every decision of the restore.
        backup: the backup to restore; ``None`` for an undo.
        destroys: the name that the operator must repeat to go on; empty if no existing data is touched.
        facts: title -> text, for people.
        warnings: texts that deserve attention.
        obstacles: why the restore is not possible now, each with its remedy.
        command: the command that makes this plan.
    """

    order: Order
    backup: Backup | None
    destroys: str
    facts: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    obstacles: tuple[BackupError, ...] = ()
    command: str = ""

    def lines(self) -> Iterator[str]:
        """For people: a line for each fact, then the steps."""
        width = max(map(len, self.facts), default=0)
        yield from (f"{title:<{width}}  {text}" for title, text in self.facts.items())
        yield from (f"{number}. {step}" for number, step in enumerate(self._steps(), 1))
        yield from (f"Mind: {warning}" for warning in self.warnings)
        count = len(self.obstacles)
        yield from (f"Obstacle {number} of {count}: {each}" for number, each in enumerate(self.obstacles, 1))

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "order": self.order.model_dump(mode="json"),
            "destroys": self.destroys or None,
            "steps": list(self._steps()),
            "facts": dict(self.facts),
            "warnings": list(self.warnings),
            "obstacles": [
                {"what": each.what, "why": each.why, "said": each.said, "fix": each.fix} for each in self.obstacles
            ],
        }

    def _steps(self) -> Iterator[str]:
        return (kind_of(word).describe(self.order) for word in self.order.steps)

    @property
    def refusal(self) -> BackupError | None:
        """The obstacle, or ``None``; if there are several, one error that names the first eight and counts the rest.

        Each name is cut to 90 characters. The plan's lines have the remedies.
        """
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
        """Refuse if there are obstacles.

        Raises:
            BackupError: the :attr:`refusal`.
        """
        if self.refusal is not None:
            raise self.refusal

    def confirm(self, typed: str) -> None:
        """Refuse unless the operator repeated the database's name.

        Raises:
            RestoreRefusedError: the name was not repeated.
        """
        name = self.destroys
        if name:
            confirm(name, typed, f"--yes-destroy {shell_word(name)}")


def confirm(name: str, typed: str, how: str) -> None:
    """Refuse unless the operator repeated the name of the database that is at stake.

    Raises:
        RestoreRefusedError: the name was not repeated; the message shows how to repeat it.
    """
    if typed != name:
        raise RestoreRefusedError(
            f"nothing was done: the name that was given to confirm is not {name}",
            why=f"it was {typed!r}" if typed else "none was given",
            fix=f"if that is what you mean, repeat the name: {how}",
        )


def replaced(each: Kept, at: datetime | None) -> str:
    """The time until which a kept database was live, for people.

    Args:
        at: the time of the swap (UTC), if known.
    """
    if at is None:
        return f"named at {each.at:%Y-%m-%d %H:%M:%S} UTC; until when it was live is not known"
    return f"live until {at:%Y-%m-%d %H:%M:%S} UTC"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"

"""Unpacks the golden volumes with their times, and runs ``ovia-backup`` on them at a given instant.

``python -m ovia_backup_dagster_tests.golden.expected`` writes ``expected/`` again after an intended change
of the words; the difference belongs in that commit. The volumes never change.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from unittest import mock

from ovia_backup_dagster.cli import list_backups, prune, status
from ovia_backup_dagster.cli.main import main as ovia_backup

#: The modules of the commands that read the clock; only this line names them.
CLOCKS = (list_backups, prune, status)

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
#: Five hours after the last dump.
NOW = datetime(2026, 3, 31, 8, 0, tzinfo=UTC)
COMMANDS = (
    ("list",),
    ("list", "--json"),
    ("status",),
    ("status", "--json"),
    ("prune", "--dry-run"),
    ("prune", "--dry-run", "--json"),
    ("drill", "--history"),
    ("restore", "--history"),
)
_SHORT = (("list",), ("status",), ("status", "--json"), ("prune", "--dry-run"))
#: Name -> hours after ``NOW``, and the files to remove first from the copy of the volume.
MOMENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "as_it_is": (0, ()),
    "all_well": (0, ("restores/2026-03-31_*.journal", "drills/.under-way-*")),
    "two_months_later": (60 * 24, ()),
    "dated_in_the_future": (-18 * 24, ()),
    "newest_is_bad": (-18 * 24, ("*/ovia_*_2026-03-1[4-9]_*", "*/ovia_*_2026-03-[23]*", "restores/*")),
    "newest_not_proven": (0, ("daily/ovia_daily_2026-03-31_*.verified.json", "restores/*")),
    "nothing_left": (0, ("daily/*", "weekly/*", "drills/*", "restores/*")),
}


class _Fixed(datetime):
    moment = NOW

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return cls.moment.astimezone(tz)


def unpack(name: str, target: Path) -> Path:
    """A copy of a golden volume with its original file times, which Git does not keep."""
    shutil.copytree(HERE / name, target)
    times = json.loads((HERE / f"{name}.mtimes.json").read_text("utf-8"))
    for path, nanoseconds in times.items():
        os.utime(target / path, ns=(nanoseconds, nanoseconds))
    return target


def said(root: Path, command: tuple[str, ...], now: datetime) -> str:
    """Exit code and standard output of a command, with ``$BACKUP_DIR`` for the volume's path."""
    settings = {"POSTGRES_HOST": "db", "BACKUP_DIR": str(root)}
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, settings, clear=True),
        mock.patch.object(_Fixed, "moment", now),
        redirect_stdout(printed),
    ):
        patches = [mock.patch.object(module, "datetime", _Fixed) for module in CLOCKS]
        for patch in patches:
            patch.start()
        try:
            ovia_backup(list(command), prog_name="ovia-backup")
            code: object = 0
        except SystemExit as end:
            code = end.code
        finally:
            for patch in patches:
                patch.stop()
    return f"exit code {code}\n{printed.getvalue().replace(str(root), '$BACKUP_DIR')}"


def commands_at(moment: str) -> tuple[tuple[str, ...], ...]:
    return COMMANDS if moment == "as_it_is" else _SHORT


def path_of(moment: str, command: tuple[str, ...]) -> Path:
    return EXPECTED / moment / f"{'_'.join(part.strip('-') for part in command)}.txt"


def volume_at(moment: str, folder: Path) -> tuple[Path, datetime]:
    hours, removed = MOMENTS[moment]
    root = unpack("volume", folder / "volume")
    for pattern in removed:
        for path in root.glob(pattern):
            path.unlink()
    return root, NOW + timedelta(hours=hours)


def main() -> None:
    shutil.rmtree(EXPECTED, ignore_errors=True)
    for moment in MOMENTS:
        with tempfile.TemporaryDirectory() as folder:
            root, now = volume_at(moment, Path(folder))
            for command in commands_at(moment):
                path = path_of(moment, command)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(said(root, command, now), "utf-8")


if __name__ == "__main__":
    main()

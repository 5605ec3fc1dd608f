"""The table of settings in docs/configuration.md, from ``settings.model``: ``python -m tools.configuration``."""

from __future__ import annotations

from itertools import groupby

from ovia_backup_dagster.settings.model import SETTINGS
from tools.pages import DOCS, with_part

PAGE = DOCS / "configuration.md"


def rendered(page: str) -> str:
    """The page for the present settings, with a table for each group."""
    parts = []
    for title, group in groupby(SETTINGS, key=lambda setting: setting.group):
        parts.append(f"\n### {title}\n\n| variable | default | purpose |\n|---|---|---|\n")
        for setting in group:
            names = " or ".join(f"`{name}`" for name in setting.variables)
            parts.append(f"| {names} | {setting.shown} | {setting.help} |\n")
    return with_part(page, "settings", "".join(parts) + "\n")


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")

"""README.md is short, and its commands, targets and options exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ovia_backup_dagster.cli.main import main
from tools.pages import DOCS, REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    *sorted(path for path in DOCS.glob("*.md") if path.name not in ("command-line.md", "style.md")),
]
LONGEST = 900


def shell_lines(page: Path) -> list[str]:
    """The commands of the page's shell blocks, a line each, without comments."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").split()) <= LONGEST


def test_readme_names_eight_features() -> None:
    features = README.read_text("utf-8").split("## What it does\n")[1].split("\n## ")[0]

    assert re.findall(r"^(\d)\. ", features, re.MULTILINE) == list("12345678")


def test_every_asset_and_job_is_explained() -> None:
    from ovia_backup_dagster.definitions import defs

    repository = defs.get_repository_def()
    names = {key.to_user_string() for key in repository.assets_defs_by_key}
    names |= {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    page = (DOCS / "getting-started.md").read_text("utf-8")

    assert len(names) > 8
    assert {name for name in names if name not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    text = page.read_text("utf-8")
    shown = {line.split()[1] for line in shell_lines(page) if line.startswith("make ")}

    for target in {*re.findall(r"`make ([a-z-]+)", text), *shown}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_exists(page: Path) -> None:
    """In shell blocks, each command with its options; elsewhere, the command."""
    assert set(re.findall(r"`ovia-backup ([a-z][a-z-]*)", page.read_text("utf-8"))) <= set(main.commands)
    for line in shell_lines(page):
        for part in re.split(r"\s*(?:&&|\|\||;)\s*", line):
            words = re.match(r"(?:\.venv/bin/)?ovia-backup (.*)", part)
            if words is None or words[1].startswith("-"):
                continue
            name, *arguments = shlex.split(words[1], posix=False)
            command = main.commands[name]
            if isinstance(command, click.Group):
                command = command.commands[arguments.pop(0)]
            options = {opt for parameter in command.params for opt in parameter.opts} | {"--help"}
            assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= options, line

"""The README says what is true: its tables, its commands, its links."""

from __future__ import annotations

import re

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster_tests.docs.readme import DRILL, README, drill, rendered
from ovia_backup_dagster_tests.docs.troubleshooting import PAGE, kinds
from ovia_backup_dagster_tests.docs.troubleshooting import rendered as rendered_page

TEXT = README.read_text("utf-8")


def test_the_settings_table_is_current() -> None:
    assert rendered(TEXT) == TEXT, "make docs"


def test_the_example_of_a_drill_is_current() -> None:
    assert DRILL.read_text("utf-8") == drill(), "make docs"


def test_the_page_of_failures_is_current() -> None:
    assert PAGE.read_text("utf-8") == rendered_page(), "make docs"


def test_every_error_that_has_a_name_is_on_it() -> None:
    named = set(re.findall(r"^\| (\w+Error) \|", PAGE.read_text("utf-8"), re.MULTILINE))

    assert named == {kind.__name__ for kind in kinds()}


def test_every_command_is_described_and_exists() -> None:
    named = set(re.findall(r"`ovia-backup ([a-z-]+)", TEXT))

    assert named == set(main.commands)


def test_every_make_target_exists() -> None:
    makefile = README.with_name("Makefile").read_text("utf-8")

    for target in set(re.findall(r"`?make ([a-z-]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (README.parent / target).exists(), target

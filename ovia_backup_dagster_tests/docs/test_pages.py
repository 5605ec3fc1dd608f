"""The generated pages equal what their modules in ``tools/`` render now."""

from __future__ import annotations

import json
import re

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.core.sidecars import SIDECAR_KINDS
from tools import command_line, configuration, drill_example, performance, troubleshooting, volume


def test_the_settings_are_current() -> None:
    page = configuration.PAGE.read_text("utf-8")

    assert configuration.rendered(page) == page, "make docs"


def test_the_example_of_a_drill_is_current() -> None:
    page = drill_example.DRILLS.read_text("utf-8")

    assert drill_example.PAGE.read_text("utf-8") == drill_example.example(), "make docs"
    assert drill_example.rendered(page) == page, "make docs"


def test_the_command_line_is_current() -> None:
    page = command_line.PAGE.read_text("utf-8")

    assert page == command_line.rendered(), "make docs"
    assert set(re.findall(r"^## ovia-backup (\S+)", page, re.MULTILINE)) == set(main.commands)


def test_the_fields_of_files_are_current() -> None:
    page = volume.PAGE.read_text("utf-8")

    assert volume.rendered(page) == page, "make docs"


def test_every_field_of_a_file_has_a_meaning() -> None:
    fields = re.findall(r"^\| `(\w+)` \| [^|]+ \| *(.*?) *\|$", volume.PAGE.read_text("utf-8"), re.MULTILINE)

    assert len(fields) > 100
    assert [name for name, meaning in fields if not meaning] == []


def test_every_kind_of_sidecar_has_its_fields() -> None:
    page = volume.PAGE.read_text("utf-8")

    for kind in SIDECAR_KINDS:
        if kind.model is not None:
            assert f"### `<file>{kind.suffix}`" in page
            assert f".dump{kind.suffix} " in page


def test_the_failures_are_current() -> None:
    page = troubleshooting.PAGE.read_text("utf-8")

    assert page == troubleshooting.rendered(), "make docs"


def test_every_error_that_has_a_name_is_listed() -> None:
    named = set(re.findall(r"^\| (\w+Error) \|", troubleshooting.PAGE.read_text("utf-8"), re.MULTILINE))

    assert named == {kind.__name__ for kind in troubleshooting.kinds()}


def test_the_figures_are_those_that_were_measured() -> None:
    results = json.loads(performance.RESULTS.read_text("utf-8"))

    assert performance.rendered(results) == performance.PAGE.read_text("utf-8"), "make docs"

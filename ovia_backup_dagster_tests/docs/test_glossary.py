"""The glossary has each word that the program shows for backups and checks, once."""

from __future__ import annotations

import re

import pytest

from ovia_backup_dagster.core.backup import State
from ovia_backup_dagster.core.check_registry import Stage
from ovia_backup_dagster_tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "glossary.md").read_text("utf-8")
TERMS = [term for term in re.findall(r"^\| ([^|]+) \|", TEXT, re.MULTILINE) if term != "term" and "--" not in term]


@pytest.mark.parametrize("word", [*(state.value for state in State), *(stage.value for stage in Stage)])
def test_the_programs_words_are_explained(word: str) -> None:
    assert word in TERMS


def test_each_term_is_explained_once() -> None:
    assert len(TERMS) >= 25
    assert sorted(set(TERMS)) == sorted(TERMS)

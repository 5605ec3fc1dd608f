"""The rules of docs/style.md that a test can check: words and phrases to avoid, and the length of a test's name."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
#: The words and phrases, and the uses of the account with the same name.
VAGUE = re.compile(
    r"\b[Ww]h(?:o|om)ever|\b(?:[Nn]o|[Ss]ome)body\b|\b[Mm]end(?:s|ed|ing|able)?\b|\b[Aa]new\b"
    r"|\b[Ff]or ever\b|\b[Pp]eople are told\b|\bhas not (?:[A-Z]{2,}|its|the)\b|SHA-256 is another"
    r"|\bnot have its checksum\b|\b[Ii]t counts that\b"
)
ACCOUNT = re.compile(r"""["'`]nobody["'`]|\bnobody:|:nobody\b|(?:-u|user|su|USER|account|user=)[ =]nobody\b""")
#: The guide and this test contain the words as examples; a license's text is not ours to change.
EXEMPT = ("docs/style.md", "ovia_backup_dagster_tests/docs/test_style.py", "LICENSE")
TEXTS = (".py", ".md", ".toml", ".yaml", ".yml", ".sql", ".sh", ".cfg", ".c", "Makefile", "Dockerfile", "run")
LONGEST_NAME = 60


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.splitlines()


def vague(text: str) -> list[str]:
    """The lines that contain such a word."""
    return [line for line in text.splitlines() if VAGUE.search(ACCOUNT.sub("", line))]


@pytest.mark.parametrize(
    "word",
    [
        "whoever asks",
        "Nobody is told",
        "mends it",
        "made anew",
        "kept for ever",
        "When it is older, people are told.",
        "role r has not CREATEDB",
        "role r has not its rights",
        "its SHA-256 is another",
        "it does not have its checksum",
        "here it counts that the files are there",
    ],
)
def test_a_vague_word_is_found(word: str) -> None:
    assert vague(f"first\n{word}\n") == [word]


@pytest.mark.parametrize(
    "text",
    [
        '("postgres", "nobody")',
        "chown nobody:nogroup",
        "su nobody",
        "amended",
        "recommend",
        "for every backup",
        "it has not ended",
    ],
)
def test_an_account_and_longer_words_are_fine(text: str) -> None:
    assert not vague(text)


def test_no_text_hides_its_actor() -> None:
    found = [
        f"{name}: {line.strip()}"
        for name in tracked()
        if name.endswith(TEXTS) and name not in EXEMPT and (REPOSITORY / name).is_file()
        for line in vague((REPOSITORY / name).read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_a_test_name_is_short_and_names_its_actor() -> None:
    found = [
        f"{name}: {node.name}"
        for name in tracked()
        if name.startswith("ovia_backup_dagster_tests/") and name.endswith(".py") and (REPOSITORY / name).is_file()
        for node in ast.walk(ast.parse((REPOSITORY / name).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if len(node.name) >= LONGEST_NAME or vague(node.name.replace("_", " "))
    ]
    assert not found, "\n".join(found)

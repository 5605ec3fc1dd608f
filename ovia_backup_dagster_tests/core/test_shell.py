"""Quoting for a shell: bash reads a quoted word back unchanged."""

from __future__ import annotations

import os
import subprocess

import pytest

from ovia_backup_dagster.core.shell import needs_escapes, shell_word

WORDS = ["plain", "a b", "it's", "$HOME", "a\nb", "a\tb", " a", "a  b", "back\\slash\n", "naïve\n", "\U0001f4a9\u200b"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("plain", "plain"),
        ("a b", "'a b'"),
        ("it's", "'it'\"'\"'s'"),
        ("a\nb", "$'a\\U0000000Ab'"),
        ("a  b", "$'a\\U00000020\\U00000020b'"),
        ("it's\n", "$'it\\U00000027s\\U0000000A'"),
        (os.fsdecode(b"caf\xe9"), "$'caf\\xE9'"),
    ],
)
def test_a_word_is_quoted_on_one_line(text: str, word: str) -> None:
    assert shell_word(text) == word


@pytest.mark.parametrize("text", [*WORDS, os.fsdecode(b"\xff\x80")])
def test_bash_reads_a_quoted_word_back(text: str) -> None:
    script = f"printf %s {shell_word(text)}".encode()
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout == os.fsencode(text)


@pytest.mark.parametrize(("text", "needed"), [("a b", False), ("", False), ("a  b", True), ("a ", True), ("\n", True)])
def test_only_characters_that_a_line_would_change_are_escaped(text: str, needed: bool) -> None:
    assert needs_escapes(text) is needed

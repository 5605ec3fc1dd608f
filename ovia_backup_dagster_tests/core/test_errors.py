"""Error messages: one line that a person can read, with the next step."""

from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.core.errors import BackupError, LockTableFullError
from ovia_backup_dagster.core.human_text import MOST, shortened

#: Short and long, of any characters.
TEXT = st.builds(lambda text, times: text * times, st.text(max_size=60), st.sampled_from((0, 1, 1, 1, 40, 700)))


@given(what=TEXT, why=TEXT, fix=TEXT, said=TEXT)
def test_a_long_message_is_shortened_and_its_rest_is_kept(what: str, why: str, fix: str, said: str) -> None:
    error = BackupError(what, why=why, fix=fix, said=said)

    assert len(str(error)) <= MOST
    assert len(error.account) <= MOST
    assert "\n" not in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.whole) == (str(error), error.whole)
    one_lines = [
        " ".join("".join(c if c.isprintable() else " " for c in text).split()) for text in (what, why, fix, said)
    ]
    if error.whole:
        assert all(text in error.whole for text in one_lines)
    else:
        assert [error.what, error.why, error.fix, error.said] == one_lines
    if sum(map(len, one_lines)) < MOST - 50:
        assert not error.whole


@given(fix=st.text(min_size=1, max_size=400), said=TEXT)
def test_a_fix_is_never_cut_for_a_long_program_output(fix: str, said: str) -> None:
    error = BackupError("w" * 100, why="y" * 200, fix=fix, said=said)

    assert error.fix == BackupError("", fix=fix).fix
    assert len(str(error)) <= MOST


def test_a_shortened_output_keeps_beginning_and_end() -> None:
    statement = "LOCK TABLE " + ", ".join(f"public.table_{n}" for n in range(3000))
    error = LockTableFullError(
        "pg_dump failed", why="the lock table is full", said=f"ERROR: {statement} THE END", fix="x"
    )

    assert error.said.startswith("ERROR: LOCK TABLE public.table_0, public.table_1")
    assert error.said.endswith("THE END")
    assert str(error).endswith("Next: x")
    assert statement in error.whole


def test_a_long_text_is_cut_in_its_middle() -> None:
    assert shortened("short") == "short"
    assert len(shortened("x" * 5000)) == MOST
    assert shortened("x" * 5000, 40) == "xxxxxxxxxxxx … 5,000 characters … xxxxxx"

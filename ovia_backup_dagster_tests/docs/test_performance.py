"""The page of figures says what was measured."""

from __future__ import annotations

import json

from benchmarks.report import PAGE, RESULTS, rendered


def test_the_page_is_current() -> None:
    assert rendered(json.loads(RESULTS.read_text("utf-8"))) == PAGE.read_text("utf-8"), "make docs"

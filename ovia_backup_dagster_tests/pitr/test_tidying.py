"""Files beside base backups and WAL are removed when they are older than the window."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ovia_backup_dagster.core.layout import RECOVERED
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.segment_repair import SET_ASIDE
from ovia_backup_dagster.pitr.tidying import tidy_up

WEEK = timedelta(days=7)


def test_only_what_is_older_than_the_window_goes(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    archive = ClusterArchive(tmp_path, "123")
    archive.create(ClusterFacts(system_identifier="123", major=16))
    for parent in (tmp_path / RECOVERED, archive.folder / SET_ASIDE):
        for name, days in (("old", 8), ("new", 6)):
            folder = parent / name
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
            at = (now - timedelta(days=days)).timestamp()
            os.utime(folder, (at, at))
    said: list[str] = []
    tidy_up(archive, WEEK, now, said.append)
    for parent in (tmp_path / RECOVERED, archive.folder / SET_ASIDE):
        assert [path.name for path in parent.iterdir()] == ["new"]
    assert said == ["removed the extract old", "removed old, which was set aside"]

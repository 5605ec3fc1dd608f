"""The folders of a cluster on the volume."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import VolumeError
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts


def test_all_folders_of_an_archive_are_private(tmp_path: Path) -> None:
    archive = ClusterArchive(tmp_path / "volume", "7300000000000000000")
    before = os.umask(0o022)
    try:
        archive.create(ClusterFacts(system_identifier=archive.system_identifier, major=16))
        archive.create(ClusterFacts(system_identifier=archive.system_identifier, major=17))
    finally:
        os.umask(before)

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [archive.root, *archive.root.rglob("*")]}
    assert len(modes) == 7
    assert {oct(mode) for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert oct(modes[archive.folder / "cluster.json"]) == "0o600"
    assert archive.facts.major == 16, "the facts are recorded once"


def test_an_archive_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pitr").write_text("in the way")

    with pytest.raises(VolumeError, match="cannot use the backup folder"):
        ClusterArchive(tmp_path, "1").create(ClusterFacts(system_identifier="1", major=16))

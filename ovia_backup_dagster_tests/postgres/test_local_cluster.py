"""What is said of a server of our own that does not start, once its folder is gone."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.postgres.local_cluster import Cluster


def test_the_next_step_can_be_taken_when_the_folder_is_gone(bin_dir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ovia-t-", dir="/tmp") as folder:
        place = Path(folder)
        place.chmod(0o755)
        cluster = Cluster(bin_dir, place / "c", settings={"shared_buffers": "100TB"})
        try:
            cluster.create()
            with pytest.raises(ProgramError) as caught:
                cluster.start()
        finally:
            cluster.remove()

        assert not cluster.log.exists()
        assert str(cluster.log) not in caught.value.fix
        # The cause, though the last line of a server's log is that it is shut down.
        assert "FATAL:" in caught.value.why
        first = caught.value.fix.partition(";")[0]
        assert first == f"df -h {place}"
        assert subprocess.run(first.split(), check=False, capture_output=True).returncode == 0

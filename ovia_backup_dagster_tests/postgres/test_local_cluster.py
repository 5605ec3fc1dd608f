"""The error of a throwaway server that does not start, after its folder was removed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.postgres.local_cluster import Cluster


def test_the_next_step_works_without_the_servers_folder(bin_dir: Path) -> None:
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
        # The cause, though the last line of the server's log only says that it is shut down.
        assert "FATAL:" in caught.value.why
        first = caught.value.fix.partition(";")[0]
        assert first == f"df -h {place}"
        assert subprocess.run(first.split(), check=False, capture_output=True).returncode == 0

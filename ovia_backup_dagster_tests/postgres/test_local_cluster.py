"""A throwaway server that does not start, and one whose programs its account cannot reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.demo import embedded_server
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a server as another account")
def test_programs_of_a_wheel_run_from_a_closed_folder(tmp_path: Path) -> None:
    """As in a checkout below /root, whose folder no other account may enter."""
    package = embedded_server.bin_dir().parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    with tempfile.TemporaryDirectory(prefix="ovia-t-", dir="/tmp") as place:
        Path(place).chmod(0o755)
        cluster = Cluster(closed / package.name / "pginstall/bin", Path(place) / "c")
        try:
            cluster.create()
            cluster.start()
            assert cluster.running
        finally:
            cluster.stop()
            cluster.remove()

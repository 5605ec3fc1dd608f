"""A container's folders, and its instance file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from ovia_backup_dagster.container import swarm_secrets


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of private secret files, among temporary folders like a container's."""
    for name in ("secrets", "private", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(swarm_secrets, "SECRETS", tmp_path / "secrets")
    monkeypatch.setattr(swarm_secrets, "PRIVATE", tmp_path / "private")
    monkeypatch.setattr(swarm_secrets, "PASSFILE", tmp_path / "private/storage.pgpass")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for name in swarm_secrets.FILE_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "private"


def write_instance(url: str, networks: tuple[str, ...] = ("control",)) -> None:
    home = Path(os.environ["DAGSTER_HOME"])
    launcher = {"config": {"networks": list(networks)}}
    home.joinpath("dagster.yaml").write_text(
        yaml.safe_dump({"storage": {"postgres": {"postgres_url": url}}, "run_launcher": launcher})
    )

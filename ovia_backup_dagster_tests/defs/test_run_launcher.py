"""The networks and volumes of a run's container in the Swarm stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin

from ovia_backup_dagster.container.container_roles import container_context
from ovia_backup_dagster.defs.run_launcher import OffsiteRunLauncher
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.support.remotes import remote_settings

CODE_SERVER = {
    "POSTGRES_HOST": "postgres",
    "RUN_NETWORKS": "ovia_ovia-net",
    "RUN_VOLUMES": "data:/backups",
    "RUN_OFFSITE_NETWORKS": "outside",
    "RUN_OFFSITE_VOLUMES": "/mnt/nas:/nas:rslave",
}


def launched(context: dict[str, Any] | None, tags: dict[str, str] | None = None, *assets: str) -> Any:
    pointer = ModuleCodePointer("ovia_backup_dagster.definitions", "defs", None)
    origin = RepositoryPythonOrigin(
        executable_path="python",
        code_pointer=pointer,
        container_image="image",
        entry_point=None,
        container_context=context,
    )
    run = dg.DagsterRun(
        job_name="any",
        tags=tags,
        asset_selection=frozenset(dg.AssetKey(asset.split("/")) for asset in assets) or None,
        job_code_origin=JobPythonOrigin(job_name="any", repository_origin=origin),
    )
    launcher = OffsiteRunLauncher(networks=["control"], container_kwargs={"init": True})
    return launcher.get_container_context(run)


@pytest.mark.parametrize(
    "assets",
    [("offsite_copy_nas",), ("orders/offsite_pruning_nas", "daily_dump"), ("daily_dump", "offsite_verification_nas")],
)
def test_materializing_an_asset_of_a_remote_reaches_it(assets: tuple[str, ...]) -> None:
    made = launched(container_context(CODE_SERVER), None, *assets)
    assert made.networks == ["control", "ovia_ovia-net", "outside"]
    assert made.container_kwargs == {"init": True, "volumes": ["data:/backups", "/mnt/nas:/nas:rslave"]}
    assert made.env_vars == ["POSTGRES_HOST=postgres"]


@pytest.mark.parametrize("assets", [(), ("daily_dump", "dump_verification"), ("restore_drill",), ("offsite/people",)])
def test_other_runs_reach_no_remote(assets: tuple[str, ...]) -> None:
    made = launched(container_context(CODE_SERVER), {"ovia/volume": "/backups"}, *assets)
    assert made.networks == ["control", "ovia_ovia-net"]
    assert made.container_kwargs == {"init": True, "volumes": ["data:/backups"]}


@pytest.mark.parametrize("context", [None, {}, {"docker": {"networks": ["a"]}}])
def test_a_code_server_without_remotes_adds_nothing(context: dict[str, Any] | None) -> None:
    """Also one of another project in the same Dagster."""
    made = launched(context, None, "offsite_copy_nas")
    assert made.networks == ["control", *(["a"] if context else [])]
    assert made.container_kwargs == {"init": True}


def test_only_two_jobs_reach_remotes(new_location: NewLocation, tmp_path: Path) -> None:
    """The tags of a job are those of its runs."""
    with_remotes, without = new_location(**remote_settings(tmp_path, "nas")), new_location()

    def reaching(defs: dg.Definitions) -> set[str]:
        jobs = defs.get_repository_def().get_all_jobs()
        made = {job.name: launched(container_context(CODE_SERVER), dict(job.tags)) for job in jobs}
        return {name for name, context in made.items() if "outside" in context.networks}

    assert reaching(with_remotes.defs) == {"daily_backup_job", "offsite_verification_job"}
    assert reaching(without.defs) == set()

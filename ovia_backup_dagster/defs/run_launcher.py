"""Launches each run of the Swarm stack as a container; only a run that copies reaches remotes.

``deploy/dagster.yaml`` names the launcher; which runs copy is decided here. The networks and volumes come from the code
server's environment (``container.container_roles``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import DagsterRun
from dagster_docker import DockerRunLauncher
from dagster_docker.container_context import DockerContainerContext

from ovia_backup_dagster.defs.database_names import is_offsite
from ovia_backup_dagster.defs.policies import OFFSITE_TAG


class OffsiteRunLauncher(DockerRunLauncher):
    """Dagster's Docker launcher, which adds the networks and volumes of remotes to the runs that copy.

    A drill or a restore executes code that came from a backup: its container gets neither.
    """

    def get_container_context(self, dagster_run: DagsterRun) -> DockerContainerContext:
        """The environment, networks and volumes of the run's container."""
        context: DockerContainerContext = super().get_container_context(dagster_run)
        origin = dagster_run.job_code_origin
        given: Mapping[str, Any] = (origin.repository_origin.container_context or {}) if origin else {}
        offsite = given.get("ovia_offsite", {})
        if not offsite or not copies(dagster_run):
            return context
        arguments = dict(context.container_kwargs)
        volumes = [*arguments.get("volumes", []), *offsite["volumes"]]
        return context._replace(
            networks=[*context.networks, *offsite["networks"]], container_kwargs={**arguments, "volumes": volumes}
        )


def copies(run: DagsterRun) -> bool:
    """Whether a run sends or reads copies: by its job's tag, or by the assets that it materializes."""
    return OFFSITE_TAG in run.tags or any(is_offsite(key) for key in run.asset_selection or ())

"""Launch jobs as the UI's button does, and wait for them: ``python -m …defs.job_launcher WORKSPACE JOB …``.

This runs in a separate process, because it imports Dagster; it needs no daemon. ``dagster job execute`` is simpler, but
its runs have no code location: the UI's Overview leaves them out, and they cannot be re-executed. ``dagster job
launch`` only queues a run, which then needs a daemon.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import dagster as dg
from dagster._cli.job import _create_run
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

_POLL_SECONDS = 0.1


def main(workspace: Path, jobs: list[str]) -> None:
    """Run the jobs in order, until one fails. Prints a line for each job that succeeds.

    Args:
        workspace: a file that names one code location.
        jobs: their names.
    """
    with (
        dg.DagsterInstance.get() as instance,
        WorkspaceProcessContext(
            instance, WorkspaceFileTarget([str(workspace)]), code_server_log_level="WARNING"
        ) as process,
    ):
        context = process.create_request_context()
        [location] = context.code_locations
        [repository] = location.get_repositories().values()
        for name in jobs:
            job = repository.get_full_job(name)
            run = _create_run(
                instance=instance,
                code_location=location,
                remote_repo=repository,
                remote_job=job,
                run_config={},
                tags=None,
                op_selection=None,
                run_id=None,
            )
            instance.launch_run(run.run_id, context)
            while not run.is_finished:
                time.sleep(_POLL_SECONDS)
                found = instance.get_run_by_id(run.run_id)
                assert found is not None
                run = found
            if not run.is_success:
                sys.exit(_failure(instance, run.run_id))
            print(f"{name} succeeded", flush=True)


def _failure(instance: dg.DagsterInstance, run_id: str) -> str:
    """The error of the failed step, or of the run if no step failed."""
    messages = []
    for entry in instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}):
        event = entry.dagster_event
        if event is not None and event.is_step_failure and event.step_failure_data.user_failure_data:
            messages.append(event.step_failure_data.user_failure_data.description or "")
        elif event is not None:
            messages.append(event.message or "")
    return next(filter(None, messages), "the run ended without a message")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Checks the Dagster instance from outside: ``defs.instance_report`` runs as a child, so that this process does not
import Dagster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from ovia_backup_dagster.doctor.report import Area, Observation, fail, warn

MODULE = "ovia_backup_dagster.defs.instance_report"
#: Importing Dagster takes three seconds, and twenty on a busy machine; and its storage may not answer.
TIMEOUT_SECONDS = 60


def look_at_instance(environment: Mapping[str, str] | None = None) -> Iterator[Observation]:
    """Check the instance in ``DAGSTER_HOME``; without that variable, warn that nothing was checked.

    Args:
        environment: the process's own, copied before another thread connects: while that thread connects, the
            process's environment holds the password.
    """
    environment = os.environ if environment is None else environment
    home = environment.get("DAGSTER_HOME")
    if not home:
        fix = "export DAGSTER_HOME=the folder of the Dagster that runs the schedule; or launch doctor_job in its UI"
        yield warn(Area.DAGSTER, "not checked: DAGSTER_HOME is not set here", fix)
        return
    command = (sys.executable, "-W", "ignore", "-m", MODULE)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        )
        lines = [Observation.from_dict(values) for values in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        yield fail(
            Area.DAGSTER,
            f"its storage did not answer in {TIMEOUT_SECONDS} s",
            f"is this machine busy (uptime)? else check {home}/dagster.yaml",
        )
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", "").strip().splitlines()
        why = said[-1] if said else str(error)
        yield fail(
            Area.DAGSTER, f"the instance in DAGSTER_HOME={home} cannot be used: {why}", f"check {home}/dagster.yaml"
        )
    else:
        yield from lines

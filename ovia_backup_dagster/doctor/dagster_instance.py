"""The Dagster instance, looked at from outside: ``defs.instance_report`` runs as a child, so that Dagster is not
imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from ovia_backup_dagster.doctor.report import Area, Observation, fail, warn

MODULE = "ovia_backup_dagster.defs.instance_report"
#: Dagster takes three seconds to import, its storage may be on a server that does not answer.
TIMEOUT_SECONDS = 22


def look_at_instance(environment: Mapping[str, str] | None = None) -> Iterator[Observation]:
    """The instance in ``DAGSTER_HOME``; without it nothing is known.

    Args:
        environment: the process's own, read beforehand where another thread connects: for that moment it holds the
            password.
    """
    environment = os.environ if environment is None else environment
    home = environment.get("DAGSTER_HOME")
    if not home:
        fix = "export DAGSTER_HOME=the folder of the Dagster that runs the schedule; or launch doctor_job in its UI"
        yield warn(Area.DAGSTER, "not looked at: DAGSTER_HOME is not set here", fix)
        return
    command = (sys.executable, "-W", "ignore", "-m", MODULE)
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        )
        lines = [Observation.from_dict(values) for values in json.loads(done.stdout)]
    except subprocess.TimeoutExpired:
        yield fail(Area.DAGSTER, f"its storage did not answer in {TIMEOUT_SECONDS} s", f"check {home}/dagster.yaml")
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", "").strip().splitlines()
        why = said[-1] if said else str(error)
        yield fail(
            Area.DAGSTER, f"the instance in DAGSTER_HOME={home} cannot be used: {why}", f"check {home}/dagster.yaml"
        )
    else:
        yield from lines

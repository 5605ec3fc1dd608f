"""(h): from the schedule's tick to pg_dump's start, with a real daemon, and where the seconds go."""

from __future__ import annotations

import time
from itertools import pairwise

import dagster as dg

from benchmarks.measure import Json, background, run, say, summary
from benchmarks.world import DAGSTER_DAEMON, OVIA_BACKUP, World

TICKS = 3
_MEGABYTES = 20
#: The phases of a run's start: the event that ends each, and what its seconds are spent on.
_WAY = (
    ("PIPELINE_ENQUEUED", "Dagster's daemon sees the tick and makes the run"),
    ("PIPELINE_STARTING", "Dagster's run queue"),
    ("PIPELINE_START", "the run's process starts, and imports Dagster and us"),
    ("STEP_START", "Dagster sets up the run and the step"),
    ("pg_dump", "ours: lock, versions, questions to the server"),
)


def measure(world: World, ticks: int = TICKS) -> Json:
    """A daily job every minute, on a small database."""
    environment = world.environment(world.database(_MEGABYTES), BACKUP_SCHEDULE="* * * * *")
    run((OVIA_BACKUP, "dump"), environment)  # otherwise the sensor would launch an alert meanwhile
    home, log = environment["DAGSTER_HOME"], world.path("daemon.log")
    # Create the instance first: two processes that create its storage at once conflict.
    with (
        dg.DagsterInstance.from_config(home) as instance,
        background((DAGSTER_DAEMON, "run", "--workspace", "workspace.yaml"), environment, log) as daemon,
    ):
        deadline = time.monotonic() + 60 * (ticks + 3)
        say(f"waiting for {ticks} ticks")
        succeeded = dg.RunsFilter(job_name="daily_backup_job", statuses=[dg.DagsterRunStatus.SUCCESS])
        while len(runs := instance.get_runs(succeeded)) < ticks:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {ticks} runs in time: {log.read_text('utf-8', 'replace')[-2000:]}")
            time.sleep(1)
        found = [_way(instance, made) for made in reversed(runs[:ticks])]
    whole = [sum(parts.values()) for parts in found]
    return {
        "seconds": summary(whole),
        "parts": {what: summary([parts[what] for parts in found]) for _, what in _WAY},
        "targets": [],
    }


def _way(instance: dg.DagsterInstance, done: dg.DagsterRun) -> dict[str, float]:
    """Phase -> its seconds, from the tick on."""
    seen: dict[str, float] = {}
    for entry in instance.all_logs(done.run_id):
        name = entry.dagster_event.event_type_value if entry.dagster_event else entry.user_message.split()[0]
        seen.setdefault(name, entry.timestamp)
    made = seen[_WAY[0][0]]
    # The schedule ticks at each full minute.
    instants = [made - made % 60, *(seen[event] for event, _ in _WAY)]
    return {what: after - before for (_, what), (before, after) in zip(_WAY, pairwise(instants), strict=True)}

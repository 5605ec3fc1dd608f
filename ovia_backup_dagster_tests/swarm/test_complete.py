"""Last: whether the other modules ran every command of the runbook."""

from __future__ import annotations

from ovia_backup_dagster_tests.swarm.swarm import Swarm


def test_every_command_of_the_runbook_was_run(swarm: Swarm) -> None:
    every = {(heading, number) for heading, blocks in swarm.runbook.blocks().items() for number in range(len(blocks))}
    assert every - swarm.runbook.done == set()

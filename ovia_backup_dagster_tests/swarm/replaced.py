"""What tests of restores in the stack share: the heading of what they need, and the databases that they leave."""

from __future__ import annotations

from ovia_backup_dagster_tests.swarm.swarm import Swarm

ABLE = "Being able to restore"


def databases(swarm: Swarm) -> list[str]:
    """The databases beside the live one."""
    names = "SELECT datname FROM pg_database WHERE datname LIKE 'ovia_%' ORDER BY 1"
    return swarm.psql(names, database="postgres").split()


def clear(swarm: Swarm) -> None:
    """Drop the databases that are left beside the live one."""
    for name in databases(swarm):
        swarm.psql(f"DROP DATABASE {name}", database="postgres")

"""Commands that a deployment adds to messages, because they are correct only in that deployment.

A message names the next command. That command differs between a Docker Swarm service and a systemd unit, so it comes
from the setting ``DEPLOYMENT_HINTS``, which ``deploy/stack.yml`` sets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Hints:
    """Commands by subject; empty if the deployment names none.

    Attributes:
        server: shows whether the database server runs, and its log.
        disk: shows the free space on the server's disk.
        network: shows how the server is reached.
        upgrade: installs a newer release of the server.
        volume: shows where the backup volume is, and whether it is mounted.
        daemon: shows whether Dagster's daemon runs, and its log.
        code_server: the same for the code server.
    """

    server: str = ""
    disk: str = ""
    network: str = ""
    upgrade: str = ""
    volume: str = ""
    daemon: str = ""
    code_server: str = ""

    @classmethod
    def parse(cls, text: str) -> Hints:
        """Parse hints, one in each line: ``server: systemctl status postgresql``.

        Raises:
            ValueError: a line has another form, or an unknown subject.
        """
        names = [field.name for field in fields(cls)]
        found = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            name, colon, command = (part.strip() for part in line.partition(":"))
            if not colon or name not in names:
                raise ValueError(f"a line is NAME: COMMAND, and NAME one of {', '.join(names)}")
            found[name] = command
        return cls(**found)


def steps(*commands: str) -> str:
    """Join commands, without the empty ones."""
    return "; ".join(filter(None, commands))

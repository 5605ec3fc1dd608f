"""Commands that a deployment adds to messages, because they are right there and nowhere else.

A message names the next command, and where the server is a Docker Swarm service or a systemd unit, that is another
command. So no message contains it: ``DEPLOYMENT_HINTS`` does, as ``deploy/stack.yml`` sets it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Hints:
    """Commands, by what they look at; empty where the deployment names none.

    Attributes:
        server: whether the database's server runs, and its log.
        disk: what room there is on its disk.
        network: how it is reached.
        upgrade: what brings a newer release of it.
        volume: where the backup volume is, and whether it is mounted.
        daemon: whether Dagster's daemon runs, and its log.
        code_server: the same of the code server.
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
        """Read a line for each: ``server: systemctl status postgresql``.

        Raises:
            ValueError: a line is none, or is about what no message is about.
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
    """Commands one after the other; those that are empty are none."""
    return "; ".join(filter(None, commands))

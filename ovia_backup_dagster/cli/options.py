"""Options and arguments that several commands share, and the types of their values.

An option of a single command is in that command's module; defaults and limits that are settings are in ``settings``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import click
from click.core import ParameterSource

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

backup_argument = click.argument("backup", default="latest")


allow_expired_option = click.option(
    "--allow-expired",
    is_flag=True,
    help="Accept a signed log whose last statement has expired: you know that the host has stopped.",
)


class InstantType(click.ParamType[Any]):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from datetime import UTC, datetime

        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time, such as 2026-11-30T03:00", param, ctx)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


as_of_option = click.option(
    "--as-of",
    type=InstantType(),
    help="Read the remote as it was at that instant (UTC), with what was deleted since; the store must keep versions.",
)

without_services_option = click.option(
    "--without-services",
    is_flag=True,
    help="Do not stop, migrate, start or query services: the operator does, for example when Docker does not answer.",
)


class InsteadOption(click.Option):
    """A flag that makes its command do something other than its main task.

    Args:
        takes: the options that may be combined with it, by their variables' names.
    """

    def __init__(self, declarations: Sequence[str], *, takes: Collection[str], **attributes: Any) -> None:
        super().__init__(declarations, is_flag=True, **attributes)
        self.takes = takes


class ExclusiveCommand(click.Command):
    """Refuses options that would be ignored: a command given ``--plan`` must never act."""

    def invoke(self, ctx: click.Context) -> Any:
        given = [p for p in self.params if ctx.get_parameter_source(p.name or "") is ParameterSource.COMMANDLINE]
        for instead in given:
            for other in given:
                if isinstance(instead, InsteadOption) and other is not instead and other.name not in instead.takes:
                    name = other.opts[0] if isinstance(other, click.Option) else other.human_readable_name
                    raise click.UsageError(f"{name} cannot be combined with {instead.opts[0]}", ctx)
        return super().invoke(ctx)


class OwnerType(click.ParamType[Any]):
    name = "UID:GID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ovia_backup_dagster.core.takeover import Owner

        # Only numbers: the user names exist in our image, but perhaps not in the image where this runs.
        match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", str(value))
        numbers = [int(part) for part in match.groups()] if match else []
        if not numbers or max(numbers) >= 2**32 - 1:  # the last one means "as it is"
            self.fail(f"{value!r} is not two numbers, such as 10001:10001", param, ctx)
        return Owner(*numbers)


class ReplicasType(click.ParamType[Any]):
    name = "SERVICE=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        match = re.fullmatch(r"([^=]+)=([0-9]{1,4})", str(value))
        if not match:
            self.fail(f"{value!r} is not a service and a number, such as ovia_ovia-api=1", param, ctx)
        return match[1], int(match[2])

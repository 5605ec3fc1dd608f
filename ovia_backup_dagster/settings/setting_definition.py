"""Defines a setting: its name, type, default, help and group, written once in the group that declares it.

A group is a class with a field per setting, in its own module; to add a setting, add a field to a group.
``settings.model`` combines the groups. The types of values are in ``settings.value_types``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class SettingsGroup(BaseModel):
    """Settings that belong together.

    Attributes:
        title: the group's heading in docs/configuration.md.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    title: ClassVar[str]


@dataclass(frozen=True, slots=True)
class SettingDefinition:
    """One setting, as code and documentation use it.

    Attributes:
        field: its name in Python, as ``Settings.of`` takes it: the variable's name in lower case.
        variables: environment variables that it is read from; the first that is set wins.
        type: the type of its value.
        default: its value if it is not set.
        shown: the default in Markdown.
        help: what it is for, in Markdown.
        group: title of its group.
        secret: whether its value is, or may hold, a secret.
    """

    field: str
    variables: tuple[str, ...]
    type: Any
    default: object
    shown: str
    help: str
    group: str
    secret: bool

    @property
    def name(self) -> str:
        """Its name in messages, whichever variable was set."""
        return self.variables[0]


def setting(*variables: str, default: Any = None, help: str, shown: str | None = None, secret: bool = False) -> Any:  # noqa: A002
    """Declare a setting, as the field of a group.

    Args:
        variables: environment variables that it is read from, in order.
        default: the value if none is set.
        help: what it is for, in Markdown.
        shown: the default in Markdown, if the value alone does not explain it.
        secret: whether a value of another type than ``SecretStr`` may hold a secret.
    """
    extra: Any = {"variables": list(variables), "shown": f"`{default}`" if shown is None else shown, "secret": secret}
    return Field(default=default, description=help, json_schema_extra={"setting": extra})


def settings_in(group: type[BaseModel]) -> Iterator[SettingDefinition]:
    """The settings of a group, in the order in which it declares them."""
    assert issubclass(group, SettingsGroup)
    for field, info in group.model_fields.items():
        extra = info.json_schema_extra
        assert isinstance(extra, dict)
        declared: Any = extra["setting"]
        yield SettingDefinition(
            field=field,
            variables=tuple(declared["variables"]),
            type=info.annotation,
            default=info.default,
            shown=declared["shown"],
            help=info.description or "",
            group=group.title,
            secret=declared["secret"] or "SecretStr" in str(info.annotation),
        )

"""The name and the place of a remote, as ``OFFSITE_REMOTES`` gives them. ``offsite`` has what is done there."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
#: A remote of rclone's configuration file, or a folder. rclone's connection strings (``:s3,key=…:``) may hold secrets.
_TARGET = re.compile(r"(?:[\w.+@][\w.+@ -]*:|/).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """Where copies go.

    Attributes:
        name: the operator's name for it, used in commands, messages and asset keys.
        target: ``remote:path`` of rclone's configuration file, or the absolute path of a mounted folder.
    """

    name: str
    target: str

    def __str__(self) -> str:
        return self.name

    @property
    def section(self) -> str | None:
        """The section of rclone's configuration file; ``None`` for a folder."""
        return None if self.target.startswith("/") else self.target.partition(":")[0]

    def at(self, path: str) -> str:
        """Rclone's argument for a path below it."""
        if not path:
            return self.target
        return f"{self.target}{path}" if self.target.endswith((":", "/")) else f"{self.target}/{path}"


def parse_remotes(text: str) -> tuple[RemoteAddress, ...]:
    """The remotes in ``name=remote:path, name=/folder``, in order.

    Raises:
        ValueError: one is not of this form, or two have one name or one place.
    """
    found: list[RemoteAddress] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, target = (word.strip() for word in part.partition("="))
        if not equals or not _NAME.fullmatch(name):
            raise ValueError(f"{part!r} is not NAME=REMOTE:PATH; a name has letters a-z, digits and hyphens")
        found.append(RemoteAddress(name, _checked(name, target)))
    for field in ("name", "target"):
        values = [getattr(remote, field) for remote in found]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise ValueError(f"{field} {twice[0]!r} occurs twice")
    return tuple(found)


def _checked(name: str, target: str) -> str:
    if not _TARGET.fullmatch(target):
        raise ValueError(
            f"{name}={target}: the place is REMOTE:PATH, where rclone's configuration file has REMOTE, or /FOLDER"
        )
    path = target if target.startswith("/") else target.partition(":")[2]
    if not target.isprintable() or ".." in path.split("/"):
        raise ValueError(f"{name}={target!r}: a path has neither '..' nor control characters")
    return target if target == "/" else target.rstrip("/")

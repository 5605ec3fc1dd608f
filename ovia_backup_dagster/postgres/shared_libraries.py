"""Where PostgreSQL's programs look for shared libraries: a build that was moved does not find its own.

Its programs may, by their own path (RUNPATH ``$ORIGIN/../lib``), and the extensions that its server loads not: they
were told where it was built. So a program is given the folder beside its own, and what this process was given. It is
given to the program alone: in this process, other libraries of the same names might be found that Python does not work
with.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping

VARIABLE = "LD_LIBRARY_PATH"
_BESIDE = ("lib", "lib64")
#: Where the loader looks anyway.
_STANDARD = ("/", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")


def given() -> list[str]:
    """The folders that this process was given."""
    return [folder for folder in os.environ.get(VARIABLE, "").split(":") if os.path.isabs(folder)]


def files() -> list[str]:
    """The libraries in these folders, which may be anyone's: what else is there is no program's to read."""
    return sorted(path for folder in given() for path in glob.glob(f"{glob.escape(folder)}/*.so*"))


def folders(program: str) -> list[str]:
    """Where a program, by its path, is to look besides the system's folders."""
    beside: Iterable[str] = (
        os.path.join(os.path.dirname(os.path.dirname(path)), name)
        for path in (os.path.abspath(program), os.path.realpath(program))
        for name in _BESIDE
    )
    found = (folder for folder in beside if os.path.isdir(folder) and folder not in _STANDARD)
    # The loader splits at both, and knows no escape.
    return [folder for folder in dict.fromkeys([*given(), *found]) if not {":", ";"} & {*folder}]


def environment(program: str) -> Mapping[str, str]:
    """The variable for a program's environment."""
    path = ":".join(folders(program))
    return {VARIABLE: path} if path else {}

"""Sets where PostgreSQL's programs look for shared libraries, because a relocated build may not find its own.

The programs may find them relative to their own path (RUNPATH ``$ORIGIN/../lib``), but the extensions that the server
loads do not: they contain the path of the build. So a program gets the library folder beside its own folder, and the
folders that this process was given. Only the program gets them: this process might find libraries of the same name that
Python cannot use.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping

VARIABLE = "LD_LIBRARY_PATH"
_BESIDE = ("lib", "lib64")
#: Folders that the loader searches by default.
_STANDARD = ("/", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")


def given() -> list[str]:
    """The library folders in this process's environment."""
    return [folder for folder in os.environ.get(VARIABLE, "").split(":") if os.path.isabs(folder)]


def files() -> list[str]:
    """The libraries in the given folders; programs may not read the folders' other files, which may be private."""
    return sorted(path for folder in given() for path in glob.glob(f"{glob.escape(folder)}/*.so*"))


def folders(program: str) -> list[str]:
    """The folders that a program should search besides the system's."""
    beside: Iterable[str] = (
        os.path.join(os.path.dirname(os.path.dirname(path)), name)
        for path in (os.path.abspath(program), os.path.realpath(program))
        for name in _BESIDE
    )
    found = (folder for folder in beside if os.path.isdir(folder) and folder not in _STANDARD)
    # The loader splits at both characters, which cannot be escaped.
    return [folder for folder in dict.fromkeys([*given(), *found]) if not {":", ";"} & {*folder}]


def environment(program: str) -> Mapping[str, str]:
    """The variable to set in a program's environment."""
    path = ":".join(folders(program))
    return {VARIABLE: path} if path else {}

"""Reads secrets from files, at each use so that a rotated file is used, and finds passwords in URLs.

Each setting declares whether it holds a secret. No message repeats the contents of a file.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr

from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.settings.value_types import urls_in


def password_from(variable: str, path: Path) -> SecretStr:
    """The first line of a file.

    Raises:
        SettingsError: the file cannot be read, or is empty; the error has the name of the file's variable.
    """
    first = _text(variable, path).partition("\n")[0].rstrip("\r")
    if not first:
        raise SettingsError(f"{variable}={path} is empty", fix="write the password into it")
    return SecretStr(first)


def urls_from(variable: str, path: Path) -> tuple[SecretStr, ...]:
    """The URLs in a file.

    Raises:
        SettingsError: the file cannot be read, or has no URLs, or other text; the error has the file's variable.
    """
    then = ", so no alert can be sent"
    lines = _text(variable, path, then).splitlines()
    # Line by line: text on one line must not become the end of a URL on another.
    urls = [url for line in lines if not line.lstrip().startswith("#") for url in urls_in(line)]
    if not urls:
        raise SettingsError(f"{variable}={path} holds no URL{then}", fix="write Apprise URLs into it, a line each")
    for position, url in enumerate(urls, 1):
        if "://" not in url:
            what = f"{variable}={path} cannot be used{then}"
            why = f"URL number {position} has no scheme, such as mailto:// or slack://"
            raise SettingsError(what, why=why, fix="write Apprise URLs into it, a line each")
    return tuple(map(SecretStr, urls))


def password_in(text: str) -> str:
    """The first password of a URL in a text; empty if there is none. A shell variable does not count as a password."""
    found = re.search(r"://[^\s/:@]*:([^\s/@$][^\s/@]*)@", text)
    return found[1] if found else ""


def _text(variable: str, path: Path, then: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or "it is not text"
        raise SettingsError(f"{variable}={path} cannot be read{then}", why=why, fix=f"ls -l {path}") from None

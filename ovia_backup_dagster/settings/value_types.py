"""The types of setting values, with their checks and the message for an invalid value.

The groups declare which setting has which type. A value may be a secret in the wrong variable: where that is likely,
the message does not repeat the value.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, SecretStr

from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.remote_address import RemoteAddress, parse_remotes
from ovia_backup_dagster.settings.cron import why_not

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
#: A Unix socket is created in a subfolder, and its path may have at most 107 bytes.
_MOST_BYTES_OF_SOCKET_FOLDER = 60


def number(least: float, most: float, words: str, *, above: bool = False) -> AfterValidator:
    """A number within limits; with ``above``, it must be greater than ``least``."""

    def check(value: float) -> float:
        if not (least < value <= most if above else least <= value <= most):
            raise ValueError(f"{value} is not a number of {words}")
        return value

    return AfterValidator(check)


def jobs(least: int) -> AfterValidator:
    """A number of parallel jobs; 0 means the number of cores."""

    def check(value: int) -> int:
        if value != 0 and not least <= value <= 64:
            raise ValueError(f"{value} is not a number of jobs between {least} and 64, or 0 for the cores")
        return value

    return AfterValidator(check)


def _at_least_one(value: int) -> int:
    if value < 1:
        raise ValueError(f"{value} is too few: at least 1 must be kept")
    return value


def _none_or_more(value: int) -> int:
    if value < 0:
        raise ValueError(f"{value} is too few: 0 turns it off")
    return value


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise ValueError(f"{value} is not a port (1 to 65535)")
    return value


def _host(value: str) -> str:
    # The value is not repeated: a connection string may hold a password.
    if re.search(r"://|@|=", value):
        raise ValueError("it must be a host alone, not a URL or connection string")
    return value


def _identifier(value: str) -> str:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ValueError("the name is not valid UTF-8") from None
    if "password=" in value.lower() or ("://" in value and "@" in value):
        raise ValueError("it must be a name alone, not a connection string")
    if not 1 <= len(encoded) <= 63:
        raise ValueError("a PostgreSQL name has 1 to 63 bytes")
    return value


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"{str(value)!r} is not an absolute path, and would mean another folder to each program")
    return value


def _short(value: Path) -> Path:
    if len(os.fsencode(value)) > _MOST_BYTES_OF_SOCKET_FOLDER:
        raise ValueError(f"{str(value)!r} is longer than 60 bytes, too long for a Unix socket in it")
    return value


def _web_address(value: str) -> str:
    if value and not re.match(r"https?://", value):
        raise ValueError("it must begin with http:// or https://")
    return value


def _cron(value: str) -> str:
    if why := why_not(value):
        raise ValueError(f"{value!r} is not a cron expression, such as '0 3 * * *': {why}")
    return value.strip()


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is not a time zone, such as Europe/Berlin") from None
    return value


def _weekday(value: str) -> str:
    day = value.strip().lower()
    if day not in WEEKDAYS:
        raise ValueError(f"{value!r} is not a day of the week, such as sunday")
    return day


def _asset_prefix(value: str) -> str:
    # Dagster's own rule for groups, which is the strictest.
    if not re.fullmatch(r"[A-Za-z0-9_]*", value):
        raise ValueError(f"{value!r} is not a name of letters, digits and underscores")
    return value


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def urls_in(text: str) -> tuple[str, ...]:
    """Split URLs at commas or blanks. A comma may be part of a URL: it separates only before the next scheme."""
    return tuple(part for part in re.split(r"[,\s]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", text.strip(", \r\n\t")) if part)


def _split_urls(value: object) -> object:
    return urls_in(value) if isinstance(value, str) else value


def _schemes(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    for position, url in enumerate(value, 1):
        if "://" not in url.get_secret_value():
            raise ValueError(f"URL number {position} has no scheme, such as mailto:// or slack://")
    return value


def _remotes(value: object) -> object:
    return parse_remotes(value) if isinstance(value, str) else value


def _recipients(value: tuple[str, ...]) -> tuple[str, ...]:
    for recipient in value:
        if recipient.upper().startswith("AGE-SECRET-KEY"):
            raise ValueError("it is an identity, which must not be on this host: a recipient begins with age1")
        # For any other kind (age1yubikey1…), age runs a program of PATH.
        if not re.fullmatch(r"age1[02-9ac-hj-np-z]{58}", recipient):
            raise ValueError(f"{recipient!r} is not a recipient of age: age1 and 58 more characters")
    return value


def _bandwidth(value: str) -> str:
    # rclone reads it from its command line: no option, and nothing that needs quoting.
    if not re.fullmatch(r"[\w.:, -]*", value) or value.startswith("-"):
        raise ValueError(f"{value!r} is not a limit of rclone's --bwlimit, such as 10M or 08:00,512k 19:00,off")
    return value


def _hints(value: object) -> object:
    return Hints.parse(value) if isinstance(value, str) else value


Port = Annotated[int, AfterValidator(_port)]
#: Name, address, or folder of a Unix socket.
Host = Annotated[str, AfterValidator(_host)]
#: A name in PostgreSQL.
Identifier = Annotated[str, AfterValidator(_identifier)]
AbsoluteFolder = Annotated[Path, AfterValidator(_absolute)]
#: A folder for Unix sockets.
SocketFolder = Annotated[Path, AfterValidator(_absolute), AfterValidator(_short)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
CronExpression = Annotated[str, AfterValidator(_cron)]
TimeZone = Annotated[str, AfterValidator(_timezone)]
WeekdayName = Annotated[str, AfterValidator(_weekday)]
#: How many backups of a tier are kept.
Kept = Annotated[int, AfterValidator(_at_least_one)]
#: The same for a tier that may be off.
KeptOrNone = Annotated[int, AfterValidator(_none_or_more)]
AssetPrefix = Annotated[str, AfterValidator(_asset_prefix)]
#: A sequence of names, or a comma list.
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split)]
#: A sequence of Apprise URLs, or a list in one text.
NotifyUrls = Annotated[tuple[SecretStr, ...], BeforeValidator(_split_urls), AfterValidator(_schemes)]
HintLines = Annotated[Hints, BeforeValidator(_hints)]
Remotes = Annotated[tuple[RemoteAddress, ...], BeforeValidator(_remotes)]
#: X25519 recipients of age, or a comma list.
Recipients = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_recipients)]
Bandwidth = Annotated[str, AfterValidator(_bandwidth)]

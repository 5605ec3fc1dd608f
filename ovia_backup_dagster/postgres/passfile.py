"""Explains why libpq finds no password in the file that ``PGPASSFILE`` names.

libpq ignores an unsuitable file, mostly without a message, and the server then reports that no password was supplied.
The rules are those of ``passwordFromFile`` in libpq's ``fe-connect.c`` (PostgreSQL 16). This module only checks that a
password exists; it does not use it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from ovia_backup_dagster.core.errors import PasswordMissingError
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.postgres.programs import Connection

#: libpq reads lines of any length; a file larger than this is not a password file.
_MOST_BYTES = 1024 * 1024
#: Host, port, database, role and password; a backslash escapes the next character.
_LINE = re.compile(rb"(?!#)" + rb"((?:[^:\\]|\\.)*):" * 4 + rb"(.+)", re.DOTALL)
#: libpq's default folders for sockets: the file calls such a connection ``localhost``.
_SOCKET_FOLDERS = ("/tmp", "/var/run/postgresql")  # noqa: S108


def trouble(connection: Connection) -> tuple[str, str] | None:
    """Why the file has no password for a connection, and what to do; ``None`` without a file, or if it has one."""
    name = connection.libpq.get("PGPASSFILE")
    if not name:
        return None
    file = shell_word(name)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            return f"the password file {name} is not a regular file", f"ls -lL {file}; set PGPASSFILE to a file"
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            why = f"the password file {name} has mode {mode}, and libpq ignores a file that others may read or write"
            return why, f"chmod 0600 {file}"
        with Path(name).open("rb") as opened:
            content = opened.read(_MOST_BYTES)
    except OSError as error:
        why = f"the password file {name} cannot be read: {error.strerror or error}"
        return why, f"ls -lL {file}; set PGPASSFILE to a file of mode 0600 that this user owns"
    wanted = _wanted(connection)
    if any(_fits(line, wanted) for line in content.split(b"\n")):
        return None
    host, port, _, role = (_escaped(part).decode("utf-8", "backslashreplace") for part in wanted)
    why = f"the password file {name} has no line with a password for {connection.host}:{connection.port}, database "
    why += f"{connection.database}, role {connection.user}"
    line = f"{host}:{port}:*:{role}:PASSWORD"
    databases = "* means every database: a restore also connects to postgres and template1"
    return why, f"add the line {line}, with the password ({databases})"


def refuse_strange(connection: Connection) -> None:
    """Refuse a file, such as a FIFO, for which libpq (18, which psycopg includes) would wait without end.

    Raises:
        PasswordMissingError: the password file is not a regular file.
    """
    name = connection.libpq.get("PGPASSFILE", os.devnull)
    if connection.password is not None or name == os.devnull:
        return
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat(name).st_mode) and (found := trouble(connection)):
            raise PasswordMissingError(f"no connection to {connection}", why=found[0], fix=found[1])


def _wanted(connection: Connection) -> tuple[bytes, bytes, bytes, bytes]:
    host = "localhost" if connection.host in ("", *_SOCKET_FOLDERS) else connection.host
    return os.fsencode(host), b"%d" % connection.port, connection.database.encode(), connection.user.encode()


def _fits(line: bytes, wanted: tuple[bytes, ...]) -> bool:
    match = _LINE.fullmatch(line.rstrip(b"\r"))
    return match is not None and all(
        field == b"*" or re.sub(rb"\\(.)", rb"\1", field, flags=re.DOTALL) == value
        for field, value in zip(match.groups(), wanted, strict=False)
    )


def _escaped(value: bytes) -> bytes:
    return re.sub(rb"([:\\])", rb"\\\1", value)

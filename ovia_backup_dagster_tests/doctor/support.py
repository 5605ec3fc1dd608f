"""What the tests of the doctor share: a system from an environment, and access to one line of a report."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.versions import newest_minor
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import PASSWORD
from ovia_backup_dagster_tests.defs.support import environment, load

_numbers = count(1)


def system_of(connection: Connection, volume: Path, bin_dir: Path, **more: str) -> BackupSystem:
    """The system of an operator's environment."""
    return BackupSystem(load(environment(connection, volume, bin_dir, **more)))


def the(lines: Iterable[Observation], words: str) -> Observation:
    """The only observation with this text. Asserts that texts are one line and do not show the tests' password."""
    lines = list(lines)
    for line in lines:
        assert "\n" not in line.text + line.fix
        assert PASSWORD not in repr(line)
    found = [line for line in lines if words in line.text]
    assert len(found) == 1, lines
    return found[0]


def as_it_should(lines: Iterable[Observation]) -> bool:
    """Whether no line needs a fix."""
    return all(line.level is Severity.OK for line in lines)


def levels(lines: Iterable[Observation], *areas: Area) -> list[Severity]:
    return [line.level for line in lines if not areas or line.area in areas]


def repaired(bin_dir: Path, folder: Path) -> Path:
    """The same programs, which claim to be of the release that fixes what is known: no registry has it yet."""
    folder.mkdir()
    for program in bin_dir.iterdir():
        (folder / program.name).symlink_to(program)
    for name in ("pg_dump", "pg_restore", "pg_dumpall"):
        (folder / name).unlink()
        says = f'[ "$1" = --version ] && echo "{name} (PostgreSQL) 16.{newest_minor(16)}" && exit'
        executable(folder / name, f'{says}\nexec "{bin_dir / name}" "$@"')
    return folder


def new_role(admin: Connection, options: str = "", name: str | None = None) -> Connection:
    """A bare role that may log in."""
    name = name or f"doctor_{admin.database}_{next(_numbers)}"
    with psycopg.connect(
        host=admin.host, port=admin.port, dbname=admin.database, user=admin.user, autocommit=True
    ) as session:
        session.execute(sql.SQL("CREATE ROLE {} LOGIN " + options).format(sql.Identifier(name)))
    return Connection(admin.host, admin.port, admin.database, name)


def executable(path: Path, text: str) -> Path:
    """A shell script that stands in for a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def everything_below(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Every entry with inode, mtime and ctime, folders and the lock included: any change would alter them."""
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        yield str(path), status.st_ino, status.st_mtime_ns, status.st_ctime_ns

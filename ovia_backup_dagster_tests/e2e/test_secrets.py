"""Programs that we start find no secret of ours: real commands and runs, whose settings have the secrets by value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, execute
from ovia_backup_dagster_tests.defs.support import dagster, environment

PROGRAM = Path(sys.executable).with_name("ovia-backup")
RESTORER = "r3store/p@ss w%rd"
CHANNEL = "json://bot:ch4nnel%2Fs3cret@127.0.0.1:1/hook"
HEALTH = "http://probe:h3alth-s3cret@127.0.0.1:1/health"
VARIABLES = {
    "POSTGRES_PASSWORD": PASSWORD,
    "RESTORE_POSTGRES_PASSWORD": RESTORER,
    "BACKUP_NOTIFY_URLS": CHANNEL,
    "HEALTH_URL": HEALTH,
}
#: Each secret in the forms in which it may be written.
SECRETS = (PASSWORD, RESTORER, quote(RESTORER, safe=""), "ch4nnel", "h3alth-s3cret")
#: Everything that a program gets from the one that started it.
LOOK = r'env; tr "\0" "\n" < /proc/$PPID/environ; echo "$POSTGRES_PASSWORD,$PGPASSWORD,$BACKUP_NOTIFY_URLS"'


@pytest.fixture
def settings(database: Connection, server: PortCluster, volume: Path, bin_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Over TCP, which requires the password; with a check that looks for secrets and prints them from a file."""
    said = tmp_path / "said"
    said.write_text("\n".join((PASSWORD, RESTORER, quote(RESTORER, safe=""), quote(RESTORER), CHANNEL, HEALTH, "")))
    found = environment(database, volume, bin_dir, **VARIABLES)
    found |= {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(server.port), "POSTGRES_USER": "postgres"}
    command = f"{{ {LOOK}; }} > {tmp_path / 'seen'}; cat {said}; echo the end"
    return found | {"DRILL_CHECK_COMMAND": command, "PATH": "/usr/bin:/bin"}


def finds_nothing(tmp_path: Path, told: str) -> None:
    seen = (tmp_path / "seen").read_text()
    # The check did look at its own environment and at its parent's initial one.
    assert "DATABASE_URL=" in seen
    assert "POSTGRES_HOST=127.0.0.1" in seen
    assert set(VARIABLES) <= {line.partition("=")[0] for line in seen.splitlines()}
    assert [secret for secret in SECRETS if secret in seen] == []
    assert "own check: ********" in told
    assert "own check: the end" in told
    assert [secret for secret in SECRETS if secret in told] == []


@pytest.mark.exhaustive
def test_a_program_of_a_command_finds_no_secret(
    settings: dict[str, str], database: Connection, server: PortCluster, tmp_path: Path, volume: Path
) -> None:
    """The command itself still has them: it drops and restores the database after the check."""
    # Control: the child of a program without this protection reads them.
    careless = subprocess.run(("sh", "-c", f"sh -c '{LOOK}'; true"), env=settings, capture_output=True, text=True)
    assert [secret for secret in SECRETS if secret not in careless.stdout] == [quote(RESTORER, safe="")]
    execute(server.connection(), f"CREATE ROLE weigher LOGIN SUPERUSER PASSWORD '{RESTORER}'")
    try:
        told = ""
        for command in (("dump",), ("restore", "latest", "--mode", "drop", "--yes-destroy", database.database)):
            done = subprocess.run(
                (str(PROGRAM), *command, *(("--without-services",) if len(command) > 1 else ())),
                env={**settings, "RESTORE_POSTGRES_USER": "weigher"},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            told += done.stdout + done.stderr
            assert done.returncode == 0, told
    finally:
        execute(server.connection(), "REASSIGN OWNED BY weigher TO postgres; DROP ROLE weigher")
    assert next(RestoreFolder(Catalog(volume, database.database)).newest_first()).outcome == "done"
    finds_nothing(tmp_path, told)


@pytest.mark.exhaustive
def test_a_program_of_a_run_finds_no_secret(settings: dict[str, str], tmp_path: Path) -> None:
    """On a plain host; in the stack, a run has secrets only as files."""
    home = tmp_path / "home"
    home.mkdir()
    made = subprocess.run((str(PROGRAM), "dump"), env=settings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    job = ("--python-file", "ovia_backup_dagster/definitions.py", "--job", "restore_drill_job")
    done = dagster("job", "execute", *job, home=home, **settings)
    assert done.returncode == 0, done.stdout
    finds_nothing(tmp_path, done.stdout)
    logs = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    assert [secret for secret in SECRETS if any(secret.encode() in content for content in logs)] == []

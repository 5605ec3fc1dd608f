"""What a container does before it executes its program. ``make test-swarm`` tests the stack itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dagster_docker.container_context import DockerContainerContext
from hypothesis import given
from hypothesis import strategies as st

from ovia_backup_dagster.container import container_roles, swarm_secrets
from ovia_backup_dagster.container.errors import ContainerError, NotThereYetError
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.conftest import REPOSITORY
from ovia_backup_dagster_tests.support.signed_logs import aged, key_settings, statement_paths

DEPLOY = REPOSITORY / "deploy"
OVERLAY_SECRETS = ("restore_password", "wal_password", "signing_key", "verify_key", "rclone_config")


def test_runs_get_the_code_servers_settings() -> None:
    context = container_roles.container_context(
        {
            "POSTGRES_HOST": "postgres",
            "BACKUP_SCHEDULE": "",
            "POSTGRES_PASSWORD_FILE": "/run/ovia-backup/postgres_password",
            "DRILL_CHECK_COMMAND": "test 1 = 1; echo 'x'",
            "PGSSLMODE": "verify-full",
            "PATH": "/bin",
            "DAGSTER_HOME": "/etc/ovia-backup",
            "HOSTNAME": "x",
            "RUN_NETWORKS": "a b",
            "RUN_VOLUMES": "data:/backups  logs:/logs:ro",
            "RUN_OFFSITE_NETWORKS": "outside",
        }
    )
    assert context["ovia_offsite"] == {"networks": ["outside"], "volumes": []}
    assert context["docker"] == {
        "env_vars": [
            "DRILL_CHECK_COMMAND=test 1 = 1; echo 'x'",
            "PGSSLMODE=verify-full",
            "POSTGRES_HOST=postgres",
            "POSTGRES_PASSWORD_FILE=/run/ovia-backup/postgres_password",
        ],
        "networks": ["a", "b"],
        "container_kwargs": {"volumes": ["data:/backups", "logs:/logs:ro"]},
    }


@given(st.dictionaries(st.sampled_from(sorted(swarm_secrets.FILE_VARIABLES)), st.text(min_size=1)))
def test_no_secret_is_ever_passed_on(environment: dict[str, str]) -> None:
    """A secret by value is refused before the context is made."""
    try:
        swarm_secrets.refuse_secret_values(environment)
    except SettingsError:
        assert environment
    else:
        assert not environment


@pytest.mark.parametrize("name", ["HEALTH_URL", "DRILL_CHECK_COMMAND", "DAGSTER_PUBLIC_URL"])
def test_a_password_inside_another_setting_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} holds a password.*Docker secret") as refused:
        swarm_secrets.refuse_secret_values({name: "curl http://probe:geheim@host/"})
    assert "geheim" not in str(refused.value)
    swarm_secrets.refuse_secret_values({name: "curl http://$USER:$WORD@host/", "OTHER": "http://a:b@c"})


def test_a_runs_environment_holds_no_secret(private: Path) -> None:
    """As Dagster's launcher makes it from the stack's own files; the secrets exist as files."""
    for name in ("postgres_password", "notify_urls", "storage_password", *OVERLAY_SECRETS):
        swarm_secrets.SECRETS.joinpath(name).write_text(f"geheim-{name}")
    swarm_secrets.collect_secrets()
    stack = yaml.safe_load((DEPLOY / "stack.yml").read_text("utf-8"))
    given = dict(stack["x-database"])
    for name in ("restore", "signing", "offsite", "pitr"):
        given |= yaml.safe_load((DEPLOY / f"{name}.yml").read_text("utf-8"))[f"x-{name}"]
    swarm_secrets.refuse_secret_values(given)
    launcher = yaml.safe_load((DEPLOY / "dagster.yaml").read_text("utf-8"))["run_launcher"]["config"]
    made: Any = DockerContainerContext.create_from_config(container_roles.container_context(given))  # type: ignore[no-untyped-call]
    # The daemon would add these from its own environment.
    assert "env_vars" not in launcher
    assert "environment" not in launcher["container_kwargs"]
    variables = dict(variable.split("=", 1) for variable in made.env_vars)
    assert variables.keys() & swarm_secrets.FILE_VARIABLES.keys() == set()
    named = {name for name in variables if name.endswith("_FILE") or name == "RCLONE_CONFIG"}
    assert named == set(swarm_secrets.SECRET_FILES)
    assert "geheim" not in str(variables)


def test_the_doctor_states_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can write to the volume, and reports why there is none. ``signing`` tests when one is due."""
    monkeypatch.delenv("BACKUP_SIGNING_KEY_FILE", raising=False)
    assert container_roles.state_alive() == []
    for name in ("HOST", "DB", "USER"):
        monkeypatch.setenv(f"POSTGRES_{name}", "ovia")
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("BACKUP_SIGNING_KEY_FILE", str(tmp_path / "gone"))
    monkeypatch.setenv("BACKUP_VERIFY_KEY_FILE", str(tmp_path / "gone.pub"))
    [line] = container_roles.state_alive()
    assert line["level"] == "warn"
    assert f"{tmp_path / 'gone.pub'}" in line["text"]
    assert "Next: " in line["text"]
    key = Ed25519PrivateKey.generate()
    for name, value in key_settings(tmp_path / "keys", key).items():
        monkeypatch.setenv(name, value)
    assert container_roles.state_alive() == []
    volume = tmp_path / "volume"
    StatementLog(volume, "ovia", key.public_key(), key).published("ovia_daily_2026-01-01_030000.dump", 1, "0" * 64, {})
    aged(volume, "ovia", key, 24)
    assert container_roles.state_alive() == []
    assert len(statement_paths(volume, "ovia")) == 2


def test_a_runs_output_goes_to_a_file_and_old_files_are_removed(tmp_path: Path) -> None:
    """The real program, as the launcher starts it; it executes the run's command, and has its exit code."""
    logs = tmp_path / "runs"
    logs.mkdir()
    for number in range(5):
        logs.joinpath(f"2026-01-0{number}_old.log").touch()
    code = (
        "from pathlib import Path; from ovia_backup_dagster.container import container_roles, main; "
        f"container_roles.RUN_LOGS = Path({str(logs)!r}); container_roles.RUN_LOGS_KEPT = 2; main.entry_point()"
    )
    command = ("sh", "-c", "echo out; echo --err >&2; exit 7", "--flag", "-x")
    environment = {**os.environ, "DAGSTER_RUN_JOB_NAME": "daily_backup_job"}
    done = subprocess.run(
        (sys.executable, "-c", code, "run", *command), env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    *old, new = sorted(logs.iterdir())
    assert [path.name for path in old] == ["2026-01-03_old.log", "2026-01-04_old.log"]
    assert new.read_text() == "out\n--err\n"
    assert f"_daily_backup_job_{socket.gethostname()}.log" in new.name
    assert new.stat().st_mode & 0o777 == 0o600


def test_without_a_log_folder_the_run_goes_on(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from ovia_backup_dagster.container import container_roles, main; "
        f"container_roles.RUN_LOGS = Path({str(tmp_path / 'none/runs')!r}); main.entry_point()"
    )
    done = subprocess.run(
        (sys.executable, "-c", code, "run", "echo", "on"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_a_starting_service_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([NotThereYetError("it does not answer"), NotThereYetError("it does not answer"), None])

    def there() -> None:
        if error := next(answers):
            raise error

    container_roles.wait_for(there, pause=0)
    assert capsys.readouterr().err == "waiting: it does not answer\n"


def test_a_service_that_does_not_come_is_an_error() -> None:
    def never() -> None:
        raise NotThereYetError("it does not answer")

    with pytest.raises(NotThereYetError, match="it does not answer"):
        container_roles.wait_for(never, patience=0.05, pause=0.01)


def test_an_error_that_waiting_cannot_fix_is_raised_at_once() -> None:
    asked = []

    def wrong() -> None:
        asked.append(1)
        raise ContainerError("there is no such network")

    with pytest.raises(ContainerError, match="there is no such network"):
        container_roles.wait_for(wrong, patience=60)
    assert asked == [1]


def test_a_role_that_cannot_start_ends_with_one_line(tmp_path: Path) -> None:
    """The real program, outside of a container."""
    environment = {"PATH": os.environ["PATH"], "POSTGRES_PASSWORD": "geheim"}
    program = Path(sys.executable).with_name("ovia-backup-service")
    done = subprocess.run((program, "code-server"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: POSTGRES_PASSWORD is set by value")
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr + done.stdout

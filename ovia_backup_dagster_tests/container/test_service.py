"""What a container does before it becomes something else. The stack itself: ``make test-swarm``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster_docker.container_context import DockerContainerContext
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from ovia_backup_dagster.container import service
from ovia_backup_dagster.container.service import NotThereYetError, ServiceError
from ovia_backup_dagster.core.errors import BackupError, SettingsError
from ovia_backup_dagster_tests.conftest import REPOSITORY, PortCluster, admin, execute, free_port

DEPLOY = REPOSITORY / "deploy"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's folders."""
    for name in ("secrets", "private", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(service, "SECRETS", tmp_path / "secrets")
    monkeypatch.setattr(service, "PRIVATE", tmp_path / "private")
    monkeypatch.setattr(service, "PASSFILE", tmp_path / "private/storage.pgpass")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    for name in service.BY_FILE.values():
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "private"


# ---------------------------------------------------------------------------------------------------- secrets


def test_secrets_become_private_files(private: Path) -> None:
    service.SECRETS.joinpath("postgres_password").write_text("geheim\n")
    service.SECRETS.joinpath("storage_password").write_text("s")
    os.umask(0)
    service.collect_secrets()
    files = {path.name: path.read_text() for path in private.iterdir()}
    assert files == {"postgres_password": "geheim\n", "storage_password": "s", "storage.pgpass": "*:*:*:*:s\n"}
    assert {path.stat().st_mode & 0o777 for path in private.iterdir()} == {0o600}


def test_they_are_replaced_when_the_container_begins_anew(private: Path) -> None:
    for password in ("old", "new"):
        service.SECRETS.joinpath("storage_password").write_text(password)
        service.collect_secrets()
    assert service.PASSFILE.read_text() == "*:*:*:*:new\n"


def test_a_secret_that_was_taken_away_does_not_linger(private: Path) -> None:
    for name in ("storage_password", "notify_urls"):
        service.SECRETS.joinpath(name).write_text("s")
    service.collect_secrets()
    service.SECRETS.joinpath("notify_urls").unlink()
    service.collect_secrets()
    assert {path.name for path in private.iterdir()} == {"storage_password", "storage.pgpass"}


def test_without_the_storages_password_it_says_so(private: Path) -> None:
    with pytest.raises(ServiceError, match=r"secrets cannot be collected.*storage_password.*docker secret ls"):
        service.collect_secrets()


@pytest.mark.parametrize("name", sorted(set(service.BY_FILE.values())))
def test_a_secret_that_a_variable_names_must_be_there(
    private: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    service.SECRETS.joinpath("storage_password").write_text("s")
    monkeypatch.setenv(name, "/run/ovia-backup/none")
    with pytest.raises(ServiceError, match=rf"{name}=/run/ovia-backup/none cannot be read: No such file"):
        service.collect_secrets()


@pytest.mark.parametrize("name", sorted(service.BY_FILE))
def test_a_secret_by_value_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is set by value.*{service.BY_FILE[name]}") as refused:
        service.refuse_values({name: "geheim"})
    assert "geheim" not in str(refused.value)
    service.refuse_values({name: ""})


@pytest.mark.parametrize("password", ["plain", "with:colon", "back\\slash", "both\\:", "ü ' \" $x %s", ":", "\\"])
def test_libpq_reads_the_password_from_the_passfile(private: Path, server: PortCluster, password: str) -> None:
    """As Dagster's storage does, with the driver's name in the URL."""
    role = f"storage{free_port()}"
    execute(server.connection(), f"CREATE ROLE {role} LOGIN")
    with admin(server) as session:
        session.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), password))
    service.SECRETS.joinpath("storage_password").write_text(password)
    service.collect_secrets()
    _instance(f"postgresql+psycopg2://{role}@127.0.0.1:{server.port}/postgres?passfile={service.PASSFILE}")
    service.storage()
    service.PASSFILE.write_text("*:*:*:*:wrong\n")
    with pytest.raises(ServiceError, match=r"Dagster's storage does not answer.*password authentication failed"):
        service.storage()


def _instance(url: str, networks: tuple[str, ...] = ("control",)) -> None:
    home = Path(os.environ["DAGSTER_HOME"])
    launcher = {"config": {"networks": list(networks)}}
    home.joinpath("dagster.yaml").write_text(
        yaml.safe_dump({"storage": {"postgres": {"postgres_url": url}}, "run_launcher": launcher})
    )


# ------------------------------------------------------------------------------------------------ what runs need


def test_runs_get_the_code_servers_settings() -> None:
    context = service.container_context(
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
        }
    )
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


@given(st.dictionaries(st.sampled_from(sorted(service.BY_FILE)), st.text(min_size=1)))
def test_no_secret_is_ever_passed_on(environment: dict[str, str]) -> None:
    """What is refused by value can not be in the context, or the context is not made."""
    try:
        service.refuse_values(environment)
    except SettingsError:
        assert environment
    else:
        assert not environment


@pytest.mark.parametrize("name", ["HEALTH_URL", "DRILL_CHECK_COMMAND", "DAGSTER_PUBLIC_URL"])
def test_nor_a_password_within_another_setting(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} holds a password.*Docker secret") as refused:
        service.refuse_values({name: "curl http://probe:geheim@host/"})
    assert "geheim" not in str(refused.value)
    service.refuse_values({name: "curl http://$USER:$WORD@host/", "OTHER": "http://a:b@c"})


def test_a_runs_environment_holds_no_secret(private: Path) -> None:
    """As Dagster's launcher makes it, of the stack's own files; the secrets are there, as files."""
    for name in ("postgres_password", "notify_urls", "storage_password", "restore_password"):
        service.SECRETS.joinpath(name).write_text(f"geheim-{name}")
    service.collect_secrets()
    stack = yaml.safe_load((DEPLOY / "stack.yml").read_text("utf-8"))
    overlay = yaml.safe_load((DEPLOY / "restore.yml").read_text("utf-8"))
    given = {**stack["x-database"], **overlay["x-restore"]}
    service.refuse_values(given)
    launcher = yaml.safe_load((DEPLOY / "dagster.yaml").read_text("utf-8"))["run_launcher"]["config"]
    made: Any = DockerContainerContext.create_from_config(service.container_context(given))  # type: ignore[no-untyped-call]
    # What the daemon adds of its own surroundings.
    assert "env_vars" not in launcher
    assert "environment" not in launcher["container_kwargs"]
    variables = dict(variable.split("=", 1) for variable in made.env_vars)
    assert variables.keys() & service.BY_FILE.keys() == set()
    assert {name for name in variables if name.endswith("_FILE")} == set(service.BY_FILE.values())
    assert "geheim" not in str(variables)


def test_what_a_run_prints_goes_to_a_file_and_the_old_ones_go(tmp_path: Path) -> None:
    """The real program, as the launcher begins it; it becomes the run's command, exit code and all."""
    logs = tmp_path / "runs"
    logs.mkdir()
    for number in range(5):
        logs.joinpath(f"2026-01-0{number}_old.log").touch()
    code = (
        "from pathlib import Path; from ovia_backup_dagster.container import service; "
        f"service.RUN_LOGS = Path({str(logs)!r}); service.RUN_LOGS_KEPT = 2; service.run()"
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


def test_without_a_place_for_it_the_run_goes_on(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from ovia_backup_dagster.container import service; "
        f"service.RUN_LOGS = Path({str(tmp_path / 'none/runs')!r}); service.run()"
    )
    done = subprocess.run(
        (sys.executable, "-c", code, "run", "echo", "on"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


# ------------------------------------------------------------------------------------------------------- health


@pytest.fixture
def docker_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, object]]]:
    """Something that answers like Docker, as it is told to."""
    answers: dict[str, tuple[int, object]] = {
        "/_ping": (200, "OK"),
        "/version": (200, {"ApiVersion": "1.41"}),
        "/networks/control": (200, {"Driver": "overlay", "Attachable": True}),
        "/networks/ovia": (200, {"Driver": "overlay", "Attachable": True}),
        "/images/image:1/json": (200, {"Id": "sha256:1"}),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("/v1.41")[-1]
            code, content = answers.get(path, (404, {"message": f"no such thing: {path}"}))
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("RUN_NETWORKS", "ovia")
        monkeypatch.setenv("DAGSTER_CURRENT_IMAGE", "image:1")
        yield answers
        server.shutdown()
        thread.join()


def test_docker_is_as_runs_need_it(private: Path, docker_host: dict[str, tuple[int, object]]) -> None:
    _instance("postgresql://x")
    service.docker()


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/networks/ovia", (404, {"message": "no such thing"}), "there is no network ovia for runs"),
        ("/networks/control", (404, {"message": "no such thing"}), "there is no network control for runs"),
        ("/networks/ovia", (200, {"Driver": "overlay"}), "the network ovia is not attachable"),
        ("/images/image:1/json", (404, {"message": "no such thing"}), "the image image:1 is not on this node"),
        ("/version", (503, {"message": "no server"}), "Docker does not answer: no run can be launched"),
        ("/networks/ovia", (403, {"message": "denied"}), "Docker does not answer"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    private: Path, docker_host: dict[str, tuple[int, object]], path: str, answer: tuple[int, object], said: str
) -> None:
    _instance("postgresql://x")
    docker_host[path] = answer
    with pytest.raises(ServiceError, match=said) as refused:
        service.docker()
    assert "\n" not in str(refused.value)
    assert "Next: " in str(refused.value)


def test_what_is_only_starting_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([NotThereYetError("it does not answer"), NotThereYetError("it does not answer"), None])

    def there() -> None:
        if error := next(answers):
            raise error

    service.wait_for(there, pause=0)
    assert capsys.readouterr().err == "waiting: it does not answer\n"


def test_what_does_not_come_is_an_error() -> None:
    def never() -> None:
        raise NotThereYetError("it does not answer")

    with pytest.raises(NotThereYetError, match="it does not answer"):
        service.wait_for(never, patience=0.05, pause=0.01)


def test_what_waiting_cannot_mend_is_said_at_once() -> None:
    asked = []

    def wrong() -> None:
        asked.append(1)
        raise ServiceError("there is no such network")

    with pytest.raises(ServiceError, match="there is no such network"):
        service.wait_for(wrong, patience=60)
    assert asked == [1]


def test_a_role_that_lacks_something_ends_with_one_line(tmp_path: Path) -> None:
    """The real program, where nothing is as in a container."""
    environment = {"PATH": os.environ["PATH"], "POSTGRES_PASSWORD": "geheim"}
    program = Path(sys.executable).with_name("ovia-backup-service")
    done = subprocess.run((program, "code-server"), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: POSTGRES_PASSWORD is set by value")
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr + done.stdout


@pytest.mark.parametrize("role", ["webserver", "proxy"])
def test_nothing_that_answers_is_unhealthy(private: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name in ("WEBSERVER_PORT", "HEALTH_PORT"):
            monkeypatch.setattr(service, name, taken.getsockname()[1])
        with pytest.raises(BackupError, match="does not answer"):
            service.health.callback(role)  # type: ignore[misc]


def test_the_doctor_is_unwell_while_something_will_fail(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UNWELL", private / "unwell")
    service.health.callback("doctor")  # type: ignore[misc]
    (private / "unwell").touch()
    with pytest.raises(ServiceError, match="docker service logs ovia-backup_doctor"):
        service.health.callback("doctor")  # type: ignore[misc]

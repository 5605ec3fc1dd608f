"""Health checks: the services that must answer, and the errors when they do not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ovia_backup_dagster.container import health_checks
from ovia_backup_dagster.container.errors import ContainerError
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.pitr.receiver_status import ReceiverState, ReceiverStatus, ReceiverTrouble, write_status
from ovia_backup_dagster_tests.container.conftest import write_instance
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status


@pytest.fixture
def docker_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, object]]]:
    """A server that answers like Docker, with answers that a test may change."""
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


def test_docker_is_ready_for_runs(private: Path, docker_host: dict[str, tuple[int, object]]) -> None:
    write_instance("postgresql://x")
    health_checks.docker_is_ready()


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
def test_a_missing_requirement_is_reported_in_one_line(
    private: Path, docker_host: dict[str, tuple[int, object]], path: str, answer: tuple[int, object], said: str
) -> None:
    write_instance("postgresql://x")
    docker_host[path] = answer
    with pytest.raises(ContainerError, match=said) as refused:
        health_checks.docker_is_ready()
    assert "\n" not in str(refused.value)
    assert "Next: " in str(refused.value)


@pytest.mark.parametrize("role", ["webserver", "proxy"])
def test_a_server_that_does_not_answer_is_unhealthy(private: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name in ("WEBSERVER_PORT", "HEALTH_PORT"):
            monkeypatch.setattr(health_checks, name, taken.getsockname()[1])
        with pytest.raises(BackupError, match="does not answer"):
            health_checks.health_command.callback(role)  # type: ignore[misc]


def test_the_doctor_is_unhealthy_while_a_failure_is_reported(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "UNWELL", private / "unwell")
    health_checks.health_command.callback("doctor")  # type: ignore[misc]
    (private / "unwell").touch()
    with pytest.raises(ContainerError, match="docker service logs ovia-backup_doctor"):
        health_checks.health_command.callback("doctor")  # type: ignore[misc]


def report(**changed: object) -> ReceiverStatus:
    """A report of a receiver in this container, now."""
    return receiver_status(datetime.now(UTC), **{"host": socket.gethostname(), **changed})


TROUBLE = ReceiverTrouble(error="ServerError", account="no connection: refused", fix="pg_ctl", since=datetime.now(UTC))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        # A damaged segment, or a beacon that does not return: receiving goes on, and a restart changes nothing.
        ({"troubles": "one"}, ""),
        ({"state": ReceiverState.WAITING}, ""),
        (
            {"state": ReceiverState.WAITING, "troubles": "one"},
            "no WAL is received: no connection: ref.*pg_ctl",
        ),
        ({"state": ReceiverState.STOPPED}, "no WAL is received: the receiver has ended.*docker service logs"),
        ({"written_at": "an hour ago"}, r"the WAL receiver does not report: .*\d\d:\d\d:\d\d UTC"),
        ({"host": "another"}, "the WAL receiver does not report: its last .* on another"),
        (None, "the WAL receiver does not report: it never did"),
    ],
)
def test_the_receivers_report_decides_its_health(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object] | None, said: str
) -> None:
    monkeypatch.setenv("BACKUP_DIR", str(tmp_path))
    (tmp_path / "pitr").mkdir()
    if changed is not None:
        words = {"one": (TROUBLE,), "an hour ago": datetime.now(UTC) - timedelta(hours=1)}
        write_status(tmp_path, report(**{name: words.get(str(value), value) for name, value in changed.items()}))
    with pytest.raises(ContainerError, match=said) if said else nullcontext():
        health_checks.health_command.callback("wal")  # type: ignore[misc]

"""Health checks of an application, against real servers on loopback."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator

import pytest

from ovia_backup_dagster.core.errors import HealthError
from ovia_backup_dagster.restoration import application_health
from ovia_backup_dagster.restoration.application_health import wait_until_healthy
from ovia_backup_dagster_tests.support.restoring import Application, serving


@pytest.fixture
def application() -> Iterator[Application]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application_health, "_PAUSE_SECONDS", 0.05)


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_success_status_is_healthy(application: Application, status: int) -> None:
    application.answers = [(status, {})]
    said: list[str] = []
    wait_until_healthy(application.url(), 5, said.append)
    assert said == [f"{application.url()} is healthy"]


def test_an_application_that_recovers_is_healthy(application: Application) -> None:
    application.answers = [(503, {}), (503, {}), (500, {}), (200, {})]
    said: list[str] = []
    wait_until_healthy(application.url(), 5, said.append)
    here = application.url()
    assert said == [
        f"{here} is not healthy yet: 503 Service Unavailable",
        f"{here} is not healthy yet: 500 Internal Server Error",
        f"{here} is healthy",
    ]


def test_an_application_that_stays_red_is_unhealthy(application: Application) -> None:
    application.answers = [(503, {})]
    began = time.monotonic()
    with pytest.raises(HealthError, match="the last answer was: 503 Service Unavailable"):
        wait_until_healthy(application.url(), 2, print)
    assert time.monotonic() - began < 10


def test_an_application_that_does_not_listen_is_unhealthy() -> None:
    with serving() as gone:
        url = gone.url()
    with pytest.raises(HealthError, match="Connection refused"):
        wait_until_healthy(url, 0.2, print)


def test_an_unknown_host_is_reported() -> None:
    with pytest.raises(HealthError, match=r"none \(.*(not known|No address|Temporary failure)"):
        wait_until_healthy("http://no-such-host.invalid:8080/health", 0.2, print)


def test_an_application_that_hangs_is_unhealthy(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try times out, and another one follows."""
    monkeypatch.setattr(application_health, "TRY_SECONDS", 1.0)
    application.hangs = True
    began = time.monotonic()
    with pytest.raises(HealthError, match="the last answer was: none in time"):
        wait_until_healthy(application.url(), 2.5, print)
    assert time.monotonic() - began < 4
    assert len(application.asked) == 3


def test_a_server_without_http_is_unhealthy() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(100)
                peer.sendall(b"-ERR what?\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(HealthError, match="none"):
            wait_until_healthy(f"http://127.0.0.1:{server.getsockname()[1]}/", 0.1, print)
        thread.join()


def test_a_redirect_on_the_same_server_is_followed(application: Application) -> None:
    application.answers = [(302, {"Location": "/well"}), (200, {})]
    wait_until_healthy(application.url(), 5, print)
    assert [path for path, _ in application.asked] == ["/health", "/well"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(application: Application, status: int) -> None:
    """Another host's health proves nothing about this one, and this one's password must not be sent there."""
    with serving() as other:
        application.answers = [(status, {"Location": other.url("/login?t0ken", host="user:pa55@localhost")})]
        with pytest.raises(HealthError) as raised:
            wait_until_healthy(application.url(host="someone:s3cret@127.0.0.1"), 0.1, print)
        assert other.asked == []
    assert f"to http://localhost:{other.port}, which is not followed" in str(raised.value)
    assert not {word for word in ("t0ken", "pa55", "s3cret") if word in str(raised.value)}


def test_a_redirect_loop_is_unhealthy(application: Application) -> None:
    application.answers = [(302, {"Location": "/health"})]
    with pytest.raises(HealthError, match="302"):
        wait_until_healthy(application.url(), 0.1, print)


def test_a_password_is_sent_and_not_shown(application: Application) -> None:
    application.answers = [(401, {}), (200, {})]
    said: list[str] = []
    wait_until_healthy(application.url("/health?key=t0ken", host="someone:p%40ss@127.0.0.1"), 5, said.append)
    sent = f"Basic {base64.b64encode(b'someone:p@ss').decode()}"
    assert application.asked == [("/health?key=t0ken", sent)] * 2
    assert not [line for line in said if "someone" in line or "p@ss" in line or "p%40ss" in line or "t0ken" in line]


def test_no_proxy_is_used(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    wait_until_healthy(application.url(), 5, print)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ovia-api:8080/health",
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "http://h:99999/",
        "http://h/ a",
        "http://h/\n",
    ],
)
def test_an_invalid_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(HealthError, match="HEALTH_URL is not an http or https URL"):
        wait_until_healthy(url, 60, print)

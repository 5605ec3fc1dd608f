"""Which requests the door lets in: the real HAProxy with the stack's configuration, and a web server that records them.

Browsers describe a request in the headers ``Sec-Fetch-*``, which no page can set.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ovia_backup_dagster_tests.conftest import REPOSITORY, free_port, make_certificate

USER, PASSWORD = "ops", "door-Passw0rd"
EVIL = "https://evil.example"


@dataclass
class Door:
    """A running door.

    Attributes:
        port: of the door.
        proxied: port of the same door that reads the client's address from the PROXY protocol.
        came: the method and path of each request that reached the web server.
    """

    port: int
    proxied: int
    came: list[str] = field(default_factory=list)

    @property
    def self(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        source: str = "",
        password: str | None = PASSWORD,
        **headers: str,
    ) -> int:
        """Send a request, from ``source`` if given, and return its status. ``_`` in a header's name is a dash."""
        raw = socket.create_connection(("127.0.0.1", self.proxied if source else self.port), timeout=10)
        if source:
            family = "TCP6" if ":" in source else "TCP4"
            here = "::1" if ":" in source else "127.0.0.1"
            raw.sendall(f"PROXY {family} {source} {here} 40000 8443\r\n".encode())
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.sock = context.wrap_socket(raw)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if password is not None:
            given["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
        try:
            connection.request(method, path, headers=given)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def haproxy() -> str:
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        message = "haproxy is missing: apt-get install haproxy"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def door(haproxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    door = Door(free_port(), free_port())

    class Notes(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            if self.path != "/server_info":  # HAProxy's own health check
                door.came.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Notes) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        process = subprocess.Popen(
            (haproxy, "-db", "-f", *_configuration(folder, door, server.server_address[1])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(door.port, process)
            yield door
        finally:
            process.kill()
            process.communicate()
            server.shutdown()
            thread.join()


def _configuration(folder: Path, door: Door, web_port: int) -> tuple[str, str, str]:
    """The stack's configuration, with paths and ports of this test."""
    key, certificate, tls = folder / "key", folder / "certificate", folder / "tls"
    make_certificate(key, certificate)
    tls.write_text(certificate.read_text() + key.read_text())
    text = (REPOSITORY / "deploy/haproxy/web.cfg").read_text("utf-8")
    bind = "bind :8443 ssl crt /run/secrets/web_tls alpn h2,http/1.1"
    at = f"bind 127.0.0.1:{{}} ssl crt {tls} alpn h2,http/1.1"
    for ours, here in (
        (bind, f"{at.format(door.port)}\n    {at.format(door.proxied)} accept-proxy"),
        ("webserver:3000", f"127.0.0.1:{web_port}"),
        ("127.0.0.1:8404", f"127.0.0.1:{free_port()}"),
    ):
        assert text.count(ours) == 1, ours
        text = text.replace(ours, here)
    (folder / "web.cfg").write_text(text)
    (folder / "web_users").write_text(f"userlist people\n    user {USER} insecure-password {PASSWORD}\n")
    return str(folder / "web.cfg"), "-f", str(folder / "web_users")


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None:
                assert process.stdout is not None
                pytest.fail(process.stdout.read().decode())
            assert time.monotonic() < deadline, "the door does not open"
            time.sleep(0.02)


def sec(site: str, mode: str, dest: str) -> dict[str, str]:
    return {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": mode, "Sec_Fetch_Dest": dest}


OPENED = {
    "a link in a chat": ("GET", "/", sec("cross-site", "navigate", "document")),
    "a link that a person clicked": (
        "GET",
        "/runs/1?tab=2",
        {**sec("cross-site", "navigate", "document"), "Sec_Fetch_User": "?1", "Referer": f"{EVIL}/"},
    ),
    "a link on the neighbour's site": ("GET", "/jobs", sec("same-site", "navigate", "document")),
    "a look before": ("HEAD", "/", sec("cross-site", "navigate", "document")),
    "typed": ("GET", "/", sec("none", "navigate", "document")),
    "typed, to what speaks GraphQL": ("GET", "/graphql", sec("none", "navigate", "document")),
    "its own question": ("POST", "/graphql", {**sec("same-origin", "cors", "empty"), "Origin": "SELF"}),
    "its own socket": ("GET", "/graphql", {**sec("same-origin", "websocket", "websocket"), "Origin": "SELF"}),
    "an older browser": ("GET", "/", {}),
    "an older browser's own question": ("POST", "/graphql", {"Origin": "SELF"}),
}
REFUSED = {
    "a form": ("POST", "/graphql", {**sec("cross-site", "navigate", "document"), "Origin": EVIL}),
    "a form without an origin": ("POST", "/graphql", sec("cross-site", "navigate", "document")),
    "a form that reports": ("POST", "/report_asset_check/a", sec("cross-site", "navigate", "document")),
    "a form of a sandbox": ("POST", "/", {**sec("cross-site", "navigate", "document"), "Origin": "null"}),
    "the neighbour's form": ("POST", "/graphql", {**sec("same-site", "navigate", "document"), "Origin": EVIL}),
    "a form that launches": ("POST", "/graphql?query=mutation", sec("cross-site", "navigate", "document")),
    "a link that launches": ("GET", "/graphql?query=mutation", sec("cross-site", "navigate", "document")),
    "the same in disguise": ("GET", "/%67raphql?query=mutation", sec("same-site", "navigate", "document")),
    "a question": ("GET", "/graphql", {**sec("cross-site", "cors", "empty"), "Origin": EVIL}),
    "the neighbour's question": ("GET", "/graphql", {**sec("same-site", "cors", "empty"), "Origin": EVIL}),
    "a question for a page": ("GET", "/", sec("cross-site", "cors", "document")),
    "a blind question": ("GET", "/", sec("cross-site", "no-cors", "empty")),
    "a question before": ("OPTIONS", "/graphql", {**sec("cross-site", "cors", "empty"), "Origin": EVIL}),
    "an image": ("GET", "/logo.png", sec("cross-site", "no-cors", "image")),
    "a script": ("GET", "/main.js", sec("cross-site", "no-cors", "script")),
    "a frame": ("GET", "/", sec("cross-site", "navigate", "iframe")),
    "the neighbour's frame": ("GET", "/", sec("same-site", "navigate", "iframe")),
    "an old frame": ("GET", "/", sec("cross-site", "navigate", "frame")),
    "an object": ("GET", "/", sec("cross-site", "navigate", "object")),
    "an embedded thing": ("GET", "/", sec("cross-site", "navigate", "embed")),
    "a socket": ("GET", "/graphql", {**sec("cross-site", "websocket", "websocket"), "Origin": EVIL}),
    "a socket without an origin": ("GET", "/graphql", sec("cross-site", "websocket", "empty")),
    "a link with no more said": ("GET", "/", {"Sec_Fetch_Site": "cross-site"}),
    "a change": ("DELETE", "/", sec("cross-site", "navigate", "document")),
    "an older browser's form": ("POST", "/graphql", {"Origin": EVIL}),
    "an older browser's socket": ("GET", "/graphql", {"Origin": EVIL, "Upgrade": "websocket"}),
    "a sandbox": ("GET", "/", {"Origin": "null"}),
    "a link that says where it is from": ("GET", "/", {**sec("cross-site", "navigate", "document"), "Origin": EVIL}),
}


def headers_for(door: Door, headers: Mapping[str, str]) -> dict[str, str]:
    return {name: door.self if value == "SELF" else value for name, value in headers.items()}


@pytest.mark.parametrize("what", OPENED)
def test_requests_of_a_person_pass(door: Door, what: str) -> None:
    method, path, headers = OPENED[what]
    door.came.clear()
    assert door.ask(method, path, **headers_for(door, headers)) == 200
    assert door.came == [f"{method} {path}"]


@pytest.mark.parametrize("what", REFUSED)
def test_requests_of_another_site_are_refused(door: Door, what: str) -> None:
    method, path, headers = REFUSED[what]
    door.came.clear()
    assert door.ask(method, path, **headers_for(door, headers)) == 403
    assert door.came == []


def test_the_door_requires_the_password(door: Door) -> None:
    """Also for a request that follows a link."""
    door.came.clear()
    for password in (None, "wrong", ""):
        assert door.ask(password=password) == 401
        assert door.ask(password=password, **sec("cross-site", "navigate", "document")) == 401
    assert door.came == []


def test_wrong_passwords_are_counted_by_network(door: Door) -> None:
    """An IPv6 network is a /64, which is what one site is given; an IPv4 network is one address."""
    guesses = [door.ask(source=f"2001:db8:0:1:{number:x}::1", password="wrong") for number in range(1, 22)]
    assert guesses == [401] * 21
    for source in ("2001:db8:0:1:ffff::2", "2001:db8:0:1::"):
        assert door.ask(source=source) == 429
    for source in ("2001:db8:0:2::1", "192.0.2.1"):
        assert door.ask(source=source) == 200
    for number in range(21):
        assert door.ask(source="192.0.2.7", password="wrong") == 401, number
    assert door.ask(source="192.0.2.7") == 429
    assert door.ask(source="192.0.2.8") == 200

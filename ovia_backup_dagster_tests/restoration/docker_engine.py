"""A fake Docker Engine with a few services, over HTTP on loopback. Tasks reach the state of their service at once.

It can refuse one service, or go away at a given moment, which a real engine does only by chance. Swarm's own behaviour
is tested on a real engine, in ``swarm/``.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Engine:
    """The services, and the faults of Docker. Other processes control the faults by files.

    Attributes:
        url: the value for ``DOCKER_HOST``.
        replicas: the replicas of each service.
        gone: a file; while it exists, Docker answers every request with an error.
        refused: services that Docker refuses to scale up.
        forced: how often each restarted service was restarted.
        complete: services whose tasks complete at once.
    """

    url: str
    replicas: dict[str, int]
    gone: Path
    refused: set[str] = field(default_factory=set)
    forced: Counter[str] = field(default_factory=Counter)
    complete: set[str] = field(default_factory=set)

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        path = re.sub(r"^/v[0-9.]+", "", urlsplit(target).path)
        if self.gone.exists():
            return 503, {"message": "the swarm does not have a leader"}
        if path == "/version":
            return 200, {"ApiVersion": "1.41"}
        if path == "/tasks":
            (name,) = json.loads(parse_qs(urlsplit(target).query)["filters"][0])["service"]
            return 200, [self._task(name, number) for number in range(self.replicas[name])]
        if found := re.fullmatch("/services/([^/]+)(/update)?", path):
            name = found[1]
            if name not in self.replicas:
                return 404, {"message": f"service {name} not found"}
            if method == "POST":
                wanted = body["Mode"]["Replicated"]["Replicas"]
                if wanted and name in self.refused:
                    return 400, {"message": "this specification is not valid"}
                self.replicas[name] = wanted
                self.forced[name] = body["TaskTemplate"].get("ForceUpdate", 0)
            return 200, {"ID": name, "Version": {"Index": 1}, "Spec": self._spec(name)}
        return 404, {"message": f"{path} is not known here"}

    def _spec(self, name: str) -> Any:
        template = {
            "ContainerSpec": {"Image": "app"},
            "RestartPolicy": {"Condition": "none"},
            "ForceUpdate": self.forced[name],
        }
        return {"Name": name, "Mode": {"Replicated": {"Replicas": self.replicas[name]}}, "TaskTemplate": template}

    def _task(self, name: str, number: int) -> Any:
        return {
            "ID": f"{name}{number}-{self.forced[name]}",
            "CreatedAt": "2026-01-01T00:00:00Z",
            "DesiredState": "shutdown" if name in self.complete else "running",
            "Spec": self._spec(name)["TaskTemplate"],
            "Status": {"State": "complete" if name in self.complete else "running"},
        }


@contextmanager
def engine(gone: Path, **replicas: int) -> Iterator[Engine]:
    """Run an engine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = found.answer(self.command, self.path, json.loads(body) if body else None)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Engine(f"tcp://127.0.0.1:{server.server_port}", dict(replicas), gone)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A real receiver of notifications: an HTTP server on the loopback that keeps what it is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """The received messages, and how requests are answered.

    Attributes:
        messages: the accepted messages.
        refusals: how many further requests are answered with an error; -1 for all.
        asked: how many requests came.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.messages: list[dict[str, Any]] = []
        self.refusals = 0
        self.asked = 0

    @property
    def url(self) -> str:
        """For BACKUP_NOTIFY_URLS, with a password and a token in it."""
        return f"json://user:channel-p4ssword@127.0.0.1:{self.port}/channel-t0ken/"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.messages]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A running receiver."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            found.asked += 1
            if found.refusals:
                found.refusals -= found.refusals > 0
                self.send_response(500)
            else:
                found.messages.append(json.loads(content))
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Log nothing: printed URLs would look like a leak of ours."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()

"""A misbehaving proxy on loopback: it swallows the server's bytes or the client's, or passes them slowly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Self

CHUNK = 64 * 1024


@dataclass
class Proxy:
    """Forwards TCP connections to a port of 127.0.0.1 or to a Unix socket.

    Attributes:
        to: the port, or the path of the Unix socket.
        swallow_after: bytes from the server after which a connection stays silent forever.
        stop_reading_after: bytes from the client after which the proxy stops reading from it.
        pause: seconds between two chunks from the server.
    """

    to: int | str
    swallow_after: int = 2**62
    stop_reading_after: int = 2**62
    pause: float = 0.0
    port: int = field(default=0, init=False)
    connections: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if isinstance(self.to, str):
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(self.to)
                else:
                    server = socket.create_connection(("127.0.0.1", self.to))
                self._open += [client, server]
                for one, other, most, pause in (
                    (client, server, self.stop_reading_after, 0.0),
                    (server, client, self.swallow_after, self.pause),
                ):
                    threading.Thread(target=self._pass, args=(one, other, most, pause), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, most: int, pause: float) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while passed < most and (data := one.recv(CHUNK)):
                other.sendall(data)
                passed += len(data)
                time.sleep(pause)
            if passed < most:
                other.shutdown(socket.SHUT_WR)
            else:
                self._over.wait()  # stop reading, and keep the connections open


@dataclass
class Silence:
    """A listener that lets clients connect and never answers.

    Attributes:
        path: the path of a Unix socket; if empty, a free TCP port of 127.0.0.1 is used.
    """

    path: str = ""
    port: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        if self.path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.path)
            self._listener.listen(64)
        else:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            self.port = self._listener.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

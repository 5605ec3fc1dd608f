"""Stores on loopback for tests: rclone's own servers, and moto for object lock. Each can be killed and begun again."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from ovia_backup_dagster.core.remote_address import parse_remotes
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster_tests.conftest import free_port
from ovia_backup_dagster_tests.offsite.site import Site

RCLONE = Path(sys.executable).with_name("rclone")
USER, SECRET = "tester", "s3cret-of-the-tests"
PATIENCE_SECONDS = 30
CHUNK = 16 * 1024
Kind = Literal["s3", "sftp", "webdav"]


@dataclass
class Server:
    """A store, and a configuration file of rclone for it.

    Attributes:
        folder: where the server keeps its files; its first folders are S3's buckets.
        config: the file; its section is ``store``.
        options: more lines of the section.
        host: the address that it listens at, and that clients use.
        cache: how long it does not look at its folder again; a listing of thousands takes a minute if that is short.
    """

    kind: Kind
    folder: Path
    config: Path
    port: int = field(default_factory=free_port)
    options: dict[str, str] = field(default_factory=dict)
    cache: str = "1ms"
    host: str = "127.0.0.1"

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self.start()
        self.configure()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        access = ("--auth-key", f"{USER},{SECRET}") if self.kind == "s3" else ("--user", USER, "--pass", SECRET)
        if self.kind == "sftp":
            self.key = self.config.with_name("host_key")
            if not self.key.exists():
                subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key), check=True)
            access = (*access, "--key", str(self.key))
        at = f"{self.host}:{self.port}"
        command = (RCLONE, "--config", "", "serve", self.kind, "--addr", at, *access, self.folder)
        # Its cache would show the tests' own changes to the folder only later.
        options = ("--dir-cache-time", self.cache, "--poll-interval", "0")
        self.process = subprocess.Popen((*command, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self.process, self.host)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let it accept connections, and never answer."""
        self.process.send_signal(signal.SIGSTOP)

    def configure(self, port: int = 0, **changes: str) -> None:
        """Write the configuration file.

        Args:
            port: of a proxy before the server.
        """
        port = port or self.port
        sections: dict[Kind, dict[str, str]] = {
            "s3": {
                "type": "s3",
                "provider": "Other",
                "access_key_id": USER,
                "secret_access_key": SECRET,
                "endpoint": f"http://{self.host}:{port}",
            },
            "sftp": {"type": "sftp", "host": self.host, "port": str(port), "user": USER, "pass": obscured(SECRET)},
            "webdav": {
                "type": "webdav",
                "url": f"http://{self.host}:{port}",
                "vendor": "rclone",
                "user": USER,
                "pass": obscured(SECRET),
            },
        }
        section = sections[self.kind]
        if self.kind == "sftp":
            known = self.config.with_name("known_hosts")
            words = self.key.with_suffix(".pub").read_text().split()
            known.write_text(f"[127.0.0.1]:{port} {words[0]} {words[1]}\n")
            section |= {"known_hosts_file": str(known)}
        section |= self.options | changes
        lines = (f"{name} = {value}" for name, value in section.items() if value)
        self.config.write_text("[store]\n" + "\n".join(lines) + "\n")
        self.config.chmod(0o600)

    def remote(self, path: str, *, stall_seconds: float = 20, lock_days: int = 0) -> Remote:
        [address] = parse_remotes(f"store=store:{path}")
        return Remote(address, Program(self.config, stall_seconds=stall_seconds), lock_days)


def site_on(server: Server, folder: Path, age: Age, path: str = "bucket/Käse & Brot/a b", **options: float) -> Site:
    """A new volume whose remote is there. The clock must be set."""
    statement_log._read.clear()
    bucket = server.folder / path.partition("/")[0]
    bucket.mkdir(exist_ok=True)
    site = Site(folder / "volume", server.remote(path, **options), age)  # type: ignore[arg-type]
    site.catalog.prepare()
    return site


def obscured(text: str) -> str:
    return subprocess.run((RCLONE, "obscure", text), check=True, capture_output=True, text=True).stdout.strip()


def wait_for_port(port: int, process: subprocess.Popen[bytes], host: str = "127.0.0.1") -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nothing listens on port {port}")


@dataclass(frozen=True)
class LockingStore:
    """S3 by moto, which enforces object lock. It is slow to start, so tests share one, each with its own buckets."""

    port: int
    folder: Path

    def request(self, method: str, path: str, content: str = "", **headers: str) -> str:
        credential = f"Credential={USER}/20260615/us-east-1/s3/aws4_request"
        signed = {"Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0", **headers}
        url = f"http://127.0.0.1:{self.port}/{path}"
        call = urllib.request.Request(url, content.encode() or None, signed, method=method)
        with urllib.request.urlopen(call) as answer:
            return str(answer.read().decode())

    def bucket(self, name: str, *, lock: bool = True) -> None:
        self.request("PUT", name, **({"x-amz-bucket-object-lock-enabled": "true"} if lock else {}))

    def versions(self, bucket: str) -> list[str]:
        """The keys of all versions, hidden ones included."""
        text = self.request("GET", f"{bucket}?versions")
        versions = re.findall(r"<Version>(.*?)</Version>", text, re.DOTALL)
        return [key for version in versions for key in re.findall(r"<Key>(.*?)</Key>", version)]

    def remote(self, bucket: str, lock_days: int) -> Remote:
        config = self.folder / f"{bucket}.conf"
        lines = (
            *("[store]", "type = s3", "provider = Other", f"access_key_id = {USER}", f"secret_access_key = {SECRET}"),
            *("region = us-east-1", f"endpoint = http://127.0.0.1:{self.port}"),
        )
        config.write_text("\n".join(lines) + "\n")
        [address] = parse_remotes(f"store=store:{bucket}/of ovia")
        return Remote(address, Program(config, stall_seconds=30), lock_days)


@contextmanager
def locking_store(folder: Path) -> Iterator[LockingStore]:
    port = free_port()
    command = (Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield LockingStore(port, folder)
    finally:
        process.kill()
        process.wait()


@dataclass
class Resetting:
    """A proxy that resets each connection after so many bytes, like a router that restarts.

    Attributes:
        to: the server's port.
        from_client, from_server: the bytes after which a connection is reset.
        resets: how many connections are reset; all later ones are whole.
        altered: changes what a client sends, without changing its length.
    """

    to: int
    from_client: int = 2**62
    from_server: int = 2**62
    resets: int = 2**62
    altered: Callable[[bytes], bytes] = bytes
    port: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open = [self._listener]
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                self._open += [client, server]
                for way in (
                    (client, server, self.from_client, self.altered),
                    (server, client, self.from_server, bytes),
                ):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket, most: int, altered: Callable[[bytes], bytes]) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := one.recv(CHUNK):
                passed += len(data)
                if passed > most and self.resets > 0:
                    self.resets -= 1
                    for each in (one, other):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        # The other thread holds the connection open while it reads.
                        each.shutdown(socket.SHUT_RDWR)
                        each.close()
                    return
                other.sendall(altered(data))
            other.shutdown(socket.SHUT_WR)


def left_running(*words: str) -> dict[int, str]:
    """The running programs rclone and age with one of these words in their arguments: process id -> arguments."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if re.match(r"\S*(rclone|age) ", line) and " serve " not in line and any(word in line for word in words):
                found[int(path.parent.name)] = line
    return found


def until_ended(*words: str) -> None:
    """Wait until these programs have ended, which must happen soon."""
    end = time.monotonic() + PATIENCE_SECONDS / 3
    while left := left_running(*words):
        assert time.monotonic() < end, left
        time.sleep(0.05)

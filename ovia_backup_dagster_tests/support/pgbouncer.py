"""A real PgBouncer in front of a test's server."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import PASSWORD, free_port

_INI = """
[databases]
* = host=127.0.0.1 port={server} {connect}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = plain
auth_file = {folder}/users
pool_mode = {mode}
logfile = {folder}/log
pidfile = {folder}/pid
unix_socket_dir =
ignore_startup_parameters = {ignored}
{more}
"""


@contextmanager
def pgbouncer(server: int, *, mode: str, ignored: str, connect: str = "", more: str = "") -> Iterator[Connection]:
    """Run a pooler in front of a server's port; yields the superuser's connection through it."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
    assert program, "Debian's pgbouncer is missing: .ci/run installs it"
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="ovia-pgb-", dir="/tmp"))
    (folder / "users").write_text(f'"postgres" "{PASSWORD}"\n')
    names = {"server": server, "port": port, "folder": folder, "mode": mode, "ignored": ignored}
    (folder / "ini").write_text(_INI.format(**names, connect=connect, more=more))
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
    if user is not None:  # it refuses to run as root
        os.chown(folder, user, -1)
    process = subprocess.Popen([program, "--quiet", str(folder / "ini")], user=user)
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        yield Connection("127.0.0.1", port, "postgres", "postgres", SecretStr(PASSWORD))
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)

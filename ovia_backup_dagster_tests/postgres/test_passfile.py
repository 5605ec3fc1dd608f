"""Errors about the file that PGPASSFILE names, compared with what libpq itself finds in that file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import AuthenticationError, BackupError, PasswordMissingError
from ovia_backup_dagster.postgres import passfile
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster


def through(server: PortCluster, path: Path, database: str = "postgres") -> Connection:
    return Connection("127.0.0.1", server.port, database, "postgres", None, {"PGPASSFILE": str(path)})


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def refused(connection: Connection) -> BackupError:
    with pytest.raises(BackupError) as caught, connect(connection):
        pass
    assert PASSWORD not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "line",
    [
        "127.0.0.1:{port}:postgres:postgres:{password}",
        "*:*:*:*:{password}",
        "# a comment\n\nother:5432:x:y:z\n127.0.0.1:{port}:*:postgres:{password}\r\n",
        "127.0.0.\\1:{port}:post\\gres:*:{password}",
    ],
)
def test_a_line_that_libpq_accepts_is_found(server: PortCluster, tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "pass file", line.format(port=server.port, password=PASSWORD))
    with connect(through(server, path)):
        assert passfile.trouble(through(server, path)) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "127.0.0.1:{port}:postgres:postgres:",
        "127.0.0.1:{port}:postgres:{password}",
        "#*:*:*:*:{password}",
        "127.0.0.1:1{port}:*:*:{password}",
        "127.0.0.1:{port}:**:*:{password}",
        "localhost:{port}:*:*:{password}",
    ],
)
def test_a_line_that_libpq_ignores_is_not_found(server: PortCluster, tmp_path: Path, line: str) -> None:
    error = refused(through(server, written(tmp_path / "p", line.format(port=server.port, password=PASSWORD))))
    assert type(error) is PasswordMissingError
    assert f"no line with a password for 127.0.0.1:{server.port}, database postgres, role postgres" in error.why
    assert f"127.0.0.1:{server.port}:*:postgres:PASSWORD" in error.fix


def test_the_advised_passfile_line_fits_any_name(server: PortCluster, tmp_path: Path) -> None:
    """A restore first connects to a database that the file may not name."""
    path = written(tmp_path / "p", f"127.0.0.1:{server.port}:ovia:postgres:{PASSWORD}\n")
    fix = refused(through(server, path, "template1")).fix
    written(path, fix.partition("the line ")[2].partition(",")[0].replace("PASSWORD", PASSWORD))
    with connect(through(server, path, "template1")):
        pass
    hostile = Connection("fe80::1", 5432, "a:b", "c\\d:e", None, {"PGPASSFILE": str(path)})
    found = passfile.trouble(hostile)
    assert found is not None
    written(path, found[1].partition("the line ")[2].partition(", with")[0])
    assert passfile.trouble(hostile) is None


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_passfile_that_others_may_access_is_reported(server: PortCluster, tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "it's", f"*:*:*:*:{PASSWORD}", mode)
    error = refused(through(server, path))
    assert type(error) is PasswordMissingError
    assert f"has mode {mode:04o}" in error.why
    assert os.system(error.fix) == 0
    with connect(through(server, path)):
        pass


def test_a_passfile_that_is_no_file_is_reported(server: PortCluster, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(through(server, tmp_path / "gone")).why
    assert "is not a regular file" in refused(through(server, tmp_path)).why
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "is not a regular file" in refused(through(server, tmp_path / "fifo")).why


def test_a_wrong_password_names_the_passfile(server: PortCluster, tmp_path: Path) -> None:
    path = written(tmp_path / "p", "*:*:*:*:wrong")
    error = refused(through(server, path))
    assert type(error) is AuthenticationError
    assert f"its line in PGPASSFILE={path}" in error.fix

"""A PostgreSQL that was moved after it was built: its server needs libraries outside the folders in its run path."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovia_backup_dagster.postgres import shared_libraries
from ovia_backup_dagster.postgres.programs import Programs, capture
from ovia_backup_dagster.postgres.sandbox import Confine, Sandbox
from ovia_backup_dagster_tests.conftest import execute, running_cluster
from ovia_backup_dagster_tests.support.drilling import Drilling, assert_passed, database
from ovia_backup_dagster_tests.support.exhaustive import thinned

MODULE = """
#include "postgres.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
extern int away(void);
PG_FUNCTION_INFO_V1(ask_away);
Datum ask_away(PG_FUNCTION_ARGS) { PG_RETURN_INT32(away()); }
"""


@pytest.fixture(scope="module")
def moved(full_bin_dir: Path) -> Iterator[Path]:
    """The build in another place, with a module that needs a library outside the folders in its run path."""
    with tempfile.TemporaryDirectory(prefix="ovia-t-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        home, include = Path(folder) / "pg", full_bin_dir.parent / "include" / "server"
        for part in ("bin", "lib", "share"):
            shutil.copytree(full_bin_dir.parent / part, home / part, symlinks=True, copy_function=_link)
        library, module = Path(folder) / "away.c", Path(folder) / "module.c"
        library.write_text("int away(void) { return 42; }\n")
        module.write_text(MODULE)
        made = Path(folder) / "libovia_away.so"
        try:
            gcc("-o", str(made), str(library))
            gcc(f"-I{include}", "-o", str(home / "lib" / "ask_away.so"), str(module), f"-L{folder}", "-lovia_away")
        except FileNotFoundError:
            if os.environ.get("CI"):
                raise
            pytest.skip("no C compiler here")
        yield home


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def gcc(*arguments: str) -> None:
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", *arguments], check=True)


@pytest.mark.parametrize(
    "where", thinned(["beside the programs", "given", "given, and closed to the server's account"])
)
def test_given_libraries_reach_the_throwaway_server(
    where: str, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, made = moved / "lib" / "libovia_away.so", moved.parent / "libovia_away.so"
    beside.unlink(missing_ok=True)
    if where == "beside the programs":
        shutil.copy(made, beside)
    elif where == "given":
        monkeypatch.setenv(shared_libraries.VARIABLE, str(moved.parent))
    else:
        closed = tmp_path / "closed"  # only pytest's own user may enter its folders
        closed.mkdir(mode=0o700)
        shutil.copy(made, closed)
        monkeypatch.setenv(shared_libraries.VARIABLE, str(closed))
    with running_cluster(moved / "bin") as cluster, database(cluster, "moved") as source:
        execute(
            source,
            "CREATE FUNCTION ask() RETURNS int LANGUAGE c IMMUTABLE AS '$libdir/ask_away', 'ask_away'",
            "CREATE TABLE t (i int CHECK (ask() = 42)); INSERT INTO t SELECT generate_series(1, 9)",
        )
        drilling = Drilling(source, moved / "bin", tmp_path / "backups")
        assert_passed(drilling.dump_and_drill())


def test_a_confined_program_reads_only_the_given_libraries(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    shutil.copy(moved.parent / "libovia_away.so", tmp_path)
    monkeypatch.setenv(shared_libraries.VARIABLE, str(tmp_path))
    command = Sandbox().command(("/bin/cat", str(secret)))
    assert capture(command)[1] == b""
    library = Sandbox().command(("/bin/cat", str(tmp_path / "libovia_away.so")))
    assert capture(library)[1].startswith(b"\x7fELF")
    open_to_all = Sandbox(Confine.OFF).command(("/bin/cat", str(secret)))
    assert capture(open_to_all)[1] == b"s3cret"


def test_the_library_path_is_set_for_pg_programs_only(moved: Path) -> None:
    program = Programs(moved / "bin").path("pg_dump")
    assert shared_libraries.environment(program)[shared_libraries.VARIABLE] == str(moved / "lib")
    assert shared_libraries.environment("/usr/bin/env") == {}
    assert shared_libraries.VARIABLE not in os.environ

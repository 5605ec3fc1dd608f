"""Client programs that exit with 0 without having done their work: their output is checked.

The disk was full, or the output is truncated.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.verdict import Expectations
from ovia_backup_dagster.drill.placement import Choice, Where
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster.proof.database_reader import CopyReader
from ovia_backup_dagster_tests.conftest import NewDatabase, execute, quiet
from ovia_backup_dagster_tests.doctor.support import executable
from ovia_backup_dagster_tests.faults.conftest import needs_root
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, filled, tmpfs
from ovia_backup_dagster_tests.faults.harness import files, leftovers
from ovia_backup_dagster_tests.support.exhaustive import thinned

PAGE = 4096


@pytest.fixture
def archive(dumper: Dumper) -> Path:
    return dumper.dump(log=quiet).path


@contextmanager
def lying(bin_dir: Path, folder: Path, program: str, when: str, how: str) -> Iterator[Programs]:
    """Client programs, one of which exits with 0 for some arguments although ``how`` altered its output."""
    made = folder / "lying"
    made.mkdir()
    for path in bin_dir.iterdir():
        (made / path.name).symlink_to(path)
    (made / program).unlink()
    text = f'case "$*" in {when}) {bin_dir}/{program} "$@" | {how}; exit 0;; esac\nexec {bin_dir}/{program} "$@"'
    executable(made / program, text).chmod(0o755)
    yield Programs(made)


def writing(bin_dir: Path, folder: Path, when: str, content: str) -> AbstractContextManager[Programs]:
    """Client programs with a pg_dump that, for some arguments, writes ``content`` to its file and exits with 0."""
    file = """$(printf '%s\\n' "$@" | sed -n 's/^--file=//p')"""
    return lying(bin_dir, folder, "pg_dump", when, f'cat > /dev/null; printf "{content}" > "{file}"')


# --------------------------------------------------------------------------------------------- full disks


@needs_root
def test_a_full_drill_dir_does_not_make_the_backup_bad(
    new_database: NewDatabase, programs: Programs, tmp_path: Path
) -> None:
    """pg_dump exits with 0, and its file is empty."""
    database = new_database(template="template0")
    drill_dir = tmp_path / "drills"
    with tmpfs(drill_dir, 4 * MEGABYTE):
        place = drill_dir / "ovia-drill-x"
        place.mkdir()
        reader = CopyReader(programs, database, "", "UTF8", folder=place)
        reader.read()
        for act in (reader.read, lambda: reader._dump_schema(place / "schema")):  # without, and with its folder
            with filled(drill_dir, 0), pytest.raises(errors.DiskFullError) as caught:
                act()
            assert caught.value.what == f"{drill_dir} is full"
            assert "nothing about any backup" in caught.value.why
            assert "DRILL_DIR" in caught.value.fix
            assert "prune" not in caught.value.fix
        assert (place / "schema").stat().st_size == 0


@needs_root
def test_a_contents_list_without_room_restores_nothing(
    archive: Path, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated contents list would restore only a part of the backup."""
    folder = tmp_path / "temporary"
    with tmpfs(folder, 4 * MEGABYTE):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        listing = archives.contents_list(programs, archive)
        with (
            filled(folder, 0),
            pytest.raises(errors.DiskFullError) as caught,
            archives.use_list(listing, lambda _: True),
        ):
            raise AssertionError
        assert list(folder.iterdir()) == []
    assert "TMPDIR" in caught.value.fix


@needs_root
def test_an_incomplete_dump_on_a_full_disk_is_reported(
    new_database: NewDatabase, programs: Programs, tmp_path: Path
) -> None:
    """pg_dump silently discards its last buffer: a small dump is lost whole, a larger one loses its end."""
    database = new_database(template="template0")
    root, refusals = tmp_path / "volume", []
    with tmpfs(root, 4 * MEGABYTE):
        catalog = Catalog(root, database.database, lock_wait_seconds=0)
        catalog.prepare()
        dumper = Dumper(catalog, database, programs)
        for pages in range(0, 12, 2):
            with filled(root, pages * PAGE):
                try:
                    archives.read_archive(programs, dumper.dump(log=quiet).path)
                except errors.DiskFullError as error:
                    refusals.append(str(error))
            for path in (*(root / "daily").iterdir(), root / ".reserve"):
                path.unlink(missing_ok=True)
    assert any("wrote an incomplete archive" in refusal for refusal in refusals), refusals
    assert all("df -h $BACKUP_DIR" in refusal for refusal in refusals)


# --------------------------------------------------------------------------------------------- cut off


@pytest.mark.parametrize(
    ("when", "ask"),
    thinned(
        [
            ("*--list*", lambda programs, path: archives.contents_list(programs, path)),
            ("*--schema-only*", lambda programs, path: archives.schema_text(programs, path)),
            ("*--create*", lambda programs, path: archives.database_text(programs, path)),
            ("*--data-only*", lambda programs, path: archives.read_archive(programs, path)),
        ]
    ),
    ids=["list", "schema", "database", "data"],
)
@pytest.mark.parametrize("how", thinned(["cat > /dev/null", "head -n -12", "head -c -400"]))
def test_truncated_output_of_pg_restore_is_an_error(
    archive: Path, bin_dir: Path, tmp_path: Path, when: str, ask: object, how: str
) -> None:
    """The error is not a verdict on the archive: the program is at fault."""
    if when == "*--list*" and how == "head -n -12":
        how = "head -n -17"
    with lying(bin_dir, tmp_path, "pg_restore", when, how) as programs, pytest.raises(BackupError) as caught:
        ask(programs, archive)  # type: ignore[operator]
    assert isinstance(caught.value, errors.ProgramError | errors.ArchiveFormatError)


def test_a_partly_read_copy_is_an_error_not_a_difference(database: Connection, bin_dir: Path, tmp_path: Path) -> None:
    with lying(bin_dir, tmp_path, "pg_dump", "*--format=plain*", "head -n -12") as programs:
        reader = CopyReader(programs, database, "", "UTF8")
        with pytest.raises(errors.ProgramError, match="did not print all of the data"):
            reader.read()


def test_an_unreadable_schema_does_not_make_the_backup_bad(database: Connection, bin_dir: Path, tmp_path: Path) -> None:
    with writing(bin_dir, tmp_path, "*--schema-only*", "") as programs, pytest.raises(errors.ProgramError) as caught:
        CopyReader(programs, database, "", "UTF8").read()
    assert type(caught.value) is errors.ProgramError
    assert "cannot be read" in caught.value.what


@pytest.mark.parametrize("how", ["cat > /dev/null", "head -n -4"])
def test_incomplete_roles_are_not_saved(database: Connection, bin_dir: Path, tmp_path: Path, how: str) -> None:
    with lying(bin_dir, tmp_path, "pg_dumpall", "*--globals-only*", how) as programs:
        backup = Dumper(Catalog(tmp_path / "volume", database.database), database, programs).dump(log=quiet)
    manifest = backup.manifest
    assert manifest is not None
    assert not manifest.globals_included
    assert any("did not print all roles" in warning for warning in manifest.warnings)


@pytest.mark.parametrize("content", ["", "PGDMP and no more", "no archive at all"])
def test_a_dump_that_is_no_archive_is_not_published(
    database: Connection, bin_dir: Path, tmp_path: Path, content: str
) -> None:
    root = tmp_path / "volume"
    with writing(bin_dir, tmp_path, "*--no-sync*", content) as programs, pytest.raises(errors.ProgramError) as caught:
        Dumper(Catalog(root, database.database), database, programs).dump(log=quiet)
    assert "wrote an incomplete archive" in caught.value.what
    assert leftovers(root) == []
    assert not [name for name in files(root) if name.endswith(".dump")]


@pytest.mark.exhaustive
def test_tables_that_were_not_analyzed_are_named(
    database: Connection, programs: Programs, bin_dir: Path, tmp_path: Path
) -> None:
    """vacuumdb skips tables that the role may not analyze and still exits with 0. Here, it does nothing at all."""
    catalog = Catalog(tmp_path / "volume", database.database, lock_wait_seconds=0)
    execute(database, "CREATE TABLE bare AS SELECT 1 AS id")
    backup = Dumper(catalog, database, programs).dump(log=quiet)
    with lying(bin_dir, tmp_path, "vacuumdb", "*--analyze-only*", "cat") as lies:
        executable(tmp_path / "lying" / "vacuumdb", "exit 0")
        driller = Driller(Verifier(catalog, lies, Expectations()), database, Path("/tmp"), database)
        evidence = driller.drill(backup, Choice(Where.THROWAWAY), launched_by="a test", log=quiet)
    (line,) = [line for line in evidence.lines if line.check is Check.ANALYZED]
    assert "without statistics: public.bare" in line.text

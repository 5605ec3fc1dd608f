"""Reads a database in the same way as an archive, for the comparison of the two.

The data goes through the same parser as an archive's (``postgres.data_stream``), and the rest through the same
pg_restore, so that the method causes no differences. Only for copies: no other session may write to the database
meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovia_backup_dagster.core.errors import ArchiveDamagedError, BackupError, DiskFullError, ProgramError
from ovia_backup_dagster.core.files import full_scratch, is_full, scratch
from ovia_backup_dagster.core.verdict import Witness, split_identifier
from ovia_backup_dagster.postgres.archive import contents_list, schema_text, whole_list, witness_of
from ovia_backup_dagster.postgres.data_stream import (
    Data,
    Log,
    OrderedRows,
    R,
    UnorderedRows,
    asked_for,
    decode_text,
    ordered,
    read_data,
    unordered,
)
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture, start
from ovia_backup_dagster.postgres.server_language import diagnose_program, in_english
from ovia_backup_dagster.postgres.session_settings import unended
from ovia_backup_dagster.postgres.stall import watch
from ovia_backup_dagster.postgres.watchdog import Watch

_OPTIONS = ("--no-password", "--no-subscriptions")

#: The first major of pg_dump with ``--table-and-children``, which includes a table's partitions.
_TABLE_AND_CHILDREN_SINCE = 16


@dataclass(frozen=True, slots=True)
class Reading:
    """The contents of a database.

    Attributes:
        witness: the contents, in the same form as an archive's.
        schema: its schema as SQL.
        large_object_notes: the statements that give its large objects privileges and comments.
    """

    witness: Witness
    schema: bytes
    large_object_notes: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class CopyReader:
    """Everything that reading a copy depends on.

    Attributes:
        programs: pg_dump and pg_restore.
        copy: the database.
        session_options: the ``PGOPTIONS`` of the dump that it is compared with: they decide how values are written.
        encoding: the encoding of that dump's text.
        folder: for temporary files; it is removed with the copy. ``None`` for the system's folder.
        live: whether the copy has the source's publications, so that they are read.
    """

    programs: Programs
    copy: Connection
    session_options: str
    encoding: str
    folder: Path | None = None
    live: bool = False

    def read(self, *schema_options: str, log: Log | None = None) -> Reading:
        """Read the whole database.

        Args:
            schema_options: pg_restore's options for the schema's SQL.
            log: receives the progress.

        Raises:
            BackupError: it cannot be read.
        """
        with contextlib.ExitStack() as removing:
            with scratch(*self._scratch):
                folder = tempfile.mkdtemp(prefix="ovia-schema-", dir=self.folder)
            if self.folder is None:  # otherwise it is removed with the copy
                removing.callback(shutil.rmtree, folder, ignore_errors=True)
            schema = Path(folder) / "schema"
            self._dump_schema(schema)
            data = self._data(ordered, log=log, notes=True)
            witness = witness_of(self.programs, schema, self._contents_list(), data)
            return Reading(witness, schema_text(self.programs, schema, *schema_options), data.large_object_notes)

    def read_unordered(self, wanted: Mapping[str, Sequence[str]], log: Log | None = None) -> dict[str, UnorderedRows]:
        """The rows of tables (name -> columns), independent of their order."""
        # A name that is not UTF-8 is shown with backslashes, so pg_dump cannot be given it as an option.
        named = () if any("\\" in name for name in wanted) else tuple(wanted)
        return asked_for(self._data(unordered(wanted), *self._only(*named), log=log))

    def read_table(self, name: bytes) -> OrderedRows | None:
        """Read a table by its name as pg_dump writes it; ``None`` if it does not exist."""
        # fsdecode turns any bytes into a valid argument.
        return self._data(ordered, *self._only(os.fsdecode(name))).tables.get(decode_text(name))

    def _only(self, *tables: str) -> tuple[str, ...]:
        """pg_dump's options to read tables and the partitions loaded through them; without options it reads all."""
        if self.programs.major("pg_dump") < _TABLE_AND_CHILDREN_SINCE:
            return ()
        return tuple(f"--table-and-children={_pattern(table)}" for table in tables)

    def _data(self, rows_of: Callable[[str], R], *options: str, log: Log | None = None, notes: bool = False) -> Data[R]:
        command = self._pg_dump("--format=plain", "--data-only", *options)
        return read_data(
            command,
            variables=self._variables(),
            rows_of=rows_of,
            failed=self._failed,
            log=log,
            watch=self._watch,
            notes=notes,
        )

    @property
    def _watch(self) -> Watch:
        return watch(self.programs, self.copy)

    def _dump_schema(self, path: Path) -> None:
        options = ("--format=custom", self.programs.compress_option("none"), "--schema-only", f"--file={path}")
        command = self._pg_dump(*options, write=(path.parent,))
        code, _, stderr = capture(command, variables=self._variables(), watch=self._watch)
        try:
            if code != 0:
                raise self._failed(stderr, code)
            # On a full disk, pg_dump ends with 0 and leaves an empty file.
            contents_list(self.programs, path)
        except (ArchiveDamagedError, DiskFullError) as error:
            if is_full(path.parent) or isinstance(error, DiskFullError):
                raise full_scratch(*self._scratch) from None
            raise ProgramError(
                f"the schema of {self.copy} cannot be read", why="pg_dump ended with code 0", said=error.reason
            ) from None

    @property
    def _scratch(self) -> tuple[Path, str]:
        """The folder for temporary files, and the setting that chooses it."""
        # The copy's folder is in DRILL_DIR.
        return (self.folder.parent, "DRILL_DIR") if self.folder else (Path(tempfile.gettempdir()), "TMPDIR")

    def _contents_list(self) -> str:
        """The contents list that a dump of the whole database would have.

        An archive begins with it, so pg_dump is ended as soon as pg_restore has read it: no data is dumped.
        """
        command = self._pg_dump("--format=custom", self.programs.compress_option("none"))
        with start(command, variables=self._variables(), pipe_stdout=True, watch=self._watch) as child:
            assert child.process.stdout is not None
            listing = self.programs.confined((self.programs.path("pg_restore"), "--list"))
            code, output, stderr = capture(listing, stdin=child.process.stdout)
            child.process.stdout.close()
            ended = child.wait()
            if ended > 0 and not stderr and code == 0:
                code = 0  # pg_dump fails because the pipe is closed
            if code != 0:
                raise self._failed(child.stderr or stderr, ended or code)
        return whole_list(decode_text(output), str(self.copy))

    def _pg_dump(self, *options: str, write: Sequence[Path] = ()) -> tuple[str, ...]:
        command = (
            self.programs.path("pg_dump"),
            *_OPTIONS,
            *(() if self.live else ("--no-publications",)),
            f"--encoding={self.encoding}",
            *options,
            f"--dbname={self.copy.conninfo()}",
        )
        return self.programs.confined(command, write=write, server=self.copy)

    def _variables(self) -> dict[str, str]:
        return {**self.copy.environment(), **in_english(self.copy, f"{self.session_options} {unended()}")}

    def _failed(self, stderr: str, code: int) -> BackupError:
        what = f"the copy, {self.copy}, cannot be read"
        return diagnose_program(stderr, what=what, connection=self.copy, exit_code=code)


def _pattern(table: str) -> str:
    # pg_dump takes the text in double quotes literally.
    return ".".join('"' + part.replace('"', '""') + '"' for part in split_identifier(table))

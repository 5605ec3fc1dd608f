r"""Parses the data that ``pg_restore`` and ``pg_dump`` print as text with ``--data-only``.

The text contains each table's COPY header, its rows, and ``\.``; sequences; large objects. Both programs print the same
format, so this parser reads archives as well as databases, which makes them comparable. ``archive`` and
``proof.database_reader`` decide what is printed and what a failure of the program means.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Generic, Protocol, TypeVar

from ovia_backup_dagster.core.errors import ArchiveFormatError, BackupError, ProgramError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.postgres.programs import start
from ovia_backup_dagster.postgres.quoting import without_literals
from ovia_backup_dagster.postgres.server_messages import raw_text
from ovia_backup_dagster.postgres.watchdog import Watch

#: Small enough that a chunk stays in the processor's cache while it is searched, counted and hashed, and that copies of
#: it reuse allocated memory: chunks of 1 MB took twice the processor time.
_CHUNK_BYTES = 256 * 1024
#: The buffer of the pipe from the program. With the kernel's default of 64 KB, the program would wait while a chunk is
#: processed.
_PIPE_BYTES = 256 * 1024
#: The method of counting lines depends on their length, which is estimated from a sample.
_SAMPLE_BYTES = 4096
_SHORT_LINE = 16
_PROGRESS_SECONDS = 10.0

#: The last line, except for psql's own commands.
_COMPLETE = b"-- PostgreSQL database dump complete\n"
# The alternatives of each repetition begin with different characters, so that there is no backtracking. Possessive
# quantifiers would do the same, but Python 3.11.2 (Debian 12) matches some of them incorrectly.
NAME = rb'(?:"[^"]*"|[^"\s();])+'
_COPY = re.compile(rb"COPY (" + NAME + rb') (?:\(((?:"[^"]*"|[^")])*)\))? FROM stdin;\n')
_COLUMN = re.compile(r'(?:"[^"]*"|[^",\s])+')
_QUOTE_OR_END = re.compile(rb"""['"]|;\n""")
_SETVAL = re.compile(rb"SELECT pg_catalog\.setval\('((?:[^']|'')*)', ([^)]*)\);\n")
_LO_OPEN = re.compile(rb"SELECT pg_catalog\.lo_open\('(\d+)',")
#: Statements with a large object's privileges and comments; its owner is in the contents list.
LARGE_OBJECT_NOTE = re.compile(rb"(?:GRANT|REVOKE|COMMENT|SECURITY LABEL) [^']*?ON LARGE OBJECT (\d+) ")
_LO_WRITE = re.compile(rb"SELECT pg_catalog\.lowrite\(\d+, '\\{1,2}x([0-9a-f]*)'\);\n")

Log = Callable[[str], None]


class Rows(Protocol):
    """Consumes one table's rows. Partitions loaded through their root are several blocks of one table."""

    def begin(self, columns: str) -> None:
        """Begin a block with these columns, as its COPY header writes them."""

    def add(self, buffer: bytearray, at: int, end: int) -> None:
        """Add a part of the block, which may end within a row."""


R = TypeVar("R", bound=Rows)


@dataclass(slots=True)
class OrderedRows:
    """The number of rows and the SHA-256 of the rows in their order."""

    columns: str = ""
    rows: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def begin(self, columns: str) -> None:
        self.columns = self.columns or columns

    def add(self, buffer: bytearray, at: int, end: int) -> None:
        self.rows += _count_lines(buffer, at, end)
        self.digest.update(memoryview(buffer)[at:end])


@dataclass(slots=True)
class UnorderedRows:
    """The number of rows and the sum modulo 2**256 of their SHA-256s, independent of the order of rows and columns.

    Attributes:
        columns: the order in which to take a row's fields; ``None`` for a table that was not requested.
    """

    columns: Sequence[str] | None
    rows: int = 0
    total: int = 0
    _places: Sequence[int] | None = None
    _rest: list[bytes] = field(default_factory=list)

    def begin(self, columns: str) -> None:
        if self.columns is None:
            return
        here = split_columns(columns)
        self._places = None if here == list(self.columns) else [here.index(name) for name in self.columns]

    def add(self, buffer: bytearray, at: int, end: int) -> None:
        if self.columns is None:
            return
        part = bytes(memoryview(buffer)[at:end])
        if b"\n" not in part:
            self._rest.append(part)  # a row may have hundreds of megabytes, so its parts are joined only once
            return
        lines = b"".join((*self._rest, part)).split(b"\n")
        self._rest = [lines.pop()]
        self.rows += len(lines)
        for line in lines:
            if self._places is not None:
                fields = line.split(b"\t")
                line = b"\t".join(fields[place] for place in self._places)  # noqa: PLW2901 - the same row
            self.total += int.from_bytes(hashlib.sha256(line).digest(), "big")
        self.total %= 2**256


@dataclass(slots=True)
class Data(Generic[R]):
    """The data that was read.

    Attributes:
        tables: by name, quoted if necessary, as the COPY header writes it.
        sequences: name -> ``setval`` arguments after the name (``42, true``).
        large_objects, large_object_sum: their number, and the sum modulo 2**256 of their SHA-256s.
        large_object_notes: the statements that set privileges and comments of large objects, if they were requested.
        blocks: the number of COPY blocks.
        inserts: whether there are INSERT statements, instead of COPY.
        read_bytes: the length of the text.
    """

    tables: dict[str, R] = field(default_factory=dict)
    sequences: dict[str, str] = field(default_factory=dict)
    large_objects: int = 0
    large_object_sum: int = 0
    large_object_notes: list[bytes] = field(default_factory=list)
    blocks: int = 0
    inserts: bool = False
    read_bytes: int = 0


def read_data(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    rows_of: Callable[[str], R],
    failed: Callable[[str, int], BackupError],
    log: Log | None = None,
    watch: Watch | None = None,
    notes: bool = False,
) -> Data[R]:
    """Run a program that prints data, and read all of it.

    Args:
        command: path and arguments.
        variables: added to the minimal environment.
        rows_of: makes the consumer of a table's rows from the table's name.
        failed: makes the error from the program's standard error and exit code.
        log: receives the progress every ten seconds.
        watch: how long the program may make no progress.
        notes: whether to keep the privileges and comments of large objects, too.

    Raises:
        BackupError: the program failed (the error of ``failed``), or was ended (that of ``watch``).
        ArchiveFormatError: the text cannot be parsed.
        ProgramError: the program succeeded, but its output is incomplete.
    """
    with start(command, variables=variables, pipe_stdout=True, watch=watch) as child:
        assert child.process.stdout is not None
        with contextlib.suppress(OSError):  # the kernel may limit this user's pipes to less
            fcntl.fcntl(child.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        reader = DataReader(child.process.stdout, rows_of, log, notes=notes)
        whole = reader.read()
        code = child.wait()
        if code != 0:
            raise failed(child.stderr, code)
        if not whole:
            # The program succeeded, so the archive is not damaged: a verdict would be a false alarm.
            raise ArchiveFormatError(
                "the data cannot be parsed",
                why=f"{child.program} printed it to its end, but it seems to stop in the middle",
                fix="report it, with the output of: pg_restore --list",
            )
        if not reader.complete:
            raise ProgramError(
                f"{child.program} did not print all of the data",
                why="it ended with code 0, but the line that it writes last is missing",
                fix="try again; if it fails again, reinstall the client programs",
            )
        return reader.data


def unordered(wanted: Mapping[str, Sequence[str]]) -> Callable[[str], UnorderedRows]:
    """For ``rows_of``: reads the tables in ``wanted``, by the columns given there, and no others."""
    return lambda name: UnorderedRows(wanted.get(name))


def asked_for(data: Data[UnorderedRows]) -> dict[str, UnorderedRows]:
    """The requested tables in data that was read with :func:`unordered`."""
    return {name: rows for name, rows in data.tables.items() if rows.columns is not None}


def ordered(name: str) -> OrderedRows:  # noqa: ARG001 - the same for all tables
    """For ``rows_of``: reads the rows of every table in their order."""
    return OrderedRows()


def statements(script: bytes) -> Iterator[bytes]:
    """The SQL statements of a script that a program printed, without psql's own commands and comments."""
    at = 0
    while at < len(script):
        if script[at : at + 1] in (b"\n", b"\\") or script.startswith(b"--", at):
            at = script.find(b"\n", at) + 1 or len(script)
            continue
        end = statement_end(script, at, len(script))
        end = end if end > 0 else len(script)
        yield script[at:end]
        at = end


def split_columns(columns: str) -> list[str]:
    """``id, "odd, name"`` -> its names, as written."""
    return _COLUMN.findall(columns)


class DataReader(Generic[R]):
    """Parses the text chunk by chunk, in constant memory.

    One buffer is reused; its unconsumed part is between ``_at`` and ``_end``. No reference into the buffer, such as a
    regular expression's match, is valid after a call of ``_more``.
    """

    def __init__(
        self, pipe: IO[bytes], rows_of: Callable[[str], R], log: Log | None = None, *, notes: bool = False
    ) -> None:
        self.data: Data[R] = Data()
        self._pipe = pipe
        self._rows_of = rows_of
        self._log = log
        self._notes = notes
        self._buffer = bytearray(_CHUNK_BYTES)
        self._at = self._end = 0
        self.complete = False
        self._large_object: hashlib._Hash | None = None
        self._told = self._began = time.monotonic()

    def read(self) -> bool:
        """Read to the end; ``False`` when the stream ends inside a statement or a table."""
        while True:
            if self._at >= self._end and not self._more():
                return self._large_object is None
            if not self._statement():
                return False

    def _statement(self) -> bool:
        """Consume one irrelevant line, one statement, or one table with its data."""
        while not self._step():
            if not self._more():
                return False
        return True

    def _step(self) -> bool:
        buffer, at, end = self._buffer, self._at, self._end
        first = bytes(buffer[at : min(at + 2, end)])
        if len(first) < 2 and first != b"\n":
            return False
        if first[:1] in (b"\n", b"\\") or first == b"--":
            feed = buffer.find(b"\n", at, end)
            self.complete = self.complete or buffer.startswith(_COMPLETE, at, end)
            self._at = feed + 1 if feed >= 0 else at
            return feed >= 0
        copy = _COPY.match(buffer, at, end)
        if copy:
            self._at = copy.end()
            return self._table(decode_text(copy[1]), decode_text(copy[2] or b""))
        after = statement_end(buffer, at, end)
        if after < 0:
            return False
        self._at = after
        statement = bytes(buffer[at:after])
        # If a COPY header does not match the expression above, its data would be parsed as statements.
        if statement.startswith(b"COPY "):
            raise _not_understood("a table's data begins", statement)
        self._note(statement)
        return True

    def _note(self, statement: bytes) -> None:
        data = self.data
        if match := _LO_WRITE.fullmatch(statement):
            if self._large_object is not None:
                self._large_object.update(match[1])
        elif statement.startswith(b"SELECT pg_catalog.lowrite("):
            raise _not_understood("a large object is written", statement)
        elif match := _LO_OPEN.match(statement):
            self._large_object = hashlib.sha256(match[1] + b":")
        elif statement.startswith(b"SELECT pg_catalog.lo_close("):
            if self._large_object is not None:
                data.large_objects += 1
                digest = int.from_bytes(self._large_object.digest(), "big")
                data.large_object_sum = (data.large_object_sum + digest) % 2**256
            self._large_object = None
        elif match := _SETVAL.fullmatch(statement):
            data.sequences[decode_text(match[1]).replace("''", "'")] = decode_text(match[2])
        elif statement.startswith(b"INSERT INTO "):
            data.inserts = True
        elif self._notes and LARGE_OBJECT_NOTE.match(statement):
            data.large_object_notes.append(statement.strip())

    def _table(self, name: str, columns: str) -> bool:
        # Several blocks may have the same name: those of partitions loaded through their root.
        if name not in self.data.tables:
            self.data.tables[name] = self._rows_of(name)
        table = self.data.tables[name]
        table.begin(columns)
        self.data.blocks += 1
        while self._end - self._at < 3:
            if not self._more():
                return False
        buffer = self._buffer
        if buffer.startswith(b"\\.\n", self._at, self._end):
            self._at += 3
            return True
        while True:
            # A row is never ``\.``, because COPY doubles backslashes in data.
            last = buffer.find(b"\n\\.\n", self._at, self._end)
            cut = last + 1 if last >= 0 else max(self._at, self._end - 3)
            table.add(buffer, self._at, cut)
            self._at = cut
            if last >= 0:
                self._at += 3
                return True
            if not self._more():
                return False

    def _more(self) -> bool:
        """Read more, after moving unconsumed text to the front of the buffer; ``False`` at the end of the stream."""
        buffer, rest = self._buffer, self._end - self._at
        buffer[:rest] = buffer[self._at : self._end]
        if rest > len(buffer) // 2:
            buffer.extend(bytes(len(buffer)))  # a long statement
        with memoryview(buffer)[rest:] as free:
            read: int = self._pipe.readinto(free)  # type: ignore[attr-defined]
        self._at, self._end = 0, rest + read
        self.data.read_bytes += read
        now = time.monotonic()
        if self._log is not None and now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            done = self.data.read_bytes
            self._log(f"decoded {human_bytes(done)}, {human_bytes(done / (now - self._began))}/s")
        return read > 0


def _count_lines(buffer: bytearray, at: int, end: int) -> int:
    """Count the line feeds.

    ``count`` examines each byte; ``replace`` jumps from one line feed to the next, which is several times as fast
    unless the lines are very short.
    """
    sample = min(at + _SAMPLE_BYTES, end)
    if buffer.count(b"\n", at, sample) * _SHORT_LINE > sample - at:
        return buffer.count(b"\n", at, end)
    return end - at - len(buffer[at:end].replace(b"\n", b""))


def statement_end(text: bytes | bytearray, at: int, end: int) -> int:
    """The end of the SQL statement that begins at ``at``: after the first ``;`` and line feed outside quotes.

    -1 if the statement continues past ``end``. This is a loop and not one expression because statements can be
    megabytes long.
    """
    while (found := _QUOTE_OR_END.search(text, at, end)) is not None:
        if len(found[0]) == 2:
            return found.end()
        # A doubled quote counts as two adjacent strings.
        at = text.find(found[0], found.end(), end) + 1
        if at == 0:
            return -1
    return -1


def _not_understood(where: str, statement: bytes) -> ArchiveFormatError:
    return ArchiveFormatError(
        f"the data contains a statement that cannot be parsed, where {where}",
        why=without_literals(decode_text(statement[:200]).partition(" VALUES ")[0]),
        fix="report it, with the definition of the table or large object",
    )


def decode_text(raw: bytes) -> str:
    """Decode names, which may be in another encoding than UTF-8."""
    return raw_text(raw)

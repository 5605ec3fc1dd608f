r"""Reads a whole archive and says what is in it: the archive is its own witness.

``pg_restore -f - ARCHIVE`` prints each table's COPY header, its rows, and ``\.``. One pass over that stream
gives rows and SHA-256 of every table as it stood in the dump's snapshot, with no load on any server. Whether
what is found is good is judged in ``core.verdict``; whether the file is the one that was written is checked
by ``verification`` before any of this opens it, because an archive can carry commands.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ovia_backup_dagster.core.errors import (
    ArchiveDamagedError,
    ArchiveFormatError,
    BackupError,
    ProgramError,
)
from ovia_backup_dagster.core.verdict import LargeObjects, TableWitness, Witness
from ovia_backup_dagster.core.words import human_bytes
from ovia_backup_dagster.postgres.client import Programs, capture, start
from ovia_backup_dagster.postgres.diagnosis import diagnose

#: Small enough to stay in the processor's cache while it is searched, counted and hashed, and for its copies to come
#: from memory that is there already: with 1 MB, the same took twice the processor's time.
_CHUNK_BYTES = 256 * 1024
#: Of the pipe from pg_restore. In the kernel's 64 KB, pg_restore would wait while a chunk is looked at.
_PIPE_BYTES = 256 * 1024
#: How lines are counted depends on their length, which is looked up in a sample.
_SAMPLE_BYTES = 4096
_SHORT_LINE = 16
_PROGRESS_SECONDS = 10.0

# The alternatives of each repetition begin with different characters, so there is nothing to backtrack into. No
# possessive quantifiers, which say the same: Python 3.11.2, Debian 12's, matches some of them wrongly.
_NAME = rb'(?:"[^"]*"|[^"\s();])+'
_COPY = re.compile(rb"COPY (" + _NAME + rb') (?:\(((?:"[^"]*"|[^")])*)\))? FROM stdin;\n')
_QUOTE_OR_END = re.compile(rb"""['"]|;\n""")
_ENTRY = re.compile(r"^(\d+; \d+ \d+) (.+)$", re.MULTILINE)
_SETVAL = re.compile(rb"SELECT pg_catalog\.setval\('((?:[^']|'')*)', ([^)]*)\);\n")
_LO_OPEN = re.compile(rb"SELECT pg_catalog\.lo_open\('(\d+)',")
_LO_WRITE = re.compile(rb"SELECT pg_catalog\.lowrite\(\d+, '\\{1,2}x([0-9a-f]*)'\);\n")
_ATTACH = re.compile(rb"ALTER TABLE ONLY (" + _NAME + rb") ATTACH PARTITION (" + _NAME + rb") ")
_CREATE = re.compile(rb"CREATE (?:UNLOGGED )?TABLE (" + _NAME + rb") \(")
_INHERITS = re.compile(rb"\)\nINHERITS \(((?:" + _NAME + rb" ?)+)\)")
#: What stops pg_restore without being the archive's fault. A damaged one can also ask for absurd amounts of memory;
#: that, too, is better left undecided.
_SURROUNDINGS = re.compile(
    r"out of memory|Cannot allocate memory|Input/output error|Permission denied|Too many open files"
    r"|could not open input file|Stale file handle|No such file or directory"
)
#: What pg_restore says of a file that it gives up on, and what has probably happened to it.
_DAMAGES = (
    (r"input file is too short \(read 0", "the file is empty: the dump failed before it began"),
    (r"end of file|input file is too short", "the file is truncated: the dump or the copying of it was broken off"),
    (r"text format dump", "it is a plain SQL dump, which psql reads, not a custom-format archive"),
    (r"valid archive|magic string", "the file is not an archive: overwritten, or another program's"),
    (
        r"compress|corrupt|invalid|incorrect|checksum|unexpected",
        "its content was altered after it was written: a failing disk or memory, or a bad copy",
    ),
)
#: Lines of the schema text that differ each time, or with the program's version.
_VOLATILE = re.compile(rb"^(?:\\(?:un)?restrict .*|-- Dumped (?:from|by) .*)\n", re.MULTILINE)


def read_archive(programs: Programs, path: Path, log: Callable[[str], None] | None = None) -> Witness:
    """Decode every byte of a custom-format archive.

    Args:
        programs: pg_restore is used.
        path: the archive.
        log: told about progress every ten seconds.

    Raises:
        ArchiveDamagedError: it does not decode to its end.
        ArchiveFormatError, CompressionUnsupportedError: this pg_restore cannot read it; another might.
        ProgramError: pg_restore is missing or was killed: no verdict on the archive.
    """
    path = path.absolute()
    programs.version("pg_restore")  # one that cannot even start has nothing to say about an archive
    listing = _text(_run(programs, path, "--list"))
    contents = _contents(listing)
    data = _read_data(programs, path, log)
    expected = sum(1 for entry in contents if entry.startswith("TABLE DATA "))
    if data.blocks < expected and not data.inserts:
        raise ArchiveDamagedError(
            f"archive {path.name} is damaged",
            why=f"its contents list names the data of {expected} tables, {data.blocks} were found",
            fix="use another backup: ovia-backup list",
        )
    schema = _run(programs, path, "--schema-only", "--file=-")
    partitions, inherits = _family(programs, path, listing)
    return Witness(
        tables=tuple(
            TableWitness(name=name, columns=table.columns, rows=table.rows, sha256=table.digest.hexdigest())
            for name, table in data.tables.items()
        ),
        sequences=data.sequences,
        large_objects=LargeObjects(count=data.large_objects, content=f"{data.large_object_sum:x}"),
        contents=contents,
        partitions=partitions,
        inherits=inherits,
        schema_sha256=hashlib.sha256(_VOLATILE.sub(b"", schema)).hexdigest(),
        decoded_bytes=data.read_bytes,
        archive_client=_header(listing, "Dumped by pg_dump version"),
    )


def _run(programs: Programs, path: Path, *arguments: str) -> bytes:
    code, output, stderr = capture((programs.path("pg_restore"), *arguments, str(path)))
    # --list exits 0 with a warning when it cannot decompress.
    if code != 0 or "does not support compression" in stderr:
        raise _failure(stderr, code, path)
    return output


def _failure(stderr: str, code: int, path: Path) -> BackupError:
    error = diagnose(stderr, what=f"archive {path.name} cannot be read", exit_code=code)
    # A verdict only where pg_restore itself read the file and gave up on it. Whatever else went wrong (a library
    # is missing, memory or the disk failed, it was killed) says nothing about the archive, and a false "bad"
    # could in the end delete a good one.
    gave_up = code == 1 and re.search(r"^pg_restore: error: ", stderr, re.MULTILINE)
    if not gave_up or _SURROUNDINGS.search(stderr) or type(error) is not ProgramError:
        return error
    cause = next((cause for pattern, cause in _DAMAGES if re.search(pattern, stderr)), "")
    return ArchiveDamagedError(
        f"archive {path.name} is damaged", why=cause, said=error.said, fix="use another backup: ovia-backup list"
    )


def _contents(listing: str) -> tuple[str, ...]:
    """``215; 1259 16390 TABLE public people ovia`` -> ``TABLE public people ovia``, sorted."""
    # Not splitlines(): a name may hold other separators than the line feed, which pg_dump replaces.
    return tuple(sorted(match[2] for match in _ENTRY.finditer(listing)))


def _family(programs: Programs, path: Path, listing: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Partition -> parent, and child -> its parents by inheritance.

    Read from the tables' own entries alone: a function's body may hold any text that looks like theirs.
    """
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="replace", suffix=".list") as wanted:
        for match in _ENTRY.finditer(listing):
            if re.match(r"TABLE (?!DATA )", match[2]):
                wanted.write(f"{match[1]} {match[2]}\n")
        wanted.flush()
        text = _run(programs, path, "--schema-only", f"--use-list={wanted.name}", "--file=-")
    partitions: dict[str, str] = {}
    inherits: dict[str, tuple[str, ...]] = {}
    at = 0
    while at < len(text):
        if text[at : at + 1] in (b"\n", b"\\") or text.startswith(b"--", at):
            at = text.find(b"\n", at) + 1 or len(text)
            continue
        end = _statement_end(text, at, len(text))
        end = end if end > 0 else len(text)
        statement, at = text[at:end], end
        if attach := _ATTACH.match(statement):
            partitions[_text(attach[2])] = _text(attach[1])
        elif (create := _CREATE.match(statement)) and (parents := _INHERITS.search(statement)):
            inherits[_text(create[1])] = tuple(_text(name.rstrip(b",")) for name in re.findall(_NAME, parents[1]))
    return partitions, inherits


def _header(listing: str, label: str) -> str:
    match = re.search(rf"^;\s+{re.escape(label)}: (.*)$", listing, re.MULTILINE)
    return match.group(1) if match else ""


@dataclass(slots=True)
class _Table:
    columns: str
    rows: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


@dataclass(slots=True)
class _Data:
    tables: dict[str, _Table] = field(default_factory=dict)
    sequences: dict[str, str] = field(default_factory=dict)
    large_objects: int = 0
    large_object_sum: int = 0
    blocks: int = 0
    inserts: bool = False
    read_bytes: int = 0


def _read_data(programs: Programs, path: Path, log: Callable[[str], None] | None) -> _Data:
    command = (programs.path("pg_restore"), "--data-only", "--file=-", str(path))
    with start(command, pipe_stdout=True) as child:
        assert child.process.stdout is not None
        with contextlib.suppress(OSError):  # this user's pipes may hold no more
            fcntl.fcntl(child.process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        reader = _Reader(child.process.stdout, log)
        whole = reader.read()
        code = child.wait()
        if code != 0:
            raise _failure(child.stderr, code, path)
        if not whole:
            # pg_restore is content, so this is no damage: a verdict would be a false alarm.
            raise ArchiveFormatError(
                f"archive {path.name} is not understood",
                why="pg_restore printed it to its end, but its data seems to stop in the middle",
                fix="report it, with the output of: pg_restore --list",
            )
        return reader.data


class _Reader:
    """Parses what ``pg_restore --data-only`` prints, a chunk at a time, in constant memory.

    One buffer is read into again and again; what of it is not consumed yet lies between ``_at`` and ``_end``. So
    nothing may be kept of it, no match either, across ``_more``.
    """

    def __init__(self, pipe: IO[bytes], log: Callable[[str], None] | None) -> None:
        self.data = _Data()
        self._pipe = pipe
        self._log = log
        self._buffer = bytearray(_CHUNK_BYTES)
        self._at = self._end = 0
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
        """Consume one line of no interest, one statement, or one table with its data."""
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
            self._at = feed + 1 if feed >= 0 else at
            return feed >= 0
        copy = _COPY.match(buffer, at, end)
        if copy:
            self._at = copy.end()
            return self._table(_text(copy[1]), _text(copy[2] or b""))
        after = _statement_end(buffer, at, end)
        if after < 0:
            return False
        self._at = after
        statement = bytes(buffer[at:after])
        # A COPY header that the first expression could not read would make data look like statements.
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
            data.sequences[_text(match[1]).replace("''", "'")] = _text(match[2])
        elif statement.startswith(b"INSERT INTO "):
            data.inserts = True

    def _table(self, name: str, columns: str) -> bool:
        # Several blocks may bear one name: partitions that are loaded through their root.
        table = self.data.tables.setdefault(name, _Table(columns))
        self.data.blocks += 1
        while self._end - self._at < 3:
            if not self._more():
                return False
        buffer = self._buffer
        if buffer.startswith(b"\\.\n", self._at, self._end):
            self._at += 3
            return True
        while True:
            # A row never is ``\.``: COPY doubles backslashes in data.
            last = buffer.find(b"\n\\.\n", self._at, self._end)
            cut = last + 1 if last >= 0 else max(self._at, self._end - 3)
            table.rows += _count_lines(buffer, self._at, cut)
            table.digest.update(memoryview(buffer)[self._at : cut])
            self._at = cut
            if last >= 0:
                self._at += 3
                return True
            if not self._more():
                return False

    def _more(self) -> bool:
        """Read on; what is not consumed yet moves to the front. ``False`` at the end."""
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
    """How many line feeds there are.

    ``count`` looks at each byte in turn; ``replace`` leaps from one to the next, several times as fast in all but
    very short lines.
    """
    sample = min(at + _SAMPLE_BYTES, end)
    if buffer.count(b"\n", at, sample) * _SHORT_LINE > sample - at:
        return buffer.count(b"\n", at, end)
    return end - at - len(buffer[at:end].replace(b"\n", b""))


def _statement_end(text: bytes | bytearray, at: int, end: int) -> int:
    """Where the SQL statement that begins at ``at`` ends: after the first ``;`` and line feed outside quotes.

    -1 when it goes on past ``end``. A loop, not one expression: statements can be megabytes long.
    """
    while (found := _QUOTE_OR_END.search(text, at, end)) is not None:
        if len(found[0]) == 2:
            return found.end()
        # A doubled quote is two quoted strings in a row.
        at = text.find(found[0], found.end(), end) + 1
        if at == 0:
            return -1
    return -1


def _not_understood(where: str, statement: bytes) -> ArchiveFormatError:
    return ArchiveFormatError(
        f"the archive has a statement that is not understood, where {where}",
        why=_text(statement[:200]),
        fix="report it, with the definition of the table or large object",
    )


def _text(raw: bytes) -> str:
    # Names in a database of another encoding than UTF-8 stay distinct, and can be written as JSON.
    return raw.decode("utf-8", "backslashreplace")

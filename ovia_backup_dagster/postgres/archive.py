r"""Reads a whole archive and says what is in it: the archive is its own witness.

``pg_restore -f - ARCHIVE`` prints each table's COPY header, its rows, and ``\.``. One pass over that stream
gives rows and SHA-256 of every table as it stood in the dump's snapshot, with no load on any server. Whether
what is found is good is judged in ``core.verdict``; whether the file is the one that was written is checked
by ``verification`` before any of this opens it, because an archive can carry commands.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ovia_backup_dagster.core.errors import ArchiveDamagedError, BackupError, ProgramCrashedError, ProgramError
from ovia_backup_dagster.core.files import open_plain, scratch
from ovia_backup_dagster.core.verdict import LargeObjects, TableWitness, Witness, split_identifier
from ovia_backup_dagster.postgres.data_stream import (
    LARGE_OBJECT_NOTE,
    NAME,
    Data,
    Log,
    OrderedRows,
    R,
    UnorderedRows,
    asked_for,
    decode_text,
    ordered,
    read_data,
    statements,
    unordered,
)
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Programs, capture
from ovia_backup_dagster.postgres.session_settings import UNSET, pg_options
from ovia_backup_dagster.postgres.stall import watch

_USE_LIST = "--use-list="
_ENTRIES = re.compile(r"^;\s+TOC Entries: (\d+)$", re.MULTILINE)
#: Never listed: encoding, quoting and search path; the database itself, its properties, comment, rights and labels.
_UNLISTED = 16
_COMPLETE = b"\n-- PostgreSQL database dump complete\n"
_ENTRY = re.compile(r"^(\d+; \d+ \d+) (.+)$", re.MULTILINE)
_TABLE = re.compile(r"TABLE (?!DATA )")
_OF_LARGE_OBJECT = re.compile(r"(?:ACL|COMMENT|SECURITY LABEL) - LARGE OBJECT ")
_OF_DATABASE = re.compile(r"(?:ACL|COMMENT|SECURITY LABEL) - DATABASE ")
_SETTING = re.compile(
    rb'ALTER DATABASE .* SET "?((?i:' + "|".join(UNSET).encode() + rb'))"? TO \'([^\']*)\';', re.DOTALL
)
#: Encodings whose names Python has others for; Windows' differ by a prefix.
_CODECS = {
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "EUC_CN": "gb2312",
    "ISO_8859_5": "iso8859-5",
    "ISO_8859_6": "iso8859-6",
    "ISO_8859_7": "iso8859-7",
    "ISO_8859_8": "iso8859-8",
}
_ENCODING = re.compile(rb"^SET client_encoding = '(\w+)';$", re.MULTILINE)
_TABLESPACE = re.compile(rb"^SET default_tablespace = ([^'].*);$", re.MULTILINE)
_ATTACH = re.compile(rb"ALTER TABLE ONLY (" + NAME + rb") ATTACH PARTITION (" + NAME + rb") ")
_CREATE = re.compile(rb"CREATE (?:UNLOGGED )?TABLE (" + NAME + rb") \(")
_INHERITS = re.compile(rb"\)\nINHERITS \(((?:" + NAME + rb" ?)+)\)")
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


def read_archive(programs: Programs, path: Path, log: Log | None = None) -> Witness:
    """Decode every byte of a custom-format archive.

    Args:
        programs: pg_restore is used.
        path: the archive.
        log: told about progress every ten seconds.

    Raises:
        ArchiveDamagedError: it does not decode to its end, or pg_restore crashes on it whenever it tries.
        ArchiveFormatError, CompressionUnsupportedError: this pg_restore cannot read it; another might.
        ProgramError: pg_restore is missing, broken, or was killed: no verdict on the archive.
    """
    path = path.absolute()
    programs.version("pg_restore")  # one that cannot even start has nothing to say about an archive
    try:
        return _read_archive(programs, path, log)
    except ProgramCrashedError as error:
        if log is not None:
            log(f"{error.account}; once more")
    try:
        return _read_archive(programs, path, log)
    except ProgramCrashedError as error:
        # Nor has one that crashes on any archive.
        if not programs.reads_an_archive():
            raise
        raise ArchiveDamagedError(
            f"archive {path.name} is damaged",
            why="pg_restore crashed on it twice, and reads others",
            said=error.reason,
            fix="use another backup: ovia-backup list",
        ) from None


def _read_archive(programs: Programs, path: Path, log: Log | None) -> Witness:
    listing = contents_list(programs, path)
    data = _read(programs, path, ordered, log)
    expected = sum(1 for entry in entries(listing) if entry.startswith("TABLE DATA "))
    if data.blocks < expected and not data.inserts:
        raise ArchiveDamagedError(
            f"archive {path.name} is damaged",
            why=f"its contents list names the data of {expected} tables, {data.blocks} were found",
            fix="use another backup: ovia-backup list",
        )
    return witness_of(programs, path, listing, data)


def read_unordered(
    programs: Programs, path: Path, witness: Witness, wanted: Mapping[str, Sequence[str]], log: Log | None = None
) -> dict[str, UnorderedRows]:
    """The rows of some tables (name -> columns) of an archive, whatever the order they stand in.

    Only their part of it is decoded, as far as the contents list, where names are not quoted, says which that is.
    """
    rows = {table.name: table.rows for table in witness.tables}
    # A table that is loaded through its root has the entries of its partitions.
    names = {name for name in (*rows, *witness.partitions) if witness.root(name) in wanted or name in wanted}
    heads = {f"TABLE DATA {' '.join(split_identifier(name))} ".replace("\n", " ") for name in names}
    with use_list(contents_list(programs, path), lambda entry: entry.startswith(tuple(heads))) as chosen:
        found = asked_for(_read(programs, path, unordered(wanted), log, chosen))
    if any(name not in found or found[name].rows != rows[name] for name in wanted):
        found = asked_for(_read(programs, path, unordered(wanted), log))
    return found


def witness_of(programs: Programs, schema: Path, listing: str, data: Data[OrderedRows]) -> Witness:
    """What was read, as a witness.

    Args:
        programs: pg_restore is used.
        schema: an archive with the schema of what was read.
        listing: the contents list of what was read.
        data: its data, each table's in its order.
    """
    partitions, inherits = _family(programs, schema)
    return Witness(
        tables=tuple(
            TableWitness(name=name, columns=rows.columns, rows=rows.rows, sha256=rows.digest.hexdigest())
            for name, rows in data.tables.items()
        ),
        sequences=data.sequences,
        large_objects=LargeObjects(count=data.large_objects, content=f"{data.large_object_sum:x}"),
        contents=tuple(sorted(entries(listing))),
        partitions=partitions,
        inherits=inherits,
        schema_sha256=hashlib.sha256(schema_text(programs, schema)).hexdigest(),
        decoded_bytes=data.read_bytes,
        archive_client=_header(listing, "Dumped by pg_dump version"),
    )


def argument(path: Path) -> str:
    """An archive as pg_restore takes it, if it is a file that opens: a FIFO or a device would never end.

    Raises:
        StrangeFileError: it is none. One that is gone is for pg_restore to say.
        VolumeError: it cannot be opened, with cause and remedy, which pg_restore does not give.
    """
    with suppress(FileNotFoundError):
        os.close(open_plain(path))
    return str(path)


def contents_list(programs: Programs, path: Path, *options: str) -> str:
    """What ``pg_restore --list`` prints of an archive."""
    return whole_list(decode_text(_run(programs, path, "--list", *options)), path.name)


def whole_list(listing: str, of: str) -> str:
    """A contents list, once it has as many entries as its own head says.

    Raises:
        ProgramError: it was cut off, though the program was content.
    """
    said, listed = _ENTRIES.search(listing), sum(1 for _ in _ENTRY.finditer(listing))
    if said and listing.endswith("\n") and int(said[1]) - _UNLISTED <= listed <= int(said[1]):
        return listing
    wanted = said[1] if said else "how many, it does not say"
    raise ProgramError(
        f"the contents list of {of} is not whole",
        why=f"pg_restore ended with code 0, and listed {listed} entries of {wanted}",
        fix="see what it prints: pg_restore --list; install the client programs again",
    )


def database_of(listing: str) -> str:
    """The name of the archive's database, as a contents list says it: without line feeds."""
    return _header(listing, "dbname")


def entries(listing: str) -> list[str]:
    """``215; 1259 16390 TABLE public people ovia`` -> ``TABLE public people ovia``, in the archive's order."""
    # Not splitlines(): a name may hold other separators than the line feed, which pg_dump replaces.
    return [match[2] for match in _ENTRY.finditer(listing)]


@contextmanager
def use_list(listing: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """The argument that makes pg_restore take only the entries of a contents list that are wanted."""
    with use_lines(match[0] for match in _ENTRY.finditer(listing) if wanted(match[2])) as chosen:
        yield chosen


@contextmanager
def use_lines(lines: Iterable[str]) -> Iterator[str]:
    """The argument that makes pg_restore take these lines of a contents list, in this order."""
    folder = Path(tempfile.gettempdir())
    with contextlib.ExitStack() as removing:
        # Half a list would restore half a backup.
        with scratch(folder, "TMPDIR"):
            descriptor, name = tempfile.mkstemp(suffix=".list", dir=folder)
            removing.callback(os.unlink, name)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.writelines(f"{line}\n" for line in lines)
        yield f"{_USE_LIST}{name}"


def schema_text(programs: Programs, path: Path, *options: str) -> bytes:
    """The schema of an archive as SQL, without the lines that differ each time."""
    return _VOLATILE.sub(b"", _sql(programs, path, "--schema-only", *options))


def annotated_schema(programs: Programs, path: Path) -> str:
    """The schema of an archive as SQL, each entry with its number and what it depends on."""
    return decode_text(_sql(programs, path, "--schema-only", "--verbose"))


def tablespaces(programs: Programs, path: Path) -> tuple[str, ...]:
    """Those that the archive's tables and indexes were in, besides the database's own."""
    text = _sql(programs, path, "--schema-only")
    return tuple(sorted({decode_text(name) for name in _TABLESPACE.findall(text)}))


def large_object_notes(programs: Programs, path: Path, listing: str) -> list[bytes]:
    """The statements that give an archive's large objects their privileges and comments, and none of their data."""
    if not any(map(_OF_LARGE_OBJECT.match, entries(listing))):
        return []
    with use_list(listing, lambda entry: _OF_LARGE_OBJECT.match(entry) is not None) as chosen:
        text = _sql(programs, path, chosen)
    return [each.strip() for each in statements(text) if LARGE_OBJECT_NOTE.match(each)]


def database_text(programs: Programs, path: Path) -> bytes:
    """The SQL that makes the archive's database, without anything in it: CREATE DATABASE, its owner, its settings, its
    comment, privileges and security labels.
    """
    # Of its entries only the last three are ever listed, and must be: the others are printed whatever the list says.
    listing = contents_list(programs, path, "--create")
    with use_list(listing, lambda entry: _OF_DATABASE.match(entry) is not None) as chosen:
        command = pg_restore(programs, path, "--create", "--no-tablespaces", chosen, "--file=-")
        code, output, stderr = capture(command, watch=watch(programs))
    # A line feed in the database's name stops it where psql would connect: all but its settings is printed.
    if code != 0 and not (b"\nCREATE DATABASE " in output and "contains a newline" in stderr):
        raise _failure(stderr, code, path)
    return output if code else _whole(output, path)


def encoding(script: bytes) -> str:
    """The encoding of an archive's text.

    Args:
        script: as :func:`database_text` prints it.
    """
    match = _ENCODING.search(script)
    return decode_text(match[1]) if match else "UTF8"


def in_utf8(text: bytes, encoding: str) -> bytes:
    """Text of a file in the encoding in which a session of ours asks for names; as it is, where that cannot be told.

    Args:
        encoding: PostgreSQL's name of the file's.
    """
    if encoding in ("UTF8", "SQL_ASCII"):
        return text
    try:
        return text.decode(_CODECS.get(encoding) or encoding.replace("WIN", "cp")).encode()
    except (LookupError, UnicodeError):
        return text


def session_options(script: bytes) -> str:
    """The source's database-level settings that decide how values are written, as ``PGOPTIONS``.

    Args:
        script: as :func:`database_text` prints it.
    """
    found = (_SETTING.fullmatch(statement.strip()) for statement in statements(script))
    return pg_options({decode_text(match[1]): decode_text(match[2]) for match in found if match})


def pg_restore(programs: Programs, path: Path, *options: str) -> tuple[str, ...]:
    """The command that reads an archive, confined to that: it connects to nothing."""
    lists = (option.removeprefix(_USE_LIST) for option in options if option.startswith(_USE_LIST))
    return programs.confined((programs.path("pg_restore"), *options, argument(path)), read=(path, *lists))


def _read(programs: Programs, path: Path, rows_of: Callable[[str], R], log: Log | None, *options: str) -> Data[R]:
    return read_data(
        pg_restore(programs, path, "--data-only", *options, "--file=-"),
        rows_of=rows_of,
        failed=lambda stderr, code: _failure(stderr, code, path),
        log=log,
        watch=watch(programs),
    )


def _run(programs: Programs, path: Path, *arguments: str) -> bytes:
    code, output, stderr = capture(pg_restore(programs, path, *arguments), watch=watch(programs))
    # --list exits 0 with a warning when it cannot decompress.
    if code != 0 or "does not support compression" in stderr:
        raise _failure(stderr, code, path)
    return output


def _sql(programs: Programs, path: Path, *arguments: str) -> bytes:
    return _whole(_run(programs, path, *arguments, "--file=-"), path)


def _whole(output: bytes, path: Path) -> bytes:
    """SQL of an archive, with the line that its program writes last."""
    if _COMPLETE not in output[-1024:]:
        raise ProgramError(
            f"the SQL of archive {path.name} is not whole",
            why="pg_restore ended with code 0, and the line that it writes last is missing",
            fix="see what it prints: pg_restore --schema-only --file=-; install the client programs again",
        )
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


def _family(programs: Programs, path: Path) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Partition -> parent, and child -> its parents by inheritance.

    Read from the tables' own entries alone: a function's body may hold any text that looks like theirs.
    """
    with use_list(contents_list(programs, path), lambda entry: bool(_TABLE.match(entry))) as wanted:
        text = _sql(programs, path, "--schema-only", wanted)
    partitions: dict[str, str] = {}
    inherits: dict[str, tuple[str, ...]] = {}
    for statement in statements(text):
        if attach := _ATTACH.match(statement):
            partitions[decode_text(attach[2])] = decode_text(attach[1])
        elif (create := _CREATE.match(statement)) and (parents := _INHERITS.search(statement)):
            inherits[decode_text(create[1])] = tuple(
                decode_text(name.rstrip(b",")) for name in re.findall(NAME, parents[1])
            )
    return partitions, inherits


def _header(listing: str, label: str) -> str:
    match = re.search(rf"^;\s+{re.escape(label)}: (.*)$", listing, re.MULTILINE)
    return match.group(1) if match else ""

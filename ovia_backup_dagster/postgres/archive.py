r"""Reads a whole archive and reports what it contains: the archive is its own witness.

``pg_restore -f - ARCHIVE`` prints each table's COPY header, its rows, and ``\.``. One pass over that stream
gives the row count and SHA-256 of every table as of the dump's snapshot, without load on any server.
``core.verdict`` judges whether the contents are good. ``verification`` checks that the file is the one that was
written before this module opens it, because an archive can contain commands.
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
#: Entries that --list never shows: encoding, quoting, search path; the database with its properties, comment,
#: privileges and security labels.
_UNLISTED = 16
_COMPLETE = b"\n-- PostgreSQL database dump complete\n"
_ENTRY = re.compile(r"^(\d+; \d+ \d+) (.+)$", re.MULTILINE)
_TABLE = re.compile(r"TABLE (?!DATA )")
_OF_LARGE_OBJECT = re.compile(r"(?:ACL|COMMENT|SECURITY LABEL) - LARGE OBJECT ")
_OF_DATABASE = re.compile(r"(?:ACL|COMMENT|SECURITY LABEL) - DATABASE ")
_SETTING = re.compile(
    rb'ALTER DATABASE .* SET "?((?i:' + "|".join(UNSET).encode() + rb'))"? TO \'([^\']*)\';', re.DOTALL
)
#: Encodings that Python names differently; the Windows code pages differ only by a prefix.
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
#: Failures of pg_restore that are not the archive's fault. A damaged archive can also request absurd amounts of memory;
#: that case, too, is better left without a verdict.
_SURROUNDINGS = re.compile(
    r"out of memory|Cannot allocate memory|Input/output error|Permission denied|Too many open files"
    r"|could not open input file|Stale file handle|No such file or directory"
)
#: pg_restore's message when it gives up on a file, and what probably happened to the file.
_DAMAGES = (
    (r"input file is too short \(read 0", "the file is empty: the dump failed before it began"),
    (r"end of file|input file is too short", "the file is truncated: the dump, or a copy of it, was interrupted"),
    (r"text format dump", "it is a plain SQL dump, which psql reads, not a custom-format archive"),
    (r"valid archive|magic string", "the file is not an archive: it was overwritten, or another program wrote it"),
    (
        r"compress|corrupt|invalid|incorrect|checksum|unexpected",
        "its content was altered after it was written: a failing disk or memory, or a bad copy",
    ),
)
#: Lines of the schema text that differ between runs or between versions of the program.
_VOLATILE = re.compile(rb"^(?:\\(?:un)?restrict .*|-- Dumped (?:from|by) .*)\n", re.MULTILINE)


def read_archive(programs: Programs, path: Path, log: Log | None = None) -> Witness:
    """Decode every byte of a custom-format archive.

    Args:
        programs: for pg_restore.
        path: the archive.
        log: receives the progress every ten seconds.

    Raises:
        ArchiveDamagedError: the archive does not decode to its end, or pg_restore crashes on it every time.
        ArchiveFormatError, CompressionUnsupportedError: this pg_restore cannot read it; another might.
        ProgramError: pg_restore is missing, broken, or was killed: there is no verdict on the archive.
    """
    path = path.absolute()
    programs.version("pg_restore")  # a program that cannot even start says nothing about an archive
    try:
        return _read_archive(programs, path, log)
    except ProgramCrashedError as error:
        if log is not None:
            log(f"{error.account}; trying once more")
    try:
        return _read_archive(programs, path, log)
    except ProgramCrashedError as error:
        # A program that crashes on a sound archive says nothing about this one, either.
        if not programs.reads_an_archive():
            raise
        raise ArchiveDamagedError(
            f"archive {path.name} is damaged",
            why="pg_restore crashed on it twice, and can read other archives",
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
            why=f"its contents list names the data of {expected} tables, but only {data.blocks} were found",
            fix="use another backup: ovia-backup list",
        )
    return witness_of(programs, path, listing, data)


def read_unordered(
    programs: Programs, path: Path, witness: Witness, wanted: Mapping[str, Sequence[str]], log: Log | None = None
) -> dict[str, UnorderedRows]:
    """Read the rows of some tables (name -> columns) of an archive, independent of their order.

    Only these tables' data is decoded, as far as the contents list, which does not quote names, identifies it.
    """
    rows = {table.name: table.rows for table in witness.tables}
    # A table loaded through its root has one entry for each partition.
    names = {name for name in (*rows, *witness.partitions) if witness.root(name) in wanted or name in wanted}
    heads = {f"TABLE DATA {' '.join(split_identifier(name))} ".replace("\n", " ") for name in names}
    with use_list(contents_list(programs, path), lambda entry: entry.startswith(tuple(heads))) as chosen:
        found = asked_for(_read(programs, path, unordered(wanted), log, chosen))
    if any(name not in found or found[name].rows != rows[name] for name in wanted):
        found = asked_for(_read(programs, path, unordered(wanted), log))
    return found


def witness_of(programs: Programs, schema: Path, listing: str, data: Data[OrderedRows]) -> Witness:
    """Make the witness of a reading.

    Args:
        programs: for pg_restore.
        schema: an archive with the schema of the archive or database that was read.
        listing: its contents list.
        data: its data, each table's rows in their order.
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
    """The path as an argument for pg_restore, once it is known to be a regular file that can be opened.

    pg_restore would wait without end for a FIFO or a device. A missing file is left for pg_restore to report.

    Raises:
        StrangeFileError: the path is not a regular file.
        VolumeError: the file cannot be opened; the error gives cause and remedy, which pg_restore does not.
    """
    with suppress(FileNotFoundError):
        os.close(open_plain(path))
    return str(path)


def contents_list(programs: Programs, path: Path, *options: str) -> str:
    """What ``pg_restore --list`` prints for an archive."""
    return whole_list(decode_text(_run(programs, path, "--list", *options)), path.name)


def whole_list(listing: str, of: str) -> str:
    """Return a contents list if it has as many entries as its own header states.

    Raises:
        ProgramError: the list is incomplete, although the program succeeded.
    """
    said, listed = _ENTRIES.search(listing), sum(1 for _ in _ENTRY.finditer(listing))
    if said and listing.endswith("\n") and int(said[1]) - _UNLISTED <= listed <= int(said[1]):
        return listing
    wanted = said[1] if said else "an unstated number"
    raise ProgramError(
        f"the contents list of {of} is incomplete",
        why=f"pg_restore ended with code 0, but listed {listed} entries of {wanted}",
        fix="see what it prints: pg_restore --list; reinstall the client programs",
    )


def database_of(listing: str) -> str:
    """The name of the archive's database, as the contents list states it: without line feeds."""
    return _header(listing, "dbname")


def entries(listing: str) -> list[str]:
    """``215; 1259 16390 TABLE public people ovia`` -> ``TABLE public people ovia``, in the archive's order."""
    # Not splitlines(): pg_dump replaces line feeds in names, but not other line separators.
    return [match[2] for match in _ENTRY.finditer(listing)]


@contextmanager
def use_list(listing: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yield the argument that limits pg_restore to the wanted entries of a contents list."""
    with use_lines(match[0] for match in _ENTRY.finditer(listing) if wanted(match[2])) as chosen:
        yield chosen


@contextmanager
def use_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the argument that makes pg_restore process these lines of a contents list, in this order."""
    folder = Path(tempfile.gettempdir())
    with contextlib.ExitStack() as removing:
        # A partly written list would restore only part of a backup.
        with scratch(folder, "TMPDIR"):
            descriptor, name = tempfile.mkstemp(suffix=".list", dir=folder)
            removing.callback(os.unlink, name)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.writelines(f"{line}\n" for line in lines)
        yield f"{_USE_LIST}{name}"


def schema_text(programs: Programs, path: Path, *options: str) -> bytes:
    """The schema of an archive as SQL, without the lines that differ between runs."""
    return _VOLATILE.sub(b"", _sql(programs, path, "--schema-only", *options))


def annotated_schema(programs: Programs, path: Path) -> str:
    """The schema of an archive as SQL, each entry with its number and its dependencies."""
    return decode_text(_sql(programs, path, "--schema-only", "--verbose"))


def tablespaces(programs: Programs, path: Path) -> tuple[str, ...]:
    """The tablespaces of the archive's tables and indexes, other than the database's default."""
    text = _sql(programs, path, "--schema-only")
    return tuple(sorted({decode_text(name) for name in _TABLESPACE.findall(text)}))


def large_object_notes(programs: Programs, path: Path, listing: str) -> list[bytes]:
    """The statements that set privileges and comments of an archive's large objects, without their data."""
    if not any(map(_OF_LARGE_OBJECT.match, entries(listing))):
        return []
    with use_list(listing, lambda entry: _OF_LARGE_OBJECT.match(entry) is not None) as chosen:
        text = _sql(programs, path, chosen)
    return [each.strip() for each in statements(text) if LARGE_OBJECT_NOTE.match(each)]


def database_text(programs: Programs, path: Path) -> bytes:
    """The SQL that creates the archive's database without its contents: CREATE DATABASE, owner, settings, comment,
    privileges and security labels.
    """
    # Comment, privileges and labels are printed only if listed; pg_restore prints the rest regardless of the list.
    listing = contents_list(programs, path, "--create")
    with use_list(listing, lambda entry: _OF_DATABASE.match(entry) is not None) as chosen:
        command = pg_restore(programs, path, "--create", "--no-tablespaces", chosen, "--file=-")
        code, output, stderr = capture(command, watch=watch(programs))
    # If the database's name contains a line feed, pg_restore stops where psql would connect, and has printed
    # everything but the database's settings.
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
    """Convert a file's text to UTF-8, which our sessions use for names; unchanged if it cannot be converted.

    Args:
        encoding: PostgreSQL's name of the file's encoding.
    """
    if encoding in ("UTF8", "SQL_ASCII"):
        return text
    try:
        return text.decode(_CODECS.get(encoding) or encoding.replace("WIN", "cp")).encode()
    except (LookupError, UnicodeError):
        return text


def session_options(script: bytes) -> str:
    """The source's database-level settings that affect how values are written, as ``PGOPTIONS``.

    Args:
        script: as :func:`database_text` prints it.
    """
    found = (_SETTING.fullmatch(statement.strip()) for statement in statements(script))
    return pg_options({decode_text(match[1]): decode_text(match[2]) for match in found if match})


def pg_restore(programs: Programs, path: Path, *options: str) -> tuple[str, ...]:
    """The command that reads an archive, confined so that it can read the archive and connect nowhere."""
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
    # --list exits with 0 and a warning if it cannot decompress the archive.
    if code != 0 or "does not support compression" in stderr:
        raise _failure(stderr, code, path)
    return output


def _sql(programs: Programs, path: Path, *arguments: str) -> bytes:
    return _whole(_run(programs, path, *arguments, "--file=-"), path)


def _whole(output: bytes, path: Path) -> bytes:
    """Return the SQL of an archive if it has the line that the program writes last."""
    if _COMPLETE not in output[-1024:]:
        raise ProgramError(
            f"the SQL of archive {path.name} is incomplete",
            why="pg_restore ended with code 0, but the line that it writes last is missing",
            fix="see what it prints: pg_restore --schema-only --file=-; reinstall the client programs",
        )
    return output


def _failure(stderr: str, code: int, path: Path) -> BackupError:
    error = diagnose(stderr, what=f"archive {path.name} cannot be read", exit_code=code)
    # There is a verdict only if pg_restore itself read the file and gave up on it. Any other failure (a missing
    # library, failing memory or disk, a kill) says nothing about the archive, and a false "bad" could in the end
    # delete a good one.
    gave_up = code == 1 and re.search(r"^pg_restore: error: ", stderr, re.MULTILINE)
    if not gave_up or _SURROUNDINGS.search(stderr) or type(error) is not ProgramError:
        return error
    cause = next((cause for pattern, cause in _DAMAGES if re.search(pattern, stderr)), "")
    return ArchiveDamagedError(
        f"archive {path.name} is damaged", why=cause, said=error.said, fix="use another backup: ovia-backup list"
    )


def _family(programs: Programs, path: Path) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Partition -> parent, and child -> its parents by inheritance.

    Only the tables' own entries are read: a function's body may contain text that looks like theirs.
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

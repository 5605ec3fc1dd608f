"""The manifest, ``<file>.json``: the immutable sidecar with the facts that were known when the dump was made.

It is written once, before the dump gets its final name. Later findings belong to a ``verdict``. The manifest names no
file and no tier, so that hard links in several tiers share it. It holds no secret.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ovia_backup_dagster.core.errors import VolumeError


class Sidecar(BaseModel):
    """Base of all sidecars: immutable in memory.

    Unknown fields are ignored, so that an older program can read a newer program's sidecar after a downgrade. A format
    that an older program cannot read at all has another ``version``.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    def to_json(self) -> str:
        """The text that is written to disk, with a final newline."""
        return self.model_dump_json(indent=1) + "\n"


class DatabaseFacts(Sidecar):
    """The source database and server, as they were at the start of the dump.

    Attributes:
        server_version: as ``SHOW server_version`` prints it.
        server_version_num: as ``SHOW server_version_num``, e.g. 160015.
        system_identifier: identifies the cluster, whatever its host is called (``pg_control_system()``); ``None`` if
            the role may not read it.
        bootstrap_superuser: the role with OID 10, whose name a copy's ``initdb -U`` must use.
        settings: ``ALTER DATABASE/ROLE … SET`` of this database: role name ("" for all) -> ``name=value`` lines.
            Values that are not known to be harmless are left out: people store secrets in custom settings.
        effective: settings that values may depend on -> the value that the dumping role had, wherever it was set;
            empty in manifests of older programs.
        extensions: name -> installed version.
        size_bytes: ``pg_database_size``, bytes on the server's disk; ``None`` if the role may not read it.
        collation_versions: collation in use -> version of the C library or ICU that it sorts by; ``default`` is the
            database's own collation. C and POSIX have no version.
    """

    name: str
    server_version: str
    server_version_num: int
    system_identifier: str | None
    bootstrap_superuser: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    locale_provider: str
    settings: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    effective: dict[str, str] = Field(default_factory=dict)
    extensions: dict[str, str] = Field(default_factory=dict)
    size_bytes: int | None = None
    collation_versions: dict[str, str] = Field(default_factory=dict)


class FileFacts(Sidecar):
    """A file of the backup beside the archive, as it was written.

    Attributes:
        sha256: hex digest.
        size_bytes: its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int

    @classmethod
    def of(cls, content: bytes) -> FileFacts:
        """The facts of a file with this content."""
        return cls(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))

    def difference(self, content: bytes | None) -> str:
        """How the content differs from these facts, in words; empty if it does not. ``None`` means a missing file."""
        if content is None:
            return "is missing"
        found = FileFacts.of(content)
        if found.size_bytes != self.size_bytes:
            return f"is {found.size_bytes:,} bytes long; it was {self.size_bytes:,} when it was written"
        if found.sha256 != self.sha256:
            return f"was altered: its SHA-256 is {found.sha256[:16]}…, it was {self.sha256[:16]}… when it was written"
        return ""


#: A hash of rows or values, independent of their order: see ``postgres.computed_values``.
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ComputedTable(Sidecar):
    """The stored generated columns of a table, which no dump holds.

    Attributes:
        rows: how many.
        key: the primary key's columns, with which each value is hashed; without a primary key, the value's inputs.
        columns: generated column -> hash.
    """

    rows: int
    key: tuple[str, ...] = ()
    columns: dict[str, _Hash]


class ComputedView(Sidecar):
    """A materialized view's rows, which no dump holds; an unpopulated view has none.

    Attributes:
        rows: how many.
        hash: the hash of all rows; ``None`` if the view is not populated.
    """

    rows: int = 0
    hash: _Hash | None = None


class Computed(Sidecar):
    """The values that a restore computes again, as they were in the dump's snapshot.

    Attributes:
        tables: tables with stored generated columns; a partitioned table with all its partitions.
        views: the materialized views.
        left_out: table or view -> why it was not hashed.
        why: why nothing could be hashed; empty if hashing was possible.
        read_bytes: how many bytes were read for the hashes.
        seconds: how long that took.
    """

    tables: dict[str, ComputedTable] = Field(default_factory=dict)
    views: dict[str, ComputedView] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    why: str = ""
    read_bytes: int = 0
    seconds: float = 0.0


class WalPoint(Sidecar):
    """The commit that a dump's snapshot ends with: a cluster that is recovered to it has the same rows as the dump.

    Attributes:
        system_identifier: the cluster's.
        timeline, lsn, xid: of the commit record; ``lsn`` is empty if no commit is exactly the snapshot's last.
        committed_at: when it was committed (UTC, by the source's clock).
        why: why there is none; empty if there is one.
    """

    system_identifier: str = ""
    timeline: int = 0
    lsn: str = ""
    xid: int = 0
    committed_at: AwareDatetime | None = None
    why: str = ""


class RecoveredTo(Sidecar):
    """The commit that a cluster was recovered to before it was dumped.

    Attributes:
        wanted: the target as a person gave it, such as ``5 minutes ago``.
        base: the base backup that was recovered.
        timeline, lsn: of the last commit that the cluster has.
        committed_at: when that was committed (UTC, by the source's clock).
    """

    wanted: str
    base: str
    timeline: int
    lsn: str
    committed_at: AwareDatetime


class Manifest(Sidecar):
    """One dump.

    Attributes:
        started_at: when the operation began (UTC); of a recovered database, the time of its last commit. The instant in
            the file's name.
        finished_at: when pg_dump had ended and the file was on disk (UTC).
        seconds: how long that took, by a monotonic clock.
        size_bytes: the archive's length in bytes.
        sha256: hex digest of the archive, as it was written.
        compression: in pg_dump's own spelling, e.g. ``zstd:3``.
        options: pg_dump's arguments, without the file.
        session_options: the ``PGOPTIONS`` that the dump ran with; a re-dump needs the same.
        client_version: the output of ``pg_dump --version``.
        warnings: pg_dump's and pg_dumpall's messages at exit 0, and the lines of ``undumped``.
        undumped: a line for each table of an extension with rows that pg_dump does not save.
        globals_included: whether the roles were saved.
        files: suffix -> facts of each other file that was made with the archive; empty in manifests of older programs.
        computed: hashes of the source's generated columns and materialized views; ``None`` in manifests of older
            programs.
        wal_point: the commit that its snapshot ends with; ``None`` without point-in-time recovery.
        recovered_to: where the dumped database comes from, if it was recovered; ``None`` for the live database.
        run_id: Dagster's run id; ``None`` from the command line.
        made_by: name and version of this program.
    """

    version: Literal[1] = 1
    database: DatabaseFacts
    started_at: AwareDatetime
    finished_at: AwareDatetime
    seconds: float
    size_bytes: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    compression: str
    options: tuple[str, ...]
    session_options: str
    client_version: str
    warnings: tuple[str, ...] = ()
    undumped: tuple[str, ...] = ()
    globals_included: bool = True
    files: dict[Annotated[str, Field(pattern=r"^(\.[a-z]+)+$")], FileFacts] = Field(default_factory=dict)
    computed: Computed | None = None
    wal_point: WalPoint | None = None
    recovered_to: RecoveredTo | None = None
    run_id: str | None = None
    made_by: str


S = TypeVar("S", bound=Sidecar)

#: Lists, objects and commas take much more memory than their one byte. A witness of 100,000 tables has half as many.
_MOST_VALUES = 8_000_000
#: A float written by Python has fewer digits; the largest one written out has 309.
_LONGEST_FLOAT = 400


def parse_sidecar(model: type[S], text: str | bytes, filename: str) -> S:
    """Parse a sidecar's text.

    Raises:
        VolumeError: the text does not have the form that this version writes.
    """
    try:
        content = text.encode() if isinstance(text, str) else text
        _refuse_forged(content)
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
        cause: Exception = error
    except RecursionError as error:
        why, cause = "its JSON is nested too deep", error
    except ValueError as error:
        why, cause = f"it is not JSON that this program writes: {error}", error
    raise VolumeError(
        f"sidecar {filename} cannot be read",
        why=why,
        fix="if a newer ovia-backup wrote it, use that one; else the file is damaged: verify the backup again",
    ) from cause


def is_newer(content: bytes) -> bool:
    """Whether an unreadable sidecar states that a newer program wrote it, so that a newer program can read it."""
    try:
        _refuse_forged(content)
        found = json.loads(content)
    except (ValueError, RecursionError):
        return False
    version = found.get("version") if isinstance(found, dict) else None
    return type(version) is int and version > 1


def _refuse_forged(content: bytes) -> None:
    """Refuse JSON that two parsers may read differently, or that would take unlimited memory or time.

    Python itself limits the depth and the length of integers.

    Raises:
        ValueError, RecursionError: the content is not JSON, or is refused.
    """
    if sum(content.count(sign) for sign in (b"[", b"{", b",")) > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
    json.loads(content.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _finite(number: str) -> float:
    value = float(number) if len(number) <= _LONGEST_FLOAT else math.inf
    if not math.isfinite(value):
        raise ValueError("it holds a number that is not finite")
    return value

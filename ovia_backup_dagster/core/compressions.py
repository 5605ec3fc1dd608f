"""The compressions of an archive: names, the majors of pg_dump and pg_restore that support them, and pg_dump's options.

A compression is one line of the table. Whether a build of the programs supports one is asked of the programs
(``postgres.programs``); :func:`is_compression` validates a setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The first major whose pg_dump accepts a compression by name, and whose archives (1.15) have a byte for it.
NAMED_SINCE = 16


@dataclass(frozen=True, slots=True)
class Compression:
    """One compression.

    Attributes:
        name: as pg_dump spells it.
        since: the first major whose pg_dump writes it, and whose pg_restore reads it.
        header_byte: the byte in the header of archives of version 1.15 or later.
        automatic: the spelling that ``auto`` chooses; empty if ``auto`` never chooses this compression.
    """

    name: str
    since: int
    header_byte: int
    automatic: str = ""


#: ``auto`` chooses the first that both programs support. Measured (docs/performance.md): zstd:2 needs half of zstd:3's
#: processor time for a file of the same size, and gzip:1 less than half of gzip's for a file nine per cent larger.
COMPRESSIONS = (
    Compression("zstd", since=16, header_byte=3, automatic="zstd:2"),
    Compression("gzip", since=13, header_byte=1, automatic="gzip:1"),
    Compression("lz4", since=16, header_byte=2),
    Compression("none", since=13, header_byte=0),
)
AUTOMATIC = tuple(compression.automatic for compression in COMPRESSIONS if compression.automatic)
_BY_NAME = {compression.name: compression for compression in COMPRESSIONS}
_NAMES = "|".join(compression.name for compression in COMPRESSIONS if compression.name != "none")
#: A bare level, as in pg_dump 15 and older, is a level of gzip.
_SPELLING = re.compile(rf"none|[0-9]|({_NAMES})(:[a-z0-9=,]+)?")
_LEVEL = re.compile(r"(?:level=)?([0-9])")
#: zlib's default, which pg_dump uses if no level is named.
_GZIP_LEVEL = "6"


def is_compression(text: str) -> bool:
    """Whether a text is ``auto``, or a spelling that pg_dump 16 accepts, such as ``zstd:3`` or ``gzip:1``."""
    return text == "auto" or _SPELLING.fullmatch(text) is not None


def compression_of(spelling: str) -> Compression:
    """The compression that a spelling names: zstd for ``zstd:3``, gzip for ``6``, none for ``0``."""
    name = spelling.partition(":")[0]
    if name.isdigit():
        name = "none" if name == "0" else "gzip"
    return _BY_NAME[name]


def spelled_for(major: int, spelling: str) -> str:
    """The value of ``--compress`` for a major of pg_dump: up to 15, the bare level.

    Raises:
        ValueError: this major does not support this compression, or a detail of its spelling.
    """
    compression = compression_of(spelling)
    if major < compression.since:
        raise ValueError(f"pg_dump {major} has no {compression.name}: PostgreSQL {compression.since} is the first")
    if major >= NAMED_SINCE or spelling.isdigit():
        return spelling
    if compression.name == "none":
        return "0"
    detail = spelling.partition(":")[2] or _GZIP_LEVEL
    level = _LEVEL.fullmatch(detail)
    if level is None:
        raise ValueError(f"pg_dump {major} takes a level of gzip alone, and not {detail!r}")
    return level[1]

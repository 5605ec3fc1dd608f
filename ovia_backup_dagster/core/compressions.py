"""The compressions of an archive: names, the majors of pg_dump and pg_restore that support them, and pg_dump's options.

A compression is one line of the table. Whether a build of the programs supports one is asked of the programs
(``postgres.programs``); :func:`is_compression` validates a setting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The first major whose pg_dump takes a compression by its name, and whose archives (1.15) have a byte for it.
NAMED_SINCE = 16


@dataclass(frozen=True, slots=True)
class Compression:
    """One compression.

    Attributes:
        name: pg_dump's.
        since: the first major whose pg_dump writes it, and whose pg_restore reads it.
        header_byte: by what an archive of version 1.15 or later says that it is compressed so.
        automatic: what ``auto`` becomes where it is possible; empty for what ``auto`` never takes.
    """

    name: str
    since: int
    header_byte: int
    automatic: str = ""


#: ``auto`` takes the first that is possible. Measured (docs/performance.md): zstd:2 takes half of zstd:3's processor
#: time for as small a file, and gzip:1 less than half of gzip's at nine per cent more.
COMPRESSIONS = (
    Compression("zstd", since=16, header_byte=3, automatic="zstd:2"),
    Compression("gzip", since=13, header_byte=1, automatic="gzip:1"),
    Compression("lz4", since=16, header_byte=2),
    Compression("none", since=13, header_byte=0),
)
AUTOMATIC = tuple(compression.automatic for compression in COMPRESSIONS if compression.automatic)
_BY_NAME = {compression.name: compression for compression in COMPRESSIONS}
_NAMES = "|".join(compression.name for compression in COMPRESSIONS if compression.name != "none")
#: A level alone, as pg_dump 15 and older know it, is one of gzip.
_SPELLING = re.compile(rf"none|[0-9]|({_NAMES})(:[a-z0-9=,]+)?")
_LEVEL = re.compile(r"(?:level=)?([0-9])")
#: zlib's own, which pg_dump takes where no level is named.
_GZIP_LEVEL = "6"


def is_compression(text: str) -> bool:
    """Whether a text is ``auto``, or spelled as pg_dump 16 takes it, such as ``zstd:3`` or ``gzip:1``."""
    return text == "auto" or _SPELLING.fullmatch(text) is not None


def compression_of(spelling: str) -> Compression:
    """Which one a spelling is of: ``zstd:3`` is of zstd, ``6`` of gzip, ``0`` none."""
    name = spelling.partition(":")[0]
    if name.isdigit():
        name = "none" if name == "0" else "gzip"
    return _BY_NAME[name]


def spelled_for(major: int, spelling: str) -> str:
    """How a major of pg_dump takes it as ``--compress``: up to 15 by the level alone.

    Raises:
        ValueError: that major has no such compression, or no such detail of it.
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

"""(e): verification's pass beside the least that it could do: decode all, and hash what was decoded."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.measure import Json, alternate, ratio, run, seconds, summary, target
from benchmarks.world import BIN, World, libpq
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.postgres.archive import read_archive
from ovia_backup_dagster.postgres.programs import Programs

_CHUNK_BYTES = 1024 * 1024


def measure(world: World, megabytes: int) -> Json:
    """Alternating passes over one archive."""
    database, programs = world.database(megabytes), Programs(BIN)
    environment, compression = libpq(database), programs.choose_compression("auto")
    archive, text = world.path("archive"), world.path("text")
    run((BIN / "pg_dump", "--format=custom", f"--compress={compression}", f"--file={archive}"), environment)
    run((BIN / "pg_restore", "--file=-", archive), environment, text)
    read_archive(programs, archive)
    samples = alternate(
        {
            "read_archive": lambda: seconds(lambda: read_archive(programs, archive)),
            "decode": lambda: run((BIN / "pg_restore", "--file=/dev/null", archive), environment),
            "hash_text": lambda: seconds(lambda: _hash(text)),
            "hash_archive": lambda: seconds(lambda: file_sha256(archive)),
        }
    )
    least = [decode + hashed for decode, hashed in zip(samples["decode"], samples["hash_text"], strict=True)]
    times = ratio(samples["read_archive"], least)
    found = {
        "database_bytes": world.size_bytes(database),
        "archive_bytes": archive.stat().st_size,
        "decoded_bytes": text.stat().st_size,
        "seconds": {name: summary(taken) for name, taken in samples.items()},
        "ratios": {"e": times},
        "targets": [target("e", "verification's pass / (decode + SHA-256 of the text)", times["median"], 1.8)],
    }
    archive.unlink()
    text.unlink()
    return found


def _hash(path: Path) -> None:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)

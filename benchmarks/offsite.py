"""(q-t): copies on an S3 server on loopback: sending, a day with nothing to send, and bringing a backup back."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.measure import ROUNDS, Json, alternate, peaks, ratio, run, say, seconds, summary, target
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.remote_address import RemoteAddress
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.offsite.copying import Copier
from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.offsite.layout import SIGNATURE, STATEMENTS, file_path, receipt_path
from ovia_backup_dagster.offsite.rclone import Remote
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.offsite.receipt import CopiedFile, Receipt
from ovia_backup_dagster.offsite.remote_log import RemoteLog
from ovia_backup_dagster.offsite.transfer import PlainFile, fetch, send
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.statement import SignedFile
from ovia_backup_dagster.signing.statement_log import StatementLog

if TYPE_CHECKING:
    from benchmarks.world import World

_DATABASE, _BUCKET, _PLACE = "ovia", "bucket", "s3:bucket/ovia"
#: Statements and backups of the day with nothing to send: together some 5,000 objects.
_STATEMENTS, _COPIES = 2100, 160
_POLICY = Policy({Tier.DAILY: 3650, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))


def measure(world: World, megabytes: int) -> Json:
    """A file of that size, which does not compress, as an archive's."""
    folder = world.path("offsite")
    folder.mkdir()
    source, age = _random_file(folder / "archive", megabytes * 1_000_000), _new_age(folder)
    with _s3(folder) as config:
        remote = Remote(RemoteAddress("s3", _PLACE), Program(config))
        copied = (
            remote.program.path,
            "copyto",
            "--ignore-times",
            "--config",
            config,
            "--s3-no-check-bucket",
            source.path,
        )
        sides = {
            "sent": lambda: seconds(lambda: send(source, age, remote, "sent", log=_quiet)),
            "copyto": lambda: run((*copied, f"{_PLACE}/plain"), dict(os.environ)),
            "fetched": lambda: seconds(lambda: _back(remote, age, folder / "back", source)),
        }
        send(source, age, remote, "sent", log=_quiet)
        samples = alternate(sides, ROUNDS)
        command = (
            sys.executable,
            "-m",
            "benchmarks.send_file",
            source.path,
            source.sha256,
            age.recipients[0],
            config,
            _PLACE,
        )
        memory = peaks(command, dict(os.environ))
        idle, objects = _nothing_to_send(folder, remote)
    sent = ratio(samples["sent"], samples["copyto"])
    # An empty machine also lists, reads the log and verifies: those do not grow with the backup.
    whole = samples["fetched"][0] * 10_000 / megabytes / 60
    return {
        "megabytes": megabytes,
        "objects": objects,
        "seconds": {name: summary(taken) for name, taken in {**samples, "idle": idle}.items()},
        "ratio": sent,
        "peak_mb": memory,
        "targets": [
            target("q", "a file encrypted to S3 / plain `rclone copyto`", sent["median"], 1.3),
            target("r", "memory of sending: ours", memory["self"], 40.0, "MB"),
            target("r", "memory of sending: ours, rclone and age", sum(memory.values()), 140.0, "MB"),
            target("s", f"a day with nothing to send, {objects:,} objects", summary(idle)["median"], 3.0, "s"),
            target("t", "fetching and decrypting 10 GB, extrapolated", whole, 15.0, "min"),
        ],
    }


def _nothing_to_send(folder: Path, remote: Remote) -> tuple[list[float], int]:
    """The seconds of a copying run for which everything is there, and the number of objects."""
    say("filling a remote")
    root, key = folder / "volume", Ed25519PrivateKey.generate()
    log = StatementLog(root, _DATABASE, key.public_key(), key)
    catalog = Catalog(root, _DATABASE, ledger=log)
    catalog.prepare()
    there, began = folder / "s3" / _BUCKET / "idle", datetime.now(UTC) - timedelta(days=_COPIES)
    idle = replace(remote, address=RemoteAddress("idle", f"s3:{_BUCKET}/idle"))
    marker = RemoteLog(idle, log).initialize(datetime.now(UTC))
    for number in range(_STATEMENTS):
        at = (began + timedelta(days=number % _COPIES)).replace(microsecond=0)
        name = BackupName(_DATABASE, Tier.DAILY, at).filename
        log.published(name, number, hashlib.sha256(name.encode()).hexdigest(), {".json": name.encode()})
    shutil.copytree(log.path, there / STATEMENTS, ignore=shutil.ignore_patterns(".*"))
    for archive, known in log.chain().known.items():
        paths = {suffix: file_path(archive, suffix, file.sha256) for suffix, file in known.files.items()}
        files = {suffix: CopiedFile(path=path, size_bytes=1, sha256="0", md5="0") for suffix, path in paths.items()}
        receipt = Receipt(remote=marker.id, backup=archive, sequence=known.sequence, at=datetime.now(UTC), files=files)
        content, path = receipt.to_json().encode(), receipt_path(archive, known.sequence)
        objects = {path: content, path + SIGNATURE: log.sign(content), **dict.fromkeys(paths.values(), b"x")}
        for name, each in objects.items():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).write_bytes(each)

    def copy() -> float:
        statement_log._read.clear()
        return seconds(lambda: Copier(catalog, log, idle, Age(("age1",)), _POLICY).copy(datetime.now(UTC), _quiet))

    samples = alternate({"idle": copy}, ROUNDS)["idle"]
    return samples, len(idle.listing())


def _back(remote: Remote, age: Age, path: Path, source: PlainFile) -> None:
    path.unlink(missing_ok=True)
    fetch(remote, "sent", age, path, SignedFile(size_bytes=source.size_bytes, sha256=source.sha256), log=_quiet)


def _random_file(path: Path, size_bytes: int) -> PlainFile:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size_bytes // 1_000_000):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    return PlainFile(path, size_bytes, digest.hexdigest())


def _new_age(folder: Path) -> Age:
    identity = folder / "identity.txt"
    subprocess.run(("age-keygen", "-o", identity), check=True, capture_output=True)
    return Age((identity.read_text("utf-8").partition("public key: ")[2].split()[0],), identity)


@contextmanager
def _s3(folder: Path) -> Iterator[Path]:
    """An S3 server of rclone on a folder; yields rclone's configuration for it."""
    (folder / "s3" / _BUCKET).mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "rclone.conf"
    lines = ["[s3]", "type = s3", "provider = Rclone", "access_key_id = benchmark", "secret_access_key = secret-of-it"]
    config.write_text("\n".join([*lines, f"endpoint = http://127.0.0.1:{port}", "force_path_style = true", ""]))
    command = (
        Program().path,
        "serve",
        "s3",
        str(folder / "s3"),
        "--auth-key",
        "benchmark,secret-of-it",
        "--addr",
        f"127.0.0.1:{port}",
    )
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield config
        finally:
            server.terminate()


def _quiet(_: str) -> None:
    """Log nothing."""

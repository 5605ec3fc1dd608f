"""Whatever alters a base backup is seen, and named; a good one is never condemned."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard

from ovia_backup_dagster.core.errors import LockHeldError, VolumeError
from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.locking import removing
from ovia_backup_dagster.core.manifest import FileFacts
from ovia_backup_dagster.core.pitr_errors import BaseBackupError
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.base_manifest import BaseManifest, read_base_manifest, sealed
from ovia_backup_dagster.pitr.base_verification import verify_base
from ovia_backup_dagster.pitr.bases import read_base, read_bases
from ovia_backup_dagster.pitr.postgres_manifest import parse_postgres_manifest
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.faults.conftest import rounds
from ovia_backup_dagster_tests.pitr.ground import ground_on
from ovia_backup_dagster_tests.support.factories import NOW

#: A name that is not UTF-8: PostgreSQL's manifest then has it in hexadecimal.
STRANGE_NAME = b"base/\xff\xfe name"
KINDS = {"zstd": "server-zstd:1", "gzip": "client-gzip:1", "none": "none"}


@dataclass(frozen=True)
class Specimen:
    """A copy of a base backup, to be altered."""

    archive: ClusterArchive
    folder: Path

    def path(self, beginning: str) -> Path:
        """The file whose name begins so."""
        return next(path for path in self.folder.iterdir() if path.name.startswith(beginning))

    def verify(self) -> None:
        verify_base(self.archive, self.folder, now=NOW, log=quiet)

    def findings(self) -> str:
        """Why it is bad; the error and the verdict say the same."""
        with pytest.raises(BaseBackupError) as caught:
            self.verify()
        assert f"base backup {self.folder.name}" in caught.value.what
        verdict = json.loads((self.folder / "verified.json").read_bytes())
        assert verdict["verdict"] == "bad"
        assert verdict["findings"][0] in str(caught.value)
        return "; ".join(verdict["findings"])

    def seal(self, **changes: Any) -> None:
        """Write base.json again, for the files as they are now: only what is in them is left to tell."""
        manifest = read_base_manifest(self.folder)[0]
        names = sorted(path.name for path in self.folder.iterdir() if not path.name.endswith(".json"))
        files = {
            name: FileFacts(sha256=file_sha256(self.folder / name), size_bytes=(self.folder / name).stat().st_size)
            for name in names
        }
        (self.folder / "base.json").write_bytes(sealed(manifest.model_copy(update={"files": files, **changes})))


@pytest.fixture(scope="module")
def made(full_bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Specimen]:
    """Base backups of a server that has a tablespace and a file with a strange name."""
    volume = tmp_path_factory.mktemp("made")
    found = {}
    with ground_on(full_bin_dir) as ground:
        cluster = ground.cluster
        place = cluster.folder / "space"
        place.mkdir()
        strange = Path(os.fsdecode(os.fsencode(cluster.data) + b"/" + STRANGE_NAME))
        strange.write_text("a file of an administrator")
        for path in (place, strange):
            os.chown(path, cluster.data.stat().st_uid, cluster.data.stat().st_gid)
        ground.execute(
            f"CREATE TABLESPACE side LOCATION '{place}'",
            "CREATE TABLE t TABLESPACE side AS SELECT generate_series(1, 9)",
        )
        for kind, compression in KINDS.items():
            base = ground.base_backup(volume, compressions=(compression,))
            assert base.manifest.compression == compression
            found[kind] = Specimen(ground.archive(volume), base.folder)
    return found


def copied(specimen: Specimen, volume: Path) -> Specimen:
    archive = ClusterArchive(volume, specimen.archive.system_identifier)
    archive.create(specimen.archive.facts)
    folder = archive.base / specimen.folder.name
    shutil.copytree(specimen.folder, folder)
    (folder / "verified.json").unlink()
    return Specimen(archive, folder)


@pytest.fixture
def specimen(made: dict[str, Specimen], tmp_path: Path) -> Specimen:
    return copied(made["zstd"], tmp_path / "volume")


# -------------------------------------------------------------------------------------------------------------- good


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_base_backup_is_good(kind: str, made: dict[str, Specimen], tmp_path: Path) -> None:
    specimen = copied(made[kind], tmp_path / "volume")
    manifest = parse_postgres_manifest(specimen.path("backup_manifest").read_bytes())

    verdict = verify_base(specimen.archive, specimen.folder, now=NOW, log=quiet, run_id="run")

    assert (verdict.verdict, verdict.findings, verdict.checked_at, verdict.run_id) == ("good", (), NOW, "run")
    assert (verdict.files, verdict.bytes) == (len(manifest.files), manifest.data_bytes)
    base = read_base(specimen.folder)
    assert (base.verified, base.verified_at, base.drilled) == (True, NOW, False)


def test_the_specimen_has_what_is_special(made: dict[str, Specimen]) -> None:
    content = made["zstd"].path("backup_manifest").read_bytes()

    assert b'"Encoded-Path": "' in content
    assert STRANGE_NAME in parse_postgres_manifest(content).files
    assert any(path.startswith(b"pg_tblspc/") for path in parse_postgres_manifest(content).files)


def test_postgresqls_own_program_agrees(made: dict[str, Specimen], full_bin_dir: Path, tmp_path: Path) -> None:
    """It reads no tar file, so the backup is unpacked for it."""
    for path in sorted(made["none"].folder.glob("*.tar"), reverse=True):
        into = tmp_path / "data" / ("" if path.name == "base.tar" else f"pg_tblspc/{path.stem}")
        into.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-xf", str(path), "-C", str(into)], check=True)
    shutil.copy(made["none"].path("backup_manifest"), tmp_path / "data")
    command = [str(full_bin_dir / "pg_verifybackup"), "--no-parse-wal", str(tmp_path / "data")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# ------------------------------------------------------------------------------------------------------------- flips


@rounds(few=20, many=400)
def test_every_flipped_bit_is_seen(times: int, made: dict[str, Specimen], tmp_path: Path, rng: Random) -> None:
    specimen = copied(made["zstd"], tmp_path / "volume")
    archives = [copied(made["gzip"], tmp_path / "other"), specimen, specimen, specimen]
    seen = 0
    for number in range(times):
        specimen = archives[number % len(archives)]
        # Of five flips, one each in the two small files.
        name = {0: "base.json", 1: "backup_manifest"}.get(number % 5, "base.tar")
        path = specimen.path(name)
        at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        with flipped(path, at, bit):
            found = specimen.findings()
            assert path.name in found, (path.name, at, bit, found)
            assert not read_bases(specimen.archive).complete or not read_base(specimen.folder).verified
            seen += 1
    assert seen == times
    for specimen in archives:
        specimen.verify()


@rounds(few=8, many=400)
def test_the_servers_own_checksums_see_every_flip(
    times: int, made: dict[str, Specimen], tmp_path: Path, rng: Random
) -> None:
    """Even if base.json was written for the damaged files: what the server sent is still known."""
    specimen = copied(made["none"], tmp_path / "volume")
    plain = specimen.path("base.tar")
    with tarfile.open(plain) as tar:
        contents = [(member.offset_data, member.size) for member in tar.getmembers() if member.size]
    for _ in range(times):
        start, size = rng.choice(contents)
        with flipped(plain, rng.randrange(start, start + size), rng.randrange(8)):
            specimen.seal()
            assert "is not what the server sent" in specimen.findings()
    specimen.seal()
    specimen.verify()


def test_each_layer_sees_what_no_other_one_does(made: dict[str, Specimen], tmp_path: Path) -> None:
    specimen = copied(made["gzip"], tmp_path / "volume")
    # The time in gzip's header: the content stays the same.
    with flipped(specimen.path("base.tar"), 4, 0):
        assert specimen.findings() == (
            "base.tar.gz was altered: it does not have the SHA-256 that it had when it was written"
        )
    # The time of a file in PostgreSQL's manifest, and base.json is written for it.
    manifest = specimen.path("backup_manifest")
    with flipped(manifest, manifest.read_bytes().index(b'"Last-Modified": "2') + 20, 0):
        specimen.seal()
        assert "backup_manifest cannot be used: it does not match the checksum at its end" in specimen.findings()
    # When the backup ended.
    specimen.seal()
    base = specimen.folder / "base.json"
    with flipped(base, base.read_bytes().index(b'"finished_at": "2') + 18, 0):
        assert "base.json was altered" in specimen.findings()
    specimen.verify()


class flipped:  # noqa: N801 - used like a function
    """While the block runs, one bit of a file is another one."""

    def __init__(self, path: Path, at: int, bit: int) -> None:
        self._path, self._at, self._bit = path, at, bit

    def __enter__(self) -> None:
        self._flip()

    def __exit__(self, *_: object) -> None:
        self._flip()

    def _flip(self) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._at)
            byte = file.read(1)[0]
            file.seek(self._at)
            file.write(bytes([byte ^ 1 << self._bit]))


# --------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [0.0, 0.6, -1])
@pytest.mark.parametrize("resealed", [False, True])
def test_a_truncated_tar_is_named(
    kind: str, left: float, resealed: bool, made: dict[str, Specimen], tmp_path: Path
) -> None:
    specimen = copied(made[kind], tmp_path / "volume")
    path = specimen.path("base.tar")
    size = path.stat().st_size
    # The last 1,024 bytes of a tar file are zeros.
    os.truncate(path, int(size * left) if left >= 0 else size - (1 if kind != "none" else 8192))
    if resealed:
        specimen.seal()

    found = specimen.findings()

    assert path.name in found
    assert "cannot be read to its end" in found or not resealed
    assert "is in backup_manifest, but" not in found, "what was not reached is not missing"


@pytest.mark.parametrize("name", ["base.tar", "backup_manifest", "1"])
def test_a_missing_file_is_named(name: str, specimen: Specimen) -> None:
    path = specimen.path(name)
    path.unlink()

    assert f"{path.name} is missing" in specimen.findings()


def test_a_tablespace_that_is_forgotten_is_missed(specimen: Specimen) -> None:
    specimen.path("1").unlink()
    specimen.seal()

    assert re.search(r"pg_tblspc/\d+/PG_16_\d+/\d+/\d+ is in backup_manifest, but in no tar", specimen.findings())


def test_without_base_json_it_is_incomplete(specimen: Specimen) -> None:
    (specimen.folder / "base.json").unlink()

    with pytest.raises(BaseBackupError, match="is incomplete"):
        specimen.verify()
    assert [(each.folder, each.why) for each in read_bases(specimen.archive).incomplete] == [
        (specimen.folder, "it has no base.json")
    ]


# --------------------------------------------------------------------------------------------------- what is smuggled


def smuggled(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(content), kind, "/etc/passwd"
        tar.addfile(info, io.BytesIO(content))

    return add


@pytest.mark.parametrize(
    ("add", "found"),
    [
        (smuggled("base/5/99999", b"evil"), "base/5/99999 is not in backup_manifest"),
        (smuggled("backup_label", b"START WAL LOCATION: 0/1"), "backup_label is in it twice"),
        (smuggled("recovery.signal"), "recovery.signal is not in backup_manifest"),
        (
            smuggled("pg_wal/000000010000000000000001", b"WAL"),
            "pg_wal/000000010000000000000001 is not in backup_manifest",
        ),
        (smuggled("base/5/1", kind=tarfile.SYMTYPE), "base/5/1 is neither a file nor a folder"),
        (smuggled("../evil", b"evil"), "../evil leads out of the data directory"),
    ],
)
def test_what_was_added_to_a_tar_is_named(
    add: Callable[[tarfile.TarFile], None], found: str, made: dict[str, Specimen], tmp_path: Path
) -> None:
    specimen = copied(made["none"], tmp_path / "volume")
    with tarfile.open(specimen.path("base.tar"), "a", format=tarfile.USTAR_FORMAT) as tar:
        add(tar)
    specimen.seal()

    assert f"base.tar: {found}" in specimen.findings().replace("base.tar cannot be read to its end", "base.tar")


@pytest.mark.parametrize("kind", ["zstd", "gzip"])
def test_what_follows_the_compressed_end_is_named(kind: str, made: dict[str, Specimen], tmp_path: Path) -> None:
    specimen = copied(made[kind], tmp_path / "volume")
    path = specimen.path("base.tar")
    more = b"a second tar file" * 100
    with path.open("ab") as file:
        file.write(gzip.compress(more) if kind == "gzip" else zstandard.compress(more))
    specimen.seal()

    assert f"{path.name} cannot be read to its end: there is data after its end" in specimen.findings()


def test_another_tar_in_the_folder_is_named(specimen: Specimen) -> None:
    (specimen.folder / "4711.tar").write_bytes(bytes(1024))

    assert "4711.tar does not belong to the backup" in specimen.findings()


# ------------------------------------------------------------------------------------------------ whose backup it is


def test_a_base_backup_of_another_cluster_is_bad(made: dict[str, Specimen], tmp_path: Path) -> None:
    specimen = copied(made["zstd"], tmp_path / "volume")
    other = ClusterArchive(tmp_path / "volume", "42")
    other.create(ClusterFacts(system_identifier="42", major=16))
    shutil.copytree(specimen.folder, other.base / specimen.folder.name)
    moved = Specimen(other, other.base / specimen.folder.name)

    assert f"base.json is of cluster {specimen.archive.system_identifier}" in moved.findings()
    moved.seal(system_identifier="42")
    assert "global/pg_control is not of cluster 42" in moved.findings()


@pytest.mark.parametrize(
    "changes",
    [{"start_lsn": "0/1"}, {"end_lsn": "F/1"}, {"timeline": 7}, {"data_bytes": 1}],
    ids=lambda c: next(iter(c)),
)
def test_two_manifests_of_two_backups_are_noticed(changes: dict[str, Any], specimen: Specimen) -> None:
    specimen.seal(**changes)

    assert "base.json and backup_manifest are not of one backup" in specimen.findings()


def test_a_label_that_begins_elsewhere_is_noticed(specimen: Specimen) -> None:
    """Both manifests agree with each other, but not with what recovery would read."""
    path = specimen.path("backup_manifest")
    rewritten(path, lambda text: re.sub(r'"Start-LSN": "[^"]*"', '"Start-LSN": "0/1000028"', text))
    specimen.seal(start_lsn="0/1000028")

    assert "backup_label does not begin at 0/1000028" in specimen.findings()


@pytest.mark.parametrize(
    ("pattern", "to", "found"),
    [
        (r'"Checksum-Algorithm": "SHA256"', '"Checksum-Algorithm": "CRC32C"', "has no SHA-256"),
        (r'"Size": 8192', '"Size": 8193', "has 8,192 bytes, and the server sent 8,193"),
        (r'("WAL-Ranges": \[\n(.*)\n)', r"\1,\2\n", "its WAL is of 2 timelines"),
        (r'"Files": \[\n(.*)\n', r'"Files": [\n\1\n\1\n', "is in it twice"),
        (r'"Files"', '"Fires"', "PostgreSQL does not write such a manifest"),
    ],
)
def test_a_rewritten_manifest_is_refused(pattern: str, to: str, found: str, specimen: Specimen) -> None:
    rewritten(specimen.path("backup_manifest"), lambda text: re.sub(pattern, to, text, count=1))
    manifest = read_base_manifest(specimen.folder)[0]
    specimen.seal(data_bytes=manifest.data_bytes + (1 if "8193" in to else 0))

    assert found in specimen.findings()


def rewritten(path: Path, change: Callable[[str], str]) -> None:
    """Change PostgreSQL's manifest, and give it the right checksum again."""
    text = path.read_text("utf-8").rpartition('"Manifest-Checksum"')[0]
    changed = change(text)
    assert changed != text
    path.write_text(f'{changed}"Manifest-Checksum": "{hashlib.sha256(changed.encode()).hexdigest()}"}}\n', "utf-8")


# ---------------------------------------------------------------------------------------------------------- verdicts


def test_a_verdict_vouches_for_no_other_backup(specimen: Specimen) -> None:
    specimen.verify()
    manifest: BaseManifest = read_base_manifest(specimen.folder)[0]

    specimen.seal(finished_at=datetime(2020, 1, 1, tzinfo=UTC))

    assert read_base(specimen.folder).verified is None
    specimen.seal(finished_at=manifest.finished_at)
    assert read_base(specimen.folder).verified is True


def test_a_bad_verdict_replaces_a_good_one(specimen: Specimen) -> None:
    specimen.verify()
    specimen.path("1").unlink()

    specimen.findings()

    assert read_base(specimen.folder).verified is False


def test_a_file_that_cannot_be_read_is_no_verdict(specimen: Specimen) -> None:
    """A link, a FIFO or a failing disk says nothing about the backup."""
    path = specimen.path("base.tar")
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")

    with pytest.raises(VolumeError, match="symbolic link"):
        specimen.verify()
    assert not (specimen.folder / "verified.json").exists()


def test_a_backup_is_not_verified_while_it_is_removed(specimen: Specimen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovia_backup_dagster.core.locking._REMOVAL_SECONDS", 0.1)
    with removing(specimen.folder / "base.json"), pytest.raises(LockHeldError):
        specimen.verify()

"""Sample databases that were not made for this project: those of PostgreSQL's own regression tests.

``python -m ovia_backup_dagster_tests.support.samples`` (``make test``) fetches them into ``.cache``: Debian's
source package, by ``apt-get``, with the version and hash in ``samples.lock``. They run unchanged, against the server's
next major: statements that fail are part of them, and the database that they leave behind is the sample.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ovia_backup_dagster.postgres.local_cluster import account_id
from ovia_backup_dagster.postgres.programs import Connection

REPOSITORY = Path(__file__).parents[2]
LOCK = REPOSITORY / "samples.lock"
SAMPLES = REPOSITORY / ".cache" / "samples"
_WANTED = re.compile(r"[^/]+/((?:src/test/regress|src/test/mb|contrib/\w+)/(?:(?:sql|data)/.+|parallel_schedule))")
#: These scripts leave nothing behind, and take seconds.
_LEAVE_NOTHING = """
    join_hash select_parallel write_parallel vacuum_parallel stats explain psql psql_crosstab opr_sanity type_sanity
    sanity_check oidjoins maintain_every regex memoize prepared_xacts infinite_recurse tuplesort collate.icu.utf8
    collate.linux.utf8 brin_bloom brin_multi incremental_sort partition_join partition_prune random
"""
_TIMEOUT_SECONDS = 120


def fetch() -> None:
    """Download the source package, check it, and unpack the parts that are used."""
    package, sha256 = (line for line in LOCK.read_text("utf-8").splitlines() if not line.startswith("#"))
    partial = SAMPLES.with_name("samples.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial", "sources"):
        (partial / folder).mkdir(parents=True)
    _write_sources(partial / "sources")
    places = {
        "Dir::Etc::SourceList": os.devnull,
        "Dir::Etc::SourceParts": str(partial / "sources"),
        "Dir::State::Lists": str(partial / "lists"),
        "Dir::Cache": str(partial / "cache"),
        "APT::Sandbox::User": "",
    }
    options = [f"--option={name}={value}" for name, value in places.items()]
    apt_get = ("apt-get", "--quiet=2", *options)
    subprocess.run((*apt_get, "update"), cwd=partial, check=True)
    download = (*apt_get, "source", "--download-only")
    if subprocess.run((*download, package), cwd=partial, check=False).returncode == 0:
        (tarball,) = partial.glob("*.orig.tar.bz2")
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if f"sha256:{found}" != sha256:
            sys.exit(f"{tarball.name} has SHA-256 {found}, samples.lock says {sha256}")
    else:
        # Debian keeps only the newest version; apt checks its signature.
        subprocess.run((*download, package.partition("=")[0]), cwd=partial, check=True)
        (tarball,) = partial.glob("*.orig.tar.bz2")
        print(f"{tarball.name} is newer than samples.lock")
    with tarfile.open(tarball) as archive:
        for member in archive:
            wanted = _WANTED.fullmatch(member.name)
            content = archive.extractfile(member) if wanted and member.isfile() else None
            if wanted and content:
                path = partial / "unpacked" / wanted[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
    shutil.rmtree(SAMPLES, ignore_errors=True)
    (partial / "unpacked").rename(SAMPLES)
    shutil.rmtree(partial)


def _write_sources(folder: Path) -> None:
    """Write this machine's package sources as sources of source packages."""
    etc = Path("/etc/apt")
    for path in (*etc.glob("sources.list.d/*.sources"), *etc.glob("sources.list.d/*.list"), etc / "sources.list"):
        if path.exists():
            text = re.sub(r"^Types:.*$", "Types: deb-src", path.read_text("utf-8"), flags=re.MULTILINE)
            text = re.sub(r"^deb(?:-src)?\s", "deb-src ", text, flags=re.MULTILINE)
            (folder / (path.name if path.suffix == ".sources" else f"{path.stem}.list")).write_text(text, "utf-8")


class Sample:
    """Runs sample scripts against a server.

    Args:
        connection: to the database to fill, as a superuser; the server runs on this machine.
        bin_dir: the folder with psql.
        source: the folder of the scripts, in ``SAMPLES``.
        folder: a folder for this sample alone, which the server may read.
    """

    def __init__(self, connection: Connection, bin_dir: Path, source: str, folder: Path) -> None:
        self.connection = connection
        self.bin_dir = bin_dir
        self.folder = folder / source.replace("/", "_")
        shutil.copytree(SAMPLES / source, self.folder)
        (self.folder / "results").mkdir()
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, account_id(), -1)

    def run(self, names: Iterable[str], variables: Mapping[str, str] | None = None) -> None:
        """Run scripts in order; statements that fail are ignored."""
        to = self.connection
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            **to.environment(),
            "PGTZ": "PST8PDT",
            "PGDATESTYLE": "Postgres, MDY",
            "PGOPTIONS": "-c intervalstyle=postgres_verbose",
            "PG_ABS_SRCDIR": str(self.folder),
            "PG_ABS_BUILDDIR": str(self.folder),
            "PG_LIBDIR": str(self.bin_dir.parent / "lib"),
            "PG_DLSUFFIX": ".so",
            **(variables or {}),
        }
        hidden = ("--set=HIDE_TABLEAM=on", "--set=HIDE_TOAST_COMPRESSION=on")
        for name in names:
            command = (str(self.bin_dir / "psql"), "--no-psqlrc", "--quiet", *hidden, f"--file=sql/{name}.sql")
            subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )

    @property
    def schedule(self) -> list[str]:
        """The scripts in their required order, without those that leave nothing behind."""
        lines = (self.folder / "parallel_schedule").read_text("utf-8").splitlines()
        names = [name for line in lines if line.startswith("test: ") for name in line.split()[1:]]
        return [name for name in names if name not in _LEAVE_NOTHING.split()]

    @property
    def scripts(self) -> list[str]:
        """All scripts, by name."""
        return sorted(path.stem for path in (self.folder / "sql").glob("*.sql"))


if __name__ == "__main__":
    fetch()

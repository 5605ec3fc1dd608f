"""Runs the rclone program on one remote, and turns its errors into ours. What is stored there belongs to ``copying``.

Facts about rclone 1.75, measured: a stream that ends early may appear as a whole object, so a failed upload ends rclone
before its input is closed; a silent peer outlasts rclone's own timeouts, so bytes are watched here; without
``--s3-no-check-bucket`` it creates a missing bucket; a single PUT is not retried, so every S3 upload is multipart.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from ovia_backup_dagster.core.errors import (
    BackupError,
    CopyDamagedError,
    RemoteError,
    RemoteForeignError,
    RemoteStalledError,
)
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.remote_address import RemoteAddress
from ovia_backup_dagster.core.shell import shell_word
from ovia_backup_dagster.offsite.rclone_errors import diagnosed
from ovia_backup_dagster.offsite.rclone_program import Program
from ovia_backup_dagster.postgres.programs import Child
from ovia_backup_dagster.postgres.watchdog import SessionProgress

#: The most that is read of a small object, in bytes. A log's statement about a dump of 10,000 tables has 1 kB.
SMALL_BYTES = 1024 * 1024
_NOT_FOUND = (3, 4)
_BLOCK = 1 << 20
#: What rclone adds to the name of an older version, before its suffix.
_VERSION = re.compile(r"-v\d{4}-\d\d-\d\d-\d{6}-\d{3}(?=(\.[^.]*)?$)")
#: A folder computes every hash that it is asked for; most stores have one.
_HASHES = ("--hash", "--hash-type", "md5", "--hash-type", "sha256")
_MULTIPART = ("--s3-upload-cutoff", "0", "--s3-upload-concurrency", "2", "--buffer-size", "0")


@dataclass(frozen=True, slots=True)
class Stored:
    """An object on a remote.

    Attributes:
        size_bytes: its length.
        hashes: name of the algorithm (``md5``, ``sha256``) -> hex digest, as far as the store has any.
        locked_until: until when the store refuses to delete it; ``None`` if it does not say so.
    """

    size_bytes: int
    hashes: Mapping[str, str] = field(default_factory=dict)
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RcloneCalls:
    """Single calls of rclone about one remote.

    Attributes:
        as_of: the instant (UTC) whose versions of the objects are read, on stores that keep versions.
    """

    address: RemoteAddress
    program: Program
    as_of: datetime | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return self.address.name

    def ask(self, arguments: Sequence[str]) -> tuple[int, bytes, str]:
        """Run rclone to its end; return its exit code, standard output and standard error.

        Raises:
            RemoteStalledError: nothing moved for a long time.
            ProgramMissingError: rclone is missing.
        """
        moved = [0]
        with self._run(arguments, "", moved) as child:
            assert child.process.stdout is not None
            output = _Counted(child.process.stdout, moved).read_all()
            code = child.wait()
        return code, output, child.stderr

    @contextlib.contextmanager
    def _run(self, arguments: Sequence[str], path: str, moved: list[int], *, feed: bool = False) -> Iterator[Child]:
        def silent(_: str, last: SessionProgress | None) -> BackupError:
            after = f" after {last.at}" if last else ""
            return RemoteStalledError(
                f"remote {self} has not answered for {self.program.stall_seconds:,.0f} s{after}",
                why=f"nothing moved at {self._place(path)}: its network, its disk or the store hangs",
                fix=self._try(),
            )

        # rclone reads its options from variables, too.
        variables = {"RCLONE_S3_VERSION_AT": f"{self.as_of:%Y-%m-%dT%H:%M:%SZ}"} if self.as_of else {}
        with self.program.run(
            arguments, silent=silent, moved=lambda: moved[0], feed=feed, variables=variables
        ) as child:
            yield child

    def _require_no_links(self, path: str) -> None:
        """Refuse to write through a link in a folder: the file would appear elsewhere on this host.

        Raises:
            RemoteForeignError: there is one.
        """
        if self.address.section is not None:
            return
        steps = path.split("/")
        for count in range(1, len(steps) + 1):
            place = self.address.at("/".join(steps[:count]))
            if os.path.islink(place):
                raise RemoteForeignError(
                    f"{place} is a symbolic link, and nothing is written to {self}",
                    why="the copy would be written to another place of this host",
                    fix=f"see who made it: ls -l {shell_word(place)}; then remove it",
                )

    @property
    def _stats(self) -> tuple[str, ...]:
        """The options that make rclone report its progress, so that one that moves is not taken for one that hangs."""
        return ("--stats", f"{min(10.0, self.program.stall_seconds / 5):.3f}s", "--stats-log-level", "NOTICE")

    def _require_bucket(self, stderr: str) -> None:
        if "NoSuchBucket" in stderr or "bucket does not exist" in stderr.lower():
            raise self._error(f"cannot use remote {self}", stderr, 3)

    def _place(self, path: str) -> str:
        return self.address.at(path)

    def _try(self) -> str:
        config = f" --config {shell_word(str(self.program.config))}" if self.program.config else ""
        return f"rclone lsf{config} {shell_word(self.address.target)}"

    def _error(self, what: str, stderr: str, code: int) -> BackupError:
        return diagnosed(what, stderr, code, remote=self.address.name, try_it=self._try())


@dataclass(frozen=True, slots=True)
class Remote(RcloneCalls):
    """One remote, through rclone.

    Attributes:
        lock_days: for how many days the store locks each new object; 0 for no lock.
    """

    lock_days: int = 0

    # ------------------------------------------------------------------------------------------------------ reading

    def listing(self, path: str = "", *, hashes: bool = False, locks: bool = False) -> dict[str, Stored]:
        """Every object below a path, completely or not at all.

        Args:
            hashes: ask for hashes; a store without them reads its objects.
            locks: ask for locks, which takes a request for each object.

        Returns:
            Path below the remote -> object; empty if the folder does not exist.

        Raises:
            RemoteError: it cannot be listed whole.
        """
        wanted = (*(_HASHES if hashes else ()), *(("--metadata",) if locks else ()))
        listed = ("lsjson", "--recursive", "--files-only", "--no-mimetype", "--no-modtime", *wanted)
        code, output, stderr = self.ask((*listed, self.address.at(path)))
        if code in _NOT_FOUND and b'"Path"' not in output:
            self._require_bucket(stderr)
            return {}
        if code:
            raise self._error(f"cannot list {self._place(path)}", stderr, code)
        try:
            entries = json.loads(output)
        except ValueError:
            why = "what rclone printed is cut off"
            raise RemoteError(f"cannot list {self._place(path)}", why=why, fix=self._try()) from None
        prefix = f"{path}/" if path else ""
        return {f"{prefix}{entry['Path']}": _stored(entry) for entry in entries}

    def read(self, path: str, limit: int = SMALL_BYTES) -> bytes | None:
        """The content of a small object; ``None`` if there is none.

        Raises:
            CopyDamagedError: it is larger than ``limit``.
            RemoteError: it cannot be read.
        """
        command = ("cat", "--count", str(limit + 1), self.address.at(path))
        moved = [0]
        with self._run(command, path, moved) as child:
            assert child.process.stdout is not None
            # Of a folder with this name, rclone prints so much of each file.
            output = _Counted(child.process.stdout, moved).read_all(limit + 1)
            if len(output) > limit:
                raise CopyDamagedError(
                    f"{self._place(path)} is larger than {human_bytes(limit)}",
                    why="it is not what was sent",
                    fix=f"ovia-backup offsite verify {self.address.name}",
                )
            code = child.wait()
        if code in _NOT_FOUND:
            self._require_bucket(child.stderr)
            return None
        if code:
            raise self._error(f"cannot read {self._place(path)}", child.stderr, code)
        # A store without folders, such as S3, has an empty folder of every name; no object of ours is empty.
        return output or None

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[IO[bytes]]:
        """An object's content as a stream. The block must read to its end: only then is the exit code judged.

        Raises:
            RemoteError: it is missing, or the transfer failed.
        """
        moved = [0]
        bandwidth = ("--bwlimit", self.program.bandwidth) if self.program.bandwidth else ()
        with self._run(("cat", *bandwidth, self.address.at(path)), path, moved) as child:
            assert child.process.stdout is not None
            yield _Counted(child.process.stdout, moved)  # type: ignore[misc]
            if code := child.wait():
                raise self._error(f"cannot read {self._place(path)}", child.stderr, code)

    def free_bytes(self) -> int | None:
        """The room that is left; ``None`` if the store does not say.

        Raises:
            RemoteError: the remote cannot be asked.
        """
        code, output, stderr = self.ask(("about", "--json", self.address.at("")))
        if code:
            if "doesn't support about" in stderr or "not support" in stderr:
                return None
            raise self._error(f"cannot ask {self} for its free space", stderr, code)
        found: dict[str, Any] = json.loads(output)
        free = found.get("free")
        return int(free) if free is not None else None

    # ------------------------------------------------------------------------------------------------------ writing

    @contextlib.contextmanager
    def writing(self, path: str, size_bytes: int, *, lock: bool = True) -> Iterator[IO[bytes]]:
        """A stream that becomes an object when the block ends; if the block raises, the object does not appear as sent.

        Args:
            size_bytes: exactly so many bytes will be written.

        Raises:
            RemoteError: the transfer failed.
        """
        self._require_no_links(path)
        moved, whole = [0], False
        bandwidth = ("--bwlimit", self.program.bandwidth) if self.program.bandwidth else ()
        locking = self._locking if lock else ()
        command = (
            "rcat",
            "--size",
            str(size_bytes),
            *self._stats,
            *_MULTIPART,
            *locking,
            *bandwidth,
            self.address.at(path),
        )
        with self._run(command, path, moved, feed=True) as child:
            assert child.process.stdin is not None
            try:
                yield _Counted(child.process.stdin, moved)  # type: ignore[misc]
                child.process.stdin.close()
                whole = True
            except BrokenPipeError:
                # rclone has ended: its own words say why.
                pass
            if (code := child.wait()) or not whole:
                raise self._error(f"cannot write {self._place(path)}", child.stderr, code)

    def write(self, path: str, content: bytes, *, lock: bool = True) -> None:
        """Write a small object.

        Raises:
            RemoteError: it could not be written.
        """
        with self.writing(path, len(content), lock=lock) as stream:
            stream.write(content)

    def add(self, folder: Path, names: Sequence[str], path: str) -> None:
        """Copy files that the remote does not have; never overwrite one.

        Raises:
            RemoteError: not all could be copied.
        """
        if not names:
            return
        for name in names:
            self._require_no_links(f"{path}/{name}")
        command = ("copy", "--ignore-existing", "--no-traverse", "--files-from-raw", "-", *self._locking, *_MULTIPART)
        self._copy((*command, str(folder), self.address.at(path)), path, names)

    def get(self, path: str, names: Sequence[str], folder: Path) -> None:
        """Copy small files of a remote's folder into a local one; those that are not there are left out.

        Raises:
            RemoteError: not all could be copied.
        """
        command = ("copy", "--no-traverse", "--files-from-raw", "-")
        self._copy((*command, self.address.at(path), str(folder)), path, names)

    def _copy(self, command: Sequence[str], path: str, names: Sequence[str]) -> None:
        with self._run((*command, *self._stats), path, [0], feed=True) as child:
            assert child.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                child.process.stdin.write("".join(f"{name}\n" for name in names).encode())
                child.process.stdin.close()
            if code := child.wait():
                raise self._error(f"cannot copy to or from {self._place(path)}", child.stderr, code)

    def has_cheap_hashes(self) -> bool:
        """Whether the store has hashes without reading the objects.

        Raises:
            RemoteError: the remote cannot be asked.
        """
        code, output, stderr = self.ask(("backend", "features", self.address.at("")))
        if code:
            raise self._error(f"cannot ask {self} what it supports", stderr, code)
        found = json.loads(output)
        return bool(found.get("Hashes")) and not found["Features"].get("SlowHash")

    def delete_for_good(self, folder: str, names: Collection[str]) -> None:
        """Delete objects of a folder with all their versions, on a store that keeps versions.

        Raises:
            RemoteLockedError, RemoteAccessError: the store refuses it. The objects are hidden then.
            RemoteError: they could not be deleted.
        """
        for name in names:
            self.delete(f"{folder}/{name}")  # this hides it, and all its versions have names with a time
        code, output, stderr = self.ask(("lsf", "--s3-versions", self.address.at(folder)))
        if code and code not in _NOT_FOUND:
            raise self._error(f"cannot list the versions in {self._place(folder)}", stderr, code)
        for version in output.decode("utf-8", "replace").splitlines():
            if _VERSION.sub("", version) in names:
                place = self.address.at(f"{folder}/{version}")
                code, _, stderr = self.ask(("deletefile", "--s3-versions", place))
                if code and code not in _NOT_FOUND:
                    raise self._error(f"cannot delete {place}", stderr, code)

    def delete(self, path: str) -> None:
        """Delete one object; it is no error if it is gone.

        Raises:
            RemoteLockedError: the store refuses it for now.
            RemoteError: it could not be deleted.
        """
        code, _, stderr = self.ask(("deletefile", self.address.at(path)))
        if code and code not in _NOT_FOUND:
            raise self._error(f"cannot delete {self._place(path)}", stderr, code)

    @property
    def _locking(self) -> tuple[str, ...]:
        """The options that lock a new object, by a request of its own: not every store locks a multipart upload by its
        headers. Other stores than S3 ignore them, without an error.
        """
        if not self.lock_days:
            return ()
        until = ("--s3-object-lock-retain-until-date", f"{self.lock_days}d")
        return ("--s3-object-lock-mode", "COMPLIANCE", *until, "--s3-object-lock-set-after-upload")


class _Counted:
    """A pipe that counts the bytes which pass, so that a transfer that stalls is noticed."""

    def __init__(self, pipe: IO[bytes], moved: list[int]) -> None:
        self._pipe, self._moved = pipe, moved

    def write(self, content: bytes | memoryview) -> int:
        written = self._pipe.write(content)
        self._moved[0] += written
        return written

    def read(self, size: int = _BLOCK) -> bytes:
        content = self._pipe.read(size)
        self._moved[0] += len(content)
        return content

    def read_all(self, limit: int = sys.maxsize) -> bytes:
        """Everything up to the end, or some more than the limit."""
        found = bytearray()
        while len(found) < limit and (block := self._pipe.read1(_BLOCK)):  # type: ignore[attr-defined]
            self._moved[0] += len(block)
            found += block
        return bytes(found)


def _stored(entry: Mapping[str, Any]) -> Stored:
    until = None
    with contextlib.suppress(ValueError):  # a user of the store may set metadata of this name to any value
        until = datetime.fromisoformat((entry.get("Metadata") or {}).get("object-lock-retain-until-date", ""))
    return Stored(
        size_bytes=int(entry["Size"]),
        hashes=entry.get("Hashes") or {},
        locked_until=until.astimezone(UTC) if until else None,
    )

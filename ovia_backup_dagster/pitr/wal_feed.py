"""Hands archived WAL to a server that recovers, without giving it the archive.

The server's ``restore_command`` is shell text that names the segment it wants, in a folder that the server may write,
and waits until the segment is in a folder that it may only read. This process decompresses it, and a few ahead. So
a confined server needs no decompression program, and the code in it never reaches the archive. Nothing in the server's
folder is trusted: only the names there are read.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovia_backup_dagster.core.errors import BackupError, DiskFullError
from ovia_backup_dagster.core.files import is_full
from ovia_backup_dagster.pitr.archive import COMPRESSED, ClusterArchive
from ovia_backup_dagster.pitr.segment_files import decompress, has_begun, require_sealed
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Segment, Timeline, parse_history_name
from ovia_backup_dagster.postgres.local_cluster import account
from ovia_backup_dagster.postgres.quoting import shell_word

#: Segments that are decompressed before they are wanted: 64 MB.
_AHEAD = 4
_POLL_SECONDS = 0.01
_NONE, _STOP = ".none", ".stop"
_WANTED = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history")


class WalFeed:
    """Feeds one server.

    Attributes:
        archive: the cluster's files.
        timeline: the timeline that is recovered.
        offered: the folder with the segments, which the server may only read.
        wanted: the folder in which the server names what it wants.
        delivered: how many segments the server has asked for and got.
        error: why the feed ended early; the server is then stopped by its ``restore_command``.
    """

    def __init__(self, archive: ClusterArchive, timeline: Timeline, offered: Path, wanted: Path) -> None:
        self.archive, self.timeline = archive, timeline
        self.offered, self.wanted = offered, wanted
        self.delivered = 0
        self.error: BackupError | None = None
        self._last: Segment | None = None
        self._ended = threading.Event()

    @property
    def restore_command(self) -> str:
        """The server's ``restore_command``. Exit code 1 is the end of the WAL; above 125, the server stops."""
        offered, wanted = shell_word(str(self.offered)), shell_word(str(self.wanted))
        return (
            f": > {wanted}/%f; while :; do [ -e {offered}/%f ] && exec cp {offered}/%f %p; "
            f"[ -e {offered}/%f{_NONE} ] && exit 1; [ -e {offered}/{_STOP} ] && exit 255; sleep 0.01; done"
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Feed while the block runs."""
        thread = threading.Thread(target=self._feed, name="WAL feed", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _feed(self) -> None:
        try:
            while not self._ended.is_set():
                names = [name for name in os.listdir(self.wanted) if _WANTED.fullmatch(name)]
                for name in names:
                    self._deliver(name)
                    with contextlib.suppress(OSError):
                        (self.wanted / name).unlink()
                if not names:
                    self._look_ahead()
                    self._ended.wait(_POLL_SECONDS)
        except BackupError as error:
            self.error = error
        except OSError as error:
            full = is_full(self.offered)
            what = f"{self.offered.parent} is full" if full else f"cannot write in {self.offered}"
            kind = DiskFullError if full else BackupError
            fix = "df -h $DRILL_DIR; or set DRILL_DIR to a folder on a larger disk"
            self.error = kind(what, said=error.strerror or str(error), fix=fix)
        finally:
            with contextlib.suppress(OSError):
                (self.offered / _STOP).touch(0o644)

    def _deliver(self, name: str) -> None:
        size = self.archive.facts.segment_bytes
        if parse_history_name(name) is not None:
            source = self.archive.wal / name
            if source.exists():
                self._publish(name, source.read_bytes())
            else:
                (self.offered / f"{name}{_NONE}").touch(0o644)
            return
        segment = Segment.parse(name, size)
        # A server that is asked for one timeline first tries the newer ones of it, then its parents.
        if segment is None or not self._offer(segment):
            (self.offered / f"{name}{_NONE}").touch(0o644)
            return
        self.delivered += 1
        if self._last is not None and self._last.number < segment.number - 1:
            self._last = None
        for path in self.offered.iterdir():
            old = Segment.parse(path.name, size)
            if old is not None and old.number < segment.number - 1:
                path.unlink()
        self._last = segment

    def _look_ahead(self) -> None:
        if self._last is None:
            return
        size = self.archive.facts.segment_bytes
        for number in range(self._last.number + 1, self._last.number + 1 + _AHEAD):
            segment = self.timeline.segment(number, size)
            if not (self.offered / self.archive.name(segment)).exists():
                self._offer(segment)
                return

    def _offer(self, segment: Segment) -> bool:
        """Make a segment available; ``False`` if the archive does not have it."""
        name = self.archive.name(segment)
        if (self.offered / name).exists():
            return True
        archived = self.archive.archived(segment)
        unfinished = self.archive.wal / f"{name}{PARTIAL}{COMPRESSED}"
        received = self.archive.received().get(segment)
        temporary = self.offered / ".segment"
        temporary.unlink(missing_ok=True)
        if archived.exists():
            require_sealed(archived)
            decompress(archived, temporary)
        elif received is not None and has_begun(received):
            try:
                _copy(received, temporary)
            except FileNotFoundError:  # it was archived meanwhile
                return self._offer(segment)
        elif unfinished.exists():
            require_sealed(unfinished)
            decompress(unfinished, temporary)
        else:
            return False
        self._hand_over(temporary, name)
        return True

    def _publish(self, name: str, content: bytes) -> None:
        temporary = self.offered / ".history"
        temporary.write_bytes(content)
        self._hand_over(temporary, name)

    def _hand_over(self, temporary: Path, name: str) -> None:
        owner = account()
        if owner is not None:
            os.chown(temporary, owner.pw_uid, owner.pw_gid)
        os.rename(temporary, self.offered / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a segment that may still be written: records that arrive later are not needed."""
    with open(source, "rb") as read, open(target, "xb") as write:
        os.fchmod(write.fileno(), 0o600)
        size = os.fstat(read.fileno()).st_size
        done = 0
        while done < size:
            done += os.sendfile(write.fileno(), read.fileno(), done, size - done)

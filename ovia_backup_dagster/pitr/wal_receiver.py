"""The WAL receiver: keeps pg_receivewal running, archives what it receives, and measures what would be lost.

pg_receivewal itself checks little: it mixes the WAL of two clusters under one address, and refuses forever to continue
after a full disk. So this module looks before each start, and at every tick. It never gives up: a trouble is reported
in ``status.json``, and tried again. What is wrong on the server or the disk is for the operator, whom ``health``
notifies.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from ovia_backup_dagster.core.errors import BackupError, LockHeldError
from ovia_backup_dagster.core.files import NO_ROOM, as_volume_error, volume_error
from ovia_backup_dagster.core.layout import PITR
from ovia_backup_dagster.core.locking import volume_lock
from ovia_backup_dagster.core.pitr_errors import SegmentDamagedError, ServerReplacedError, SlotLostError, WalError
from ovia_backup_dagster.pitr.archive import ClusterArchive, ClusterFacts
from ovia_backup_dagster.pitr.beacons import BeaconWatch
from ovia_backup_dagster.pitr.receiver_report import ReceiverReport
from ovia_backup_dagster.pitr.receiver_status import ReceiverState
from ovia_backup_dagster.pitr.replication_refusals import diagnose_replication
from ovia_backup_dagster.pitr.segment_archiving import SegmentArchiver
from ovia_backup_dagster.pitr.segment_repair import SegmentRepair
from ovia_backup_dagster.pitr.wal_position import PARTIAL, Segment
from ovia_backup_dagster.pitr.wal_records import WalReader, require_program
from ovia_backup_dagster.pitr.wal_source import SourceIdentity, WalSource
from ovia_backup_dagster.postgres.programs import Programs, start

#: The receiver's application name, which ``synchronous_standby_names`` may name.
RECEIVER_APPLICATION = "ovia_wal"
_TICK_SECONDS = 1.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
#: A pg_receivewal that the server refuses ends sooner: only from then on does it count as working.
_SETTLED_SECONDS = 3.0
#: Room that must remain: a segment that arrives, and its compressed copy.
_SEGMENTS_OF_ROOM = 3
_GONE = re.compile(r"requested WAL segment (\w+) has already been removed")
_FORKED = re.compile(r"requested starting point \S+ on timeline \d+ is not in this server's history")
_AHEAD = re.compile(r"requested starting point \S+ is ahead of the WAL flush position")
_LOST = re.compile(r"can(?:not|no longer) (?:read from|get changes from|be used).*slot|slot .*invalidated", re.DOTALL)

Log = Callable[[str], None]


@dataclass
class WalReceiver:
    """One receiver of one server's WAL.

    Attributes:
        root: the backup volume.
        source: the server and its slot.
        programs: the client programs.
        beacon_seconds: how often to write a beacon into the WAL.
        log: receives what happens, line by line.
    """

    root: Path
    source: WalSource
    programs: Programs
    beacon_seconds: float
    log: Log
    _report: ReceiverReport = field(init=False)

    def receive(self, stopping: Event) -> None:
        """Receive until ``stopping`` is set. Troubles are reported, and do not end this.

        Raises:
            LockHeldError: another receiver works on this volume.
            VolumeError: the volume cannot be used at the start.
        """
        with self._alone():
            self._report = ReceiverReport.begin(self.root, self.source.slot, self.beacon_seconds, self.log)
            failures = 0
            try:
                while not stopping.is_set():
                    began = time.monotonic()
                    try:
                        self._receive_once(stopping)
                    except BackupError as error:
                        self._report.trouble("receive", error)
                    failures = 0 if time.monotonic() - began > max(_RETRY_SECONDS) else failures + 1
                    self._wait(stopping, _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1])
            finally:
                self._report.write(ReceiverState.STOPPED)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        folder = self.root / PITR
        with as_volume_error(f"cannot use {folder}"):
            folder.mkdir(mode=0o700, exist_ok=True)
        try:
            with volume_lock(folder, purpose="receiving WAL", now=datetime.now(UTC)):
                yield
        except LockHeldError as error:
            what = "another WAL receiver works on this volume"
            raise LockHeldError(what, why=error.why, fix="ovia-backup wal status") from None

    # ---- one life of pg_receivewal

    def _receive_once(self, stopping: Event) -> None:
        """Look, start pg_receivewal, and watch it until it ends.

        Raises:
            BackupError: why it did not start, or why it ended.
        """
        identity = self.source.identify()
        require_program(self.programs, identity.major)
        archive = self._prepared(identity)
        repair = SegmentRepair(SegmentArchiver(archive, self.programs), self.source, self.programs, self.log)
        self._heal_partials(archive, identity)
        self._archive(repair)
        self._require_room(archive)
        self._prepare_slot()
        command = (
            self.programs.path("pg_receivewal"),
            f"--directory={archive.incoming}",
            f"--slot={self.source.slot}",
            "--no-loop",
            "--no-password",
            "--synchronous",
            f"--dbname={self.source.connection.conninfo()}",
        )
        variables = self.source.connection.environment() | {"PGAPPNAME": RECEIVER_APPLICATION}
        reader = WalReader(archive, self.programs, scratch=archive.folder)
        beacons = BeaconWatch(self.source, identity, reader, self.beacon_seconds, self._report)
        with start(self.programs.sandbox.bound(command), variables=variables) as child:
            self.log(f"receiving WAL of cluster {identity.system_identifier}, timeline {identity.timeline}")
            began = time.monotonic()
            while child.process.poll() is None and not stopping.is_set():
                if time.monotonic() - began >= _SETTLED_SECONDS:
                    self._report.well("receive")
                self._tick(repair, beacons)
                stopping.wait(beacons.pause_seconds(_TICK_SECONDS))
            if stopping.is_set():
                return
            code = child.wait()
        self._require_room(archive)
        raise self._diagnosed(child.stderr, code, repair, identity)

    def _prepared(self, identity: SourceIdentity) -> ClusterArchive:
        archive = ClusterArchive(self.root, identity.system_identifier)
        before = self._report.status.system_identifier
        with as_volume_error(f"cannot use {archive.folder}"):
            archive.create(
                ClusterFacts(
                    system_identifier=identity.system_identifier,
                    segment_bytes=identity.segment_bytes,
                    major=identity.major,
                )
            )
        if before not in (None, identity.system_identifier):
            self.log(
                f"another cluster answers: {identity.system_identifier}, before {before}. Its WAL goes into a folder "
                "of its own; it can be recovered once it has a base backup: ovia-backup base-backup"
            )
        if before != identity.system_identifier:
            self._report.update(confirmed_at=None, confirmed_lsn=None, archived=None)
        self._report.update(system_identifier=identity.system_identifier, timeline=identity.timeline)
        for left in archive.folder.glob("ovia-wal-*"):
            shutil.rmtree(left, ignore_errors=True)
        return archive

    def _heal_partials(self, archive: ClusterArchive, identity: SourceIdentity) -> None:
        """Remove unfinished segments of a wrong size, which pg_receivewal would refuse forever.

        A full disk leaves them. The server still has their WAL: the slot keeps whole segments.
        """
        for path in archive.received().values():
            if path.name.endswith(PARTIAL):
                with as_volume_error(f"cannot remove {path}"):
                    size = path.stat().st_size
                    if size not in (0, identity.segment_bytes):
                        path.unlink()
                        self.log(f"removed {path.name}, which has {size:,} bytes: the server sends it again")

    def _require_room(self, archive: ClusterArchive) -> None:
        free = shutil.disk_usage(archive.folder).free
        if free < _SEGMENTS_OF_ROOM * archive.facts.segment_bytes:
            raise volume_error(OSError(NO_ROOM[0], os.strerror(NO_ROOM[0])), "WAL cannot be received")

    def _prepare_slot(self) -> None:
        state = self.source.slot_state()
        if state is not None:
            self._report.slot(state)
        if state is not None and state.lost:
            self.log(f"slot {self.source.slot} has lost its WAL: it is dropped and created again")
            self.source.drop_slot()
            state = None
        if state is None:
            self.source.create_slot()
            self.log(f"made slot {self.source.slot}")
        elif state.active:
            raise SlotLostError(
                f"slot {self.source.slot} is in use",
                why="another receiver is connected to it, or the server has not noticed yet that ours ended",
                fix="wait a moment; if it stays: is a second receiver running? give it its own WAL_SLOT",
            )

    def _diagnosed(self, stderr: str, code: int, repair: SegmentRepair, identity: SourceIdentity) -> BackupError:
        """Why pg_receivewal ended. If it can never continue where it was, the next start begins at the slot."""
        connection, slot = self.source.connection, self.source.slot
        what = f"WAL is not received from {connection.host}:{connection.port}"
        said = " / ".join(line for line in stderr.strip().splitlines()[-2:])
        base = "ovia-backup base-backup, from which on any instant can be recovered again"
        for pattern, error in (
            (_GONE, SlotLostError(what, why="the server has removed WAL that was not received", said=said, fix=base)),
            (_LOST, SlotLostError(what, why=f"slot {slot} has lost its WAL", said=said, fix=base)),
            (_FORKED, ServerReplacedError(what, why="the server is on another timeline", said=said, fix=base)),
            (_AHEAD, ServerReplacedError(what, why="the server was put back to an earlier state", said=said, fix=base)),
        ):
            if pattern.search(stderr):
                self._begin_again(repair, error)
                if pattern is _AHEAD:
                    self._set_future_aside(repair, identity)
                return error
        if not stderr.strip():
            return WalError(what, why=f"pg_receivewal ended with code {code}", fix="ovia-backup wal status")
        return diagnose_replication(stderr, what=what, connection=connection, exit_code=code)

    def _begin_again(self, repair: SegmentRepair, why: BackupError) -> None:
        """Archive what was received, and let the next start begin at the slot's position. A hole may remain."""
        archiver, archive = repair.archiver, repair.archive
        self.log(f"{why.account}. Receiving begins again where the slot is")
        self._archive(repair)
        for segment, path in archive.received().items():
            if path.name.endswith(PARTIAL):
                archiver.archive_partial(segment)
            elif archive.archived(segment).exists():
                with as_volume_error(f"cannot remove {path}"):
                    path.unlink()
            else:
                repair.set_aside(path)

    def _set_future_aside(self, repair: SegmentRepair, identity: SourceIdentity) -> None:
        """Set aside what the server wrote before it was put back, and writes differently now."""
        archive, size = repair.archive, identity.segment_bytes
        first = Segment.at(identity.timeline, identity.flushed, size)
        later = [each for each in archive.archived_segments() if each.timeline == first.timeline and each >= first]
        paths = [archive.archived(each) for each in later]
        paths += [path for path in archive.wal.glob(f"*{PARTIAL}*") if path.name >= archive.name(first)]
        if paths:
            repair.set_aside(*paths)
            self.log(f"set {len(paths)} segments aside, from {archive.name(first)} on: they are of a lost future")

    # ---- while it runs

    def _tick(self, repair: SegmentRepair, beacons: BeaconWatch) -> None:
        self._archive(repair)
        try:
            looked = beacons.tick()
        except ServerReplacedError:
            raise
        except BackupError as error:
            self._report.trouble("beacon", error)
        else:
            if looked:
                self._report.well("beacon")
        self._report.write(ReceiverState.RECEIVING)

    def _archive(self, repair: SegmentRepair) -> None:
        archiver = repair.archiver
        try:
            for segment in archiver.archive_finished():
                self._report.update(archived=archiver.archive.name(segment))
                self._report.write()
        except SegmentDamagedError as error:
            self._report.trouble("archive", error)
            if (segment_or_none := archiver.first_unarchived()) is not None:
                repair.repair(segment_or_none)
        except BackupError as error:
            self._report.trouble("archive", error)
        else:
            self._report.well("archive")

    def _wait(self, stopping: Event, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not stopping.is_set():
            self._report.write(ReceiverState.WAITING)
            stopping.wait(min(left, _TICK_SECONDS))

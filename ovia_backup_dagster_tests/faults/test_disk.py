"""A volume that fills up, fails, turns read-only, loses power or disappears at random moments of the daily run."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import PortCluster, execute, free_port
from ovia_backup_dagster_tests.faults.conftest import MANY, Record, needs_root, place_for, rounds
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, Disk, bound, filled, mount_again, tmpfs, vanish
from ovia_backup_dagster_tests.faults.harness import (
    CHAIN,
    Ended,
    Guard,
    Place,
    Reader,
    Running,
    a_day_passes,
    at_moment,
    duration,
    ended_by_then,
    files,
    leftovers,
    moments,
    older_copies,
    until,
)

pytestmark = needs_root

#: Words of the errors on a full volume: the system's (from any program), and our check before the dump.
NO_ROOM = ("No space left on device", "too little room")


@pytest.fixture(scope="module")
def growing(server: PortCluster, bin_dir: Path) -> tuple[Connection, Callable[[], None]]:
    """A database that grows after a small dump, so that the estimate before pg_dump does not notice the full disk."""
    name = f"growing{os.getpid()}_{free_port()}"
    embedded_server.create_database(server.connection(), bin_dir, name, 0.02)
    database = server.connection(name)

    def grow() -> None:
        execute(
            database,
            "CREATE TABLE IF NOT EXISTS bulk AS SELECT g AS id, sha512(g::text::bytea) || sha512((g + 1)::text::bytea) "
            "AS noise FROM generate_series(1, 20000) g",
        )

    return database, grow


@pytest.fixture(scope="module")
def template(
    growing: tuple[Connection, Callable[[], None]], bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """A volume with a small verified backup, and older copies of it; none is promoted."""
    folder = tmp_path_factory.mktemp("template")
    place = place_for(growing[0], bin_dir, folder / "backups", folder)
    for command in CHAIN[:2]:
        assert place.run(*command).code == 0
    older_copies(place, place.catalog.backups()[0], 3)
    (place.root / ".reserve").unlink(missing_ok=True)
    growing[1]()
    return place


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Place:
    """Settings like ``template``, for a volume that the test creates."""
    return replace(template, settings={**template.settings, "BACKUP_DIR": str(tmp_path / "backups")}, logs=tmp_path)


class Rounds:
    """The outcomes of the rounds of one fault."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.looks = self.seen = 0

    def add(self, outcome: str, guard: Guard) -> None:
        self.outcomes[outcome] += 1
        self.looks += guard.looks
        self.seen += guard.seen

    @property
    def where(self) -> str:
        return ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())

    @property
    def saw(self) -> str:
        return f"looked {self.looks:,} times, at {self.seen:,} backups; none broken"


# --------------------------------------------------------------------------------------------- no room


@contextmanager
def memory(place: Place, template: Place, size: int) -> Iterator[None]:
    with tmpfs(place.root, size):
        shutil.copytree(template.root, place.root, dirs_exist_ok=True)
        yield


def need(place: Place, template: Place) -> int:
    """The size of the next dump in bytes."""
    with memory(place, template, 64 * MEGABYTE):
        assert place.run("dump").code == 0
        return place.catalog.backups()[0].path.stat().st_size


def no_room(ended: Ended) -> str:
    """Classify the outcome: the command succeeded, or its error says that the disk is full."""
    if ended.code == 0:
        return "fitted"
    line = ended.refused()
    assert any(word in line for word in NO_ROOM), line
    return "refused to begin" if NO_ROOM[1] in line else "gave up halfway"


@rounds(few=1, many=40)
def test_the_next_run_recovers_from_a_full_disk_in_dump(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    size = need(place, template)
    done = Rounds()
    for number, part in enumerate(moments(rng, times, 1.05)):
        # In every other round, the disk fills up near the end of the dump or in its small sidecars.
        left = int(part * size) if number % 2 else size + rng.randrange(-16, 48) * 1024
        with memory(place, template, 4 * size + 8 * MEGABYTE):
            guard = Guard(place)
            with filled(place.root, left), Reader(guard):
                outcome = no_room(place.run("dump"))
            assert not any(name.endswith(".tmp") for name in leftovers(place.root))
            guard.after_the_fault()
            guard.recovered()
            done.add(outcome, guard)
    if times >= MANY:
        assert done.outcomes["gave up halfway"] > 0
    record(
        fault="the volume is full: `dump`",
        how="tmpfs that is filled up to random offsets of the dump and its sidecars",
        times=times,
        where=done.where,
        saw=done.saw,
        then="ended well, each time, once there was room; the failed one had left no part of a dump",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=40)
def test_the_next_run_recovers_from_a_full_disk_in_verify(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    size = need(place, template)
    done = Rounds()
    for pages in moments(rng, times, 4.0):
        with memory(place, template, 4 * size + 8 * MEGABYTE):
            place.run("dump")
            guard = Guard(place)
            with filled(place.root, int(pages) * 4096), Reader(guard):
                outcome = no_room(place.run("verify"))
            assert not any(name.endswith(".tmp") for name in leftovers(place.root))
            guard.after_the_fault()
            guard.recovered()
            done.add(outcome, guard)
    if times >= MANY:
        assert done.outcomes["gave up halfway"] > 0
    record(
        fault="the volume is full: `verify`",
        how="tmpfs with 0 to 12 KB left, and no reserve",
        times=times,
        where=done.where,
        saw=done.saw,
        then="ended well, each time, once there was room",
    )


def test_the_reserve_lets_a_full_volume_verify_and_prune(place: Place, template: Place, record: Record) -> None:
    """The verdict is written into the room of the reserve. After that, pruning may remove backups and free room."""
    with memory(place, template, 100 * MEGABYTE):
        place.chain()
        assert (place.root / ".reserve").stat().st_blocks > 0
        place.run("dump")
        older_copies(place, place.catalog.backups(Tier.WEEKLY)[0], 6)
        guard = Guard(place)
        with filled(place.root, 0), Reader(guard):
            assert place.run("verify").code == 0
            pruned = place.run("prune")
            assert pruned.code == 0
            assert "removed weekly/" in pruned.output
        guard.after_the_fault()
        guard.recovered()
    record(
        fault="the volume is full to the last byte, with the reserve",
        how="tmpfs of 100 MB, filled up between `dump` and `verify`",
        times=1,
        where="the verdict was written into the reserve's room, and pruning made more",
        saw=f"looked {guard.looks:,} times; none broken",
        then="ended well",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=40)
def test_the_next_run_recovers_from_a_full_weekly_disk(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    """``weekly/`` is another filesystem, so promotion copies instead of linking, and the copy may not fit."""
    size = need(place, template)
    done = Rounds()
    for number, part in enumerate(moments(rng, times, 1.05)):
        left = int(part * size) if number % 2 else size + rng.randrange(-16, 48) * 1024
        with memory(place, template, 4 * size + 8 * MEGABYTE), tmpfs(place.root / "weekly", 4 * size):
            for command in CHAIN[:2]:
                assert place.run(*command).code == 0
            guard = Guard(place)
            with filled(place.root / "weekly", left), Reader(guard):
                outcome = no_room(place.run("promote"))
            assert not any(name.endswith(".tmp") for name in leftovers(place.root))
            guard.after_the_fault()
            guard.recovered()
            done.add(outcome, guard)
    if times >= MANY:
        assert done.outcomes["gave up halfway"] > 0
    record(
        fault="the volume is full: `promote`, by copy",
        how="`weekly/` on a tmpfs of its own, filled up to random offsets of the copy and its sidecars",
        times=times,
        where=done.where,
        saw=done.saw,
        then="ended well, each time, once there was room; the failed one had left no part of a dump",
    )


# --------------------------------------------------------------------------------------------- a disk that fails


class Breaking:
    """Daily runs on a disk that breaks at random moments."""

    def __init__(self, place: Place, template: Place, words: tuple[str, ...]) -> None:
        self.place, self.template, self.words = place, template, words
        self.done = Rounds()
        self.removed = 0

    def seconds(self) -> float:
        """The duration of a daily run on an intact disk, in seconds."""

        def once() -> None:
            with Disk(self.place.root) as disk:
                disk.load(self.template.root)
                began = time.monotonic()
                self.place.chain()
                taken.append(time.monotonic() - began)

        taken: list[float] = []
        once()
        once()
        return min(taken)

    def round(self, fault: Callable[[Disk], None], moment: float) -> None:
        place = self.place
        with Disk(place.root) as disk:
            disk.load(self.template.root)
            older_copies(place, place.catalog.backups(Tier.DAILY)[0], 10)
            disk.repaired()
            guard = Guard(place)
            with Reader(guard, may_fail=True):
                claims, during = self._daily_run(disk, fault, moment)
            disk.repaired()
            guard.after_the_fault()
            self._kept(claims)
            guard.recovered()
            self.done.add(during, guard)

    def _daily_run(self, disk: Disk, fault: Callable[[Disk], None], moment: float) -> tuple[dict[str, str], str]:
        """Return the output of each command that succeeded, and during which command the fault came."""
        claims: dict[str, str] = {}
        began, broken = time.monotonic(), False
        for command in CHAIN:
            with ended_by_then(self.place.start(*command)) as running:
                while running.running and not broken:
                    if time.monotonic() - began >= moment:
                        fault(disk)
                        broken = True
                    time.sleep(0.001)
                ended = running.wait()
            if ended.code != 0:
                # A verdict that cannot be read back proves nothing: pruning refuses, and nothing is promoted.
                line = ended.output if ended.output.startswith("not promoted\n") else ended.refused()
                assert any(word in line for word in (*self.words, "unproven")), line
                return claims, f"during `{command[0]}`"
            claims[command[0]] = ended.output
        if not broken:
            fault(disk)
        return claims, "after the last command"

    def _kept(self, claims: dict[str, str]) -> None:
        """Assert that the results that a command reported survived the fault."""
        place, now = self.place, datetime.now(UTC)
        made = [b for b in place.catalog.backups(Tier.DAILY) if (now - b.started_at).total_seconds() < 600]
        states = {b.path.name: b.state(now) for b in made if b.started_at != self._template_date()}
        if "dump" in claims:
            assert len(states) == 1, "a published dump is gone"
        if "verify" in claims:
            assert all(state.is_verified for state in states.values()), "a verdict is gone"
        if "promote" in claims:
            weekly = place.catalog.backups(Tier.WEEKLY)
            assert [b.state(now).is_verified for b in weekly] == [True], "a promoted one is gone"
        # Verdicts that could not be read do not count, so pruning may have removed fewer backups, or none.
        removed = set(re.findall("^removed (daily/.*?): ", claims.get("prune", ""), re.MULTILINE))
        there = {f"daily/{backup}" for backup in place.catalog.backups(Tier.DAILY)}
        assert not removed & there, "what was removed is back"
        self.removed += len(removed)

    def _template_date(self) -> datetime:
        return self.template.catalog.backups(Tier.DAILY)[0].started_at


@pytest.mark.exhaustive
@rounds(few=1, many=40)
def test_finished_work_survives_a_power_failure(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    """Every read and write fails after the cut. Afterwards the disk holds only what had reached it."""
    breaking = Breaking(place, template, ("Input/output error",))
    for moment in moments(rng, times, 1.1 * breaking.seconds()):
        breaking.round(Disk.cut, moment)
    if times >= MANY:
        assert breaking.removed > 0
    record(
        fault="the power fails; I/O errors on every read and write",
        how="ext4 on a loop device, shut down without its journal at random moments of the daily run",
        times=times,
        where=breaking.done.where,
        saw=breaking.done.saw + ". All that a command had called done was there",
        then="ended well, each time",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=40)
def test_finished_work_survives_a_read_only_remount(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    words = ("Read-only file system", "mounted read-only", "Input/output error")
    breaking = Breaking(place, template, words)
    for moment in moments(rng, times, breaking.seconds()):
        breaking.round(Disk.turn_read_only, moment)
    record(
        fault="the kernel remounts the volume read-only",
        how="ext4 on a loop device with `errors=remount-ro` meets an error at random moments of the daily run",
        times=times,
        where=breaking.done.where,
        saw=breaking.done.saw + ". All that a command had called done was there",
        then="ended well, each time, once it was mounted again",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=40)
def test_finished_work_survives_failed_write_back(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    """The kernel accepts writes but the disk fails to store them: only fsync reports the error."""
    words = ("Input/output error", "Read-only file system", "mounted read-only", "No space left")
    breaking = Breaking(place, template, words)
    size = need(place, template)
    for more in moments(rng, times, 1.2 * size):
        breaking.round(lambda disk, more=more: disk.refuse_writes_after(int(more)), 0.0)  # type: ignore[misc]
    if times >= MANY:
        assert breaking.done.outcomes["during `dump`"] > 0
    record(
        fault="the disk takes writes and fails to store them",
        how="ext4 on a loop device whose store ends at random offsets: fsync gets EIO, then it turns read-only",
        times=times,
        where=breaking.done.where,
        saw=breaking.done.saw + ". All that a command had called done was there",
        then="ended well, each time, once the disk was sound",
    )


# --------------------------------------------------------------------------------------------- a volume that is gone


def locked_by(running: Running, place: Place) -> None:
    """Wait until the dump holds the lock: a dump that has not begun would not notice that the volume is gone."""
    until(lambda: f"(process {running.pid} " in (lock_holder(place.root) or "") or not running.running, pause=0.002)


@rounds(few=1, many=30)
def test_nothing_is_written_where_the_volume_was_unmounted(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    """The dump must not write to the root disk under the mount point, even if the folders exist there."""
    size = need(place, template)
    disk = place.root.with_name("disk")
    done = Rounds()
    with tmpfs(disk, 16 * size + 64 * MEGABYTE):
        shutil.copytree(template.root, disk, dirs_exist_ok=True)
        with bound(disk, place.root):
            seconds = duration(lambda: place.run("dump"))
            place.chain()
        for number, moment in enumerate(moments(rng, times, seconds)):
            bare = ["daily", "weekly"] if number % 2 else []
            for name in bare:
                (place.root / name).mkdir(exist_ok=True)
            with bound(disk, place.root):
                guard = Guard(place)
                with Reader(guard, may_fail=True), ended_by_then(place.start("dump")) as running:
                    locked_by(running, place)
                    at_moment(time.monotonic(), moment)
                    vanish(place.root)
                    ended = running.wait()
                if ended.code:
                    outcome = "failed with an error that says so"
                    assert "Traceback" not in ended.output, ended.output
                    ended.refused()
                else:
                    outcome = "had published"
                left = [name for name in files(place.root) if name != ".lock"]
                assert left == [], "it wrote where the volume is not"
                for path in (place.root / ".lock", *(place.root / name for name in ("daily", "weekly"))):
                    if path.is_dir():
                        path.rmdir()
                    elif path.exists():
                        path.unlink()
                mount_again(disk, place.root)
                guard.after_the_fault()
                guard.recovered()
                a_day_passes(place)
                done.add(outcome, guard)
    record(
        fault="the volume is unmounted while it is dumped to",
        how="`umount --lazy` at random moments, with and without ready folders under the mount point",
        times=times,
        where=done.where + "; nothing was written under the mount point",
        saw=done.saw,
        then="ended well, each time, once it was mounted again",
    )


@pytest.mark.exhaustive
@rounds(few=1, many=30)
def test_the_next_run_recovers_from_a_removed_folder(
    place: Place, template: Place, rng: Random, record: Record, times: int
) -> None:
    outcomes: Counter[str] = Counter()
    seconds = duration(lambda: place.run("dump"))
    for moment in moments(rng, times, seconds):
        shutil.rmtree(place.root)
        shutil.copytree(template.root, place.root)
        with ended_by_then(place.start("dump")) as running:
            at_moment(running.began, moment)
            # Like rm -rf, repeated until files that appear meanwhile are gone, too.
            while place.root.exists():
                shutil.rmtree(place.root, ignore_errors=True)
            ended = running.wait()
        if ended.code:
            ended.refused()
            outcomes["failed with an error that says so"] += 1
        else:
            outcomes["had published, or began again after it"] += 1
        # No earlier backup is left to guard; only the next run's backup is checked.
        guard = Guard(place)
        guard.recovered()
        assert lock_holder(place.root) is None
    record(
        fault="the whole folder is removed while it is dumped to",
        how="`rm -rf` at random moments",
        times=times,
        where=", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()),
        saw="nothing: all was gone",
        then="made the folder and a first backup, each time",
    )

"""The doctor's observations of the backup volume: real folders, real filesystems, real refusals."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core import takeover
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.files import TEMPORARY
from ovia_backup_dagster.core.filesystem import PREFIX as PROBE
from ovia_backup_dagster.core.locking import volume_lock
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.core.sweeping import sweep_abandoned, unfinished_files
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.doctor import volume_area as doctor
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.retention.plan import Candidate, plan_retention
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.defs.support import frozen, load
from ovia_backup_dagster_tests.doctor.support import everything_below, the
from ovia_backup_dagster_tests.support.crashes import raised_as_nobody
from ovia_backup_dagster_tests.support.factories import make_catalog, publish, verified_backup, write_dump

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting, and giving files away, need root")


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze the clock, however long the tests take."""
    monkeypatch.setattr(doctor, "datetime", frozen(NOW))


def system_on(volume: Path, **more: str) -> BackupSystem:
    return BackupSystem(load({"POSTGRES_HOST": "127.0.0.1", "BACKUP_DIR": str(volume), **more}))


def volume_of(volume: Path, **more: str) -> list[Observation]:
    lines = list(doctor.volume(system_on(volume, **more)))
    assert {line.area for line in lines} == {Area.VOLUME}
    return lines


def backups_of(volume: Path) -> Observation:
    (line,) = doctor.backups(system_on(volume))
    assert line.area is Area.BACKUPS
    return line


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def of_size(catalog: Catalog, started_at: datetime, size: int, *, tier: Tier = Tier.DAILY) -> Backup:
    """A dump of the old script with this size on disk."""
    return write_dump(catalog, started_at, tier, content=b"PGDMP" + b"x" * (size - 5))


# ------------------------------------------------------------------------------------------ the folder


def test_a_missing_folder_is_reported_with_its_mkdir(tmp_path: Path) -> None:
    folder = tmp_path / "it's here"
    (line,) = volume_of(folder)
    assert (line.level, line.text) == (
        Severity.FAIL,
        f"the backup folder {folder} does not exist: BACKUP_DIR is wrong, or the volume is not mounted",
    )
    # The printed command works whatever the folder's name is.
    command = line.fix.partition("for a first try: ")[2]
    subprocess.run(["/bin/sh", "-c", command], check=True)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert the(volume_of(folder), "is ours alone").level is Severity.OK


def test_a_file_in_the_folders_place_is_reported(volume: Path) -> None:
    volume.write_text("not a folder")
    (line,) = volume_of(volume)
    assert (line.level, line.text) == (Severity.FAIL, f"{volume} is not a folder")
    assert line.fix == f"ls -l {volume}; then set BACKUP_DIR"


def test_a_link_to_a_folder_counts_as_a_folder(volume: Path, tmp_path: Path) -> None:
    make_catalog(tmp_path / "elsewhere")
    volume.symlink_to(tmp_path / "elsewhere")
    assert the(volume_of(volume), "is ours alone").level is Severity.OK


def test_a_new_folder_is_ok(volume: Path) -> None:
    volume.mkdir(0o700)
    lines = volume_of(volume)
    assert the(lines, f"{volume} is ours alone (user {os.geteuid()})").level is Severity.OK
    assert the(lines, "free; no dump yet to compare with").level is Severity.OK
    assert the(lines, "no process holds the lock").level is Severity.OK
    assert the(lines, "nothing was left behind by a crash").level is Severity.OK
    line = backups_of(volume)
    assert (line.level, line.text) == (
        Severity.WARN,
        "there is no backup: none was made yet, or the volume is not mounted",
    )
    assert line.fix.endswith("ovia-backup dump && ovia-backup verify latest")


def test_folders_that_others_can_read_are_a_warning(tmp_path: Path) -> None:
    volume = tmp_path / "a b"
    make_catalog(volume)
    (volume / "daily").chmod(0o750)
    volume.chmod(0o755)
    line = the(volume_of(volume), "others on this host can look into")
    assert (line.level, line.text.endswith(f"{volume}, {volume}/daily")) == (Severity.WARN, True)
    subprocess.run(["/bin/sh", "-c", line.fix], check=True)
    assert the(volume_of(volume), "is ours alone").level is Severity.OK


def nothing_is_unexpected(volume: Path, *expected: str) -> None:
    """Assert that the doctor, run as an ordinary account in a child process, finds the expected words."""

    def look() -> None:
        lines = list(doctor.volume(system_on(volume))) + list(doctor.backups(system_on(volume)))
        raise LookupError("\n".join(f"{line.level}: {line.text} -> {line.fix}" for line in lines))

    raised = raised_as_nobody(look)
    assert isinstance(raised, LookupError), repr(raised)
    for words in expected:
        assert words in str(raised)


@pytest.fixture
def open_volume() -> Iterator[Path]:
    """A volume that other users can reach, since pytest's own folders are private."""
    with tempfile.TemporaryDirectory(prefix="ovia-t-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "v"


@needs_root
def test_a_folder_in_an_unreadable_parent_is_a_failure(open_volume: Path) -> None:
    make_catalog(open_volume)
    open_volume.parent.chmod(0o700)
    nothing_is_unexpected(open_volume, f"fail: cannot read {open_volume}", "Permission denied", "chown -R USER")


@needs_root
def test_a_folder_of_another_user_is_a_failure(open_volume: Path) -> None:
    make_catalog(open_volume)
    open_volume.chmod(0o755)
    nothing_is_unexpected(open_volume, "fail: ", "not writable", f"{open_volume}")


@needs_root
def test_files_of_another_user_are_a_warning(open_volume: Path) -> None:
    """As left by the old container, which ran as root."""
    catalog = make_catalog(open_volume)
    made = write_dump(catalog, NOW - DAY)
    for folder in (open_volume, open_volume / "daily", open_volume / "weekly"):
        os.chown(folder, 65534, 65534)
    nothing_is_unexpected(
        open_volume,
        f"warn: 1 files belong to other users, such as {made}",
        f"as root: chown -R 65534:65534 {open_volume}",
    )
    assert the(volume_of(open_volume), "is ours alone").level is Severity.OK  # root may remove them


# ------------------------------------------------------------------------------------------ the filesystem


def test_a_folder_on_the_roots_filesystem_is_a_warning(volume: Path, tmp_path: Path) -> None:
    volume.mkdir(0o700)
    lines = volume_of(volume)
    if os.stat(tmp_path).st_dev != os.stat("/").st_dev:
        assert the(lines, f"{volume} is on a filesystem of its own").level is Severity.OK
    else:
        line = the(lines, f"{volume} is on the same filesystem as /")
        assert (line.level, line.fix) == (Severity.WARN, f"findmnt -T {volume}")


@needs_root
def test_a_separate_filesystem_is_ok(volume: Path) -> None:
    with tmpfs(volume, "size=4m"):
        assert the(volume_of(volume), f"{volume} is on a filesystem of its own").level is Severity.OK


@needs_root
def test_no_room_for_a_first_dump_is_a_failure(volume: Path) -> None:
    with tmpfs(volume, "size=2m"):
        (volume / "other").write_bytes(bytes(1536 * 1024))
        line = the(volume_of(volume), "no room for a first dump: 524.3 kB free")
        assert line.level is Severity.FAIL


@needs_root
def test_no_room_for_the_next_dump_is_a_failure(volume: Path) -> None:
    with tmpfs(volume, "size=4m"):
        of_size(make_catalog(volume), NOW - DAY, 1_500_000)
        (volume / "ballast").write_bytes(b"x" * 1_200_000)
        line = the(volume_of(volume), "no room for the next dump: ")
        assert (line.level, "the last dump took 1.5 MB, growing 0 B a day" in line.text) == (Severity.FAIL, True)
        assert "BACKUP_DAILY_KEEP" in line.fix


@needs_root
def test_a_volume_that_will_be_full_soon_is_a_warning(volume: Path) -> None:
    with tmpfs(volume, "size=10m"):
        catalog = make_catalog(volume)
        for days, size in ((2, 900_000), (1, 1_000_000)):
            of_size(catalog, NOW - days * DAY, size)
        line = the(volume_of(volume), "the volume will be full in about 6 days: ")
        assert (line.level, "the last dump took 1.0 MB, growing 100.0 kB a day" in line.text) == (Severity.WARN, True)


@needs_root
def test_room_for_all_kept_backups_is_ok(volume: Path) -> None:
    with tmpfs(volume, "size=40m"):
        catalog = make_catalog(volume)
        for days in range(9, 0, -1):
            of_size(catalog, NOW - days * DAY, 1_000_000)
        assert the(volume_of(volume), "the last dump took 1.0 MB, growing 0 B a day").level is Severity.OK


@needs_root
def test_a_full_tier_of_many_days_does_not_fill_the_volume(volume: Path) -> None:
    with tmpfs(volume, "size=7m"):
        catalog = make_catalog(volume)
        for days in range(61, 0, -1):
            of_size(catalog, NOW - days * DAY, 100_000)
        lines = volume_of(volume, BACKUP_DAILY_KEEP="60", BACKUP_WEEKLY_KEEP="1")
        assert the(lines, "the last dump took 100.0 kB").level is Severity.OK


@needs_root
def test_a_bad_dump_is_no_measure_of_size(volume: Path) -> None:
    with tmpfs(volume, "size=8m"):
        catalog = make_catalog(volume)
        of_size(catalog, NOW - 2 * DAY, 1_000)
        write_dump(catalog, NOW - DAY, content=b"no archive" * 200_000)
        assert the(volume_of(volume), "the last dump took 1.0 kB").level is Severity.OK


@needs_root
def test_too_few_free_inodes_are_a_failure(volume: Path) -> None:
    with tmpfs(volume, "size=8m,nr_inodes=500"):
        make_catalog(volume)
        line = the(volume_of(volume), "the filesystem has room for only 4")
        assert (line.level, line.fix.startswith("see what has so many: df -i ")) == (Severity.FAIL, True)


@needs_root
def test_a_read_only_volume_is_a_failure(volume: Path) -> None:
    """File modes do not stop root, but the mount does."""
    with tmpfs(volume, "size=8m"):
        verified_backup(make_catalog(volume), NOW - timedelta(hours=1))
        subprocess.run(["mount", "-o", "remount,ro", str(volume)], check=True)
        (line,) = volume_of(volume)
        assert (line.level, "mounted read-only" in line.text) == (Severity.FAIL, True)
        assert "mount -o remount,rw" in line.fix
        assert backups_of(volume).level is Severity.OK


# ------------------------------------------------------------------------------------------ the lock, and a crash


def test_a_process_at_work_leaves_no_crash_files(volume: Path) -> None:
    """Its unfinished files are not reported as left by a crash."""
    catalog = make_catalog(volume)
    (volume / "daily" / ".ovia_daily_2026-02-21_030000.dump.tmp").write_bytes(b"x" * 2_000_000)
    with volume_lock(volume, purpose="dumping ovia", now=NOW):
        lines = volume_of(volume)
        assert the(lines, "at work now: dumping ovia (process ").level is Severity.OK
        line = the(
            lines, "unfinished files (2.0 MB), by the process at work now: .ovia_daily_2026-02-21_030000.dump.tmp"
        )
        assert line.level is Severity.OK
    assert unfinished_files(catalog)


def test_leftovers_of_a_crash_are_a_warning(volume: Path) -> None:
    catalog = make_catalog(volume)
    for day in (21, 22, 23):
        (volume / "daily" / f".ovia_daily_2026-02-{day}_030000.dump.tmp").write_bytes(b"x" * 1_000)
    line = the(volume_of(volume), "left by a crash")
    assert line.level is Severity.WARN
    assert line.text == (
        "unfinished files (3.0 kB), left by a crash: .ovia_daily_2026-02-21_030000.dump.tmp, "
        ".ovia_daily_2026-02-22_030000.dump.tmp and 1 more"
    )
    assert line.fix == "nothing: the next dump removes them; at once: ovia-backup prune"
    sweep_abandoned(catalog)
    assert the(volume_of(volume), "nothing was left behind by a crash").level is Severity.OK


def test_a_second_doctors_probe_is_no_leftover(volume: Path) -> None:
    """A doctor does not take the probe files of another, concurrent doctor for a crash's."""
    make_catalog(volume)
    probe = volume / f"{PROBE}12345678{TEMPORARY}"
    for path in (probe, probe.with_name(f"{probe.name}.2{TEMPORARY}")):
        path.touch(0o600)
        os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    assert the(volume_of(volume), "nothing was left behind by a crash").level is Severity.OK
    for age in (timedelta(minutes=2), -timedelta(minutes=2)):
        os.utime(probe, ((NOW - age).timestamp(), (NOW - age).timestamp()))
        assert the(volume_of(volume), f"unfinished files (0 B), left by a crash: {probe.name}").level is Severity.WARN


def test_a_dump_that_ends_during_the_check_is_no_crash(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_catalog(volume)
    unfinished = volume / "daily" / ".ovia_daily_2026-02-21_030000.dump.tmp"
    unfinished.touch(0o600)
    monkeypatch.setattr(doctor, "lock_holder", Mock(side_effect=["dumping ovia", "dumping ovia", None]))
    assert the(volume_of(volume), f"by the process at work now: {unfinished.name}").level is Severity.OK


def test_files_that_vanish_during_the_check_are_no_fault(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another process publishes a dump and prunes an old one."""
    catalog = make_catalog(volume)
    gone = volume / "daily" / ".ovia_daily_2026-02-21_030000.dump.tmp"
    monkeypatch.setattr(doctor, "unfinished_files", lambda _: [gone])
    assert the(volume_of(volume), "nothing was left behind by a crash").level is Severity.OK

    real = os.scandir

    class Vanishing:
        def __init__(self, path: Path) -> None:
            self.entries = real(path)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return self.each()

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def each(self) -> Iterator[os.DirEntry[str]]:
            for entry in self.entries:
                if entry.is_file():
                    os.unlink(entry.path)
                yield entry

    write_dump(catalog, NOW - DAY)
    monkeypatch.setattr(os, "scandir", Vanishing)
    assert the(doctor.volume(system_on(volume)), "is ours alone").level is Severity.OK


# ------------------------------------------------------------------------------------------ the backups


def test_a_verified_backup_of_today_is_ok(volume: Path) -> None:
    made = verified_backup(make_catalog(volume), NOW - timedelta(hours=3))
    line = backups_of(volume)
    assert (line.level, line.text) == (Severity.OK, f"the newest backup, {made}, is 3 h old (verified)")


def test_an_unverified_dump_of_today_is_ok(volume: Path) -> None:
    publish(make_catalog(volume), NOW - timedelta(hours=3))
    line = backups_of(volume)
    assert (line.level, line.fix) == (Severity.OK, "")
    assert line.text.endswith("is 3 h old (not verified yet)")


def test_a_bad_dump_above_a_verified_one_is_a_warning(volume: Path) -> None:
    catalog = make_catalog(volume)
    verified_backup(catalog, NOW - timedelta(hours=3))
    write_dump(catalog, NOW - timedelta(hours=1), content=b"no archive")
    fresh, bad = doctor.backups(system_on(volume))
    assert (fresh.level, fresh.text.endswith("; newer than it: 1 bad one")) == (Severity.OK, True)
    assert (bad.level, "is not an archive" in bad.text) == (Severity.WARN, True)
    assert "ovia-backup dump && ovia-backup verify latest" in bad.fix


def test_a_backup_that_is_too_old_is_a_failure(volume: Path) -> None:
    verified_backup(make_catalog(volume), NOW - 2 * DAY)
    line = backups_of(volume)
    assert (line.level, "is 2 d old, 22 h too old (verified)" in line.text) == (Severity.FAIL, True)
    assert "ovia-backup dump && ovia-backup verify latest" in line.fix


def test_only_bad_backups_are_reported(volume: Path) -> None:
    write_dump(make_catalog(volume), NOW - timedelta(hours=1), content=b"no archive")
    missing, bad = doctor.backups(system_on(volume))
    assert (missing.level, "there is no backup but 1 bad one" in missing.text) == (Severity.FAIL, True)
    assert (bad.level, "is not an archive" in bad.text) == (Severity.WARN, True)


def test_a_dump_from_the_future_is_reported(volume: Path) -> None:
    made = publish(make_catalog(volume), NOW + 30 * DAY)
    line = backups_of(volume)
    assert (line.level, "in the future: a clock is wrong" in line.text) == (Severity.FAIL, True)
    assert f"move {made} out of the folder" in line.fix


def test_dumps_no_longer_verified_are_a_failure(volume: Path) -> None:
    catalog = make_catalog(volume)
    for days in range(4):
        publish(catalog, NOW - days * DAY - timedelta(hours=1))
    line = backups_of(volume)
    assert (line.level, "not verified, like all recent ones" in line.text) == (Severity.FAIL, True)


# ------------------------------------------------------------------------------------------ many backups, no changes


@pytest.mark.exhaustive
@needs_root
def test_ten_thousand_backups_are_checked_in_seconds(volume: Path) -> None:
    with tmpfs(volume, "size=200m"):
        catalog = make_catalog(volume)
        for number in range(10_000):
            name = BackupName("ovia", Tier.DAILY, NOW - number * timedelta(hours=1) - timedelta(minutes=30))
            path = catalog.folder(Tier.DAILY) / name.filename
            path.write_bytes(b"PGDMP")
            path.with_name(f"{path.name}{MANIFEST}").touch()
        system = system_on(volume)
        began = time.process_time()
        lines = [*doctor.volume(system), *doctor.backups(system)]
        # Seconds of processor time, with room for a shared processor: reading all files would take a minute.
        assert time.process_time() - began < 5
    the(lines, "growing 0 B a day")


def test_the_doctor_changes_nothing_on_the_volume(volume: Path) -> None:
    catalog = make_catalog(volume)
    verified_backup(catalog, NOW - DAY)
    verified_backup(catalog, NOW - DAY, Tier.WEEKLY)
    (volume / "daily" / ".ovia_daily_2026-02-21_030000.dump.tmp").touch()
    (volume / "daily" / "ovia_daily_2026-02-20_030000.dump.verified.json").write_text("{")
    with volume_lock(volume, purpose="x", now=NOW):
        pass
    before = list(everything_below(volume))
    assert len(volume_of(volume)) > 4
    backups_of(volume)
    # Only the folder's times changed: the doctor tries the filesystem with a file that it removes.
    (_, folder, *_), *rest = everything_below(volume)
    assert (folder, rest) == (before[0][1], before[1:])


# ------------------------------------------------------------------------------------------ growth

POLICIES = st.builds(
    Policy,
    keep=st.fixed_dictionaries(
        {
            Tier.DAILY: st.integers(1, 9),
            Tier.WEEKLY: st.integers(1, 5),
            Tier.MONTHLY: st.sampled_from([0, 0, 1, 2, 12]),
            Tier.YEARLY: st.sampled_from([0, 0, 1, 2]),
        }
    ),
    weekly_day=st.sampled_from(Weekday),
    timezone=st.just(ZoneInfo("UTC")),
)
SIZES = st.integers(1, 10**12)
GROWTH = st.floats(0, 10**10)
STAND = st.fixed_dictionaries({tier: st.integers(int(tier is Tier.DAILY), 12) for tier in Tier})
TODAY = date(2026, 6, 15)


def full(free: int, size: int, growth: float, stand: Mapping[Tier, int], policy: Policy) -> float:
    """Days until the volume is full; infinite if it will not be full soon."""
    days = doctor._days_until_full(free, size, growth, stand, policy, TODAY)
    assert days is None or 1 <= days <= doctor.SOON
    return float("inf") if days is None else days


@given(free=SIZES, size=SIZES, growth=GROWTH, stand=STAND, policy=POLICIES, more=st.integers(0, 10**12))
def test_more_room_delays_full_and_more_growth_hastens_it(
    free: int, size: int, growth: float, stand: Mapping[Tier, int], policy: Policy, more: int
) -> None:
    day = full(free, size, growth, stand, policy)
    assert full(free + more, size, growth, stand, policy) >= day
    assert full(free, size, growth + more, stand, policy) <= day


@given(size=SIZES, policy=POLICIES, free=SIZES)
def test_without_growth_a_full_set_of_backups_never_fills_up(size: int, policy: Policy, free: int) -> None:
    assert full(size + free, size, 0.0, policy.keep, policy) == float("inf")


def simulated(free: int, size: int, growth: float, stand: Mapping[Tier, int], policy: Policy) -> int:
    """The day on which the next dump has no room: each day has a dump, promotions and pruning by the real policy."""
    start = datetime(2026, 6, 15, 3, tzinfo=UTC)
    sizes: dict[datetime, float] = {}
    kept: list[Candidate] = []

    def add(tier: Tier, at: datetime, bytes_: float) -> None:
        sizes.setdefault(at, bytes_)
        kept.append(Candidate(key=f"{tier}/{at}", tier=tier, started_at=at, state=State.VERIFIED))

    for days in range(stand[Tier.DAILY]):
        add(Tier.DAILY, start - days * DAY, size - growth * days)
    for tier in policy.promoted_to:
        first_day = policy.period(tier, start)
        for _ in range(stand[tier]):
            at = datetime.combine(first_day, start.timetz())
            add(tier, at, size - growth * (start - at).days)
            first_day = policy.period(tier, at - DAY)
    used_before = sum(sizes[at] for at in {candidate.started_at for candidate in kept})
    for day in range(1, 30):
        at = start + day * DAY
        add(Tier.DAILY, at, size + growth * day)
        for tier in policy.promoted_to:
            if policy.period(tier, at) == policy.day(at):
                add(tier, at, 0)
        gone = {decision.candidate.key for decision in plan_retention(kept, policy, at).removals}
        kept = [candidate for candidate in kept if candidate.key not in gone]
        used = sum(sizes[at] for at in {candidate.started_at for candidate in kept})
        if free - (used - used_before) < size + growth * (day + 1):
            return day
    return 30


@settings(max_examples=40, deadline=None)
@given(
    room=st.floats(1.1, 15),
    growth=st.floats(0, 0.03),
    policy=POLICIES,
    shares=st.tuples(st.floats(0.1, 1), st.floats(0, 1)),
)
def test_the_day_agrees_with_the_simulated_policy(
    room: float, growth: float, policy: Policy, shares: tuple[float, float]
) -> None:
    size = 10**9
    stand = dict.fromkeys(Tier, 0)
    stand[Tier.DAILY] = max(1, round(policy.count(Tier.DAILY) * shares[0]))
    # Weekly backups need earlier daily ones, so other tiers are filled only if the daily tier is full.
    if stand[Tier.DAILY] == policy.count(Tier.DAILY):
        stand |= {tier: round(policy.count(tier) * shares[1]) for tier in policy.promoted_to}
    arguments = (int(room * size), size, growth * size, stand, policy)
    expected, one = simulated(*arguments), int(1.2 * size)
    earliest, latest = (full(arguments[0] + more, *arguments[1:]) for more in (-one, one))
    assert min(earliest, doctor.SOON + 1) - 8 <= expected <= latest + 8, (earliest, expected, latest)


@pytest.mark.parametrize(
    ("sizes", "growth"),
    [
        ([(0, 100)], 0.0),
        ([(0, 200), (2, 100)], 50.0),
        # Dumps of one afternoon say nothing about a month.
        ([(0, 200), (0.5, 100)], 0.0),
        ([(0, 100), (2, 200)], 0.0),
        ([(0, 130), (1, 500), (3, 100)], 10.0),
    ],
)
def test_growth_is_measured_between_oldest_and_newest(sizes: list[tuple[float, int]], growth: float) -> None:
    made = [
        Backup(Path("x"), BackupName("ovia", Tier.DAILY, NOW - timedelta(days=days)), size, 0) for days, size in sizes
    ]
    assert doctor._growth_per_day(made) == growth


# ------------------------------------------------------------------------------------------ the hand-over


@needs_root
def test_a_hand_over_is_a_warning_after_three_days(volume: Path) -> None:
    verified_backup(make_catalog(volume), NOW - DAY)
    os.chown(volume, 10001, 10001)
    for path in volume.rglob("*.dump"):
        os.chown(path, 10001, 10001)
    takeover.begin(volume, takeover.Owner(0, 0), NOW)
    path = next((volume / "daily").glob("*.dump"))
    path.rename(volume / "removed by the old script")
    text = f"the hand-over from the old backup script began on {datetime.now(UTC):%Y-%m-%d}"
    assert the(volume_of(volume), text).level is Severity.OK
    # The removed dump's sidecars are not leftovers.
    assert the(volume_of(volume), "left behind").text == "nothing was left behind by a crash"
    for days, level in ((2.9, Severity.OK), (3.1, Severity.WARN)):
        began = (NOW - days * DAY).timestamp()
        os.utime(volume / ".handover", (began, began))
        line = the(volume_of(volume), "the hand-over from the old backup script began")
        assert line.level is level
    assert line.fix == "remove the old service; then, as root: ovia-backup hand-over --finish --to 0:0"
    takeover.finish(volume, takeover.Owner(0, 0), NOW)
    assert not [line for line in volume_of(volume) if "hand-over" in line.text]

"""Special files in place of the volume's own: all commands, the sensor and the doctor answer at once, in words.

Real FIFOs, devices, sockets, links and endless files, in each place that is read.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import dagster as dg
import pytest
from click.testing import CliRunner, Result

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.core import deadline
from ovia_backup_dagster.core.backup import State
from ovia_backup_dagster.core.backup_statements import record_judgement
from ovia_backup_dagster.core.errors import BackupError, StalledVolumeError, StrangeFileError, VolumeError
from ovia_backup_dagster.core.locking import FILENAME, lock_holder, volume_lock
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.reserve import RESERVE
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST, SIDECAR_KINDS, VERIFIED
from ovia_backup_dagster.core.takeover_links import FOLDER as HAND_OVER
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.defs.alert_asset import condition
from ovia_backup_dagster.doctor import volume_area as doctor
from ovia_backup_dagster.doctor.report import Observation
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import quiet
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import ALERT_JOB, Location
from ovia_backup_dagster_tests.faults.disks import silent
from ovia_backup_dagster_tests.support.crashes import raised_as_nobody
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import (
    HOUR,
    drill_evidence,
    drilled,
    held,
    make_judgement,
    verified_backup,
)

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="making devices, and mounting, need root")

#: To read such a volume takes 0.1 s on an idle machine; what hangs does so forever.
SECONDS = 60
NOW = datetime.now(UTC).replace(microsecond=0)
STAMP = "2099-01-06_000000"


@contextmanager
def at_once(seconds: float = SECONDS) -> Iterator[None]:
    """Interrupt the block if it hangs, and fail the test."""

    def ring(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"it hung at {frame}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        # A socket's path must be short.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{folder}/s")
            os.rename("s", path.name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except PermissionError as error:
        pytest.skip(f"no device can be made: {error}")


def make_huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)


def make_link_to_a_fifo(path: Path) -> None:
    fifo = path.with_name(f".{path.name}.fifo")
    os.mkfifo(fifo)
    path.symlink_to(fifo.name)


def holding(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").touch()


KINDS: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "device": make_device,
    "folder": make_folder,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to a FIFO": make_link_to_a_fifo,
    "link to nowhere": lambda path: path.symlink_to("/nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "huge": make_huge,
    "empty": Path.touch,
    "brackets": lambda path: holding(path, b"[" * 10**6),
    "not UTF-8": lambda path: holding(path, b"\xff\xfe\0\n" * 100),
}

PLACES = (
    *(f"daily/DUMP{suffix}" for suffix in SIDECAR_KINDS),
    "daily/DUMP",
    "weekly/WEEKLY",
    f"weekly/WEEKLY{VERIFIED}",
    "daily/.DUMP.tmp",
    f"drills/{STAMP}_x.json",
    "drills/.since-sample",
    "drills/..since-sample.tmp",
    "drills/.under-way-sample",
    f"drills/{FILENAME}",
    "drills",
    f"restores/{STAMP}_x.json",
    f"restores/{STAMP}_x.journal",
    "restores/.announced-sample_before",
    f"restores/{FILENAME}",
    "restores",
    FILENAME,
    RESERVE,
    HAND_OVER,
)
#: Without these files the condition cannot be ok.
NEEDED = (
    *("daily/DUMP", f"daily/DUMP{MANIFEST}", f"daily/DUMP{VERIFIED}"),
    *(f"restores/{STAMP}_x.journal", "drills", "restores"),
)
#: Kinds that we never write; the other kinds may be a file of ours that the disk damaged.
STRANGE = (
    "FIFO",
    "socket",
    "device",
    "link to /dev/zero",
    "link to a FIFO",
    "link to nowhere",
    "link to itself",
    "huge",
)


@pytest.fixture
def site(bare: NewLocation, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A volume with a drilled backup, its weekly copy, drill evidence and an older verified backup."""
    monkeypatch.setattr(deadline, "LOOK_SECONDS", SECONDS / 2)
    location: Location = bare()
    for name, value in (
        ("POSTGRES_HOST", "127.0.0.1"),
        ("POSTGRES_DB", "sample"),
        ("BACKUP_DIR", str(location.catalog.root)),
    ):
        monkeypatch.setenv(name, value)
    fill(location.system)
    return location


def fill(system: BackupSystem) -> None:
    catalog = system.catalog
    catalog.prepare()
    verified_backup(catalog, NOW - 30 * HOUR)
    newest = verified_backup(catalog, NOW - HOUR)
    promote_backup(catalog, newest, Tier.WEEKLY, datetime.now(UTC))
    held(catalog, drilled(catalog, newest), NOW + 30 * HOUR)
    drill_evidence(catalog, NOW - HOUR)
    DrillFolder(catalog).prepare(NOW - HOUR)
    RestoreFolder(catalog).prepare()


def place_of(place: str, root: Path, database: str = "sample") -> Path:
    """The path of a place on this volume."""
    daily, weekly = (BackupName(database, tier, NOW - HOUR).filename for tier in (Tier.DAILY, Tier.WEEKLY))
    return root / place.replace("sample", database).replace("DUMP", daily).replace("WEEKLY", weekly)


def put(kind: str, path: Path) -> None:
    """Replace what is at the path by a file of this kind."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    KINDS[kind](path)


def command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    # An error that a user can cause ends with a message and one of our exit codes.
    assert isinstance(result.exception, SystemExit | None), result.exc_info
    assert "Traceback" not in result.output
    return result


def doctors(system: BackupSystem) -> list[Observation]:
    return [*doctor.volume(system), *doctor.backups(system)]


def all_answer(location: Location) -> dict[str, str]:
    """What each command, the sensor and the doctor say of the volume."""
    answers = {}
    with at_once():
        for words in (("status",), ("list",), ("prune", "--dry-run"), ("restore", "--history"), ("drill", "--history")):
            result = command(*words)
            assert result.exit_code in range(4)
            answers[words[0]] = result.output
        found = condition(location.system, location.names, datetime.now(UTC), location.instance)
        assert not any(isinstance(answer.trouble, StalledVolumeError) for answer in found.told)
        answers["sensor"] = found.trouble
        answers["doctor"] = "\n".join(f"{line.level} {line.text} -> {line.fix}" for line in doctors(location.system))
    return answers


@needs_root
@pytest.mark.parametrize(
    "place", thinned(sorted(PLACES, key=lambda place: PLACES.index(place) % 4), daily=(len(PLACES) + 3) // 4)
)
def test_special_files_block_no_command(site: Location, place: str) -> None:
    root = site.catalog.root
    kept = root.with_name("kept")
    shutil.copytree(root, kept)
    for kind in KINDS:
        path = place_of(place, root)
        put(kind, path)
        answers = all_answer(site)
        assert "Errno" not in str(answers), (kind, answers)
        if kind in STRANGE and place not in NEEDED:
            assert answers["status"].startswith("BACKUP OK"), (kind, answers)
            assert answers["sensor"] == "", (kind, answers)
        if kind in ("FIFO", "socket", "device") and path.parent == root / "daily" and not path.name.startswith("."):
            assert f"{path} cannot be read, and is as good as missing: it is a {kind}, and no file" in answers["doctor"]
        shutil.rmtree(root)
        shutil.copytree(kept, root)
    before = all_answer(site)
    assert "cannot be read" not in str(before), before


@needs_root
@pytest.mark.parametrize("kind", thinned(KINDS, daily=3))
def test_special_files_do_not_prevent_a_dump(location: Location, kind: str) -> None:
    """In all places at once, except the lock, without which no dump is safe, and the folders of other places."""
    location.catalog.prepare()
    fill(location.system)
    root = location.catalog.root
    places = [place for place in PLACES if place not in (FILENAME, "drills", "restores")]
    for place in places:
        put(kind, place_of(place, root, location.catalog.database))
    with at_once(60):
        made = location.dump()
        # The backups before it are fakes of another cluster, so it must be accepted.
        assert location.system.verifier.accept(made, by="a test", log=quiet).judgement.good
        # The needed file replaces every other kind, but no folder is removed.
        assert (location.system.drills.since() is None) == (kind == "folder")
    assert location.catalog.newest(datetime.now(UTC), State.VERIFIED) == location.catalog.refresh(made)


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to nowhere", "link to itself", "link to /dev/zero"])
def test_a_lock_needs_a_regular_file(site: Location, kind: str) -> None:
    root = site.catalog.root
    put(kind, root / FILENAME)
    with at_once():
        assert lock_holder(root) is None
        with (
            pytest.raises(StrangeFileError, match="cannot lock the backup folder") as refused,
            volume_lock(root, purpose="a test", now=NOW),
        ):
            pytest.fail("locked")
    assert f"{root / FILENAME} cannot be read: it is a" in str(refused.value)
    assert "ls -l" in refused.value.fix


def test_an_archive_must_be_a_regular_file(site: Location) -> None:
    """Every reader refuses a FIFO that replaced it after the catalog found it."""
    backup = site.catalog.find("latest", NOW)
    put("FIFO", backup.path)
    with at_once():
        for act in (
            lambda: site.system.verifier.verify(backup, log=print),
            lambda: archives.contents_list(site.system.programs, backup.path),
            lambda: archives.schema_text(site.system.programs, backup.path),
            lambda: archives.database_text(site.system.programs, backup.path),
            lambda: archives.read_archive(site.system.programs, backup.path),
            lambda: promote_backup(site.catalog, backup, Tier.WEEKLY, datetime.now(UTC)),
        ):
            with pytest.raises(StrangeFileError, match="it is a FIFO, and no file"):
                act()


def test_a_symbolic_link_is_followed_once(site: Location, tmp_path: Path) -> None:
    backup = site.catalog.find("latest", NOW)
    (tmp_path / "here").symlink_to(backup.path)
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with at_once():
        assert site.catalog.find(str(tmp_path / "here"), NOW).path == backup.path
        for name in ("zero", "pipe", "a\0b", "a" * 5000, "itself"):
            with pytest.raises(BackupError):
                site.catalog.find(str(tmp_path / name), NOW)


def test_saved_roles_must_be_a_regular_file(site: Location) -> None:
    backup = site.catalog.find("latest", NOW)
    for kind in ("FIFO", "link to /dev/zero", "huge"):
        put(kind, backup.sidecar(GLOBALS))
        with at_once(), pytest.raises(StrangeFileError, match=r"globals\.sql cannot be read"):
            backup.saved_roles()


def test_no_weekly_copy_is_made_of_a_link_or_a_pipe(site: Location) -> None:
    catalog = site.catalog
    backup = catalog.find("latest", NOW)
    (weekly,) = catalog.backups(Tier.WEEKLY)
    remove_backup(catalog, weekly)
    for suffix in (MANIFEST, GLOBALS):
        kept = backup.sidecar(suffix).read_bytes()
        put("FIFO", backup.sidecar(suffix))
        with at_once(), pytest.raises(StrangeFileError):
            promote_backup(catalog, backup, Tier.WEEKLY, datetime.now(UTC))
        assert catalog.backups(Tier.WEEKLY) == []
        backup.sidecar(suffix).unlink()
        backup.sidecar(suffix).write_bytes(kept)
    # A drill sidecar that cannot be read stops no promotion.
    put("FIFO", backup.sidecar(".drilled.json"))
    with at_once():
        assert not promote_backup(catalog, backup, Tier.WEEKLY, datetime.now(UTC)).drilled


@pytest.mark.exhaustive
@needs_root
def test_a_hundred_thousand_foreign_names_are_listed_fast(site: Location) -> None:
    root = site.catalog.root
    odd = ["with\nline", "\udcff\udcfe", "\x1b[31mred", "a" * 250, " ", "$(reboot)"]
    for folder in ("daily", "drills", "restores"):
        place = os.open(root / folder, os.O_RDONLY)
        for number in range(100_000 // 3):
            name = f"{odd[number % len(odd)][:240]}{number}" + (".dump", ".json", ".journal.x")[number % 3]
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=place))
        for number in range(1000):
            os.mkfifo(f"{number}.dump.json", dir_fd=place)
        os.close(place)
    clock = time.process_time()
    answers = all_answer(site)
    assert time.process_time() - clock < 15, "for six looks"
    assert "\x1b" not in str(answers)
    assert answers["status"].startswith("BACKUP OK")


def test_a_verdict_outside_the_volume_is_ignored(site: Location, tmp_path: Path) -> None:
    """The sidecar is a link to a good verdict in another folder."""
    backup = site.catalog.find("latest", NOW)
    elsewhere = tmp_path / "verdict"
    shutil.move(backup.sidecar(VERIFIED), elsewhere)
    backup.sidecar(VERIFIED).symlink_to(elsewhere)
    backup = site.catalog.refresh(backup)
    assert backup.state(datetime.now(UTC)) is State.UNVERIFIED
    before = elsewhere.read_bytes()
    record_judgement(site.catalog, backup, make_judgement(backup, good=True), None)
    assert elsewhere.read_bytes() == before
    assert site.catalog.refresh(backup).state(datetime.now(UTC)) is State.PROVEN


def test_a_restore_refuses_a_journal_that_is_no_file(site: Location) -> None:
    """It may hide an unfinished restore."""
    put("FIFO", place_of(f"restores/{STAMP}_x.journal", site.catalog.root))
    with at_once(), pytest.raises(StrangeFileError, match="journal cannot be read: it is a FIFO"):
        site.system.restores.unfinished()


@needs_root
def test_a_file_that_this_user_cannot_read_is_reported(site: Location) -> None:
    """As the account `nobody`, in a child process that reports by raising."""
    for place in PLACES:
        path = place_of(place, site.catalog.root)
        if place not in ("drills", "restores", HAND_OVER) and not path.exists():
            path.touch()
    for folder, _, files in os.walk(site.catalog.root):
        os.chown(folder, 65534, 65534)
        for name in files:
            os.chmod(os.path.join(folder, name), 0)

    def look() -> None:
        raise LookupError("\n".join(all_answer(site).values()))

    for parent in site.catalog.root.parents[:-2]:
        parent.chmod(0o755)
    raised = raised_as_nobody(look)
    assert isinstance(raised, LookupError), repr(raised)
    assert "Permission denied" in str(raised)


# ---------------------------------------------------------------- a volume that does not answer


def looks() -> int:
    return sum(thread.name.startswith("a look at") for thread in threading.enumerate())


@needs_root
def test_a_hanging_volume_is_alerted_once_a_day(
    bare: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline, "LOOK_SECONDS", 0.5)
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    root = location.catalog.root
    with silent(root) as hang_up:
        cursor, keys = None, []
        for _ in range(3):
            clock = time.monotonic()
            context = dg.build_sensor_context(
                instance=location.instance,
                cursor=cursor,
                definitions=location.defs,
            )
            with context:
                tick = location.defs.resolve_sensor_def("backup_freshness_sensor").evaluate_tick(context)
            assert time.monotonic() - clock < SECONDS / 3
            cursor = tick.cursor
            keys += [request.run_key for request in tick.run_requests or []]
            if len(keys) == 1 and not people.titles:
                (request,) = tick.run_requests or []
                assert location.run(ALERT_JOB, config=request.run_config, tags=request.tags).success
        assert len(keys) == 1, "told once"
        # Only one thread hangs, however often the volume is read.
        assert looks() == 1
        monkeypatch.setenv("BACKUP_DIR", str(root))
        monkeypatch.setenv("POSTGRES_HOST", "127.0.0.1")
        with at_once():
            status = command("status")
        assert status.exit_code == 3
        hang_up()
    text = f"the backup volume {root} does not answer within"
    assert text in status.output
    assert people.titles == ["[sample] the backup volume does not answer"]
    assert text in people.messages[0]["message"]
    assert f"findmnt -T {root}" in people.messages[0]["message"]


@needs_root
def test_a_volume_that_answers_again_is_read_again(tmp_path: Path) -> None:
    with silent(tmp_path / "volume") as hang_up:
        root = tmp_path / "volume"
        for _ in range(2):
            with pytest.raises(StalledVolumeError):
                deadline.within_deadline(0.2, root, lambda: os.listdir(root))
        hang_up()
        with pytest.raises(OSError, match="not connected"):
            deadline.within_deadline(SECONDS, root, lambda: os.listdir(root))
    assert deadline.within_deadline(SECONDS, root, lambda: os.listdir(root)) == []
    with pytest.raises(VolumeError, match="gone"):
        deadline.within_deadline(SECONDS, root, lambda: (_ for _ in ()).throw(VolumeError("gone")))

"""The hand-over of a volume: real files that root owns, an unprivileged user, and the old script at work beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core import takeover, takeover_links
from ovia_backup_dagster.core.backup import State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError, LockHeldError, VolumeError, VolumeMissingError
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, remove_backup
from ovia_backup_dagster.core.reserve import keep_reserve
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.takeover import Owner
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.support import crashes
from ovia_backup_dagster_tests.support.crashes import in_a_child, killed_at_each_step
from ovia_backup_dagster_tests.support.factories import (
    DAY,
    HOUR,
    NOW,
    drill_evidence,
    judged,
    make_catalog,
    names,
    publish,
    set_mtime,
    verified_backup,
    write_dump,
)
from ovia_backup_dagster_tests.support.old_script import old_script

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
US = Owner(10001, 10001)
ONE_DAY = Policy({Tier.DAILY: 1, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))
#: The exit code of a child that raised one of our errors.
REFUSED = 3


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's."""
    folder = tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp")
    os.chmod(folder, 0o755)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The old script's volume after a week."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o755)
    for days in range(7, 0, -1):
        old_script(volume, NOW - days * DAY)
    return volume


def as_us(action: Callable[[], object]) -> int:
    """Run the action as our user, in a child process; return ``REFUSED`` if it raised one of our errors."""

    def run() -> None:
        os.setgroups([])
        os.setgid(US.gid)
        os.setuid(US.uid)
        try:
            action()
        except BackupError:
            os._exit(REFUSED)

    return in_a_child(run)


def done(action: Callable[[], object]) -> None:
    assert as_us(action) == 0


def refused(action: Callable[[], object]) -> BackupError:
    with pytest.raises(BackupError) as caught:
        action()
    return caught.value


def dumps(root: Path) -> dict[str, tuple[int, bytes]]:
    """The dumps of both tiers, with inode and content."""
    found = [path for tier in Tier for path in (root / tier).glob("*.dump") if path.is_file()]
    return {f"{path.parent.name}/{path.name}": (path.stat().st_ino, path.read_bytes()) for path in found}


def everything(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """All files and folders of a volume, with inode, mode and owner."""
    found = {str(path.relative_to(root)): path.lstat() for path in [root, *root.rglob("*")]}
    return {name: (s.st_ino, s.st_mode, s.st_uid, s.st_gid) for name, s in found.items()}


def all_ours(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (US.uid, US.gid), path
        assert stat.S_IMODE(status.st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- Owner and mode -----------------------------------------------------------------------------------------------


def test_our_user_can_work_on_a_volume_after_its_hand_over(root: Path) -> None:
    before = dumps(root)
    found = takeover.begin(root, US, NOW)
    all_ours(root)
    assert dumps(root) == before
    assert set(found.changed) == {".", "daily", "weekly", ".lock", *before}
    assert found.left_alone == ()
    catalog = Catalog(root, "ovia")

    def work() -> None:
        for backup in catalog.backups():
            judged(catalog, backup)
        backup = verified_backup(catalog, NOW)
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
        drill_evidence(catalog, NOW)
        promote_and_prune.prune(catalog, ONE_DAY, NOW)

    done(work)
    assert not [b for b in catalog.backups(Tier.DAILY) if b.started_at < NOW - DAY]


def test_an_empty_volume_gets_its_folders(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir(mode=0o700)
    found = takeover.begin(tmp_path, US, NOW)
    assert names(tmp_path) == {"lost+found", "daily", "weekly", ".lock"}
    assert found.protection is None
    assert found.left_alone == ("lost+found",)
    assert (tmp_path / "lost+found").stat().st_uid == 0
    done(lambda: verified_backup(Catalog(tmp_path, "ovia"), NOW))


def test_only_our_files_change_owner(root: Path) -> None:
    catalog = make_catalog(root)
    publish(catalog, NOW)
    promote_backup(catalog, verified_backup(catalog, NOW + HOUR), Tier.WEEKLY, NOW)
    drill_evidence(catalog, NOW)
    keep_reserve(catalog.root)
    (root / "drills" / ".lock").touch()
    (root / "restores" / "one").mkdir(parents=True)
    (root / "restores" / "one" / "plan.json").touch()
    (root / "daily" / f".{BackupName('ovia', Tier.DAILY, NOW).filename}.tmp").touch()
    (root / "daily" / "my.db_daily_2026-01-01_030000.dump.json").touch()
    ours = set(everything(root))
    (root / "notes").mkdir()
    (root / "notes" / "ovia_daily_2026-01-01_030000.dump").touch()
    strange = ["notes", "README", "daily/README", "daily/ovia_weekly_2026-01-01_030000.dump", "daily/a.dump"]
    for name in strange[1:]:
        (root / name).touch()
    (root / "weekly" / "ovia_weekly_2026-01-01_030000.dump").mkdir()
    os.mkfifo(root / "drills" / "pipe")
    os.mknod(root / "daily" / "ovia_daily_2026-01-01_030000.dump", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    listening = socket.socket(socket.AF_UNIX)
    there = os.getcwd()
    os.chdir(root / "drills")
    listening.bind("socket")
    os.chdir(there)
    strange += ["weekly/ovia_weekly_2026-01-01_030000.dump", "drills/pipe", "drills/socket"]
    strange += ["daily/ovia_daily_2026-01-01_030000.dump"]
    before = everything(root)
    found = takeover.begin(root, US, NOW)
    listening.close()
    after = everything(root)
    assert sorted(found.left_alone) == sorted(strange)
    for name, status in before.items():
        assert after[name][0] == status[0]
        if name in ours:
            assert after[name][2:] == (US.uid, US.gid)
        else:
            assert after[name] == status


def test_a_second_hand_over_changes_nothing(root: Path) -> None:
    takeover.begin(root, US, NOW)
    before = everything(root)
    found = takeover.begin(root, US, NOW)
    assert found.changed == ()
    assert found.unchanged == len(before)
    assert found.protection is not None
    assert (len(found.protection.names), found.protection.added) == (8, ())
    assert everything(root) == before


def test_a_hand_over_without_changes_needs_no_root(root: Path) -> None:
    takeover.begin(root, US, NOW)
    done(lambda: takeover.begin(root, US, NOW))
    done(lambda: takeover.finish(root, US, NOW))
    done(lambda: takeover.finish(root, US, NOW))
    done(lambda: takeover.begin(root, US, NOW))


def test_after_its_end_a_hand_over_does_not_begin_again(root: Path) -> None:
    takeover.begin(root, US, NOW)
    takeover.finish(root, US, NOW)
    done(lambda: verified_backup(Catalog(root, "ovia"), NOW))
    found = takeover.begin(root, US, NOW)
    assert (found.changed, found.protection) == ((), None)
    assert names(root) == {".lock", "daily", "weekly"}
    # If the old service returns, all dumps are protected again.
    old_script(root, NOW + HOUR)
    assert takeover.begin(root, US, NOW).protection is not None


@pytest.mark.parametrize("act", [takeover.begin, takeover.finish])
def test_without_root_the_error_names_the_command(act: Callable[..., object], root: Path) -> None:
    before = everything(root)
    outcome = crashes.raised_as_nobody(lambda: act(root, US, NOW))
    assert isinstance(outcome, VolumeError)
    assert outcome.what == f"cannot hand over {root}"
    assert outcome.why == f"it is not ours yet, and this runs as user {crashes.ORDINARY_USER}"
    assert outcome.fix == "as root: ovia-backup hand-over --to 10001:10001"
    assert everything(root) == before


def test_the_error_names_the_capabilities_that_root_lacks(root: Path) -> None:
    program = (
        "import sys; from datetime import *; from pathlib import Path; from ovia_backup_dagster.core import takeover\n"
        "try: takeover.begin(Path(sys.argv[1]), takeover.Owner(10001, 10001), datetime.now(UTC))\n"
        "except takeover.VolumeError as error: print(error)"
    )

    def run(*kept: str) -> str:
        caps = ",".join(["-all", *(f"+{name}" for name in kept)])
        command = ["setpriv", f"--bounding-set={caps}", "--inh-caps=-all", sys.executable, "-c", program, str(root)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "this is a root without the capabilities CHOWN, FOWNER and DAC_OVERRIDE" in run("fowner", "dac_override")
    for _ in range(2):
        assert run("chown", "fowner", "dac_override") == ""
        old_script(root, NOW + HOUR)


def test_monthly_and_yearly_backups_need_no_second_link(root: Path) -> None:
    """The old script does not know these folders, and removes nothing from them."""
    catalog = make_catalog(root.parent / "other")
    for tier in (Tier.MONTHLY, Tier.YEARLY):
        backup = write_dump(catalog, NOW, tier)
        (root / tier).mkdir(mode=0o755)
        os.rename(backup.path, root / tier / backup.path.name)
    found = takeover.begin(root, US, NOW)
    all_ours(root)
    assert found.left_alone == ()
    assert found.protection is not None
    assert {name.partition("/")[0] for name in found.protection.names} == {"daily", "weekly"}
    assert names(root / takeover_links.FOLDER) == {"daily", "weekly"}
    before = dumps(root)
    old_script(root, NOW + HOUR)
    assert {name for name in before if name.startswith(("monthly", "yearly"))} <= set(dumps(root))
    assert takeover.finish(root, US, NOW).left_alone == ()
    assert before.items() <= dumps(root).items()


# --- Links, mounts and foreign files --------------------------------------------------------------------------------


def test_no_link_is_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("root's own")
    (outside / "folder" / "ovia_daily_2026-01-01_030000.dump").write_text("root's own")
    (root / "daily" / "ovia_daily_2026-02-01_030000.dump").symlink_to(outside / "file")
    (root / "daily" / "ovia_daily_2026-02-01_030000.dump.json").symlink_to(outside / "file")
    (root / "drills").symlink_to(outside / "folder")
    (root / "restores").mkdir()
    (root / "restores" / "x").symlink_to(outside / "folder")
    (root / ".reserve").symlink_to(outside / "file")
    os.rename(root / "weekly", tmp_path / "weekly")
    (root / "weekly").symlink_to(outside / "folder")
    before = everything(outside)
    with pytest.raises(VolumeError, match="cannot protect the dumps"):  # weekly/ is a link
        takeover.begin(root, US, NOW)
    (root / "weekly").unlink()
    found = takeover.begin(root, US, NOW)
    assert everything(outside) == before
    assert set(found.left_alone) == {
        "daily/ovia_daily_2026-02-01_030000.dump",
        "daily/ovia_daily_2026-02-01_030000.dump.json",
        "drills",
        "restores/x",
        ".reserve",
    }
    assert found.protection is not None
    assert not [name for name in found.protection.names if "2026-02-01" in name]


@pytest.mark.parametrize("target", ["file", "folder", "nowhere"])
@pytest.mark.parametrize("name", [".lock", ".handover", ".handover.new"])
def test_a_link_where_root_would_create_a_file_is_refused(name: str, target: str, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("root's own")
    (root / name).symlink_to(outside / target)
    before = everything(outside)
    assert isinstance(refused(lambda: takeover.begin(root, US, NOW)), VolumeError)
    assert everything(outside) == before
    assert (outside / "file").read_text() == "root's own"


def test_links_among_the_protected_dumps_are_not_restored(root: Path, tmp_path: Path) -> None:
    takeover.begin(root, US, NOW)
    secret = tmp_path / "secret"
    secret.write_text("root's own")
    (root / ".handover" / "daily" / "ovia_daily_2026-02-01_030000.dump").symlink_to(secret)
    error = refused(lambda: takeover.finish(root, US, NOW))
    assert "daily/ovia_daily_2026-02-01_030000.dump in it" in str(error)
    assert not (root / "daily" / "ovia_daily_2026-02-01_030000.dump").exists()
    assert secret.stat().st_uid == 0


@pytest.mark.parametrize("swap", [os.symlink, os.link])
def test_a_file_swapped_for_a_link_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("root's own")
    real = os.open
    swapped: list[str] = []

    def swapping(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if str(path).endswith(".dump") and not swapped:
            swapped.append(path)
            (root / "daily" / path).unlink(missing_ok=True)
            swap(secret, root / "daily" / path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapping)
    with contextlib.suppress(VolumeError):
        takeover.begin(root, US, NOW)
    assert swapped
    assert secret.stat().st_uid == 0


def test_other_filesystems_are_not_entered(root: Path) -> None:
    (root / "drills").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(root / "drills")], check=True)
    try:
        (root / "drills" / "evidence.json").touch()
        found = takeover.begin(root, US, NOW)
        assert found.left_alone == ("drills",)
        assert (root / "drills" / "evidence.json").stat().st_uid == 0
    finally:
        subprocess.run(["umount", str(root / "drills")], check=True)


def test_a_file_mounted_from_elsewhere_is_left_alone(root: Path, tmp_path: Path) -> None:
    path = min((root / "daily").iterdir())
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "volume" / "weekly")], check=True)
    try:
        lent = root / "weekly" / "lent"
        lent.touch()
        subprocess.run(["mount", "--bind", str(lent), str(path)], check=True)
        try:
            with pytest.raises(VolumeError):
                takeover.begin(root, US, NOW)
            assert lent.stat().st_uid == 0
        finally:
            subprocess.run(["umount", str(path)], check=True)
    finally:
        subprocess.run(["umount", str(root / "weekly")], check=True)


@pytest.mark.parametrize("path", ["/", "/etc", "/home", "/var/lib", "/usr/../etc", "/tmp"])
def test_a_system_folder_is_refused_as_a_volume(path: str) -> None:
    before = os.stat(path)
    error = refused(lambda: takeover.begin(Path(path), US, NOW))
    assert error.account == f"{Path(path)} is not a backup volume: it is a folder of the system's"
    assert (os.stat(path).st_uid, os.stat(path).st_mode) == (before.st_uid, before.st_mode)


def test_a_folder_of_other_files_is_refused_as_a_volume(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    before = everything(tmp_path)
    error = refused(lambda: takeover.begin(tmp_path, US, NOW))
    assert error.account == f"{tmp_path} is not a backup volume: it holds thesis.tex, and nothing of ours"
    assert everything(tmp_path) == before


def test_a_missing_volume_cannot_be_handed_over(tmp_path: Path) -> None:
    assert isinstance(refused(lambda: takeover.begin(tmp_path / "x", US, NOW)), VolumeMissingError)
    (tmp_path / "x").touch()
    assert refused(lambda: takeover.begin(tmp_path / "x", US, NOW)).what == f"{tmp_path / 'x'} is not a folder"
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    assert refused(lambda: takeover.begin(tmp_path / "link", US, NOW)).what == f"{tmp_path / 'link'} is not a folder"
    assert names(tmp_path / "volume") == set()


# --- Sharing a volume with the old script ---------------------------------------------------------------------------


def test_a_dump_removed_by_the_old_script_is_restored(root: Path) -> None:
    takeover.begin(root, US, NOW)
    catalog = Catalog(root, "ovia")
    done(lambda: [judged(catalog, backup) for backup in catalog.backups()])
    done(lambda: promote_backup(catalog, verified_backup(catalog, NOW), Tier.WEEKLY, NOW))
    before = dumps(root)
    for days in range(1, 9):
        old_script(root, NOW + days * DAY)
    assert not set(dumps(root)) >= set(before)
    # A sweep keeps the sidecars of dumps that will be restored.
    done(lambda: sweep_abandoned(catalog))
    still = dumps(root)
    found = takeover.finish(root, US, NOW)
    assert set(found.came_back) == set(before) - set(still)
    assert dumps(root) == {**before, **still}
    all_ours(root)
    assert not (root / ".handover").exists()
    weekly = BackupName("ovia", Tier.WEEKLY, NOW).filename
    for backup in catalog.backups():
        if f"{backup.tier}/{backup}" in before:
            assert backup.state(NOW) is State.VERIFIED or backup.path.name == weekly
    assert takeover.finish(root, US, NOW).came_back == ()


def test_a_dump_removed_by_our_retention_is_not_restored(root: Path) -> None:
    takeover.begin(root, US, NOW)
    catalog = Catalog(root, "ovia")
    done(lambda: [judged(catalog, backup) for backup in catalog.backups()])
    done(lambda: promote_and_prune.prune(catalog, ONE_DAY, NOW))
    left = dumps(root)
    assert len(left) < 8
    assert takeover.finish(root, US, NOW).came_back == ()
    assert dumps(root) == left


def test_a_dump_being_written_is_protected_as_it_grows(root: Path) -> None:
    growing = root / "daily" / BackupName("ovia", Tier.DAILY, NOW).filename
    with growing.open("wb") as file:
        file.write(b"PGDMP half")
        file.flush()
        found = takeover.begin(root, US, NOW)
        assert found.protection is not None
        assert f"daily/{growing.name}" in found.protection.added
        file.write(b" and the rest")
    growing.unlink()
    takeover.finish(root, US, NOW)
    assert growing.read_bytes() == b"PGDMP half and the rest"


def test_a_new_dump_with_a_removed_name_is_not_replaced(root: Path) -> None:
    takeover.begin(root, US, NOW)
    path = min((root / "daily").iterdir())
    kept = path.read_bytes()
    path.unlink()
    path.write_bytes(b"PGDMP another one")
    error = refused(lambda: takeover.begin(root, US, NOW))
    assert f"the old script can still remove daily/{path.name}: another file of that name is protected" in str(error)
    error = refused(lambda: takeover.finish(root, US, NOW))
    assert f"cannot be removed: daily/{path.name} in it" in error.what
    assert path.read_bytes() == b"PGDMP another one"
    assert (root / ".handover" / "daily" / path.name).read_bytes() == kept
    assert len(names(root / ".handover" / "daily")) == 1  # the others are no longer protected
    os.rename(root / ".handover" / "daily" / path.name, root / "daily" / "by_hand")
    takeover.finish(root, US, NOW)
    assert not (root / ".handover").exists()


def test_an_equal_copy_of_a_removed_dump_is_accepted(root: Path) -> None:
    """As when a person copied the backup back to its name."""
    takeover.begin(root, US, NOW)
    path = min((root / "daily").iterdir())
    kept = path.read_bytes()
    path.unlink()
    path.write_bytes(kept[:-1] + b"?")
    assert f"daily/{path.name} in it" in refused(lambda: takeover.finish(root, US, NOW)).what
    path.write_bytes(kept)
    takeover.finish(root, US, NOW)
    assert path.read_bytes() == kept
    assert not (root / ".handover").exists()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent)])
def test_a_special_file_with_a_removed_name_is_not_read(root: Path, make: Callable[[Path], None]) -> None:
    takeover.begin(root, US, NOW)
    path = min((root / "daily").iterdir())
    path.unlink()
    make(path)
    assert f"daily/{path.name} in it" in refused(lambda: takeover.finish(root, US, NOW)).what
    assert len(names(root / ".handover" / "daily")) == 1


def test_other_databases_are_protected_too(root: Path) -> None:
    old_script(root, NOW, database="other", daily_keep=20)
    found = takeover.begin(root, US, NOW)
    assert found.protection is not None
    assert sum("/other_" in name for name in found.protection.names) == 1


def test_a_hand_over_is_refused_while_the_lock_is_held(root: Path) -> None:
    takeover.begin(root, US, NOW)
    path = root / "daily" / BackupName("ovia", Tier.DAILY, NOW).filename
    path.write_bytes(b"PGDMP")
    with Catalog(root, "ovia").lock("dumping", NOW):
        assert isinstance(refused(lambda: takeover.begin(root, US, NOW)), LockHeldError)
    # The owner was changed all the same.
    assert path.stat().st_uid == US.uid


def test_dumps_on_another_mount_are_reported_unprotected(root: Path) -> None:
    before = dumps(root)
    # The same filesystem, but hard links do not cross mounts.
    subprocess.run(["mount", "--bind", str(root / "daily"), str(root / "daily")], check=True)
    try:
        error = refused(lambda: takeover.begin(root, US, NOW))
        assert "the volume is handed over, but the old script can still remove daily/ovia_daily" in error.what
        assert error.reason == "it is on another filesystem than BACKUP_DIR (Invalid cross-device link)"
        assert "stop the old script" in error.fix
        takeover.finish(root, US, NOW)
        assert dumps(root) == before
        assert not (root / ".handover").exists()
        all_ours(root)
    finally:
        subprocess.run(["umount", str(root / "daily")], check=True)


@pytest.mark.parametrize("number", ["EMLINK", "ENOTSUP", "EPERM"])
def test_a_filesystem_without_links_protects_no_dump(number: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object, **__: object) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refusing)
    error = refused(lambda: takeover.begin(root, US, NOW))
    assert "the old script can still remove daily/ovia_daily_2026-06-08_120000.dump and 7 more" in error.what
    monkeypatch.undo()
    all_ours(root)


def test_without_a_hand_over_nothing_is_protected(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path)
    backup = verified_backup(catalog, NOW)
    promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    remove_backup(catalog, backup)
    assert names(tmp_path) == {"daily", "weekly"}
    assert takeover_links.handover_began(tmp_path) is None


# --- Killed processes -----------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_a_hand_over_killed_at_any_step_can_be_repeated(tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    current: list[tuple[Path, dict[str, tuple[int, bytes]]]] = []

    def prepare() -> Callable[[], object]:
        volume = tmp_path / str(next(numbers))
        catalog = make_catalog(volume)
        for days in range(3):
            write_dump(catalog, NOW - days * DAY)
        write_dump(catalog, NOW, Tier.WEEKLY)
        current[:] = [(volume, dumps(volume))]
        return lambda: takeover.begin(volume, US, NOW)

    for _ in killed_at_each_step(prepare):
        ((volume, before),) = current
        assert dumps(volume) == before
        takeover.begin(volume, US, NOW)
        all_ours(volume)
        done(lambda volume=volume: verified_backup(Catalog(volume, "ovia"), NOW + HOUR))  # type: ignore[misc]
        for path in volume.glob("*/ovia_*.dump"):
            path.unlink()
        takeover.finish(volume, US, NOW)
        assert dumps(volume).items() >= before.items()
        assert len(dumps(volume)) == len(before) + 1
        assert names(volume) == {".lock", "daily", "weekly"}


@pytest.mark.exhaustive
def test_a_finish_killed_at_any_step_loses_nothing(tmp_path: Path) -> None:
    numbers = iter(range(10_000))
    current: list[tuple[Path, dict[str, tuple[int, bytes]]]] = []

    def prepare() -> Callable[[], object]:
        volume = tmp_path / str(next(numbers))
        catalog = make_catalog(volume)
        for days in range(4):
            write_dump(catalog, NOW - days * DAY)
        write_dump(catalog, NOW, Tier.WEEKLY)
        before = dumps(volume)
        takeover.begin(volume, US, NOW)
        for name in list(before)[::2]:
            (volume / name).unlink()
        current[:] = [(volume, before)]
        return lambda: takeover.finish(volume, US, NOW)

    for _ in killed_at_each_step(prepare):
        ((volume, before),) = current
        takeover.finish(volume, US, NOW)
        assert dumps(volume) == before
        all_ours(volume)
        assert names(volume) == {".lock", "daily", "weekly"}


@pytest.mark.exhaustive
def test_pruning_killed_at_any_step_loses_only_its_removals(
    tmp_path: Path,
) -> None:
    numbers = iter(range(10_000))
    current: list[Catalog] = []

    def prepare() -> Callable[[], object]:
        catalog = make_catalog(tmp_path / str(next(numbers)))
        for days in range(3):
            verified_backup(catalog, NOW - days * 2 * DAY)
        takeover.begin(catalog.root, US, NOW)
        current[:] = [catalog]
        return lambda: promote_and_prune.prune(catalog, ONE_DAY, NOW)

    for _ in killed_at_each_step(prepare):
        (catalog,) = current
        there = set(dumps(catalog.root))
        takeover.finish(catalog.root, US, NOW)
        assert set(dumps(catalog.root)) == there
        promote_and_prune.prune(catalog, ONE_DAY, NOW)
        assert [b.started_at for b in catalog.backups()] == [NOW]
        assert len(names(catalog.folder(Tier.DAILY))) == len(("dump", "manifest", "globals", "verdict"))


class SharedVolume:
    """Both systems on one volume, day after day, and the backups that must exist at the end."""

    policy = Policy({Tier.DAILY: 2, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = Catalog(root, "ovia")
        self.now = NOW
        self.must: dict[str, tuple[int, bytes]] = {}
        self.ours: set[str] = set()
        self.removed: set[str] = set()
        self.complete = True
        for _ in range(4):
            self.step("old")
        self.step("hand-over")

    def step(self, what: str, kill_at: int = 0) -> None:
        self.now += timedelta(hours=7)
        action = {"old": self.old, "dump": self.dump, "prune": self.prune, "hand-over": self.hand_over}[what]
        action(kill_at)

    def old(self, _: int) -> None:
        old_script(self.root, self.now, daily_keep=3, weekly_keep=2)

    def dump(self, kill_at: int) -> None:
        before = set(dumps(self.root))

        def run() -> None:
            if kill_at:
                crashes.die_at(kill_at)
            made = publish(self.catalog, self.now, content=f"PGDMP of ours, {self.now}".encode())
            set_mtime(made.path, self.now)
            made = judged(self.catalog, self.catalog.refresh(made))
            promote_and_prune.promote(self.catalog, made, self.policy, self.now)

        code = as_us(run)
        after = dumps(self.root)
        if code == 0:
            self.must |= {name: after[name] for name in set(after) - before}
            self.ours |= set(after) - before
        else:
            assert kill_at or not self.complete

    def prune(self, kill_at: int) -> None:
        removals: list[str] = []

        def judge() -> None:
            with self.catalog.lock("verifying", self.now):
                for backup in self.catalog.backups():
                    if backup.state(self.now) is State.UNVERIFIED:
                        judged(self.catalog, backup)

        def run() -> None:
            if kill_at:
                crashes.die_at(kill_at)
            promote_and_prune.prune(self.catalog, self.policy, self.now)

        as_us(judge)
        plan = promote_and_prune.preview(self.catalog.backups(), self.policy, self.now)
        removals = [] if plan.held else [decision.candidate.key for decision in plan.removals]
        code = as_us(run)
        assert code != 1
        for name in removals:
            self.must.pop(name, None)
        if code == 0:
            self.removed |= set(removals)

    def hand_over(self, kill_at: int) -> None:
        def run() -> None:
            if kill_at:
                crashes.die_at(kill_at)
            takeover.begin(self.root, US, self.now)

        self.complete = in_a_child(run) == 0
        assert kill_at or self.complete
        if self.complete:
            self.must |= dumps(self.root)

    def end(self, kill_at: int) -> None:
        there = dumps(self.root)

        def run() -> None:
            if kill_at:
                crashes.die_at(kill_at)
            takeover.finish(self.root, US, self.now)

        in_a_child(run)
        takeover.finish(self.root, US, self.now)
        all_ours(self.root)
        found = dumps(self.root)
        assert found.items() >= {**self.must, **there}.items()
        assert not set(found) & self.removed
        for name in self.ours & set(self.must):
            if name.startswith(Tier.DAILY):
                assert (self.root / f"{name}{MANIFEST}").exists(), name
        assert ".handover" not in names(self.root)


STEP = st.tuples(
    st.sampled_from(["old", "dump", "prune", "hand-over"]), st.sampled_from([0, 0, 0]) | st.integers(1, 40)
)


def nothing_is_lost(steps: list[tuple[str, int]], kill_at: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ovia-t-") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "volume").mkdir()
        shared = SharedVolume(Path(folder) / "volume")
        for what, at in steps:
            shared.step(what, at)
        shared.end(kill_at)


_ANY_ORDER = given(steps=st.lists(STEP, max_size=14), kill_at=st.integers(0, 60))


@pytest.mark.exhaustive
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@_ANY_ORDER
def test_a_shared_volume_loses_only_what_retention_removes(steps: list[tuple[str, int]], kill_at: int) -> None:
    nothing_is_lost(steps, kill_at)


@pytest.mark.exhaustive
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@_ANY_ORDER
def test_a_shared_volume_loses_nothing_in_any_order(steps: list[tuple[str, int]], kill_at: int) -> None:
    nothing_is_lost(steps, kill_at)

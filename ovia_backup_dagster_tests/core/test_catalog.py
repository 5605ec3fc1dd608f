"""The backup volume with real files: what is listed, and that every change is atomic."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.backup_statements import record_judgement
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupNotFoundError, DiskFullError, VolumeError
from ovia_backup_dagster.core.files import file_sha256, sync_folder
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup, publish_backup, remove_backup
from ovia_backup_dagster.core.sidecars import DRILLED, GLOBALS, HELD, MANIFEST, PROMOTED, SIDECAR_KINDS, VERIFIED
from ovia_backup_dagster.core.sweeping import sweep_abandoned
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import Hold
from ovia_backup_dagster_tests.conftest import snapshot
from ovia_backup_dagster_tests.support.crashes import killed_at_each_step, raised_as_nobody
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import (
    CONTENT,
    DAY,
    HOUR,
    NOW,
    ROLES,
    drilled,
    held,
    judged,
    make_catalog,
    make_judgement,
    make_manifest,
    make_witness,
    names,
    publish,
    set_mtime,
    verification_of,
    verified_backup,
    write_dump,
)

AT = NOW - 3 * DAY
DUMP = "ovia_daily_2026-06-12_120000.dump"
WEEKLY_DUMP = "ovia_weekly_2026-06-12_120000.dump"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return make_catalog(tmp_path / "backups")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users can enter; pytest's own temporary folders are for their owner only."""
    folder = Path(tempfile.mkdtemp(prefix="ovia-t-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)
        shutil.rmtree(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusing(number: int, *, only: Path | None = None) -> Callable[..., None]:
    """A replacement for a system call that fails with an error number."""

    def refuse(*paths: object, **_: object) -> None:
        assert only is None or only in paths
        raise OSError(number, os.strerror(number))

    return refuse


# --- What is listed -----------------------------------------------------------------------------------------------


def test_backups_of_both_tiers_are_listed_newest_first(catalog: Catalog) -> None:
    for days in (5, 1, 3):
        write_dump(catalog, NOW - days * DAY)
    write_dump(catalog, NOW - 3 * DAY, Tier.WEEKLY)
    assert [str(b) for b in catalog.backups()] == [
        "ovia_daily_2026-06-14_120000.dump",
        "ovia_daily_2026-06-12_120000.dump",
        "ovia_weekly_2026-06-12_120000.dump",
        "ovia_daily_2026-06-10_120000.dump",
    ]
    assert [b.tier for b in catalog.backups(Tier.WEEKLY)] == [Tier.WEEKLY]


def test_names_sort_by_instant_and_not_by_letters(catalog: Catalog) -> None:
    # A regression: the newest backups were deleted because names sort in another order than instants.
    made = [write_dump(catalog, datetime(year, 1, 1, tzinfo=UTC)) for year in (999, 1999, 2026)]
    assert catalog.backups() == made[::-1]


def test_listing_ten_thousand_backups_reads_no_sidecar(catalog: Catalog) -> None:
    folder = catalog.folder(Tier.DAILY)
    for n in range(10_000):
        filename = BackupName("ovia", Tier.DAILY, NOW - n * HOUR).filename
        (folder / filename).touch()
        if n % 100 == 0:
            (folder / f"{filename}{VERIFIED}").mkdir()  # reading it fails
    listed = catalog.backups()
    assert [b.started_at for b in listed] == [NOW - n * HOUR for n in range(10_000)]


def test_files_of_other_programs_are_not_listed(catalog: Catalog) -> None:
    lay_out_strangers(catalog)
    assert [str(b) for b in catalog.backups()] == [FRESH]


def test_a_name_that_is_not_utf8_does_not_hide_the_others(catalog: Catalog) -> None:
    backup = write_dump(catalog, AT)
    folder = os.fsencode(catalog.folder(Tier.DAILY))
    for filename in (b"caf\xe9_daily_2026-06-12_120000.dump", b"\xff_daily_2026-06-12_120000.dump", b"\xff"):
        os.close(os.open(folder + b"/" + filename, os.O_CREAT | os.O_WRONLY))
    assert catalog.backups() == [backup]
    assert sweep_abandoned(catalog) == []


@pytest.mark.parametrize("database", ["my.db", "../x", "a\nb", "'; rm -rf ~; '", "a_daily_b", "100%", "日本"])
def test_a_database_of_any_name_has_its_backups_in_the_folder(tmp_path: Path, database: str) -> None:
    catalog = make_catalog(tmp_path, database)
    backup = verified_backup(catalog, AT)
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert catalog.backups() == [backup, weekly]
    assert {path.parent for path in tmp_path.rglob("*.dump*")} == {tmp_path / "daily", tmp_path / "weekly"}
    assert make_catalog(tmp_path, "ovia").backups() == []


def test_the_old_scripts_name_with_a_dot_is_listed(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path, "my.db")
    (tmp_path / "daily" / "my.db_daily_2026-06-12_120000.dump").touch()
    assert [str(b) for b in catalog.backups()] == ["my.db_daily_2026-06-12_120000.dump"]


def test_a_missing_volume_is_an_error_and_not_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist") as refused:
        Catalog(tmp_path / "missing", "ovia").backups()
    assert "BACKUP_DIR" in refused.value.why
    assert refused.value.fix


def test_a_volume_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError):
        Catalog(tmp_path / "file", "ovia").backups()
    with pytest.raises(VolumeError):
        Catalog(tmp_path / "file", "ovia").prepare()


def test_a_tier_without_a_folder_is_empty(tmp_path: Path) -> None:
    assert Catalog(tmp_path, "ovia").backups() == []


def test_a_file_in_a_tiers_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "weekly").touch()
    with pytest.raises(VolumeError, match="cannot list"):
        Catalog(tmp_path, "ovia").backups()


# --- What is known about a backup ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "state"),
    [
        (timedelta(0), State.BEING_WRITTEN),
        (timedelta(minutes=14, seconds=59), State.BEING_WRITTEN),
        (timedelta(minutes=15), State.UNVERIFIED),
        (30 * DAY, State.UNVERIFIED),
        # The file server's clock may be a little ahead.
        (timedelta(minutes=-1), State.BEING_WRITTEN),
        # Written while a clock was a year ahead: it must not count as being written for a whole year.
        (-365 * DAY, State.UNVERIFIED),
    ],
)
def test_a_young_dump_without_manifest_is_being_written(catalog: Catalog, age: timedelta, state: State) -> None:
    assert write_dump(catalog, AT, age=age).state(NOW) is state


def test_a_dump_with_a_manifest_is_never_being_written(catalog: Catalog) -> None:
    backup = publish(catalog, NOW)
    set_mtime(backup.path, NOW)
    assert catalog.refresh(backup).state(NOW) is State.UNVERIFIED


def test_a_verdict_on_a_fresh_dump_of_the_old_script_counts(catalog: Catalog) -> None:
    assert judged(catalog, write_dump(catalog, AT, age=timedelta(0))).state(NOW) is State.VERIFIED


@pytest.mark.parametrize(("good", "state"), [(True, State.VERIFIED), (False, State.BAD)])
def test_a_recorded_verdict_is_read_again(catalog: Catalog, good: bool, state: State) -> None:
    judged(catalog, publish(catalog, AT), good=good)
    (backup,) = catalog.backups()
    assert backup.state(NOW) is state
    assert (backup.witness is not None) == good


def test_a_file_of_another_length_is_unverified_again(catalog: Catalog) -> None:
    backup = judged(catalog, write_dump(catalog, AT))
    before = backup.path.stat()
    backup.path.write_bytes(CONTENT[:-1])
    os.utime(backup.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = catalog.refresh(backup)
    assert changed.state(NOW) is State.UNVERIFIED
    assert changed.judgement is None
    assert changed.witness is None


def test_a_file_written_again_is_unverified_again(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    os.utime(backup.path, ns=(0, backup.mtime_ns + 1))
    assert catalog.refresh(backup).state(NOW) is State.UNVERIFIED


def test_a_bad_file_that_was_rewritten_is_unverified(catalog: Catalog) -> None:
    backup = judged(catalog, write_dump(catalog, AT), good=False)
    backup.path.write_bytes(CONTENT + b"whole again")
    set_mtime(backup.path, AT)
    assert catalog.refresh(backup).state(NOW) is State.UNVERIFIED


def test_judgements_are_appended_and_the_last_one_counts(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    for good in (True, False, True):
        backup = judged(catalog, backup, good=good)
        assert backup.state(NOW) is (State.VERIFIED if good else State.BAD)
    assert [j.good for j in verification_of(backup).judgements] == [True, False, True]


def test_the_last_good_reading_stays_when_damage_is_found(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    reading = backup.witness
    backup = record_judgement(catalog, backup, make_judgement(backup, good=False), None)
    assert verification_of(backup).witness == reading
    assert backup.witness is None


def test_statements_never_change_dump_or_manifest(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    before = snapshot(catalog.root)
    backup = judged(catalog, backup)
    backup = held(catalog, backup, NOW + DAY)
    promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    after = snapshot(catalog.root)
    assert {name: after[name] for name in before} == before


BROKEN = ["", "garbage", "{", "{}", "[]", "null", '{"version": 2}', '{"version": 1, "judgements": [], "witness": null}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_verdict_does_not_count(catalog: Catalog, text: str) -> None:
    backup = verified_backup(catalog, AT)
    backup.sidecar(VERIFIED).write_text(text, encoding="utf-8")
    (backup,) = catalog.backups()
    assert backup.verification is None
    assert backup.state(NOW) is State.UNVERIFIED
    assert judged(catalog, backup).state(NOW) is State.VERIFIED


def test_a_newer_versions_verdict_does_not_count(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    text = backup.sidecar(VERIFIED).read_text(encoding="utf-8")
    backup.sidecar(VERIFIED).write_text(text.replace('"version": 1', '"version": 2'), encoding="utf-8")
    assert catalog.refresh(backup).state(NOW) is State.UNVERIFIED


@pytest.mark.parametrize("text", [text for text in BROKEN if "version" not in text])
def test_a_broken_manifest_is_missing_and_reported(catalog: Catalog, text: str) -> None:
    """The backup is unverified then, because the verdict covered the intact manifest."""
    backup = verified_backup(catalog, AT)
    backup.sidecar(MANIFEST).write_text(text, encoding="utf-8")
    (backup,) = catalog.backups()
    assert backup.state(NOW) is State.UNVERIFIED
    assert backup.manifest is None
    assert backup.manifest_trouble.startswith("its manifest cannot be read (")


def test_a_newer_versions_manifest_is_an_error(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    text = backup.sidecar(MANIFEST).read_text(encoding="utf-8")
    text = text.replace('"version": 1', '"version": 2').replace('"seconds"', '"minutes"')
    backup.sidecar(MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(VolumeError):
        _ = catalog.refresh(backup).manifest


def test_reading_a_broken_hold_is_an_error(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    backup.sidecar(HELD).write_text("garbage", encoding="utf-8")
    with pytest.raises(VolumeError):
        _ = backup.hold


def test_a_hold_is_read_again_and_replaced(catalog: Catalog) -> None:
    backup = held(catalog, verified_backup(catalog, AT), NOW + DAY)
    assert backup.unit is not None
    hold = Hold(covered=backup.unit.covered, until=NOW + DAY, reason="people shrank from 10 to 1 rows")
    assert backup.hold == hold
    again = held(catalog, backup, NOW + 2 * DAY, released_at=NOW).hold
    assert again == hold.model_copy(update={"until": NOW + 2 * DAY, "released_at": NOW})


def test_drills_are_appended_and_the_last_one_counts(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    assert (backup.drills, backup.drilled) == (None, False)
    for passed in (True, False, True):
        backup = drilled(catalog, backup, passed=passed)
        assert backup.drilled is passed
    assert backup.drills is not None
    assert [drill.passed for drill in backup.drills.drills] == [True, False, True]
    assert mode(backup.sidecar(DRILLED)) == 0o600
    assert backup.state(NOW) is State.PROVEN
    assert drilled(catalog, backup, passed=False).state(NOW) is State.VERIFIED


def test_a_drill_counts_only_for_the_file_that_it_restored(catalog: Catalog) -> None:
    backup = drilled(catalog, verified_backup(catalog, AT))
    os.utime(backup.path, ns=(0, backup.mtime_ns + 1))
    assert not catalog.refresh(backup).drilled
    backup = drilled(catalog, catalog.refresh(backup))
    assert backup.drilled
    backup.path.write_bytes(CONTENT[:-1])
    os.utime(backup.path, ns=(0, backup.mtime_ns))
    assert not catalog.refresh(backup).drilled


@pytest.mark.parametrize("text", ["", "{}", "garbage", '{"version": 1, "drills": []}', '{"version": 2, "drills": []}'])
def test_a_broken_drill_sidecar_does_not_count(catalog: Catalog, text: str) -> None:
    backup = verified_backup(catalog, AT)
    backup.sidecar(DRILLED).write_text(text, encoding="utf-8")
    assert (backup.drills, backup.drilled) == (None, False)
    assert drilled(catalog, backup).drilled


def test_the_newest_backup_in_a_state_is_found(catalog: Catalog) -> None:
    verified_backup(catalog, NOW - 2 * DAY)
    recent = verified_backup(catalog, NOW - DAY)
    bad = judged(catalog, publish(catalog, NOW - HOUR), good=False)
    assert catalog.newest(NOW, State.VERIFIED, State.PROVEN) == recent
    assert catalog.newest(NOW, State.BAD, State.VERIFIED) == bad
    assert catalog.newest(NOW, State.UNVERIFIED) is None


# --- Finding a backup by name -------------------------------------------------------------------------------------


def test_a_backup_is_found_by_name_stem_and_path(catalog: Catalog) -> None:
    backup, _ = verified_backup(catalog, AT), verified_backup(catalog, AT + DAY)
    for wanted in (DUMP, DUMP.removesuffix(".dump"), str(backup.path)):
        assert catalog.find(wanted, NOW) == backup


def test_a_backup_is_found_by_a_relative_path(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = verified_backup(catalog, AT)
    monkeypatch.chdir(catalog.root)
    assert catalog.find(f"daily/{DUMP}", NOW) == backup
    monkeypatch.chdir(catalog.folder(Tier.DAILY))
    shutil.copy2(DUMP, "mine.dump")
    assert catalog.find("./mine.dump", NOW).path == backup.path.with_name("mine.dump")
    assert catalog.find(f"./{DUMP}", NOW) == backup


def test_the_two_tiers_copies_differ_by_name(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert catalog.find(WEEKLY_DUMP, NOW) == weekly
    assert catalog.find(DUMP, NOW) == backup


def test_latest_is_the_newest_that_is_not_being_written(catalog: Catalog) -> None:
    verified_backup(catalog, AT)
    latest = publish(catalog, NOW - DAY)
    write_dump(catalog, NOW, age=timedelta(minutes=1))
    assert catalog.find("latest", NOW) == latest


def test_latest_may_be_a_weekly_backup(catalog: Catalog) -> None:
    verified_backup(catalog, AT)
    weekly = write_dump(catalog, NOW - DAY, Tier.WEEKLY)
    assert catalog.find("latest", NOW) == weekly


def test_a_dump_elsewhere_is_found_by_path_with_sidecars(catalog: Catalog, tmp_path: Path) -> None:
    elsewhere = verified_backup(make_catalog(tmp_path / "elsewhere"), AT)
    found = catalog.find(str(elsewhere.path), NOW)
    assert found == elsewhere
    assert found.manifest == elsewhere.manifest
    assert found.state(NOW) is State.VERIFIED


def test_a_dump_outside_the_volume_may_have_any_name(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "'; rm -rf ~; '.dump"
    path.write_bytes(CONTENT)
    set_mtime(path, AT)
    found = catalog.find(str(path), NOW)
    assert found.path == path
    assert found.name == BackupName("ovia", Tier.DAILY, AT)
    assert found.manifest is None
    assert found.state(NOW) is State.UNVERIFIED


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        ".",
        "..",
        "/",
        "../x",
        "../../etc/passwd-that-is-not-there",
        "'; rm -rf ~; '",
        "a\nb",
        "a\0b",
        "folder/a\0b",
        "-rf",
        "*",
        "LATEST",
        "notes.txt",
        "daily",
        DUMP.replace("ovia", "other"),
        DUMP + ".json",
        "x" * 5000,
        "folder/" + "x" * 5000,
        "\udcff",
        "folder/\udcff",
    ],
)
def test_an_unknown_backup_name_lists_the_known_ones(catalog: Catalog, wanted: str) -> None:
    verified_backup(catalog, AT)
    with pytest.raises(BackupNotFoundError) as refused:
        catalog.find(wanted, NOW)
    assert refused.value.why == f"the newest is {DUMP}"
    assert str(refused.value).isprintable()


def test_on_an_empty_volume_the_error_says_so(catalog: Catalog) -> None:
    with pytest.raises(BackupNotFoundError, match=r"there is no backup at all\. Next: ovia-backup dump"):
        catalog.find("latest", NOW)


def test_a_backup_that_is_gone_cannot_be_refreshed(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    backup.path.unlink()
    with pytest.raises(BackupNotFoundError, match="is gone"):
        catalog.refresh(backup)


def test_a_taken_name_moves_to_the_next_second(catalog: Catalog) -> None:
    for seconds in (0, 1):
        write_dump(catalog, AT + timedelta(seconds=seconds))
    assert catalog.free_name(AT).started_at == AT + timedelta(seconds=2)
    assert catalog.free_name(AT + DAY).started_at == AT + DAY


# --- Making the folders -------------------------------------------------------------------------------------------


def test_folders_are_made_for_their_owner_only(tmp_path: Path) -> None:
    root = tmp_path / "a" / "backups"
    Catalog(root, "ovia").prepare()
    assert [mode(folder) for folder in (root, root / "daily", root / "weekly")] == [0o700] * 3
    Catalog(root, "ovia").prepare()


def test_a_folder_removed_while_it_is_listed_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed_meanwhile(folder: Path, _: int) -> bool:
        shutil.rmtree(folder)
        return False

    monkeypatch.setattr(os, "access", removed_meanwhile)
    with pytest.raises(VolumeError, match="cannot use the backup folder"):
        Catalog(tmp_path / "backups", "ovia").prepare()


def test_an_unwritable_folder_names_its_owner_and_the_fix(public_folder: Path) -> None:
    catalog = make_catalog(public_folder)
    public_folder.chmod(0o555)
    error = raised_as_nobody(catalog.prepare)
    assert isinstance(error, VolumeError)
    assert error.what == f"the backup folder {public_folder} is not writable"
    assert error.why.startswith(f"it belongs to user {os.getuid()}, this process runs as user")
    assert error.fix.startswith(f"run it as user {os.getuid()}; only if")


def test_a_folder_that_cannot_be_made_is_explained(public_folder: Path) -> None:
    public_folder.chmod(0o555)
    error = raised_as_nobody(Catalog(public_folder / "backups", "ovia").prepare)
    assert isinstance(error, VolumeError)
    assert (error.what, error.said) == (
        f"cannot use the backup folder {public_folder / 'backups'}",
        "Permission denied",
    )


def test_an_unreadable_tier_is_an_error_not_an_empty_list(public_folder: Path) -> None:
    catalog = make_catalog(public_folder)
    verified_backup(catalog, AT)
    catalog.folder(Tier.DAILY).chmod(0)
    error = raised_as_nobody(catalog.backups)
    assert isinstance(error, VolumeError)
    assert "Permission denied" in str(error)


def test_a_volume_in_an_unreadable_folder_is_explained(public_folder: Path) -> None:
    catalog = make_catalog(public_folder / "closed" / "backups")
    (public_folder / "closed").chmod(0)
    assert isinstance(raised_as_nobody(catalog.backups), VolumeError)
    assert isinstance(raised_as_nobody(lambda: sweep_abandoned(catalog)), VolumeError)


def test_a_path_in_an_unreadable_folder_is_explained(public_folder: Path) -> None:
    catalog = make_catalog(public_folder / "backups")
    for folder in (catalog.root, *filter(Path.exists, map(catalog.folder, Tier))):
        folder.chmod(0o755)
    (public_folder / "closed").mkdir(mode=0)
    error = raised_as_nobody(lambda: catalog.find(str(public_folder / "closed" / DUMP), NOW))
    assert isinstance(error, VolumeError | BackupNotFoundError)


def test_a_dump_that_may_not_be_read_is_unverified(public_folder: Path) -> None:
    """After root ran the command once, the service must still list and judge backups and make its own dumps."""
    catalog = make_catalog(public_folder)
    backup = write_dump(catalog, AT)
    backup.path.chmod(0)
    for folder in (catalog.root, *filter(Path.exists, map(catalog.folder, Tier))):
        folder.chmod(0o755)

    def look() -> None:
        assert [b.state(NOW) for b in catalog.backups()] == [State.UNVERIFIED]

    assert raised_as_nobody(look) is None


def test_a_backup_that_may_not_be_removed_stays_whole(public_folder: Path) -> None:
    catalog = make_catalog(public_folder)
    backup = verified_backup(catalog, AT)
    catalog.folder(Tier.DAILY).chmod(0o555)
    before = snapshot(public_folder)
    error = raised_as_nobody(lambda: remove_backup(catalog, backup))
    assert isinstance(error, VolumeError)
    assert error.what == f"cannot remove {backup.path}"
    assert snapshot(public_folder) == before


def test_a_verdict_that_may_not_be_written_is_explained(public_folder: Path) -> None:
    catalog = make_catalog(public_folder)
    backup = publish(catalog, AT)
    judgement = make_judgement(backup, good=True)
    catalog.folder(Tier.DAILY).chmod(0o555)
    before = snapshot(public_folder)
    error = raised_as_nobody(lambda: record_judgement(catalog, backup, judgement, None))
    assert isinstance(error, VolumeError)
    assert snapshot(public_folder) == before


def test_the_folder_of_an_optional_tier_is_made_on_first_use(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path, "ovia")
    catalog.prepare()
    assert names(tmp_path) == {"daily", "weekly"}
    assert catalog.backups(Tier.MONTHLY) == []
    catalog.prepare(Tier.MONTHLY)
    assert names(tmp_path) == {"daily", "weekly", "monthly"}
    assert mode(tmp_path / "monthly") == 0o700


def test_copies_of_one_dump_are_listed_from_daily_to_yearly(catalog: Catalog) -> None:
    for tier in reversed(Tier):
        write_dump(catalog, AT, tier)
    assert [b.tier for b in catalog.backups()] == list(Tier)
    assert catalog.find("yearly/ovia_yearly_" + DUMP.removeprefix("ovia_daily_"), NOW).tier is Tier.YEARLY


# --- Publishing ---------------------------------------------------------------------------------------------------


def test_only_the_owner_may_read_a_published_backup(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    folder = catalog.folder(Tier.DAILY)
    assert names(folder) == {DUMP, f"{DUMP}{MANIFEST}", f"{DUMP}{GLOBALS}"}
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert backup.manifest == make_manifest(AT, roles=ROLES)
    assert backup.sidecar(GLOBALS).read_bytes() == ROLES


def test_sidecars_are_for_their_owner_only_whatever_the_umask(catalog: Catalog) -> None:
    before = os.umask(0)
    try:
        backup = held(catalog, verified_backup(catalog, AT), NOW)
    finally:
        os.umask(before)
    assert {mode(backup.sidecar(suffix)) for suffix in (MANIFEST, GLOBALS, VERIFIED, HELD)} == {0o600}


def test_a_dump_without_globals_has_no_such_sidecar(catalog: Catalog) -> None:
    name = BackupName("ovia", Tier.DAILY, AT)
    catalog.temporary(name).write_bytes(CONTENT)
    publish_backup(catalog, catalog.temporary(name), name, {MANIFEST: make_manifest(AT).to_json().encode()})
    assert names(catalog.folder(Tier.DAILY)) == {DUMP, f"{DUMP}{MANIFEST}"}


def test_publishing_never_replaces_another_programs_file(catalog: Catalog) -> None:
    write_dump(catalog, AT, content=b"the old script's")
    before = snapshot(catalog.root)
    temporary = catalog.temporary(BackupName("ovia", Tier.DAILY, AT))
    with pytest.raises(VolumeError, match="exists already"):
        publish(catalog, AT)
    temporary.unlink()
    assert snapshot(catalog.root) == before


def test_a_full_disk_while_publishing_leaves_nothing_visible(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))
    with pytest.raises(DiskFullError, match="No space left"):
        publish(catalog, AT)
    monkeypatch.undo()
    assert catalog.backups() == []
    assert names(catalog.folder(Tier.DAILY)) == {f".{DUMP}.tmp"}  # the caller removes the dump's temporary file


def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the operations on each file from now on, in order."""
    happened: list[str] = []
    real_fsync, real_rename, real_link, real_unlink = os.fsync, os.rename, os.link, os.unlink

    def fsync(descriptor: int) -> None:
        happened.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        happened.append(f"name {target.name}")
        real_rename(source, target)

    def link(source: Path, target: Path, **_: object) -> None:
        happened.append(f"name {target.name}")
        real_link(source, target)

    def unlink(path: Path, **_: object) -> None:
        happened.append(f"unlink {path.name}")
        real_unlink(path)

    for name, stand_in in (("fsync", fsync), ("rename", rename), ("link", link), ("unlink", unlink)):
        monkeypatch.setattr(os, name, stand_in)
    return happened


def test_publishing_syncs_and_names_the_dump_last(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = trace(monkeypatch)
    publish(catalog, AT)
    assert [step for step in happened if step not in ("sync daily", f"unlink .{DUMP}.tmp")] == [
        f"sync .{DUMP}{GLOBALS}.tmp",
        f"name {DUMP}{GLOBALS}",
        f"sync .{DUMP}{MANIFEST}.tmp",
        f"name {DUMP}{MANIFEST}",
        f"name {DUMP}",
    ]
    assert happened[-1] == "sync daily"


def test_the_dump_is_removed_and_synced_before_its_sidecars(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = verified_backup(catalog, AT)
    happened = trace(monkeypatch)
    remove_backup(catalog, backup)
    assert happened[:2] == [f"unlink {DUMP}", "sync daily"]
    assert happened[-1] == "sync daily"
    assert f"unlink {DUMP}{MANIFEST}" in happened


class Volumes:
    """A fresh volume for each run of an operation that is killed, with an older backup that must not change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self.catalog = Catalog(folder, "ovia")
        self.before: dict[str, tuple[int, bytes]] = {}

    def fresh(self) -> Catalog:
        self.catalog = make_catalog(self._folder / str(next(self._numbers)))
        drilled(self.catalog, verified_backup(self.catalog, AT - 7 * DAY))
        return self.catalog

    def begin(self) -> None:
        self.before = snapshot(self.catalog.root)

    def found(self, started_at: datetime, tier: Tier) -> Backup | None:
        """The backup as a reader sees it now."""
        return next((b for b in self.catalog.backups(tier) if b.started_at == started_at), None)

    def all_private(self) -> bool:
        return all(mode(path) & 0o077 == 0 for path in self.catalog.root.rglob("*") if not path.is_symlink())


def is_whole(backup: Backup) -> bool:
    """Whether the dump and the files that were published with it are intact."""
    return (
        backup.path.read_bytes() == CONTENT
        and backup.manifest == make_manifest(backup.started_at, roles=ROLES)
        and backup.sidecar(GLOBALS).read_bytes() == ROLES
    )


def test_publishing_killed_at_any_step_leaves_all_or_leftovers(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    outcomes = []

    def prepare() -> Callable[[], object]:
        catalog = volumes.fresh()
        volumes.begin()
        return lambda: publish(catalog, AT)

    for _ in killed_at_each_step(prepare):
        seen = volumes.found(AT, Tier.DAILY)
        assert seen is None or is_whole(seen)
        assert volumes.all_private()
        swept = {path.name for path in sweep_abandoned(volumes.catalog)}
        assert volumes.found(AT, Tier.DAILY) == seen
        after = snapshot(volumes.catalog.root)
        if seen is None:
            assert after == volumes.before
        else:
            assert swept <= {f".{DUMP}.tmp"}  # the dump's second name, if it was published by a hard link
            assert {name: after[name] for name in volumes.before} == volumes.before
        outcomes.append(seen is not None)
    # Early kills leave nothing visible, later ones leave the whole backup, and both occurred.
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)


def test_removing_killed_at_any_step_leaves_all_or_leftovers(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    outcomes = []

    def prepare() -> Callable[[], object]:
        catalog = volumes.fresh()
        volumes.begin()
        backup = drilled(catalog, held(catalog, verified_backup(catalog, AT), NOW + DAY))
        return lambda: remove_backup(catalog, backup)

    for _ in killed_at_each_step(prepare):
        seen = volumes.found(AT, Tier.DAILY)
        if seen is not None:
            assert is_whole(seen)
            assert seen.state(NOW).is_verified
            assert seen.hold is not None
            assert seen.drilled
        sweep_abandoned(volumes.catalog)
        assert volumes.found(AT, Tier.DAILY) == seen
        if seen is None:
            assert snapshot(volumes.catalog.root) == volumes.before
        outcomes.append(seen is None)
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)


@pytest.mark.parametrize("way", thinned(["link", "copy"]))
def test_promoting_killed_at_any_step_leaves_all_or_leftovers(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = Volumes(tmp_path)
    outcomes = []
    if way == "copy":
        monkeypatch.setattr(os, "link", refusing(errno.EPERM))

    def prepare() -> Callable[[], object]:
        catalog = volumes.fresh()
        backup = verified_backup(catalog, AT)
        volumes.begin()
        return lambda: promote_backup(catalog, backup, Tier.WEEKLY, NOW)

    for _ in killed_at_each_step(prepare):
        seen = volumes.found(AT, Tier.WEEKLY)
        if seen is not None:
            assert is_whole(seen)
            assert seen.state(NOW).is_verified
        assert volumes.all_private()
        sweep_abandoned(volumes.catalog)
        assert volumes.found(AT, Tier.WEEKLY) == seen
        after = snapshot(volumes.catalog.root)
        assert {name: after[name] for name in volumes.before} == volumes.before
        if seen is None:
            assert after == volumes.before
        outcomes.append(seen is not None)
    assert outcomes == sorted(outcomes)
    assert {False, True} == set(outcomes)


def test_a_verdict_killed_at_any_step_is_the_old_or_the_new(tmp_path: Path) -> None:
    volumes = Volumes(tmp_path)
    outcomes = []

    def prepare() -> Callable[[], object]:
        catalog = volumes.fresh()
        backup = verified_backup(catalog, AT)
        judgement = make_judgement(backup, good=False)
        return lambda: record_judgement(catalog, backup, judgement, None)

    for _ in killed_at_each_step(prepare):
        seen = volumes.found(AT, Tier.DAILY)
        assert seen is not None
        outcomes.append([j.good for j in verification_of(seen).judgements])
        sweep_abandoned(volumes.catalog)
        assert not [name for name in names(volumes.catalog.folder(Tier.DAILY)) if name.endswith(".tmp")]
    assert outcomes == sorted(outcomes, key=len)
    assert {tuple(goods) for goods in outcomes} == {(True,), (True, False)}


# --- Promoting ----------------------------------------------------------------------------------------------------


def test_a_promoted_backup_is_a_hard_link_with_own_sidecars(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert weekly.path == catalog.folder(Tier.WEEKLY) / WEEKLY_DUMP
    assert weekly.path.stat().st_ino == backup.path.stat().st_ino
    assert names(weekly.path.parent) == {
        f"{WEEKLY_DUMP}{suffix}" for suffix in ("", MANIFEST, GLOBALS, VERIFIED, PROMOTED)
    }
    assert weekly.promotion is not None
    assert (weekly.promotion.promoted_from, weekly.promotion.at) == (DUMP, NOW)
    assert catalog.backups(Tier.WEEKLY) == [weekly]
    assert weekly.state(NOW) is State.VERIFIED
    assert weekly.manifest == backup.manifest


def test_the_two_tiers_verdicts_are_independent(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    weekly = judged(catalog, promote_backup(catalog, backup, Tier.WEEKLY, NOW), good=False)
    assert weekly.state(NOW) is State.BAD
    assert catalog.refresh(backup).state(NOW) is State.VERIFIED


def test_a_promoted_backup_keeps_the_daily_ones_drills(catalog: Catalog) -> None:
    backup = drilled(catalog, verified_backup(catalog, AT))
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert weekly.drilled
    assert not drilled(catalog, weekly, passed=False).drilled
    assert catalog.refresh(backup).drilled


def test_the_weekly_backup_outlives_the_daily_one(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert remove_backup(catalog, backup)
    assert catalog.refresh(weekly).state(NOW) is State.VERIFIED
    assert weekly.path.read_bytes() == CONTENT


def test_the_old_scripts_dump_is_promoted_without_sidecars(catalog: Catalog) -> None:
    weekly = promote_backup(catalog, judged(catalog, write_dump(catalog, AT)), Tier.WEEKLY, NOW)
    assert names(weekly.path.parent) == {WEEKLY_DUMP, f"{WEEKLY_DUMP}{VERIFIED}", f"{WEEKLY_DUMP}{PROMOTED}"}
    assert weekly.state(NOW) is State.VERIFIED


@pytest.mark.parametrize("code", ["EXDEV", "EPERM", "EACCES", "EMLINK", "ENOTSUP", "EINVAL", "ENOSYS", "EIO"])
def test_without_hard_links_a_copy_keeps_the_verdict(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    backup = verified_backup(catalog, AT)
    backup.path.chmod(0o644)  # as the old script's files
    monkeypatch.setattr(os, "link", refusing(getattr(errno, code)))
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert weekly.path.stat().st_ino != backup.path.stat().st_ino
    assert weekly.path.read_bytes() == CONTENT
    assert (weekly.size_bytes, weekly.mtime_ns) == (backup.size_bytes, backup.mtime_ns)
    assert weekly.state(NOW) is State.VERIFIED
    assert mode(weekly.path) == 0o600


def test_a_copy_that_differs_is_not_published(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = verified_backup(catalog, AT)
    before = snapshot(catalog.root)
    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    monkeypatch.setattr(shutil, "copyfile", lambda _, target: target.write_bytes(CONTENT[::-1]))
    with pytest.raises(VolumeError, match="differs"):
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert snapshot(catalog.root) == before


def test_a_full_disk_while_copying_leaves_nothing(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_: Path, target: Path) -> None:
        target.write_bytes(CONTENT[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backup = verified_backup(catalog, AT)
    before = snapshot(catalog.root)
    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(DiskFullError):
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert snapshot(catalog.root) == before


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "ESTALE"])
def test_another_failure_to_link_is_an_error(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    backup = verified_backup(catalog, AT)
    before = snapshot(catalog.root)
    monkeypatch.setattr(os, "link", refusing(getattr(errno, code)))
    with pytest.raises(VolumeError, match=re.escape(os.strerror(getattr(errno, code)))):
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert snapshot(catalog.root) == before


def test_promoting_a_missing_backup_leaves_nothing(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    remove_backup(catalog, backup)
    with pytest.raises(VolumeError):
        promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert names(catalog.folder(Tier.WEEKLY)) == set()


def test_leftovers_of_a_killed_promotion_block_nothing(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    (catalog.folder(Tier.WEEKLY) / f".{WEEKLY_DUMP}.tmp").write_bytes(b"half")
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    assert weekly.path.read_bytes() == CONTENT
    assert weekly.path.stat().st_ino == backup.path.stat().st_ino


def test_promoting_again_leaves_no_temporary_behind(catalog: Catalog) -> None:
    # rename() of one hard link onto another of the same file does nothing, and leaves both.
    backup = verified_backup(catalog, AT)
    weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
    expected = names(weekly.path.parent)
    assert promote_backup(catalog, backup, Tier.WEEKLY, NOW) == weekly
    assert names(weekly.path.parent) == expected


def test_a_rotten_copy_never_gets_the_good_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    volumes = Volumes(tmp_path)

    def prepare() -> Callable[[], object]:
        catalog = volumes.fresh()
        backup = verified_backup(catalog, AT)
        weekly = promote_backup(catalog, backup, Tier.WEEKLY, NOW)
        weekly.path.write_bytes(CONTENT[::-1])
        os.utime(weekly.path, ns=(0, weekly.mtime_ns))  # a bit that flips on the disk changes no timestamp
        judged(catalog, weekly, good=False)
        return lambda: promote_backup(catalog, backup, Tier.WEEKLY, NOW)

    for _ in killed_at_each_step(prepare):
        seen = volumes.found(AT, Tier.WEEKLY)
        assert seen is None or seen.path.read_bytes() == CONTENT or not seen.state(NOW).is_verified


# --- Removing -----------------------------------------------------------------------------------------------------


def test_a_backup_is_removed_with_all_its_sidecars(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    for suffix in SIDECAR_KINDS:
        backup.sidecar(suffix).touch()
    assert remove_backup(catalog, backup) is True
    assert names(backup.path.parent) == set()


def test_removing_one_backup_changes_no_other(catalog: Catalog) -> None:
    other = verified_backup(catalog, AT + timedelta(seconds=1))
    before = snapshot(catalog.root)
    remove_backup(catalog, verified_backup(catalog, AT))
    assert snapshot(catalog.root) == before
    assert catalog.backups() == [other]


def test_removing_a_missing_backup_is_no_error(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    backup.path.unlink()
    assert remove_backup(catalog, backup) is False
    assert names(backup.path.parent) == set()


def test_a_dump_that_cannot_be_removed_keeps_its_sidecars(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = verified_backup(catalog, AT)
    before = snapshot(catalog.root)
    monkeypatch.setattr(os, "unlink", refusing(errno.EBUSY, only=backup.path))
    with pytest.raises(VolumeError, match="busy"):
        remove_backup(catalog, backup)
    assert snapshot(catalog.root) == before


# --- Sweeping -----------------------------------------------------------------------------------------------------

FRESH = "ovia_daily_2026-06-15_115900.dump"


def lay_out_strangers(catalog: Catalog) -> None:
    """Files of others, and one complete dump of the old script: only that one is listed, and no file is removed."""
    elsewhere = catalog.root / "precious.dump"
    elsewhere.write_bytes(b"precious")
    daily, weekly = catalog.folder(Tier.DAILY), catalog.folder(Tier.WEEKLY)
    for filename in (
        "notes.txt",
        ".ovia.tmp",
        ".hidden",
        ".tmp",
        "..tmp",
        ".nfs000000000001",
        "ovia.dump",
        "ovia.dump.json",
        "ovia_daily_latest.dump",
        "ovia_daily_2026-02-30_030000.dump.json",
        f"{DUMP}.sha256",
        f"{DUMP}.bak",
        f"{DUMP}.json.bak",
        f"{DUMP}.json~",
        # Of another database: a backup, a sidecar without a dump, a temporary.
        "other_daily_2026-06-12_120000.dump",
        "other_daily_2026-06-11_120000.dump.json",
        ".other_daily_2026-06-12_120000.dump.tmp",
        ".other_daily_2026-06-12_120000.dump.json.tmp",
        "ovia_daily_x_daily_2026-06-11_120000.dump.json",
        # With the other tier's name.
        WEEKLY_DUMP,
        f"{WEEKLY_DUMP.replace('12', '11')}.json",
        f".{WEEKLY_DUMP}.tmp",
    ):
        (daily / filename).write_bytes(b"a stranger's")
    (weekly / DUMP).write_bytes(b"a stranger's")
    (weekly / f".{DUMP}.tmp").write_bytes(b"a stranger's")
    (daily / "ovia_daily_2026-06-10_120000.dump").symlink_to(elsewhere)
    (daily / "ovia_daily_2026-06-09_120000.dump").symlink_to(catalog.root / "nowhere")
    (daily / "ovia_daily_2026-06-09_120000.dump.json").write_bytes(b"beside a link that leads nowhere")
    (daily / "ovia_daily_2026-06-08_120000.dump").mkdir()
    (daily / "ovia_daily_2026-06-08_120000.dump" / "inside").write_bytes(b"in a folder named like a dump")
    for folder in ("drills", "restores"):
        (catalog.root / folder).mkdir()
        (catalog.root / folder / f"{DUMP}.json").write_bytes(b"evidence")
    # A dump that the old script is writing now.
    write_dump(catalog, NOW - timedelta(minutes=1), age=timedelta(seconds=5))


def everything(folder: Path) -> dict[str, bytes | str | None]:
    """All entries below a folder: a file's content, a link's target, ``None`` for a folder."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else None if p.is_dir() else p.read_bytes()
        for p in folder.rglob("*")
    }


def test_the_sweep_touches_nothing_that_is_not_ours(catalog: Catalog) -> None:
    drilled(catalog, held(catalog, verified_backup(catalog, AT + HOUR), NOW))
    promote_backup(catalog, verified_backup(catalog, AT + 2 * HOUR), Tier.WEEKLY, NOW)
    lay_out_strangers(catalog)
    before = everything(catalog.root)
    assert sweep_abandoned(catalog) == []
    assert everything(catalog.root) == before


def test_the_sweep_removes_temporaries_and_lone_sidecars(catalog: Catalog) -> None:
    leftovers = set()
    for tier, dump in ((Tier.DAILY, DUMP), (Tier.WEEKLY, WEEKLY_DUMP)):
        for filename in (
            f".{dump}.tmp",
            *(f".{dump}{s}.tmp" for s in SIDECAR_KINDS),
            *(f"{dump}{s}" for s in SIDECAR_KINDS),
        ):
            (catalog.folder(tier) / filename).touch()
            leftovers.add(catalog.folder(tier) / filename)
    assert set(sweep_abandoned(catalog)) == leftovers
    assert names(catalog.folder(Tier.DAILY)) == names(catalog.folder(Tier.WEEKLY)) == set()
    assert sweep_abandoned(catalog) == []


def test_the_sweep_removes_a_temporary_beside_its_dump(catalog: Catalog) -> None:
    backup = verified_backup(catalog, AT)
    expected = names(backup.path.parent)
    backup.path.with_name(f".{DUMP}{VERIFIED}.tmp").touch()
    assert [path.name for path in sweep_abandoned(catalog)] == [f".{DUMP}{VERIFIED}.tmp"]
    assert names(backup.path.parent) == expected


@pytest.mark.parametrize("database", ["my.db", "../x", "a\nb", "a_daily_b"])
def test_the_sweep_removes_only_its_own_databases_files(tmp_path: Path, database: str) -> None:
    catalog = make_catalog(tmp_path, database)
    temporary = catalog.temporary(BackupName(database, Tier.DAILY, AT))
    temporary.touch()
    assert sweep_abandoned(make_catalog(tmp_path, "ovia")) == []
    assert sweep_abandoned(catalog) == [temporary]


def test_the_sweep_follows_no_link(catalog: Catalog) -> None:
    precious = catalog.root / "precious"
    precious.write_bytes(b"precious")
    (catalog.folder(Tier.DAILY) / f".{DUMP}.tmp").symlink_to(precious)
    sweep_abandoned(catalog)
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("filename", [f".{DUMP}.tmp", f".{DUMP}.json.tmp", f"{DUMP}.json", f"{DUMP}.held.json"])
def test_a_folder_named_like_a_leftover_stops_no_sweep(catalog: Catalog, filename: str) -> None:
    folder = catalog.folder(Tier.DAILY) / filename
    folder.mkdir()
    (folder / "inside").touch()
    leftover = catalog.folder(Tier.DAILY) / f".{DUMP}.verified.json.tmp"
    leftover.touch()
    assert sweep_abandoned(catalog) == [leftover]
    assert (folder / "inside").exists()


def test_a_missing_folder_needs_no_sweep(tmp_path: Path) -> None:
    assert sweep_abandoned(Catalog(tmp_path / "missing", "ovia")) == []


# --- Hashing ------------------------------------------------------------------------------------------------------


def test_a_files_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == file_sha256(path, sync=True) == digest


def test_a_file_that_cannot_be_hashed_is_explained(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="cannot read"):
        file_sha256(tmp_path / "missing")


def test_a_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened = trace(monkeypatch)
    sync_folder(tmp_path)
    assert happened == [f"sync {tmp_path.name}"]


def test_a_verdicts_witness_is_read_back_unchanged(catalog: Catalog) -> None:
    backup = publish(catalog, AT)
    witness = make_witness({"public.people": 3, 'public."Odd, ""name"""': 0}, {"public.e_1": "public.e"})
    record_judgement(catalog, backup, make_judgement(backup, good=True), witness)
    assert catalog.backups()[0].witness == witness

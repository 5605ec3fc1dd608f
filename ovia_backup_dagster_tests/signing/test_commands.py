"""``ovia-backup keys`` and ``log``: from new keys to a refused forgery, as an operator types it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import MANIFEST
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.doctor.report import Severity
from ovia_backup_dagster.doctor.volume_area import _signatures
from ovia_backup_dagster.doctor.volume_area import volume as volume_lines
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.age_keys import AGE_IDENTITY, AGE_RECIPIENT
from ovia_backup_dagster.signing.key_files import (
    SIGNING_KEY,
    VERIFY_KEY,
    create_keys,
    fingerprint,
    signing_key,
    verify_key,
)
from ovia_backup_dagster.signing.recovery_page import RECOVERY_PAGE
from ovia_backup_dagster_tests.conftest import snapshot
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.signed_logs import aged, statement_paths

NOW = datetime.now(UTC)


@pytest.fixture
def place(database: Connection, bin_dir: Path, volume: Path, tmp_path: Path) -> Place:
    """Not signed yet; :func:`with_keys` signs it."""
    statement_log._read.clear()
    return place_for(database, bin_dir, volume, tmp_path)


def with_keys(place: Place, keys: Path, *, signing: bool = True) -> Place:
    settings = {**place.settings, "BACKUP_VERIFY_KEY_FILE": str(keys / VERIFY_KEY)}
    if signing:
        settings["BACKUP_SIGNING_KEY_FILE"] = str(keys / SIGNING_KEY)
    return Place(settings, place.logs)


def copy_as_newest(backup: Backup) -> Path:
    """A copy of a backup under a newer name."""
    name = BackupName(backup.name.database, Tier.DAILY, backup.started_at + timedelta(seconds=1))
    later = backup.path.with_name(name.filename)
    shutil.copy2(backup.path, later)
    shutil.copy2(backup.sidecar(MANIFEST), f"{later}{MANIFEST.suffix}")
    return later


def without_drills(place: Place) -> dict[str, tuple[int, bytes]]:
    """The volume's files but for the evidence of drills."""
    return {name: file for name, file in snapshot(place.root).items() if not name.startswith("drills/")}


def test_a_volume_is_signed_and_a_forgery_refused(place: Place, tmp_path: Path) -> None:
    earlier = place.chain()
    keys = tmp_path / "the keys"
    made = place.run("keys", "init", "--to", str(keys))
    assert (made.code, "SHA256:" in made.output, "keys adopt" in made.output) == (0, True, True), made.output

    signed = with_keys(place, keys)
    assert f"no signed statement vouches for {earlier}" in signed.run("drill", str(earlier)).refused()
    adopted = signed.run("keys", "adopt")
    assert f"taken on trust: {earlier}" in adopted.output, adopted.output
    signed.chain()
    said = json.loads(signed.run("log", "verify", "--json").output)
    assert (said["unsigned"], said["current"], len(said["head"])) == ([], True, 64)

    newest = signed.catalog.backups()[0]
    forged = newest.path.with_name(newest.path.name.replace("_daily_20", "_daily_21"))
    for suffix in ("", MANIFEST.suffix, ".verified.json"):
        shutil.copy2(f"{newest.path}{suffix}", f"{forged}{suffix}")
    listed = json.loads(signed.run("list", "--json").output)
    states = {backup["name"]: backup["standing"] for backup in listed}
    assert (states[forged.name], states[newest.path.name]) == ("unverified", "verified")
    for command in (("verify", forged.name), ("drill", forged.name), ("restore", forged.name, "--plan")):
        assert f"no signed statement vouches for {forged.name}" in signed.run(*command).refused()
    assert f"no statement vouches for {forged.name}" in signed.run("log", "verify").output
    ended = signed.run("verify", "--unverified")
    assert (ended.code, "0 of 1 are verified" in ended.output) == (1, True), ended.output


@pytest.mark.exhaustive
def test_a_machine_that_only_restores_needs_no_signing_key(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    backup = with_keys(place, keys).chain()
    restorer = with_keys(place, keys, signing=False)
    plan = restorer.run("restore", str(backup), "--plan")
    assert plan.code == 0, plan.output
    assert "BACKUP_SIGNING_KEY_FILE is not set" in restorer.run("dump").refused()
    before = without_drills(restorer)
    ended = restorer.run("verify", str(backup))
    assert (ended.code, "is not recorded: BACKUP_SIGNING_KEY_FILE" in ended.output) == (0, True), ended.output
    drilled = restorer.run("drill", str(backup), seconds=120)
    assert (drilled.code, "does not make" in drilled.output) == (0, True), drilled.output
    assert without_drills(restorer) == before, "an unsigned verdict would take the signed one's place"
    assert json.loads(restorer.run("list", "--json").output)[0]["standing"] == "verified"


def test_the_latest_backup_is_a_signed_one(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    backup = signed.chain()
    later = copy_as_newest(backup)
    assert str(signed.catalog.find("latest", datetime.now(UTC))) == str(backup)
    assert f"no signed statement vouches for {later.name}" in signed.run("restore", later.name, "--plan").refused()


@pytest.mark.exhaustive
def test_an_unsigned_newest_file_is_in_no_ones_way(place: Place, tmp_path: Path) -> None:
    """It neither hides that backups have stopped, nor stops drills, restores and pruning."""
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    backup = signed.chain()
    copy_as_newest(backup)
    for command in (("prune",), ("drill",), ("restore", "latest", "--plan"), ("verify", "latest")):
        ended = signed.run(*command, seconds=120)
        assert (ended.code, "no signed statement" in ended.output) == (0, False), ended.output
    assert "unsigned" in signed.run("list").output
    for path in (backup.path, *signed.root.glob("weekly/*.dump")):
        path.unlink()
    ended = signed.run("status")
    assert (ended.code, "no backup" in ended.output) == (2, True), ended.output


def test_salvage_opens_the_signed_archive_only(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    backup = signed.chain()
    content = bytearray(backup.path.read_bytes())
    content[-100] ^= 1
    backup.path.write_bytes(content)
    salvage = ("restore", str(backup), "--mode", "new", "--into", "look", "--even-if-damaged", "--plan")
    assert "is not the archive that was signed: its SHA-256 differs: " in signed.run(*salvage).refused()
    assert place.run(*salvage).code == 0, "without the key, as its message says"


def test_a_broken_log_stops_every_command_with_its_name(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    backup = signed.chain()
    first = next((signed.root / "statements").glob("*/00000001.json"))
    first.write_bytes(first.read_bytes().replace(b'"backup"', b'"BACKUP"', 1))
    statement_log._read.clear()  # the commands below are forked from this process
    for command in (("list",), ("prune",), ("restore", str(backup), "--plan"), ("log", "verify"), ("dump",)):
        assert "statement 1 was changed" in signed.run(*command).refused()
    assert backup.path.exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    thinned(
        [
            ({"BACKUP_SIGNING_KEY_FILE": SIGNING_KEY}, "BACKUP_VERIFY_KEY_FILE is not set"),
            ({"BACKUP_VERIFY_KEY_FILE": "gone"}, r"gone cannot be read: No such file"),
            ({"BACKUP_VERIFY_KEY_FILE": SIGNING_KEY}, "it is not an OpenSSH public key"),
            ({"BACKUP_VERIFY_KEY_FILE": VERIFY_KEY, "BACKUP_SIGNING_KEY_FILE": "other"}, "are of two pairs"),
        ]
    ),
)
def test_keys_that_do_not_fit_are_refused(place: Place, tmp_path: Path, settings: dict[str, str], said: str) -> None:
    assert place.run("keys", "init", "--to", str(tmp_path / "k")).code == 0
    assert place.run("keys", "init", "--to", str(tmp_path / "o")).code == 0
    shutil.copy(tmp_path / "o" / SIGNING_KEY, tmp_path / "k" / "other")
    files = {name: str(tmp_path / "k" / file) for name, file in settings.items()}
    assert said in Place({**place.settings, **files}, place.logs).run("dump").refused()


def test_the_doctor_tells_how_the_log_stands(place: Place, tmp_path: Path) -> None:
    assert "backups are not signed" in _signatures(place.system, NOW).text
    place.chain()
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    line = _signatures(signed.system, NOW)
    assert (line.level, "not signed, so they do not count: 2 backups" in line.text, "keys adopt" in line.fix) == (
        Severity.WARN,
        True,
        True,
    )
    assert signed.run("keys", "adopt").code == 0
    at = signed.system.required_statement_log.chain().head.at
    assert at is not None
    due = at + timedelta(hours=20)
    for now, said in ((at, "the next sign of life is due on"), (due, "a sign of life has been due since")):
        line = _signatures(signed.system, now)
        text = f"the signed log is whole: 2 statements; {said} {due:%Y-%m-%d %H:%M} UTC"
        assert (line.level, line.text) == (Severity.OK, text)
    line = _signatures(signed.system, NOW + statement_log.VALID * 2)
    assert (line.level, "or the log was cut off" in line.text) == (Severity.WARN, True)


def test_cron_states_a_sign_of_life_when_it_is_due(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert place.run("keys", "init", "--to", str(keys)).code == 0
    signed = with_keys(place, keys)
    assert "not due yet, or nothing is signed yet; head 0 empty" in signed.run("log", "alive").output
    signed.chain()
    ended = signed.run("log", "alive")
    assert (ended.code, "not due yet" in ended.output) == (0, True), ended.output
    database = signed.settings["POSTGRES_DB"]
    statements = len(statement_paths(signed.root, database))
    aged(signed.root, database, signing_key("K", keys / SIGNING_KEY), 24 * 4)
    assert "the host that signs has stopped, or the log was cut off" in signed.run("log", "verify").output
    ended = signed.run("log", "alive")
    assert (ended.code, f"stated; head {statements + 1} " in ended.output) == (0, True), ended.output
    assert "expired" not in signed.run("log", "verify").output
    assert "BACKUP_SIGNING_KEY_FILE is not set" in with_keys(place, keys, signing=False).run("log", "alive").refused()


def test_keys_are_replaced_and_both_readers_follow(place: Place, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "the new keys"
    assert place.run("keys", "init", "--to", str(old)).code == 0
    signed = with_keys(place, old)
    backup = signed.chain()
    rotated = signed.run("keys", "rotate", "--to", str(new))
    assert rotated.code == 0, rotated.output
    print_ = fingerprint(verify_key("K", new / VERIFY_KEY))
    head = json.loads(signed.run("log", "verify", "--json").output)["head"]
    assert (f"is signed by {print_} from now on" in rotated.output, head in rotated.output) == (True, True)
    assert f"delete the old signing key: {old / SIGNING_KEY}" in rotated.output

    for reader in (with_keys(place, old, signing=False), with_keys(place, new, signing=False)):
        assert json.loads(reader.run("log", "verify", "--json").output)["unsigned"] == []
        assert reader.run("restore", str(backup), "--plan").code == 0
    for command in (("dump",), ("log", "alive"), ("keys", "rotate", "--to", str(tmp_path / "third"))):
        line = signed.run(*command).refused()
        assert ("was replaced: since statement" in line, print_ in line, "keys rotate made" in line) == (True,) * 3
    assert not (tmp_path / "third").exists()
    mixed = Place({**with_keys(place, new).settings, "BACKUP_SIGNING_KEY_FILE": str(old / SIGNING_KEY)}, place.logs)
    assert f"with the second, {print_}" in mixed.run("dump").refused()
    with_keys(place, new).chain()


def test_a_rotation_is_repeated_with_the_same_folder(place: Place, tmp_path: Path) -> None:
    """After an interruption, or for another database with the same keys: the pair that is there is used."""
    old, new = tmp_path / "old", tmp_path / "new"
    assert place.run("keys", "init", "--to", str(old)).code == 0
    signed = with_keys(place, old)
    signed.chain()
    made = create_keys(new, "ovia-backup")
    for _ in range(2):
        ended = signed.run("keys", "rotate", "--to", str(new))
        assert (ended.code, fingerprint(made) in ended.output) == (0, True), ended.output
    statements = len(statement_paths(signed.root, signed.settings["POSTGRES_DB"]))
    assert "is in use already" in with_keys(place, new).run("keys", "rotate", "--to", str(new)).refused()
    assert "cannot be used again" in with_keys(place, new).run("keys", "rotate", "--to", str(old)).refused()
    (new / VERIFY_KEY).unlink()
    assert "verify_key.pub cannot be read" in signed.run("keys", "rotate", "--to", str(new)).refused()
    assert len(statement_paths(signed.root, signed.settings["POSTGRES_DB"])) == statements


def page_of(folder: Path) -> list[str]:
    """The lines of the page, which fits a sheet of paper."""
    path = folder / RECOVERY_PAGE
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text("ascii").splitlines()
    assert (len(lines) <= 60, max(map(len, lines)) <= 80) == (True, True)
    return lines


def test_new_keys_come_with_a_page_to_print(place: Place, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = place.run("keys", "init", "--to", str(keys))
    assert made.code == 0, made.output
    lines = page_of(keys)
    identity, recipient = ((keys / name).read_text().strip() for name in (AGE_IDENTITY, AGE_RECIPIENT))
    public = " ".join((keys / VERIFY_KEY).read_text().split()[:2])
    assert {identity, recipient, public} <= {*lines}
    assert f"Fingerprint: {fingerprint(verify_key('K', keys / VERIFY_KEY))}" in lines
    assert "offline copy of the age identity" in " ".join(lines[:4])
    commands = ["ovia-backup list --offsite", "ovia-backup fetch latest", "ovia-backup restore PATH --new-host"]
    assert [line.strip() for line in lines if line.strip() in commands] == commands
    assert "docs/restore-without-us.md" in lines[-1]
    assert sum("____" in line for line in lines) == 4, "to note heads; there is no log yet"
    last = made.output.splitlines()[-2:]
    assert "Print recovery-page.txt, and delete it here" in last[0]
    assert "Move age_identity.txt off this host, and delete it here" in last[1]
    assert identity not in made.output


def test_without_age_nothing_is_left_half_made(place: Place, tmp_path: Path) -> None:
    bare = Place({**place.settings, "PATH": str(tmp_path)}, place.logs)
    line = bare.run("keys", "init", "--to", str(tmp_path / "keys")).refused()
    assert ("apt-get install age" in line, "--without-age" in line) == (True, True)
    assert not (tmp_path / "keys").exists()
    made = bare.run("keys", "init", "--without-age", "--to", str(tmp_path / "keys"))
    assert (made.code, "age_identity" in made.output) == (0, False), made.output
    assert {path.name for path in (tmp_path / "keys").iterdir()} == {SIGNING_KEY, VERIFY_KEY, RECOVERY_PAGE}
    assert page_of(tmp_path / "keys").count("none: the keys were made without age") == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / AGE_RECIPIENT).touch()
    assert "exists already" in place.run("keys", "init", "--to", str(tmp_path / "other")).refused()
    assert len(list((tmp_path / "other").iterdir())) == 1


def test_a_page_has_the_head_of_the_log(place: Place, tmp_path: Path) -> None:
    """Of a log that another key signs, with that key's fingerprint; after a rotation, of the log as it is then."""
    old, new, other = tmp_path / "old", tmp_path / "new", tmp_path / "other"
    assert place.run("keys", "init", "--to", str(old)).code == 0
    signed = with_keys(place, old)
    signed.chain()
    head = json.loads(signed.run("log", "verify", "--json").output)["head"]
    assert signed.run("keys", "init", "--to", str(other)).code == 0
    assert f"    {head}" in page_of(other)
    old_key = fingerprint(verify_key("K", old / VERIFY_KEY))
    assert f"    signed by another key: {old_key}" in page_of(other)

    identity, recipient = ((old / name).read_text().strip() for name in (AGE_IDENTITY, AGE_RECIPIENT))
    assert signed.run("keys", "rotate", "--to", str(new)).code == 0
    lines = page_of(new)
    head = json.loads(signed.run("log", "verify", "--json").output)["head"]
    assert {f"    {head}", recipient, identity} <= {*lines}
    assert not any("another key" in line for line in lines)
    assert (new / AGE_RECIPIENT).read_text() == f"{recipient}\n"
    assert not (new / AGE_IDENTITY).exists(), "it is on paper, and where it was"

    assert with_keys(place, new).run("keys", "rotate", "--to", str(tmp_path / "third")).code == 0
    lines = page_of(tmp_path / "third")
    assert (identity in lines, "It is on the page that was printed before" in "\n".join(lines)) == (False, True)


def test_a_page_is_not_written_over(place: Place, tmp_path: Path) -> None:
    """The first database's head may be noted on it."""
    old, new = tmp_path / "old", tmp_path / "new"
    assert place.run("keys", "init", "--to", str(old)).code == 0
    signed = with_keys(place, old)
    assert signed.run("keys", "rotate", "--to", str(new)).code == 0
    before = (new / RECOVERY_PAGE).read_bytes()
    assert signed.run("keys", "rotate", "--to", str(new)).code == 0
    assert (new / RECOVERY_PAGE).read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o600, 0o400])
def test_the_doctor_warns_of_a_signing_key_for_others(mode: int, place: Place, tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", "ovia-backup")
    signed = with_keys(place, tmp_path / "keys")
    signed.system.catalog.prepare()
    (tmp_path / "keys" / SIGNING_KEY).chmod(mode)
    warned = [line for line in volume_lines(signed.system) if "signing key" in line.text]
    assert len(warned) == (mode not in (0o600, 0o400))
    for line in warned:
        assert (line.level, f"(mode {mode:04o})" in line.text) == (Severity.WARN, True)
        assert line.fix.startswith(f"chmod 600 {tmp_path / 'keys' / SIGNING_KEY};")


@pytest.mark.parametrize("name", [SIGNING_KEY, VERIFY_KEY])
def test_the_doctor_goes_on_without_a_key(name: str, place: Place, tmp_path: Path) -> None:
    create_keys(tmp_path / "keys", "ovia-backup")
    signed = with_keys(place, tmp_path / "keys")
    (tmp_path / "keys" / name).unlink()
    lines = signed.run("doctor").output.splitlines()
    assert [line for line in lines if line.startswith("fail volume") and f"{name} cannot be read" in line]
    assert [line for line in lines if line.split()[1:2] == ["alerts"]], "the last area"

"""From new keys to a backup that came back on an empty machine, as an operator types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ovia_backup_dagster.offsite.encryption import Age
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY
from ovia_backup_dagster_tests.faults.conftest import place_for
from ovia_backup_dagster_tests.faults.harness import Place


@pytest.fixture
def place(database: Connection, bin_dir: Path, volume: Path, tmp_path: Path, age: Age) -> Place:
    """A signed volume, and two folders as remotes."""
    statement_log._read.clear()
    found = place_for(database, bin_dir, volume, tmp_path)
    keys = tmp_path / "keys"
    made = found.run("keys", "init", "--to", str(keys))
    assert made.code == 0, made.output
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    settings = {
        **found.settings,
        "BACKUP_SIGNING_KEY_FILE": str(keys / SIGNING_KEY),
        "BACKUP_VERIFY_KEY_FILE": str(keys / VERIFY_KEY),
        "OFFSITE_REMOTES": ", ".join(f"{folder.name}={folder}" for folder in folders),
        "OFFSITE_RECIPIENTS": ",".join(age.recipients),
    }
    return Place(settings, found.logs)


def test_the_volume_is_lost_and_a_backup_comes_back(place: Place, tmp_path: Path, age: Age) -> None:
    backup = place.chain()
    made = place.run("offsite", "init")
    assert (made.code, made.output.count("is for database")) == (0, 2), made.output
    sent = place.run("offsite", "copy")
    assert (sent.code, sent.output.count("1 there")) == (0, 2), sent.output
    archive = backup.path.read_bytes()
    shutil.rmtree(place.root)

    empty = tmp_path / "empty"
    empty.mkdir()
    settings = {name: value for name, value in place.settings.items() if name != "BACKUP_SIGNING_KEY_FILE"}
    new = Place({**settings, "BACKUP_DIR": str(empty), "OFFSITE_IDENTITY_FILE": str(age.identity)}, place.logs)
    listed = json.loads(new.run("list", "--offsite", "--json").output)
    assert [(each["remote"], each["name"]) for each in listed] == [("first", str(backup)), ("second", str(backup))]
    got = new.run("fetch", "latest")
    path = Path(got.output.splitlines()[-2 if "Next" in got.output.splitlines()[-1] else -1])
    assert (got.code, path.read_bytes() == archive) == (0, True), got.output
    for command in (("verify", str(path)), ("restore", str(path), "--plan"), ("drill", "latest", "--from", "second")):
        ended = new.run(*command, seconds=120)
        assert ended.code == 0, ended.output


def test_a_remote_that_fails_does_not_stop_the_others(place: Place, tmp_path: Path) -> None:
    place.chain()
    assert place.run("offsite", "init").code == 0
    shutil.rmtree(tmp_path / "first")
    sent = place.run("offsite", "copy")
    assert sent.code == 1
    assert "first: remote first has no marker ovia-offsite.json" in sent.output
    assert "second: 1 sent" in sent.output
    assert not (tmp_path / "first").exists()


def test_copies_are_checked_kept_and_pruned(place: Place) -> None:
    backup = str(place.chain())
    assert place.run("offsite", "init").code == 0
    assert place.run("offsite", "copy").code == 0
    checked = place.run("offsite", "verify")
    assert (checked.code, checked.output.count("was read back")) == (0, 2), checked.output
    shown = json.loads(place.run("status", "--json").output)["remotes"]
    assert [(each["name"], each["copies"], each["trouble"]) for each in shown] == [
        ("first", 1, None),
        ("second", 1, None),
    ]
    assert all(each["read_back_at"] and each["copies_bytes"] and each["newest"] for each in shown)
    looked = place.run("offsite", "check", "second", "--json")
    assert looked.code == 0, looked.output
    said = {line["text"]: line["level"] for line in json.loads(looked.output)}
    assert set(said.values()) == {"ok"}, said
    assert any(text.startswith("second is ours, ") and "copies: 1;" in text for text in said), said
    assert place.run("keep", backup, "--until", "2999-01-01").code == 0
    held = [known.held_until for known in place.system.required_statement_log.chain().known.values()]
    assert {each.year for each in held if each} == {2999}
    assert len(held) == 2, "the backup, and its weekly name"
    assert place.run("release", backup).code == 0
    assert "is not on hold" in place.run("release", backup).refused()
    planned = place.run("offsite", "prune", "--dry-run", "second")
    assert (planned.code, "second: keep" in planned.output, "first" in planned.output) == (0, True, False)
    pruned = place.run("offsite", "prune")
    assert (pruned.code, pruned.output.count("0 removed")) == (0, 2), pruned.output

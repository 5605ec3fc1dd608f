"""The log on the volume: what it vouches for, and every way to change it that must be noticed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ovia_backup_dagster.core.errors import SettingsError, StatementLogError
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.signing import statement_files, statement_log
from ovia_backup_dagster.signing.key_files import fingerprint
from ovia_backup_dagster.signing.sshsig import sign
from ovia_backup_dagster.signing.statement import ARCHIVE, SignedFile, SignedStatement
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.conftest import snapshot
from ovia_backup_dagster_tests.support.signed_logs import aged, edit, forgotten, signed_again, statement_paths

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
A, B = "shop_daily_2026-01-01_030000.dump", "shop_daily_2026-01-02_030000.dump"
SHA = "a" * 64


def log_in(root: Path, *, key: Ed25519PrivateKey = KEY, signing: bool = True, database: str = "shop") -> StatementLog:
    return StatementLog(root, database, key.public_key(), key if signing else None)


@pytest.fixture(autouse=True)
def _another_process() -> None:
    forgotten()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume with four statements: A and B published, A verified, A removed."""
    log = log_in(tmp_path)
    log.published(A, 7, SHA, {".json": b"manifest of A"})
    log.published(B, 8, "b" * 64, {".json": b"manifest of B"})
    log.wrote(B, ".verified.json", b"good")
    log.removed(A)
    forgotten()
    return tmp_path


def files(root: Path) -> list[Path]:
    return statement_paths(root, "shop")


def test_the_last_statement_of_a_backup_says_what_counts(root: Path) -> None:
    log = log_in(root, signing=False)
    assert log.files_of(A) == {}
    assert log.files_of(B) == {
        ARCHIVE: "b" * 64,
        ".json": SignedFile.of(b"manifest of B").sha256,
        ".verified.json": SignedFile.of(b"good").sha256,
    }
    assert [statement.event for statement in log.check_each()] == ["backup", "backup", "evidence", "removed"]


def test_a_second_name_carries_only_what_was_stated(root: Path) -> None:
    log = log_in(root)
    log.promoted(
        B, "weekly", {".json": b"manifest of B", ".verified.json": b"forged", ".held.json": b"x"}, {".p": b"p"}
    )
    assert set(log.files_of("weekly")) == {ARCHIVE, ".json", ".p"}
    log.promoted("unknown", "other", {".json": b"manifest of B"}, {".p": b"p"})
    assert log.files_of("other") == {}


def test_nothing_is_stated_about_an_unknown_backup(root: Path) -> None:
    log = log_in(root)
    log.wrote("unknown", ".verified.json", b"good")
    log.removed("unknown")
    assert len(files(root)) == 4


def test_without_the_signing_key_nothing_is_stated(root: Path) -> None:
    with pytest.raises(SettingsError, match="BACKUP_SIGNING_KEY_FILE is not set"):
        log_in(root, signing=False).wrote(B, ".drilled.json", b"passed")
    assert len(files(root)) == 4


def test_each_database_has_a_log_of_its_own(root: Path) -> None:
    other = log_in(root, database="../shop/x")
    other.published("x", 1, SHA, {})
    assert (root / "statements" / encode_database("../shop/x") / "00000001.json").exists()
    assert len(files(root)) == 4


# ------------------------------------------------------------------------------------------------------- alterations


def copied_over(root: Path) -> None:
    first, last = files(root)[1], files(root)[-1]
    for suffix in ("", ".sig"):
        shutil.copy(f"{first}{suffix}", f"{last}{suffix}")


def moved_up(root: Path) -> None:
    """The second goes, and the later ones take the numbers before theirs."""
    for path in files(root)[2:]:
        for suffix in ("", ".sig"):
            number = int(path.stem) - 1
            Path(f"{path}{suffix}").rename(path.with_name(f"{number:08}.json{suffix}"))


def removed_from_the_middle(root: Path) -> None:
    files(root)[1].unlink()


def the_first_removed(root: Path) -> None:
    for suffix in ("", ".sig"):
        Path(f"{files(root)[0]}{suffix}").unlink()


def of_another_key(root: Path) -> None:
    other = Ed25519PrivateKey.generate()
    for path in files(root):
        signed_again(path, other)


def from_the_future(root: Path) -> None:
    """By the right key, on a host whose clock was wrong."""
    last = files(root)[-1]
    edit(last, at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    signed_again(last, KEY)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a statement is edited": (lambda root: edit(files(root)[2], files={}), "statement 3 was changed"),
    "the last statement is edited": (lambda root: edit(files(root)[-1], event="backup"), "signature of statement 4"),
    "a signature is missing": (
        lambda root: files(root)[-1].with_name("00000004.json.sig").unlink(),
        "statement 4 has no signature",
    ),
    "a statement is copied over the last": (copied_over, "statement 4 is in the wrong place"),
    "a statement is removed, and the others are moved up": (moved_up, "statement 3 is in the wrong place"),
    "a statement is removed from the middle": (removed_from_the_middle, "statement 2 is missing: statement 4 is there"),
    "the first statement is removed": (the_first_removed, "statement 1 is missing"),
    "all is signed with another key": (of_another_key, "signature of statement 4 is invalid: .*another key"),
    "a statement is from the future": (from_the_future, "statement 4 is from the future"),
    "the log of another database": (
        lambda root: (root / "statements/shop").rename(root / "statements/prod"),
        "the log is not of database prod",
    ),
}


@pytest.mark.parametrize(("attack", "said"), ATTACKS.values(), ids=ATTACKS)
def test_an_altered_log_is_refused(root: Path, attack: Callable[[Path], object], said: str) -> None:
    attack(root)
    log = log_in(root, database="prod" if "prod" in said else "shop")
    with pytest.raises(StatementLogError, match=said) as caught:
        log.files_of(B)
    assert "ovia-backup log verify" in caught.value.fix
    before = snapshot(root)
    with pytest.raises(StatementLogError):
        log.wrote(B, ".drilled.json", b"passed")
    with pytest.raises(StatementLogError):
        log.published("c", 1, SHA, {})
    assert snapshot(root) == before, "nothing may take a missing statement's place"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_of_a_statement_is_noticed(root: Path, data: st.DataObject) -> None:
    forgotten()
    path = data.draw(st.sampled_from(files(root)))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[position]))
    path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
    try:
        with pytest.raises(StatementLogError):
            log_in(root).files_of(B)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "rewritten by its own key"])
def test_a_process_that_knows_the_log_notices_a_rollback(root: Path, how: str) -> None:
    """A new process cannot: it is told by the expiry, or by a head that was noted elsewhere."""
    log = log_in(root)
    assert log.files_of(A) == {}
    last = files(root)[-1]
    if how == "cut off":
        last.unlink()
    else:
        edit(last, event="backup", files={"": {"size_bytes": 7, "sha256": SHA}})
        signed_again(last, KEY)
    with pytest.raises(StatementLogError, match="cut off or rewritten"):
        log.files_of(A)


def test_a_log_that_did_not_change_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each backup asks it; a change of the last second is not missed, though the folder's time may be the same."""
    long_ago = 1_600_000_000
    log = log_in(root)
    os.utime(root / "statements/shop", (long_ago, long_ago))
    assert log.files_of(B)
    with monkeypatch.context() as patch:
        patch.setattr(statement_files, "read_small", pytest.fail)
        assert log.files_of(B)
    log_in(root).wrote(B, ".drilled.json", b"passed")
    assert ".drilled.json" in log.files_of(B)


def test_a_later_signature_is_checked_as_well(root: Path) -> None:
    """The last one covers all; ``log verify`` looks at each, as ssh-keygen would."""
    signed_again(files(root)[0], Ed25519PrivateKey.generate())
    assert log_in(root).files_of(B)
    with pytest.raises(StatementLogError, match="signature of statement 1"):
        list(log_in(root).check_each())


def test_a_killed_writer_leaves_a_signature_that_is_replaced(root: Path) -> None:
    (root / "statements/shop/00000005.json.sig").write_bytes(sign(KEY, b"never written"))
    log = log_in(root)
    log.wrote(B, ".drilled.json", b"passed")
    assert len(list(log.check_each())) == 5


def _state_many(root: Path, name: str) -> None:
    log = log_in(root)
    for number in range(20):
        log.published(f"{name}{number}", 1, SHA, {})


def test_many_writers_state_one_after_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_state_many, args=(tmp_path, name)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [statement.sequence for statement in log_in(tmp_path).check_each()] == list(range(1, 81))


def test_a_statement_of_a_newer_version_is_not_guessed_at(root: Path) -> None:
    last = files(root)[-1]
    edit(last, version=2)
    signed_again(last, KEY)
    with pytest.raises(StatementLogError, match="statement 4 cannot be read"):
        log_in(root).files_of(B)


def test_a_statement_is_read_back_as_written(root: Path) -> None:
    text = files(root)[1].read_bytes()
    assert SignedStatement.model_validate_json(text).to_json().encode() == text


# ------------------------------------------------------------------------------------------------------ sign of life


@pytest.mark.parametrize(("hours", "stated"), [(19.9, False), (20.1, True), (100, True)])
def test_a_sign_of_life_follows_an_old_statement(root: Path, hours: float, stated: bool) -> None:
    now = aged(root, "shop", KEY, hours)
    log = log_in(root)
    before = log.chain().backups
    assert log.state_alive(now) is stated
    assert len(files(root)) == 4 + stated
    assert log.chain().backups == before
    assert not log.state_alive(now), "the head is new now"
    last = list(log.check_each())[-1]
    assert (last.event == "alive", last.backup, dict(last.files)) == (stated, "" if stated else A, {})
    if stated:
        assert last.expires_at - last.at == timedelta(days=3)


def test_an_empty_log_has_no_sign_of_life(tmp_path: Path) -> None:
    """The first statement is about a backup: a log that was removed whole does not begin again by itself."""
    assert not log_in(tmp_path).state_alive(datetime.now(UTC))
    assert not (tmp_path / "statements").exists()


def test_many_processes_state_one_sign_of_life(root: Path) -> None:
    now = aged(root, "shop", KEY, 30)
    context = multiprocessing.get_context("fork")
    all_of_them = [context.Process(target=log_in(root).state_alive, args=(now,)) for _ in range(6)]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join(60)
    assert [process.exitcode for process in all_of_them] == [0] * 6
    assert len(files(root)) == 5


# -------------------------------------------------------------------------------------------------- another key

NEW = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def test_a_replaced_key_leads_to_the_new_one(root: Path) -> None:
    before = log_in(root).chain()
    assert log_in(root).rotate(NEW) == 2
    forgotten()
    for reader in (log_in(root, signing=False), log_in(root, key=NEW, signing=False)):
        chain = reader.chain()
        assert (chain.head.sequence, chain.backups) == (6, before.backups)
        assert [statement.event for statement in reader.check_each()][-2:] == ["keys", "alive"]
    log_in(root, key=NEW).wrote(B, ".drilled.json", b"passed")
    assert ".drilled.json" in log_in(root, signing=False).files_of(B)


def test_a_process_with_the_old_key_is_refused(root: Path) -> None:
    """Also one that was running: nothing is written."""
    running = log_in(root)
    assert running.files_of(B)
    log_in(root).rotate(NEW)
    before = snapshot(root)
    for log in (running, log_in(root)):
        for state in (
            log.require_key,
            lambda log=log: log.wrote(B, ".drilled.json", b"passed"),
            lambda log=log: log.state_alive(datetime.now(UTC) + timedelta(days=2)),
            lambda log=log: log.rotate(Ed25519PrivateKey.generate()),
        ):
            with pytest.raises(SettingsError, match="was replaced: since statement 5") as caught:
                state()
            assert fingerprint(NEW.public_key()) in caught.value.why
            assert "keys rotate made" in caught.value.fix
    assert snapshot(root) == before


def test_an_interrupted_rotation_is_ended_by_the_same_call(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    log = log_in(root)
    with monkeypatch.context() as patch:
        patch.setattr(statement_log, "sign", lambda key, text: sign(key, text) if key is KEY else stop())
        with pytest.raises(KeyboardInterrupt):
            log.rotate(NEW)
    forgotten()
    assert len(files(root)) == 5
    with pytest.raises(SettingsError, match=r"was replaced.*keys rotate --to FOLDER"):
        log.require_key()
    with pytest.raises(StatementLogError, match="signature of statement 5 is invalid"):
        log_in(root, key=NEW).chain()
    assert (log.rotate(NEW), log.rotate(NEW)) == (1, 0)
    forgotten()
    assert len(list(log_in(root, key=NEW).check_each())) == 6


def test_a_key_that_was_replaced_is_not_used_again(root: Path) -> None:
    log_in(root).rotate(NEW)
    before = snapshot(root)
    with pytest.raises(SettingsError, match="cannot be used again"):
        log_in(root, key=NEW).rotate(KEY)
    assert snapshot(root) == before


def test_the_new_key_needs_no_old_signature(root: Path) -> None:
    """The last signature covers all; ``log verify`` checks each, and a reader with the old key needs that one."""
    log_in(root).rotate(NEW)
    (root / "statements/shop/00000005.json.sig").unlink()
    forgotten()
    assert log_in(root, key=NEW, signing=False).files_of(B)
    with pytest.raises(StatementLogError, match="statement 5 has no signature"):
        list(log_in(root, key=NEW).check_each())
    with pytest.raises(StatementLogError, match="signature of statement 6 is invalid"):
        log_in(root, signing=False).chain()


def test_each_statement_is_checked_with_the_key_of_its_time(root: Path) -> None:
    log_in(root).rotate(NEW)
    for path, key in ((files(root)[0], NEW), (files(root)[4], NEW)):
        right = path.with_name(f"{path.name}.sig").read_bytes()
        signed_again(path, key)
        forgotten()
        with pytest.raises(StatementLogError, match=rf"statement {int(path.stem)} (?:is invalid|does not count)"):
            list(log_in(root, key=NEW).check_each())
        path.with_name(f"{path.name}.sig").write_bytes(right)


def test_a_key_of_no_log_cannot_sign(root: Path) -> None:
    log = StatementLog(root, "shop", KEY.public_key(), NEW)
    with pytest.raises(SettingsError, match="is another key: the log is signed by SHA256:"):
        log.require_key()

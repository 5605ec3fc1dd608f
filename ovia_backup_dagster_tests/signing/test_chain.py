"""Logs whose key was replaced: which readers follow, and that no altered log is taken for the authentic one.

Everything is in memory: a log is a list of statements with their signatures, as the files would hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ovia_backup_dagster.core.errors import StatementLogError
from ovia_backup_dagster.signing.chain import Chain, claims_of_a_new_key
from ovia_backup_dagster.signing.sshsig import SignatureError, public_key, public_text, sign, verify
from ovia_backup_dagster.signing.statement import Event, KeyChange, SignedFile, SignedStatement

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
PRIVATE = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(5)]
KEYS = [public_text(key.public_key()) for key in PRIVATE]
FOREIGN = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
#: One of them looks like a replacement of the key at first sight.
NAMES = ("a.dump", "b.dump", "keys")


@dataclass(frozen=True)
class Entry:
    """A statement's file and its signature's."""

    content: bytes
    signature: bytes


Log = tuple[Entry, ...]


def extended(log: Log, key: Ed25519PrivateKey, event: Event = Event.ALIVE, backup: str = "", new: str = "") -> Log:
    """The log with one more statement, signed by this key."""
    old = public_text(key.public_key())
    statement = SignedStatement(
        sequence=len(log) + 1,
        previous=sha256(log[-1].content).hexdigest() if log else None,
        database="shop",
        at=NOW - timedelta(days=1),
        expires_at=NOW + timedelta(days=2),
        event=event,
        backup=backup,
        files={"": SignedFile.of(f"{len(log)}".encode())} if backup and event is not Event.REMOVED else {},
        keys=KeyChange(old=old, new=new) if new else None,
    )
    content = statement.to_json().encode()
    return (*log, Entry(content, sign(key, content)))


#: What happens: a backup of this name, one removed, a sign of life, or a rotation with its two statements.
STEPS = st.lists(st.sampled_from((*NAMES, "removed", "alive", "rotate", "rotate")), min_size=1, max_size=9)


def made(steps: Sequence[str]) -> tuple[Log, list[int]]:
    """The log of these steps, and for each statement the number of the key that was current."""
    log: Log = ()
    key, signers = 0, list[int]()
    for step in steps:
        if step == "rotate":
            if key + 1 == len(PRIVATE):
                continue
            log = extended(log, PRIVATE[key], Event.KEYS, new=KEYS[key + 1])
            log = extended(log, PRIVATE[key + 1])
            signers += [key, key + 1]
            key += 1
            continue
        if step == "removed":
            log = extended(log, PRIVATE[key], Event.REMOVED, NAMES[0])
        elif step == "alive":
            log = extended(log, PRIVATE[key])
        else:
            log = extended(log, PRIVATE[key], Event.BACKUP, step)
        signers.append(key)
    return log, signers


def read(log: Log, pinned: str, *, known: Chain | None = None) -> Chain:
    """As a reader with this key; incrementally, if it has read a part."""
    chain = known or Chain("shop", pinned)
    first = chain.head.sequence + 1
    contents = [entry.content for entry in log[first - 1 :]]
    wanted = [*claims_of_a_new_key(contents, first), len(log)]
    return chain.followed_by(contents, {number: log[number - 1].signature for number in wanted}, NOW)


def each_holds(log: Log, chain: Chain) -> bool:
    """As ``log verify``: every signature, with the key that was current."""
    try:
        for sequence, entry in enumerate(log, 1):
            verify(public_key(chain.signer_of(sequence)), entry.content, entry.signature)
    except SignatureError:
        return False
    return True


@given(STEPS)
def test_each_key_of_the_history_reads_the_same_log(steps: list[str]) -> None:
    log, signers = made(steps)
    if not log:
        return
    states = [read(log, KEYS[key]) for key in range(max(signers) + 1)]
    assert len({(state.head, str(state.backups), state.rotations) for state in states}) == 1
    assert [states[0].signer_of(number) for number in range(1, len(log) + 1)] == [KEYS[key] for key in signers]
    assert all(each_holds(log, state) for state in states)
    for key in {*range(len(KEYS))} - {*signers}:
        with pytest.raises(StatementLogError, match="is invalid"):
            read(log, KEYS[key])


@given(STEPS, st.data())
def test_a_log_read_in_parts_is_the_same(steps: list[str], data: st.DataObject) -> None:
    log, signers = made(steps)
    if len(log) < 2:
        return
    at = data.draw(st.integers(1, len(log) - 1))
    pinned = KEYS[data.draw(st.integers(0, signers[at - 1]))]
    assert read(log, pinned, known=read(log[:at], pinned)) == read(log, pinned)


def changed_byte(data: st.DataObject, log: Log) -> Log:
    at = data.draw(st.integers(0, len(log) - 1))
    which = data.draw(st.sampled_from(("content", "signature")))
    content = bytearray(getattr(log[at], which))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    return (*log[:at], replace(log[at], **{which: bytes(content)}), *log[at + 1 :])


def dropped(data: st.DataObject, log: Log) -> Log:
    """Not the last: a shorter log is an authentic one, which only its expiry or a noted head betrays."""
    at = data.draw(st.integers(0, max(len(log) - 2, 0)))
    return (*log[:at], *log[at + 1 :])


def swapped(data: st.DataObject, log: Log) -> Log:
    if len(log) < 2:
        return ()
    one, other = sorted(data.draw(st.lists(st.integers(0, len(log) - 1), min_size=2, max_size=2, unique=True)))
    return (*log[:one], log[other], *log[one + 1 : other], log[one], *log[other + 1 :])


def signed_again(data: st.DataObject, log: Log) -> Log:
    """By a foreign key, or by one of the log's that was not current."""
    at = data.draw(st.integers(0, len(log) - 1))
    entry = log[at]
    key = data.draw(st.sampled_from([FOREIGN, *PRIVATE]).filter(lambda k: sign(k, entry.content) != entry.signature))
    return (*log[:at], replace(entry, signature=sign(key, entry.content)), *log[at + 1 :])


def taken_over(data: st.DataObject, log: Log) -> Log:
    """A foreign key states that it replaces the current one, or an earlier one does; and the log goes on with it."""
    current, foreign = read(log, KEYS[0]).key, public_text(FOREIGN.public_key())
    signer = data.draw(
        st.sampled_from([FOREIGN, *(k for k, text in zip(PRIVATE, KEYS, strict=True) if text != current)])
    )
    new = foreign if signer is not FOREIGN else KEYS[-1]
    return extended(extended(log, signer, Event.KEYS, new=new), FOREIGN, Event.BACKUP, "forged.dump")


def went_on_with_a_replaced_key(data: st.DataObject, log: Log) -> Log:
    chain = read(log, KEYS[0])
    replaced = [key for key, text in zip(PRIVATE, KEYS, strict=True) if text in {each.old for each in chain.rotations}]
    if not replaced:
        return ()
    return extended(log, data.draw(st.sampled_from(replaced)), Event.BACKUP, "forged.dump")


def spliced(data: st.DataObject, log: Log) -> Log:
    """Goes on as another log of the same keys, such as that of a host that was set back to a snapshot."""
    other, _ = made(["another", *data.draw(STEPS)])
    at = data.draw(st.integers(1, len(log)))
    return (*log[:at], *other[at:]) if at < len(other) else ()


ATTACKS = (spliced, changed_byte, dropped, swapped, signed_again, taken_over, went_on_with_a_replaced_key)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
@given(steps=STEPS, data=st.data())
def test_no_reader_takes_an_altered_log_for_the_true_one(attack: object, steps: list[str], data: st.DataObject) -> None:
    """A reader refuses it, unless each statement is authentic; then ``log verify`` finds the altered signature."""
    log, signers = made(steps)
    if not log:
        return
    altered = attack(data, log)  # type: ignore[operator]
    if not altered or altered == log:
        return
    truth = read(log, KEYS[0])
    for number in range(max(signers) + 1):
        for known in _before(log, altered, KEYS[number]):
            try:
                found = read(altered, KEYS[number], known=known)
            except StatementLogError:
                continue
            assert [entry.content for entry in altered] == [entry.content for entry in log]
            assert (found.head, found.backups, found.rotations) == (truth.head, truth.backups, truth.rotations)
            assert not each_holds(altered, found)


def _before(log: Log, altered: Log, pinned: str) -> Iterator[Chain | None]:
    """What a reader may know of the log: nothing, or as much as the two have in common."""
    yield None
    same = next((n for n, (one, other) in enumerate(zip(log, altered, strict=False)) if one != other), len(log))
    if 0 < same < len(altered):
        try:
            yield read(log[:same], pinned)
        except StatementLogError:
            return  # its key comes later


def test_a_foreign_signature_of_a_rotation_stops_the_reader() -> None:
    """A reader with the old key; one with the new key does not need the old signature, but ``log verify`` does."""
    log, _ = made(["a.dump", "rotate", "b.dump"])
    altered = (log[0], replace(log[1], signature=sign(FOREIGN, log[1].content)), *log[2:])
    with pytest.raises(StatementLogError, match="signature of statement 4 is invalid"):
        read(altered, KEYS[0])
    assert not each_holds(altered, read(altered, KEYS[1]))


def test_the_old_key_cannot_replace_itself_twice() -> None:
    """Hiding the first hand-over's signature does not let its key hand over again."""
    log, _ = made(["a.dump", "rotate", "b.dump"])
    hidden = (log[0], replace(log[1], signature=b""), *log[2:])
    forged = extended(hidden, PRIVATE[0], Event.KEYS, new=public_text(FOREIGN.public_key()))
    with pytest.raises(StatementLogError, match="replaces a key that was not current"):
        read(extended(forged, FOREIGN), KEYS[0])
    with pytest.raises(StatementLogError, match="was not the current one"):
        read(extended(hidden, PRIVATE[0], Event.BACKUP, "forged.dump"), KEYS[0])


def test_a_replaced_key_does_not_come_back() -> None:
    log, _ = made(["a.dump", "rotate"])
    log = extended(extended(log, PRIVATE[1], Event.KEYS, new=KEYS[0]), PRIVATE[0])
    for pinned in KEYS[:2]:
        with pytest.raises(StatementLogError, match="its new key is one that was replaced"):
            read(log, pinned)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"event": "alive", "backup": "a"}, "names no backup"),
        ({"event": "keys", "backup": "a"}, "names no backup"),
        ({"event": "backup", "backup": ""}, "names a backup"),
        ({"event": "alive", "files": {"": {"size_bytes": 1, "sha256": "a" * 64}}}, "has no files"),
        ({"event": "keys"}, "names an old and a new key"),
        ({"event": "alive", "keys": {"old": KEYS[0], "new": KEYS[1]}}, "and no other, names"),
        ({"event": "keys", "keys": {"old": KEYS[0], "new": "ssh-rsa AAAA"}}, "keys.new"),
    ],
)
def test_a_statement_has_what_its_event_needs(fields: dict[str, object], said: str) -> None:
    whole = {"sequence": 1, "previous": None, "database": "shop", "at": NOW, "expires_at": NOW, "backup": "", **fields}
    with pytest.raises(ValidationError, match=said):
        SignedStatement.model_validate(whole)


def test_only_a_rotation_has_the_field_of_keys() -> None:
    """So that a log without one is written as before."""
    log, _ = made(["alive", "rotate"])
    assert [b'"keys": {' in entry.content for entry in log] == [False, True, False]
    assert b'"keys"' not in log[0].content

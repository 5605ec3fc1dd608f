"""The signed log on the volume: ``statements/00000042.json`` and its signature, appended and never rewritten.

A ledger for the volume's operations (``core.ledger``). What the statements say together belongs to ``chain``, their
files to ``statement_files``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ovia_backup_dagster.core.errors import SettingsError, StatementLogError
from ovia_backup_dagster.core.layout import STATEMENTS
from ovia_backup_dagster.core.manifest import parse_sidecar
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.signing.chain import Chain, Files, Known, broken, claims_of_a_new_key
from ovia_backup_dagster.signing.key_files import fingerprint
from ovia_backup_dagster.signing.sshsig import SignatureError, public_key, public_text, sign, verify
from ovia_backup_dagster.signing.standing import with_sidecar
from ovia_backup_dagster.signing.statement import ARCHIVE, Event, KeyChange, SignedFile, SignedStatement, Standing
from ovia_backup_dagster.signing.statement_files import StatementFiles

#: A sign of life is stated each day, so a log that ends earlier was cut off, or its host has stopped.
VALID = timedelta(days=3)
#: The age of the last statement from which a sign of life is due.
ALIVE_AFTER = timedelta(hours=20)
#: A folder that changed this recently may change again without another time of its own, in nanoseconds.
_RACY_NS = 1_000_000_000
#: Logs as this process read them, with the time of their folder then: a log that becomes shorter or other than this was
#: tampered with.
_read: dict[tuple[Path, str, str], tuple[Chain, int]] = {}
_reading = threading.Lock()


class StatementLog:
    """The log of one database's backups on one volume.

    Args:
        root: the backup folder.
        database: whose backups.
        key: a public key of the log's history: what it vouches for counts.
        signing_key: the private key of the current one; without it nothing can be stated.

    Attributes:
        files: the log's files on the volume.
    """

    def __init__(
        self, root: Path, database: str, key: Ed25519PublicKey, signing_key: Ed25519PrivateKey | None = None
    ) -> None:
        self.root = root.absolute()
        self.path = self.root / STATEMENTS / encode_database(database)
        self.database = database
        self.key = key
        self._signing_key = signing_key
        self.files = StatementFiles(self.root, self.path)

    # ------------------------------------------------------------------------------------------- what it vouches for

    def require_sound(self) -> None:
        """Read what was added to the log.

        Raises:
            StatementLogError: the log is broken.
            VolumeError: it cannot be read.
        """
        self.chain()

    def files_of(self, archive: str, *, on_volume: bool = True) -> Mapping[str, str]:
        """The files that count for a backup: suffix -> hex SHA-256; empty if no statement vouches for it."""
        files = self.chain().files_of(archive, on_volume=on_volume)
        return {suffix: file.sha256 for suffix, file in files.items()}

    def chain(self) -> Chain:
        """All statements, as they are now. Reads only what was added since this process read the log last.

        Raises:
            StatementLogError: the log is broken.
            VolumeError: it cannot be read.
        """
        now = datetime.now(UTC)
        pinned = public_text(self.key)
        mark = (self.path, self.database, pinned)
        with _reading:
            known, then = _read.get(mark, (Chain(self.database, pinned), 0))
            changed = self.files.changed_ns()
            if then == changed and time.time_ns() - changed > _RACY_NS:
                return known
            if known.head.sequence and self.files.sha256(known.head.sequence) != known.head.sha256:
                why = f"this process has read {known.head.sequence} statements, and the last one is gone or other now"
                raise broken("the log was cut off or rewritten", why)
            first = known.head.sequence + 1
            contents = list(self.files.contents(first))
            if contents:
                known = known.followed_by(contents, _needed(self.files, contents, first), now)
            _read[mark] = known, changed
            return known

    def check_each(self) -> Iterator[SignedStatement]:
        """Check the signature of every statement, and not only of the last, with the key that was current then.

        Raises:
            StatementLogError: a signature is invalid.
        """
        chain = self.chain()
        for sequence, content in enumerate(self.files.contents(1), 1):
            try:
                verify(public_key(chain.signer_of(sequence)), content, self.files.signature(sequence))
            except SignatureError as error:
                raise broken(f"the signature of statement {sequence} is invalid", str(error)) from None
            yield parse_sidecar(SignedStatement, content, self.files.file(sequence).name)

    # ------------------------------------------------------------------------------------------------- what is stated

    @property
    def can_record(self) -> bool:
        """Whether this process has the signing key."""
        return self._signing_key is not None

    def require_key(self) -> None:
        """Refuse to state anything without the signing key, or with one that was replaced.

        Raises:
            SettingsError: it is not set, or was replaced.
            StatementLogError: the log is broken.
        """
        self._key_to_sign(self.chain())

    def _any_key(self) -> Ed25519PrivateKey:
        if self._signing_key is None:
            raise SettingsError(
                "BACKUP_SIGNING_KEY_FILE is not set",
                why="BACKUP_VERIFY_KEY_FILE is, so that only what is signed counts",
                fix="set both where backups are made; restore with the second alone",
            )
        return self._signing_key

    def _key_to_sign(self, chain: Chain) -> Ed25519PrivateKey:
        key = self._any_key()
        if public_text(key.public_key()) != chain.key:
            raise _replaced(chain)
        return key

    def published(self, archive: str, size_bytes: int, sha256: str, sidecars: Mapping[str, bytes]) -> None:
        """An archive was written, with these sidecars; reported before it gets its final name."""
        files = {ARCHIVE: SignedFile(size_bytes=size_bytes, sha256=sha256), **_facts(sidecars)}
        self._append(Event.BACKUP, archive, lambda _: Known(0, files))

    def promoted(self, source: str, archive: str, copied: Mapping[str, bytes], written: Mapping[str, bytes]) -> None:
        """An archive got a second name, with copies of the source's sidecars and with new ones.

        Of the copies only those count that are what was written last for the source.
        """

        def after(chain: Chain) -> Known | None:
            files = chain.files_of(source)
            if ARCHIVE not in files:
                return None
            same = {suffix: fact for suffix, fact in _facts(copied).items() if files.get(suffix) == fact}
            return replace(chain.known[source], files={ARCHIVE: files[ARCHIVE], **same, **_facts(written)})

        self._append(Event.PROMOTED, archive, after)

    def wrote(self, archive: str, suffix: str, content: bytes) -> None:
        """A sidecar of a finished backup was written."""

        def after(chain: Chain) -> Known | None:
            if not chain.files_of(archive):
                return None
            known = with_sidecar(chain.known[archive], suffix, content)
            return replace(known, files={**known.files, suffix: SignedFile.of(content)})

        self._append(Event.EVIDENCE, archive, after)

    def held(self, archive: str, until: datetime | None) -> None:
        """A person keeps a backup until an instant (UTC), or releases it; also one that is only on remotes."""
        self._append(Event.HELD, archive, lambda chain: _held(chain.known.get(archive), until))

    def adopted(self, archive: str, files: Files, standing: Standing) -> None:
        """A person vouches for a backup, and for these files of it."""
        self._append(Event.ADOPTED, archive, lambda _: Known(0, files, standing))

    def removed(self, archive: str) -> None:
        """A backup was removed."""
        if self.chain().files_of(archive):
            self._append(Event.REMOVED, archive, lambda _: Known(0, {}))

    def state_alive(self, now: datetime) -> bool:
        """State that the host still signs, if the last statement is old enough; never in an empty log.

        Args:
            now: the present (UTC).

        Raises:
            SettingsError, StatementLogError, VolumeError: as the other statements.
        """
        self._key_to_sign(self.chain())
        if not self._is_due(self.chain(), now):
            return False
        with self.files.locked():
            chain = self.chain()
            if due := self._is_due(chain, now):  # another process may just have stated it
                self._state(chain, self._key_to_sign(chain), Event.ALIVE, now)
        return due

    @staticmethod
    def _is_due(chain: Chain, now: datetime) -> bool:
        return chain.head.at is not None and now - chain.head.at >= ALIVE_AFTER

    def rotate(self, new: Ed25519PrivateKey) -> int:
        """Replace the key: the old one signs a statement that names the new one, and the new one signs the next.

        Repeated after an interruption, with the same new key, it states what is missing.

        Returns:
            How many statements were made: 2, or 1 after an interruption, or 0 if the log is signed by that key.

        Raises:
            SettingsError: this process does not have the current key; or the new one was replaced before.
            StatementLogError, VolumeError: as the other statements.
        """
        self._any_key()
        now, text = datetime.now(UTC), public_text(new.public_key())
        with self.files.locked():
            chain = self.chain()
            if text in (each.old for each in chain.rotations):
                why = f"{fingerprint(new.public_key())} signed this log before"
                raise SettingsError("a key that was replaced cannot be used again", why=why, fix="choose a new folder")
            before = chain.head.sequence
            if text != chain.key:
                keys = KeyChange(old=chain.key, new=text)
                chain = self._state(chain, self._key_to_sign(chain), Event.KEYS, now, keys=keys)
            if chain.signer_of(chain.head.sequence) != text:
                chain = self._state(chain, new, Event.ALIVE, now)
            return chain.head.sequence - before

    def sign(self, content: bytes) -> bytes:
        """Sign another file about these backups, such as the receipt of a copy.

        Raises:
            SettingsError: the signing key is not set, or was replaced.
            StatementLogError: the log is broken.
        """
        return sign(self._key_to_sign(self.chain()), content)

    def _append(self, event: Event, archive: str, after: Callable[[Chain], Known | None]) -> None:
        """State an event, with what is known of the backup from now on; nothing if nothing is."""
        self._any_key()
        with self.files.locked():
            chain = self.chain()
            key, known = self._key_to_sign(chain), after(chain)
            if known is not None:
                self._state(chain, key, event, datetime.now(UTC), archive, known)

    def _state(
        self,
        chain: Chain,
        key: Ed25519PrivateKey,
        event: Event,
        now: datetime,
        archive: str = "",
        known: Known | None = None,
        keys: KeyChange | None = None,
    ) -> Chain:
        """Sign and write the next statement; return the log with it. The log is locked."""
        known = known or Known(0, {})
        statement = SignedStatement(
            sequence=chain.head.sequence + 1,
            previous=chain.head.sha256,
            database=self.database,
            at=now,
            expires_at=now + VALID,
            event=event,
            backup=archive,
            files=known.files,
            standing=known.standing,
            held_until=known.held_until,
            keys=keys,
        )
        content = statement.to_json().encode()
        self.files.write(statement.sequence, content, sign(key, content))
        return self.chain()


def _needed(files: StatementFiles, contents: list[bytes], first: int) -> dict[int, bytes]:
    """The signatures that a reader needs: of the last statement, and of those that may replace the key."""
    last = first + len(contents) - 1
    found = {last: files.signature(last)}
    for sequence in claims_of_a_new_key(contents[:-1], first):
        try:
            found[sequence] = files.signature(sequence)
        except StatementLogError:
            continue  # only a reader with an older key needs it, and it finds the last one invalid
    return found


def _replaced(chain: Chain) -> SettingsError:
    """The error for a signing key that is not the log's current one."""
    now = f"the log is signed by {fingerprint(public_key(chain.key))}"
    if not chain.rotations:
        fix = "name the two files that one call of ovia-backup keys init made"
        return SettingsError("BACKUP_SIGNING_KEY_FILE is another key", why=now, fix=fix)
    fix = "set BACKUP_SIGNING_KEY_FILE and BACKUP_VERIFY_KEY_FILE to the files that ovia-backup keys rotate made"
    if chain.rotations[-1].sequence == chain.head.sequence:
        fix = "the replacement was interrupted; end it with the same folder: ovia-backup keys rotate --to FOLDER"
    why = f"since statement {chain.rotations[-1].sequence} {now}"
    return SettingsError("the key in BACKUP_SIGNING_KEY_FILE was replaced", why=why, fix=fix)


def _facts(contents: Mapping[str, bytes]) -> dict[str, SignedFile]:
    return {suffix: SignedFile.of(content) for suffix, content in contents.items()}


def _held(known: Known | None, until: datetime | None) -> Known | None:
    return None if known is None else replace(known, held_until=until)

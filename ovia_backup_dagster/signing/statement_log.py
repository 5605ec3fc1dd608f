"""The signed log on the volume: ``statements/00000042.json`` and its signature, appended and never rewritten.

A ledger for the volume's operations (``core.ledger``). The signature is written before its statement, so that a
reader who sees a statement sees its signature. What the statements say together belongs to ``chain``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.core.files import NOTE_BYTES, as_volume_error, read_small, sync_folder, write_whole
from ovia_backup_dagster.core.manifest import parse_sidecar
from ovia_backup_dagster.core.naming import encode_database
from ovia_backup_dagster.core.reserve import with_reserve
from ovia_backup_dagster.signing.chain import Chain, Files, Known, broken
from ovia_backup_dagster.signing.sshsig import SignatureError, sign, verify
from ovia_backup_dagster.signing.standing import with_sidecar
from ovia_backup_dagster.signing.statement import ARCHIVE, Event, SignedFile, SignedStatement, Standing

FOLDER, LOCK, SIGNATURE = "statements", ".lock", ".sig"
_NAME = re.compile(r"\d{8,}\.json")
#: A statement is made by each dump, so a log that ends earlier was cut off, or the backups stopped.
VALID = timedelta(days=3)
#: A folder that changed this recently may change again without another time of its own, in nanoseconds.
_RACY_NS = 1_000_000_000
#: Logs as this process read them, with the time of their folder then: a log that becomes shorter or other than this was
#: tampered with.
_read: dict[tuple[Path, str, bytes], tuple[Chain, int]] = {}
_reading = threading.Lock()


class StatementLog:
    """The log of one database's backups on one volume.

    Args:
        root: the backup folder.
        database: whose backups.
        key: the public key whose signatures count.
        signing_key: its private key; without it nothing can be stated.
    """

    def __init__(
        self, root: Path, database: str, key: Ed25519PublicKey, signing_key: Ed25519PrivateKey | None = None
    ) -> None:
        self.root = root.absolute()
        self.path = self.root / FOLDER / encode_database(database)
        self.database = database
        self.key = key
        self._signing_key = signing_key

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
        mark = (self.path, self.database, self.key.public_bytes(Encoding.Raw, PublicFormat.Raw))
        with _reading:
            known, then = _read.get(mark, (Chain(self.database), 0))
            changed = self._changed_ns()
            if then == changed and time.time_ns() - changed > _RACY_NS:
                return known
            if known.head.sequence and self._sha256(known.head.sequence) != known.head.sha256:
                why = f"this process has read {known.head.sequence} statements, and the last one is gone or other now"
                raise broken("the log was cut off or rewritten", why)
            contents = list(self._contents(known.head.sequence + 1))
            if contents:
                last = known.head.sequence + len(contents)
                known = known.followed_by(contents, self._signature(last), self.key, now)
            _read[mark] = known, changed
            return known

    def check_each(self) -> Iterator[SignedStatement]:
        """Check the signature of every statement, and not only of the last.

        Raises:
            StatementLogError: one does not hold.
        """
        self.chain()
        for sequence, content in enumerate(self._contents(1), 1):
            try:
                verify(self.key, content, self._signature(sequence))
            except SignatureError as error:
                raise broken(f"the signature of statement {sequence} does not hold", str(error)) from None
            yield parse_sidecar(SignedStatement, content, self._file(sequence).name)

    def content(self, sequence: int) -> bytes:
        """The file of a statement.

        Raises:
            StatementLogError: there is none.
            VolumeError: it cannot be read.
        """
        try:
            return read_small(self._file(sequence))
        except FileNotFoundError:
            raise broken(f"statement {sequence} is missing", f"{self._file(sequence)} is not there") from None

    def signature(self, content: bytes) -> bytes:
        """Sign another file about these backups, such as the receipt of a copy.

        Raises:
            SettingsError: the signing key is not set.
        """
        return sign(self._key_to_sign(), content)

    # ------------------------------------------------------------------------------------------------- what is stated

    @property
    def can_record(self) -> bool:
        """Whether this process has the signing key."""
        return self._signing_key is not None

    def require_key(self) -> None:
        """Refuse to state anything without the signing key.

        Raises:
            SettingsError: it is not set.
        """
        self._key_to_sign()

    def _key_to_sign(self) -> Ed25519PrivateKey:
        if self._signing_key is None:
            raise SettingsError(
                "BACKUP_SIGNING_KEY_FILE is not set",
                why="BACKUP_VERIFY_KEY_FILE is, so that only what is signed counts",
                fix="set both where backups are made; restore with the second alone",
            )
        return self._signing_key

    def published(self, archive: str, size_bytes: int, sha256: str, sidecars: Mapping[str, bytes]) -> None:
        """An archive was written, with these sidecars; reported before it gets its final name."""
        files = {ARCHIVE: SignedFile(size_bytes=size_bytes, sha256=sha256), **_facts(sidecars)}
        self._append(Event.BACKUP, archive, lambda chain: Known(chain.head.sequence, files))

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
        """A person keeps a backup until an instant (UTC), or releases it: on remotes, also if the volume lost it."""

        def after(chain: Chain) -> Known | None:
            return replace(chain.known[archive], held_until=until) if archive in chain.known else None

        self._append(Event.HELD, archive, after)

    def adopted(self, archive: str, files: Files, standing: Standing) -> None:
        """A person vouches for a backup, and for these files of it."""
        self._append(Event.ADOPTED, archive, lambda chain: Known(chain.head.sequence, files, standing))

    def removed(self, archive: str) -> None:
        """A backup was removed."""
        if self.chain().files_of(archive):
            self._append(Event.REMOVED, archive, lambda chain: Known(chain.head.sequence, {}))

    def extend(self, contents: list[bytes], signatures: list[bytes]) -> None:
        """Continue the log by statements that another machine made, after checking them.

        Args:
            contents: the files of the statements that follow this log's last, in order.
            signatures: of each.

        Raises:
            StatementLogError: one does not hold, or does not follow.
            VolumeError: they cannot be written.
        """
        with self._locked():
            chain = self.chain()
            chain.followed_by(contents, signatures[-1], self.key, datetime.now(UTC))
            for sequence, (content, signature) in enumerate(
                zip(contents, signatures, strict=True), chain.head.sequence + 1
            ):
                path = self._file(sequence)
                with as_volume_error(f"cannot write {path}"):
                    write_whole(_signature_of(path), signature)
                    write_whole(path, content)
            sync_folder(self.path)

    def _append(self, event: Event, archive: str, after: Callable[[Chain], Known | None]) -> None:
        """State an event, with what is known of the backup from now on; nothing if nothing is."""
        key = self._key_to_sign()
        with self._locked():
            chain = self.chain()
            if (known := after(chain)) is None:
                return
            now = datetime.now(UTC)
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
            )
            content = statement.to_json().encode()
            path = self._file(statement.sequence)
            with as_volume_error(f"cannot write {path}"):
                for target, text in ((_signature_of(path), sign(key, content)), (path, content)):
                    with_reserve(self.root, lambda target=target, text=text: write_whole(target, text))  # type: ignore[misc]
                sync_folder(self.path)
            self.chain()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One statement at a time: drills and dumps run side by side."""
        with as_volume_error(f"cannot use the folder {self.path}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with as_volume_error(f"cannot lock {self.path / LOCK}"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # -------------------------------------------------------------------------------------------------------- files

    def _file(self, sequence: int) -> Path:
        return self.path / f"{sequence:08}.json"

    def _contents(self, first: int) -> Iterator[bytes]:
        """The files of the statements from this number on.

        Raises:
            StatementLogError: one is missing, and a later one is there.
        """
        with as_volume_error(f"cannot list {self.path}", passing=FileNotFoundError):
            try:
                names = [name for name in os.listdir(self.path) if _NAME.fullmatch(name)]
            except FileNotFoundError:
                return
        last = max((int(name.partition(".")[0]) for name in names), default=0)
        for sequence in range(first, last + 1):
            try:
                yield read_small(self._file(sequence))
            except FileNotFoundError:
                raise broken(f"statement {sequence} is missing", f"statement {last} is there") from None

    def _changed_ns(self) -> int:
        """When a statement was added last, or a file of the folder renamed or removed."""
        with as_volume_error(f"cannot read {self.path}", passing=FileNotFoundError):
            try:
                return os.stat(self.path).st_mtime_ns
            except FileNotFoundError:
                return 0

    def _signature(self, sequence: int) -> bytes:
        path = _signature_of(self._file(sequence))
        try:
            return read_small(path, NOTE_BYTES)
        except FileNotFoundError:
            raise broken(f"statement {sequence} has no signature", f"{path} is missing") from None

    def _sha256(self, sequence: int) -> str | None:
        try:
            return hashlib.sha256(read_small(self._file(sequence))).hexdigest()
        except FileNotFoundError:
            return None


def _signature_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{SIGNATURE}")


def _facts(contents: Mapping[str, bytes]) -> dict[str, SignedFile]:
    return {suffix: SignedFile.of(content) for suffix, content in contents.items()}

"""(p): reading and checking the signed log of ten years, and one more statement in it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.measure import ROUNDS, Json, alternate, say, seconds, summary, target
from benchmarks.world import World
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.signing import statement_log
from ovia_backup_dagster.signing.sshsig import public_text, sign
from ovia_backup_dagster.signing.statement import Event, KeyChange, SignedFile, SignedStatement, Standing
from ovia_backup_dagster.signing.statement_files import StatementFiles
from ovia_backup_dagster.signing.statement_log import VALID, StatementLog

YEARS = 10
_DATABASE = "ovia"
_KEPT = 14


def measure(world: World, years: int = YEARS) -> Json:
    """A dump, its verdict and a removal each day, and another key each year. No statement is kept in memory."""
    root = world.path("signed")
    say(f"signing a log of {years} years")
    log, first, count = _filled(root, years)
    old = StatementLog(root, _DATABASE, first.public_key())
    sides: dict[str, Callable[[], float]] = {
        "read": lambda: _alone(log.chain),
        "read_with_the_first_key": lambda: _alone(old.chain),
        "check_each": lambda: _alone(lambda: sum(1 for _ in log.check_each())),
        "state": lambda: _one_more(log),
    }
    samples = alternate(sides, ROUNDS)
    found = {name: summary(taken, 4) for name, taken in samples.items()}
    read = found["read"]["median"]
    what = f"reading and checking a signed log of {years} years"
    return {"statements": count, "years": years, "seconds": found, "targets": [target("p", what, read, 1.0, "s")]}


def _one_more(log: StatementLog) -> float:
    """As a process that has read the log: a dump that states its backup at the end."""
    log.chain()
    return seconds(lambda: log.adopted("another.dump", {"": SignedFile.of(b"")}, Standing.UNVERIFIED))


def _alone(work: Callable[[], object]) -> float:
    """As a process that has not read the log."""
    statement_log._read.clear()
    return seconds(work)


def _filled(root: Path, years: int) -> tuple[StatementLog, Ed25519PrivateKey, int]:
    """The log with its current key, the first key, and the number of statements."""
    keys = [Ed25519PrivateKey.generate() for _ in range(years)]
    log = StatementLog(root, _DATABASE, keys[-1].public_key(), keys[-1])
    files = StatementFiles(log.root, log.path)
    now, days = datetime.now(UTC).replace(microsecond=0), years * 365
    sequence, previous = 0, None

    def state(key: Ed25519PrivateKey, event: Event, at: datetime, backup: str, **more: object) -> None:
        nonlocal sequence, previous
        sequence += 1
        fields = {"sequence": sequence, "previous": previous, "database": _DATABASE, "backup": backup, **more}
        statement = SignedStatement.model_validate({**fields, "event": event, "at": at, "expires_at": at + VALID})
        content = statement.to_json().encode()
        files.write(sequence, content, sign(key, content))
        previous = SignedFile.of(content).sha256

    with mock.patch("os.fsync"), files.locked():  # twenty thousand calls would take minutes
        for day in range(days):
            at, year = now - timedelta(days=days - day), day // 365
            dump = {suffix: SignedFile.of(f"{day}{suffix}".encode()) for suffix in ("", ".json", ".globals.sql")}
            state(keys[year], Event.BACKUP, at, _name(at), files=dump)
            verdict = {**dump, ".verified.json": SignedFile.of(b"verdict")}
            state(keys[year], Event.EVIDENCE, at, _name(at), files=verdict)
            if day >= _KEPT:
                state(keys[year], Event.REMOVED, at, _name(at - timedelta(days=_KEPT)))
            if day % 365 == 364 and year + 1 < years:
                change = KeyChange(
                    old=public_text(keys[year].public_key()), new=public_text(keys[year + 1].public_key())
                )
                state(keys[year], Event.KEYS, at, "", keys=change)
    return log, keys[0], sequence


def _name(at: datetime) -> str:
    return BackupName(_DATABASE, Tier.DAILY, at).filename

"""The troubles of point-in-time recovery: each condition, its error, and the next command. Pure.

``standing`` puts them in order. A condition that merely follows from another one of its group is not reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE
from ovia_backup_dagster.core.errors import BackupError, ClockError, DiskFullError, VolumeError
from ovia_backup_dagster.core.human_text import duration, human_bytes, seconds
from ovia_backup_dagster.core.pitr_errors import (
    BaseBackupError,
    BaseBackupOverdueError,
    ReceiverStoppedError,
    RecoveryPointError,
    SegmentDamagedError,
    ServerReplacedError,
    SlotLostError,
    WalError,
    WalGapError,
)
from ovia_backup_dagster.pitr.receiver_status import ReceiverState, ReceiverStatus, ReceiverTrouble
from ovia_backup_dagster.pitr.recovery_catalog import Base, Hole, RecoveryCatalog, shown_time
from ovia_backup_dagster.pitr.standing_values import PitrFacts, PitrLimits, PitrPart, PitrTrouble
from ovia_backup_dagster.pitr.wal_position import SEGMENT_BYTES

#: A trouble that the receiver overcomes within this time, such as a restart of the server, is not reported.
_PATIENCE = timedelta(minutes=1)
#: A base backup is made and verified in one run, which may take long.
_GRACE = timedelta(days=1)
#: The receiver stops when less than so many segments fit.
_SEGMENTS_OF_ROOM = 3
#: A slot is nearly lost with less than this share of its limit left; or, if the limit is unknown, so many segments.
_SLOT_SHARE, _SLOT_SEGMENTS = 0.2, 4
_DAY = timedelta(days=1)
_BASE = "ovia-backup base-backup"
_STATUS = "ovia-backup wal status"
_DRILL = "ovia-backup pitr-drill"
_START = f"start its service (ovia-backup wal receive) and read its log; then: {_STATUS}"


# ---- room


def room_troubles(facts: PitrFacts, limits: PitrLimits, newest: Base | None, now: datetime) -> Iterator[PitrTrouble]:
    """Whether the volume has room, now and until old WAL is removed.

    Args:
        facts: what the volume says.
        limits: what the settings allow.
        newest: the newest base backup that is not bad.
        now: the present (UTC).
    """
    segment = facts.catalog.segment_bytes if facts.catalog else SEGMENT_BYTES
    free = human_bytes(facts.free_bytes)
    enlarge = "df -h $BACKUP_DIR; enlarge the volume, or lower RECOVERY_WINDOW_DAYS and make a base backup: " + _BASE
    if facts.free_bytes < _SEGMENTS_OF_ROOM * segment:
        what = "the backup volume has no room for WAL"
        yield PitrTrouble(PitrPart.ROOM, DiskFullError(what, why=f"{free} free", fix=enlarge), urgent=True)
        return
    needed, until = facts.wal_bytes_per_day, "tomorrow"
    if newest is not None:
        days = max((newest.started_at + limits.base_period - now) / _DAY, 1.0)
        # Only after the next base backup is old WAL removed.
        needed, until = needed * days + newest.size_bytes, "the next base backup is made"
    if facts.wal_bytes_per_day and facts.free_bytes < needed:
        growth = f"WAL takes {human_bytes(facts.wal_bytes_per_day)} a day"
        why = f"{free} free, {human_bytes(needed)} needed; {growth}"
        error = DiskFullError(f"the backup volume will be full before {until}", why=why, fix=enlarge)
        yield PitrTrouble(PitrPart.ROOM, error)


# ---- receiving


def receiving_troubles(facts: PitrFacts, limits: PitrLimits, now: datetime) -> Iterator[PitrTrouble]:
    """Whether WAL arrives in time."""
    status = facts.status
    stopped = _never_ran() if status is None else _stopped(status, now)
    if stopped is not None or status is None:
        if stopped is not None:
            yield PitrTrouble(PitrPart.RECEIVING, stopped, urgent=True)
        return
    reported = list(_reported(status, now))
    yield from reported
    if status.slot_status == "lost":
        error = SlotLostError(
            f"slot {status.slot} has lost its WAL",
            why="the server removed WAL that was not received: max_slot_wal_keep_size",
            fix=f"{_STATUS}; then {_BASE}",
        )
        yield PitrTrouble(PitrPart.RECEIVING, error, urgent=True)
    elif not reported and (late := _late(facts, status, limits, now)) is not None:
        yield PitrTrouble(PitrPart.RECEIVING, late, urgent=True)
    elif (low := _slot_low(facts, status)) is not None:
        yield PitrTrouble(PitrPart.RECEIVING, low)


def _never_ran() -> BackupError:
    why = "PITR_ENABLED is true, but no WAL is received"
    fix = f"ovia-backup doctor; then {_START}"
    return ReceiverStoppedError("no WAL receiver ever ran on this volume", why=why, fix=fix)


def _stopped(status: ReceiverStatus, now: datetime) -> BackupError | None:
    ahead = status.written_at - now
    if ahead > CLOCK_TOLERANCE:
        return ClockError(
            f"the WAL receiver's last report is dated {duration(ahead)} in the future",
            why="the clock of its host or of this one is wrong, so it is unknown whether it still reports",
            fix=f"date -u on both; where it is wrong: timedatectl set-ntp true; then: {_STATUS}",
        )
    if not status.is_stale(now):
        return None
    how = "it was stopped" if status.state is ReceiverState.STOPPED else "it has ended, or hangs"
    why = f"{how}; its last report is {duration(now - status.written_at)} old"
    if status.confirmed_at is not None:
        why += f", and what was committed since {shown_time(status.confirmed_at)} is not known to be safe here"
    return ReceiverStoppedError("the WAL receiver does not report", why=why, fix=_START)


def _reported(status: ReceiverStatus, now: datetime) -> Iterator[PitrTrouble]:
    """What the receiver itself reports for long enough: of the volume, of damage, and of the server, one each."""
    lasting = [trouble for trouble in status.troubles if now - trouble.since > _PATIENCE]
    errors = [_typed(trouble) for trouble in sorted(lasting, key=lambda trouble: trouble.since)]
    volume = [error for error in errors if isinstance(error, VolumeError)]
    damage = [error for error in errors if isinstance(error, SegmentDamagedError)]
    server = [error for error in errors if not isinstance(error, VolumeError | SegmentDamagedError)]
    # Another cluster, or a lost slot, explains a connection that ends; not the other way around.
    server.sort(key=lambda error: not isinstance(error, ServerReplacedError | SlotLostError))
    for part, found in (
        (PitrPart.ROOM, volume),
        (PitrPart.CHAIN, damage),
        (PitrPart.RECEIVING, server),
    ):
        for error in found[:1]:
            yield PitrTrouble(part, error, urgent=True)


def _typed(trouble: ReceiverTrouble) -> BackupError:
    """The trouble as the error that the receiver met."""
    kind = next((each for each in _below(BackupError) if each.__name__ == trouble.error), WalError)
    return kind(trouble.account, fix=trouble.fix)


def _below(kind: type[BackupError]) -> Iterator[type[BackupError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _below(each)


def _late(facts: PitrFacts, status: ReceiverStatus, limits: PitrLimits, now: datetime) -> BackupError | None:
    """The error for changes that are not safe here in time."""
    safe_until = status.confirmed_at
    since = safe_until or facts.began_at or status.started_at
    if now - since <= limits.rpo:
        return None
    most = f"RPO_MAX_SECONDS allows {seconds(limits.rpo.total_seconds())}"
    if safe_until is None:
        what, why = "nothing that was committed is known to be safe here", f"no beacon has come back; {most}"
    else:
        what = f"the changes of the last {duration(now - safe_until)} would be lost with the server"
        why = f"the newest that are known to be safe here are of {shown_time(safe_until)}; {most}"
    fix = f"{_STATUS}; ovia-backup doctor"
    # A trouble that began moments ago, or that comes and goes, is the likely cause all the same.
    if status.troubles:
        first = min(status.troubles, key=lambda trouble: trouble.since)
        why, fix = f"{first.account}; {most}", first.fix or fix
    return RecoveryPointError(what, why=why, fix=fix)


def _slot_low(facts: PitrFacts, status: ReceiverStatus) -> BackupError | None:
    safe, limit = status.slot_safe_bytes, status.slot_limit_bytes
    segment = facts.catalog.segment_bytes if facts.catalog else SEGMENT_BYTES
    least = _SLOT_SEGMENTS * segment if limit is None else limit * _SLOT_SHARE
    if status.slot_status != "unreserved" and (safe is None or safe >= least):
        return None
    of = f" of {human_bytes(limit)} (max_slot_wal_keep_size)" if limit is not None else ""
    return SlotLostError(
        f"slot {status.slot} will lose its WAL soon",
        why=f"the server keeps only {human_bytes(max(safe or 0, 0))} more for it{of}: less is received than written",
        fix=f"{_STATUS}; meanwhile, as a superuser: ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; "
        "SELECT pg_reload_conf()",
    )


# ---- the chain of WAL


def holes_since_base(catalog: RecoveryCatalog) -> tuple[Hole, ...]:
    """The holes on the newest timeline that the newest verified base backup does not make history."""
    base = _anchor(catalog)
    if base is None:
        return ()
    first, size = base.start.bytes // catalog.segment_bytes, catalog.segment_bytes
    later = (hole for hole in catalog.holes if hole.before.number > first)
    return tuple(hole for hole in later if catalog.newest.segment(hole.before.number, size) == hole.before)


def _anchor(catalog: RecoveryCatalog) -> Base | None:
    """The base backup from which on a hole matters: the newest verified one, else the newest that is not bad."""
    bases = [base for base in catalog.good_bases if catalog.newest.has(base.timeline, base.end)]
    verified = [base for base in bases if base.verified]
    found = verified or bases
    return found[-1] if found else None


def chain_troubles(facts: PitrFacts) -> Iterator[PitrTrouble]:
    """Whether the WAL continues from the newest base backup to the newest instant."""
    catalog = facts.catalog
    if catalog is None or not catalog.good_bases:
        return
    base = _anchor(catalog)
    if base is None:
        replaced = ServerReplacedError(
            f"no base backup is of the server's present timeline, {catalog.newest.number}",
            why=f"the server went on from an earlier state than that of base backup {catalog.good_bases[-1].name}",
            fix=f"{_BASE}, from which on any instant can be recovered again",
        )
        yield PitrTrouble(PitrPart.CHAIN, replaced, urgent=True)
        return
    holes = holes_since_base(catalog)
    if not holes:
        return
    window, newer = catalog.window(base, catalog.newest), catalog.good_bases[-1]
    why = f"{_shown(catalog, holes)}; no instant after it can be recovered until there is a newer base backup"
    if window is not None and window.usable:
        why += f". The last one before it is {shown_time(window.to_time)}"
    fix = _BASE
    if newer is not base and newer.start.bytes // catalog.segment_bytes >= holes[-1].before.number:
        fix = f"verify base backup {newer.name}, which is newer: launch base_backup_verification; or {_BASE}"
    gap = WalGapError(f"WAL is missing since base backup {base.name}", why=why, fix=fix)
    yield PitrTrouble(PitrPart.CHAIN, gap, urgent=True)


def _shown(catalog: RecoveryCatalog, holes: Sequence[Hole]) -> str:
    first = holes[0]
    before = first.before.name(catalog.segment_bytes)
    if first.after is None:
        text = f"the segments before {before}, which the base backup needs, are not there"
    else:
        text = f"the segments between {first.after.name(catalog.segment_bytes)} and {before} are not there"
    return text + (f", and there are {len(holes) - 1} more holes" if holes[1:] else "")


# ---- base backups


def base_troubles(facts: PitrFacts, limits: PitrLimits, newest: Base | None, now: datetime) -> Iterator[PitrTrouble]:
    """At most one trouble: each of these is cured by the next good base backup, or waits for it."""
    catalog = facts.catalog
    if newest is None or catalog is None:
        yield PitrTrouble(PitrPart.BASES, _no_base(facts), urgent=True)
        return
    error = (
        _overdue(newest, limits, now)
        or _bad(catalog, newest)
        or _unverified(newest, now)
        or _unusable(facts)
        or (facts.last_drill.trouble if facts.last_drill else None)
        or _undrilled(facts, catalog, limits, now)
    )
    if error is not None:
        yield PitrTrouble(PitrPart.BASES, error)


def _no_base(facts: PitrFacts) -> BackupError:
    fix = f"{_BASE}; or launch base_backup_job"
    if facts.catalog is not None and facts.catalog.bases:
        return BaseBackupError("every base backup was found to be bad", why="no instant can be recovered", fix=fix)
    if facts.others and facts.system_identifier is not None:
        return ServerReplacedError(
            f"the server is of another cluster, {facts.system_identifier}, which has no base backup",
            why=f"it was replaced: the base backups are of {', '.join(facts.others)}, and its WAL does not fit them",
            fix=f"if it was replaced on purpose: {_BASE}; else see where POSTGRES_HOST leads",
        )
    if (error := _unusable(facts)) is not None:
        return error
    return BaseBackupOverdueError(
        "there is no base backup", why="WAL alone recovers nothing: it is replayed on a base backup", fix=fix
    )


def _overdue(newest: Base, limits: PitrLimits, now: datetime) -> BackupError | None:
    age = now - newest.started_at
    if age < -CLOCK_TOLERANCE:
        return ClockError(
            f"base backup {newest.name} is dated {duration(age)} in the future",
            why="the server's clock was wrong, or this host's is",
            fix=f"date -u on both; where it is wrong: timedatectl set-ntp true; then: {_BASE}",
        )
    if age <= limits.base_period + _GRACE:
        return None
    return BaseBackupOverdueError(
        f"the newest base backup is {duration(age)} old",
        why=f"BASE_BACKUP_SCHEDULE makes one every {duration(limits.base_period)}: it is off, or its runs fail; "
        "meanwhile no WAL can be removed",
        fix=f"see the last runs of base_backup_job; then {_BASE}",
    )


def _bad(catalog: RecoveryCatalog, newest: Base) -> BackupError | None:
    bad = max((base for base in catalog.bases if base.is_bad), key=lambda base: base.started_at, default=None)
    if bad is None or bad.started_at < newest.started_at:
        return None
    return BaseBackupError(
        f"base backup {bad.name} is bad",
        why=f"its verification found damage; the newest that was not found bad is {newest.name}",
        fix=f"dmesg | tail; then make another one: {_BASE}",
    )


def _unverified(newest: Base, now: datetime) -> BackupError | None:
    if newest.verified or now - newest.finished_at <= _GRACE:
        return None
    return BaseBackupOverdueError(
        f"base backup {newest.name} is not verified",
        why="its verification did not end, or was left out; nothing is removed behind it",
        fix=f"launch base_backup_verification; or make another one: {_BASE}",
    )


def _unusable(facts: PitrFacts) -> BackupError | None:
    if not facts.unusable:
        return None
    name, why = facts.unusable[0]
    more = f" and {len(facts.unusable) - 1} more" if facts.unusable[1:] else ""
    fix = f"ls -la $BACKUP_DIR/pitr/*/base/{name}; then {_BASE}"
    return BaseBackupError(f"base backup {name}{more} cannot be used", why=why, fix=fix)


def _undrilled(
    facts: PitrFacts, catalog: RecoveryCatalog, limits: PitrLimits, now: datetime
) -> BaseBackupOverdueError | None:
    drilled = max((base.drilled_at for base in catalog.bases if base.drilled_at is not None), default=None)
    since = drilled or facts.began_at
    if since is None or now - since <= limits.drill_age:
        return None
    what = "no base backup was ever recovered in a drill"
    if drilled is not None:
        what = f"the last drill of a base backup that passed was {duration(now - drilled)} ago"
    most = f"DRILL_MAX_AGE_DAYS allows {duration(limits.drill_age)}"
    return BaseBackupOverdueError(
        what, why=f"{most}; without a drill it is not proven that base backup and WAL recover", fix=_DRILL
    )

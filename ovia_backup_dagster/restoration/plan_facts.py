"""Facts that a plan shows besides its steps: the backup, the data loss, the terminated sessions, the expected duration.

They are for people. Obstacles belong to ``preflight``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import duration, human_bytes, some
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.activity import Counters, Written, newest_timestamps, written_since
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.subscriptions import subscriptions_of
from ovia_backup_dagster.restoration.swap import ClientSession, DatabaseState

_SHOWN = 5


def facts_of_restore(
    driller: Driller, server: Connection, order: Order, backup: Backup, live: DatabaseState, now: datetime
) -> tuple[dict[str, str], list[str]]:
    """The facts (title -> text) and warnings of a plan.

    Args:
        driller: has the earlier drills, from which the duration is estimated.
        server: a connection to a database other than the live one.
        order: the planned restore.
        backup: the backup to restore.
        live: the current state of the live database.
        now: the present (UTC).

    Raises:
        ServerError: no connection, or it broke.
    """
    made, since = _age(backup, now)
    facts = {
        "restore": f"{backup} {made} ({_state(backup, now)}, {human_bytes(backup.size_bytes)})",
        "onto": f"database {order.database} at {order.place}"
        + (f" ({size(live.size_bytes)})" if live.exists else ", which is made"),
    }
    if order.becomes != order.database:
        besides = "and roles that the server lacks; nothing" if order.create_roles else "nothing"
        facts["onto"] = f"a new database {order.becomes} at {order.place}; {besides} else is touched"
    if order.tables:
        facts["tables"] = (
            f"{', '.join(order.tables)}: into the new schema {order.tables_schema} of {order.database}; no table there "
            f"is changed, and {order.incoming} is dropped again"
        )
    if backup.manifest and (recovered := backup.manifest.recovered_to):
        at = f"{recovered.committed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
        facts["recovered"] = f"to the commit at {at} ({recovered.lsn}), for: {recovered.wanted}"
    warnings = []
    if order.mode in (Mode.SWAP, Mode.DROP):
        newest = _newest(server, order.database)
        facts["lost"] = f"what was written since the backup, {since}" + (f"; newest: {newest}" if newest else "")
        facts["sessions"] = sessions(live.sessions)
    elif order.becomes == order.database:
        facts["lost"] = f"what was written since the backup, {since}"
    facts["time"] = _expected(driller, backup)
    if order.mode is Mode.SWAP:
        facts["undo"] = f"the old database stays as {order.kept}: ovia-backup undo-restore"
    if order.mode is Mode.DROP:
        facts["undo"] = "NONE: the old database is dropped before the backup is restored"
        warnings.append(f"database {order.database} is destroyed; mode swap would keep it")
    if not backup.state(now).is_verified:
        warnings.append("this backup is not verified yet: it is verified first, which takes as long as reading it")
    if not backup.manifest:
        without = backup.manifest_trouble or "it has no manifest"
        warnings.append(f"{without}: neither its server nor its roles are known")
    elif order.new_host and order.system_identifier in {backup.manifest.database.system_identifier} - {None}:
        warnings.append(f"{order.place} is not a new host: it is the server that was backed up")
    warnings += _last_drill(driller)
    found = subscriptions_of(server, order.database) if live.exists else []
    if found and order.mode is not Mode.NEW:
        after = "they are dropped with the database, and their slots are left on the publishers"
        if order.mode is Mode.SWAP:
            after = f"{order.kept} keeps them, disabled; until it is dropped, their slots keep WAL on the publishers"
        warnings.append(f"subscriptions are not restored ({', '.join(each.name for each in found)}): {after}")
    return facts, warnings


def since_swap(server: Connection, database: str, record: Record | None, live: DatabaseState) -> str:
    """The rows written since a swap, by the counters of the database that the swap made live."""
    if record is not None and record.counters and record.live_oid == live.oid:
        changes = written_since(server, database, Counters.model_validate(record.counters))
        if changes == []:
            return "nothing was written since the swap"
        if changes is not None:
            return "written since the swap: " + some([_change(change) for change in changes])
    newest = _newest(server, database)
    return f"what was written since the swap is not known; newest: {newest or 'nothing with a time'}"


def sessions(found: Sequence[ClientSession]) -> str:
    """The sessions that the restore will terminate."""
    if not found:
        return "none to be cut"
    counted = Counter(map(str, found)).most_common()
    return f"{len(found)} will be cut: " + some([f"{number} x {name}" for name, number in counted])


def size(count: int | None) -> str:
    """A size in bytes, for people; says so if it is unknown."""
    return "of unknown size" if count is None else human_bytes(count)


def _age(backup: Backup, now: datetime) -> tuple[str, str]:
    """When the backup was made, and how long ago."""
    age = duration(now - backup.started_at)
    if backup.manifest is None and BackupName.parse(backup.path.name) is None:
        at = f"of an unknown time; the file is of {backup.started_at:%Y-%m-%d %H:%M:%S} UTC"
        return at, "whenever that was made"
    return f"of {backup.started_at:%Y-%m-%d %H:%M:%S} UTC, {age} old", f"{age} ago"


def _state(backup: Backup, now: datetime) -> str:
    known = backup.state(now)
    # A restore waits only for files on the volume; any other file that changes counts as unverified.
    state = (State.UNVERIFIED if known is State.BEING_WRITTEN else known).value
    state += ", restored by a drill" if backup.drilled else ""
    return f"{state}, {backup.witness.rows:,} rows" if backup.witness else state


def _newest(server: Connection, database: str) -> str:
    try:
        found = newest_timestamps(server, database)
    except BackupError:
        return ""  # information only, no reason to refuse
    return ", ".join(f"{column} {at:%Y-%m-%d %H:%M:%S}" for column, at in found)


def _expected(driller: Driller, backup: Backup) -> str:
    """The expected duration, from the newest comparable drill or restore."""
    for evidence in driller.drills.newest_first():
        if evidence.passed and evidence.recovery_seconds and evidence.backup_bytes:
            return _about(_took(evidence) * backup.size_bytes / evidence.backup_bytes, "drill", evidence.started_at)
    becomes = backup.manifest.database.size_bytes if backup.manifest else None
    with contextlib.suppress(BackupError):  # unreadable records are reported elsewhere
        for record in _restores(driller):
            seconds, made = record.seconds.get(Step.RESTORE), record.proven
            if record.outcome == "done" and seconds and made and made.database_bytes:
                factor = becomes / made.database_bytes if becomes else 1.0
                return _about(seconds * factor, "restore", record.order.started_at)
    return "unknown: no drill has passed yet"


def _last_drill(driller: Driller) -> list[str]:
    """A warning if the newest drill failed: this restore may fail for the same reason."""
    with contextlib.suppress(BackupError):  # unreadable evidence is reported elsewhere
        last = next(driller.drills.newest_first(), None)
        if last is not None and (trouble := last.trouble):
            return [f"the last drill, {last.started_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC, failed: {trouble}"]
    return []


def _restores(driller: Driller) -> Iterator[Record]:
    return RestoreFolder(driller.catalog).newest_first()


def _took(evidence: Evidence) -> float:
    """The drill's duration in seconds, including the checks."""
    proving = sum(evidence.phases.get(name, 0.0) for name in ("reading the copy", "comparison"))
    return (evidence.recovery_seconds or 0.0) + proving


def _about(seconds: float, what: str, at: datetime) -> str:
    return f"about {duration(timedelta(seconds=seconds))}, as the {what} of {at.astimezone(UTC):%Y-%m-%d} suggests"


def _change(change: Written) -> str:
    counts = {"inserted": change.inserted, "updated": change.updated, "deleted": change.deleted}
    return f"{change.table} " + ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)

"""Checks what point-in-time recovery needs, before it works: role, pg_hba.conf, server settings, programs, room.

It writes nothing, on the server neither: the receiver makes its slot itself. How the WAL and the base backups on the
volume stand is judged by ``pitr.standing``, as for ``status`` and alerts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ovia_backup_dagster.core.errors import BackupError, VolumeError
from ovia_backup_dagster.core.human_text import duration, human_bytes
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, fail, failed, from_answer, ok, warn
from ovia_backup_dagster.doctor.server_area import psql_command
from ovia_backup_dagster.health.condition import about_pitr
from ovia_backup_dagster.pitr.replication_refusals import require_replication
from ovia_backup_dagster.pitr.room_forecast import needed_room
from ovia_backup_dagster.pitr.standing import PitrStanding
from ovia_backup_dagster.pitr.wal_receiver import RECEIVER_APPLICATION
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.system import BackupSystem

_PROGRAMS = ("pg_receivewal", "pg_basebackup", "pg_waldump")
_ANSWER_SECONDS = 10.0
#: The receiver, and a base backup beside it.
_SENDERS = 2
#: Without a base backup or WAL to measure: what their files need of the bytes on the server. They rarely need more.
_RATIO = 0.5
_DAY = timedelta(days=1)
#: The server's own count of WAL says little before this.
_LEAST_SPAN = timedelta(hours=1)
_ROLE = """
    SELECT rolcanlogin AS login, rolreplication OR rolsuper AS replication, rolsuper AS superuser,
           has_function_privilege(oid, 'pg_catalog.pg_control_system()', 'EXECUTE') AS identifies
    FROM pg_roles WHERE rolname = %s
"""
_SERVER = """
    SELECT current_setting('server_version_num')::int / 10000 AS major, current_setting('server_version') AS version,
           pg_is_in_recovery() AS standby, current_setting('wal_level') AS wal_level,
           current_setting('max_wal_senders')::int AS senders, (SELECT count(*) FROM pg_stat_replication) AS sending,
           current_setting('max_replication_slots')::int AS slots, (SELECT count(*) FROM pg_replication_slots) AS used,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_megabytes,
           current_setting('synchronous_standby_names') AS synchronous, pg_get_userbyid(10) AS superuser,
           (SELECT sum(CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END)
            FROM pg_database)::bigint AS database_bytes
"""
_SLOT = "SELECT slot_type, active, wal_status FROM pg_replication_slots WHERE slot_name = %s"
_WAL = "SELECT wal_bytes::bigint AS bytes, now() - stats_reset AS span FROM pg_stat_wal"


@dataclass(frozen=True, slots=True)
class _Server:
    """What the server says.

    Attributes:
        role: the attributes of the role that receives WAL; ``None`` if there is no such role.
        facts: its settings and counts.
        slot: the replication slot; ``None`` if there is none of this name.
        wal_bytes_per_day: how much WAL it writes, uncompressed; ``None`` if unknown.
        psql: the command into which SQL is pasted.
    """

    role: dict[str, Any] | None
    facts: dict[str, Any]
    slot: dict[str, Any] | None
    wal_bytes_per_day: float | None
    psql: str


def recovery(system: BackupSystem) -> Iterator[Observation]:
    """Everything that point-in-time recovery depends on."""
    if not system.pitr.enabled:
        yield ok(
            Area.PITR,
            "point-in-time recovery is off; to switch it on: deploy/wal-role.sql, then PITR_ENABLED=true ovia-backup "
            "doctor, then the receiver",
        )
        return
    try:
        server: _Server | None = _ask(system)
    except BackupError:
        server = None  # reported under server
    if server is not None:
        yield from _role(system, server)
        yield from _server(server)
        yield from _slot(system, server)
        yield from _synchronous(server)
    yield from _programs(system, server)
    yield from _volume(system, server)


def _ask(system: BackupSystem) -> _Server:
    with connect(system.connection, answer_seconds=_ANSWER_SECONDS) as session:
        role = session.execute(_ROLE, [system.settings.wal_postgres_user]).fetchone()
        facts = session.execute(_SERVER).fetchone()
        assert facts is not None  # it has no FROM
        slot = session.execute(_SLOT, [system.settings.wal_slot]).fetchone()
        wal = session.execute(_WAL).fetchone() if facts["major"] >= 14 else None
    per_day = None
    if wal is not None and wal["span"] is not None and wal["span"] >= _LEAST_SPAN:
        per_day = int(wal["bytes"]) / (wal["span"] / _DAY)
    return _Server(role, facts, slot, per_day, psql_command(system, facts["superuser"]))


def _role(system: BackupSystem, server: _Server) -> Iterator[Observation]:
    """The role, its rights, and whether it is let in: into a database, and to replicate, which are different things."""
    user, role = system.settings.wal_postgres_user, server.role
    if role is None:
        fix = "run deploy/wal-role.sql there, or set WAL_POSTGRES_USER"
        yield fail(Area.PITR, f"the server has no role {user}, which is to receive WAL", fix)
        return
    name = sql_identifier(user)
    lacking = [attribute for attribute in ("login", "replication") if not role[attribute]]
    for attribute in lacking:
        text = f"role {user} does not have {attribute.upper()}"
        yield fail(Area.PITR, text, server.psql, f"ALTER ROLE {name} {attribute.upper()};")
    if not role["identifies"]:
        text = f"role {user} may not call pg_control_system(), which distinguishes one cluster from another"
        grant = f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_control_system() TO {name};"
        yield fail(Area.PITR, text, server.psql, grant)
    if role["superuser"]:
        text = f"role {user} is a superuser, which receiving WAL does not need"
        yield warn(Area.PITR, text, "create a role of its own by deploy/wal-role.sql, and set WAL_POSTGRES_USER")
    if lacking:
        return
    try:
        with connect(system.pitr.connection, answer_seconds=_ANSWER_SECONDS):
            pass
        require_replication(system.pitr.connection, _ANSWER_SECONDS)
    except BackupError as error:
        yield failed(Area.PITR, error)
    else:
        yield ok(Area.PITR, f"role {user} may log in, and replicate from here")


def _server(server: _Server) -> Iterator[Observation]:
    facts = server.facts
    if facts["standby"]:
        text = "WAL cannot be received from here: this is a standby, or recovering"
        yield fail(Area.PITR, text, "set POSTGRES_HOST to the primary")
    if facts["wal_level"] == "minimal":
        text = "wal_level is minimal, which leaves out of the WAL what a recovery needs"
        sql = ("ALTER SYSTEM SET wal_level = 'replica';", "ALTER SYSTEM SET max_wal_senders = 10;")
        yield fail(Area.PITR, text, f"{server.psql}; then restart the server, and: ovia-backup base-backup", *sql)
    else:
        yield ok(Area.PITR, f"wal_level is {facts['wal_level']}")
    yield from _senders(server)
    if facts["keep_megabytes"] == -1:
        yield warn(
            Area.PITR,
            "max_slot_wal_keep_size has no limit: while the receiver is down, its WAL fills the disk of the database",
            server.psql,
            "ALTER SYSTEM SET max_slot_wal_keep_size = '4GB';",
            "SELECT pg_reload_conf();",
        )
    elif facts["keep_megabytes"] is not None:
        size = human_bytes(facts["keep_megabytes"] * 1024 * 1024)
        yield ok(Area.PITR, f"the server keeps at most {size} of WAL for a receiver that is down")


def _senders(server: _Server) -> Iterator[Observation]:
    facts, receiving = server.facts, bool(server.slot and server.slot["active"])
    free, needed = facts["senders"] - facts["sending"], _SENDERS - receiving
    if free < needed:
        text = (
            f"max_wal_senders is {facts['senders']}, and {facts['sending']} are in use: the receiver and a base backup "
            f"need {needed} more"
        )
        raised = max(facts["senders"], 0) + needed + 8
        level = fail if free < 1 else warn
        yield level(
            Area.PITR,
            text,
            f"see what uses them, in pg_stat_replication; or {server.psql}; then restart it",
            f"ALTER SYSTEM SET max_wal_senders = {raised};",
        )
    else:
        yield ok(Area.PITR, f"{free} of {facts['senders']} WAL senders are free")


def _slot(system: BackupSystem, server: _Server) -> Iterator[Observation]:
    facts, slot, name = server.facts, server.slot, system.settings.wal_slot
    if slot is None and facts["used"] >= facts["slots"]:
        yield fail(
            Area.PITR,
            f"slot {name} cannot be created: max_replication_slots is {facts['slots']}, and all are in use",
            f"drop those that are not used, see pg_replication_slots; or {server.psql}; then restart it",
            f"ALTER SYSTEM SET max_replication_slots = {facts['slots'] + 10};",
        )
    elif slot is None:
        text = f"the receiver will create slot {name}: {facts['used']} of {facts['slots']} slots are in use"
        yield ok(Area.PITR, text)
    elif slot["slot_type"] != "physical":
        text = f"slot {name} is a logical slot, which another program created"
        yield fail(Area.PITR, text, "set WAL_SLOT to another name")
    elif slot["wal_status"] == "lost":
        text = f"slot {name} has lost its WAL: the server removed what was not received"
        fix = "the receiver creates it again when it starts; then: ovia-backup base-backup"
        yield fail(Area.PITR, text, fix)
    elif slot["wal_status"] == "unreserved":
        text = f"slot {name} will lose its WAL at the server's next checkpoint"
        yield fail(
            Area.PITR, text, "ovia-backup wal status; see that the receiver runs, and raise max_slot_wal_keep_size"
        )
    else:
        used = "in use" if slot["active"] else "not in use, so the server keeps WAL for it"
        yield ok(Area.PITR, f"slot {name} is {slot['wal_status'] or 'new'}, and {used}")


def _synchronous(server: _Server) -> Iterator[Observation]:
    """Whether a commit waits for the receiver is a choice, and no fault; but its price is to be known."""
    names = server.facts["synchronous"]
    if re.search(rf"\*|\b{RECEIVER_APPLICATION}\b", names):
        text = (
            f"commits wait for the receiver (synchronous_standby_names = {names}): none is lost with the server; it "
            "costs about a sixth of the throughput, and while the receiver is down, commits hang"
        )
    else:
        text = (
            "commits do not wait for the receiver: those of the last moments are lost with the server. To lose none, "
            "for about a sixth of the throughput, and with commits that hang while the receiver is down: "
            f"synchronous_standby_names = '{RECEIVER_APPLICATION}'"
        )
    yield ok(Area.PITR, text)


def _programs(system: BackupSystem, server: _Server | None) -> Iterator[Observation]:
    versions: dict[str, str] = {}
    majors = set()
    for program in _PROGRAMS:
        try:
            versions[program] = system.programs.version(program)
            majors.add(system.programs.major(program))
        except BackupError as error:
            yield failed(Area.PITR, error)
    if len(versions) < len(_PROGRAMS):
        return
    each = ", ".join(f"{name} {version}" for name, version in versions.items())
    if server is not None and majors != {server.facts["major"]}:
        text = f"the server is PostgreSQL {server.facts['version']}, and only its own programs read its WAL: {each}"
        fix = f"install the programs of PostgreSQL {server.facts['major']}, and set PG_BIN_DIR to their folder"
        yield fail(Area.PITR, text, fix)
    else:
        yield ok(Area.PITR, each)


def _volume(system: BackupSystem, server: _Server | None) -> Iterator[Observation]:
    now = datetime.now(UTC)
    try:
        standing = system.pitr.standing(now)
        free = shutil.disk_usage(system.settings.backup_dir).free
    except (VolumeError, OSError):
        return  # reported under volume
    if server is not None:
        yield _room(system, standing, server, free)
    observed = from_answer(Area.PITR, about_pitr(standing))
    # The doctor also runs before the receiver does, and before the first base backup.
    if standing.facts.status is None or standing.newest is None:
        observed = replace(observed, level=min(observed.level, Severity.WARN, key=list(Severity).index))
    yield observed


def _room(system: BackupSystem, standing: PitrStanding, server: _Server, free: int) -> Observation:
    """Whether the volume can hold the window: estimated from the server, until base backups and WAL can be measured."""
    base = standing.newest.size_bytes if standing.newest else server.facts["database_bytes"] * _RATIO
    per_day = standing.facts.wal_bytes_per_day or (server.wal_bytes_per_day or 0) * _RATIO
    window = system.pitr.window
    needed = needed_room(base, per_day, window, system.pitr.base_period)
    known = f"{human_bytes(per_day)} of WAL a day" if per_day else "an unknown amount of WAL"
    text = (
        f"{human_bytes(free)} free; a window of {duration(window)} needs up to {human_bytes(needed)} "
        f"({human_bytes(base)} a base backup, {known})"
    )
    fix = "enlarge the volume, or lower RECOVERY_WINDOW_DAYS, or make base backups more often: BASE_BACKUP_SCHEDULE"
    if free < base and standing.newest is None:
        return fail(Area.PITR, f"no room for a base backup: {text}", fix)
    if free < needed - standing.facts.stored_bytes:
        return warn(Area.PITR, f"the volume will become full within the recovery window: {text}", fix)
    return ok(Area.PITR, text)

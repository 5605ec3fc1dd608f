"""Asks the server whose WAL is received: which cluster it is, how its slot stands; and writes beacons into its WAL.

Changes nothing else on the server but its own replication slot. ``wal_receiver`` decides what follows from the answers.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from ovia_backup_dagster.core.errors import PrivilegeError
from ovia_backup_dagster.core.pitr_errors import ServerReplacedError, SlotLostError, WalError
from ovia_backup_dagster.pitr.archive import ClusterArchive
from ovia_backup_dagster.pitr.relation_names import record_relation_names
from ovia_backup_dagster.pitr.wal_position import Lsn
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster.postgres.session import connect, system_identifier

#: The prefix of our logical messages.
BEACON_PREFIX = "ovia-backup"
#: A server that does not answer a short question for so long is a finding; the receiver itself goes on.
_ANSWER_SECONDS = 20.0
_IDENTITY = """
    SELECT pg_is_in_recovery() AS recovering,
           current_setting('wal_level') AS wal_level,
           current_setting('server_version_num')::int / 10000 AS major,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_bytes
"""
_POSITION = "SELECT pg_walfile_name(pg_current_wal_lsn()) AS file, pg_current_wal_flush_lsn()::text AS flushed"
_SLOT = """
    SELECT slot_type, active_pid, restart_lsn::text AS restart_lsn, wal_status, safe_wal_size,
           (SELECT setting::bigint * 1024 * 1024 FROM pg_settings
            WHERE name = 'max_slot_wal_keep_size' AND setting <> '-1') AS limit_bytes
    FROM pg_replication_slots WHERE slot_name = %s
"""
#: With synchronous_standby_names, a beacon must not wait for the receiver that it is to judge.
_LOCALLY = "SET synchronous_commit = local"


@dataclass(frozen=True, slots=True)
class SourceIdentity:
    """Which cluster answers.

    Attributes:
        system_identifier: the cluster's.
        timeline: its present timeline.
        major: PostgreSQL's major version.
        segment_bytes: the size of its WAL segments.
        flushed: up to where its WAL is on its disk.
    """

    system_identifier: str
    timeline: int
    major: int
    segment_bytes: int
    flushed: Lsn


@dataclass(frozen=True, slots=True)
class SlotState:
    """How the replication slot stands, as ``pg_replication_slots`` has it.

    Attributes:
        active: whether a receiver is connected to it.
        restart_lsn: from where on the server keeps WAL for it; ``None`` if it keeps none.
        wal_status: ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        safe_bytes: how much more WAL can be written before the slot loses its own; ``None`` without a limit.
        limit_bytes: how much WAL the server keeps for a slot, ``max_slot_wal_keep_size``; ``None`` without a limit.
    """

    active: bool
    restart_lsn: Lsn | None
    wal_status: str
    safe_bytes: int | None
    limit_bytes: int | None = None

    @property
    def lost(self) -> bool:
        """Whether the server has removed WAL that the slot was to keep."""
        return self.wal_status == "lost"


@dataclass(frozen=True, slots=True)
class Beacon:
    """A message that was committed into the WAL.

    Attributes:
        nonce: its content, by which it is recognized.
        xid: the transaction that committed it.
        start: a position before it.
    """

    nonce: str
    xid: int
    start: Lsn


@dataclass(frozen=True, slots=True)
class WalSource:
    """The server, and the role that receives its WAL.

    Attributes:
        connection: to the database that is backed up, as the role with REPLICATION.
        slot: the name of the replication slot.
    """

    connection: Connection
    slot: str

    def identify(self) -> SourceIdentity:
        """Which cluster answers.

        Raises:
            WalError: it is a standby, or has wal_level = minimal.
            ServerError: the connection failed or broke.
        """
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            identifier = system_identifier(session)
            if identifier is None:
                raise PrivilegeError(
                    f"role {self.connection.user} may not read the cluster's identifier",
                    why="EXECUTE on pg_control_system() was taken from PUBLIC",
                    fix="run deploy/wal-role.sql again, as a superuser",
                )
            facts = _one(session, _IDENTITY)
            what = f"WAL cannot be received from {self.connection.host}:{self.connection.port}"
            if facts["recovering"]:
                raise WalError(what, why="it is a standby, or recovering", fix="set POSTGRES_HOST to the primary")
            if facts["wal_level"] == "minimal":
                raise WalError(
                    what,
                    why="its wal_level is minimal, which leaves out what a recovery needs",
                    fix="ALTER SYSTEM SET wal_level = replica, restart the server, then: ovia-backup base-backup",
                )
            position = _one(session, _POSITION)
        return SourceIdentity(
            system_identifier=identifier,
            timeline=int(position["file"][:8], 16),
            major=facts["major"],
            segment_bytes=facts["segment_bytes"],
            flushed=Lsn.parse(position["flushed"]),
        )

    def slot_state(self) -> SlotState | None:
        """How the slot stands; ``None`` if the server does not have it.

        Raises:
            WalError: a logical slot has this name.
            ServerError: the connection failed or broke.
        """
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            row = session.execute(_SLOT, [self.slot]).fetchone()
        if row is None:
            return None
        if row["slot_type"] != "physical":
            raise WalError(
                f"slot {self.slot} is a logical slot",
                why="another program created it",
                fix="set WAL_SLOT to another name",
            )
        restart = row["restart_lsn"]
        return SlotState(
            active=row["active_pid"] is not None,
            restart_lsn=Lsn.parse(restart) if restart else None,
            wal_status=row["wal_status"] or ("reserved" if restart else "lost"),
            safe_bytes=row["safe_wal_size"],
            limit_bytes=row["limit_bytes"],
        )

    def create_slot(self) -> None:
        """Make the slot; from now on the server keeps WAL for it.

        Raises:
            ServerError: the role has no REPLICATION, all slots are taken, or the connection broke.
        """
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            try:
                session.execute("SELECT pg_create_physical_replication_slot(%s, true)", [self.slot])
            except psycopg.errors.InsufficientPrivilege:
                role = sql_identifier(self.connection.user)
                raise PrivilegeError(
                    f"role {self.connection.user} may not receive WAL",
                    why="it does not have REPLICATION",
                    fix=f"run deploy/wal-role.sql as a superuser, or: ALTER ROLE {role} REPLICATION",
                ) from None
            except psycopg.errors.ConfigurationLimitExceeded as error:
                raise WalError(
                    f"slot {self.slot} cannot be created",
                    why="the server has as many replication slots as max_replication_slots allows",
                    fix="SELECT slot_name, active FROM pg_replication_slots; drop what is not used, or raise it",
                    said=str(error).partition("\n")[0],
                ) from None

    def drop_slot(self) -> None:
        """Remove the slot, for which the server then keeps no WAL any more.

        Raises:
            SlotLostError: a receiver is connected to it.
            ServerError: the connection failed or broke.
        """
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            try:
                session.execute("SELECT pg_drop_replication_slot(%s)", [self.slot])
            except psycopg.errors.ObjectInUse as error:
                what = f"slot {self.slot} lost its WAL, and cannot be created again"
                raise SlotLostError(
                    what,
                    why="another receiver is connected to it",
                    said=str(error).partition("\n")[0],
                    fix="end the other receiver, or set WAL_SLOT to another name",
                ) from None

    def record_names(self, archive: ClusterArchive) -> None:
        """Record what the tables are called now, for the time when one is gone: WAL has only numbers.

        Raises:
            ServerReplacedError: another cluster answers.
            ServerError, VolumeError: the server or the volume refused.
        """
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            record_relation_names(session, archive, datetime.now(UTC))

    def send_beacon(self, expected: str) -> Beacon:
        """Commit a message into the WAL; any role may.

        Args:
            expected: the cluster's system identifier.

        Raises:
            ServerReplacedError: another cluster answers now.
            ServerError: the connection failed or broke.
        """
        nonce = secrets.token_hex(8)
        with connect(self.connection, answer_seconds=_ANSWER_SECONDS) as session:
            found = system_identifier(session)
            if found != expected:
                raise server_replaced(self.connection, expected, found or "unknown")
            session.execute(_LOCALLY)
            before = _one(session, "SELECT pg_current_wal_insert_lsn()::text AS lsn")["lsn"]
            sent = session.execute(
                "SELECT pg_current_xact_id()::text AS xid FROM pg_logical_emit_message(true, %s, %s)",
                [BEACON_PREFIX, nonce],
            ).fetchone()
            assert sent is not None  # a function in FROM returns a row
        # pg_waldump prints 32 bits of it.
        return Beacon(nonce, int(sent["xid"]) & 0xFFFFFFFF, Lsn.parse(before))


def server_replaced(connection: Connection, expected: str, found: str) -> ServerReplacedError:
    """The error for another cluster under the server's address."""
    host = shell_word(connection.host)
    return ServerReplacedError(
        f"another cluster answers at {connection.host}:{connection.port}",
        why=f"its system identifier is {found}, and the archive is of {expected}",
        fix=f"if it was replaced on purpose, nothing but: ovia-backup base-backup; else see where {host} leads",
    )


def _one(session: psycopg.Connection[dict[str, Any]], query: str) -> dict[str, Any]:
    row = session.execute(query.encode()).fetchone()
    assert row is not None  # a query without WHERE returns a row
    return row

"""Asks the server that WAL is received from for the facts that an archive and a base backup record.

Only short questions, by the role that receives WAL, which may be a role without any other right. The replication
protocol's own questions belong to the receiver.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ovia_backup_dagster.core.errors import PrivilegeError
from ovia_backup_dagster.core.pitr_errors import ServerReplacedError
from ovia_backup_dagster.pitr.archive import ClusterFacts
from ovia_backup_dagster.pitr.base_manifest import BaseTablespace
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect, system_identifier

_FACTS = """
    SELECT current_setting('server_version') AS version,
           pg_get_userbyid(10) AS bootstrap_superuser,
           current_setting('server_version_num')::int / 10000 AS major,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment_bytes,
           clock_timestamp() AS now,
           (SELECT sum(CASE WHEN has_database_privilege(oid, 'CONNECT') THEN pg_database_size(oid) END)
            FROM pg_database)::bigint AS database_bytes
"""
#: The two that every cluster has are in the data directory.
_TABLESPACES = """
    SELECT oid::bigint AS oid, spcname AS name, pg_tablespace_location(oid) AS location
    FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid
"""


@dataclass(frozen=True, slots=True)
class SourceServer:
    """The server, at one instant.

    Attributes:
        facts: what does not change in the cluster's life.
        version: as ``SHOW server_version`` prints it.
        bootstrap_superuser: the role with OID 10.
        now: its clock (UTC).
        database_bytes: the size on its disk of all databases that the role may ask about.
        tablespaces: those besides the data directory.
    """

    facts: ClusterFacts
    version: str
    bootstrap_superuser: str
    now: datetime
    database_bytes: int
    tablespaces: tuple[BaseTablespace, ...]

    def require_cluster(self, system_identifier: str) -> None:
        """Require that the server is of the cluster that an archive is of.

        Raises:
            ServerReplacedError: it is of another one.
        """
        if self.facts.system_identifier != system_identifier:
            raise ServerReplacedError(
                f"the server is of cluster {self.facts.system_identifier}, and the archive of {system_identifier}",
                why="the server was replaced or restored, or another one answers under its address",
                fix="see which server it is: psql -c 'SELECT * FROM pg_control_system()'; a new cluster gets an "
                "archive of its own: ovia-backup base-backup",
            )


def ask_source(connection: Connection) -> SourceServer:
    """Ask the server.

    Raises:
        PrivilegeError: the role may not read the cluster's identity.
        ServerError: the connection failed or broke.
    """
    with connect(connection) as session:
        identifier = system_identifier(session)
        if identifier is None:
            function = "pg_catalog.pg_control_system()"
            raise PrivilegeError(
                f"the identity of the cluster at {connection.host}:{connection.port} is unknown",
                why=f"role {connection.user} may not call pg_control_system(), which PostgreSQL allows every role",
                fix=f"as a superuser: GRANT EXECUTE ON FUNCTION {function} TO {sql_identifier(connection.user)}",
            )
        found = session.execute(_FACTS).fetchone()
        assert found is not None
        return SourceServer(
            facts=ClusterFacts(
                system_identifier=identifier, segment_bytes=found["segment_bytes"], major=found["major"]
            ),
            version=found["version"],
            bootstrap_superuser=found["bootstrap_superuser"],
            now=found["now"].astimezone(UTC),
            database_bytes=found["database_bytes"] or 0,
            tablespaces=tuple(BaseTablespace(**row) for row in session.execute(_TABLESPACES)),
        )


def server_clock(connection: Connection) -> datetime:
    """The server's clock (UTC).

    Raises:
        ServerError: the connection failed or broke.
    """
    with connect(connection) as session:
        row = session.execute("SELECT clock_timestamp() AS now").fetchone()
        assert row is not None
        now: datetime = row["now"]
        return now.astimezone(UTC)

"""Failures of a server, a client or a file, provoked for real: what the table of diagnoses is tested against.

A function decorated with ``provokes`` causes one condition and returns the resulting errors; the decorator names the
patterns of the table that they must match. ``NOT_PROVOKED`` excuses the other patterns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres import programs as client
from ovia_backup_dagster.postgres.archive import read_archive
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.known_messages import KNOWN_MESSAGES
from ovia_backup_dagster.postgres.programs import Connection, Programs, capture, start
from ovia_backup_dagster.postgres.server_language import diagnose_program
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster_tests.conftest import (
    PASSWORD,
    PortCluster,
    admin,
    execute,
    free_port,
    make_certificate,
    quiet,
    running_cluster,
)
from ovia_backup_dagster_tests.faults.disks import MEGABYTE, tmpfs
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.support.pgbouncer import pgbouncer

#: Each role has its own authentication method, or none.
HBA = """
local all             by_name                    peer
local replication     all                        trust
local all             all                        trust
host      all rejected   127.0.0.1/32 reject
hostssl   all tls_only   127.0.0.1/32 scram-sha-256
hostssl   all by_certificate 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
host      all postgres   127.0.0.1/32 scram-sha-256
host      all password   127.0.0.1/32 scram-sha-256
"""
LONG = 30.0


@dataclass(frozen=True)
class Outcome:
    """The errors that a condition caused.

    Attributes:
        connection: of the attempts; the advice contains its names.
        errors: one or more, all with the same diagnosis.
    """

    connection: Connection
    errors: list[BackupError]


@dataclass(frozen=True)
class Case:
    """A condition, and the diagnosis that it must have.

    Attributes:
        provoke: causes the condition.
        hits: alternatives of the table's patterns; each must match an error's own message.
        error: the exact type.
        why, fix: fragments; ``fix`` with the connection's names in braces.
        transient: whether the condition may pass by itself.
    """

    provoke: Callable[[Scene], Outcome]
    hits: tuple[str, ...]
    error: type[BackupError]
    why: str
    fix: str
    transient: bool


CASES: list[Case] = []
Provoke = Callable[["Scene"], Outcome]


def provokes(
    *hits: str, error: type[BackupError], why: str, fix: str, transient: bool = False
) -> Callable[[Provoke], Provoke]:
    def register(provoke: Provoke) -> Provoke:
        CASES.append(Case(provoke, hits, error, why, fix, transient))
        return provoke

    return register


NEEDS_ROOT = {"the_servers_own_disk_is_full", "the_volume_is_full"}


FEW = {"max_connections": "14", "superuser_reserved_connections": "2", "max_locks_per_transaction": "10"}


@contextmanager
def doors(new: running_cluster) -> Iterator[PortCluster]:
    """A server with a pg_hba.conf rule for each way to refuse a connection."""
    with new as cluster:
        (cluster.data / "pg_hba.conf").write_text(HBA)
        with admin(cluster) as session:
            for role in ("rejected", "tls_only", "by_certificate", "by_name", "unlisted", "password"):
                statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                session.execute(statement.format(sql.Identifier(role), sql.Literal(PASSWORD)))
            session.execute("ALTER ROLE password PASSWORD 'password'")
            session.execute(f"ALTER SYSTEM SET ssl_ca_file = '{cluster.folder}/server.crt'".encode())
            session.execute("SELECT pg_reload_conf()")
        # The postmaster reloads the rules with a delay; until then, TCP admits more roles.
        probe = Connection("127.0.0.1", cluster.port, "postgres", "rejected", SecretStr(PASSWORD))
        until(lambda: refusal(probe) != "")
        yield cluster


def refusal(connection: Connection) -> str:
    try:
        with connect(connection):
            return ""
    except BackupError as error:
        return error.said


@dataclass
class Scene:
    """What a provoking function may use; costly parts are made on first use."""

    request: pytest.FixtureRequest
    folder: Path
    #: Prefix of the server fixtures' names; empty if the servers speak English.
    prefix: str = ""

    @property
    def in_english(self) -> bool:
        return not self.prefix

    def server(self, name: str) -> PortCluster:
        cluster: PortCluster = self.request.getfixturevalue(self.prefix + name)
        return cluster

    @cached_property
    def gate(self) -> PortCluster:
        return self.server("gate")

    @cached_property
    def full_bin(self) -> Path:
        return self.gate.bin_dir

    @property
    def volume(self) -> Path:
        return self.folder / "backups"

    def tcp(self, user: str = "postgres", password: str | None = PASSWORD, **libpq: str) -> Connection:
        secret = None if password is None else SecretStr(password)
        return Connection("127.0.0.1", self.gate.port, "postgres", user, secret, libpq)

    def new_database(self, *statements: str, cluster: PortCluster | None = None) -> Connection:
        """A new database, and a new role that may only connect to it."""
        cluster = cluster or self.gate
        name = f"d{os.getpid()}_{time.monotonic_ns()}"
        execute(cluster.connection(), f"CREATE DATABASE {name} STRATEGY file_copy", f"CREATE ROLE {name} LOGIN")
        execute(cluster.connection(name), *(statement.format(me=name) for statement in statements))
        # The server still counts a session for a moment after its end.
        with session(cluster.connection()) as watcher:
            until(lambda: not watcher.execute("SELECT FROM pg_stat_activity WHERE datname = %s", (name,)).fetchall())
        return cluster.connection(name, name)

    def superuser(self, connection: Connection) -> Connection:
        return replace(connection, user="postgres")

    def dumper(self, connection: Connection, programs: Path | None = None) -> Dumper:
        catalog = Catalog(self.volume, connection.database, lock_wait_seconds=0)
        return Dumper(catalog, connection, self.programs(programs or self.full_bin), lock_wait_timeout_seconds=1)

    def programs(self, bin_dir: Path) -> Programs:
        return Programs(bin_dir)

    def dump(self, connection: Connection, programs: Path | None = None) -> BackupError:
        """Assert that the whole dump fails and leaves nothing behind; return the error."""
        with pytest.raises(BackupError) as caught:
            self.dumper(connection, programs).dump(log=quiet)
        assert [path for path in self.volume.rglob("*") if path.is_file() and path.name != ".lock"] == []
        return caught.value

    def pg_dump(self, connection: Connection, programs: Path | None = None) -> BackupError:
        """The error of pg_dump alone: the whole dump would fail before it, in psycopg, with another message."""
        command = str((programs or self.full_bin) / "pg_dump"), "--no-password", "--file=/dev/null"
        return failed(command, connection)

    def everyway(self, connection: Connection, programs: Path | None = None) -> Outcome:
        return Outcome(connection, [self.dump(connection, programs), self.pg_dump(connection, programs)])


def failed(command: tuple[str, ...], connection: Connection) -> BackupError:
    code, _, stderr = capture(command, variables=connection.environment())
    assert code != 0
    return diagnose_program(stderr, what=f"{command[0]} failed", connection=connection, exit_code=code)


# ------------------------------------------------------------------------------------------ no connection to the server


@provokes(
    "could not translate host name",
    "failed to resolve host",
    error=errors.HostUnknownError,
    why="POSTGRES_HOST is wrong, the service is not running",
    fix="getent hosts {host};",
    transient=True,
)
def the_hosts_name_leads_nowhere(scene: Scene) -> Outcome:
    return scene.everyway(Connection("no-such-host.invalid", 5432, "ovia", "ovia", SecretStr(PASSWORD)))


@provokes(
    "'idna' codec",
    "could not translate host name",
    error=errors.HostUnknownError,
    why="POSTGRES_HOST is wrong",
    fix="getent hosts {host};",
    transient=True,
)
def the_hosts_name_cannot_be_one(scene: Scene) -> Outcome:
    return scene.everyway(Connection("two..dots", 5432, "ovia", "ovia"))


@provokes(
    "Connection refused",
    error=errors.ServerUnreachableError,
    why="PostgreSQL is not running there, or listens on another port",
    fix="pg_isready -h {host} -p {port}; see the server's log",
    transient=True,
)
def nobody_listens(scene: Scene) -> Outcome:
    return scene.everyway(Connection("127.0.0.1", free_port(), "ovia", "ovia"))


@provokes(
    "connection to server on socket .* failed: No such file",
    error=errors.ServerUnreachableError,
    why="PostgreSQL is not running there",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def the_socket_is_not_there(scene: Scene) -> Outcome:
    return scene.everyway(Connection(str(scene.folder), 5432, "ovia", "ovia"))


@provokes(
    "timeout expired",
    error=errors.ServerUnreachableError,
    why="nothing answers there: the host is down, or the network or a firewall blocks the way",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def nobody_answers(scene: Scene) -> Outcome:
    scene.request.getfixturevalue("monkeypatch").setattr(client, "CONNECT_TIMEOUT_SECONDS", 2)
    with ExitStack() as stack:
        deaf = stack.enter_context(closing(socket.socket()))
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        # One connection is taken and one is queued; the kernel drops the packets of the next.
        for _ in range(2):
            caller = stack.enter_context(closing(socket.socket()))
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        connection = Connection("127.0.0.1", deaf.getsockname()[1], "ovia", "ovia")
        return scene.everyway(connection)


@provokes(
    "Network is unreachable",
    error=errors.ServerUnreachableError,
    why="the network or a firewall blocks the way",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def there_is_no_route(scene: Scene) -> Outcome:
    # TCP cannot connect to a broadcast address.
    return scene.everyway(Connection("255.255.255.255", 5432, "ovia", "ovia"))


# ------------------------------------------------------------------------------------------ a pooler's own words

_POOLER = "a connection pooler (PgBouncer) answers there"


@provokes(
    "unsupported startup parameter",
    error=errors.PoolerError,
    why=_POOLER,
    fix="set POSTGRES_HOST and the port to those of the server itself",
)
def a_pooler_that_takes_no_options(scene: Scene) -> Outcome:
    with pgbouncer(scene.gate.port, mode="transaction", ignored="extra_float_digits") as connection:
        return Outcome(connection, [scene.dump(connection)])


@provokes(
    "query_wait_timeout",
    error=errors.PoolerError,
    why=_POOLER,
    fix="set POSTGRES_HOST and the port to those of the server itself",
)
def all_sessions_of_a_pooler_are_lent(scene: Scene) -> Outcome:
    few = "default_pool_size = 1\nquery_wait_timeout = 1"
    options = "extra_float_digits,options"
    with (
        pgbouncer(scene.gate.port, mode="session", ignored=options, more=few) as connection,
        psycopg.connect(connection.url()) as other,
    ):
        other.execute("SELECT 1")
        return Outcome(connection, [scene.dump(connection)])


# ------------------------------------------------------------------------------------------ authentication and access


@provokes(
    "no password supplied",
    error=errors.PasswordMissingError,
    why="the server asks for a password, and none is set",
    fix="set PGPASSWORD, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE",
)
def no_password(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp(password=None))


@provokes(
    "password authentication failed",
    error=errors.AuthenticationError,
    why="the password here is not the server's (changed there, or expired)",
    fix="compare POSTGRES_USER={user} and PGPASSWORD, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE with the server's",
)
def a_wrong_password(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp(password="not-" + PASSWORD))


@provokes(
    "no pg_hba\\.conf entry",
    error=errors.AccessRefusedError,
    why="the server's pg_hba.conf does not let this role connect from here",
    fix="add a line for {user}, then: SELECT pg_reload_conf()",
)
def a_role_without_a_rule(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp("unlisted"))


@provokes(
    "pg_hba\\.conf rejects",
    error=errors.AccessRefusedError,
    why="the server's pg_hba.conf does not let this role connect from here",
    fix="add a line for {user}",
)
def a_rule_that_rejects(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp("rejected"))


@provokes(
    "authentication failed for user",
    error=errors.AuthenticationError,
    why="pg_hba.conf requires a method other than a password (peer, ident, a certificate)",
    fix="see the rules on the server (pg_hba_file_rules); compare POSTGRES_USER={user}",
)
def a_rule_that_wants_the_accounts_name(scene: Scene) -> Outcome:
    return scene.everyway(scene.gate.connection(user="by_name"))


@provokes(
    'FATAL:\\s+role "(?s:.*?)" does not exist',
    error=errors.RoleMissingError,
    why="the server has no role of that name",
    fix="check POSTGRES_USER={user}; or create the role, as a superuser: CREATE ROLE {role} LOGIN",
)
def no_such_role(scene: Scene) -> Outcome:
    return scene.everyway(scene.gate.connection(user="nobody_here"))


@provokes(
    'role "(?s:.*?)" is not permitted to log in',
    error=errors.RoleMissingError,
    why="the role exists, but may not log in",
    fix="ALTER ROLE {role} LOGIN",
)
def a_role_that_may_not_log_in(scene: Scene) -> Outcome:
    return scene.everyway(scene.new_database("ALTER ROLE {me} NOLOGIN"))


@provokes(
    'FATAL:\\s+database "(?s:.*?)" does not exist',
    error=errors.DatabaseMissingError,
    why="POSTGRES_DB is wrong, or the database was dropped or renamed",
    fix="psql -h {host} -p {port} -U {user} -l; check POSTGRES_DB={database}",
)
def no_such_database(scene: Scene) -> Outcome:
    return scene.everyway(scene.gate.connection("no_such_database"))


@provokes(
    'permission denied for database "',
    error=errors.AccessRefusedError,
    why="the role may not connect to this database",
    fix="GRANT CONNECT ON DATABASE {name} TO {role}",
)
def no_right_to_connect(scene: Scene) -> Outcome:
    return scene.everyway(scene.new_database("REVOKE CONNECT ON DATABASE {me} FROM PUBLIC"))


@provokes(
    'database "(?s:.*?)" is not currently accepting connections',
    error=errors.AccessRefusedError,
    why="the database was closed to all connections, perhaps by a restore",
    fix="ALTER DATABASE {name} ALLOW_CONNECTIONS true",
)
def a_closed_database(scene: Scene) -> Outcome:
    connection = scene.new_database()
    execute(scene.gate.connection(), f"ALTER DATABASE {connection.database} ALLOW_CONNECTIONS false")
    return scene.everyway(connection)


@provokes(
    'too many connections for role "',
    error=errors.TooManyConnectionsError,
    why="this role has reached its connection limit; a hanging dump may hold the connections",
    fix="usename = {login}; ALTER ROLE {role} CONNECTION LIMIT 5",
    transient=True,
)
def the_roles_limit_is_reached(scene: Scene) -> Outcome:
    connection = scene.new_database("ALTER ROLE {me} CONNECTION LIMIT 1")
    with session(connection):
        return scene.everyway(connection)


@provokes(
    'too many connections for database "',
    error=errors.TooManyConnectionsError,
    why="this database has reached its connection limit",
    fix="datname = {literal}; end idle ones, or as its owner: ALTER DATABASE {name} CONNECTION LIMIT -1",
    transient=True,
)
def the_databases_limit_is_reached(scene: Scene) -> Outcome:
    connection = scene.new_database("ALTER DATABASE {me} CONNECTION LIMIT 1")
    with session(connection):
        return scene.everyway(connection)


@provokes(
    "remaining connection slots",
    error=errors.TooManyConnectionsError,
    why="all of the server's connections are in use",
    fix="FROM pg_stat_activity GROUP BY 1, 2, 3; then end idle ones, or raise max_connections",
    transient=True,
)
def all_but_the_reserved_connections_are_taken(scene: Scene) -> Outcome:
    connection = scene.new_database()
    with all_taken(scene.gate, connection):
        return scene.everyway(connection)


@provokes(
    "too many clients already",
    error=errors.TooManyConnectionsError,
    why="all of the server's connections are in use",
    fix="raise max_connections",
    transient=True,
)
def every_single_connection_is_taken(scene: Scene) -> Outcome:
    connection = scene.gate.connection()
    with all_taken(scene.gate, connection):
        return scene.everyway(connection)


@contextmanager
def session(connection: Connection) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Another session, which may be lost with its server."""
    other = psycopg.connect(
        host=connection.host, port=connection.port, dbname=connection.database, user=connection.user, autocommit=True
    )
    with closing(other):
        yield other


@contextmanager
def all_taken(cluster: PortCluster, connection: Connection) -> Iterator[None]:
    """Use up all connections that this role may open."""
    # An ended session's slot becomes free a little later, and the next test needs it.
    with session(cluster.connection()) as watcher:
        with ExitStack() as stack, suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(session(connection))
        with ExitStack() as stack:
            with suppress(psycopg.OperationalError):
                while True:
                    stack.enter_context(session(connection))
            yield
        query = "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
        until(lambda: watcher.execute(query).fetchone() == (True,))


# ------------------------------------------------------------------------------------------ TLS


@provokes(
    "server does not support SSL",
    error=errors.TlsRefusedError,
    why="PGSSLMODE requires TLS, and the server does not offer it",
    fix="enable TLS on the server (ssl = on, with a certificate), or set PGSSLMODE=prefer",
)
def a_server_without_tls(scene: Scene) -> Outcome:
    server: PortCluster = scene.request.getfixturevalue("server")
    tls = {"PGSSLMODE": "require"}
    return scene.everyway(Connection("127.0.0.1", server.port, "postgres", "postgres", SecretStr(PASSWORD), tls))


@provokes(
    "no pg_hba\\.conf entry .*no encryption",
    error=errors.TlsRequiredError,
    why="only over TLS, which PGSSLMODE=disable forbids",
    fix="set PGSSLMODE=require, or verify-full with PGSSLROOTCERT",
)
def a_server_that_insists_on_tls(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp("tls_only", PGSSLMODE="disable"))


@provokes(
    "root certificate file",
    error=errors.CertificateError,
    why="is missing or holds no certificate",
    fix="ls -l $PGSSLROOTCERT; put the CA's certificate there",
)
def the_authoritys_certificate_is_not_there(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp(PGSSLMODE="verify-full", PGSSLROOTCERT=str(scene.folder / "missing.crt")))


@provokes(
    "root certificate file",
    error=errors.CertificateError,
    why="is missing or holds no certificate",
    fix="ls -l $PGSSLROOTCERT",
)
def the_authoritys_certificate_is_none(scene: Scene) -> Outcome:
    (scene.folder / "empty.crt").touch()
    return scene.everyway(scene.tcp(PGSSLMODE="verify-ca", PGSSLROOTCERT=str(scene.folder / "empty.crt")))


@provokes(
    "certificate verify failed",
    error=errors.CertificateError,
    why="the server's certificate is not signed by the CA in PGSSLROOTCERT",
    fix="openssl s_client -starttls postgres -connect {host}:{port} </dev/null",
)
def a_certificate_of_another_authority(scene: Scene) -> Outcome:
    make_certificate(scene.folder / "other.key", scene.folder / "other.crt")
    return scene.everyway(scene.tcp(PGSSLMODE="verify-full", PGSSLROOTCERT=str(scene.folder / "other.crt")))


@provokes(
    "server certificate for .* does not match",
    error=errors.CertificateError,
    why="for another host name, and PGSSLMODE=verify-full requires this one",
    fix="set POSTGRES_HOST to a name in it: openssl s_client -starttls postgres -connect {host}:{port} </dev/null | "
    "openssl x509",
)
def a_certificate_for_another_host(scene: Scene) -> Outcome:
    tls = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(scene.gate.folder / "server.crt")}
    return scene.everyway(replace(scene.tcp(**tls), host="localhost"))


@provokes(
    "requires a valid client certificate",
    error=errors.CertificateError,
    why="the server requires a client certificate",
    fix="ls -lL $PGSSLCERT $PGSSLKEY; set them to a certificate that the server's ssl_ca_file trusts",
)
def no_client_certificate(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp("by_certificate"))


@provokes(
    "private key file",
    error=errors.CertificateError,
    why="the server requires a client certificate, and this client's is missing, untrusted, or does not match its key",
    fix="readable by this user alone",
)
def a_client_key_that_everybody_may_read(scene: Scene) -> Outcome:
    key, certificate = scene.folder / "client.key", scene.folder / "client.crt"
    make_certificate(key, certificate)
    key.chmod(0o644)
    tls = {"PGSSLMODE": "require", "PGSSLCERT": str(certificate), "PGSSLKEY": str(key)}
    return scene.everyway(scene.tcp("by_certificate", **tls))


@provokes(
    "alert (?:unknown ca|bad certificate|certificate \\w+)",
    error=errors.CertificateError,
    why="untrusted",
    fix="ssl_ca_file trusts",
)
def a_client_certificate_that_the_server_does_not_trust(scene: Scene) -> Outcome:
    key, certificate = scene.folder / "client.key", scene.folder / "client.crt"
    make_certificate(key, certificate)
    key.chmod(0o600)
    tls = {"PGSSLMODE": "require", "PGSSLCERT": str(certificate), "PGSSLKEY": str(key)}
    return scene.everyway(scene.tcp("by_certificate", **tls))


@provokes(
    "sslmode",
    error=errors.TlsError,
    why="client and server cannot agree on TLS",
    fix="check PGSSLMODE and PGSSLROOTCERT",
)
def a_mode_that_there_is_not(scene: Scene) -> Outcome:
    return scene.everyway(scene.tcp(PGSSLMODE="sometimes"))


@provokes(
    "SSL support is not compiled in",
    "sslmode",
    error=errors.TlsError,
    why="client and server cannot agree on TLS",
    fix="openssl s_client -starttls postgres -connect {host}:{port}",
)
def client_programs_without_tls(scene: Scene) -> Outcome:
    connection = scene.tcp(PGSSLMODE="require")
    return Outcome(connection, [scene.pg_dump(connection, embedded_server.bin_dir())])


@provokes(
    "SSL error",
    error=errors.TlsError,
    why="client and server cannot agree on TLS",
    fix="openssl s_client -starttls postgres -connect {host}:{port}",
)
def no_version_of_tls_that_both_speak(scene: Scene) -> Outcome:
    connection = scene.tcp(PGSSLMODE="require", PGSSLMAXPROTOCOLVERSION="TLSv1.1", PGSSLMINPROTOCOLVERSION="TLSv1")
    return scene.everyway(connection)


# ------------------------------------------------------------------------------------------ rights


@provokes(
    "permission denied for",
    error=errors.PrivilegeError,
    why="the role may not read all of the database",
    fix="as a superuser: GRANT pg_read_all_data TO {role}",
)
def no_right_on_a_table_a_sequence_or_a_schema(scene: Scene) -> Outcome:
    connection = scene.new_database("CREATE TABLE t ()")
    found = [scene.dump(connection)]
    execute(scene.superuser(connection), "DROP TABLE t", "CREATE SEQUENCE s")
    found.append(scene.dump(connection))
    execute(scene.superuser(connection), "DROP SEQUENCE s", "CREATE SCHEMA hidden", "CREATE TABLE hidden.t ()")
    found.append(scene.dump(connection))
    for error, thing in zip(found, ("table t", "sequence s", "schema hidden"), strict=True):
        assert not scene.in_english or error.said.endswith(f"permission denied for {thing}")
    return Outcome(connection, found)


@provokes(
    "query would be affected by row-level security",
    error=errors.RowSecurityError,
    why="the table's row security would leave rows out of the dump",
    fix="as a superuser: ALTER ROLE {role} BYPASSRLS",
)
def row_security(scene: Scene) -> Outcome:
    connection = scene.new_database(
        "CREATE TABLE t (a int)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY", "GRANT pg_read_all_data TO {me}"
    )
    return Outcome(connection, [scene.dump(connection)])


@provokes(
    "permission denied for large object (?P<object>\\d+)",
    error=errors.LargeObjectPrivilegeError,
    why="pg_read_all_data does not include them",
    fix="as its owner: GRANT SELECT ON LARGE OBJECT 4242 TO {role}",
)
def no_right_on_a_large_object(scene: Scene) -> Outcome:
    connection = scene.new_database("SELECT lo_create(4242)", "GRANT pg_read_all_data TO {me}")
    return Outcome(connection, [scene.dump(connection)])


# ------------------------------------------------------------------------------------------ time


@provokes(
    "canceling statement due to (?:lock timeout|statement timeout\\npg_dump: detail: Query was: LOCK TABLE)",
    error=errors.LockTimeoutError,
    why="another session holds a lock on a table: a migration, VACUUM FULL, or a transaction left open",
    fix="SELECT pid, usename, state, xact_start, query FROM pg_stat_activity",
    transient=True,
)
def a_lock_that_somebody_holds(scene: Scene) -> Outcome:
    connection = scene.new_database("CREATE TABLE t ()", "GRANT pg_read_all_data TO {me}")
    with session(scene.superuser(connection)) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        by_pg_dump = scene.dump(connection)
        assert not scene.in_english or "statement timeout" in by_pg_dump.said
        other.execute("COMMIT; BEGIN")
        other.execute("LOCK TABLE pg_extension IN ACCESS EXCLUSIVE MODE")
        by_psycopg = scene.dump(connection)
        assert not scene.in_english or "lock timeout" in by_psycopg.said
    return Outcome(connection, [by_pg_dump, by_psycopg])


@provokes(
    "canceling statement due to statement timeout",
    error=errors.StatementTimeoutError,
    why="a statement_timeout is set for the role, the database or the server",
    fix="SHOW statement_timeout; to disable it for this role: ALTER ROLE {role} SET statement_timeout = 0",
)
def a_statement_timeout(scene: Scene) -> Outcome:
    connection = scene.new_database("ALTER ROLE {me} SET statement_timeout = 200")
    # A query with the role's own settings.
    with pytest.raises(errors.BackupError) as refused, connect(connection, options="") as here:
        here.execute("SELECT pg_sleep(10)")
    return Outcome(connection, [refused.value])


@provokes(
    "deadlock detected",
    error=errors.TransactionConflictError,
    why="it conflicted or deadlocked with another transaction",
    fix="retry; if it happens again, see what else changes the database at that time",
    transient=True,
)
def a_deadlock(scene: Scene) -> Outcome:
    connection = scene.superuser(scene.new_database("CREATE TABLE a ()", "CREATE TABLE b ()"))

    def both_wait() -> None:
        with session(connection) as other, connect(connection) as ours, ours.transaction():
            other.execute("SET deadlock_timeout = '1h'; BEGIN; LOCK TABLE a")
            ours.execute("SET deadlock_timeout = 10")
            ours.execute("LOCK TABLE public.b")
            other.pgconn.send_query(b"LOCK TABLE b")
            with session(connection) as watcher:
                waiting(watcher)
            ours.execute("LOCK TABLE public.a")

    with pytest.raises(BackupError) as caught:
        both_wait()
    return Outcome(connection, [caught.value])


@provokes(
    "canceling statement due to user request",
    error=errors.StatementCancelledError,
    why="an administrator cancelled it (pg_cancel_backend)",
    fix="find out who cancelled it and why, then retry",
)
def cancelled_by_an_administrator(scene: Scene) -> Outcome:
    connection = scene.new_database("CREATE TABLE t ()", "GRANT pg_read_all_data TO {me}")
    return Outcome(connection, [dump_with(connection, scene.full_bin, cancel)])


def cancel(watcher: psycopg.Connection[tuple[object, ...]], pid: int) -> None:
    watcher.execute("SELECT pg_cancel_backend(%s)", (pid,))


def dump_with(
    connection: Connection, bin_dir: Path, happens: Callable[[psycopg.Connection[tuple[object, ...]], int], object]
) -> BackupError:
    """Run pg_dump; while it waits for table ``t``, call ``happens`` with its backend's process id."""
    boss = replace(connection, user="postgres")
    command = str(bin_dir / "pg_dump"), "--no-password", "--file=/dev/null"
    with session(boss) as other, session(boss) as watcher:
        other.execute("BEGIN")
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with start(command, variables=connection.environment()) as child:
            happens(watcher, waiting(watcher))
            code = child.wait()
            return diagnose_program(child.stderr, what="pg_dump failed", connection=connection, exit_code=code)


def waiting(watcher: psycopg.Connection[tuple[object, ...]]) -> int:
    """The process id of the session that waits for a lock in this database."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    until(lambda: watcher.execute(query).fetchone() is not None)
    row = watcher.execute(query).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]


@provokes(
    "out of shared memory",
    error=errors.LockTableFullError,
    why="the server's lock table is too small for the number of tables",
    fix="ALTER SYSTEM SET max_locks_per_transaction = 1024; restart the server; then retry",
)
def more_tables_than_the_lock_table_holds(scene: Scene) -> Outcome:
    """Another session nearly fills the lock table, so that a few tables have the effect of thousands."""
    connection = scene.superuser(scene.new_database(*(f"CREATE TABLE {'t' * 50}{n} ()" for n in range(60))))
    with session(connection) as other:
        for locks in (100_000, 100, 1):
            with suppress(psycopg.errors.OutOfMemory):
                other.execute("SELECT pg_advisory_lock(%s, g) FROM generate_series(1, %s) g", (locks, locks))
        other.execute("SELECT pg_advisory_unlock(100000, g) FROM generate_series(1, 30) g")
        by_pg_dump = scene.pg_dump(connection)

        def by_psycopg() -> None:
            with connect(connection) as ours:
                ours.execute("SELECT pg_advisory_lock(g) FROM generate_series(1, 1000) g")

        with pytest.raises(BackupError) as caught:
            by_psycopg()
        # An ended session keeps its locks for a moment, and the next test needs their room.
        other.execute("SELECT pg_advisory_unlock_all()")
    return Outcome(connection, [by_pg_dump, caught.value])


# ------------------------------------------------------------------------------------------ a server that stops


@provokes(
    "terminating connection",
    error=errors.ConnectionLostError,
    why="the server was stopped, restarted or killed, an administrator ended the session, or the network failed",
    fix="pg_isready -h {host} -p {port}; see the server's log",
    transient=True,
)
def ended_by_an_administrator(scene: Scene) -> Outcome:
    connection = scene.new_database("CREATE TABLE t ()", "GRANT pg_read_all_data TO {me}")

    def end(watcher: psycopg.Connection[tuple[object, ...]], pid: int) -> None:
        watcher.execute("SELECT pg_terminate_backend(%s)", (pid,))

    by_pg_dump = dump_with(connection, scene.full_bin, end)

    def by_psycopg() -> None:
        with connect(connection) as ours, session(scene.superuser(connection)) as watcher:
            end(watcher, ours.info.backend_pid)
            ours.execute("SELECT 1")

    with pytest.raises(BackupError) as caught:
        by_psycopg()
    return Outcome(connection, [by_pg_dump, caught.value])


@contextmanager
def to_be_stopped(new: running_cluster) -> Iterator[PortCluster]:
    """A server with a table; a test that stops or kills it starts it again."""
    with new as cluster:
        execute(cluster.connection(), "CREATE TABLE t ()", "CHECKPOINT")
        yield cluster


@provokes(
    "server closed the connection unexpectedly",
    "terminating connection",
    error=errors.ConnectionLostError,
    why="the server was stopped, restarted or killed",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def the_server_is_killed_stopped_or_restarted_under_the_dump(scene: Scene) -> Outcome:
    doomed = scene.server("doomed")
    connection = doomed.connection()

    def killed(*_: object) -> None:
        postmaster = doomed.pid
        os.kill(postmaster, signal.SIGKILL)
        until(lambda: not doomed.running)
        doomed.start()

    def restarted(*_: object) -> None:
        doomed.stop("fast")
        doomed.start()

    before = checkpointer(connection)
    found = [dump_with(connection, scene.full_bin, lambda _, pid: os.kill(pid, signal.SIGKILL))]
    # The postmaster may not have noticed the kill yet: only a new checkpointer proves the restart.
    until(lambda: refusal(connection) == "" and checkpointer(connection) not in (0, before))
    found.append(dump_with(connection, scene.full_bin, killed))
    found.append(dump_with(connection, scene.full_bin, restarted))
    return Outcome(connection, found)


def checkpointer(connection: Connection) -> int:
    """The checkpointer's process id; 0 if the server cannot be queried."""
    with contextlib.suppress(psycopg.OperationalError), session(connection) as asked:
        row = asked.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").fetchone()
        return int(str(row[0])) if row else 0
    return 0


@provokes(
    "the database system is (?:starting up|shutting down|in recovery|not (?:yet )?accepting connections)",
    error=errors.ServerStartingError,
    why="the server is starting, stopping or recovering from a crash",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def the_server_is_about_to_stop(scene: Scene) -> Outcome:
    doomed = scene.server("doomed")
    connection = doomed.connection()
    with session(connection):
        os.kill(doomed.pid, signal.SIGTERM)  # smart shutdown: it waits for the session, and admits no other
        until(lambda: refusal(connection) != "")
        outcome = scene.everyway(connection)
    until(lambda: not doomed.running)
    doomed.start()
    return outcome


@contextmanager
def primary_and_standby(new: running_cluster) -> Iterator[tuple[PortCluster, PortCluster]]:
    """A primary with two tables, and its standby, which is not started."""
    with new as primary, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        with open(primary.data / "pg_hba.conf", "a") as rules:
            rules.write("local replication all trust\n")
        execute(
            primary.connection(),
            "SELECT pg_reload_conf()",
            "CREATE TABLE first ()",  # pg_dump locks tables in the order of their creation
            "CREATE TABLE t ()",
        )
        standby = replace(primary, folder=Path(folder), port=free_port())
        owner = primary.data.stat()
        os.chown(standby.folder, owner.st_uid, owner.st_gid)
        source = f"--host={primary.folder}", f"--port={primary.port}", "--username=postgres"
        standby._run("pg_basebackup", *source, "--checkpoint=fast", "--no-sync", f"--pgdata={standby.data}")
        (standby.data / "standby.signal").touch()
        with open(standby.data / "postgresql.conf", "a") as settings:
            settings.write(
                f"port = {standby.port}\nunix_socket_directories = '{folder}'\nlisten_addresses = ''\nssl = off\n"
            )
            settings.write("max_standby_streaming_delay = 0\nhot_standby = off\n")
            settings.write(f"primary_conninfo = 'host={primary.folder} port={primary.port} user=postgres'\n")
        try:
            yield primary, standby
        finally:
            standby.stop("immediate")


@provokes(
    "the database system is (?:starting up|shutting down|in recovery|not (?:yet )?accepting connections)",
    error=errors.ServerStartingError,
    why="the server is starting, stopping or recovering",
    fix="pg_isready -h {host} -p {port};",
    transient=True,
)
def a_standby_that_lets_nobody_in(scene: Scene) -> Outcome:
    _, standby = scene.request.getfixturevalue(scene.prefix + "pair")
    standby.start()
    outcome = scene.everyway(standby.connection())
    standby.stop("fast")
    return outcome


@provokes(
    "(?:canceling statement|terminating connection) due to conflict with recovery",
    error=errors.RecoveryConflictError,
    why="the server is a standby, and replaying the primary's changes conflicted with what was being read here",
    fix="ALTER SYSTEM SET max_standby_streaming_delay = '1h'; SELECT pg_reload_conf()",
    transient=True,
)
def a_standby_that_replays_a_lock(scene: Scene) -> Outcome:
    primary, standby = scene.request.getfixturevalue(scene.prefix + "pair")
    with open(standby.data / "postgresql.conf", "a") as settings:
        settings.write("hot_standby = on\n")
    standby.start()
    connection = standby.connection()
    command = str(scene.full_bin / "pg_dump"), "--no-password", "--file=/dev/null"
    with session(primary.connection()) as migration, session(connection) as watcher:
        migration.execute("BEGIN")
        migration.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        execute(primary.connection(), "CHECKPOINT")  # brings the lock to the standby
        held = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 't'::regclass"
        until(lambda: watcher.execute(held).fetchone() is not None)
        with start(command, variables=connection.environment()) as child:
            waiting(watcher)
            with session(primary.connection()) as another:
                another.execute("BEGIN")
                another.execute("LOCK TABLE first IN ACCESS EXCLUSIVE MODE")
                another.execute("COMMIT; CHECKPOINT")
            code = child.wait()
            error = diagnose_program(child.stderr, what="pg_dump failed", connection=connection, exit_code=code)
    standby.stop("fast")
    return Outcome(connection, [error])


# ------------------------------------------------------------------------------------------ disks and data


@provokes(
    r"[^\W\d_]:  .*(?:No space left on device|wrote only \d+ of \d+ bytes)",
    error=errors.ServerDiskFullError,
    why="the server's own disk is full, not the backup volume",
    fix="make room on the server: df -h, where it runs",
)
def the_servers_own_disk_is_full(scene: Scene) -> Outcome:
    """pg_dump's query of all functions sorts in a temporary file, on a full filesystem."""
    folder = scene.gate.folder / "space"
    with tmpfs(folder, 2 * MEGABYTE):
        owner = scene.gate.data.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        execute(scene.gate.connection(), f"CREATE TABLESPACE small LOCATION '{folder}'")
        connection = scene.new_database(
            "ALTER ROLE {me} SET temp_tablespaces = small",
            "GRANT CREATE ON TABLESPACE small TO {me}",
            "ALTER ROLE {me} SET work_mem = '64kB'",
            "DO $$ BEGIN FOR i IN 1..3000 LOOP EXECUTE format('CREATE FUNCTION f%s() RETURNS int LANGUAGE sql AS "
            "''SELECT 1 /* %s */''', i, repeat('x', 200)); END LOOP; END $$",
        )
        fill(folder)
        try:
            return Outcome(connection, [scene.dump(connection)])
        finally:
            execute(scene.gate.connection(), f"DROP DATABASE {connection.database}", "DROP TABLESPACE small")


@provokes(
    "No space left on device",
    error=errors.DiskFullError,
    why="the backup volume is full: it is too small, or something else is filling it",
    fix="df -h $BACKUP_DIR; ovia-backup prune --dry-run",
)
def the_volume_is_full(scene: Scene) -> Outcome:
    connection = scene.gate.connection(scene.new_database(*noise(1000)).database)
    with tmpfs(scene.volume, MEGABYTE):
        return Outcome(connection, [scene.dump(connection)])


def noise(rows: int) -> tuple[str, ...]:
    """An expression for 2 kB a row that do not compress."""
    words = "(SELECT string_agg(sha512((g || '.' || n)::bytea)::text, '') FROM generate_series(1, 16) n)"
    return (f"CREATE TABLE noise AS SELECT g, {words} AS words FROM generate_series(1, {rows}) g",)


def fill(folder: Path) -> None:
    with suppress(OSError), open(folder / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@provokes(
    "invalid page in block",
    "could not read block",
    "missing chunk number",
    "unexpected chunk number",
    "compressed (?:pglz|lz4) data is corrupt",
    "invalid memory alloc request size",
    "could not access status of transaction",
    error=errors.ServerDataError,
    why="the server cannot read its own data: a disk or its memory is failing",
    fix="keep all existing backups (stop daily_backup_schedule); copy the server's data directory",
)
def the_servers_data_is_damaged(scene: Scene) -> Outcome:
    cluster = scene.server("damaged")
    harm: Mapping[str, tuple[str, Callable[[bytes], bytes]]] = {
        "a byte": ("t", lambda page: page[:5000] + bytes([page[5000] ^ 0xFF]) + page[5001:]),
        "the end": ("toast", lambda page: page[:100]),  # a table's own file, cut like this, would be an empty table
        # Line pointers and tuples as in PostgreSQL's bufpage.h and htup_details.h.
        "the last chunk": ("toast", lambda page: page[:36] + bytes(4) + page[40:]),
        "a number": ("toast", lambda page: at_tuple(page, 1, 24 + 4, struct.pack("<i", 9))),
        "a length": ("short", lambda page: page.replace(struct.pack("<I", 4000), struct.pack("<I", 0x3FFFFFFF))),
        "a text": ("short", lambda page: page.replace(struct.pack("<I", 4000), struct.pack("<I", 4001))),
        "a transaction": ("t", lambda page: at_tuple(page, 0, 0, struct.pack("<I", 3_000_000_000))),
    }
    databases: list[tuple[Connection, Path, Callable[[bytes], bytes]]] = []
    for table, change in harm.values():
        connection = scene.superuser(
            scene.new_database(
                "ALTER DATABASE {me} SET ignore_checksum_failure = on" if databases else "SELECT 1",
                "CREATE TABLE t AS SELECT 1 AS a FROM generate_series(1, 50)",
                "CREATE TABLE long (a text)",
                "ALTER TABLE long ALTER a SET STORAGE EXTERNAL",
                "INSERT INTO long VALUES (repeat('0123456789', 600))",
                "CREATE TABLE short AS SELECT repeat('a', 4000) AS a",
                "CHECKPOINT",
                cluster=cluster,
            )
        )
        name = "(SELECT reltoastrelid FROM pg_class WHERE relname = 'long')" if table == "toast" else f"'{table}'"
        with session(connection) as other:
            row = other.execute(f"SELECT pg_relation_filepath({name})".encode()).fetchone()
        assert row is not None
        databases.append((connection, cluster.data / str(row[0]), change))
    cluster.stop()
    for _, path, change in databases:
        content = path.read_bytes()
        altered = change(content)
        assert altered != content
        path.write_bytes(altered)
    cluster.start()
    found = [scene.dump(connection) for connection, _, _ in databases]
    return Outcome(databases[0][0], found)


def at_tuple(page: bytes, number: int, offset: int, value: bytes) -> bytes:
    """A page with a value written into one of its tuples."""
    pointer = struct.unpack_from("<I", page, 24 + 4 * number)[0]
    at = (pointer & 0x7FFF) + offset
    return page[:at] + value + page[at + len(value) :]


# ------------------------------------------------------------------------------------------ programs and archives


@provokes(
    "server version mismatch",
    error=errors.VersionMismatchError,
    why="pg_dump and the server are of different major versions",
    fix="use client programs of the server's major version: set PG_BIN_DIR",
)
def a_server_newer_than_the_programs(scene: Scene) -> Outcome:
    with running_cluster(embedded_server.bin_dir(18)) as newer:
        connection = newer.connection()
        return Outcome(connection, [scene.pg_dump(connection)])


@provokes(
    "error while loading shared libraries",
    error=errors.ProgramMissingError,
    why="the program is installed, but a library that it needs is missing",
    fix="ldd $PG_BIN_DIR/pg_dump",
)
def a_library_is_missing(scene: Scene) -> Outcome:
    bare = scene.folder / "bin"
    bare.mkdir()
    program = (scene.full_bin / "pg_dump").read_bytes()
    assert b"libpq.so.5\0" in program
    (bare / "pg_dump").write_bytes(program.replace(b"libpq.so.5\0", b"libpq.so.0\0"))
    (bare / "pg_dump").chmod(0o755)
    connection = Connection("127.0.0.1", 1, "ovia", "ovia")
    return Outcome(connection, [failed((str(bare / "pg_dump"), "--file=/dev/null"), connection)])


@provokes(
    "this build does not support compression with",
    error=errors.CompressionUnsupportedError,
    why="these client programs were built without the archive's compression",
    fix="use client programs with it (the postgres:16 image has all): set PG_BIN_DIR",
)
def a_client_without_the_archives_compression(scene: Scene) -> Outcome:
    connection = scene.gate.connection()
    archive = made(scene, connection, scene.full_bin, "zstd")
    return Outcome(connection, [unreadable(archive, embedded_server.bin_dir())])


@provokes(
    "unsupported version \\(\\d+\\.\\d+\\) in file header",
    error=errors.ArchiveFormatError,
    why="it was written by a newer pg_dump than this pg_restore can read",
    fix="use the client programs of the version that wrote it, or newer ones: set PG_BIN_DIR",
)
def an_archive_of_a_newer_pg_dump(scene: Scene) -> Outcome:
    connection = scene.gate.connection()
    archive = made(scene, connection, embedded_server.bin_dir(18), "gzip")
    return Outcome(connection, [unreadable(archive, scene.full_bin)])


@provokes(
    'extension "(?P<extension>(?s:.*?))" is not available',
    error=errors.ExtensionMissingError,
    why="the source has this extension, and the PostgreSQL restored to does not",
    fix="install its package beside the server's programs, which for a drill are those in PG_BIN_DIR",
)
def an_extension_that_is_not_installed(scene: Scene) -> Outcome:
    """The whole PostgreSQL has contrib, the embedded one does not."""
    archive = made(scene, scene.new_database("CREATE EXTENSION hstore"), scene.full_bin, "none")
    with running_cluster(embedded_server.bin_dir()) as without:
        target = without.connection()
        command = str(scene.full_bin / "pg_restore"), "--no-owner", f"--dbname={target.conninfo()}", str(archive)
        return Outcome(target, [failed(command, target)])


def made(scene: Scene, connection: Connection, bin_dir: Path, compression: str) -> Path:
    path = scene.folder / f"{compression}.dump"
    command = str(bin_dir / "pg_dump"), "--format=custom", f"--compress={compression}", f"--file={path}"
    code, _, stderr = capture(command, variables=connection.environment())
    assert code == 0, stderr
    return path


def unreadable(archive: Path, bin_dir: Path) -> BackupError:
    with pytest.raises(BackupError) as caught:
        read_archive(Programs(bin_dir), archive)
    return caught.value


# ------------------------------------------------------------------------------------------ the tests

#: Alternatives of the table's patterns that no condition here causes, and why.
NOT_PROVOKED = {
    "Disk quota exceeded": "pg_dump's words for it; the volume's own are provoked in core/test_volume.py",
    "could not resize shared memory segment": "asks for a server whose /dev/shm is small",
    r"(?:ERROR|FATAL|PANIC):\s+out of memory": "asks for a machine that has none left",
    "Read-only file system": "Catalog writes before pg_dump does, and is refused first: core/test_volume.py",
    "permission denied to create database": "of a drill's role, in test_drill_failures.py",
    "Input/output error": "a disk that fails under pg_dump alone; the volume's own are in core/test_volume.py",
    "SSL (?:SYSCALL )?error: (?:EOF detected|unexpected eof)": "which of these is said when a connection breaks is up "
    "to libpq, OpenSSL and the instant",
    "SSL connection has been closed unexpectedly": "as above",
    "connection to server was lost": "as above",
    "could not receive data from server": "as above",
    "could not send data to server": "as above",
    "Connection reset by peer": "as above",
    "Broken pipe": "as above",
    "connection is lost": "as above",
    "connection is closed": "as above",
    r"no answer from the server for \d+ s": "ours, of a server that stands still: faults/test_stalls.py",
    "consuming input failed": "as above",
    "server terminated abnormally": "is below the line that is hit",
    "could not open extension control file": "servers before 16 say it; 16 says the other, checked by its pg_restore",
    "SSL negotiation": "asks for a server that is no PostgreSQL",
    "Connection timed out": "the kernel gives up after two minutes, libpq after 15 seconds",
    "connection timeout expired": "contains another alternative",
    "No route to host": "asks for a network with a router that refuses",
    "PQgetCopyData\\(\\) failed": "never alone: the words before it are hit first",
}


def alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern: its parts between top-level bars."""
    parts, depth = [""], 0
    for char in pattern:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


TABLE = {part for entry in KNOWN_MESSAGES if entry.pattern for part in alternatives(entry.pattern)}

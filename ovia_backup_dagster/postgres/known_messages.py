"""The table of known messages of PostgreSQL's server, programs and libpq: each with its error, likely cause and advice.

This module holds data only; ``diagnosis`` reads it. A message is recognized by its text in PostgreSQL's source, by a
SQLSTATE, or by both. A message whose cause could only be guessed does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres import connection_pooler


@dataclass(frozen=True, slots=True)
class KnownMessage:
    """One line of the table.

    Attributes:
        pattern: the regular expression to search for in the text; empty if only a SQLSTATE identifies the message.
        error: the type of the error to raise.
        why: the likely cause. ``{by_host}``, ``{by_user}`` and ``{by_password}`` become the settings that these come
            from.
        fix: the command or action, with the same placeholders and more: ``{host}``, ``{port}``, ``{user}``,
            ``{database}`` and ``{set_password}`` for a shell; ``{role}`` and ``{name}`` (the database's) as SQL
            identifiers; ``{login}`` and ``{literal}``, the same two as SQL strings; the pattern's named groups; and
            ``{see_server}``, ``{see_disk}`` and ``{see_network}``, which the deployment's hints fill.
        of: SQLSTATEs that have several causes, of which this row is one; the text or the routine tells which.
        routine: the function in the server's source that reports the error, where it identifies the cause. The names in
            ``src/backend`` are the same in PostgreSQL 12 to 18.
        alone: SQLSTATEs that identify this cause without the text.
        only_without_tls: whether the row applies only if the client has switched TLS off.
    """

    pattern: str
    error: type[BackupError]
    why: str
    fix: str
    of: str = ""
    routine: str = ""
    alone: str = ""
    only_without_tls: bool = False


_SERVER = "pg_isready -h {host} -p {port}; {see_server}"
_PASSWORD = "compare {by_user}={user} and {by_password}"  # noqa: S105
_RIGHTS = "; to see every missing privilege: ovia-backup doctor"
#: The first match wins, so specific rows come before general ones.
KNOWN_MESSAGES = (
    # ---- disks
    KnownMessage(
        r"could not resize shared memory segment",
        errors.ServerMemoryError,
        "the server's shared memory (/dev/shm) is full: a container gets 64 MB by default",
        "give the server's container more (shm_size: 1gb), or: ALTER SYSTEM SET max_parallel_workers_per_gather = 0; "
        "ALTER SYSTEM SET max_parallel_maintenance_workers = 0; SELECT pg_reload_conf()",
        of="53100|53200",
        routine=r"dsm_impl_\w+",
    ),
    KnownMessage(
        r"out of shared memory",
        errors.LockTableFullError,
        "the server's lock table is too small for the number of tables",
        "as a superuser: ALTER SYSTEM SET max_locks_per_transaction = 1024; restart the server; then retry",
        of="53200",
        routine=r"Lock\w*|SetupLockInTable|hash_search\w*",
    ),
    KnownMessage(
        r"(?:ERROR|FATAL|PANIC):\s+out of memory",
        errors.ServerMemoryError,
        "the server ran out of memory for this, at this moment or because of its settings",
        "on the server: free -m; SHOW work_mem; SHOW maintenance_work_mem; then retry",
        alone="53200",
    ),
    KnownMessage(
        r"[^\W\d_]:  .*(?:No space left on device|wrote only \d+ of \d+ bytes)",
        errors.ServerDiskFullError,
        "the server's own disk is full, not the backup volume",
        "make room on the server: {see_disk}",
        alone="53100",
    ),
    KnownMessage(
        r"No space left on device",
        errors.DiskFullError,
        "the backup volume is full: it is too small, or something else is filling it",
        "df -h $BACKUP_DIR; ovia-backup prune --dry-run; or enlarge the volume",
    ),
    KnownMessage(
        r"Disk quota exceeded",
        errors.QuotaError,
        "the volume has room, but this user's quota is used up",
        "quota -s; ovia-backup prune --dry-run; or ask for a larger quota",
    ),
    KnownMessage(
        r"Read-only file system",
        errors.ReadOnlyVolumeError,
        "the volume is mounted read-only, perhaps after a disk error",
        "dmesg | tail; then, if the disk is sound: mount -o remount,rw $BACKUP_DIR",
    ),
    KnownMessage(
        r"invalid page in block|could not read block|missing chunk number|unexpected chunk number"
        r"|compressed (?:pglz|lz4) data is corrupt|invalid memory alloc request size"
        r"|could not access status of transaction",
        errors.ServerDataError,
        "the server cannot read its own data: a disk or its memory is failing",
        "keep all existing backups (stop daily_backup_schedule); copy the server's data directory; then restore the "
        "last verified backup beside it: ovia-backup list",
        of="XX000|58P01",
        alone="XX00[12]|58030",
    ),
    KnownMessage(
        r"Input/output error",
        errors.DiskFailingError,
        "the disk, or the network to it, is failing",
        "dmesg | tail; then copy the backups to another disk",
    ),
    KnownMessage(
        r"no answer from the server for \d+ s",
        errors.ServerSilentError,
        "the server accepted the connection and then stopped answering: it hangs, or the network drops its answers",
        _SERVER,
    ),
    # ---- messages of a pooler itself (PgBouncer's src/client.c, src/objects.c)
    KnownMessage(
        r"unsupported startup parameter|query_wait_timeout",
        errors.PoolerError,
        "a connection pooler (PgBouncer) answers there, and does not give the client a server session of its own",
        connection_pooler.NEXT,
        of=r"\w{5}",
    ),
    # ---- a broken connection: before TLS, because a TLS error may accompany it
    KnownMessage(
        r"(?:canceling statement|terminating connection) due to conflict with recovery",
        errors.RecoveryConflictError,
        "the server is a standby, and replaying the primary's changes conflicted with what was being read here",
        "on the standby: ALTER SYSTEM SET max_standby_streaming_delay = '1h'; SELECT pg_reload_conf()",
        of="40001|40P01|57P01|57P04",
    ),
    KnownMessage(
        r"SSL (?:SYSCALL )?error: (?:EOF detected|unexpected eof)|SSL connection has been closed unexpectedly"
        r"|server closed the connection unexpectedly|connection to server was lost|could not receive data from server"
        r"|could not send data to server|Connection reset by peer|Broken pipe|connection is lost|connection is closed"
        r"|consuming input failed|terminating connection|server terminated abnormally",
        errors.ConnectionLostError,
        "the server was stopped, restarted or killed, an administrator ended the session, or the network failed",
        _SERVER,
        alone="08...|57P0[1245]|25P0[34]",
    ),
    # ---- TLS
    KnownMessage(
        r"server does not support SSL",
        errors.TlsRefusedError,
        "PGSSLMODE requires TLS, and the server does not offer it",
        "enable TLS on the server (ssl = on, with a certificate), or set PGSSLMODE=prefer if the network is trusted",
    ),
    KnownMessage(
        r"no pg_hba\.conf entry .*no encryption",
        errors.TlsRequiredError,
        "the server accepts this role only over TLS, which PGSSLMODE=disable forbids",
        "set PGSSLMODE=require, or verify-full with PGSSLROOTCERT",
        only_without_tls=True,
        of="28000",
    ),
    KnownMessage(
        r"root certificate file",
        errors.CertificateError,
        "the root certificate file, which PGSSLMODE=verify-ca and verify-full need, is missing or holds no certificate",
        "ls -l $PGSSLROOTCERT; put the CA's certificate there, or set PGSSLROOTCERT to its path",
    ),
    KnownMessage(
        r"certificate verify failed",
        errors.CertificateError,
        "the server's certificate is not signed by the CA in PGSSLROOTCERT, or has expired",
        "see who issued it: openssl s_client -starttls postgres -connect {host}:{port} </dev/null; "
        "then set PGSSLROOTCERT to that CA's certificate",
    ),
    KnownMessage(
        r"server certificate for .* does not match",
        errors.CertificateError,
        "the server's certificate is for another host name, and PGSSLMODE=verify-full requires this one",
        "set {by_host} to a name in it: openssl s_client -starttls postgres -connect {host}:{port} </dev/null | "
        "openssl x509 -noout -subject -ext subjectAltName",
    ),
    KnownMessage(
        r"requires a valid client certificate|private key file|alert (?:unknown ca|bad certificate|certificate \w+)",
        errors.CertificateError,
        "the server requires a client certificate, and this client's is missing, untrusted, or does not match its key",
        "ls -lL $PGSSLCERT $PGSSLKEY; set them to a certificate that the server's ssl_ca_file trusts, "
        "and its key, readable by this user alone",
        of="28000",
    ),
    KnownMessage(
        r"SSL error|sslmode|SSL support is not compiled in|SSL negotiation",
        errors.TlsError,
        "client and server cannot agree on TLS",
        "check PGSSLMODE and PGSSLROOTCERT; see whether the server speaks TLS: "
        "openssl s_client -starttls postgres -connect {host}:{port} </dev/null",
    ),
    # ---- authentication
    KnownMessage(
        r"no password supplied",
        errors.PasswordMissingError,
        "the server asks for a password, and none is set",
        "set {by_password}",
    ),
    KnownMessage(
        r"password authentication failed",
        errors.AuthenticationError,
        "the password here is not the server's (changed there, or expired), or the server has no such role",
        _PASSWORD + " with the server's; to set a new password there: psql -c {set_password}",
        alone="28P01",
    ),
    KnownMessage(
        r"no pg_hba\.conf entry|pg_hba\.conf rejects",
        errors.AccessRefusedError,
        "the server's pg_hba.conf does not let this role connect from here, or only over TLS",
        "see the rules on the server (pg_hba_file_rules); add a line for {user}, then: SELECT pg_reload_conf()",
        of="28000",
        routine="ClientAuthentication",
        alone="28000",
    ),
    KnownMessage(
        r"authentication failed for user",
        errors.AuthenticationError,
        "the server's pg_hba.conf requires a method other than a password (peer, ident, a certificate)",
        "see the rules on the server (pg_hba_file_rules); " + _PASSWORD,
        of="28000",
        routine="auth_failed|CheckPWChallengeAuth",
    ),
    KnownMessage(
        r'FATAL:\s+role "(?s:.*?)" does not exist',
        errors.RoleMissingError,
        "the server has no role of that name",
        "check {by_user}={user}; or create the role, as a superuser: CREATE ROLE {role} LOGIN PASSWORD '...'",
        of="28000",
    ),
    KnownMessage(
        r'role "(?s:.*?)" is not permitted to log in',
        errors.RoleMissingError,
        "the role exists, but may not log in",
        "as a superuser: ALTER ROLE {role} LOGIN",
        of="28000",
    ),
    KnownMessage(
        "",
        errors.RoleMissingError,
        "the server has no role of that name, or it may not log in",
        "check {by_user}={user}; as a superuser: CREATE ROLE {role} LOGIN PASSWORD '...'; or: ALTER ROLE {role} LOGIN",
        of="28000",
        routine="InitializeSessionUserId",
    ),
    KnownMessage(
        r'permission denied for database "',
        errors.AccessRefusedError,
        "the role may not connect to this database",
        "as its owner: GRANT CONNECT ON DATABASE {name} TO {role}",
        of="42501",
        routine="CheckMyDatabase",
    ),
    KnownMessage(
        r'database "(?s:.*?)" is not currently accepting connections',
        errors.AccessRefusedError,
        "the database was closed to all connections, perhaps by a restore",
        "as a superuser, once you know why: ALTER DATABASE {name} ALLOW_CONNECTIONS true",
        of="55000",
        routine="CheckMyDatabase",
    ),
    KnownMessage(
        r'FATAL:\s+database "(?s:.*?)" does not exist',
        errors.DatabaseMissingError,
        "POSTGRES_DB is wrong, or the database was dropped or renamed",
        "list the databases: psql -h {host} -p {port} -U {user} -l; check POSTGRES_DB={database}",
        alone="3D000",
    ),
    KnownMessage(
        r'too many connections for role "',
        errors.TooManyConnectionsError,
        "this role has reached its connection limit; a hanging dump may hold the connections",
        "as another role: SELECT pid, application_name, backend_start FROM pg_stat_activity WHERE usename = {login}; "
        "ALTER ROLE {role} CONNECTION LIMIT 5",
        of="53300",
        routine="InitializeSessionUserId",
    ),
    KnownMessage(
        r'too many connections for database "',
        errors.TooManyConnectionsError,
        "this database has reached its connection limit",
        "from another database: SELECT pid, usename, application_name, state FROM pg_stat_activity WHERE datname = "
        "{literal}; end idle ones, or as its owner: ALTER DATABASE {name} CONNECTION LIMIT -1",
        of="53300",
        routine="CheckMyDatabase",
    ),
    KnownMessage(
        r"too many clients already|remaining connection slots",
        errors.TooManyConnectionsError,
        "all of the server's connections are in use",
        "see by whom: SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY 1, 2, 3; then "
        "end idle ones, or raise max_connections",
        alone="53300",
    ),
    # ---- programs
    KnownMessage(
        r"server version mismatch",
        errors.VersionMismatchError,
        "pg_dump and the server are of different major versions",
        "use client programs of the server's major version: set PG_BIN_DIR, or use another image",
    ),
    KnownMessage(
        r"error while loading shared libraries",
        errors.ProgramMissingError,
        "the program is installed, but a library that it needs is missing",
        "ldd $PG_BIN_DIR/pg_dump; install what is not found, or use the postgres:16 image",
    ),
    KnownMessage(
        r"this build does not support compression with",
        errors.CompressionUnsupportedError,
        "these client programs were built without the archive's compression",
        "use client programs with it (the postgres:16 image has all): set PG_BIN_DIR",
    ),
    KnownMessage(
        r"unsupported version \(\d+\.\d+\) in file header",
        errors.ArchiveFormatError,
        "it was written by a newer pg_dump than this pg_restore can read",
        "use the client programs of the version that wrote it, or newer ones: set PG_BIN_DIR",
    ),
    KnownMessage(
        r'extension "(?P<extension>(?s:.*?))" is not available|could not open extension control file',
        errors.ExtensionMissingError,
        "the source has this extension, and the PostgreSQL restored to does not",
        "install its package beside the server's programs, which for a drill are those in PG_BIN_DIR; or drill on a "
        "server that has it: ovia-backup drill --where database",
        of="0A000|58P01",
        routine=r"parse_extension_control_file|get_ext_ver_list",
    ),
    # ---- privileges
    KnownMessage(
        r"query would be affected by row-level security",
        errors.RowSecurityError,
        "the table's row security would leave rows out of the dump",
        "as a superuser: ALTER ROLE {role} BYPASSRLS" + _RIGHTS,
        of="42501",
        routine="check_enable_rls",
    ),
    KnownMessage(
        r"permission denied for large object (?P<object>\d+)",
        errors.LargeObjectPrivilegeError,
        "the role may not read this large object: pg_read_all_data does not include them",
        "as its owner: GRANT SELECT ON LARGE OBJECT {object} TO {role}" + _RIGHTS,
        of="42501",
        routine="inv_open",
    ),
    KnownMessage(
        r"permission denied to create database",
        errors.PrivilegeError,
        "the role may not create a scratch database",
        "as a superuser: ALTER ROLE {role} CREATEDB; or set RESTORE_POSTGRES_USER to a role that may",
        of="42501",
        routine="createdb",
    ),
    KnownMessage(
        r"permission denied for",
        errors.PrivilegeError,
        "the role may not read all of the database",
        "as a superuser: GRANT pg_read_all_data TO {role}" + _RIGHTS,
        of="42501",
    ),
    KnownMessage(
        "",
        errors.PrivilegeError,
        "the role lacks a privilege that this needs",
        "see which one, and the statement that grants it: ovia-backup doctor",
        alone="42501",
    ),
    # ---- timeouts and conflicts
    KnownMessage(
        # pg_dump implements --lock-wait-timeout as a statement timeout around LOCK TABLE, its only statement timeout.
        r"canceling statement due to (?:lock timeout|statement timeout\npg_dump: detail: Query was: LOCK TABLE)",
        errors.LockTimeoutError,
        "another session holds a lock on a table: a migration, VACUUM FULL, or a transaction left open",
        "see which: SELECT pid, usename, state, xact_start, query FROM pg_stat_activity WHERE xact_start < now() - "
        "interval '1 minute'; then retry",
        alone="55P03",
    ),
    KnownMessage(
        r"canceling statement due to statement timeout",
        errors.StatementTimeoutError,
        "a statement_timeout is set for the role, the database or the server",
        "SHOW statement_timeout; to disable it for this role: ALTER ROLE {role} SET statement_timeout = 0",
        of="57014",
    ),
    KnownMessage(
        r"canceling statement due to user request",
        errors.StatementCancelledError,
        "an administrator cancelled it (pg_cancel_backend)",
        "find out who cancelled it and why, then retry",
        of="57014",
    ),
    KnownMessage(
        "",
        errors.StatementCancelledError,
        "an administrator cancelled it, or a statement_timeout of the role, the database or the server ended it",
        "SHOW statement_timeout; to disable it for this role: ALTER ROLE {role} SET statement_timeout = 0; then retry",
        alone="57014",
    ),
    KnownMessage(
        r"deadlock detected",
        errors.TransactionConflictError,
        "it conflicted or deadlocked with another transaction, and the server cancelled it",
        "retry; if it happens again, see what else changes the database at that time: SELECT pid, usename, "
        "application_name, query FROM pg_stat_activity",
        alone="40001|40P01",
    ),
    # ---- an unreachable server
    KnownMessage(
        r"could not translate host name|failed to resolve host|'idna' codec",
        errors.HostUnknownError,
        "{by_host} is wrong, the service is not running, or this container is not on its network",
        "getent hosts {host}; {see_network}",
    ),
    KnownMessage(
        r"the database system is (?:starting up|shutting down|in recovery|not (?:yet )?accepting connections)",
        errors.ServerStartingError,
        "the server is starting, stopping or recovering from a crash",
        _SERVER,
        alone="57P03",
    ),
    KnownMessage(
        r"Connection refused|connection to server on socket .* failed: No such file",
        errors.ServerUnreachableError,
        "PostgreSQL is not running there, or listens on another port",
        _SERVER,
    ),
    KnownMessage(
        r"Connection timed out|timeout expired|No route to host|Network is unreachable|connection timeout expired",
        errors.ServerUnreachableError,
        "nothing answers there: the host is down, or the network or a firewall blocks the way",
        _SERVER,
    ),
    KnownMessage(
        # Last, because what the server said before the connection ended tells more.
        r"PQgetCopyData\(\) failed",
        errors.ConnectionLostError,
        "the server was stopped, restarted or killed, or the network failed",
        _SERVER,
    ),
)

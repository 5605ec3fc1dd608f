"""Checks the PostgreSQL server: the connection, its version, its health, the role's rights."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ovia_backup_dagster.core.backup import CLOCK_TOLERANCE, State
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.doctor.report import Area, Observation, fail, failed, ok, warn
from ovia_backup_dagster.postgres import collations
from ovia_backup_dagster.postgres.dump_privileges import Session, missing_rights
from ovia_backup_dagster.postgres.large_rows import find_large_rows
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect, system_identifier
from ovia_backup_dagster.postgres.undumped_rows import undumped
from ovia_backup_dagster.postgres.versions import (
    MAJORS,
    is_without_repairs,
    may_dump,
    newest_minor,
    parse_release,
)
from ovia_backup_dagster.restoration import server_offers
from ovia_backup_dagster.restoration.requirements import too_many_locks
from ovia_backup_dagster.system import BackupSystem

#: Private networks (RFC 1918, RFC 4193, the host itself), such as Docker's overlays.
_PRIVATE = ["127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7", "fe80::/10"]
#: A password that expires within this time is a warning.
_EXPIRES_SOON = timedelta(days=30)
_ABOUT = """
    SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
           current_user AS role, now() AS now, pg_is_in_recovery() AS standby,
           current_setting('data_checksums') = 'on' AS checksums,
           (SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()) AS failures,
           (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS tls, inet_client_addr() IS NULL AS socket,
           coalesce(inet_server_addr() <<= ANY (%(private)s::inet[]), true) AS private,
           current_setting('lc_messages') AS language, session_user AS login, pg_get_userbyid(10) AS superuser,
           (SELECT rolvaliduntil FROM pg_roles WHERE rolname = session_user AND isfinite(rolvaliduntil)) AS valid_until,
           (SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
            WHERE d.datname = current_database()) AS subscriptions,
           (SELECT count(*) FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r') AS unlogged
"""
_RELATIONS = """
    SELECT count(*) AS number FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
    AND n.nspname <> 'information_schema'
"""
_EXPECTED = """
    SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_'
                   AND %(name)s::text IN (c.relname::text, n.nspname || '.' || c.relname)) AS there
"""


def server(system: BackupSystem) -> Iterator[Observation]:
    """The connection, and all checks that use it."""
    try:
        with connect(system.connection) as session:
            about = session.execute(_ABOUT, {"private": _PRIVATE}).fetchone()
            assert about is not None  # it has no FROM
            about["psql"] = psql_command(system, about["superuser"])
            yield from _connection(system, about)
            yield from _version(system, about)
            yield from _language(about)
            yield from _health(about)
            yield from _locks(session)
            yield from _collations(session, about)
            yield from _expected_tables(system, session)
            yield from _same_server(system, session)
            yield from _rights(session, about)
        for line in undumped(system.connection):
            fix = f"save them apart: pg_dump leaves them out; see which, {about['psql']}"
            yield warn(Area.SERVER, line, fix)
        yield from _large(system)
    except BackupError as error:
        yield failed(Area.SERVER, error)


def psql_command(system: BackupSystem, superuser: str) -> str:
    """The psql command into which the SQL of an observation is pasted."""
    to = system.connection
    database = to.database
    if re.search(r"=|://", database):  # -d would parse it as a connection string
        escaped = database.replace("\\", "\\\\").replace("'", "\\'")
        database = f"dbname='{escaped}'"
    words = ("psql", "-h", to.host, "-p", str(to.port), "-d", database, "-U", superuser)
    return f"as a superuser: {shlex.join(words)}"


def _connection(system: BackupSystem, about: dict[str, Any]) -> Iterator[Observation]:
    way = "a Unix socket" if about["socket"] else "TLS" if about["tls"] else "plain TCP"
    text = f"connected to {system.connection} as {about['role']}, by {way}"
    if about["tls"] or about["private"]:
        yield ok(Area.SERVER, text)
    else:
        fix = "have the server use TLS; then PGSSLMODE=verify-full with PGSSLROOTCERT"
        yield warn(Area.SERVER, f"{text} outside a private network: data and password can be read on the way", fix)
    difference = datetime.now(UTC) - about["now"]
    if abs(difference) > CLOCK_TOLERANCE:
        way = "behind" if difference > timedelta(0) else "ahead of"
        text = f"the server's clock is {duration(difference)} {way} the one here: the ages of backups depend on it"
        yield warn(Area.SERVER, text, "date -u on both; where it is wrong: timedatectl set-ntp true")
    until = about["valid_until"]
    if until is not None and until - datetime.now(UTC) < _EXPIRES_SOON:
        when = "has expired" if until < datetime.now(UTC) else "expires"
        yield warn(
            Area.SERVER,
            f"the password of role {about['login']} {when} on {until:%Y-%m-%d}",
            about["psql"],
            f"ALTER ROLE {sql_identifier(about['login'])} VALID UNTIL 'infinity';",
        )


def _version(system: BackupSystem, about: dict[str, Any]) -> Iterator[Observation]:
    try:
        client = system.programs.major("pg_dump")
    except BackupError:
        client = None  # reported under programs
    version, major = about["version"], about["major"]
    fix = f"use PostgreSQL {major}'s client programs: set PG_BIN_DIR, or use another image"
    if client is not None and not may_dump(client, major):
        yield fail(Area.SERVER, f"the server is PostgreSQL {version}, pg_dump is {client}", fix)
        return
    if is_without_repairs(major, datetime.now(UTC).date()):
        last = MAJORS[major].last_release
        text = f"PostgreSQL {major} had its last release on {last}: vulnerabilities found since then stay"
        yield warn(Area.SERVER, text, "move to a later major: https://www.postgresql.org/support/versioning/")
    parsed, newest = parse_release(version), newest_minor(major)
    if parsed and parsed[1] < newest:
        yield warn(
            Area.SERVER,
            f"the server is PostgreSQL {version}; {major}.{newest} fixes vulnerabilities",
            system.settings.deployment_hints.upgrade
            or f"install PostgreSQL {major}.{newest} on the server; restart it",
        )
    else:
        yield ok(Area.SERVER, f"PostgreSQL {version}" + (", as the client programs" if client == major else ""))


def _language(about: dict[str, Any]) -> Iterator[Observation]:
    """Each session switches to English if its role may. If messages are not English here, this role may not."""
    if re.match(r"C\b|POSIX|en", about["language"]):
        return
    yield warn(
        Area.SERVER,
        f"the server reports errors in the language of {about['language']}: not all of its messages are recognized",
        about["psql"],
        f"GRANT SET ON PARAMETER lc_messages TO {sql_identifier(about['role'])};",
    )


def _health(about: dict[str, Any]) -> Iterator[Observation]:
    if about["failures"]:
        yield fail(
            Area.SERVER,
            f"the server has found {about['failures']} damaged pages: it is losing data",
            "keep all existing backups; read the server's log; move the data to another disk",
        )
    elif about["checksums"]:
        yield ok(Area.SERVER, "page checksums are on, no damaged page was found")
    else:
        # Not a warning: changing it needs a stopped server, and a permanent warning would be ignored.
        yield ok(Area.SERVER, "page checksums are off; with them (pg_checksums --enable) a failing disk is noticed")
    if about["standby"]:
        yield warn(
            Area.SERVER,
            "this is a standby: a long dump may be cancelled by a conflict with recovery",
            f"set POSTGRES_HOST to the primary; or let it wait here, {about['psql']}",
            "ALTER SYSTEM SET max_standby_streaming_delay = '1h';",
            "SELECT pg_reload_conf();",
        )
    if about["subscriptions"]:
        yield warn(
            Area.SERVER,
            f"pg_dump dumps subscriptions only for a superuser, and the database has some ({about['subscriptions']})",
            "write down their CREATE SUBSCRIPTION statements; after a restore, run them again",
        )
    if about["unlogged"]:
        text = f"unlogged tables ({about['unlogged']}) are in the dump, but empty after a crash of the server"
        yield ok(Area.SERVER, text)


def _locks(session: Session) -> Iterator[Observation]:
    """Check the size of the lock table, which is set at the server's start: a dump locks every table that it reads."""
    row = session.execute(_RELATIONS).fetchone()
    locks = server_offers.locks(session)
    found = too_many_locks(row["number"], *locks) if row else None
    if found:
        level = fail if found.surely else warn
        yield level(Area.SERVER, f"the server has too small a lock table for a dump: {found.why}", found.fix)


def _collations(session: Session, about: dict[str, Any]) -> Iterator[Observation]:
    """Check collation versions: under a newer version, an older index may miss rows, or find them twice."""
    for name, (recorded, actual) in collations.outdated(session).items():
        database = sql_identifier(session.info.dbname)
        of_its_own = f"ALTER COLLATION {name} REFRESH VERSION"
        refresh = f"ALTER DATABASE {database} REFRESH COLLATION VERSION" if name == collations.DEFAULT else of_its_own
        text = f"indexes on text may be wrong: collation {name} was of version {recorded} when they were built, and is "
        yield warn(Area.SERVER, f"{text}{actual} now", about["psql"], f"REINDEX DATABASE {database};", f"{refresh};")


def _expected_tables(system: BackupSystem, session: Session) -> Iterator[Observation]:
    expected = system.settings.expected_tables
    missing = []
    for name in expected:
        row = session.execute(_EXPECTED, {"name": name}).fetchone()
        if row is None or not row["there"]:
            missing.append(name)
    if missing:
        yield fail(
            Area.SERVER,
            f"tables that a dump must hold are not in the database: {', '.join(missing)}",
            "is POSTGRES_DB the right one? else set BACKUP_EXPECTED_TABLES to the tables that it must hold, or to none",
        )
    elif expected:
        yield ok(Area.SERVER, f"the expected tables are there: {', '.join(expected)}")
    else:
        fix = "set BACKUP_EXPECTED_TABLES to the tables without which a dump is worth nothing"
        yield warn(Area.SERVER, "no table is expected: an empty database would count as backed up", fix)


def _same_server(system: BackupSystem, session: Session) -> Iterator[Observation]:
    """Whether this is the server of the last dump that is not bad: POSTGRES_HOST may name a test server."""
    now = datetime.now(UTC)
    try:
        backups = (b for b in system.catalog.newest_first() if b.system_identifier and b.state(now) is not State.BAD)
        known = next((b.system_identifier for b in backups), None)
    except BackupError:
        return  # reported under volume, and by verification
    here = system_identifier(session)
    if known and here and here != known:
        yield warn(
            Area.SERVER,
            "this is not the server of the last dump (its system identifier differs)",
            "expected after a restore; after a move, the first dump is bad until: ovia-backup accept latest; else "
            "check POSTGRES_HOST",
        )


def _large(system: BackupSystem) -> Iterator[Observation]:
    """Rows that a dump cannot hold."""
    found, whole = find_large_rows(system.connection)
    for large in found:
        yield fail(Area.SERVER, str(large), large.fix)
    if not whole:
        text = "not all tables were checked for rows too large for a dump: reading the lengths was cancelled"
        yield warn(Area.SERVER, text, "nothing, if no field is over 512 MB; if pg_dump fails, it says which table")
    elif not found:
        yield ok(Area.SERVER, "no row is too large for a dump")


def _rights(session: Session, about: dict[str, Any]) -> Iterator[Observation]:
    missing = missing_rights(session, about["role"])
    for right in missing:
        make = warn if right.later else fail
        yield make(Area.RIGHTS, right.what, about["psql"], right.sql)
    if not missing:
        yield ok(Area.RIGHTS, f"role {about['role']} may read all that a dump holds")

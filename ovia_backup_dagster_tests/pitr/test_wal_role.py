"""``deploy/wal-role.sql``: a role that can receive WAL and make base backups, and what is left to do on the server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster_tests.conftest import REPOSITORY, PortCluster, admin, running_cluster
from ovia_backup_dagster_tests.faults.harness import until
from ovia_backup_dagster_tests.pitr.ground import REPLICATION_LINE, WAL_PASSWORD, WAL_ROLE, Ground
from ovia_backup_dagster_tests.pitr.receiving import receiver

SCRIPT = REPOSITORY / "deploy" / "wal-role.sql"
OTHER_ROLE = "wal_role_other"
#: Everything that could end a literal or be taken for a psql variable.
PASSWORD = """it's "a" \\ $pass$ :word :'word' %"""
FILES = "SELECT jsonb_agg(f ORDER BY seqno) FROM pg_file_settings f"
LIMIT = "SELECT setting || ' ' || source FROM pg_settings WHERE name = 'max_slot_wal_keep_size'"


@pytest.fixture(scope="module")
def source(full_bin_dir: Path) -> Iterator[Ground]:
    """A server like one that was never prepared: no role, no line for replication, no limit."""
    with running_cluster(full_bin_dir) as cluster:
        ground = Ground(cluster, full_bin_dir)
        ground.execute(
            "CREATE TABLE plain (x int)",
            "CREATE SCHEMA a",
            "CREATE TABLE a.plain (x int)",
            "CREATE SEQUENCE a.numbers",
            "REVOKE ALL ON DATABASE postgres FROM PUBLIC",
        )
        yield ground


@pytest.fixture
def ground(source: Ground) -> Iterator[Ground]:
    """The same; what the test changes is taken back."""
    hba = source.cluster.data / "pg_hba.conf"
    before = hba.read_text("utf-8")
    source.execute(f"CREATE ROLE {OTHER_ROLE}", "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    yield source
    hba.write_text(before, "utf-8")
    left = (
        "SELECT format('SELECT pg_drop_replication_slot(%L)', slot_name) FROM pg_replication_slots",
        f"SELECT format('DROP OWNED BY {WAL_ROLE}') FROM pg_roles WHERE rolname = '{WAL_ROLE}'",
    )
    with admin(source.cluster) as session:
        for query in left:
            for (statement,) in session.execute(query.encode()).fetchall():
                session.execute(str(statement).encode())
    source.execute(
        f"DROP ROLE IF EXISTS {WAL_ROLE}",
        f"DROP ROLE {OTHER_ROLE}",
        "ALTER SYSTEM RESET ALL",
        "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC",
    )
    source.reload()


def run(ground: Ground, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as the runbook does, from standard input."""
    variables = {**ground.cluster.connection().environment(), **environment}
    variables["LD_LIBRARY_PATH"] = str(ground.bin_dir.parent / "lib")
    command = [str(ground.bin_dir / "psql"), "-X", "-q", "-w", "-d", "postgres", *arguments]
    with SCRIPT.open("rb") as script:
        return subprocess.run(
            command, env=variables, stdin=script, capture_output=True, text=True, timeout=60, check=False
        )


def made(ground: Ground, password: str = WAL_PASSWORD, **environment: str) -> str:
    """Run the script, and return what it prints."""
    result = run(ground, WAL_PASSWORD=password, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def append(ground: Ground, *lines: str) -> None:
    """Append lines to pg_hba.conf; the server does not read them yet."""
    with (ground.cluster.data / "pg_hba.conf").open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def value(cluster: PortCluster, query: str) -> object:
    with admin(cluster) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def as_role(ground: Ground, password: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="127.0.0.1", port=ground.cluster.port, dbname="postgres", user=WAL_ROLE, password=password, autocommit=True
    )


def test_the_role_receives_wal_and_makes_base_backups(ground: Ground, tmp_path: Path) -> None:
    said = made(ground)
    assert said.count("\n") == 1
    assert (
        f"add this line to {ground.cluster.data}/pg_hba.conf, then SELECT pg_reload_conf(): {REPLICATION_LINE}" in said
    )
    # The second run lets the server read the line.
    append(ground, REPLICATION_LINE)
    assert made(ground) == ""
    ground.reload()
    volume = tmp_path / "volume"
    volume.mkdir()
    with receiver(ground, volume) as receiving:
        status = receiving.until_safe()
        assert (status.troubles, status.slot_status) == ((), "reserved"), receiving.log.read_text("utf-8")
        assert status.slot_safe_bytes
    base = tmp_path / "base"
    program = str(ground.bin_dir / "pg_basebackup")
    command = [program, "-D", str(base), "-Ft", "-X", "none", "-c", "fast", "--no-sync"]
    environment = {"PGPASSWORD": WAL_PASSWORD, "LD_LIBRARY_PATH": str(ground.bin_dir.parent / "lib")}
    to = ["-h", "127.0.0.1", "-p", str(ground.cluster.port), "-U", WAL_ROLE]
    subprocess.run([*command, *to], env=environment, check=True, capture_output=True)
    assert (base / "backup_manifest").exists()


FORBIDDEN = [
    "TABLE plain",
    "TABLE a.plain",
    "INSERT INTO plain VALUES (1)",
    "TRUNCATE plain",
    "SELECT nextval('a.numbers')",
    "CREATE TABLE mine (x int)",
    "CREATE TABLE a.mine (x int)",
    "CREATE TEMPORARY TABLE mine (x int)",
    "CREATE SCHEMA mine",
    "CREATE EXTENSION pg_trgm",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    f"ALTER ROLE {WAL_ROLE} SUPERUSER",
    f"ALTER ROLE {OTHER_ROLE} LOGIN",
    f"GRANT pg_write_all_data TO {WAL_ROLE}",
    f"SET ROLE {OTHER_ROLE}",
    f"ALTER TABLE plain OWNER TO {WAL_ROLE}",
    "COPY plain TO PROGRAM 'cat > /dev/null'",
    "SELECT pg_read_file('/etc/passwd')",
    "TABLE pg_authid",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "CHECKPOINT",
    "SELECT pg_switch_wal()",
    "SELECT pg_reload_conf()",
    "SELECT pg_terminate_backend({pid})",
    "SELECT pg_cancel_backend({pid})",
]


def test_the_role_can_do_nothing_else(ground: Ground) -> None:
    made(ground, PASSWORD)
    outcomes: dict[str, object] = {}
    with admin(ground.cluster) as other:
        for statement in FORBIDDEN:
            with as_role(ground, PASSWORD) as session:
                assert session.execute("SHOW default_transaction_read_only").fetchone() == ("on",)
                # The default protects only against accidents: the session can turn it off.
                session.execute("SET default_transaction_read_only = off")
                outcome: object = "it may"
                try:
                    session.execute(statement.format(pid=other.info.backend_pid).encode())
                except psycopg.Error as error:
                    outcome = type(error)
                outcomes[statement] = outcome
    assert outcomes == dict.fromkeys(FORBIDDEN, psycopg.errors.InsufficientPrivilege)


def rights(ground: Ground) -> object:
    """All roles, grants and settings; without passwords, because their salt changes."""
    query = """
        SELECT jsonb_build_array(
            (SELECT jsonb_agg(to_jsonb(r) - 'rolpassword' ORDER BY rolname) FROM pg_roles r),
            (SELECT jsonb_agg(m ORDER BY m.oid) FROM pg_auth_members m),
            (SELECT jsonb_agg(s) FROM pg_db_role_setting s),
            (SELECT array_agg(proacl::text ORDER BY oid) FROM pg_proc),
            (SELECT datacl::text FROM pg_database WHERE datname = current_database()),
            (SELECT jsonb_agg(f) FROM pg_file_settings f))
    """
    return value(ground.cluster, query)


def test_a_second_run_changes_only_the_password(ground: Ground) -> None:
    append(ground, REPLICATION_LINE)
    assert made(ground, "the first") == ""
    before = rights(ground)
    assert made(ground, PASSWORD) == ""
    assert rights(ground) == before
    as_role(ground, PASSWORD).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        as_role(ground, "the first")


def test_a_role_loses_excess_rights_and_the_rest_is_told(ground: Ground) -> None:
    append(ground, REPLICATION_LINE)
    ground.execute(
        f"CREATE ROLE {WAL_ROLE} SUPERUSER CREATEDB CREATEROLE BYPASSRLS", f"GRANT {OTHER_ROLE} TO {WAL_ROLE}"
    )
    assert made(ground).strip() == f"{WAL_ROLE} is also a member of {OTHER_ROLE}"
    may = "SELECT rolsuper OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = 'ovia_wal'"
    assert value(ground.cluster, may) is False


@pytest.mark.parametrize("given", [(), ("-v", "password=")])
def test_without_a_password_nothing_is_changed(given: tuple[str, ...], ground: Ground) -> None:
    before = rights(ground)
    result = run(ground, *given)
    assert result.returncode == 3
    assert "no password: set WAL_PASSWORD" in result.stderr
    assert rights(ground) == before


def test_a_wal_password_as_a_variable_is_in_no_log(ground: Ground) -> None:
    ground.execute("ALTER DATABASE postgres SET log_statement = 'all'")
    try:
        result = run(ground, "-v", "password=unlogged-pa55word")
    finally:
        ground.execute("ALTER DATABASE postgres RESET log_statement")
    assert result.returncode == 0, result.stderr
    logs = [path for path in ground.cluster.folder.rglob("*") if path.is_file() and "log" in path.name]
    text = "".join(path.read_text(errors="replace") for path in logs)
    assert "SET log_statement = 'none'" in text
    assert "unlogged-pa55word" not in text


# -------------------------------------------------------------------------------------------- limit and pg_hba.conf


def test_the_slots_wal_gets_a_limit_once(ground: Ground) -> None:
    made(ground)
    until(lambda: value(ground.cluster, LIMIT) == "4096 configuration file")
    # An existing limit stays.
    files = value(ground.cluster, FILES)
    made(ground, MAX_SLOT_WAL_KEEP_SIZE="9GB")
    assert value(ground.cluster, FILES) == files


def test_an_operator_chooses_the_limit(ground: Ground) -> None:
    result = run(ground, WAL_PASSWORD=WAL_PASSWORD, MAX_SLOT_WAL_KEEP_SIZE="much")
    assert result.returncode == 3
    assert 'invalid value for parameter "max_slot_wal_keep_size": "much"' in result.stderr
    made(ground, MAX_SLOT_WAL_KEEP_SIZE="6GB")
    until(lambda: value(ground.cluster, LIMIT) == "6144 configuration file")


LEFT = "WAL can be received only on the server itself"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        # The image's own.
        (("local replication all trust", "host replication all 127.0.0.1/32 trust", "host all all all md5"), LEFT),
        (("host replication all ::1/128 trust", "host replication someone all md5"), LEFT),
        (('host "all",replication all all md5',), ""),
        (("host replication /^ovia_ 10.0.0.0/8 scram-sha-256",), ""),
        (("host replication /^other_ 10.0.0.0/8 scram-sha-256",), LEFT),
        ((f"host replication +{OTHER_ROLE} samenet md5",), "is also a member"),
        (("host replication +nothing samenet md5",), LEFT),
        (("host replication all all reject", REPLICATION_LINE), "rejects, then SELECT pg_reload_conf(): "),
        ((REPLICATION_LINE, "host replication all all reject"), ""),
        ((REPLICATION_LINE, "host nonsense"), "pg_hba.conf, line 4: end-of-line before role specification"),
    ],
)
def test_a_missing_line_for_replication_is_asked_for(ground: Ground, lines: tuple[str, ...], said: str) -> None:
    made(ground)
    if OTHER_ROLE in said + str(lines):
        ground.execute(f"GRANT {OTHER_ROLE} TO {WAL_ROLE}")
    append(ground, *lines)
    found = made(ground)
    assert said in found
    assert bool(said) is bool(found)
    assert (REPLICATION_LINE in found) is (LEFT in found)


def test_settings_that_need_a_restart_are_told(full_bin_dir: Path) -> None:
    with running_cluster(full_bin_dir, wal_level="minimal", max_wal_senders="0", max_replication_slots="0") as cluster:
        said = made(Ground(cluster, full_bin_dir))
    for line in (
        "wal_level is minimal: ALTER SYSTEM SET wal_level = replica, then restart the server",
        "max_wal_senders is 0: ALTER SYSTEM SET max_wal_senders = 10, then restart the server",
        "max_replication_slots is 0: ALTER SYSTEM SET max_replication_slots = 10, then restart the server",
    ):
        assert f"{line}\n" in said

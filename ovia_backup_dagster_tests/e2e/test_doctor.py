"""``ovia-backup doctor`` as a newcomer runs it, who pastes its fixes until none is left."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.verdict import Expectations, Witness
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.verification import Verifier
from ovia_backup_dagster_tests.conftest import (
    PASSWORD,
    REPOSITORY,
    NewDatabase,
    PortCluster,
    execute,
    free_port,
    quiet,
    snapshot,
)
from ovia_backup_dagster_tests.defs.receiver import receiver
from ovia_backup_dagster_tests.doctor.support import repaired

PROGRAM = Path(sys.executable).with_name("ovia-backup")
#: Observations that only a person can fix, and no command of the doctor.
#: The drill: no restore can repeat the trick by which these databases have an extension's table.
#: The server: no program of the required release exists yet; what is in no dump is saved separately.
#: Restores: a person decides which role may restore, and the script needs a password.
NOT_PASTED = (
    "DAGSTER_HOME is not set here",
    "is on the same filesystem as /",
    "no restore drill has passed yet",
    "fixes vulnerabilities",
    "rows that did not come with it are in no dump",
    "no role here may restore",
)
GRANT_LARGE_OBJECTS = (
    "  DO $do$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE "
    "format('GRANT SELECT ON LARGE OBJECT %s TO %I', o, 'backup'); END LOOP; END $do$;"
)


@dataclass(frozen=True)
class Newcomer:
    """A person with a terminal, and the README's first lines.

    Attributes:
        settings: the exported variables.
        path: ``PATH``, with ``psql`` and ``ovia-backup`` in it.
    """

    settings: dict[str, str]
    path: str

    def run(self, command: list[str] | str, text: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "-c", command] if isinstance(command, str) else command,
            env={"PATH": self.path, "HOME": "/nonexistent", **self.settings, **more},
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def doctor(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = self.run([str(PROGRAM), "doctor", *arguments], **more)
        assert done.stderr == ""
        assert PASSWORD not in done.stdout
        return done

    def until_green(self) -> list[str]:
        """Paste the printed fixes until none is left; return the pasted texts, one a round."""
        rounds: list[str] = []
        while True:
            printed = self.doctor().stdout
            pasted = self._sql(printed) or self._command(printed)
            if not pasted:
                left = [line for line in printed.splitlines() if line.startswith(("fail ", "warn "))]
                assert all(any(words in line for words in NOT_PASTED) for line in left), printed
                return rounds
            rounds.append(pasted)
            assert len(rounds) < 6, rounds

    def _sql(self, printed: str) -> str:
        """Paste the SQL into the command printed above it; return the SQL."""
        _, found, statements = printed.partition("\nTo paste, as a superuser: ")
        if not found:
            return ""
        command, *lines = statements.splitlines()
        sql = "\n".join(line for line in lines if line.startswith("  "))
        # As a superuser, who needs no password on the socket.
        done = self.run(
            [*shlex.split(command), "--no-psqlrc", "--set=ON_ERROR_STOP=1"], sql + "\n", PGPASSWORD=PASSWORD
        )
        assert (done.returncode, done.stderr) == (0, ""), (command, sql, done.stderr)
        return sql

    def _command(self, printed: str) -> str:
        lines = printed.splitlines()
        for line, fix in pairwise(lines):
            if line.startswith(("fail ", "warn ")):
                for before in ("for a first try: ", " " * 15):
                    command = fix.partition(before)[2]
                    if command.startswith(("mkdir ", "chmod ", "ovia-backup dump", "ovia-backup verify")):
                        done = self.run(command)
                        assert done.returncode == 0, (command, done.stderr, done.stdout)
                        return command
        return ""


def newcomer(to: Connection, bin_dir: Path, volume: Path, **more: str) -> Newcomer:
    # The installed programs would be a failure: an archive's code could run in them.
    programs = volume.with_name("programs")
    bin_dir = programs if programs.exists() else repaired(bin_dir, programs)
    settings = {
        "POSTGRES_HOST": to.host,
        "POSTGRES_PORT": str(to.port),
        "POSTGRES_DB": to.database,
        "POSTGRES_USER": to.user,
        "BACKUP_DIR": str(volume),
        "PG_BIN_DIR": str(bin_dir),
        **more,
    }
    return Newcomer(settings, f"{bin_dir}:{PROGRAM.parent}:/usr/bin:/bin")


def what_is_in(to: Connection, bin_dir: Path, volume: Path) -> Witness:
    """The witness of a dump by this role: rows and their hashes."""
    catalog = Catalog(volume, to.database)
    backup = Dumper(catalog, to, Programs(bin_dir)).dump(log=quiet)
    verified = Verifier(catalog, Programs(bin_dir), Expectations((), False)).verify(backup, log=quiet)
    assert verified.judgement.good
    assert verified.witness is not None
    return verified.witness


@pytest.fixture
def role(full_server: PortCluster) -> Iterator[Connection]:
    """A role with a hostile name."""
    name = "we\"ird'; $do$ -- \\ \N{SNOWMAN}\t"
    quoted = sql_identifier(name)
    execute(full_server.connection(), f"CREATE ROLE {quoted} LOGIN NOINHERIT PASSWORD '{PASSWORD}'")
    yield full_server.connection(user=name)
    execute(full_server.connection(), f"DROP OWNED BY {quoted}", f"DROP ROLE {quoted}")


@pytest.mark.exhaustive
def test_pasted_fixes_lead_to_a_green_report(
    new_full_database: NewDatabase, full_server: PortCluster, full_bin_dir: Path, tmp_path: Path
) -> None:
    """As in the README, from a bare role on the sample database, over TCP with TLS and a password."""
    admin = new_full_database("ovia")
    execute(admin, f"CREATE ROLE backup LOGIN PASSWORD '{PASSWORD}'")
    volume = tmp_path / "the backups"
    try:
        with receiver() as people:
            tcp = replace(admin, host="127.0.0.1", port=full_server.port, user="backup")
            here = newcomer(tcp, full_bin_dir, volume, PGPASSWORD=PASSWORD, BACKUP_NOTIFY_URLS=people.url)
            first = here.doctor()
            assert first.returncode == 1
            assert first.stdout.splitlines()[-1].startswith("4 fail, 3 warn, ")
            rounds = here.until_green()
            assert here.doctor("--test-alert").returncode == 0
            assert people.titles == ["[ovia] a test of the backup alerts"]
        assert rounds == [
            '  GRANT pg_read_all_data TO "backup";\n  ALTER ROLE "backup" BYPASSRLS;\n' + GRANT_LARGE_OBJECTS,
            f"mkdir -p -m 700 '{volume}'",
            "ovia-backup dump && ovia-backup verify latest",
        ]
        mine = what_is_in(replace(admin, user="backup"), full_bin_dir, tmp_path / "mine")
        assert mine == what_is_in(admin, full_bin_dir, tmp_path / "superusers")
        assert mine.rows_by_table()["public.people"] == 200
    finally:
        execute(admin, "DROP OWNED BY backup", "DROP ROLE backup")


@pytest.mark.exhaustive
def test_pasted_fixes_work_for_hostile_names(
    role: Connection, new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path
) -> None:
    """With a role that does not inherit, and all kinds of objects, owners and names that a dump meets."""
    admin = new_full_database("o=via 'x'; --")
    quoted = sql_identifier(role.user)
    others = "CREATE TEMPORARY TABLE of_others AS SELECT 1 AS x"
    with running(admin, others):
        execute(
            admin,
            "CREATE EXTENSION hstore",
            "CREATE FOREIGN DATA WRAPPER nothing",
            'CREATE SCHEMA "s""; DROP"',
            'CREATE TABLE "s""; DROP"."t\x1b[31m\n\'; --" (x int)',
            f'ALTER TABLE "s""; DROP"."t\x1b[31m\n\'; --" OWNER TO {quoted}',
            'ALTER TABLE "s""; DROP"."t\x1b[31m\n\'; --" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
            "CREATE SCHEMA pgbouncer",
            "REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC",
            "CREATE SEQUENCE pgbouncer.only",
            "CREATE TABLE pgbouncer.parts (x int) PARTITION BY LIST (x)",
            "CREATE TABLE pgbouncer.one PARTITION OF pgbouncer.parts DEFAULT",
            "CREATE MATERIALIZED VIEW pgbouncer.seen AS SELECT * FROM people",
            "CREATE SERVER far FOREIGN DATA WRAPPER nothing",
            "CREATE FOREIGN TABLE far_away (x int) SERVER far",
            # An extension's table with rows that users change, and one without.
            "CREATE TABLE public.config (x int)",
            "INSERT INTO config VALUES (1), (2)",
            "CREATE TABLE public.internal (x int)",
            "ALTER EXTENSION hstore ADD TABLE public.config",
            "ALTER EXTENSION hstore ADD TABLE public.internal",
            "UPDATE pg_extension SET extconfig = ARRAY['public.config'::regclass::oid], "
            "extcondition = ARRAY['WHERE x = 1'] WHERE extname = 'hstore'",
            "SELECT lo_from_bytea(901, 'mine'), lo_from_bytea(902, 'ovia''s'), lo_from_bytea(903, 'nobody''s')",
            f"ALTER LARGE OBJECT 901 OWNER TO {quoted}",
            f"REVOKE SELECT ON LARGE OBJECT 901 FROM {quoted}",
            "ALTER LARGE OBJECT 902 OWNER TO ovia",
        )
        to = replace(admin, user=role.user)
        here = newcomer(
            to, full_bin_dir, tmp_path / "v", BACKUP_EXPECTED_TABLES="people", BACKUP_NOTIFY_URLS="json://x/"
        )
        printed = here.doctor().stdout
        assert "\x1b" not in printed
        assert "WITH INHERIT TRUE" in printed
        rounds = here.until_green()
        assert [text.split()[0] for text in rounds] == ["GRANT", "mkdir", "ovia-backup"]
        mine = what_is_in(to, full_bin_dir, tmp_path / "mine")
        assert mine == what_is_in(admin, full_bin_dir, tmp_path / "superusers")
        assert mine.rows_by_table()["public.config"] == 1
        assert "public.internal" not in mine.rows_by_table()


@contextmanager
def running(admin: Connection, statement: str) -> Iterator[None]:
    """Another session, open during the block, which has run a statement."""
    with psycopg.connect(host=admin.host, port=admin.port, dbname=admin.database, user=admin.user) as session:
        session.execute(statement.encode())
        session.commit()
        yield


@pytest.mark.exhaustive
def test_compatible_large_objects_need_no_grant(
    new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path
) -> None:
    admin = new_full_database()
    name = f"compatible_{admin.database}"
    execute(
        admin,
        f"CREATE ROLE {name} LOGIN BYPASSRLS IN ROLE pg_read_all_data",
        f"ALTER DATABASE {admin.database} SET lo_compat_privileges = on",
    )
    to = replace(admin, user=name)
    here = newcomer(to, full_bin_dir, tmp_path / "v", BACKUP_EXPECTED_TABLES="people", BACKUP_NOTIFY_URLS="json://x/")
    assert here.until_green()[0].startswith("mkdir ")
    mine = what_is_in(to, full_bin_dir, tmp_path / "mine")
    assert mine == what_is_in(admin, full_bin_dir, tmp_path / "superusers")
    assert mine.large_objects.count == 2


# ------------------------------------------------------------------------------------------ the command


def test_json_and_exit_codes(new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path) -> None:
    volume = tmp_path / "v"
    here = newcomer(new_full_database(), full_bin_dir, volume, BACKUP_EXPECTED_TABLES="people")
    done = here.doctor("--json")
    lines = json.loads(done.stdout)
    assert done.returncode == 1
    assert [line["text"] for line in lines if line["level"] == "fail"] == [
        f"the backup folder {volume} does not exist: BACKUP_DIR is wrong, or the volume is not mounted"
    ]
    assert {tuple(line) for line in lines} == {("area", "level", "text", "fix", "sql")}
    volume.mkdir(0o700)
    done = here.doctor("--json")
    assert done.returncode == 0
    assert {"warn", "ok"} == {line["level"] for line in json.loads(done.stdout)}
    assert snapshot(volume) == {}


def test_without_settings_the_doctor_still_checks_programs(full_bin_dir: Path) -> None:
    done = Newcomer({"PG_BIN_DIR": str(full_bin_dir)}, "/usr/bin:/bin").doctor()
    assert done.returncode == 1
    assert "fail settings  POSTGRES_HOST is not set" in done.stdout
    assert "ok   programs  pg_dump writes and pg_restore reads zstd:2" in done.stdout
    assert "To paste" not in done.stdout


@pytest.mark.exhaustive
def test_two_doctors_at_once_agree(new_full_database: NewDatabase, full_bin_dir: Path, tmp_path: Path) -> None:
    volume = tmp_path / "v"
    here = newcomer(new_full_database(), full_bin_dir, volume, BACKUP_EXPECTED_TABLES="people")
    assert here.run([str(PROGRAM), "dump"]).returncode == 0
    before = snapshot(volume)
    environment = {"PATH": here.path, **here.settings}
    command = [str(PROGRAM), "doctor"]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert snapshot(volume) == before


def test_the_health_check_needs_no_database(full_bin_dir: Path, tmp_path: Path) -> None:
    volume = tmp_path / "v"
    volume.mkdir(0o700)
    port = free_port()
    nowhere = Connection("127.0.0.1", free_port(), "ovia", "ovia")
    done = newcomer(nowhere, full_bin_dir, volume).doctor("--code-server", str(port))
    assert done.returncode == 1
    assert "ok   volume    the volume can be read; there is no backup yet" in done.stdout
    assert f"fail dagster   the code server on port {port} does not answer: " in done.stdout
    done = newcomer(nowhere, full_bin_dir, tmp_path / "none").doctor("--code-server", str(port), "--json")
    levels = {line["area"]: line["level"] for line in json.loads(done.stdout)}
    # The volume is a warning: a restart would not mount it, and would stop the sensor that must alert people.
    assert levels == {"settings": "ok", "volume": "warn", "dagster": "fail"}


def heartbeats(home: Path) -> int:
    """How many of the required daemons have written a heartbeat."""
    with contextlib.closing(sqlite3.connect(home / "history" / "runs.db")) as database:
        try:
            (count,) = database.execute(
                "SELECT count(*) FROM daemon_heartbeats WHERE daemon_type IN "
                "('SCHEDULER', 'SENSOR', 'QUEUED_RUN_COORDINATOR')"
            ).fetchone()
        except sqlite3.OperationalError:  # the table does not exist yet
            return 0
        return int(count)


@pytest.mark.exhaustive
def test_a_real_dg_dev_is_ok(full_bin_dir: Path, tmp_path: Path) -> None:
    """``dg dev`` writes the heartbeats and serves the code."""
    home, volume = tmp_path / "home", tmp_path / "v"
    (home / "history").mkdir(parents=True)
    volume.mkdir(0o700)
    (home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
    to = Connection("127.0.0.1", free_port(), "ovia", "ovia")
    here = newcomer(to, full_bin_dir, volume, DAGSTER_HOME=str(home))
    command = [
        str(PROGRAM.with_name("dg")),
        "dev",
        "-w",
        str(REPOSITORY / "workspace.yaml"),
        "-p",
        str(free_port()),
    ]

    def of_dagster() -> dict[str, str]:
        lines = json.loads(here.doctor("--json").stdout)
        return {line["text"]: line["level"] for line in lines if line["area"] == "dagster"}

    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env={"PATH": here.path, "HOME": str(tmp_path), **here.settings},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 90
            while heartbeats(home) < 3:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            found = of_dagster()
            assert set(found.values()) == {"ok"}
            assert "the daemon is alive" in found
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)

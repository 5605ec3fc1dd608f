"""``ovia-backup`` as a person or cron runs it: exit codes and output streams."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from ovia_backup_dagster import cli as command_line
from ovia_backup_dagster.cli.main import VERBS
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, execute, snapshot
from ovia_backup_dagster_tests.support.command_line import PROGRAM, Cli, made_earlier, one_line
from ovia_backup_dagster_tests.support.factories import drill_evidence, judged


@pytest.fixture
def process(cli: Cli) -> Cli:
    """The same settings, with each command in its own process."""
    return Cli(cli.settings)


def test_the_daily_chain_makes_and_keeps_a_backup(process: Cli, volume: Path) -> None:
    cli = process
    made = cli("dump")
    path = Path(made.stdout.strip())
    assert (made.returncode, path.parent) == (0, volume / "daily")
    assert "Next: ovia-backup verify" in made.stderr

    waiting = cli("status")  # the backup waits for its verification
    assert (waiting.returncode, "(not verified yet)" in waiting.stdout) == (0, True)
    verified = cli("verify")
    assert verified.returncode == 0, verified.stderr
    assert "is verified: 6,277 rows in 15 tables" in verified.stdout
    assert "public.people" in verified.stdout

    assert f"promoted to {volume / 'weekly'}" in cli("promote").stdout
    assert "has its weekly backup" in cli("promote").stdout
    assert "0 removed (0 B), 2 kept" in cli("prune").stdout

    fine = cli("status")
    assert fine.returncode == 0
    assert fine.stdout.startswith("BACKUP OK - the newest backup, ")
    assert " | age=" in fine.stdout
    listed = cli("list")
    assert listed.stdout.count("verified") >= 2
    assert "6,277" in listed.stdout


@pytest.mark.exhaustive
def test_promote_reads_the_backup_again_after_a_wait(cli: Cli, catalog: Catalog, tmp_path: Path) -> None:
    """Another process verifies the backup while the command waits for the lock."""
    assert [cli(command).returncode for command in ("dump", "verify", "promote", "dump")] == [0, 0, 0, 0]
    log = tmp_path / "promote.log"
    environment = {**os.environ, **cli.settings, "BACKUP_LOCK_WAIT_MINUTES": "1"}
    with catalog.lock("a test", datetime.now(UTC)), open(log, "wb") as output:
        promote = subprocess.Popen([str(PROGRAM), "promote"], env=environment, stdout=output, stderr=output)
        while "waiting for a test" not in log.read_text("utf-8"):
            assert promote.poll() is None, log.read_text("utf-8")
            time.sleep(0.05)
        judged(catalog, catalog.backups()[0])

    assert promote.wait(60) == 0, log.read_text("utf-8")
    assert "has its weekly backup" in log.read_text("utf-8")


def test_each_command_prints_json(cli: Cli) -> None:
    code, made = cli.json("dump")
    assert (code, made["state"], made["rows"]) == (0, "unproven", None)
    code, verified = cli.json("verify", str(made["name"]))
    assert (code, verified["state"], verified["rows"]) == (0, "proven", 6277)
    assert isinstance(verified["tables"], dict)
    assert verified["tables"]["public.people"] == 200
    assert cli.json("promote")[1]["promoted"] is True
    code, pruned = cli.json("prune")
    assert (code, pruned["held"], pruned["dry_run"]) == (0, None, False)
    code, status = cli.json("status")
    assert (code, status["status"], status["lock_held_by"]) == (0, "OK", None)
    listed = json.loads(cli("list", "--json").stdout)
    assert [entry["tier"] for entry in listed] == ["daily", "weekly"]

    name = str(listed[0]["name"])
    cli.settings.update(BACKUP_MONTHLY_KEEP="12", BACKUP_YEARLY_KEEP="1")
    code, promoted = cli.json("promote")
    assert (code, promoted["promoted"], promoted["weekly"]) == (0, True, None)
    assert promoted["promoted_to"] == {tier: name.replace("daily", tier) for tier in ("monthly", "yearly")}
    assert "weekly: the week of " in str(promoted["reason"])
    listed = json.loads(cli("list", "--json").stdout)
    assert [entry["tier"] for entry in listed] == ["daily", "weekly", "monthly", "yearly"]
    assert "4 kept" in cli("prune").stdout


@pytest.mark.parametrize("command", ["dump", "verify", "list", "promote", "prune", "drill"])
def test_without_a_host_every_command_refuses(command: str, cli: Cli, volume: Path) -> None:
    one_line(cli(command, POSTGRES_HOST=""), 1, "POSTGRES_HOST is not set", "make demo")
    assert not volume.exists()


def test_status_without_settings_is_unknown(cli: Cli) -> None:
    one_line(cli("status", POSTGRES_HOST=""), 3, "BACKUP UNKNOWN - ", "POSTGRES_HOST is not set")


def test_status_without_a_volume_is_unknown(cli: Cli) -> None:
    one_line(cli("status"), 3, "BACKUP UNKNOWN - ", "does not exist")


def test_status_without_backups_is_critical(cli: Cli, volume: Path) -> None:
    volume.mkdir()

    result = cli("status")

    assert result.returncode == 2
    assert "BACKUP CRITICAL - there is no backup" in result.stdout
    assert "likely cause: none was made yet, or the volume is not mounted" in result.stdout
    assert "run: ovia-backup dump" in result.stdout


def test_an_old_backup_makes_the_status_critical(cli: Cli, volume: Path) -> None:
    cli("dump")
    yesterday(volume, timedelta(hours=27))
    assert cli("verify").returncode == 0

    result = cli("status")

    assert result.returncode == 2
    assert "27 h" in result.stdout.replace("1 d 3 h", "27 h")
    assert "too old" in result.stdout


def yesterday(volume: Path, by: timedelta) -> None:
    """Redate the only backup to ``by`` earlier."""
    dump = next((volume / "daily").glob("*.dump"))
    made_earlier(dump, by)


def test_a_damaged_backup_is_bad_for_every_command(cli: Cli, volume: Path) -> None:
    cli("dump")
    dump = next((volume / "daily").glob("*.dump"))
    content = bytearray(dump.read_bytes())
    content[len(content) // 2] ^= 1
    dump.write_bytes(content)

    result = cli("verify")

    assert result.returncode == 1
    assert "is bad" in result.stdout
    assert "was altered: its SHA-256" in result.stdout
    assert cli("status").returncode == 2
    one_line(cli("prune"), 1, "nothing was removed", "is bad")
    refused = cli("promote")
    assert (refused.returncode, "only a verified backup is promoted" in refused.stdout) == (1, True)
    assert dump.exists()


def test_a_wrong_password_fails_in_one_line(cli: Cli, server: PortCluster, volume: Path) -> None:
    result = cli("dump", POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(server.port), PGPASSWORD=PASSWORD + "x")

    one_line(result, 1, "password authentication failed", "POSTGRES_PASSWORD_FILE")
    assert list((volume / "daily").iterdir()) == []


def test_a_password_is_read_from_a_file(cli: Cli, server: PortCluster, tmp_path: Path, volume: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")

    tcp = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(server.port), "POSTGRES_PASSWORD_FILE": str(secret)}
    result = cli("dump", **tcp)

    assert result.returncode == 0, result.stderr
    assert not [path for path in volume.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    one_line(cli("dump", **tcp | {"POSTGRES_PASSWORD_FILE": "/no/such/file"}), 1, "/no/such/file", "cannot be read")


def test_the_password_is_in_no_command_line(cli: Cli, server: PortCluster, database: Connection) -> None:
    """Read from /proc while pg_dump waits for a lock."""
    tcp = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(server.port), "PGPASSWORD": PASSWORD}
    with psycopg.connect(host=database.host, port=database.port, dbname=database.database, user=database.user) as other:
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        with subprocess.Popen([str(PROGRAM), "dump"], env=cli.environment(**tcp), stderr=subprocess.PIPE) as process:
            try:
                lines = until(lambda: command_lines(process.pid, "pg_dump"))
            finally:
                process.terminate()
    assert lines
    assert not [line for line in lines if PASSWORD in line]


def command_lines(parent: int, program: str) -> list[str]:
    """The command lines of a process and its children, once one of them is ``program``."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    lines = []
    for pid in (str(parent), *children):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a child has ended since
            lines.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return lines if any(program in line.split(" ")[0] for line in lines[1:]) else []


def until(found: Callable[[], list[str]]) -> list[str]:
    deadline = time.monotonic() + 30
    while not (lines := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return lines


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POSTGRES_HOST", f"postgres://u:{PASSWORD}@h/db"),
        ("POSTGRES_HOST", f"host=h password={PASSWORD}"),
        ("POSTGRES_DB", f"dbname=x password={PASSWORD}"),
        ("BACKUP_DIR", "backups"),
    ],
)
def test_a_value_in_the_wrong_variable_names_the_variable(variable: str, value: str, cli: Cli) -> None:
    one_line(cli("dump", **{variable: value}), 1, variable)


def test_a_dump_from_the_future_is_reported_with_its_fix(cli: Cli, volume: Path) -> None:
    cli("dump")
    yesterday(volume, timedelta(days=-30))

    result = cli("status")

    assert result.returncode == 2
    dump = next((volume / "daily").glob("*.dump"))
    assert f"move {dump.name} out of the folder" in result.stdout
    for path in (volume / "daily").glob("*"):
        path.unlink()
    cli("dump")
    assert cli("verify").returncode == 0
    assert cli("status").returncode == 0


def test_usage_errors_exit_with_2(cli: Cli) -> None:
    assert cli("dumb").returncode == 2
    assert cli("prune", "--dry-run", "--release", "x").returncode == 2
    assert cli("drill", "--where", "production").returncode == 2
    assert cli("drill", "--jobs", "1").returncode == 2
    assert cli("drill", "--jobs", "65").returncode == 2


@pytest.mark.parametrize("name", ["nope", "'; rm -rf ~; '.dump", "../nope.dump", "a\nb", "%2e%2e"])
def test_an_unknown_backup_is_refused(name: str, cli: Cli, volume: Path) -> None:
    cli("dump")
    before = snapshot(volume)

    one_line(cli("verify", name), 1, "no backup called", "ovia-backup list")

    assert snapshot(volume) == before


def test_a_backup_elsewhere_is_verified_by_its_path(cli: Cli, volume: Path, tmp_path: Path) -> None:
    """Scenario 2 of the runbook: the dump was copied to another host, without its sidecars."""
    cli("dump")
    dump = next((volume / "daily").glob("*.dump"))
    copied = tmp_path / "backup.dump"
    copied.write_bytes(dump.read_bytes())
    os.utime(copied, (0, 0))

    result = cli("verify", str(copied))

    assert result.returncode == 0, result.stdout + result.stderr
    assert "6,277 rows" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"backups", "backup.dump"}  # nothing is written there
    copied.write_bytes(b"no archive")
    os.utime(copied, (0, 0))
    assert cli("verify", str(copied)).returncode == 1


@pytest.mark.exhaustive
def test_a_dry_run_of_pruning_lists_its_removals(cli: Cli, volume: Path) -> None:
    for day in range(9, 0, -1):
        cli("dump")
        young = max((volume / "daily").glob("*.dump"))
        assert cli("verify", made_earlier(young, timedelta(days=day))).returncode == 0
    before = snapshot(volume)

    planned = cli("prune", "--dry-run")
    assert planned.stdout.count("would remove daily/") == 2
    assert "2 to remove, 7 to keep" in planned.stdout
    assert snapshot(volume) == before
    assert "2 removed" in cli("prune").stdout
    assert len(list((volume / "daily").glob("*.dump"))) == 7
    assert "0 removed" in cli("prune").stdout


def test_a_loss_of_rows_holds_until_it_is_released(cli: Cli, volume: Path, database: Connection) -> None:
    cli("dump")
    yesterday(volume, timedelta(days=1, hours=1))
    cli("verify")
    held = next((volume / "daily").glob("*.dump"))
    execute(database, "DELETE FROM kpi_snapshots")
    cli("dump")

    odd = cli("verify")

    assert odd.returncode == 0
    assert "odd: table public.kpi_snapshots shrank from 160 to 0 rows" in odd.stdout
    assert "held: the last before rows were lost" in cli("list").stdout
    released = cli("prune", "--release", held.name)
    assert released.returncode == 0, released.stderr
    one_line(cli("prune", "--release", held.name), 1, "is not on hold")


_HEAVY = {"dagster", "dagster_webserver", "docker", "apprise"}


@pytest.mark.parametrize(
    ("argument", "heavy"),
    [("--help", _HEAVY | {"psycopg", "pydantic", "rich"}), ("list", _HEAVY), ("status", _HEAVY)],
)
def test_quick_commands_import_no_heavy_package(cli: Cli, argument: str, heavy: set[str]) -> None:
    code = (
        "import sys; from ovia_backup_dagster.cli.main import main\n"
        f"try:\n    main([{argument!r}])\nexcept SystemExit: pass\n"
        f"found = set({sorted(heavy)!r}) & sys.modules.keys()\n"
        "assert not found, found"
    )
    environment = {"PATH": os.environ["PATH"], **cli.settings}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_each_verb_is_found_and_has_a_help(cli: Cli) -> None:
    for verb in VERBS:
        assert cli(verb, "--help").stdout.startswith(f"Usage: ovia-backup {verb} ")
    package = Path(str(command_line.__file__)).parent
    written = {
        path.stem for path in package.glob("*.py") if re.search(r'@click\.(command|group)\("', path.read_text("utf-8"))
    }
    # Two verbs of a group, in modules of their own.
    assert written - {"wal_timeline", "wal_verify"} == {module.partition(":")[0] for module in VERBS.values()}


def test_a_hostile_name_does_not_reach_the_terminal(cli: Cli, database: Connection) -> None:
    execute(database, 'CREATE TABLE "\x1b[31mred\x07" (a int)')
    cli("dump")

    result = cli("verify")

    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout


@pytest.mark.parametrize(("command", "code"), [("status", 3), ("list", 1)])
def test_output_that_cannot_be_written_is_an_error(command: str, code: int, cli: Cli) -> None:
    assert cli("dump").returncode == 0

    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [str(PROGRAM), command], env=cli.environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert ended.returncode == code
    assert ended.stderr == "ovia-backup: cannot print: No space left on device\n"


@pytest.mark.exhaustive
def test_a_closed_stream_stops_no_command(cli: Cli) -> None:
    """All commands with all streams closed; one with little and one with much output with only stdout closed."""
    for command in ("dump", "verify", "list", "drill", "drill --history", "status", "doctor", "--help"):
        for closed in (">&-", "<&- >&- 2>&-") if command in ("dump", "list") else ("<&- >&- 2>&-",):
            shell = f"exec {shlex.quote(str(PROGRAM))} {command} {closed}"
            ended = subprocess.run(["sh", "-c", shell], env=cli.environment(), capture_output=True, text=True)
            assert ended.returncode == 0 or (command == "doctor" and ended.returncode == 1), (command, ended)
            assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.exhaustive
def test_an_ascii_terminal_gets_readable_output(process: Cli) -> None:
    cli = process
    assert [cli(command, LOGNAME="Zoë").returncode for command in ("dump", "drill")] == [0, 0]
    told = cli("drill", "--history", PYTHONIOENCODING="ascii")
    assert (told.returncode, told.stderr, "Zo\\xeb on" in told.stdout) == (0, "", True)
    named = cli("verify", "Zoë", PYTHONIOENCODING="ascii")
    one_line(named, 1, "Zo")


def test_ctrl_c_ends_a_dump_and_leaves_nothing(cli: Cli, database: Connection, volume: Path) -> None:
    with (
        psycopg.connect(host=database.host, port=database.port, dbname=database.database, user=database.user) as other,
        subprocess.Popen([str(PROGRAM), "dump"], env=cli.environment(), stderr=subprocess.PIPE, text=True) as dump,
    ):
        other.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE")
        until(lambda: command_lines(dump.pid, "pg_dump"))
        dump.send_signal(signal.SIGINT)
        _, stderr = dump.communicate(timeout=30)

    assert dump.returncode == 130
    assert stderr.splitlines()[-1] == "ovia-backup: ended by Ctrl-C; nothing is left unfinished"
    assert list((volume / "daily").iterdir()) == []


# ---------------------------------------------------------------- drills


def test_a_drill_prints_its_result_and_writes_evidence(cli: Cli, volume: Path) -> None:
    volume.mkdir()
    one_line(cli("drill"), 1, "there is no backup to restore", "Next: ovia-backup dump")
    nothing = cli("drill", "--history")
    assert (nothing.returncode, nothing.stdout) == (0, "no drill yet\n")
    assert "Next: ovia-backup drill" in nothing.stderr
    assert cli.json("drill", "--history") == (0, [])
    assert [cli(command).returncode for command in ("dump", "verify")] == [0, 0]
    [dump] = (volume / "daily").glob("*.dump")
    assert "  proven" not in cli("list").stdout
    before = cli("status")
    assert before.returncode == 0
    assert "; no restore drill has passed yet; one is due by " in before.stdout

    drilled = cli("drill", DRILL_CHECK_COMMAND='echo said by the check; test -n "$DATABASE_URL"')

    assert drilled.returncode == 0, drilled.stderr
    lines = drilled.stdout.splitlines()
    assert [line[9:].split()[0] for line in lines[:-2]] == [check.value for check in Check.at(Stage.DRILL)]
    assert {line[:9].strip() for line in lines[:-2]} == {"passed", "odd", "not made"}
    assert "passed   own_check_passes                      it ended with code 0" in lines
    assert lines[-2].startswith(f"{dump.name} restores: 6,277 rows in 21 tables; recovery time to expect: ")
    [page] = (volume / "drills").glob("*.md")
    assert lines[-1] == f"evidence: {page}"
    assert "restoring " in drilled.stderr
    assert "said by the check" in drilled.stderr
    assert "  proven" in cli("list").stdout
    [listed] = json.loads(cli("list", "--json").stdout)
    assert listed["drilled"] is True
    after = cli("status")
    assert after.returncode == 0
    assert re.search(rf"; the last restore drill that passed was \d+ s ago, of {dump.name} \|", after.stdout)
    code, status = cli.json("status")
    assert (code, status["status"]) == (0, "OK")
    drills = status["drills"]
    assert isinstance(drills, dict)
    assert (drills["trouble"], drills["recovery_seconds"] > 0) == (None, True)


@pytest.mark.exhaustive
def test_a_drill_prints_json_and_its_history(cli: Cli, volume: Path) -> None:
    assert [cli(command).returncode for command in ("dump", "verify", "promote")] == [0, 0, 0]
    [weekly] = (volume / "weekly").glob("*.dump")

    code, first = cli.json("drill", weekly.name, "--jobs", "3")

    assert (code, first["passed"], first["tier"], first["jobs"]) == (0, True, "weekly", 3)
    assert first["launched_by"] == f"{getpass.getuser()} on {socket.gethostname()}"
    failed = cli("drill", DRILL_CHECK_COMMAND="exit 3")
    assert failed.returncode == 1
    assert "failed   own_check_passes                      DRILL_CHECK_COMMAND ended with code 3" in failed.stdout
    assert f"it is not proven that {weekly.name.replace('weekly', 'daily')} restores" in failed.stdout
    assert re.search(r"Next: read \$BACKUP_DIR/drills/\S+\.md; fix the cause; then: ovia-backup drill ", failed.stderr)
    assert "Traceback" not in failed.stderr
    kept = {path: path.read_bytes() for path in (volume / "drills").glob("20*")}
    code, second = cli.json("drill", DRILL_CHECK_COMMAND="exit 4")
    assert (code, second["passed"]) == (1, False)
    # Evidence is never rewritten.
    assert kept == {path: path.read_bytes() for path in kept}

    code, history = cli.json("drill", "--history")
    assert code == 0
    assert [drill["passed"] for drill in history] == [False, False, True]
    assert history[0] == second
    assert history[2] == first
    told = cli("drill", "--history")
    assert told.returncode == 0
    rows = told.stdout.splitlines()
    # One line for each drill; oddities are counted.
    assert len(rows) == 4
    assert [row.split()[3] for row in rows[1:]] == ["failed", "failed", "passed"]
    assert weekly.name in rows[3]
    assert "code 4" in rows[1]
    assert "code 3" in rows[2]
    # Roles of other tests on this server may be odd, too.
    odd = sum(line["result"] == "odd" for line in first["lines"])
    assert rows[3].rstrip().endswith(f" {odd} odd")
    # Another database on the same volume has drills of its own.
    assert cli.json("drill", "--history", POSTGRES_DB="another") == (0, [])
    assert "  proven" in cli("list").stdout  # the weekly backup is, the daily one no longer
    assert cli("list").stdout.count("  proven") == 1


@pytest.mark.exhaustive
def test_a_kept_copy_can_be_queried_and_removed(process: Cli, volume: Path) -> None:
    """As processes: the server outlives the command that started it."""
    cli = process
    folder = Path(tempfile.mkdtemp(prefix="ovia-k-", dir="/tmp"))
    try:
        assert [cli(command).returncode for command in ("dump", "verify")] == [0, 0]
        folder.chmod(0o711)  # under root, the server runs as another account
        drilled = cli("drill", "--keep", DRILL_DIR=str(folder))
        assert drilled.returncode == 0, drilled.stderr
        look = drilled.stdout.splitlines()[-1].removeprefix("the copy is kept until the next drill: ")
        command = f"{cli.settings['PG_BIN_DIR']}/{look} --tuples-only --command='SELECT count(*) FROM people'"
        asked = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        assert asked.stdout.strip() == "200"
        [copy] = folder.glob("ovia-drill-*")

        removed = cli("drill", "--remove-copy", DRILL_DIR=str(folder))

        assert (removed.returncode, removed.stdout) == (0, f"removed {copy}\n")
        assert not copy.exists()
        assert subprocess.run(command, shell=True, capture_output=True, check=False).returncode != 0
        again = cli("drill", "--remove-copy", DRILL_DIR=str(folder))
        assert (again.returncode, again.stdout) == (0, "")
        newest = max((volume / "drills").glob("*.json"))
        assert json.loads(newest.read_text())["kept"] == look
    finally:
        cli("drill", "--remove-copy", DRILL_DIR=str(folder))
        shutil.rmtree(folder)


@pytest.mark.exhaustive
def test_a_kept_scratch_database_can_be_removed(cli: Cli, database: Connection) -> None:
    name = f"{database.database}_restore_test"

    def there() -> bool:
        with psycopg.connect(host=database.host, port=database.port, dbname="postgres", user="postgres") as session:
            return session.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is not None

    assert [cli(command).returncode for command in ("dump", "verify")] == [0, 0]
    drilled = cli("drill", "--where", "database", "--keep")
    assert drilled.returncode == 0, drilled.stderr
    assert there()
    removed = cli("drill", "--where", "database", "--remove-copy")
    assert (removed.returncode, removed.stdout) == (0, f"removed {name}\n")
    assert not there()
    execute(replace(database, database="postgres"), f'CREATE DATABASE "{name}"')
    try:
        one_line(cli("drill", "--where", "database", "--remove-copy"), 1, "was not made by a drill", "DROP DATABASE")
        refused = cli("drill", "--where", "database")
        assert refused.returncode == 1
        assert f"database {name} exists and was not made by a drill" in refused.stdout
        assert there()
    finally:
        execute(replace(database, database="postgres"), f'DROP DATABASE "{name}"')


@pytest.mark.parametrize("name", ["nope", "../nope.dump", "a\nb"])
def test_a_drill_of_an_unknown_backup_is_refused(name: str, cli: Cli, volume: Path) -> None:
    cli("dump")
    before = snapshot(volume)

    one_line(cli("drill", name), 1, "no backup called", "ovia-backup list")

    assert snapshot(volume) == before


def test_a_failed_or_overdue_drill_is_a_warning(cli: Cli, catalog: Catalog, database: Connection) -> None:
    """A late backup is critical."""
    assert [cli(command).returncode for command in ("dump", "verify")] == [0, 0]
    now = datetime.now(UTC).replace(microsecond=0)
    drill_evidence(catalog, now - timedelta(days=40))
    overdue = cli("status")
    assert overdue.returncode == 1
    assert overdue.stdout.startswith("BACKUP WARNING - the newest backup, ")
    assert "; the last restore drill that passed is 40 d old, more than 35 d | age=" in overdue.stdout
    assert "drill: restore_drill_schedule is off, or its runs do not end" in overdue.stdout
    assert "Next: launch restore_drill_job in the Dagster UI, or run: ovia-backup drill" in overdue.stdout
    assert cli("status", DRILL_MAX_AGE_DAYS="41").returncode == 0

    drill_evidence(catalog, now - timedelta(days=2), passed=False)
    failed = cli("status")
    assert failed.returncode == 1
    assert re.search(r"BACKUP WARNING - .*; the restore drill of \S+ failed \| age=", failed.stdout)
    assert "drill: restored_without_errors: it does not restore\n" in failed.stdout
    code, status = cli.json("status")
    drills = status["drills"]
    assert isinstance(drills, dict)
    assert (code, status["status"]) == (1, "WARNING")
    assert " failed: restored_without_errors: it does not restore. Next: " in str(drills["trouble"])
    assert drills["last_passed"] == (now - timedelta(days=40)).isoformat()
    late = cli("status", BACKUP_MAX_AGE_HOURS="0.00001")
    assert late.returncode == 2
    assert re.search("BACKUP CRITICAL - .* too old .*; the restore drill of ", late.stdout)
    assert late.stdout.count("Next: ") == 2

    drill_evidence(catalog, now)
    assert cli("status").returncode == 0

"""The doctor's observations of Dagster: instances on disk, a daemon's heartbeats, and code servers."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import StepMaterializationData
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorData,
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat
from dagster._grpc.client import DagsterGrpcClient
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster_shared.error import SerializableErrorInfo
from sqlalchemy.exc import DatabaseError

from ovia_backup_dagster.core.human_text import duration
from ovia_backup_dagster.defs import instance_report as defs_instance
from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.defs.database_names import DatabaseNames
from ovia_backup_dagster.defs.policies import run_tags
from ovia_backup_dagster.doctor import code_server
from ovia_backup_dagster.doctor import dagster_instance as doctor_instance
from ovia_backup_dagster.doctor.report import Area, Observation, Severity
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster_tests.conftest import REPOSITORY, free_port
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.support import Location, about, checks, failure, load, materialized
from ovia_backup_dagster_tests.doctor.support import as_it_should, levels, repaired, the

pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

OURS = load({"POSTGRES_HOST": "127.0.0.1"})
KINDS = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A DAGSTER_HOME with our settings."""
    home = tmp_path / "home of dagster"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
    return home


@pytest.fixture
def disk(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as found:
        yield found


def beat(found: dg.DagsterInstance, *kinds: str, ago: timedelta = timedelta(0), error: str | list[str] = "") -> None:
    errors = [SerializableErrorInfo(text, [], None) for text in ([error] if isinstance(error, str) else error) if text]
    for kind in kinds or KINDS:
        at = (datetime.now(UTC) - ago).timestamp()
        found.add_daemon_heartbeat(DaemonHeartbeat(at, kind, "a daemon", errors))


def examined(found: dg.DagsterInstance, settings: Settings | None = None) -> list[Observation]:
    lines = list(defs_instance.instance_lines(found, settings or OURS))
    assert {line.area for line in lines} == {Area.DAGSTER}
    return lines


def test_a_running_deployment_is_ok(disk: dg.DagsterInstance) -> None:
    beat(disk)
    lines = examined(disk)
    assert as_it_should(lines)
    assert [line.text for line in lines] == [
        "the daemon is alive",
        "daily_backup_schedule is on",
        "restore_drill_schedule is on",
        "backup_freshness_sensor is on",
        "history_pruning_schedule is on",
        "one run at a time works on a volume (pool backup_volume, tag ovia/volume)",
        "runs that do not start, or do not end in time, are marked failed",
    ]


def test_a_daemon_that_never_ran_is_a_failure(disk: dg.DagsterInstance) -> None:
    line = the(examined(disk), "the daemon does not run, so no backup and no alert is automatic: ")
    assert line.level is Severity.FAIL
    assert line.text.endswith("schedules (never seen), sensors (never seen), queued runs (never seen)")
    assert "with the same DAGSTER_HOME: dagster-daemon run" in line.fix


def test_a_silent_daemon_is_a_failure(disk: dg.DagsterInstance) -> None:
    beat(disk, ago=timedelta(minutes=4))
    assert the(examined(disk), "the daemon is alive").level is Severity.OK
    beat(disk, "SENSOR", ago=timedelta(minutes=7))
    line = the(examined(disk), "the daemon does not run")
    assert (line.level, line.text.endswith(": sensors (silent for 7 min)")) == (Severity.FAIL, True)


def test_an_error_of_a_daemon_is_a_failure(disk: dg.DagsterInstance) -> None:
    beat(disk)
    beat(disk, "SCHEDULER", error="Exception: the code server\nis gone\n")
    line = the(examined(disk), "the daemon for schedules fails: Exception: the code server is gone")
    assert (line.level, line.fix) == (Severity.FAIL, "see the log of dagster-daemon")


def test_a_code_server_that_restarts_is_a_warning(disk: dg.DagsterInstance) -> None:
    """It restarts at each deployment, and the doctor's container must not be restarted for that."""
    with pytest.raises(DagsterUserCodeUnreachableError) as raised:
        DagsterGrpcClient(host="127.0.0.1", port=free_port()).list_repositories()
    away = serializable_error_info_from_exc_info((raised.type, raised.value, raised.tb)).message
    beat(disk)
    beat(disk, "SENSOR", error=away)
    line = the(examined(disk), "within the last five minutes the daemon for sensors found no code server")
    assert (line.level, "see the log of the code server" in line.fix) == (Severity.WARN, True)
    # Other failures stay failures, also a code server that exists but does not answer in time.
    for other in ("Exception: a bug", away.replace("UNAVAILABLE", "DEADLINE_EXCEEDED")):
        beat(disk, "SENSOR", error=[away, other])
        assert the(examined(disk), f"the daemon for sensors fails: {other.strip()}").level is Severity.FAIL


@pytest.mark.parametrize(
    ("name", "kind", "loss", "command"),
    [
        ("daily_backup_schedule", InstigatorType.SCHEDULE, "no backup is made automatically", "schedule"),
        (
            "restore_drill_schedule",
            InstigatorType.SCHEDULE,
            "no drill shows whether backups restore",
            "schedule",
        ),
        ("history_pruning_schedule", InstigatorType.SCHEDULE, "Dagster's history grows forever", "schedule"),
        ("backup_freshness_sensor", InstigatorType.SENSOR, "no one is notified when backups fail", "sensor"),
        ("base_backup_schedule", InstigatorType.SCHEDULE, "no base backup is made automatically", "schedule"),
        ("pitr_drill_schedule", InstigatorType.SCHEDULE, "no drill shows whether base backups and WAL", "schedule"),
    ],
)
def test_a_trigger_that_is_switched_off_is_reported(
    disk: dg.DagsterInstance, name: str, kind: InstigatorType, loss: str, command: str
) -> None:
    target = LoadableTargetOrigin(module_name="ovia_backup_dagster.definitions")
    location = InProcessCodeLocationOrigin(target, location_name="ovia_backup_dagster")
    origin = RemoteRepositoryOrigin(location, "__repository__").get_instigator_origin(name)
    data: InstigatorData | None = ScheduleInstigatorData("0 3 * * *") if command == "schedule" else None
    disk.add_instigator_state(InstigatorState(origin, kind, InstigatorStatus.STOPPED, data))
    on = OURS.model_copy(update={"pitr_enabled": True})
    line = the(examined(disk, on), f"{name} is switched off in code location ovia_backup_dagster: {loss}")
    level = Severity.WARN if name == "history_pruning_schedule" else Severity.FAIL
    assert (line.level, line.fix.endswith(f"dagster {command} start -l ovia_backup_dagster {name}")) == (level, True)


def seen_run(found: dg.DagsterInstance, location: str, settings: Settings) -> dg.DagsterRun:
    """A run of that code location that materialized the daily dump."""
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__"), "daily_backup_job"
    )
    python = RepositoryPythonOrigin("python", ModuleCodePointer("ovia_backup_dagster.definitions", "defs"))
    run = found.create_run_for_job(
        build_defs(settings).resolve_job_def("daily_backup_job"),
        tags=run_tags(settings),
        remote_job_origin=origin,
        job_code_origin=JobPythonOrigin("daily_backup_job", python),
    )
    key = DatabaseNames.of(settings).key("daily_dump")
    found.report_dagster_event(
        dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name="daily_backup_job",
            event_specific_data=StepMaterializationData(dg.AssetMaterialization(key)),
        ),
        run_id=run.run_id,
    )
    return run


def switched_off(found: dg.DagsterInstance, location: str, name: str = "daily_backup_schedule") -> None:
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
    data: InstigatorData = ScheduleInstigatorData("0 3 * * *")
    state = InstigatorState(
        repository.get_instigator_origin(name), InstigatorType.SCHEDULE, InstigatorStatus.STOPPED, data
    )
    found.add_instigator_state(state)


def test_another_databases_schedule_is_not_ours(disk: dg.DagsterInstance) -> None:
    """Two code locations have triggers of the same names; the newest run says which of them is ours."""
    other = load({"POSTGRES_HOST": "127.0.0.1", "BACKUP_ASSET_PREFIX": "crm"})
    seen_run(disk, "ours", OURS)
    seen_run(disk, "theirs", other)
    switched_off(disk, "theirs")
    assert the(examined(disk), "daily_backup_schedule is on").level is Severity.OK
    line = the(
        defs_instance.instance_lines(disk, other),
        "daily_backup_schedule is switched off: no backup is made automatically",
    )
    assert line.fix.endswith("dagster schedule start -l theirs daily_backup_schedule")
    assert not [line for line in examined(disk) if "share the asset" in line.text]


def test_two_code_locations_with_one_asset_are_a_warning(disk: dg.DagsterInstance) -> None:
    """As when the second location's BACKUP_ASSET_PREFIX was forgotten."""
    other = load({"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "other"})
    seen_run(disk, "ours", OURS)
    seen_run(disk, "ours", OURS)
    assert not [line for line in examined(disk) if "share the asset" in line.text]
    seen_run(disk, "theirs", other)
    line = the(examined(disk), "the code locations ours and theirs share the asset daily_dump: ")
    assert (line.level, "set BACKUP_ASSET_PREFIX for all but one" in line.fix) == (Severity.WARN, True)


def test_the_checked_pool_has_our_prefix(disk: dg.DagsterInstance) -> None:
    settings = load({"POSTGRES_HOST": "127.0.0.1", "BACKUP_ASSET_PREFIX": "crm"})
    disk.event_log_storage.set_concurrency_slots("backup_volume", 3)
    assert the(defs_instance.instance_lines(disk, settings), "(pool crm_backup_volume, ").level is Severity.OK
    disk.event_log_storage.set_concurrency_slots("crm_backup_volume", 2)
    assert the(defs_instance.instance_lines(disk, settings), "(pool crm_backup_volume: limit 2;").level is Severity.WARN


def test_missing_limits_and_run_monitoring_are_a_warning(tmp_path: Path) -> None:
    with dg.DagsterInstance.from_config(str(tmp_path)) as plain:
        lines = examined(plain)
    line = the(lines, "runs on one volume may overlap (pool backup_volume: limit None; tag ovia/volume)")
    assert (line.level, "copy this project's dagster.yaml into $DAGSTER_HOME" in line.fix) == (Severity.WARN, True)
    line = the(lines, "stays 'started' forever")
    assert (line.level, "copy this project's dagster.yaml" in line.fix) == (Severity.WARN, True)


def test_a_pools_own_limit_counts(disk: dg.DagsterInstance) -> None:
    disk.event_log_storage.set_concurrency_slots("backup_volume", 3)
    assert the(examined(disk), "runs on one volume may overlap (pool backup_volume: limit 3").level is Severity.WARN


def test_an_instance_without_history_is_a_warning() -> None:
    with dg.DagsterInstance.ephemeral() as forgetful:
        (line,) = examined(forgetful)
    assert (line.level, line.text.startswith("Dagster keeps no history")) == (Severity.WARN, True)
    assert "set DAGSTER_HOME" in line.fix


def test_a_schedule_that_dagster_refuses_is_a_failure(disk: dg.DagsterInstance) -> None:
    # Bypasses our own validation, as an expression would that a later Dagster refuses.
    settings = load({"POSTGRES_HOST": "127.0.0.1"}).model_copy(update={"backup_schedule": "99 99 * * *"})
    line = the(defs_instance.instance_lines(disk, settings), "BACKUP_SCHEDULE: '99 99 * * *' is not a cron expression")
    assert (line.level, "'0 3 * * *'" in line.fix) == (Severity.FAIL, True)


# ------------------------------------------------------------------------------------------ from the command line


def test_an_unset_dagster_home_is_a_warning() -> None:
    (line,) = doctor_instance.look_at_instance()
    assert (line.level, line.text) == (Severity.WARN, "not checked: DAGSTER_HOME is not set here")
    assert line.fix.startswith("export DAGSTER_HOME=")


def test_a_child_process_reports_the_same(
    home: Path, disk: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(disk, ago=timedelta(minutes=20))
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("POSTGRES_HOST", "127.0.0.1")
    lines = list(doctor_instance.look_at_instance())
    assert [line.as_dict() for line in lines] == [line.as_dict() for line in examined(disk)]
    assert f"silent for {duration(timedelta(minutes=20))}" in the(lines, "the daemon does not run").text


@pytest.mark.parametrize("how", ["no folder", "no database", "no yaml"])
def test_an_unusable_instance_is_a_failure(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    if how == "no folder":
        home = home / "none"
        why = "is not a directory or does not exist"
    elif how == "no database":
        (home / "history").mkdir()
        (home / "history" / "runs.db").write_bytes(b"no database, and long enough to be none")
        why = "(sqlite3.DatabaseError) file is not a database"
    else:
        (home / "dagster.yaml").write_text("storage: [")
        why = "expected the node content"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    defs_instance.main()
    (line,) = map(Observation.from_dict, json.loads(capsys.readouterr().out))
    assert (line.level, line.text.startswith(f"the instance in DAGSTER_HOME={home} cannot be used: ")) == (
        Severity.FAIL,
        True,
    )
    assert why in line.text
    assert "Background" not in line.text
    assert line.fix.startswith(f"ls -la '{home}'; ")


@pytest.mark.parametrize("statement", ["PRAGMA table_info(runs)", None], ids=["of a statement", "of a connection"])
def test_a_storage_error_is_shown_without_statement_and_link(statement: str | None) -> None:
    error = DatabaseError(statement, None, sqlite3.DatabaseError("file is not\na database"))
    assert "Background on" in str(error)
    assert defs_instance._unusable(error).text.endswith("(sqlite3.DatabaseError) file is not a database")


def test_a_hanging_storage_is_a_failure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is a FIFO that no process writes to."""
    (home / "dagster.yaml").unlink()
    os.mkfifo(home / "dagster.yaml")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setattr(doctor_instance, "TIMEOUT_SECONDS", 1)
    (line,) = doctor_instance.look_at_instance()
    assert (line.level, line.text) == (Severity.FAIL, "its storage did not answer in 1 s")
    assert str(home) in line.fix


def test_a_child_process_that_dies_is_a_failure(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setattr(doctor_instance, "MODULE", "ovia_backup_dagster.no_such_module")
    (line,) = doctor_instance.look_at_instance()
    assert (line.level, "No module named" in line.text) == (Severity.FAIL, True)


def test_an_observation_survives_its_dictionary_form() -> None:
    line = Observation(Area.RIGHTS, Severity.FAIL, "what", "how", ("SELECT 1;", "SELECT 2;"))
    assert Observation.from_dict(line.as_dict()) == line


# ------------------------------------------------------------------------------------------ in the UI


def test_the_job_fails_if_an_observation_is_a_failure(bare: NewLocation) -> None:
    location: Location = bare(POSTGRES_PORT=str(free_port()))
    result = location.run("doctor_job")
    assert not result.success
    text = failure(result)
    assert " fail, " in text
    assert "Connection refused" in text
    assert "Next: pg_isready -h 127.0.0.1" in location.logs(result.run_id)
    # The asset's page shows the observations all the same, with a check for each area.
    (found,) = materialized(result).values()
    assert "Connection refused" in found["report"]
    red = [name for name, (passed, _) in checks(result).items() if not passed]
    assert "server" in red
    assert f"{found['fail']} fail" in found["summary"]
    assert about(result) == {result.run_id}


def test_the_job_succeeds_with_warnings_and_lists_all(new_location: NewLocation, bin_dir: Path, tmp_path: Path) -> None:
    location: Location = new_location(PG_BIN_DIR=str(repaired(bin_dir, tmp_path / "programs")))
    location.catalog.prepare()
    result = location.run("doctor_job")
    assert result.success, failure(result)
    (found,) = materialized(result).values()
    said = re.findall(r"^\* \*\*(\w+)\*\* (\w+): ", found["report"], re.MULTILINE)
    assert [level for level, _ in said] == sorted((level for level, _ in said), reverse=True)
    assert found["fail"] == 0
    assert found["ok"] == sum(level == "ok" for level, _ in said)
    assert {area for _, area in said} == {area.value for area in Area}
    # A warning passes, with a note.
    assert found["warn"] > 0
    assert {passed for passed, _ in checks(result).values()} == {True}
    assert list(checks(result)) == [area.value for area in Area]
    told = {check.check_name: check.description or "" for check in result.get_asset_check_evaluations()}
    assert told["alerts"].startswith("1 warn: no one is notified")


# ------------------------------------------------------------------------------------------ the code server


@contextmanager
def serving(volume: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A real code server with our definitions."""
    port = free_port()
    command = (sys.executable, "-m", "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port))
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    with subprocess.Popen(
        (*command, "-m", "ovia_backup_dagster.definitions"),
        env={**kept, "POSTGRES_HOST": "127.0.0.1", "BACKUP_DIR": str(volume)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield port, process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.exhaustive
def test_a_code_server_that_hangs_or_is_gone_is_a_failure(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(volume) as (port, process):
        deadline = time.monotonic() + 60
        while levels(code_server.ask_code_server(port)) != [Severity.OK]:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        (line,) = code_server.ask_code_server(port)
        assert line.text == f"the code server on port {port} serves"

        monkeypatch.setattr(code_server, "SERVICE", "SomebodyElse")
        (line,) = code_server.ask_code_server(port)
        assert line.level is Severity.FAIL
        monkeypatch.undo()

        monkeypatch.setattr(code_server, "TIMEOUT_SECONDS", 1.5)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        began = time.monotonic()
        (line,) = code_server.ask_code_server(port)
        assert time.monotonic() - began < 5
        assert (line.level, "does not answer: Deadline Exceeded" in line.text) == (Severity.FAIL, True)
        os.kill(process.pid, signal.SIGCONT)
    (line,) = code_server.ask_code_server(port)
    assert (line.level, f"the code server on port {port} does not answer: " in line.text) == (Severity.FAIL, True)
    assert "dagster definitions validate" in line.fix

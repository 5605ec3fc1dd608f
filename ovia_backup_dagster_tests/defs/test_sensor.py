"""The freshness sensor: one alert per episode and day, retried until a channel takes it; one all-clear, then quiet.

The clock is set, never waited for. Requested runs are really executed, on the instance that the sensor queries.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.errors import PrivilegeError, SettingsError
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.defs.alert_asset import condition
from ovia_backup_dagster.defs.policies import run_tags
from ovia_backup_dagster.health.condition import ConditionLevel, Question
from ovia_backup_dagster.health.freshness import AGAIN
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.signing.key_files import SIGNING_KEY, VERIFY_KEY
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.conftest import snapshot as files_of
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    DRILL_JOB,
    KEPT_JOB,
    NOON,
    TOLD,
    Daemon,
    Location,
    backdate,
    begin,
    dagster,
    environment,
    flip_byte,
    load,
    old_dump,
    settle,
)
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import drill_evidence
from ovia_backup_dagster_tests.support.signed_logs import aged, edit, forgotten, key_settings, statement_paths

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

UNDER_WAY = "waiting for the alert run"


@pytest.fixture
def daemon(bare: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The sensor of a location whose alerts go to ``people``; its volume is empty."""
    return Daemon(bare(BACKUP_NOTIFY_URLS=people.url), monkeypatch)


def heal(daemon: Daemon) -> Path:
    """Add a new backup."""
    return daemon.put(timedelta(minutes=1))


def episode(request: dg.RunRequest | None) -> str:
    assert request is not None
    return str(request.run_config["ops"][ALERT]["config"]["episode"])


# ---------------------------------------------------------------- kinds of trouble


def test_a_fresh_backup_requests_no_alert(daemon: Daemon, volume: Path) -> None:
    path = daemon.put(timedelta(hours=25, minutes=59))
    before = files_of(volume)
    assert daemon.tick() is None
    assert daemon.skipped == f"the newest backup, {path.name}, is 1 d 1 h old (not verified yet)"
    assert daemon.cursor is None
    assert files_of(volume) == before


def test_a_stale_backup_is_alerted(daemon: Daemon, people: Receiver) -> None:
    daemon.put(timedelta(hours=26, minutes=1))
    request = daemon.tick()
    assert request is not None
    assert request.run_key
    assert daemon.run(request)
    assert people.titles == ["[sample] the newest backup is too old"]


def test_the_setting_decides_when_a_backup_is_stale(bare: NewLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for hours, asked in (("3", True), ("4", False)):
        daemon = Daemon(bare(BACKUP_MAX_AGE_HOURS=hours), monkeypatch)
        if not asked:
            daemon.put(timedelta(hours=3, minutes=30))
        assert bool(daemon.tick()) is asked


def test_a_missing_backup_is_alerted(daemon: Daemon, people: Receiver) -> None:
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] there is no backup"]


def test_a_dump_being_written_does_not_count(daemon: Daemon) -> None:
    settle(daemon.put(timedelta(minutes=1)), timedelta(0), now=daemon.clock)
    assert daemon.tick() is not None


def test_a_backup_from_the_future_is_alerted(daemon: Daemon, people: Receiver) -> None:
    daemon.put(timedelta(hours=-3))
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the newest backup is dated in the future"]


def test_an_unreadable_volume_is_alerted(daemon: Daemon, people: Receiver, volume: Path) -> None:
    volume.rmdir()
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the backup volume cannot be read"]
    assert not volume.exists()


def test_a_bad_newest_backup_does_not_count(
    database: Connection,
    volume: Path,
    bin_dir: Path,
    instance: dg.DagsterInstance,
    people: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load(environment(database, volume, bin_dir, BACKUP_NOTIFY_URLS=people.url))
    daemon = Daemon(Location(settings, instance), monkeypatch, clock=None)
    location = daemon.location
    good = backdate(location.catalog, location.dump(), timedelta(hours=30))
    assert location.verify(good).judgement.good
    newest = location.dump()
    # An unverified backup counts.
    assert daemon.tick() is None
    assert "not verified yet" in (daemon.skipped or "")
    flip_byte(newest.path)
    location.verify(newest)
    assert daemon.run(daemon.tick())
    assert f"Last verified backup: {good}." in people.messages[0]["message"]
    assert f"Why newer ones are bad: {newest}: " in people.messages[0]["message"]
    # A good run ends the trouble.
    assert location.run().success
    assert daemon.run(daemon.tick())
    assert people.titles[-1] == f"[{database.database}] all is well with the backups again"


def test_unusable_settings_are_alerted(bare: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    old_dump(bare().catalog, timedelta(hours=1), now=NOON)
    daemon = Daemon(bare(BACKUP_NOTIFY_URLS=people.url, BACKUP_DAILY_KEEP="none"), monkeypatch)
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the backup settings are not usable"]
    assert "BACKUP_DAILY_KEEP" in people.messages[0]["message"]


def test_without_a_host_the_tick_fails_with_one_clear_line(bare: NewLocation, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = Daemon(bare(POSTGRES_HOST=""), monkeypatch)
    with pytest.raises(SettingsError) as caught:
        daemon.tick()
    assert str(caught.value).startswith("the settings are not usable: POSTGRES_HOST is not set. Next: ")
    assert "\n" not in str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("host", thinned(["", "127.0.0.1"]))
def test_the_code_server_evaluates_the_sensor(tmp_path: Path, host: str) -> None:
    ended = dagster(
        "sensor", "preview", "--workspace", "workspace.yaml", "backup_freshness_sensor",
        home=tmp_path, BACKUP_DIR=str(tmp_path / "backups"), POSTGRES_HOST=host,
    )  # fmt: skip
    if host:
        assert "Sensor returning run requests for 1 run(s)" in ended.stdout
        assert "backup_freshness_alert:" in ended.stdout
    else:
        assert "SettingsError: the settings are not usable: POSTGRES_HOST is not set. Next: " in ended.stdout
        assert "run requests" not in ended.stdout


def test_the_old_scripts_dump_counts(daemon: Daemon) -> None:
    """At the takeover there are neither manifests nor events."""
    daemon.put(timedelta(hours=5))
    assert daemon.tick() is None
    assert daemon.requests == []


# ---------------------------------------------------------------- all is well: green once a day


@pytest.mark.exhaustive
def test_each_days_backup_is_shown_once_per_state(
    database: Connection,
    volume: Path,
    bin_dir: Path,
    instance: dg.DagsterInstance,
    people: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load(environment(database, volume, bin_dir, BACKUP_NOTIFY_URLS=people.url))
    daemon = Daemon(Location(settings, instance), monkeypatch, clock=None)
    location = daemon.location
    backup = location.dump()
    request = daemon.evaluate()
    assert daemon.run(request)
    assert request is not None
    assert request.run_config["ops"][ALERT]["config"] == {"all_clear": False, "episode": ""}
    for _ in range(3):
        assert daemon.evaluate() is None
        assert "(not verified yet)" in (daemon.skipped or "")
    location.verify(backup)
    assert daemon.run(daemon.evaluate())
    assert daemon.evaluate() is None
    assert "(verified)" in (daemon.skipped or "")
    # Another backup of the same day and state requests no run.
    time.sleep(1.1)
    location.verify(location.dump())
    assert daemon.evaluate() is None
    assert len(daemon.requests) == 2
    assert people.asked == 0
    assert daemon.cursor is None


def test_green_is_shown_again_each_day(daemon: Daemon, people: Receiver) -> None:
    for _ in range(3):
        daemon.later(timedelta(days=1)).put(timedelta(hours=2))
        assert daemon.run(daemon.evaluate())
        for _ in range(3):
            assert daemon.later(timedelta(hours=1)).evaluate() is None
    assert len({request.run_key for request in daemon.requests}) == 3
    assert people.asked == 0


def test_a_failed_green_run_is_requested_five_times_at_most(daemon: Daemon) -> None:
    daemon.put(timedelta(hours=2))
    for _ in range(5):
        daemon.create(daemon.evaluate(), dg.DagsterRunStatus.FAILURE)
    assert daemon.evaluate() is None


def test_nothing_is_shown_in_green_during_a_restore(daemon: Daemon) -> None:
    daemon.put(timedelta(hours=2))
    begin(daemon.location)
    with daemon.location.system.restores.lock("ovia-backup restore", NOON):
        assert daemon.evaluate() is None
        assert (daemon.skipped or "").startswith("waiting for a restore to end: ovia-backup restore (")


def test_trouble_after_green_is_alerted_the_same_day(daemon: Daemon, people: Receiver) -> None:
    path = daemon.put(timedelta(hours=2))
    assert daemon.run(daemon.evaluate())
    path.unlink()
    assert daemon.run(daemon.evaluate())
    daemon.put(timedelta(hours=1))
    assert daemon.run(daemon.evaluate())
    assert people.titles == ["[sample] there is no backup", "[sample] all is well with the backups again"]


# ---------------------------------------------------------------- one alert per episode and day


def test_trouble_is_alerted_once_a_day(daemon: Daemon, people: Receiver) -> None:
    first = daemon.at(NOON).tick()
    assert daemon.run(first)
    for later in (timedelta(minutes=5), timedelta(hours=5), timedelta(hours=11, minutes=59)):
        assert daemon.at(NOON + later).tick() is None
        assert TOLD in (daemon.skipped or "")
    second = daemon.at(NOON + timedelta(hours=12)).tick()
    assert daemon.run(second)
    assert daemon.at(NOON + timedelta(hours=13)).tick() is None
    third = daemon.at(NOON + timedelta(days=1, hours=12)).tick()
    assert daemon.run(third)
    assert len(people.messages) == 3
    assert {episode(request) for request in daemon.requests} == {"2026-07-01T12:00:00+00:00"}
    assert len({request.run_key for request in daemon.requests}) == 3


def test_a_day_is_one_of_the_configured_time_zone(
    bare: NewLocation, people: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(bare(BACKUP_NOTIFY_URLS=people.url, BACKUP_TIMEZONE="Asia/Tokyo"), monkeypatch)
    assert daemon.run(daemon.at(datetime(2026, 7, 1, 14, 50, tzinfo=UTC)).tick())
    assert daemon.run(daemon.at(datetime(2026, 7, 1, 15, 10, tzinfo=UTC)).tick())
    assert daemon.at(datetime(2026, 7, 2, 0, 10, tzinfo=UTC)).tick() is None


@pytest.mark.parametrize(
    "status",
    [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
def test_no_second_alert_is_requested_while_one_runs(daemon: Daemon, status: dg.DagsterRunStatus) -> None:
    daemon.create(daemon.tick(), status)
    assert daemon.tick() is None
    assert UNDER_WAY in (daemon.skipped or "")


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_a_run_that_ended_badly_is_followed_by_another(
    daemon: Daemon, people: Receiver, status: dg.DagsterRunStatus
) -> None:
    daemon.create(daemon.tick(), status)
    again = daemon.tick()
    assert daemon.run(again)
    assert len(people.messages) == 1
    assert daemon.tick() is None
    assert TOLD in (daemon.skipped or "")


@pytest.mark.exhaustive
def test_a_failing_alert_has_at_most_five_runs_a_day(daemon: Daemon, people: Receiver) -> None:
    people.refusals = -1
    for number in range(5):
        assert not daemon.run(daemon.at(NOON + timedelta(minutes=5 * number)).tick())
    assert people.asked == 5 * 4
    assert daemon.at(NOON + timedelta(hours=1)).tick() is None
    assert "5 alert runs failed" in (daemon.skipped or "")
    # The alert is tried again the next day.
    people.refusals = 0
    assert daemon.run(daemon.at(NOON + timedelta(days=1)).tick())
    assert len(people.messages) == 1


def test_a_run_that_was_never_created_is_requested_again(daemon: Daemon) -> None:
    """As if the daemon had died between the tick and the run. The run key is the same: Dagster has no run with it."""
    first = daemon.tick()
    daemon.requests.clear()
    again = daemon.tick()
    assert first is not None
    assert again is not None
    assert (again.run_key, again.tags, again.run_config) == (first.run_key, first.tags, first.run_config)


@pytest.mark.exhaustive
def test_another_episode_is_alerted_the_same_day(daemon: Daemon, people: Receiver) -> None:
    assert daemon.run(daemon.tick())
    healed = heal(daemon)
    assert daemon.run(daemon.tick())
    assert daemon.tick() is None
    healed.unlink()
    assert daemon.run(daemon.later(timedelta(minutes=5)).tick())
    assert people.titles == [
        "[sample] there is no backup",
        "[sample] all is well with the backups again",
        "[sample] there is no backup",
    ]


def test_trouble_after_the_all_clear_is_alerted(daemon: Daemon, people: Receiver) -> None:
    """Trouble may return before the tick that would close the episode, when people believe that all is well."""
    assert daemon.run(daemon.tick())
    healed = heal(daemon)
    assert daemon.run(daemon.tick())
    healed.unlink()
    request = daemon.later(timedelta(minutes=5)).tick()
    assert daemon.run(request)
    assert people.titles == [
        "[sample] there is no backup",
        "[sample] all is well with the backups again",
        "[sample] there is no backup",
    ]


def test_trouble_during_the_all_clear_is_alerted(daemon: Daemon, people: Receiver) -> None:
    """The all-clear's run looked before the trouble returned, and ended after that."""
    assert daemon.run(daemon.tick())
    healed = heal(daemon)
    run = daemon.create(daemon.tick(), dg.DagsterRunStatus.STARTED)
    healed.unlink()
    daemon.later(timedelta(minutes=5)).tick()
    success = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name=ALERT_JOB)
    daemon.location.instance.report_dagster_event(success, run_id=run.run_id)
    daemon.later(timedelta(minutes=5)).tick()
    if len(daemon.requests) < 3:
        daemon.later(timedelta(minutes=5)).tick()
    assert len(daemon.requests) == 3
    assert not daemon.requests[2].run_config["ops"][ALERT]["config"].get("all_clear")


def test_two_databases_failing_at_once_are_both_alerted(
    bare: NewLocation, people: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sensors see the missing backup in the same second, on one instance."""
    for database in ("one", "other"):
        daemon = Daemon(bare(BACKUP_NOTIFY_URLS=people.url, POSTGRES_DB=database), monkeypatch)
        assert daemon.run(daemon.tick())
    assert people.titles == ["[one] there is no backup", "[other] there is no backup"]


# ---------------------------------------------------------------- the all-clear


def test_an_all_clear_is_sent_once(daemon: Daemon, people: Receiver) -> None:
    first = daemon.tick()
    assert daemon.run(first)
    path = heal(daemon)
    clear = daemon.tick()
    assert clear is not None
    assert clear.run_config["ops"][ALERT]["config"] == {"all_clear": True, "episode": episode(first)}
    assert daemon.run(clear)
    for _ in range(3):
        assert daemon.tick() is None
    assert daemon.skipped == f"the newest backup, {path.name}, is 1 min old (not verified yet)"
    assert people.titles == ["[sample] there is no backup", "[sample] all is well with the backups again"]
    assert people.messages[1]["message"].endswith("The trouble began 2026-07-01 12:00 UTC.")


def test_a_failed_all_clear_is_requested_again(daemon: Daemon, people: Receiver) -> None:
    assert daemon.run(daemon.tick())
    heal(daemon)
    clear = daemon.tick()
    assert clear is not None
    run = daemon.create(clear, dg.DagsterRunStatus.STARTED)
    assert daemon.tick() is None
    assert UNDER_WAY in (daemon.skipped or "")
    daemon.location.instance.report_run_failed(run)
    assert daemon.run(daemon.tick())
    assert daemon.tick() is None
    assert people.titles[1:] == ["[sample] all is well with the backups again"]


@pytest.mark.exhaustive
def test_an_all_clear_is_given_up_after_five_runs(daemon: Daemon, people: Receiver) -> None:
    assert daemon.run(daemon.tick())
    heal(daemon)
    people.refusals = -1
    for _ in range(5):
        assert not daemon.run(daemon.tick())
    assert daemon.tick() is None
    assert "5 alert runs failed" in (daemon.skipped or "")
    assert daemon.tick() is None
    assert "5 runs failed" not in (daemon.skipped or "")


# ---------------------------------------------------------------- the cursor


@pytest.mark.parametrize(
    "cursor",
    thinned(["", "garbage", "{}", "null", "[]", '{"episode": 7}', '{"episode": null}', '{"other": "x"}', "0", '"x"']),
)
def test_an_invalid_cursor_is_ignored(daemon: Daemon, cursor: str) -> None:
    daemon.cursor = cursor
    assert daemon.tick() is not None
    daemon.cursor = cursor
    heal(daemon)
    assert daemon.tick() is None


def test_an_invalid_episode_in_the_cursor_is_ignored(daemon: Daemon, people: Receiver) -> None:
    daemon.cursor = '{"episode": "not an instant"}'
    assert daemon.run(daemon.tick())
    heal(daemon)
    assert daemon.run(daemon.tick())
    assert len(people.messages) == 2


# ---------------------------------------------------------------- a run that failed


@pytest.fixture
def real(new_location: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The sensor at the present time, with a real database and a verified backup of this hour."""
    daemon = Daemon(new_location(BACKUP_NOTIFY_URLS=people.url), monkeypatch, clock=None)
    assert daemon.location.run().success
    assert daemon.tick() is None
    return daemon


def fail_a_run(location: Location) -> str:
    """Run a daily backup whose dump fails."""

    def fail() -> None:
        raise PrivilegeError("no right to dump table salaries", why="a migration made it", fix="GRANT it")

    location.before_dump = fail
    result = location.run()
    assert not result.success
    location.before_dump = None
    return result.run_id


def report(
    location: Location, how: dg.DagsterRunStatus, message: str = "", tags: dict[str, str] | None = None
) -> dg.DagsterRun:
    """Create a run of the daily backup that run monitoring or a person ended."""
    status = dg.DagsterRunStatus.CANCELING if how is dg.DagsterRunStatus.CANCELED else dg.DagsterRunStatus.STARTED
    run = location.instance.create_run_for_job(
        job_def=location.job(), tags={**run_tags(location.settings), **(tags or {})}, status=status
    )
    if how is dg.DagsterRunStatus.CANCELED:
        location.instance.report_run_canceled(run, message=message)
    elif how is dg.DagsterRunStatus.FAILURE:
        location.instance.report_run_failed(run, message=message)
    return run


def test_a_failed_run_is_alerted_at_once_and_once(real: Daemon, people: Receiver) -> None:
    verified = real.location.catalog.backups()[0]
    run = fail_a_run(real.location)
    assert real.run(real.tick())
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    (message,) = people.messages
    database = real.location.settings.postgres_db
    assert (message["title"], message["type"]) == (f"[{database}] the daily backup failed", "failure")
    what, _, last, when, why, following = message["message"].splitlines()
    assert re.fullmatch(r"What: daily_backup_job failed at \S+ \S+ UTC, and no backup was verified since\.", what)
    assert last == f"Last verified backup: {verified}."
    assert when.startswith(f"Last failed run: {run} at ")
    assert why == "Why it failed: no right to dump table salaries: a migration made it. Next: GRANT it"
    assert following == f"Next: fix the cause, then {AGAIN}"

    assert real.location.run().success
    assert real.run(real.tick())
    assert real.tick() is None
    assert people.titles[1:] == [f"[{database}] all is well with the backups again"]


def test_a_killed_run_is_alerted_when_marked_failed(real: Daemon, people: Receiver) -> None:
    run = report(real.location, dg.DagsterRunStatus.STARTED)
    assert real.tick() is None
    real.location.instance.report_run_failed(run, message="the run's container is gone")
    assert real.run(real.tick())
    assert "Why it failed: the run's container is gone" in people.messages[0]["message"]


@pytest.mark.exhaustive
def test_a_newer_verified_backup_clears_a_failed_run(real: Daemon, people: Receiver) -> None:
    fail_a_run(real.location)
    assert real.run(real.tick())
    # A backup's name has a resolution of one second.
    time.sleep(1.1)
    backup = real.location.dump()
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    assert real.location.verify(backup).judgement.good
    assert real.run(real.tick())
    assert people.titles[1:] == [f"[{real.location.settings.postgres_db}] all is well with the backups again"]
    assert real.tick() is None


@pytest.mark.exhaustive
def test_a_failure_cleared_before_the_tick_is_not_alerted(real: Daemon, people: Receiver) -> None:
    fail_a_run(real.location)
    time.sleep(1.1)
    assert real.location.verify(real.location.dump()).judgement.good
    assert real.tick() is None
    assert people.asked == 0


@pytest.mark.exhaustive
def test_an_older_verified_backup_clears_no_failure(real: Daemon) -> None:
    """As after a run whose own dump was verified and whose pruning failed."""
    report(real.location, dg.DagsterRunStatus.FAILURE, "pruning failed")
    assert real.tick() is not None


def test_a_cancelled_run_is_not_alerted(real: Daemon, people: Receiver) -> None:
    report(real.location, dg.DagsterRunStatus.CANCELED, "an operator cancelled it")
    assert real.tick() is None
    assert people.asked == 0


@pytest.mark.exhaustive
def test_cancelling_another_run_clears_no_failure(real: Daemon, people: Receiver) -> None:
    failed = fail_a_run(real.location)
    assert real.run(real.tick())
    report(real.location, dg.DagsterRunStatus.CANCELED, "an operator cancelled it")
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    # The alert, launched by hand, also names the run that failed.
    assert real.location.run(ALERT_JOB).success
    assert f"Last failed run: {failed}" in people.messages[1]["message"]


def test_a_run_that_dagster_will_retry_is_not_alerted_yet(real: Daemon) -> None:
    report(real.location, dg.DagsterRunStatus.FAILURE, "it died", {"dagster/will_retry": "true"})
    assert real.tick() is None
    report(real.location, dg.DagsterRunStatus.FAILURE, "it died again", {"dagster/will_retry": "false"})
    assert real.tick() is not None


@pytest.mark.exhaustive
@pytest.mark.parametrize("other", thinned([{"POSTGRES_DB": "other"}, {"BACKUP_ASSET_PREFIX": "crm"}]))
def test_failed_runs_of_another_database_do_not_count(
    real: Daemon, new_location: NewLocation, other: dict[str, str]
) -> None:
    theirs: Location = new_location(**other)
    fail_a_run(theirs)
    assert real.tick() is None


def test_a_failure_of_another_job_does_not_count(real: Daemon) -> None:
    location = real.location
    run = location.instance.create_run_for_job(
        job_def=location.job(DRILL_JOB), tags=run_tags(location.settings), status=dg.DagsterRunStatus.STARTED
    )
    location.instance.report_run_failed(run, message="killed")
    assert real.tick() is None


@pytest.mark.exhaustive
def test_a_failed_run_is_alerted_each_day(
    new_location: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, each day, and when the backup becomes stale as well: that is another kind, with its own alert."""
    daemon = Daemon(new_location(BACKUP_NOTIFY_URLS=people.url), monkeypatch, clock=None)
    assert daemon.location.run().success
    fail_a_run(daemon.location)
    midnight = (datetime.now(UTC) + timedelta(days=1)).replace(hour=0, minute=1)
    database = daemon.location.settings.postgres_db
    failed, stale = f"[{database}] the daily backup failed", f"[{database}] the newest backup is too old"
    assert daemon.run(daemon.at(datetime.now(UTC)).tick())
    assert people.titles == [failed]
    for hours in range(0, 72, 3):
        request = daemon.at(midnight + timedelta(hours=hours)).tick()
        if request is not None:
            assert daemon.run(request)
    # Now and on three days; once more after 26 hours, unless another day begins then.
    assert people.titles in ([failed] * 2 + [stale] * 3, [failed] * 3 + [stale] * 2, [failed] * 2 + [stale] * 2)
    assert "Why it failed: no right to dump table salaries" in people.messages[-1]["message"]


@pytest.mark.exhaustive
def test_a_stale_backup_after_a_failure_is_alerted_again(real: Daemon, people: Receiver) -> None:
    fail_a_run(real.location)
    assert real.run(real.tick())
    catalog = real.location.catalog
    for backup in catalog.backups():
        backdate(catalog, backup, timedelta(hours=27))
    assert real.run(real.tick())
    assert real.tick() is None
    database = real.location.settings.postgres_db
    assert people.titles == [f"[{database}] the daily backup failed", f"[{database}] the newest backup is too old"]


@pytest.mark.exhaustive
def test_a_run_failing_for_an_alerted_cause_is_not_alerted(daemon: Daemon, people: Receiver) -> None:
    """People know that there is no backup; then the daily run fails for the same cause."""
    assert daemon.run(daemon.tick())
    report(daemon.location, dg.DagsterRunStatus.FAILURE, "no connection")
    assert daemon.later(timedelta(minutes=5)).tick() is None
    assert TOLD in (daemon.skipped or "")
    # The next day's alert names the failure.
    assert daemon.run(daemon.later(timedelta(days=1)).tick())
    assert "Why it failed: no connection" in people.messages[1]["message"]


@pytest.mark.exhaustive
def test_a_failed_drill_and_a_failed_run_have_two_alerts(real: Daemon, people: Receiver) -> None:
    drill_evidence(real.location.catalog, datetime.now(UTC), passed=False)
    assert real.run(real.tick())
    fail_a_run(real.location)
    assert real.run(real.tick())
    database = real.location.settings.postgres_db
    assert people.titles == [f"[{database}] the restore drill failed", f"[{database}] the daily backup failed"]
    assert "failed: restored_without_errors: it does not restore." in people.messages[1]["message"]


# ---------------------------------------------------------------- a restore that was left unfinished


@contextmanager
def restoring(location: Location) -> Iterator[subprocess.Popen[bytes]]:
    """``ovia-backup restore`` in its own process group, stopped by SIGSTOP during its first step."""
    folder = location.system.restores
    command = ("restore", "latest", "--yes-destroy", location.settings.postgres_db)
    process = start(location, *command)
    try:
        while not any(b'"mark":"begun"' in path.read_bytes() for path in folder.path.glob("*.journal")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGSTOP)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        # Its pg_restore holds a copy of the lock's descriptor.
        while lock_holder(folder.path):
            time.sleep(0.01)


def start(location: Location, *command: str) -> subprocess.Popen[bytes]:
    """Start ``ovia-backup`` for this location's database and volume."""
    settings = location.settings
    assert settings.postgres_host
    assert settings.pg_bin_dir
    connection = location.system.connection
    return subprocess.Popen(
        (sys.executable, "-m", "ovia_backup_dagster.cli.main", *command),
        env={"PATH": os.environ["PATH"], **environment(connection, settings.backup_dir, settings.pg_bin_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def test_a_killed_restore_is_alerted_until_resumed_or_aborted(real: Daemon, people: Receiver) -> None:
    location, database = real.location, real.location.settings.postgres_db
    with restoring(location):
        assert real.tick() is None
        assert "people" not in (real.skipped or "")
    assert real.run(real.tick())
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    (message,) = people.messages
    assert (message["title"], message["type"]) == (f"[{database}] a restore is unfinished", "failure")
    what, _, last, following = message["message"].splitlines()
    backup = location.catalog.backups()[0]
    assert re.fullmatch(
        rf"What: the swap of {backup}, begun \S+ \S+ UTC, is not finished: the step 'restore' was \w+, and then its "
        r"process ended\.",
        what,
    )
    assert last == f"Last verified backup: {backup}."
    assert following == "Next: ovia-backup restore --resume; or put everything back: ovia-backup restore --abort"

    abort = start(location, "restore", "--abort")
    output, _ = abort.communicate()
    assert abort.returncode == 0, output
    assert real.run(real.tick())
    assert real.tick() is None
    assert people.titles[1:] == [f"[{database}] all is well with the backups again"]


def test_no_all_clear_is_sent_during_a_restore(daemon: Daemon, people: Receiver) -> None:
    heal(daemon)
    journal = begin(daemon.location)
    assert daemon.run(daemon.tick())
    with daemon.location.system.restores.lock("ovia-backup restore --resume", NOON):
        assert daemon.tick() is None
        assert (daemon.skipped or "").startswith("waiting for a restore to end: ovia-backup restore --resume (")
    # The resumed restore was killed as well: the same trouble, alerted once a day.
    assert daemon.tick() is None
    assert TOLD in (daemon.skipped or "")
    assert len(people.messages) == 1
    assert daemon.run(daemon.later(timedelta(days=1)).tick())
    journal.write(JournalMark.PUT_BACK)
    daemon.put(timedelta(minutes=1))
    assert daemon.run(daemon.tick())
    unfinished = "[sample] a restore is unfinished"
    assert people.titles == [unfinished, unfinished, "[sample] all is well with the backups again"]


def test_a_restore_under_way_delays_no_alert(daemon: Daemon, people: Receiver) -> None:
    begin(daemon.location)
    with daemon.location.system.restores.lock("the swap of a backup", NOON):
        assert daemon.run(daemon.tick())
        assert daemon.location.run(ALERT_JOB).success
    assert people.titles == ["[sample] there is no backup"] * 2
    assert "swap" not in people.messages[1]["message"]


def test_an_unfinished_restore_is_alerted_at_once(daemon: Daemon, people: Receiver) -> None:
    assert daemon.run(daemon.tick())
    begin(daemon.location)
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] there is no backup", "[sample] a restore is unfinished"]
    what, *_, first, second = people.messages[1]["message"].splitlines()
    assert what.endswith("; there is no backup.")
    assert first.startswith("Next: ovia-backup restore --resume")
    assert second == f"Next: findmnt -T $BACKUP_DIR; then {AGAIN}"


@pytest.mark.exhaustive
def test_an_unfinished_restore_does_not_hide_a_run_that_failed(real: Daemon, people: Receiver) -> None:
    begin(real.location)
    assert real.run(real.tick())
    fail_a_run(real.location)
    assert real.run(real.tick())
    assert people.titles == [f"[{real.location.settings.postgres_db}] a restore is unfinished"] * 2
    text = people.messages[1]["message"]
    assert "is not finished: nothing was done yet" in text
    assert "; daily_backup_job failed at " in text
    assert "Why it failed: no right to dump table salaries" in text


@pytest.mark.parametrize("content", thinned([b"", b"no journal\n", b"\xff\xfe\n", b'{"version":2}\n', b"[]\n[]\n"]))
def test_an_invalid_journal_is_alerted_and_hides_nothing(daemon: Daemon, people: Receiver, content: bytes) -> None:
    assert daemon.run(daemon.tick())
    begin(daemon.location).path.write_bytes(content)
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] there is no backup", "[sample] cannot tell whether a restore is unfinished"]
    text = people.messages[1]["message"]
    assert "What: cannot tell whether a restore is unfinished: the journal " in text
    assert "; there is no backup." in text
    heal(daemon)
    assert daemon.run(daemon.tick())
    assert people.titles[2:] == ["[sample] cannot tell whether a restore is unfinished"]
    assert "there is no backup" not in people.messages[2]["message"]


def test_an_unreadable_restores_folder_is_alerted(daemon: Daemon, people: Receiver, volume: Path) -> None:
    heal(daemon)
    (volume / "restores").touch()
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the backup volume cannot be read"]
    assert f"What: cannot list {volume}/restores" in people.messages[0]["message"]


def test_restores_of_another_database_do_not_count(daemon: Daemon, bare: NewLocation) -> None:
    heal(daemon)
    begin(bare(POSTGRES_DB="other"))
    assert daemon.tick() is None


# ---------------------------------------------------------------- replaced databases


@pytest.mark.exhaustive
def test_a_failed_run_for_replaced_databases_is_alerted(
    real: Daemon, new_location: NewLocation, people: Receiver
) -> None:
    """Until a run succeeds, because the job runs unattended."""
    broken: Location = new_location(RESTORE_POSTGRES_USER="nobody_of_that_name")
    result = broken.run(KEPT_JOB)
    assert not result.success
    assert real.run(real.tick())
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    (message,) = people.messages
    database = real.location.settings.postgres_db
    assert (message["title"], message["type"]) == (f"[{database}] kept_databases_job failed", "failure")
    what, *_, following = message["message"].splitlines()
    assert re.match(r"What: kept_databases_job failed at \S+ \S+ UTC, and the replaced databases stay: ", what)
    assert "nobody_of_that_name" in what
    assert following == (
        f"Next: fix the cause, then launch kept_databases_job in the Dagster UI; the run that failed is {result.run_id}"
    )
    assert "Last failed run" not in message["message"]
    # A failed daily backup is alerted at once as well; a new backup does not clear the replaced databases.
    fail_a_run(real.location)
    assert real.run(real.tick())
    assert people.titles[1:] == [f"[{database}] the daily backup failed"]
    assert "; kept_databases_job failed at " in people.messages[1]["message"]
    assert real.location.run().success
    assert real.tick() is None
    assert TOLD in (real.skipped or "")
    assert real.location.run(KEPT_JOB).success
    assert real.run(real.tick())
    assert people.titles[2:] == [f"[{database}] all is well with the backups again"]


@pytest.mark.exhaustive
def test_replaced_databases_of_another_do_not_count(real: Daemon, new_location: NewLocation) -> None:
    broken: Location = new_location(RESTORE_POSTGRES_USER="nobody_of_that_name", BACKUP_ASSET_PREFIX="crm")
    assert not broken.run(KEPT_JOB).success
    assert real.tick() is None


# ---------------------------------------------------------------- files, not events


def test_the_volume_decides_and_not_dagsters_events(daemon: Daemon) -> None:
    """A new materialization without a file is not a backup."""
    for name in ("daily_dump", "dump_verification"):
        daemon.location.instance.report_runless_asset_event(dg.AssetMaterialization(name))
    assert daemon.tick() is not None


def test_the_file_name_decides_and_not_its_mtime(daemon: Daemon) -> None:
    path = daemon.put(timedelta(days=3))
    settle(path, timedelta(minutes=20), now=daemon.clock)
    assert daemon.tick() is not None


def test_the_request_is_for_the_alert_job(daemon: Daemon) -> None:
    request = daemon.tick()
    assert request is not None
    assert request.job_name in (None, ALERT_JOB)
    sensor = daemon.location.defs.resolve_sensor_def("backup_freshness_sensor")
    assert sensor.job_name == ALERT_JOB
    assert "channel" not in repr(request)


# ---------------------------------------------------------------- the signed log's sign of life

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def signing(bare: NewLocation, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The sensor of a location with both keys, and a log whose last statement is a day old."""
    daemon = Daemon(bare(**key_settings(tmp_path, KEY)), monkeypatch, clock=None)
    StatementLog(volume, "sample", KEY.public_key(), KEY).published("a.dump", 1, "a" * 64, {})
    aged(volume, "sample", KEY, 24)
    return daemon


def test_a_tick_states_one_sign_of_life_a_day(signing: Daemon, volume: Path, capfd: pytest.CaptureFixture[str]) -> None:
    signing.create(signing.evaluate(), dg.DagsterRunStatus.SUCCESS)
    assert len(statement_paths(volume, "sample")) == 2
    signing.evaluate()
    log = StatementLog(volume, "sample", KEY.public_key())
    assert [statement.event.value for statement in log.check_each()] == ["backup", "alive"]
    assert capfd.readouterr().err.count(f"stated a sign of life in the signed log; head {log.chain().head}") == 1


def test_without_the_signing_key_a_tick_states_nothing(
    signing: Daemon,
    volume: Path,
    tmp_path: Path,
    bare: NewLocation,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reader = Daemon(bare(BACKUP_VERIFY_KEY_FILE=str(tmp_path / VERIFY_KEY)), monkeypatch, clock=None)
    before = files_of(volume)
    reader.evaluate()
    assert files_of(volume) == before
    assert "sign of life" not in capfd.readouterr().err


@pytest.mark.parametrize("name", [SIGNING_KEY, VERIFY_KEY])
def test_a_key_that_cannot_be_read_is_alerted(
    name: str, signing: Daemon, volume: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tick goes on, and so does the assessment as far as it needs no key."""
    (tmp_path / name).unlink()
    request = signing.evaluate()
    assert request is not None
    assert re.search(
        f"no sign of life was stated in the signed log: BACKUP_.*{name} cannot be read", capfd.readouterr().err
    )
    assert signing.run(request)
    report = condition(signing.location.system, signing.location.names, datetime.now(UTC), signing.location.instance)
    settings = report.answer(Question.SETTINGS)
    assert settings is not None
    assert settings.trouble is not None
    assert f"{name} cannot be read" in settings.what
    fresh = report.answer(Question.FRESH)
    assert fresh is not None
    assert (fresh.level is ConditionLevel.UNKNOWN) == (name == VERIFY_KEY)


def a_folder_for_the_lock(volume: Path) -> None:
    lock = volume / "statements/sample/.lock"
    lock.unlink()
    lock.mkdir()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (a_folder_for_the_lock, "cannot use the folder"),
        (
            lambda volume: StatementLog(volume, "sample", KEY.public_key(), KEY).rotate(Ed25519PrivateKey.generate()),
            "the key in BACKUP_SIGNING_KEY_FILE was replaced",
        ),
        (lambda volume: edit(statement_paths(volume, "sample")[0], backup="b"), "signature of statement 1"),
    ],
    ids=["no lock", "replaced key", "broken log"],
)
def test_a_sign_of_life_that_fails_is_logged(
    signing: Daemon,
    volume: Path,
    broken: Callable[[Path], object],
    said: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And the tick goes on."""
    broken(volume)
    forgotten()
    before = files_of(volume)
    assert signing.evaluate() is not None
    assert re.search(f"WARNING.*no sign of life was stated in the signed log: .*{said}", capfd.readouterr().err)
    assert files_of(volume) == before

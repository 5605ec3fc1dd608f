"""The freshness alert: what it sends and which checks it fails, with a real receiver on the loopback."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.files import file_sha256
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.defs.policies import run_tags
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.signing.statement_log import StatementLog
from ovia_backup_dagster_tests.conftest import NewDatabase, free_port
from ovia_backup_dagster_tests.conftest import snapshot as files_of
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver, receiver
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    DAILY_JOB,
    KEPT_JOB,
    Location,
    about,
    backdate,
    begin,
    checks,
    environment,
    failed_steps,
    failure,
    files_below,
    flip_byte,
    load,
    materialized,
    old_dump,
    retries,
)
from ovia_backup_dagster_tests.support.factories import drill_evidence
from ovia_backup_dagster_tests.support.signed_logs import edit, forgotten, key_settings, statement_paths

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

NEXT = "Next: launch daily_backup_job in the Dagster UI, or run: ovia-backup dump && ovia-backup verify latest"


def alert(location: Location, **config: Any) -> dg.ExecuteInProcessResult:
    return location.run(ALERT_JOB, config={"ops": {ALERT: {"config": config}}} if config else None)


def shown(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return dict(materialized(result)[ALERT])


# ---------------------------------------------------------------- messages


def test_no_message_is_sent_while_all_is_well(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    path = old_dump(location.catalog, timedelta(hours=25))
    result = alert(location)
    assert result.success
    assert people.asked == 0
    assert shown(result) == {
        "level": "fresh",
        "newest_backup": path.name,
        "verified": False,
        "max_age_hours": 26.0,
        "age_hours": 25.0,
        "message": "nothing is wrong; no message was sent",
    }


def test_a_stale_backup_is_alerted(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    path = old_dump(location.catalog, timedelta(hours=29, minutes=20, seconds=30))
    result = alert(location)
    assert result.success
    (message,) = people.messages
    assert message["title"] == "[sample] the newest backup is too old"
    assert message["type"] == "failure"
    assert message["message"].splitlines() == [
        f"What: the newest backup, {path.name}, is 1 d 5 h old, 3 h 20 min too old (not verified yet).",
        f"Where: sample at 127.0.0.1:5432; backups in {location.settings.backup_dir}.",
        "Likely cause: daily_backup_job fails or does not run: is its schedule on, and the Dagster daemon alive?",
        "Last verified backup: none.",
        NEXT,
    ]
    found = shown(result)
    assert found["level"] == "stale"
    assert found["told"] == "1 (json)"
    assert "not_told" not in found
    assert found["title"] == message["title"]
    assert found["message"] == message["message"]
    assert found["age_hours"] == pytest.approx(29.34, abs=0.02)


def test_a_missing_backup_is_alerted(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    found = shown(alert(location))
    assert people.titles == ["[sample] there is no backup"]
    assert "What: there is no backup." in people.messages[0]["message"]
    assert (found["level"], found["newest_backup"]) == ("missing", "none")
    assert "age_hours" not in found


def test_a_backup_from_the_future_is_alerted(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    path = old_dump(location.catalog, timedelta(hours=-3))
    found = shown(alert(location))
    assert people.titles == ["[sample] the newest backup is dated in the future"]
    text = people.messages[0]["message"]
    assert re.search(f"{path.name}, is dated (3 h|2 h 59 min) in the future: a clock is wrong", text)
    assert found["level"] == "dated in the future"


def test_a_small_clock_difference_is_tolerated(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    old_dump(location.catalog, timedelta(minutes=-4))
    assert alert(location).success
    assert people.asked == 0


@pytest.mark.parametrize("how", ["no volume", "a file in its place"])
def test_an_unreadable_volume_is_alerted(bare: NewLocation, people: Receiver, volume: Path, how: str) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    if how == "no volume":
        volume.rmdir()
    else:
        (volume / "daily").touch()
    result = alert(location)
    assert result.success
    (message,) = people.messages
    assert message["title"] == "[sample] the backup volume cannot be read"
    assert str(volume) in message["message"]
    assert "Last verified backup: none." in message["message"]
    assert "level" not in shown(result)


def test_unusable_settings_are_alerted(bare: NewLocation, people: Receiver) -> None:
    old_dump(bare().catalog, timedelta(hours=1))
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url, BACKUP_SCHEDULE="a b c d e")
    assert alert(location).success
    (message,) = people.messages
    assert message["title"] == "[sample] the backup settings are not usable"
    assert "What: the settings are not usable: BACKUP_SCHEDULE: 'a b c d e' is not a cron" in message["message"]


def test_without_a_host_the_alert_refuses(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url, POSTGRES_HOST="")
    result = alert(location)
    assert failed_steps(result) == [ALERT]
    assert "POSTGRES_HOST is not set" in failure(result)
    assert retries(result) == 0
    assert people.asked == 0


def test_the_all_clear_is_sent(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    path = old_dump(location.catalog, timedelta(hours=1))
    result = alert(location, all_clear=True, episode="2026-11-20T03:00:00+00:00")
    (message,) = people.messages
    assert message["title"] == "[sample] all is well with the backups again"
    assert message["type"] == "success"
    assert message["message"].splitlines() == [
        f"The newest backup, {path.name}, is 1 h old (not verified yet).",
        "No restore drill has passed yet.",
        "The trouble began 2026-11-20 03:00 UTC.",
    ]
    assert shown(result)["episode"] == "2026-11-20T03:00:00+00:00"


def test_the_all_clear_names_the_file_as_it_is(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url, POSTGRES_DB="Ovia-Test")
    path = old_dump(location.catalog, timedelta(hours=1))
    assert alert(location, all_clear=True).success
    assert path.name in people.messages[0]["message"]


def test_a_late_all_clear_reports_the_new_trouble(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    assert alert(location, all_clear=True).success
    assert people.titles == ["[sample] there is no backup"]
    assert people.messages[0]["type"] == "failure"


# ---------------------------------------------------------------- checks

QUESTIONS = (
    "volume_readable",
    "backups_fresh",
    "backups_undamaged",
    "backups_verified",
    "backups_proven",
    "restores_finished",
    "replaced_databases_dropped",
    "copies_elsewhere",
    "runs_succeeded",
    "settings_usable",
)


def red(result: dg.ExecuteInProcessResult) -> set[str]:
    """The checks of this materialization that did not pass."""
    assert result.success
    assert tuple(checks(result)) == QUESTIONS
    assert about(result) == {result.run_id}
    return {name for name, (passed, _) in checks(result).items() if not passed}


def said(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {check.check_name: check.description or "" for check in result.get_asset_check_evaluations()}


def test_all_checks_pass_when_all_is_well(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    path = old_dump(location.catalog, timedelta(hours=25))
    result = alert(location)
    assert red(result) == set()
    assert said(result) == {
        "volume_readable": "it can be read",
        "backups_fresh": f"the newest backup, {path.name}, is 1 d 1 h old (not verified yet)",
        "backups_undamaged": "no newer backup is bad",
        "backups_verified": "the newest backup is not verified yet",
        "backups_proven": "no restore drill has passed yet",
        "restores_finished": "none is unfinished",
        "replaced_databases_dropped": "the last run that drops replaced databases did not fail",
        "copies_elsewhere": "OFFSITE_REMOTES names no remote",
        "runs_succeeded": "no failed run needs attention",
        "settings_usable": "all settings can be used",
    }
    assert red(alert(location, all_clear=True)) == set()
    assert len(people.messages) == 1


def test_what_is_alerted_fails_its_check(bare: NewLocation, volume: Path) -> None:
    """Each trouble alone fails the check that asks for it."""
    location: Location = bare()
    # Without a backup, there is none to verify either.
    assert red(alert(location)) == {"backups_fresh", "backups_verified"}
    old_dump(location.catalog, timedelta(days=3))
    stale = alert(location)
    assert red(stale) == {"backups_fresh"}
    assert checks(stale)["backups_fresh"] == (False, dg.AssetCheckSeverity.ERROR)
    assert "1 d 22 h too old" in said(stale)["backups_fresh"]

    old_dump(location.catalog, timedelta(hours=1))
    drill_evidence(location.catalog, datetime.now(UTC), passed=False)
    drilled = alert(location)
    assert red(drilled) == {"backups_proven"}
    assert "it does not restore" in said(drilled)["backups_proven"]
    drill_evidence(location.catalog, datetime.now(UTC) + timedelta(seconds=1), passed=True)
    assert red(alert(location)) == set()

    red_so_far: set[str] = set()
    for job, check in ((DAILY_JOB, "runs_succeeded"), (KEPT_JOB, "replaced_databases_dropped")):
        run = location.instance.create_run_for_job(
            job_def=location.job(job), tags=run_tags(location.settings), status=dg.DagsterRunStatus.STARTED
        )
        location.instance.report_run_failed(run, message="killed by the kernel")
        failed = alert(location)
        red_so_far.add(check)
        assert red(failed) == red_so_far
        assert f"{job} failed at " in said(failed)[check]
        assert checks(failed)[check] == (False, dg.AssetCheckSeverity.WARN)

    unusable: Location = bare(BACKUP_DAILY_KEEP="none")
    assert red(alert(unusable)) == {*red_so_far, "settings_usable"}
    begin(location)
    assert red(alert(location)) == {*red_so_far, "restores_finished"}
    shutil.rmtree(volume)
    volume.write_text("no folder")
    # The content of the volume is unknown, so its checks fail.
    assert red(alert(location)) == {
        "volume_readable",
        "backups_fresh",
        "backups_undamaged",
        "backups_verified",
        "backups_proven",
        "restores_finished",
        "copies_elsewhere",
        *red_so_far,
    }


def test_a_failed_run_and_a_stale_backup_fail_two_checks(bare: NewLocation) -> None:
    """The alert is of the backup's age, but the failed run's own check names the run's failure."""
    location: Location = bare()
    old_dump(location.catalog, timedelta(days=3))
    run = location.instance.create_run_for_job(
        job_def=location.job(), tags=run_tags(location.settings), status=dg.DagsterRunStatus.STARTED
    )
    location.instance.report_run_failed(run, message="killed by the kernel")
    result = alert(location)
    assert red(result) == {"backups_fresh", "runs_succeeded"}
    assert said(result)["runs_succeeded"].endswith(" UTC: killed by the kernel")


# ---------------------------------------------------------------- the last failed run


def test_an_alert_explains_the_failed_run(
    database: Connection, volume: Path, bin_dir: Path, instance: dg.DagsterInstance, people: Receiver
) -> None:
    """The last good backup is two days old; then a dump was bad, and then the server was gone."""
    settings = environment(
        database, volume, bin_dir, BACKUP_NOTIFY_URLS=people.url, DAGSTER_PUBLIC_URL="https://dagster.example.org/"
    )
    location = Location(load(settings), instance)
    good = backdate(location.catalog, location.dump(), timedelta(days=2))
    assert location.verify(good).judgement.good
    bad = location.dump()
    flip_byte(bad.path)
    assert not location.verify(bad).judgement.good
    port = free_port()
    gone = Location(load({**settings, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port)}), instance)
    failed = gone.run()
    assert not failed.success
    before = files_of(volume)
    ended = datetime.now(UTC)

    result = alert(location)
    assert result.success
    (message,) = people.messages
    what, where, verified, run, why, newer, following = message["message"].splitlines()
    assert what == f"What: the newest backup, {good}, is 2 d old, 22 h too old (verified); newer than it: 1 bad one."
    assert where.endswith(f"backups in {volume}.")
    assert verified == f"Last verified backup: {good}."
    match = re.fullmatch(
        rf"Last failed run: {failed.run_id} at (\S+ \S+) UTC\. https://dagster\.example\.org/runs/{failed.run_id}", run
    )
    assert match, run
    at = datetime.strptime(match[1], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs(at - ended) < timedelta(minutes=2)
    assert why.startswith("Why it failed: no connection to database ")
    assert "Connection refused" in why
    assert newer.startswith(f"Why newer ones are bad: {bad}: {bad} was altered: its SHA-256 is ")
    assert following == NEXT
    found = shown(result)
    assert found["last_failed_run"] == failed.run_id
    assert "Connection refused" in found["last_failure"]
    assert found["verified"] is True
    assert files_of(volume) == before


def test_without_a_public_url_there_is_no_link(new_location: NewLocation, people: Receiver) -> None:
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url, POSTGRES_DB="no_such_database")
    failed = location.run()
    assert alert(location).success
    text = people.messages[0]["message"]
    assert re.search(rf"^Last failed run: {failed.run_id} at \S+ \S+ UTC\.$", text, re.MULTILINE)
    assert "http" not in text


def test_a_later_success_hides_the_failed_run(new_location: NewLocation, people: Receiver) -> None:
    broken: Location = new_location(POSTGRES_USER="nobody_of_that_name")
    assert not broken.run().success
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url)
    assert location.run().success
    for backup in location.catalog.backups(Tier.DAILY):
        backdate(location.catalog, backup, timedelta(days=2))
    for backup in location.catalog.backups(Tier.WEEKLY):
        remove_backup(location.catalog, backup)
    assert alert(location).success
    assert people.titles == [f"[{location.settings.postgres_db}] the newest backup is too old"]
    assert "ailed" not in people.messages[0]["message"]


def test_a_bad_dump_is_the_reason_of_a_failed_run(new_location: NewLocation, people: Receiver) -> None:
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url)
    location.after_dump = lambda backup: flip_byte(backup.path)
    assert not location.run().success
    assert alert(location).success
    (bad,) = location.catalog.backups()
    text = people.messages[0]["message"]
    assert f"Why it failed: {bad} is bad: {bad} was altered" in text
    assert people.titles == [f"[{location.settings.postgres_db}] there is no backup"]


def test_an_unforeseen_error_is_named_as_the_reason(new_location: NewLocation, people: Receiver) -> None:
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url)

    def defect() -> None:
        raise RuntimeError("an unforeseen bug")

    location.before_dump = defect
    assert not location.run().success
    assert alert(location).success
    assert "an unforeseen bug" in people.messages[0]["message"]


def test_a_killed_run_is_explained_by_run_monitoring(bare: NewLocation, people: Receiver) -> None:
    """Run monitoring marks the run as failed, with its own message."""
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    job = location.job()
    run = location.instance.create_run_for_job(
        job_def=job, tags=run_tags(location.settings), status=dg.DagsterRunStatus.STARTED
    )
    location.instance.report_run_failed(run, message="the run's process is gone: killed by the kernel")
    assert alert(location).success
    text = people.messages[0]["message"]
    assert f"Last failed run: {run.run_id}" in text
    assert "killed by the kernel" in text


def test_a_cancelled_run_explains_a_stale_backup(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    run = location.instance.create_run_for_job(
        job_def=location.job(), tags=run_tags(location.settings), status=dg.DagsterRunStatus.CANCELING
    )
    location.instance.report_run_canceled(run, message="an operator cancelled it")
    assert alert(location).success
    assert f"Last failed run: {run.run_id}" in people.messages[0]["message"]
    assert "an operator cancelled it" in people.messages[0]["message"]


def test_another_databases_runs_are_not_ours(
    new_database: NewDatabase, volume: Path, bin_dir: Path, instance: dg.DagsterInstance, people: Receiver
) -> None:
    """Two databases are two code locations on one instance, with jobs of the same name."""
    settings = environment(new_database(), volume, bin_dir, BACKUP_NOTIFY_URLS=people.url)
    ours = Location(load({**settings, "POSTGRES_DB": "no_such_database"}), instance)
    other = Location(load(settings), instance)
    failed = ours.run()
    assert other.run().success
    assert alert(ours).success
    assert f"Last failed run: {failed.run_id}" in people.messages[0]["message"]


# ---------------------------------------------------------------- delivery


def test_without_channels_the_alert_says_so(bare: NewLocation) -> None:
    result = alert(bare())
    assert result.success
    assert shown(result)["told"] == "no one: BACKUP_NOTIFY_URLS is empty"
    assert "not_told" not in shown(result)


def test_an_alert_is_retried_until_a_channel_answers(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    people.refusals = 2
    result = alert(location)
    assert result.success
    assert (people.asked, len(people.messages)) == (3, 1)
    assert retries(result) == 2


def test_an_alert_that_no_channel_takes_fails(bare: NewLocation, people: Receiver) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=people.url)
    people.refusals = -1
    result = alert(location)
    assert not result.success
    assert (people.asked, len(people.messages)) == (4, 0)
    assert retries(result) == 3
    assert failure(result) == (
        "no one was notified: [sample] there is no backup: no channel accepted the message: 1 (json). "
        "Next: check BACKUP_NOTIFY_URLS and the network: apprise -vv -b test URL"
    )
    assert materialized(result) == {}


def test_a_channel_that_refuses_connections_fails(bare: NewLocation) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=f"json://127.0.0.1:{free_port()}/")
    result = alert(location)
    assert failed_steps(result) == [ALERT]
    assert "no channel accepted the message: 1 (json)" in failure(result)


def test_an_unreadable_file_of_channels_fails_the_alert(bare: NewLocation, tmp_path: Path) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS_FILE=str(tmp_path / "urls"))
    result = alert(location)
    assert failed_steps(result) == [ALERT]
    assert "urls cannot be read, so no alert can be sent: No such file or directory" in failure(result)


def test_channels_are_read_from_a_file(bare: NewLocation, people: Receiver, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"# the people on call\n{people.url}\n")
    location: Location = bare(BACKUP_NOTIFY_URLS_FILE=str(tmp_path / "urls"))
    assert alert(location).success
    assert len(people.messages) == 1


def test_one_of_two_channels_is_enough(bare: NewLocation, people: Receiver) -> None:
    with receiver() as other:
        other.refusals = -1
        location: Location = bare(BACKUP_NOTIFY_URLS=f"{other.url}, {people.url}")
        result = alert(location)
    assert result.success
    assert len(people.messages) == 1
    # A channel that accepted the message gets no second one.
    assert other.asked == 1
    assert (shown(result)["told"], shown(result)["not_told"]) == ("2 (json)", "1 (json)")
    assert "some channels did not accept the message: 1 (json)" in location.logs(result.run_id)


@pytest.mark.parametrize("refused", [False, True])
def test_no_url_is_recorded_anywhere(
    bare: NewLocation,
    people: Receiver,
    tmp_path: Path,
    volume: Path,
    disk_instance: dg.DagsterInstance,
    capfd: pytest.CaptureFixture[str],
    refused: bool,
) -> None:
    location: Location = bare(BACKUP_NOTIFY_URLS=f"{people.url} nosuchservice://other-t0ken@example.org")
    location.instance = disk_instance
    people.refusals = -1 if refused else 0
    result = alert(location)
    assert result.success is not refused
    told = [dg.serialize_value(entry) + repr(entry) for entry in disk_instance.all_logs(result.run_id)]
    output = capfd.readouterr()
    text = "\n".join((*told, output.out, output.err, repr(location.system), repr(location.system.notifier)))
    assert "[sample] there is no backup" in text
    assert "2 (nosuchservice)" in text
    contents = {path: path.read_bytes() for folder in (tmp_path / "dagster", volume) for path in files_below(folder)}
    assert any(b"[sample] there is no backup" in content for content in contents.values())
    for secret in ("channel-p4ssword", "channel-t0ken", "other-t0ken"):
        assert secret not in text
        assert [path for path, content in contents.items() if secret.encode() in content] == []


# ---------------------------------------------------------------- the head of the signed log


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_each_message_ends_with_the_head_of_the_log(
    bare: NewLocation, people: Receiver, volume: Path, tmp_path: Path, broken: bool
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    location = bare(BACKUP_NOTIFY_URLS=people.url, **key_settings(tmp_path, key))
    log = StatementLog(volume, "sample", key.public_key(), key)
    log.published("a.dump", 1, "a" * 64, {})
    head = log.chain().head
    if broken:
        edit(statement_paths(volume, "sample")[0], backup="b.dump")
        forgotten()
    assert alert(location).success
    [message] = people.messages
    last = message["message"].splitlines()[-1]
    if broken:
        assert re.fullmatch(r"Signed log: it is broken: .* statement 1 .*Next: ovia-backup log verify", last)
    else:
        assert last == f"Signed log: 1 {head.sha256}"


def test_an_all_clear_ends_with_the_head_of_the_log(
    bare: NewLocation, people: Receiver, volume: Path, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    location = bare(BACKUP_NOTIFY_URLS=people.url, **key_settings(tmp_path, key))
    path = old_dump(location.catalog, timedelta(hours=1))
    log = StatementLog(volume, "sample", key.public_key(), key)
    log.published(path.name, path.stat().st_size, file_sha256(path), {})
    assert alert(location, all_clear=True).success
    assert people.titles == ["[sample] all is well with the backups again"]
    assert people.messages[0]["message"].splitlines()[-1] == f"Signed log: {log.chain().head}"

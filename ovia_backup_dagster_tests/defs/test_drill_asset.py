"""The restore drill in Dagster: launched by people and by its schedule, shown in the UI, and alerted when it fails.

All restores are real. No test waits for time to pass, except that of the real daemon: the clock of sensor and alert is
set, and evidence is dated.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import dagster as dg
import psycopg
import pytest

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import DrillError
from ovia_backup_dagster.core.sidecars import DRILLED
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.core.verdict import DrillRecord
from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.defs.drill_asset import drill_check_results
from ovia_backup_dagster.defs.schedules import usable_schedules
from ovia_backup_dagster.demo.process_groups import end_group
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.placement import Choice
from ovia_backup_dagster.drill.runner import Driller
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.proof.check_results import NO_CODE, CheckResult, Result
from ovia_backup_dagster_tests.conftest import PASSWORD, REPOSITORY, PortCluster, _databases, execute
from ovia_backup_dagster_tests.conftest import snapshot as files_of
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver
from ovia_backup_dagster_tests.defs.support import (
    DRILL,
    DRILL_JOB,
    NOON,
    OURS,
    TOLD,
    Daemon,
    Location,
    about,
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
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import drill_evidence
from ovia_backup_dagster_tests.ui.deployment import until

# Apprise 2.2 imports it while it loads its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
DAY = timedelta(days=1)
SCHEDULE = "restore_drill_schedule"
#: Always odd in the sample database: one table was clustered, and PostgreSQL writes its CHECKs differently.
ODD = {Check.TABLES, Check.SCHEMA_TEXT}


def launch(location: Location, **config: object) -> dg.ExecuteInProcessResult:
    """Run the drill with a config, as from the launchpad."""
    return location.run(DRILL_JOB, config={"ops": {DRILL: {"config": config}}} if config else None)


def evidence(location: Location) -> list[Evidence]:
    """All evidence on the volume, newest first."""
    return list(location.system.drills.newest_first())


def descriptions(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {check.check_name: check.description or "" for check in result.get_asset_check_evaluations()}


def shown(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return dict(materialized(result)[DRILL])


@dataclass(frozen=True)
class Drilled:
    """A volume with three backups of a database, two of them copies of the oldest dump, and a drill of the newest.

    Attributes:
        server: connection to the database's server, as its superuser.
        settings: for this database and volume.
        result: of the drill's run.
    """

    location: Location
    server: Connection
    settings: Mapping[str, str]
    older: Backup
    weekly: Backup
    newest: Backup
    result: dg.ExecuteInProcessResult
    evidence: Evidence


@pytest.fixture(scope="module")
def drilled(server: PortCluster, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drilled]:
    """For tests that only read it, or drill once more."""
    with contextlib.contextmanager(_databases)(server) as new, dg.DagsterInstance.ephemeral() as instance:
        database = new()
        settings = environment(database, tmp_path_factory.mktemp("drilled") / "backups", bin_dir)
        location = Location(load(settings), instance)
        assert location.run().success
        older, weekly = (location.catalog.backups(tier)[0] for tier in (Tier.DAILY, Tier.WEEKLY))
        assert location.run().success
        newest = location.catalog.backups(Tier.DAILY)[0]
        assert newest != older
        result = location.run(DRILL_JOB)
        assert result.success
        [found] = evidence(location)
        yield Drilled(location, server.connection(), settings, older, weekly, newest, result, found)


# ---------------------------------------------------------------- what a run shows


def test_every_check_is_shown_with_what_was_found(drilled: Drilled) -> None:
    found, told = checks(drilled.result), descriptions(drilled.result)
    lines = {line.check.value: line for line in drilled.evidence.lines}
    assert list(found) == [check.value for check in Check.at(Stage.DRILL)] == list(lines)
    odd = {check.value for check in ODD}
    assert {name for name, line in lines.items() if line.result is Result.ODD} == odd
    # Dagster would show a warning as failed, so an odd check passes and says in its text that it is odd.
    assert {passed for passed, _ in found.values()} == {True}
    notes = {name: "Odd, and worth a look: " if name in odd else "" for name in lines}
    assert {name: told[name] for name in found} == {name: notes[name] + line.text for name, line in lines.items()}
    assert all(told.values())
    assert about(drilled.result) == {drilled.result.run_id}


def test_skipped_checks_say_why(drilled: Drilled) -> None:
    (line,) = [line for line in drilled.evidence.lines if line.result is Result.NOT_MADE]
    assert (line.check, line.text) == (Check.OWN_CHECK, "DRILL_CHECK_COMMAND is not set")
    text = next(drilled.location.system.drills.path.glob("*.md")).read_text()
    assert "- [ ] Application health check passes after restore (not made: DRILL\\_CHECK\\_COMMAND is not set)" in text
    assert text.count("- [x] ") == 4


def test_every_number_is_metadata_for_a_plot(drilled: Drilled) -> None:
    (event,) = drilled.result.get_asset_materialization_events()
    numbers = event.step_materialization_data.materialization.metadata
    found = drilled.evidence
    assert isinstance(numbers["recovery_seconds"], dg.FloatMetadataValue)
    assert numbers["recovery_seconds"].value == found.recovery_seconds
    parts = ("hash", "roles", "restore", "materialized views", "analyze")
    assert found.recovery_seconds == pytest.approx(sum(found.phases[part] for part in parts), abs=0.01)
    for name, seconds in found.phases.items():
        metadata = numbers[f"{name.replace(' ', '_')}_seconds"]
        assert isinstance(metadata, dg.FloatMetadataValue)
        assert metadata.value == seconds
    for name, value in (
        ("copy_bytes", found.copy_bytes),
        ("rows", 6277),
        ("backup_bytes", drilled.newest.size_bytes),
        ("odd", len(ODD)),
    ):
        metadata = numbers[name]
        assert isinstance(metadata, dg.IntMetadataValue)
        assert metadata.value == value
    assert found.copy_bytes
    assert found.copy_bytes > 5_000_000


def test_the_summary_comes_first(drilled: Drilled) -> None:
    (event,) = drilled.result.get_asset_materialization_events()
    name, summary = next(iter(event.step_materialization_data.materialization.metadata.items()))
    assert name == "summary"
    assert isinstance(summary, dg.MarkdownMetadataValue)
    said = summary.value or ""
    assert said.startswith("The backup restores, and what it restores is what was dumped.")
    assert f"Recovery time to expect: **{drilled.evidence.recovery_seconds:.1f} s**" in said
    assert f"Rows: **6,277** in {len(drilled.evidence.tables)} tables" in said
    assert re.search(r"Size: \*\*[\d.]+ kB as a backup, [\d.]+ MB on disk\*\*", said)
    # The UI shows longer Markdown behind a link.
    assert len(said) < 1000


def test_the_evidence_has_every_check_and_table(drilled: Drilled) -> None:
    page = shown(drilled.result)["evidence"]
    # Partitions that are dumped through their table.
    for table, rows in (("people", 200), ("sync_batches", 80)):
        assert re.search(rf"^\| `public\.{table}` \| {rows} \| [\d.]+ kB \|$", page, re.MULTILINE)
    assert [line.split(" | ")[0][2:] for line in page.splitlines() if re.match(r"\| \w+_\w+", line)] == [
        check.value for check in Check.at(Stage.DRILL) if check is not Check.ANALYZED
    ]


def test_a_check_that_no_code_makes_is_not_shown_as_passed(drilled: Drilled) -> None:
    unmade = CheckResult(check=Check.OWN_CHECK, result=Result.NOT_MADE, text=NO_CODE)
    lines = tuple(unmade if line.check is unmade.check else line for line in drilled.evidence.lines)
    results = {
        each.check_name: each for each in drill_check_results(drilled.evidence.model_copy(update={"lines": lines}))
    }

    assert [name for name, each in results.items() if not each.passed] == [unmade.check]
    assert (results[unmade.check].severity, results[unmade.check].description) == (WARN, NO_CODE)


def test_the_evidence_is_on_the_volume_and_the_run_says_where(drilled: Drilled) -> None:
    found = shown(drilled.result)
    volume = drilled.settings["BACKUP_DIR"]
    match = re.fullmatch(rf"`(drills/[^`]+)` in `{volume}`", found["evidence_file"])
    assert match
    page = Path(volume) / match[1]
    assert page.read_text() == found["evidence"]
    assert page.read_text().startswith(f"# Restore drill of `{drilled.newest}`: passed\n")
    assert json.loads(page.with_suffix(".json").read_text())["run_id"] == drilled.result.run_id
    assert {path.stat().st_mode & 0o777 for path in (page, page.with_suffix(".json"))} == {0o600}
    assert (found["backup"], found["launched_by"], found["restored_into"]) == (
        str(drilled.newest),
        "Dagster, by hand",
        "throwaway cluster",
    )
    assert "kept_copy" not in found
    assert drilled.location.catalog.refresh(drilled.newest).drilled
    assert not drilled.location.catalog.refresh(drilled.older).drilled


# ---------------------------------------------------------------- the launchpad


@pytest.mark.exhaustive
def test_a_daily_backup_is_drilled_by_its_name(drilled: Drilled) -> None:
    result = launch(drilled.location, backup=drilled.older.path.name, where="throwaway", jobs=3)
    assert result.success
    found = evidence(drilled.location)[0]
    assert (found.backup, found.tier, found.place, found.jobs) == (str(drilled.older), "daily", "throwaway cluster", 3)
    assert drilled.location.catalog.refresh(drilled.older).drilled


def test_an_archive_is_trusted_only_if_the_launchpad_says_so(drilled: Drilled) -> None:
    chosen: list[bool] = []

    def refuse(_: Driller, __: object, choice: Choice, **___: object) -> None:
        chosen.append(choice.trust_archive)
        raise DrillError("it is not made here")

    with mock.patch.object(Driller, "drill", refuse):
        assert not launch(drilled.location, where="database").success
        assert not launch(drilled.location, where="database", trust_archive=True).success
    assert chosen == [False, True]


@pytest.mark.exhaustive
def test_a_kept_scratch_database_lasts_until_the_next_drill(drilled: Drilled) -> None:
    name = f"{drilled.settings['POSTGRES_DB']}_restore_test"

    def databases() -> set[object]:
        server = drilled.server
        with psycopg.connect(host=server.host, port=server.port, dbname="postgres", user=server.user) as session:
            return {row[0] for row in session.execute("SELECT datname FROM pg_database")}

    chosen = {"backup": drilled.weekly.path.name, "where": "database"}
    result = launch(drilled.location, **chosen, keep_copy=True, jobs=0)
    assert result.success, failure(result)
    found = evidence(drilled.location)[0]
    where = f"database {name} on {drilled.server.host}:{drilled.server.port}"
    assert (found.backup, found.tier, found.place) == (str(drilled.weekly), "weekly", where)
    assert found.jobs == max(2, len(os.sched_getaffinity(0)))
    assert shown(result)["kept_copy"] == found.kept
    asked = subprocess.run(
        f"{drilled.settings['PG_BIN_DIR']}/{found.kept} --tuples-only --command='SELECT count(*) FROM people'",
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert asked.stdout.strip() == "200"
    assert drilled.location.catalog.refresh(drilled.weekly).drilled

    again = launch(drilled.location, **chosen)
    assert again.success, failure(again)
    assert f"dropped what an earlier drill had left: {where}" in drilled.location.logs(again.run_id)
    assert evidence(drilled.location)[0].kept == ""
    assert name not in databases()


@pytest.mark.parametrize("name", ["no such backup", "../daily", "/etc/passwd", "{outside}", "{database}_daily_2026"])
def test_a_drill_refuses_files_outside_the_volume(drilled: Drilled, tmp_path: Path, name: str) -> None:
    """A user of the UI must not be able to read arbitrary files of the host."""
    outside = tmp_path / drilled.newest.path.name
    outside.write_bytes(drilled.newest.path.read_bytes())
    before = files_of(drilled.location.catalog.root)
    wanted = name.format(outside=outside, database=drilled.settings["POSTGRES_DB"])

    result = launch(drilled.location, backup=wanted)

    assert failed_steps(result) == [DRILL]
    assert failure(result).startswith(f"no backup called {wanted!r} of database ")
    assert "\n" not in failure(result)
    assert retries(result) == 0
    assert materialized(result) == {}
    assert files_of(drilled.location.catalog.root) == before
    # The command line accepts it: its user could read the file anyway.
    if name == "{outside}":
        assert drilled.location.system.driller.find(wanted).path == outside


def test_a_drill_without_any_backup_fails(bare: NewLocation) -> None:
    location: Location = bare()
    assert failure(location.run(DRILL_JOB)).startswith("there is no backup to restore: none is verified or could be.")
    assert evidence(location) == []


@pytest.mark.parametrize("config", [{"where": "production"}, {"jobs": 65}, {"jobs": -1}, {"jobs": "two"}])
def test_the_launchpad_refuses_invalid_choices(drilled: Drilled, config: dict[str, object]) -> None:
    count = len(evidence(drilled.location))
    with contextlib.suppress(dg.DagsterInvalidConfigError):
        assert not launch(drilled.location, **config).success
    assert len(evidence(drilled.location)) == count


def test_unusable_settings_fail_the_drill(drilled: Drilled) -> None:
    location = Location(load({**drilled.settings, "DRILL_WHERE": "production"}), drilled.location.instance)
    result = location.run(DRILL_JOB)
    assert failure(result).startswith("the settings are not usable: DRILL_WHERE: ")
    assert materialized(result) == {}


# ---------------------------------------------------------------- a drill that fails


def test_a_failed_check_fails_the_run_in_one_line(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(DRILL_CHECK_COMMAND="echo what it said; exit 3")
    backup = location.dump()
    location.verify(backup)

    result = location.run(DRILL_JOB)

    assert failed_steps(result) == [DRILL]
    assert retries(result) == 0
    [found] = evidence(location)
    assert failure(result) == (
        f"the restore drill of {backup} failed: own_check_passes: DRILL_CHECK_COMMAND ended with code 3; "
        "the log has what it printed. "
        f"Next: read $BACKUP_DIR/drills/{found.filename}.md; fix the cause; then: ovia-backup drill {backup}"
    )
    assert materialized(result) == {}
    verdicts = checks(result)
    assert list(verdicts) == [check.value for check in Check.at(Stage.DRILL)]
    assert verdicts[Check.OWN_CHECK] == (False, ERROR)
    assert [name for name, (_, severity) in verdicts.items() if severity is ERROR] == [Check.OWN_CHECK]
    log = location.logs(result.run_id)
    assert "own check: what it said" in log
    assert "Traceback" not in log
    step = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    # The stack shows no frame of our lower layers.
    assert step.error is not None
    assert step.error.cause is None
    assert not re.search("postgres/|core/", "".join(step.error.stack[-3:]))
    assert (found.passed, found.recovery_seconds) == (False, None)
    assert not location.catalog.refresh(backup).drilled
    assert backup.sidecar(DRILLED).exists()
    assert "what it said" not in "".join(path.read_text() for path in (volume / "drills").glob("*.*"))


@pytest.mark.exhaustive
def test_an_altered_archive_is_not_restored(new_location: NewLocation, people: Receiver) -> None:
    """Checks that were not reached are not called passed; one message tells of the bad backup and the failed drill."""
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url)
    backup = location.dump()
    location.verify(backup)
    flip_byte(backup.path)

    result = launch(location, backup=backup.path.name)

    assert failure(result).startswith(
        f"the restore drill of {backup} failed: archive_is_what_was_written: {backup} was altered: its SHA-256 is "
    )
    verdicts, told = checks(result), descriptions(result)
    assert verdicts.pop(Check.UNALTERED) == (False, ERROR)
    assert set(verdicts.values()) == {(False, WARN)}
    assert {told[name] for name in verdicts} == {"not checked, because the drill did not get that far"}
    assert materialized(result) == {}
    assert location.run("freshness_alert_job").success
    (message,) = people.messages
    assert message["title"] == f"[{location.settings.postgres_db}] there is no backup"
    assert (
        f"; the restore drill of {backup} failed: archive_is_what_was_written: {backup} was altered"
        in message["message"]
    )


# ---------------------------------------------------------------- alerts


@pytest.mark.exhaustive
def test_a_failed_drill_is_alerted_until_one_passes(
    new_location: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    location: Location = new_location(BACKUP_NOTIFY_URLS=people.url)
    failing: Location = new_location(DRILL_CHECK_COMMAND="exit 3")
    backup = location.dump()
    location.verify(backup)
    database = location.settings.postgres_db
    today = datetime.now(UTC)
    daemon = Daemon(location, monkeypatch, clock=today)
    assert daemon.tick() is None

    assert not failing.run(DRILL_JOB).success
    assert daemon.run(daemon.tick())
    (message,) = people.messages
    assert (message["title"], message["type"]) == (f"[{database}] the restore drill failed", "failure")
    what, where, proven, following = message["message"].splitlines()
    said = "own_check_passes: DRILL_CHECK_COMMAND ended with code 3; the log has what it printed"
    assert what == f"What: the restore drill of {backup} failed: {said}."
    assert where.startswith(f"Where: {database} at ")
    assert proven == f"Last verified backup: {backup}."
    assert re.fullmatch(
        rf"Next: read \$BACKUP_DIR/drills/\S+\.md; fix the cause; then: ovia-backup drill {backup}", following
    )
    assert daemon.tick() is None
    assert TOLD in (daemon.skipped or "")

    assert daemon.run(daemon.later(DAY).tick())
    assert people.titles == [f"[{database}] the restore drill failed"] * 2
    assert daemon.tick() is None

    assert location.run(DRILL_JOB).success
    assert daemon.run(daemon.tick())
    assert people.messages[2]["type"] == "success"
    passed = rf"^The last restore drill that passed was (1 d|23 h \d+ min) ago, of {backup}\.$"
    assert re.search(passed, people.messages[2]["message"], re.MULTILINE)
    assert [daemon.tick(), daemon.tick()] == [None, None]
    assert "is 1 d old (proven)" in (daemon.skipped or "")


@pytest.fixture
def daemon(bare: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The sensor at noon, over a volume without a server; the last backup is an hour old."""
    daemon = Daemon(bare(BACKUP_NOTIFY_URLS=people.url), monkeypatch)
    daemon.put(timedelta(hours=1))
    return daemon


def test_another_kind_of_trouble_is_alerted_at_once(daemon: Daemon, people: Receiver) -> None:
    """A person who was told this morning of a late backup does not know yet that a drill failed."""
    catalog = daemon.location.catalog
    (fresh,) = catalog.backups()
    fresh.path.unlink()
    late = daemon.put(timedelta(hours=30))
    assert daemon.run(daemon.tick())
    assert daemon.tick() is None

    drill_evidence(catalog, NOON, passed=False)
    assert daemon.run(daemon.later(timedelta(minutes=5)).tick())
    assert people.titles == ["[sample] the newest backup is too old"] * 2
    lines = people.messages[1]["message"].splitlines()
    assert late.name in lines[0]
    assert lines[0].endswith(" failed: restored_without_errors: it does not restore.")
    assert [line.partition(" ")[0] for line in lines].count("Next:") == 2
    assert daemon.tick() is None

    # A new backup leaves the failed drill; when a backup is late once more, both kinds were told today.
    healed = daemon.put(timedelta(minutes=1))
    assert daemon.run(daemon.tick())
    assert people.titles[2:] == ["[sample] the restore drill failed"]
    healed.unlink()
    assert daemon.later(timedelta(minutes=5)).tick() is None
    assert len(people.messages) == 3


def test_a_drill_is_due_every_35_days(daemon: Daemon, people: Receiver) -> None:
    drill_evidence(daemon.location.catalog, NOON - 35 * DAY + timedelta(minutes=1))
    assert daemon.tick() is None
    assert daemon.run(daemon.later(timedelta(minutes=2)).tick())
    assert people.titles == ["[sample] no restore drill has passed for a long time"]
    assert "What: the last restore drill that passed is 35 d old, more than 35 d." in people.messages[0]["message"]
    assert (
        "Next: launch restore_drill_job in the Dagster UI, or run: ovia-backup drill" in people.messages[0]["message"]
    )

    drill_evidence(daemon.location.catalog, NOON)
    assert daemon.run(daemon.tick())
    assert people.messages[1]["type"] == "success"
    assert daemon.tick() is None


def test_an_overdue_drill_that_failed_is_told_as_failed(daemon: Daemon, people: Receiver) -> None:
    """Of an overdue drill that failed, the failure is alerted, because it says why."""
    drill_evidence(daemon.location.catalog, NOON - 40 * DAY)
    drill_evidence(daemon.location.catalog, NOON - 2 * DAY, passed=False)
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the restore drill failed"]


def test_the_setting_decides_when_a_drill_is_overdue(
    bare: NewLocation, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days, asked in (("2", True), ("4", False)):
        daemon = Daemon(bare(DRILL_MAX_AGE_DAYS=days), monkeypatch)
        daemon.put(timedelta(hours=1))
        if asked:
            drill_evidence(daemon.location.catalog, NOON - 3 * DAY)
        assert bool(daemon.tick()) is asked


def test_no_drill_is_overdue_in_the_first_35_days(daemon: Daemon, people: Receiver) -> None:
    drills = daemon.location.system.drills
    assert drills.since() is None
    assert daemon.tick() is None  # the old script's volume: no drill is due yet
    drills.prepare(NOON - 35 * DAY)
    assert daemon.tick() is None
    drills.prepare(NOON)  # the first backup's instant stays
    assert daemon.run(daemon.later(timedelta(minutes=1)).tick())
    assert people.titles == ["[sample] no restore drill has passed for a long time"]
    assert "What: no restore drill has ever passed, more than 35 d." in people.messages[0]["message"]


@pytest.mark.parametrize(
    ("text", "asked"),
    [("2026-05-01T00:00:00+00:00\n", True), ("2026-05-01", True), ("", False), ("garbage", False), ("\udcff", False)],
)
def test_an_edited_start_of_the_drills_breaks_no_tick(daemon: Daemon, text: str, asked: bool) -> None:
    drills = daemon.location.system.drills
    drills.prepare(NOON)
    (since,) = drills.path.glob(".since*")
    since.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert bool(daemon.tick()) is asked


def test_drills_of_another_database_do_not_count(
    bare: NewLocation, daemon: Daemon, people: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other database has long been on the volume, and no drill of it passed; ours has its first backup."""
    other: Location = bare(POSTGRES_DB="other")
    other.system.drills.prepare(NOON - 90 * DAY)
    drill_evidence(other.catalog, NOON - timedelta(hours=1), passed=False)
    daemon.location.system.drills.prepare(NOON)
    assert daemon.tick() is None
    old_dump(other.catalog, timedelta(hours=1), now=NOON)
    assert Daemon(other, monkeypatch).tick() is not None


def test_an_unreadable_drills_folder_is_alerted(daemon: Daemon, people: Receiver, volume: Path) -> None:
    (volume / "drills").write_text("no folder")
    assert daemon.run(daemon.tick())
    assert people.titles == ["[sample] the backup volume cannot be read"]
    assert f"What: cannot list {volume}/drills: " in people.messages[0]["message"]


def test_unreadable_evidence_is_left_out(daemon: Daemon) -> None:
    good = drill_evidence(daemon.location.catalog, NOON - DAY)
    for name, text in (
        ("2027", ""),
        ("2028", "{}"),
        ("2029", good.read_text().replace('"version": 1', '"version": 2')),
    ):
        good.with_name(f"{name}.json").write_text(text)
    assert good.read_text().count('"version": 1') == 1
    assert daemon.tick() is None
    assert [found.filename for found in evidence(daemon.location)] == [good.stem]


# ---------------------------------------------------------------- the schedule


def schedule(**settings: str) -> dg.ScheduleDefinition:
    found = build_defs(load({"POSTGRES_HOST": "db.example.org", **settings})).resolve_schedule_def(SCHEDULE)
    assert isinstance(found, dg.ScheduleDefinition)
    return found


def test_the_settings_decide_schedule_and_time_zone() -> None:
    found = schedule(DRILL_SCHEDULE="30 6 * * 1", BACKUP_TIMEZONE="Europe/Berlin")
    assert (found.cron_schedule, found.execution_timezone) == ("30 6 * * 1", "Europe/Berlin")
    assert found.job_name == DRILL_JOB


@pytest.mark.parametrize("cron", ["a b c d e", "99 99 * * *", "0 5 31 2 *", "nonsense", "* * * * * *"])
def test_a_bad_expression_falls_back_and_says_so(cron: str) -> None:
    settings = {"DRILL_SCHEDULE": cron, "BACKUP_SCHEDULE": "30 4 * * *"}
    assert schedule(**settings).cron_schedule == "0 5 1 * *"
    found = usable_schedules(load({"POSTGRES_HOST": "db.example.org", **settings}))
    (problem,) = found.problems
    assert problem.startswith(f"DRILL_SCHEDULE: {cron!r} is not a cron expression")
    assert found.backup_schedule == "30 4 * * *"


def test_two_bad_expressions_are_both_reported() -> None:
    settings = load({"POSTGRES_HOST": "h", "DRILL_SCHEDULE": "a b c d e", "BACKUP_SCHEDULE": "0 3 31 2 *"})
    found = usable_schedules(settings)
    assert [problem.partition(":")[0] for problem in found.problems] == ["BACKUP_SCHEDULE", "DRILL_SCHEDULE"]
    assert (found.backup_schedule, found.drill_schedule) == ("0 3 * * *", "0 5 1 * *")


#: Fields that may differ between two drills of one backup.
OWN = {"started_at", "finished_at", "phases", "recovery_seconds", "launched_by", "run_id", "copy_bytes"}


def records_of(backup: Backup) -> tuple[DrillRecord, ...]:
    """The records of a backup's drills, read from the volume."""
    drills = replace(backup).drills
    return drills.drills if drills else ()


def in_common(found: Evidence) -> dict[str, Any]:
    """The evidence without times, durations and who launched it."""
    told = {name: value for name, value in json.loads(found.to_json()).items() if name not in OWN}
    for line in told["lines"]:
        line["text"] = re.sub(r"\d+\.\d s", "N s", line["text"])
    return {**told, "phases": list(found.phases)}


@pytest.mark.exhaustive
def test_ui_command_line_and_schedule_give_the_same_evidence(drilled: Drilled, tmp_path: Path) -> None:
    """The real daemon launches the scheduled drill at the next full minute."""
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((REPOSITORY / "dagster.yaml").read_bytes())
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*OURS, "PYTHON"))}
    variables = {**kept, **drilled.settings, "DAGSTER_HOME": str(home)}
    before = records_of(drilled.newest)
    with open(tmp_path / "daemon.log", "wb") as log:
        daemon = subprocess.Popen(
            (sys.executable, "-W", "ignore", "-m", "dagster._daemon", "run", "--workspace", "workspace.yaml"),
            env={**variables, "DRILL_SCHEDULE": "* * * * *", "BACKUP_MAX_AGE_HOURS": "8784"},
            cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            until(lambda: len(records_of(drilled.newest)) > len(before), 150, "the schedule drilled nothing")
        finally:
            end_group(daemon)
            daemon.wait(0)
    by_schedule = evidence(drilled.location)[0]

    program = Path(sys.executable).with_name("ovia-backup")
    ended = subprocess.run([program, "drill", "--json"], env=variables, capture_output=True, text=True, check=True)
    by_hand = evidence(drilled.location)[0]

    assert by_schedule.launched_by == f"schedule {SCHEDULE}"
    assert by_hand.launched_by.startswith("root on ") or os.geteuid() != 0
    assert (by_schedule.run_id is None, by_hand.run_id) == (False, None)
    assert json.loads(ended.stdout) == json.loads(by_hand.to_json())
    assert in_common(drilled.evidence) == in_common(by_schedule) == in_common(by_hand)
    # The order of two parallel jobs decides where the catalogs' rows are stored.
    sizes = [found.copy_bytes or 0 for found in (drilled.evidence, by_schedule, by_hand)]
    assert max(sizes) < 1.05 * min(sizes)


# ---------------------------------------------------------------- secrets


@pytest.mark.exhaustive
@pytest.mark.parametrize("code", thinned([0, 3]))
def test_no_password_is_recorded_anywhere(
    new_location: NewLocation,
    server: PortCluster,
    disk_instance: dg.DagsterInstance,
    tmp_path: Path,
    volume: Path,
    capfd: pytest.CaptureFixture[str],
    code: int,
) -> None:
    """Neither the source's, nor the restoring role's, nor those of the source's roles, nor any in a URL."""
    secret = "r3store/p@ss w%rd"
    role = f"restorer_{os.getpid()}_{code}"
    execute(server.connection(), f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{secret}'")
    try:
        location: Location = new_location(
            POSTGRES_HOST="127.0.0.1",
            POSTGRES_PORT=str(server.port),
            POSTGRES_PASSWORD=PASSWORD,
            RESTORE_POSTGRES_USER=role,
            RESTORE_POSTGRES_PASSWORD=secret,
            DRILL_CHECK_COMMAND=f'echo "url $DATABASE_URL $PGPASSWORD"; echo "$PGPASSWORD" >&2; exit {code}',
        )
        location.instance = disk_instance
        location.verify(location.dump())
        result = launch(location, where="database")
        assert result.success is (code == 0), failure(result)
    finally:
        execute(server.connection(), f"DROP ROLE {role}")
    told = [dg.serialize_value(entry) + repr(entry) for entry in disk_instance.all_logs(result.run_id)]
    output = capfd.readouterr()
    text = "\n".join((*told, output.out, output.err, repr(location.system), repr(location.system.driller)))
    assert f"own check: url postgresql://{role}:********@/" in text
    contents = {path: path.read_bytes() for folder in (tmp_path / "dagster", volume) for path in files_below(folder)}
    assert any(b"own check: url" in content for content in contents.values())
    assert any(path.parent.name == "drills" and path.suffix == ".md" for path in contents)
    for word in (PASSWORD, secret, quote(secret, safe="")):
        assert word not in text
        assert [path for path, content in contents.items() if word.encode() in content] == []


@pytest.mark.exhaustive
def test_only_processes_that_read_archives_drop_secrets(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code server passes its environment to its runs, so looking at the backups removes nothing from it."""
    monkeypatch.setenv("POSTGRES_PASSWORD", "s3cret")
    backup = location.dump()
    location.system.driller.find("latest")
    Daemon(location, monkeypatch, clock=None).tick()
    assert os.environ["POSTGRES_PASSWORD"] == "s3cret"
    location.verify(backup)
    assert "POSTGRES_PASSWORD" not in os.environ
    monkeypatch.setenv("POSTGRES_PASSWORD", "s3cret")
    assert launch(location).success
    assert "POSTGRES_PASSWORD" not in os.environ

"""``status``, its JSON, the alert and the doctor report the same level in the same words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from click.testing import CliRunner

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.doctor import drill_area, restore_area, volume_area
from ovia_backup_dagster.doctor.report import Observation
from ovia_backup_dagster_tests.defs.conftest import NewLocation, bare, instance
from ovia_backup_dagster_tests.defs.support import ALERT_JOB, Location, begin, old_dump
from ovia_backup_dagster_tests.support.factories import (
    drill_evidence,
    drilled,
    judged,
    publish,
    verified_backup,
    write_dump,
)

__all__ = ["bare", "instance"]

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2, "unknown": 3}
SEVERITIES = {"ok": "ok", "warning": "warn", "critical": "fail", "unknown": "fail"}


def ago(span: timedelta) -> datetime:
    return (datetime.now(UTC) - span).replace(microsecond=0)


def good(location: Location, age: timedelta = HOUR) -> Backup:
    return verified_backup(location.catalog, ago(age))


def fresh_and_verified(location: Location) -> None:
    good(location)


def fresh_and_proven(location: Location) -> None:
    drilled(location.catalog, good(location), at=ago(HOUR))
    drill_evidence(location.catalog, ago(HOUR))


def waits_for_verification(location: Location) -> None:
    good(location, DAY)
    publish(location.catalog, ago(HOUR))


def stale(location: Location) -> None:
    good(location, 3 * DAY)


def missing(_: Location) -> None:
    """An empty volume."""


def only_a_bad_one(location: Location) -> None:
    judged(location.catalog, publish(location.catalog, ago(HOUR)), good=False)


def dated_in_the_future(location: Location) -> None:
    good(location, -DAY)


def none_verified_for_long(location: Location) -> None:
    for days in range(4):
        publish(location.catalog, ago(days * DAY + HOUR))


def newer_one_is_bad(location: Location) -> None:
    good(location, 3 * HOUR)
    write_dump(location.catalog, ago(HOUR), content=b"no archive at all")


def drill_failed(location: Location) -> None:
    good(location)
    drill_evidence(location.catalog, ago(HOUR), passed=False)


def drill_overdue(location: Location) -> None:
    good(location)
    drill_evidence(location.catalog, ago(40 * DAY))


def restore_unfinished(location: Location) -> None:
    good(location)
    begin(location)


def journal_unreadable(location: Location) -> None:
    good(location)
    begin(location).path.write_bytes(b"no journal\n")


def volume_missing(location: Location) -> None:
    shutil.rmtree(location.catalog.root)


CONDITIONS = [
    (fresh_and_verified, "backups_fresh", "ok"),
    (fresh_and_proven, "backups_proven", "ok"),
    (waits_for_verification, "backups_fresh", "ok"),
    (stale, "backups_fresh", "critical"),
    (missing, "backups_fresh", "critical"),
    (only_a_bad_one, "backups_fresh", "critical"),
    (dated_in_the_future, "backups_fresh", "critical"),
    (none_verified_for_long, "backups_verified", "critical"),
    (newer_one_is_bad, "backups_undamaged", "warning"),
    (drill_failed, "backups_proven", "warning"),
    (drill_overdue, "backups_proven", "warning"),
    (restore_unfinished, "restores_finished", "critical"),
    (journal_unreadable, "restores_finished", "unknown"),
    (volume_missing, "volume_readable", "unknown"),
]


def doctors(location: Location) -> Iterator[Observation]:
    system = location.system
    yield from volume_area.volume(system)
    yield from volume_area.backups(system)
    yield from drill_area.drills(system)
    yield from restore_area.restores(system)


@pytest.mark.parametrize(("put", "question", "level"), CONDITIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_status_json_alert_and_doctor_agree(
    bare: NewLocation, put: Callable[[Location], None], question: str, level: str
) -> None:
    location: Location = bare()
    location.catalog.prepare()
    put(location)
    variables = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "sample", "BACKUP_DIR": str(location.catalog.root)}

    shown = CliRunner().invoke(main, ["status", "--json"], env=variables)
    status = json.loads(shown.output)
    assert (shown.exit_code, status["status"]) == (EXIT_CODES[level], level.upper())
    (answer,) = [each for each in status["answers"] if each["question"] == question]
    assert answer["level"] == level

    printed = CliRunner().invoke(main, ["status"], env=variables)
    assert printed.exit_code == EXIT_CODES[level]
    assert printed.output.startswith(f"BACKUP {level.upper()} - ")
    # The first line has the what; the why has its own line.
    said = [*answer["text"].split(": "), answer["next"] or ""]
    assert [part for part in said if part not in printed.output] == []

    result = location.run(ALERT_JOB)
    (check,) = [each for each in result.get_asset_check_evaluations() if each.check_name == question]
    yellow = check.severity is dg.AssetCheckSeverity.WARN
    assert (check.description, check.passed, yellow) == (answer["text"], level == "ok", level == "warning")
    if level != "ok":
        assert check.metadata["next"].value == answer["next"]

    # The doctor runs before the first backup is made, so a missing one is not a failure.
    expected = "warn" if put is missing else SEVERITIES[level]
    (observed,) = [each for each in doctors(location) if each.text == answer["text"]]
    assert observed.level == expected
    # The doctor has its own words for making a folder or a first backup.
    if put not in (volume_missing, missing):
        assert observed.fix == (answer["next"] or "")


def test_an_old_scripts_dump_is_no_trouble_anywhere(bare: NewLocation) -> None:
    location: Location = bare()
    old_dump(location.catalog, 5 * HOUR)
    variables = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "sample", "BACKUP_DIR": str(location.catalog.root)}
    assert CliRunner().invoke(main, ["status"], env=variables).exit_code == 0
    assert all(check.passed for check in location.run(ALERT_JOB).get_asset_check_evaluations())

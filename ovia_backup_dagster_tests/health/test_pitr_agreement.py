"""``status``, its JSON, the alert's check and the doctor say the same of point-in-time recovery, by the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from click.testing import CliRunner

from ovia_backup_dagster.cli.main import main
from ovia_backup_dagster.doctor import pitr_area
from ovia_backup_dagster.pitr.receiver_status import write_status
from ovia_backup_dagster.pitr.wal_position import Segment
from ovia_backup_dagster_tests.defs.conftest import NewLocation, bare, instance
from ovia_backup_dagster_tests.defs.support import ALERT_JOB, Location
from ovia_backup_dagster_tests.pitr.archives import archive_on, base, put_base, put_segment
from ovia_backup_dagster_tests.support.factories import verified_backup
from ovia_backup_dagster_tests.support.pitr_reports import receiver_status

__all__ = ["bare", "instance"]

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
EXIT_CODES = {"ok": 0, "warning": 1, "critical": 2}
SEVERITIES = {"ok": "ok", "warning": "warn", "critical": "fail"}
QUESTION = "any_instant_recoverable"


def put(location: Location, *, reported: timedelta = timedelta(0), made: timedelta = DAY, lacking: int = 0) -> None:
    """The files of a receiver and a base backup.

    Args:
        location: has the volume.
        reported: how long ago the receiver reported.
        made: how long ago the base backup was made.
        lacking: the segment that is missing.
    """
    now, volume = datetime.now(UTC), location.catalog.root
    verified_backup(location.catalog, (now - HOUR).replace(microsecond=0))
    archive = archive_on(volume)
    started = now - made
    put_base(archive, replace(base(10.5, drilled=True), started_at=started, finished_at=started, drilled_at=started))
    for number in (10, 11, 12, 13):
        if number != lacking:
            put_segment(archive, Segment(1, number), now - (14 - number) * MINUTE)
    status = receiver_status(
        now - reported,
        system_identifier=archive.system_identifier,
        timeline=1,
        confirmed_at=now - reported,
        worst={f"{now:%Y-%m-%dT%H}:00:00+00:00": 21.0},
    )
    write_status(volume, status)


def all_is_well(location: Location) -> None:
    put(location)


def the_receiver_stopped(location: Location) -> None:
    put(location, reported=HOUR)


def a_segment_is_missing(location: Location) -> None:
    put(location, lacking=12)


def the_base_backup_is_old(location: Location) -> None:
    put(location, made=9 * DAY)


@pytest.mark.parametrize(
    ("files", "level"),
    [
        (all_is_well, "ok"),
        (the_receiver_stopped, "critical"),
        (a_segment_is_missing, "critical"),
        (the_base_backup_is_old, "warning"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_status_json_alert_and_doctor_agree_on_recovery(
    bare: NewLocation, files: Callable[[Location], None], level: str
) -> None:
    location: Location = bare(PITR_ENABLED="true", POSTGRES_PORT="1")
    location.catalog.prepare()
    files(location)
    variables = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_DB": "sample",
        "BACKUP_DIR": str(location.catalog.root),
        "PITR_ENABLED": "true",
    }
    shown = CliRunner().invoke(main, ["status", "--json"], env=variables)
    status = json.loads(shown.output)
    assert (shown.exit_code, status["status"]) == (EXIT_CODES[level], level.upper())
    [answer] = [each for each in status["answers"] if each["question"] == QUESTION]
    assert answer["level"] == level
    pitr = status["pitr"]
    assert len(pitr["troubles"]) == (level != "ok")
    assert (pitr["worst_rpo_seconds"], pitr["newest_base"]) == (21.0, pitr["newest_verified_base"])
    assert pitr["rpo_seconds"] < 60 or files is the_receiver_stopped
    assert pitr["window_from"] < pitr["window_to"]
    assert [hole["is_history"] for hole in pitr["holes"]] == ([False] if files is a_segment_is_missing else [])
    assert datetime.fromisoformat(pitr["drilled_at"]) < datetime.now(UTC)

    printed = CliRunner().invoke(main, ["status"], env=variables)
    assert printed.exit_code == EXIT_CODES[level]
    assert "\npoint in time: any instant from " in printed.output
    assert " rpo=" in printed.output.splitlines()[0]
    said = [*answer["text"].split(": "), answer["next"] or ""] if level != "ok" else []
    assert [part for part in said if part not in printed.output] == []

    result = location.run(ALERT_JOB)
    [check] = [each for each in result.get_asset_check_evaluations() if each.check_name == QUESTION]
    yellow = check.severity is dg.AssetCheckSeverity.WARN
    assert (check.passed, yellow) == (level == "ok", level == "warning")
    [observed] = [each for each in pitr_area.recovery(location.system) if each.level == SEVERITIES[level]][-1:]
    if level != "ok":
        assert check.metadata["next"].value == answer["next"] == observed.fix
        # Ages go on between two looks.
        assert without_numbers(str(check.description)) == without_numbers(answer["text"])
        assert without_numbers(observed.text) == without_numbers(answer["text"])


def without_numbers(text: str) -> str:
    return "".join("0" if each.isdigit() else each for each in text)


def test_status_without_recovery_does_not_mention_it(bare: NewLocation) -> None:
    location: Location = bare()
    location.catalog.prepare()
    put(location, reported=DAY)
    variables = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_DB": "sample", "BACKUP_DIR": str(location.catalog.root)}
    shown = CliRunner().invoke(main, ["status", "--json"], env=variables)
    assert "pitr" not in json.loads(shown.output)
    assert shown.exit_code == 0
    printed = CliRunner().invoke(main, ["status"], env=variables)
    assert "point in time" not in printed.output

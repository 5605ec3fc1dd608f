"""The doctor's observations of this host: settings, schedule, client programs, alert channels."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.doctor import environment_area, examination
from ovia_backup_dagster.doctor.report import Area, Observation, Severity, summary, worst
from ovia_backup_dagster.postgres import versions
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import free_port
from ovia_backup_dagster_tests.defs.receiver import receiver
from ovia_backup_dagster_tests.defs.support import frozen, load
from ovia_backup_dagster_tests.doctor.support import as_it_should, executable, levels, repaired, the
from ovia_backup_dagster_tests.support.signed_logs import key_settings

# Apprise raises it on import under Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

HOST = {"POSTGRES_HOST": "db.example.org"}


def settings_of(**environment: str) -> list[Observation]:
    return list(environment_area.settings(BackupSystem(load(HOST | environment))))


def test_usable_values_are_ok() -> None:
    lines = settings_of(BACKUP_DIR="/mnt/b")
    assert as_it_should(lines)
    assert the(lines, "database ovia, backups in /mnt/b").area is Area.SETTINGS
    assert the(lines, "backups by '0 3 * * *' in UTC").level is Severity.OK


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("POSTGRES_HOST", ""),
        ("POSTGRES_PORT", "no"),
        ("BACKUP_DIR", "backups"),
        ("BACKUP_SCHEDULE", "at three"),
        ("BACKUP_SCHEDULE", "60 3 * * *"),
        ("BACKUP_SCHEDULE", "0 0 30 2 *"),
        ("BACKUP_SCHEDULE", "0 0 30 2 1"),
        ("DRILL_SCHEDULE", "0 25 1 * *"),
        ("BACKUP_TIMEZONE", "Mars/Olympus"),
        ("BACKUP_DAILY_KEEP", "0"),
        ("BACKUP_NOTIFY_URLS", "people@example.org"),
    ],
)
def test_an_unusable_value_is_a_failure(variable: str, value: str) -> None:
    lines = settings_of(**{variable: value})
    line = the(lines, f"{variable}")
    assert line.level is Severity.FAIL
    assert not [line for line in lines if line.text.startswith("backups by")]  # none is scheduled
    assert line.fix == "set the variable and start again (docs/configuration.md lists them)"


def test_with_bad_settings_only_the_programs_are_checked(bin_dir: Path) -> None:
    system = BackupSystem(load({"BACKUP_TIMEZONE": "Mars", "PG_BIN_DIR": str(bin_dir)}))
    lines = list(examination.everything(system))
    assert {line.area for line in lines} == {Area.SETTINGS, Area.PROGRAMS}
    assert [line.text for line in lines if line.level is Severity.FAIL and line.area is Area.SETTINGS] == [
        "POSTGRES_HOST is not set",
        "BACKUP_TIMEZONE: 'Mars' is not a time zone, such as Europe/Berlin",
    ]
    assert the(lines, "pg_dump, pg_restore, pg_dumpall 16.").level is Severity.OK


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("BACKUP_DIRECTORY", ""),
        ("BACKUP_TIMEZON", "BACKUP_TIMEZONE"),
        ("POSTGRES_USR", "POSTGRES_USER"),
        ("POSTGRES_PASSWORD_FLIE", "POSTGRES_PASSWORD_FILE"),
    ],
)
def test_a_variable_that_nothing_reads_is_a_warning(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    monkeypatch.setenv(variable, "never-shown")
    line = the(settings_of(), variable)
    said = f"; did you mean {meant}?" if meant else ""
    assert line == Observation(
        Area.SETTINGS, Severity.WARN, f"{variable} is set, but nothing reads it{said}", f"unset {variable}"
    )


def test_variables_of_the_servers_image_are_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POSTGRES_INITDB_ARGS", "POSTGRES_HOST_AUTH_METHOD", "BACKUPS", "POSTGRES_DB"):
        monkeypatch.setenv(name, "x")
    assert as_it_should(settings_of())


@pytest.mark.parametrize(
    ("schedule", "zone", "day"),
    [("30 2 * * *", "Europe/Berlin", "2027-03-28"), ("0 0 * * *", "America/Havana", "2027-03-14")],
)
def test_an_hour_that_the_clocks_skip_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, schedule: str, zone: str, day: str
) -> None:
    monkeypatch.setattr(environment_area, "datetime", frozen(datetime(2026, 11, 20, 12, tzinfo=UTC)))
    line = the(settings_of(BACKUP_SCHEDULE=schedule, BACKUP_TIMEZONE=zone), f"backups by '{schedule}' in {zone}")
    assert (line.level, line.text.endswith(f"on {day} the clocks skip that hour")) == (Severity.WARN, True)
    assert "BACKUP_TIMEZONE=UTC" in line.fix


@pytest.mark.parametrize(
    ("schedule", "zone"),
    [
        ("30 3 * * *", "Europe/Berlin"),
        ("30 1 * * *", "Europe/Berlin"),
        ("30 2 * * *", "Asia/Tokyo"),
        ("*/5 2 * * *", "Europe/Berlin"),
        ("@daily", "Europe/Berlin"),
    ],
)
def test_an_hour_that_every_day_has_is_ok(schedule: str, zone: str) -> None:
    assert as_it_should(settings_of(BACKUP_SCHEDULE=schedule, BACKUP_TIMEZONE=zone))


# ------------------------------------------------------------------------------------------ programs


def programs_of(folder: Path, **environment: str) -> list[Observation]:
    return list(environment_area.programs(BackupSystem(load(HOST | {"PG_BIN_DIR": str(folder)} | environment))))


@pytest.fixture
def claimed(tmp_path: Path, full_bin_dir: Path) -> Path:
    """Wrappers of the real programs; a test overwrites some of them to claim another version."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("pg_dump", "pg_restore", "pg_dumpall"):
        executable(folder / name, f'exec "{full_bin_dir}/{name}" "$@"')
    return folder


def claim(folder: Path, version: str, *names: str) -> None:
    for name in names or ("pg_dump", "pg_restore", "pg_dumpall"):
        executable(folder / name, f'case "$1" in --version) echo "{name} (PostgreSQL) {version}";; *) exit 1;; esac')


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[date], None]:
    """Set the date that the doctor sees."""

    def set_day(day: date) -> None:
        monkeypatch.setattr(
            environment_area, "datetime", frozen(datetime(day.year, day.month, day.day, 12, tzinfo=UTC))
        )

    return set_day


def test_the_whole_build_is_ok(full_bin_dir: Path, tmp_path: Path, today: Callable[[date], None]) -> None:
    today(versions.AS_OF + versions.MAX_AGE)
    lines = programs_of(repaired(full_bin_dir, tmp_path / "bin"))
    assert as_it_should(lines)
    assert the(lines, "pg_dump, pg_restore, pg_dumpall 16.16").level is Severity.OK
    assert the(lines, "no vulnerability of version 16.16 is known").text.endswith(f"(list of {versions.AS_OF})")
    assert the(lines, "pg_dump writes and pg_restore reads zstd:2").level is Severity.OK


def test_missing_programs_are_failures(tmp_path: Path) -> None:
    lines = programs_of(tmp_path)
    assert levels(lines) == [Severity.FAIL] * 3
    for name in ("pg_dump ", "pg_restore ", "pg_dumpall "):
        assert "set PG_BIN_DIR" in the(lines, f"{name}was not found in PG_BIN_DIR={tmp_path}").fix


def test_one_missing_program_is_a_failure(claimed: Path) -> None:
    (claimed / "pg_dumpall").unlink()
    (line,) = programs_of(claimed)
    assert (line.level, line.text.startswith("pg_dumpall was not found")) == (Severity.FAIL, True)


def test_a_program_that_does_not_start_is_a_failure(claimed: Path) -> None:
    executable(claimed / "pg_restore", "echo 'error while loading shared libraries: libpq.so.5' >&2; exit 127")
    line = the(programs_of(claimed), "pg_restore --version failed")
    assert line.level is Severity.FAIL
    assert "libpq.so.5" in line.text


def test_programs_of_different_versions_are_a_warning(claimed: Path) -> None:
    claim(claimed, "16.9", "pg_dumpall")
    line = the(programs_of(claimed), "different versions: pg_dump 16.15, pg_restore 16.15, pg_dumpall 16.9")
    assert line.level is Severity.WARN
    assert line.fix == "install all from one package, or set PG_BIN_DIR"
    # The oldest program's vulnerabilities are reported.
    for older in ("16.9", "16.8", "16.7", "16.6", "16.5", "16.4"):
        path = claimed / older
        path.mkdir()
        claim(path, older, "pg_dump")
        claim(path, "16.15", "pg_restore")
        claim(path, "16.14", "pg_dumpall")
        assert the(programs_of(path), f"version {older} has").level is Severity.FAIL


def test_a_versions_vulnerabilities_are_reported(claimed: Path) -> None:
    claim(claimed, "16.3 (Debian 16.3-1)")
    line = the(programs_of(claimed), "version 16.3 (Debian 16.3-1) has 11 known vulnerabilities")
    assert line.level is Severity.FAIL
    assert re.findall(r"CVE-\d+-\d+", line.text) == ["CVE-2026-116314", "CVE-2026-19385"]
    assert line.text.endswith(f"; 9 more; list of {versions.AS_OF})")
    assert line.fix == (
        "install 16.16 or newer: apt-get install --only-upgrade postgresql-client-16; or build the image again, from "
        "the newest postgres:16 by its digest (docs/runbook.md)"
    )


@pytest.mark.parametrize(
    ("version", "count"),
    [("16.14", 4), ("16.13", 5), ("16.15", 1), ("16.16", 0), ("17.10", 4), ("18.0", 6), ("18.6", 1), ("18.7", 0)],
)
def test_the_first_fixed_release_is_clean(version: str, count: int) -> None:
    assert len(versions.known_vulnerabilities(version)) == count


def test_programs_that_run_an_archives_code_fail(full_bin_dir: Path) -> None:
    """The tests' programs are such; this test fails when they no longer are."""
    line = the(programs_of(full_bin_dir), "version 16.15 has a known vulnerability (CVE-2026-116314: a crafted archive")
    assert line.level is Severity.FAIL


def test_other_vulnerabilities_warn(claimed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(found for found in versions.VULNERABILITIES if not found.executes)
    monkeypatch.setattr(versions, "VULNERABILITIES", others)
    claim(claimed, "16.14")
    line = the(programs_of(claimed), "version 16.14 has 2 known vulnerabilities")
    assert (line.level, "CVE-2026-18408" in line.text) == (Severity.WARN, True)


@pytest.mark.parametrize("found", versions.VULNERABILITIES, ids=lambda found: found.cve)
def test_each_vulnerability_has_fixes_for_14_15_and_16(found: versions.Vulnerability) -> None:
    assert re.fullmatch(r"CVE-20\d\d-\d{4,}", found.cve)
    assert set(found.fixed) >= {14, 15, 16}
    assert len(versions.VULNERABILITIES) == len({each.cve for each in versions.VULNERABILITIES})


def test_an_old_list_of_vulnerabilities_is_a_warning(claimed: Path, today: Callable[[date], None]) -> None:
    claim(claimed, "16.16")
    for days, old in ((0, False), (90, False), (91, True), (400, True)):
        today(versions.AS_OF + timedelta(days=days))
        lines = [line for line in programs_of(claimed) if "list of known vulnerabilities is" in line.text]
        assert [(line.level, f"{days} days old" in line.text) for line in lines] == [(Severity.WARN, True)] * old


@pytest.mark.parametrize("version", ["17beta1", "19.0", "9.6.24", "13.23"])
def test_an_unknown_version_is_a_warning(claimed: Path, version: str) -> None:
    claim(claimed, version)
    line = the(programs_of(claimed), f"version {version} is not in the list of known vulnerabilities")
    assert (line.level, "release" in line.fix) == (Severity.WARN, True)


def test_a_build_without_zstd_is_a_warning(bin_dir: Path) -> None:
    line = the(programs_of(bin_dir), "gzip:1: one of the programs has no zstd")
    assert (line.level, "set PG_BIN_DIR" in line.fix) == (Severity.WARN, True)


@pytest.mark.parametrize("wanted", ["gzip:6", "none", "0", "9"])
def test_a_configured_compression_is_ok(bin_dir: Path, wanted: str) -> None:
    lines = programs_of(bin_dir, BACKUP_COMPRESSION=wanted)
    assert the(lines, f"pg_dump writes and pg_restore reads {wanted}").level is Severity.OK


def test_an_impossible_compression_is_a_failure(bin_dir: Path) -> None:
    line = the(programs_of(bin_dir, BACKUP_COMPRESSION="zstd:9"), "compression zstd:9 is not available here")
    assert (line.level, "BACKUP_COMPRESSION=auto" in line.fix) == (Severity.FAIL, True)


def test_zstd_needs_both_pg_dump_and_pg_restore(claimed: Path, bin_dir: Path) -> None:
    """A pg_restore without zstd would list a zstd dump, but not read it."""
    executable(claimed / "pg_restore", f'exec "{bin_dir}/pg_restore" "$@"')
    assert the(programs_of(claimed), "gzip:1: one of the programs has no zstd").level is Severity.WARN


def test_programs_are_found_in_path() -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("no client programs in PATH")
    lines = list(environment_area.programs(BackupSystem(load(HOST))))
    assert the(lines, "pg_dump, pg_restore, pg_dumpall ").level is Severity.OK


# ------------------------------------------------------------------------------------------ alerts


def alerts_of(*urls: str) -> list[Observation]:
    return list(environment_area.alerts(BackupSystem(load(HOST | {"BACKUP_NOTIFY_URLS": ",".join(urls)}))))


def test_a_missing_alert_channel_is_reported() -> None:
    (line,) = alerts_of()
    assert (line.area, line.level) == (Area.ALERTS, Severity.WARN)
    assert line.text == "no one is notified when backups fail: BACKUP_NOTIFY_URLS is empty"
    assert line.fix.endswith("then: ovia-backup doctor --test-alert")


def test_an_unknown_channel_is_a_failure() -> None:
    lines = alerts_of("json://127.0.0.1/", "nosuchservice://s3cret-token@example.org")
    (line,) = lines
    assert (line.level, line.text) == (Severity.FAIL, "channel 2 (nosuchservice) is not a URL that Apprise understands")
    assert "s3cret-token" not in repr(lines)


def test_usable_channels_are_ok() -> None:
    (line,) = alerts_of("json://127.0.0.1/", "mailto://u:s3cret-token@example.org")
    assert (line.level, line.text) == (Severity.OK, "2 channels; try them: ovia-backup doctor --test-alert")


@pytest.mark.parametrize("look", [environment_area.alerts, environment_area.test_alert])
@pytest.mark.parametrize("content", [None, "", "# slack://s3cret-token", "s3cret-token"])
def test_an_unusable_file_of_channels_is_a_failure(
    look: Callable[[BackupSystem], Iterator[Observation]], content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "urls"
    if content is not None:
        file.write_text(content)
    lines = list(look(BackupSystem(load(HOST | {"BACKUP_NOTIFY_URLS_FILE": str(file)}))))
    (line,) = lines
    assert (line.area, line.level) == (Area.ALERTS, Severity.FAIL)
    assert "so no alert can be sent" in line.text
    assert "s3cret-token" not in repr(lines)


def test_channels_from_a_file_are_ok(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("json://127.0.0.1/\nmailto://u:s3cret-token@example.org")
    system = BackupSystem(load(HOST | {"BACKUP_NOTIFY_URLS_FILE": str(tmp_path / "urls")}))
    (line,) = environment_area.alerts(system)
    assert (line.level, line.text) == (Severity.OK, "2 channels; try them: ovia-backup doctor --test-alert")


def test_a_hidden_password_file_is_a_warning() -> None:
    both = {"POSTGRES_PASSWORD": "s3cret-token", "POSTGRES_PASSWORD_FILE": "/run/secrets/pg"}
    line = the(
        list(environment_area.settings(BackupSystem(load(HOST | both)))), "POSTGRES_PASSWORD_FILE is set, but not"
    )
    assert (line.level, line.fix) == (Severity.WARN, "unset one of them")
    assert "s3cret-token" not in repr(line)


def sent(*urls: str) -> list[Observation]:
    return list(environment_area.test_alert(BackupSystem(load(HOST | {"BACKUP_NOTIFY_URLS": ",".join(urls)}))))


def test_a_test_message_arrives() -> None:
    with receiver() as people:
        (line,) = sent(people.url)
    assert (line.level, line.text) == (Severity.OK, "channel 1 (json) accepted a test message: check that it arrived")
    (message,) = people.messages
    assert message["title"] == "[ovia] a test of the backup alerts"
    assert message["message"] == "Nothing is wrong. This is a test by ovia-backup doctor."
    assert message["type"] == "success"


def test_a_test_message_ends_with_the_head_of_the_log(tmp_path: Path) -> None:
    keys = key_settings(tmp_path, Ed25519PrivateKey.generate())
    with receiver() as people:
        list(environment_area.test_alert(BackupSystem(load(HOST | keys | {"BACKUP_NOTIFY_URLS": people.url}))))
    assert people.messages[0]["message"].splitlines()[1:] == ["Signed log: 0 empty"]


def test_one_of_two_channels_refuses_an_alert() -> None:
    with receiver() as people:
        took, refused = sent(people.url, f"json://127.0.0.1:{free_port()}/")
    assert took.level is Severity.OK
    assert (refused.level, refused.text) == (Severity.FAIL, "channel 2 (json) did not accept a test message")
    assert refused.fix == "check its URL and the network"


def test_a_test_message_that_no_channel_takes_fails() -> None:
    (line,) = sent(f"json://127.0.0.1:{free_port()}/")
    assert (line.level, "no channel accepted the message: 1 (json)" in line.text) == (Severity.FAIL, True)
    assert "apprise -vv" in line.fix


def test_without_channels_nothing_is_sent() -> None:
    assert sent() == []


# ------------------------------------------------------------------------------------------ the report


def test_the_worst_observation_decides() -> None:
    good, odd, bad = (Observation(Area.SERVER, level, "x") for level in Severity)
    assert worst([]) is Severity.OK
    assert worst([good, odd, good]) is Severity.WARN
    assert worst([odd, bad, good]) is Severity.FAIL
    assert summary([good, odd, good, bad]) == "1 fail, 1 warn, 2 ok"

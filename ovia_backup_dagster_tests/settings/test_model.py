"""Every environment variable: its meaning, its default, and the error if it cannot be used."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import SecretStr

from ovia_backup_dagster.core.deployment_hints import Hints
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster.core.tiers import Weekday
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.settings.backup import OVIA_TABLES
from ovia_backup_dagster.settings.model import SETTINGS, Settings, variable_names
from ovia_backup_dagster.settings.value_types import WEEKDAYS
from ovia_backup_dagster.system import BackupSystem

SECRET = "hunter2-is-no-good-password"


@pytest.fixture(autouse=True)
def _a_host(monkeypatch: pytest.MonkeyPatch, _no_settings_from_outside: None) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "db.example")


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings.load()


def texts(thing: object) -> list[str]:
    """All texts of a value that a log, a traceback or a page might show."""
    shown = [str(thing), repr(thing), f"{thing}", f"{[thing]}"]
    if isinstance(thing, Settings):
        shown += [thing.model_dump_json(), str(thing.model_dump()), str(thing.problems)]
    return shown


# --- Defaults and values ------------------------------------------------------------------------------------------


def test_without_variables_the_defaults_apply() -> None:
    settings = Settings.load()
    assert settings.problems == ()
    assert settings.model_dump() == {
        "postgres_host": "db.example",
        "postgres_port": 5432,
        "postgres_db": "ovia",
        "postgres_user": "ovia",
        "postgres_password": None,
        "postgres_password_file": None,
        "backup_dir": Path("/backups"),
        "backup_schedule": "0 3 * * *",
        "backup_timezone": "UTC",
        "backup_weekly_day": "sunday",
        "backup_daily_keep": 7,
        "backup_weekly_keep": 4,
        "backup_monthly_keep": 0,
        "backup_yearly_keep": 0,
        "backup_max_age_hours": 26.0,
        "backup_expected_tables": None,
        "backup_require_rows": None,
        "backup_compression": "auto",
        "backup_notify_urls": (),
        "backup_notify_urls_file": None,
        "backup_lock_wait_minutes": 30.0,
        "backup_stall_minutes": 30.0,
        "backup_asset_prefix": "",
        "backup_signing_key_file": None,
        "offsite_remotes": (),
        "rclone_config": None,
        "offsite_recipients": (),
        "offsite_identity_file": None,
        "offsite_daily_keep": 14,
        "offsite_weekly_keep": 8,
        "offsite_monthly_keep": 12,
        "offsite_yearly_keep": 3,
        "offsite_lock_days": 0,
        "offsite_max_age_hours": 50.0,
        "offsite_verification_schedule": "0 7 * * 0",
        "offsite_bandwidth": "",
        "offsite_stall_minutes": 10.0,
        "backup_verify_key_file": None,
        "drill_schedule": "0 5 1 * *",
        "drill_where": "auto",
        "drill_jobs": 0,
        "drill_dir": Path("/tmp"),
        "drill_sandbox": "auto",
        "drill_check_command": "",
        "drill_max_age_days": 35.0,
        "drill_max_hours": 6.0,
        "restore_postgres_host": None,
        "restore_postgres_port": None,
        "restore_postgres_user": None,
        "restore_postgres_password": None,
        "restore_postgres_password_file": None,
        "restore_jobs": 0,
        "restore_keep_days": 14.0,
        "pitr_enabled": False,
        "wal_postgres_user": "ovia_wal",
        "wal_postgres_password": None,
        "wal_postgres_password_file": None,
        "wal_slot": "ovia_backup",
        "wal_beacon_seconds": 10.0,
        "rpo_max_seconds": 300.0,
        "recovery_window_days": 7.0,
        "base_backup_schedule": "30 1 * * 6",
        "base_backup_max_rate": "",
        "swarm_app_services": (),
        "swarm_migrate_service": "",
        "swarm_docker_url": None,
        "health_url": "",
        "pg_bin_dir": None,
        "dagster_public_url": None,
        "dagster_keep_runs_days": 400,
        "deployment_hints": asdict(Hints()),
    }
    assert settings.libpq == {}
    assert settings.expected_tables == ("people", "identities", "person_identity_links") == OVIA_TABLES
    assert settings.require_rows is True
    assert settings.password() is None


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("POSTGRES_HOST", "/run/postgresql", "postgres_host", "/run/postgresql"),
        ("POSTGRES_PORT", "6543", "postgres_port", 6543),
        ("POSTGRES_PORT", "1", "postgres_port", 1),
        ("POSTGRES_PORT", "65535", "postgres_port", 65535),
        ("POSTGRES_DB", "a=b; drop", "postgres_db", "a=b; drop"),
        ("POSTGRES_DB", "é" * 31, "postgres_db", "é" * 31),
        ("POSTGRES_USER", "backup", "postgres_user", "backup"),
        ("POSTGRES_PASSWORD_FILE", "/run/secrets/pg", "postgres_password_file", Path("/run/secrets/pg")),
        ("BACKUP_DIR", "/mnt/b", "backup_dir", Path("/mnt/b")),
        ("BACKUP_SCHEDULE", "30 3 * * 1-5", "backup_schedule", "30 3 * * 1-5"),
        ("BACKUP_SCHEDULE", "*/20 * * * *", "backup_schedule", "*/20 * * * *"),
        ("BACKUP_SCHEDULE", "@daily", "backup_schedule", "@daily"),
        ("BACKUP_SCHEDULE", "  0 3 * * *  ", "backup_schedule", "0 3 * * *"),
        ("BACKUP_TIMEZONE", "Asia/Kathmandu", "backup_timezone", "Asia/Kathmandu"),
        ("BACKUP_WEEKLY_DAY", "Wednesday", "backup_weekly_day", "wednesday"),
        ("BACKUP_WEEKLY_DAY", " MONDAY ", "backup_weekly_day", "monday"),
        ("BACKUP_DAILY_KEEP", "1", "backup_daily_keep", 1),
        ("BACKUP_WEEKLY_KEEP", "52", "backup_weekly_keep", 52),
        ("BACKUP_MONTHLY_KEEP", "12", "backup_monthly_keep", 12),
        ("BACKUP_YEARLY_KEEP", "0", "backup_yearly_keep", 0),
        ("BACKUP_MAX_AGE_HOURS", "0.5", "backup_max_age_hours", 0.5),
        ("BACKUP_MAX_AGE_HOURS", "8784", "backup_max_age_hours", 8784.0),
        ("BACKUP_EXPECTED_TABLES", "a,b.c", "backup_expected_tables", ("a", "b.c")),
        ("BACKUP_EXPECTED_TABLES", " a , b ,, c ,", "backup_expected_tables", ("a", "b", "c")),
        ("BACKUP_EXPECTED_TABLES", "a,\n b", "backup_expected_tables", ("a", "b")),
        ("BACKUP_EXPECTED_TABLES", ",", "backup_expected_tables", ()),
        (
            "BACKUP_EXPECTED_TABLES",
            'public."My Table",people',
            "backup_expected_tables",
            ('public."My Table"', "people"),
        ),
        ("BACKUP_REQUIRE_ROWS", "false", "backup_require_rows", False),
        ("BACKUP_REQUIRE_ROWS", "1", "backup_require_rows", True),
        ("BACKUP_COMPRESSION", "zstd:3", "backup_compression", "zstd:3"),
        ("BACKUP_COMPRESSION", "zstd:level=5,long", "backup_compression", "zstd:level=5,long"),
        ("BACKUP_COMPRESSION", "none", "backup_compression", "none"),
        ("BACKUP_COMPRESSION", "6", "backup_compression", "6"),
        ("BACKUP_LOCK_WAIT_MINUTES", "0", "backup_lock_wait_minutes", 0.0),
        ("BACKUP_STALL_MINUTES", "0.5", "backup_stall_minutes", 0.5),
        ("DRILL_SCHEDULE", " @monthly ", "drill_schedule", "@monthly"),
        ("DRILL_WHERE", "database", "drill_where", "database"),
        ("DRILL_JOBS", "2", "drill_jobs", 2),
        ("DRILL_JOBS", "64", "drill_jobs", 64),
        ("DRILL_DIR", "/" + "d" * 59, "drill_dir", Path("/" + "d" * 59)),
        ("DRILL_SANDBOX", "require", "drill_sandbox", "require"),
        ("DRILL_CHECK_COMMAND", "a && b", "drill_check_command", "a && b"),
        ("DRILL_MAX_AGE_DAYS", "0.5", "drill_max_age_days", 0.5),
        ("DRILL_MAX_AGE_DAYS", "3660", "drill_max_age_days", 3660.0),
        ("DRILL_MAX_HOURS", "0.5", "drill_max_hours", 0.5),
        ("DRILL_MAX_HOURS", "744", "drill_max_hours", 744.0),
        ("RESTORE_POSTGRES_HOST", "/run/postgresql", "restore_postgres_host", "/run/postgresql"),
        ("RESTORE_POSTGRES_PORT", "6543", "restore_postgres_port", 6543),
        ("RESTORE_POSTGRES_USER", "restorer", "restore_postgres_user", "restorer"),
        ("PG_BIN_DIR", "/opt/pg/bin", "pg_bin_dir", Path("/opt/pg/bin")),
        ("DAGSTER_PUBLIC_URL", "https://dagster.example/", "dagster_public_url", "https://dagster.example"),
    ],
)
def test_a_variable_sets_its_field(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    settings = load(monkeypatch, **{name: text})
    assert settings.problems == ()
    assert getattr(settings, field) == value


ALL_VARIABLES = sorted(variable_names())


@pytest.mark.parametrize("name", ALL_VARIABLES)
def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = Settings.load()
    if name == "POSTGRES_HOST":
        assert load(monkeypatch, POSTGRES_HOST="").problems == ("POSTGRES_HOST is not set",)
    else:
        assert load(monkeypatch, **{name: ""}) == expected


def test_the_names_of_variables_stay() -> None:
    assert set(ALL_VARIABLES) >= {
        "POSTGRES_HOST",
        "POSTGRES_PORT",
        "POSTGRES_DB",
        "POSTGRES_USER",
        "PGPASSWORD",
        "POSTGRES_PASSWORD",
        "POSTGRES_PASSWORD_FILE",
        "BACKUP_DIR",
        "BACKUP_SCHEDULE",
        "BACKUP_TIMEZONE",
        "BACKUP_WEEKLY_DAY",
        "BACKUP_DAILY_KEEP",
        "BACKUP_WEEKLY_KEEP",
        "BACKUP_MONTHLY_KEEP",
        "BACKUP_YEARLY_KEEP",
        "BACKUP_MAX_AGE_HOURS",
        "BACKUP_EXPECTED_TABLES",
        "BACKUP_REQUIRE_ROWS",
        "BACKUP_COMPRESSION",
        "BACKUP_NOTIFY_URLS",
        "BACKUP_NOTIFY_URLS_FILE",
        "BACKUP_LOCK_WAIT_MINUTES",
        "BACKUP_STALL_MINUTES",
        "DRILL_SCHEDULE",
        "DRILL_WHERE",
        "DRILL_JOBS",
        "DRILL_DIR",
        "DRILL_CHECK_COMMAND",
        "DRILL_MAX_AGE_DAYS",
        "DRILL_MAX_HOURS",
        "RESTORE_POSTGRES_HOST",
        "RESTORE_POSTGRES_PORT",
        "RESTORE_POSTGRES_USER",
        "RESTORE_POSTGRES_PASSWORD",
        "RESTORE_POSTGRES_PASSWORD_FILE",
        "PG_BIN_DIR",
        "DAGSTER_PUBLIC_URL",
    }


def test_each_variable_has_a_description() -> None:
    for setting in SETTINGS:
        assert setting.shown.strip("` "), setting.name
        assert len(setting.help) > 5, setting.name
        assert setting.group, setting.name


def test_only_the_documented_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings.load()
    for name in Settings.model_fields:
        monkeypatch.setenv(name, "77")
    assert Settings.load() == expected


def test_each_setting_is_declared_once() -> None:
    fields = [setting.field for setting in SETTINGS]
    variables = [name for setting in SETTINGS for name in setting.variables]
    assert len(set(fields)) == len(fields)
    assert len(set(variables)) == len(variables)
    # The name in code is the variable's name in lower case.
    assert [setting.field for setting in SETTINGS if setting.field.upper() not in setting.variables] == []
    # Every field is in a group.
    assert {*fields, "libpq", "problems"} == set(Settings.model_fields)


def test_settings_do_not_change_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().backup_daily_keep = 1  # type: ignore[misc]


# --- What depends on the database ---------------------------------------------------------------------------------


def test_another_database_expects_no_tables_and_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, POSTGRES_DB="shop")
    assert (settings.expected_tables, settings.require_rows) == ((), False)


def test_an_explicit_value_wins_over_the_databases_default(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, BACKUP_EXPECTED_TABLES="orders", BACKUP_REQUIRE_ROWS="false")
    assert (settings.expected_tables, settings.require_rows) == (("orders",), False)
    settings = load(monkeypatch, POSTGRES_DB="shop", BACKUP_REQUIRE_ROWS="true")
    assert (settings.expected_tables, settings.require_rows) == (("orders",), True)


@pytest.mark.parametrize("day", WEEKDAYS)
def test_each_weekday_is_accepted_for_the_policy(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    policy = BackupSystem(load(monkeypatch, BACKUP_WEEKLY_DAY=day)).policy
    assert isinstance(policy, Policy)
    assert policy.weekly_day is list(Weekday)[WEEKDAYS.index(day)]


# --- Values that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("POSTGRES_PORT", "0"),
        ("POSTGRES_PORT", "65536"),
        ("POSTGRES_PORT", "-1"),
        ("POSTGRES_PORT", "postgres"),
        ("POSTGRES_PORT", "54.5"),
        ("POSTGRES_DB", "x" * 64),
        ("POSTGRES_DB", "é" * 32),
        ("POSTGRES_DB", "\udcff"),
        ("POSTGRES_USER", "x" * 64),
        ("BACKUP_SCHEDULE", "daily"),
        ("BACKUP_SCHEDULE", "0 3 * *"),
        ("BACKUP_SCHEDULE", "0 3 * * * *"),
        ("BACKUP_SCHEDULE", "@reboot"),
        ("BACKUP_TIMEZONE", "Mars/Olympus"),
        ("BACKUP_TIMEZONE", "Europe"),
        ("BACKUP_TIMEZONE", "../../etc/passwd"),
        ("BACKUP_TIMEZONE", "/etc/passwd"),
        ("BACKUP_TIMEZONE", "+02:00"),
        ("BACKUP_TIMEZONE", "x" * 5000),
        ("BACKUP_WEEKLY_DAY", "someday"),
        ("BACKUP_WEEKLY_DAY", "6"),
        ("BACKUP_DAILY_KEEP", "0"),
        ("BACKUP_DAILY_KEEP", "-7"),
        ("BACKUP_DAILY_KEEP", "seven"),
        ("BACKUP_DAILY_KEEP", "1.5"),
        ("BACKUP_WEEKLY_KEEP", "0"),
        ("BACKUP_MONTHLY_KEEP", "-1"),
        ("BACKUP_YEARLY_KEEP", "some"),
        ("BACKUP_MAX_AGE_HOURS", "0"),
        ("BACKUP_MAX_AGE_HOURS", "-1"),
        ("BACKUP_MAX_AGE_HOURS", "nan"),
        ("BACKUP_MAX_AGE_HOURS", "inf"),
        ("BACKUP_MAX_AGE_HOURS", "a day"),
        ("BACKUP_REQUIRE_ROWS", "maybe"),
        ("BACKUP_COMPRESSION", "rar"),
        ("BACKUP_COMPRESSION", "zstd:"),
        ("BACKUP_COMPRESSION", "zstd:3 --file=/etc/passwd"),
        ("BACKUP_COMPRESSION", "10"),
        ("BACKUP_NOTIFY_URLS", "someone@example.org"),
        ("BACKUP_STALL_MINUTES", "0"),
        ("BACKUP_STALL_MINUTES", "1441"),
        ("BACKUP_STALL_MINUTES", "nan"),
        ("BACKUP_LOCK_WAIT_MINUTES", "-1"),
        ("BACKUP_LOCK_WAIT_MINUTES", "1441"),
        ("BACKUP_LOCK_WAIT_MINUTES", "nan"),
        ("DRILL_SCHEDULE", "monthly"),
        ("DRILL_SCHEDULE", "0 5 1 *"),
        ("DRILL_WHERE", "production"),
        ("DRILL_WHERE", "Throwaway"),
        ("DRILL_JOBS", "1"),
        ("DRILL_JOBS", "65"),
        ("DRILL_JOBS", "-1"),
        ("DRILL_JOBS", "many"),
        ("DRILL_DIR", "drills"),
        ("DRILL_DIR", "/" + "d" * 60),
        ("DRILL_DIR", "/" + "ü" * 30),
        ("DRILL_MAX_AGE_DAYS", "0"),
        ("DRILL_MAX_AGE_DAYS", "-35"),
        ("DRILL_MAX_AGE_DAYS", "nan"),
        ("DRILL_MAX_AGE_DAYS", "3661"),
        ("DRILL_MAX_AGE_DAYS", "a month"),
        ("DRILL_MAX_HOURS", "0"),
        ("DRILL_MAX_HOURS", "-6"),
        ("DRILL_MAX_HOURS", "nan"),
        ("DRILL_MAX_HOURS", "745"),
        ("RESTORE_POSTGRES_HOST", "postgresql://restorer:p@h/db"),
        ("RESTORE_POSTGRES_HOST", "host=h"),
        ("RESTORE_POSTGRES_PORT", "65536"),
        ("RESTORE_POSTGRES_USER", "x" * 64),
        ("DAGSTER_PUBLIC_URL", "dagster.example"),
        ("DAGSTER_PUBLIC_URL", "javascript:alert(1)"),
    ],
)
def test_an_invalid_value_is_a_problem_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    expected = Settings.load()
    settings = load(monkeypatch, **{name: text})
    (problem,) = settings.problems
    assert problem.startswith(f"{name}: ")
    assert len(problem) > len(f"{name}: ")
    # The default is used, so that the code location loads.
    assert settings.model_copy(update={"problems": ()}) == expected
    with pytest.raises(SettingsError, match=name):
        settings.require()


def test_each_problem_is_named_and_valid_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        POSTGRES_HOST="",
        POSTGRES_PORT="x",
        BACKUP_DAILY_KEEP="0",
        BACKUP_WEEKLY_KEEP="9",
        BACKUP_DIR="/mnt/b",
    )
    assert [problem.partition(":")[0] for problem in settings.problems] == [
        "POSTGRES_HOST is not set",
        "POSTGRES_PORT",
        "BACKUP_DAILY_KEEP",
    ]
    assert (settings.backup_weekly_keep, settings.backup_dir) == (9, Path("/mnt/b"))
    with pytest.raises(SettingsError) as refused:
        settings.require()
    assert all(problem in refused.value.why for problem in settings.problems)


def test_without_a_host_every_operation_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTGRES_HOST")
    system = BackupSystem(Settings.load())
    for part in ("catalog", "connection", "dumper", "verifier", "driller", "drills", "policy"):
        with pytest.raises(SettingsError, match="POSTGRES_HOST is not set") as refused:
            getattr(system, part)
        assert "\n" not in str(refused.value)


def test_with_good_settings_no_operation_refuses() -> None:
    Settings.load().require()


# --- The password -------------------------------------------------------------------------------------------------


def reveal(password: SecretStr | None) -> str | None:
    return password.get_secret_value() if password is not None else None


def test_the_order_of_password_variables_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n", encoding="utf-8")
    assert reveal(load(monkeypatch, POSTGRES_PASSWORD_FILE=str(file)).password()) == "from the file"
    assert reveal(load(monkeypatch, POSTGRES_PASSWORD="plain").password()) == "plain"
    assert reveal(load(monkeypatch, PGPASSWORD="libpq's").password()) == "libpq's"


def test_an_empty_password_variable_does_not_hide_the_next_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from the file", encoding="utf-8")
    empty = {"PGPASSWORD": "", "POSTGRES_PASSWORD_FILE": str(file)}
    assert reveal(load(monkeypatch, POSTGRES_PASSWORD="plain", **empty).password()) == "plain"
    assert reveal(load(monkeypatch, POSTGRES_PASSWORD="", **empty).password()) == "from the file"


def test_the_restoring_role_has_its_own_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The dumping role's password is valid only for that role."""
    file = tmp_path / "password"
    file.write_text("from the file\n", encoding="utf-8")
    monkeypatch.setenv("POSTGRES_PASSWORD", "the dumping role's")
    assert reveal(Settings.load().restore_password()) == "the dumping role's"
    assert reveal(load(monkeypatch, RESTORE_POSTGRES_USER="ovia").restore_password()) == "the dumping role's"
    assert load(monkeypatch, RESTORE_POSTGRES_USER="restorer").restore_password() is None
    assert reveal(load(monkeypatch, RESTORE_POSTGRES_PASSWORD_FILE=str(file)).restore_password()) == "from the file"
    assert reveal(load(monkeypatch, RESTORE_POSTGRES_PASSWORD="plain").restore_password()) == "plain"
    file.write_text("", encoding="utf-8")
    settings = load(monkeypatch, RESTORE_POSTGRES_PASSWORD="")
    with pytest.raises(SettingsError, match=r"RESTORE_POSTGRES_PASSWORD_FILE=.* is empty"):
        settings.restore_password()


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"secret\nsecond line\n", "secret"),
        (b" with blanks \n", " with blanks "),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"#not a comment\n", "#not a comment"),
    ],
)
def test_the_password_is_the_first_line_of_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, password: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    assert reveal(load(monkeypatch, POSTGRES_PASSWORD_FILE=str(file)).password()) == password


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"\nsecond line"])
def test_an_empty_password_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"POSTGRES_PASSWORD_FILE=.* is empty"):
        load(monkeypatch, POSTGRES_PASSWORD_FILE=str(file)).password()


def test_a_missing_password_file_is_an_error_only_at_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load(monkeypatch, POSTGRES_PASSWORD_FILE=str(tmp_path / "missing"))
    assert settings.problems == ()
    with pytest.raises(SettingsError, match="No such file"):
        settings.password()


def test_a_password_file_that_is_a_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Is a directory"):
        load(monkeypatch, POSTGRES_PASSWORD_FILE=str(tmp_path)).password()


def test_a_binary_password_file_is_an_error_that_hides_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(SettingsError, match="it is not text") as refused:
        load(monkeypatch, POSTGRES_PASSWORD_FILE=str(file)).password()
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert SECRET not in str(refused.value)


def test_a_password_file_is_read_at_each_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("old", encoding="utf-8")
    settings = load(monkeypatch, POSTGRES_PASSWORD_FILE=str(file))
    assert reveal(settings.password()) == "old"
    file.write_text("rotated", encoding="utf-8")
    assert reveal(settings.password()) == "rotated"


# --- libpq's own variables ----------------------------------------------------------------------------------------


def test_only_libpqs_tls_and_passfile_variables_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = {
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
        "PGSSLCERT": "/me.pem",
        "PGSSLKEY": "/me.key",
        "PGPASSFILE": "/pgpass",
    }
    others = {
        "PGHOST": "elsewhere",
        "PGHOSTADDR": "10.0.0.1",
        "PGPORT": "1",
        "PGDATABASE": "other",
        "PGUSER": "other",
        "PGOPTIONS": "-c statement_timeout=1",
        "PGSERVICE": "other",
        "PGSERVICEFILE": "/other",
        "PGREQUIREAUTH": "none",
        "PGCLIENTENCODING": "LATIN1",
        "PGTZ": "Asia/Kathmandu",
    }
    connection = BackupSystem(load(monkeypatch, **passed, **others, POSTGRES_PASSWORD="x")).connection
    assert connection.libpq == passed
    environment = connection.environment()
    assert {name: environment[name] for name in passed} == passed
    assert environment["PGHOST"] == "db.example"
    assert environment["PGDATABASE"] == environment["PGUSER"] == "ovia"
    assert environment["PGPORT"] == "5432"
    assert not set(others.values()) & set(environment.values())


def test_an_empty_libpq_variable_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    # libpq takes an empty PGSSLMODE for the name of a mode, and refuses it.
    assert load(monkeypatch, PGSSLMODE="", PGPASSFILE="").libpq == {}


# --- Where alerts go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("mailto://a:b@example.org", ["mailto://a:b@example.org"]),
        ("slack://A/B/C, ntfy://topic", ["slack://A/B/C", "ntfy://topic"]),
        ("slack://A/B/C\nntfy://topic\n", ["slack://A/B/C", "ntfy://topic"]),
        ("mailto://u:p@h?to=a@x.org,b@x.org,ntfys://h/t", ["mailto://u:p@h?to=a@x.org,b@x.org", "ntfys://h/t"]),
        ("json://h/?-X=a,b,c", ["json://h/?-X=a,b,c"]),
        (",slack://A/B/C,", ["slack://A/B/C"]),
        ("slack://A/B/C,,ntfy://t", ["slack://A/B/C", "ntfy://t"]),
    ],
)
def test_a_comma_separates_notify_urls_only_before_a_scheme(
    monkeypatch: pytest.MonkeyPatch, text: str, urls: list[str]
) -> None:
    settings = load(monkeypatch, BACKUP_NOTIFY_URLS=text)
    assert settings.problems == ()
    assert [url.get_secret_value() for url in settings.backup_notify_urls] == urls


# --- Alert URLs from a file ---------------------------------------------------------------------------------------


def urls_from(monkeypatch: pytest.MonkeyPatch, file: Path, content: bytes) -> list[str]:
    file.write_bytes(content)
    settings = load(monkeypatch, BACKUP_NOTIFY_URLS_FILE=str(file))
    assert settings.problems == ()
    return [url.get_secret_value() for url in settings.notify_urls()]


@pytest.mark.parametrize(
    ("content", "urls"),
    [
        (b"slack://A/B/C", ["slack://A/B/C"]),
        (b"slack://A/B/C\n", ["slack://A/B/C"]),
        (b"slack://A/B/C\r\n\r\n  ntfy://t \r\n", ["slack://A/B/C", "ntfy://t"]),
        (b"slack://A/B/C, ntfy://t,\njson://h/?-X=a,b\n", ["slack://A/B/C", "ntfy://t", "json://h/?-X=a,b"]),
        (b"# slack://old\n  # both:\nntfy://t#part\n", ["ntfy://t#part"]),
    ],
)
def test_alert_urls_are_read_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, urls: list[str]
) -> None:
    assert urls_from(monkeypatch, tmp_path / "urls", content) == urls


@pytest.mark.parametrize("content", [b"", b"\n , \n", b"# slack://A/B/C\n"])
def test_a_file_without_alert_urls_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SettingsError, match=r"BACKUP_NOTIFY_URLS_FILE=.* holds no URL, so no alert can be sent"):
        urls_from(monkeypatch, tmp_path / "urls", content)


@pytest.mark.parametrize("content", [f"slack://A\n{SECRET}\n".encode(), SECRET.encode()])
def test_a_line_that_is_not_a_url_is_an_error_that_hides_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(SettingsError, match=r"URL number [12] has no scheme") as refused:
        urls_from(monkeypatch, tmp_path / "urls", content)
    assert SECRET not in str(refused.value)


def test_an_unreadable_file_of_urls_is_an_error_only_at_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load(monkeypatch, BACKUP_NOTIFY_URLS_FILE=str(tmp_path / "missing"))
    settings.require()
    with pytest.raises(SettingsError) as refused:
        settings.notify_urls()
    assert str(refused.value) == (
        f"BACKUP_NOTIFY_URLS_FILE={tmp_path}/missing cannot be read, so no alert can be sent: No such file "
        f"or directory. Next: ls -l {tmp_path}/missing"
    )
    with pytest.raises(SettingsError, match="it is not text"):
        urls_from(monkeypatch, tmp_path / "urls", b"slack://\xff")


def test_a_file_of_alert_urls_is_read_at_each_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("slack://old")
    system = BackupSystem(load(monkeypatch, BACKUP_NOTIFY_URLS_FILE=str(file)))
    assert [url.get_secret_value() for url in system.notifier.urls] == ["slack://old"]
    file.write_text("slack://new")
    assert [url.get_secret_value() for url in system.notifier.urls] == ["slack://new"]


def test_alert_urls_set_twice_are_a_problem_sent_to_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "urls"
    file.write_text("slack://file")
    settings = load(monkeypatch, BACKUP_NOTIFY_URLS="slack://variable", BACKUP_NOTIFY_URLS_FILE=str(file))
    assert settings.problems == ("BACKUP_NOTIFY_URLS and BACKUP_NOTIFY_URLS_FILE are both set: set one of them",)
    assert [url.get_secret_value() for url in settings.notify_urls()] == ["slack://variable", "slack://file"]
    file.unlink()
    assert [url.get_secret_value() for url in settings.notify_urls()] == ["slack://variable"]
    assert load(monkeypatch, BACKUP_NOTIFY_URLS="").problems == ()


def test_an_unused_password_file_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"POSTGRES_PASSWORD_FILE": "/x", "RESTORE_POSTGRES_PASSWORD_FILE": "/y"}
    assert load(monkeypatch, **both).unread == {}
    settings = load(monkeypatch, POSTGRES_PASSWORD=SECRET, RESTORE_POSTGRES_PASSWORD=SECRET)
    # As always, the variable has precedence.
    assert reveal(settings.password()) == reveal(settings.restore_password()) == SECRET
    assert settings.problems == ()
    assert settings.unread == {
        "POSTGRES_PASSWORD_FILE": "PGPASSWORD or POSTGRES_PASSWORD",
        "RESTORE_POSTGRES_PASSWORD_FILE": "RESTORE_POSTGRES_PASSWORD",
    }


def test_the_volume_alone_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, POSTGRES_HOST="").require_volume()
    with pytest.raises(SettingsError, match="BACKUP_DIR"):
        load(monkeypatch, POSTGRES_HOST="", BACKUP_DIR="relative").require_volume()


# --- Secrets ------------------------------------------------------------------------------------------------------


def test_settings_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        POSTGRES_PASSWORD=SECRET,
        BACKUP_NOTIFY_URLS=f"mailto://me:{SECRET}@example.org",
        BACKUP_DAILY_KEEP="0",
    )
    assert not [text for text in texts(settings) if SECRET in text]
    with pytest.raises(SettingsError) as refused:
        settings.require()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", ["BACKUP_NOTIFY_URLS", "DAGSTER_PUBLIC_URL"])
def test_a_problem_does_not_show_a_value_that_may_hold_a_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = load(monkeypatch, **{name: f"me:{SECRET}@example.org"})
    assert len(settings.problems) == 1
    assert not [text for text in texts(settings) if SECRET in text]


@pytest.mark.parametrize("name", [n for n in ALL_VARIABLES if n not in ("PGPASSWORD", "POSTGRES_PASSWORD")])
def test_a_misplaced_password_is_in_no_problem_text(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = load(monkeypatch, **{name: "?", "POSTGRES_PASSWORD": SECRET})
    assert not [text for text in texts(settings) if SECRET in text]


def test_a_connection_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = BackupSystem(load(monkeypatch, POSTGRES_PASSWORD=SECRET)).connection
    assert isinstance(connection, Connection)
    assert not [text for text in texts(connection) if SECRET in text]
    # Only the child's environment contains it.
    assert connection.environment()["PGPASSWORD"] == SECRET
    assert connection.redact(f"FATAL: {SECRET} is wrong") == "FATAL: ******** is wrong"


def test_the_system_and_its_parts_show_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = f"mailto://me:{SECRET}@example.org"
    system = BackupSystem(load(monkeypatch, POSTGRES_PASSWORD=SECRET, BACKUP_NOTIFY_URLS=urls))
    for part in (system, system.dumper, system.notifier, system.catalog, system.verifier):
        assert not [text for text in texts(part) if SECRET in text]


def test_an_error_keeps_its_text_between_processes() -> None:
    error = SettingsError("what", why="why", fix="fix")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (SettingsError, "what: why. Next: fix")


def test_the_environment_is_read_only_when_settings_load(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings.load()
    monkeypatch.setenv("BACKUP_DAILY_KEEP", "3")
    assert os.environ["BACKUP_DAILY_KEEP"] == "3"
    assert (before.backup_daily_keep, Settings.load().backup_daily_keep) == (7, 3)


# --- Settings from code: several databases in one process ---------------------------------------------------------


def test_settings_from_values_are_those_of_the_same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    texts_given = {
        "POSTGRES_PORT": "6543",
        "POSTGRES_DB": "shop",
        "BACKUP_DIR": "/mnt/shop",
        "BACKUP_WEEKLY_DAY": "Monday",
        "BACKUP_EXPECTED_TABLES": "orders, customers",
        "BACKUP_NOTIFY_URLS": f"mailto://me:{SECRET}@example.org, ntfy://topic",
        "POSTGRES_PASSWORD": SECRET,
        "DEPLOYMENT_HINTS": "server: systemctl status postgresql",
        "DAGSTER_PUBLIC_URL": "https://dagster.example/",
    }
    loaded = load(monkeypatch, **texts_given)
    assert loaded.problems == ()
    for name in texts_given:
        monkeypatch.delenv(name)
    as_texts = {name.lower(): text for name, text in texts_given.items()}
    assert Settings.of(postgres_host="db.example", **as_texts) == loaded
    assert loaded == Settings.of(
        postgres_host="db.example",
        postgres_port=6543,
        postgres_db="shop",
        backup_dir=Path("/mnt/shop"),
        backup_weekly_day="monday",
        backup_expected_tables=["orders", "customers"],
        backup_notify_urls=[f"mailto://me:{SECRET}@example.org", "ntfy://topic"],
        postgres_password=SecretStr(SECRET),
        deployment_hints={"server": "systemctl status postgresql"},
        dagster_public_url="https://dagster.example",
    )


def test_settings_from_values_read_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings.of(postgres_host="other.example")
    for name in ALL_VARIABLES:
        monkeypatch.setenv(name, "77")
    for name in ("PGSSLMODE", "PGPASSFILE", "PGHOST"):
        monkeypatch.setenv(name, "of-the-surroundings")
    settings = Settings.of(postgres_host="other.example")
    assert settings == expected
    assert (settings.problems, settings.libpq, settings.password()) == ((), {}, None)
    assert settings.model_dump() == {**expected.model_dump(), "postgres_host": "other.example"}


def test_a_value_that_is_none_or_empty_is_not_set() -> None:
    expected = Settings.of(postgres_host="db.example")
    for setting in SETTINGS:
        for nothing in (None, ""):
            given = {"postgres_host": "db.example", setting.field: nothing}
            if setting.field == "postgres_host":
                assert Settings.of(**given).problems == ("POSTGRES_HOST is not set",)
            else:
                assert Settings.of(**given) == expected
    # An empty list means that no tables are expected, unlike no value at all.
    assert Settings.of(postgres_host="db.example", backup_expected_tables=()).expected_tables == ()


def test_an_invalid_value_from_code_is_a_problem_too() -> None:
    settings = Settings.of(postgres_port=0, backup_daily_keep="seven", backup_weekly_keep=9, libpq={"PGHOST": "x"})
    assert [problem.partition(":")[0] for problem in settings.problems] == [
        "POSTGRES_HOST is not set",
        "POSTGRES_PORT",
        "BACKUP_DAILY_KEEP",
        "libpq",
    ]
    assert (settings.postgres_port, settings.backup_daily_keep, settings.backup_weekly_keep) == (5432, 7, 9)
    assert settings.libpq == {}
    with pytest.raises(SettingsError, match="POSTGRES_PORT: 0 is not a port"):
        settings.require()


@pytest.mark.parametrize("name", ["POSTGRES_HOST", "postgres_hots", "problems", "title"])
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"no settings are called {name}"):
        Settings.of(**{name: "x"})


def test_two_databases_in_one_process_are_independent(tmp_path: Path) -> None:
    """Each has its own server, volume, role, password file and TLS."""
    systems = {}
    for name in ("ovia", "shop"):
        (tmp_path / name).write_text(f"{name}'s password\n")
        systems[name] = BackupSystem(
            Settings.of(
                postgres_host=f"{name}.example",
                postgres_db=name,
                postgres_password_file=tmp_path / name,
                backup_dir=tmp_path / f"{name}-backups",
                libpq={"PGSSLMODE": "require"} if name == "shop" else {},
            )
        )
    for name, system in systems.items():
        environment = system.connection.environment()
        assert (environment["PGHOST"], environment["PGDATABASE"]) == (f"{name}.example", name)
        assert environment["PGPASSWORD"] == f"{name}'s password"
        assert environment.get("PGSSLMODE") == ("require" if name == "shop" else None)
        assert system.catalog.root == tmp_path / f"{name}-backups"
        assert set(system.settings.secrets()) == {f"{name}'s password"}
    assert systems["ovia"].settings.expected_tables == OVIA_TABLES
    assert systems["shop"].settings.expected_tables == ()
    (tmp_path / "shop").unlink()
    with pytest.raises(SettingsError, match=r"POSTGRES_PASSWORD_FILE=.*/shop cannot be read"):
        _ = systems["shop"].connection
    assert systems["ovia"].connection.password is not None

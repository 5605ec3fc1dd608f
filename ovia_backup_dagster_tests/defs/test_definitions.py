"""The code location as people and other programs see it: its names, and that it loads with any settings."""

from __future__ import annotations

import json
import shutil
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from ovia_backup_dagster.definitions import defs
from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster_tests.conftest import REPOSITORY, NewDatabase
from ovia_backup_dagster_tests.conftest import snapshot as files_of
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    CHAIN,
    DAILY_JOB,
    Location,
    dagster,
    dg_command,
    environment,
    failed_steps,
    failure,
    load,
    materialized,
)
from ovia_backup_dagster_tests.support.exhaustive import sampled, thinned
from ovia_backup_dagster_tests.support.factories import verified_backup

HOST = {"POSTGRES_HOST": "db.example.org"}

# ---------------------------------------------------------------- the public surface

ASSETS: dict[str, dict[str, Any]] = {
    "daily_dump": {
        "deps": [],
        "group": "backup",
        "kinds": ["file", "postgres"],
        "owners": ["team:ovia-operations"],
        "pool": "backup_volume",
        "freshness": (timedelta(hours=25), timedelta(hours=26)),
        "checks": {},
    },
    "dump_verification": {
        "deps": ["daily_dump"],
        "group": "backup",
        "kinds": ["file", "postgres"],
        "owners": ["team:ovia-operations"],
        "pool": "backup_volume",
        "freshness": (timedelta(hours=25), timedelta(hours=26)),
        "checks": {
            "archive_matches_manifest": "blocks",
            "archive_decodes": "blocks",
            "expected_tables_present": "blocks",
            "expected_tables_hold_rows": "blocks",
            "tables_kept_their_rows": "warns",
            "dump_without_warnings": "warns",
            "source_is_the_one_backed_up": "blocks",
        },
    },
    "weekly_promotion": {
        "deps": ["dump_verification"],
        "group": "backup",
        "kinds": ["file"],
        "owners": ["team:ovia-operations"],
        "pool": "backup_volume",
        "freshness": None,
        "checks": {},
    },
    "retention_pruning": {
        "deps": ["weekly_promotion"],
        "group": "backup",
        "kinds": ["file"],
        "owners": ["team:ovia-operations"],
        "pool": "backup_volume",
        "freshness": None,
        "checks": {},
    },
    "restore_drill": {
        "deps": ["dump_verification"],
        "group": "backup",
        "kinds": ["postgres"],
        "owners": ["team:ovia-operations"],
        # Not the volume's pool: no backup waits for a drill.
        "pool": "restore_drill",
        "freshness": None,
        "checks": {
            "archive_is_what_was_written": "blocks",
            "drill_contained": "blocks",
            "functions_gain_no_rights": "warns",
            "extensions_as_in_source": "blocks",
            "roles_as_saved": "blocks",
            "restored_without_errors": "blocks",
            "rows_and_content_equal": "blocks",
            "sequences_equal": "blocks",
            "large_objects_equal": "blocks",
            "contents_equal": "blocks",
            "constraints_and_indexes_as_in_source": "blocks",
            "schema_text_equal": "warns",
            "materialized_views_refreshed": "warns",
            "computed_values_equal": "blocks",
            "expected_tables_present": "blocks",
            "expected_tables_hold_rows": "blocks",
            "tables_kept_their_rows": "warns",
            "analyzed": "blocks",
            "negative_control": "blocks",
            "own_check_passes": "blocks",
        },
    },
    "backup_freshness_alert": {
        "deps": [],
        "group": "alerts",
        "kinds": ["alert"],
        "owners": ["team:ovia-operations"],
        # Not the volume's pool: people must be alerted while a dump hangs.
        "pool": None,
        "freshness": None,
        "checks": {
            "volume_readable": "warns",
            "backups_fresh": "warns",
            "backups_undamaged": "warns",
            "backups_verified": "warns",
            "backups_proven": "warns",
            "restores_finished": "warns",
            "replaced_databases_dropped": "warns",
            "copies_elsewhere": "warns",
            "runs_succeeded": "warns",
            "settings_usable": "warns",
        },
    },
    "backup_doctor": {
        "deps": [],
        "group": "alerts",
        "kinds": ["postgres"],
        "owners": ["team:ovia-operations"],
        # The doctor only reads, and blocks no other run.
        "pool": None,
        "freshness": None,
        "checks": {
            "settings": "warns",
            "programs": "warns",
            "volume": "warns",
            "backups": "warns",
            "server": "warns",
            "rights": "warns",
            "drills": "warns",
            "restores": "warns",
            "remotes": "warns",
            "recovery": "warns",
            "alerts": "warns",
            "dagster": "warns",
        },
    },
}

JOBS: dict[str, dict[str, Any]] = {
    "daily_backup_job": {
        "assets": {"daily_dump", "dump_verification", "weekly_promotion", "retention_pruning"},
        "tags": {"ovia/database": "ovia", "ovia/volume": "/backups", "ovia/long": "dump"},
    },
    "freshness_alert_job": {
        "assets": {"backup_freshness_alert"},
        "tags": {"ovia/database": "ovia", "dagster/priority": "3"},
    },
    "doctor_job": {
        "assets": {"backup_doctor"},
        "tags": {"ovia/database": "ovia", "dagster/priority": "1"},
    },
    "restore_drill_job": {
        "assets": {"restore_drill"},
        "tags": {
            "ovia/database": "ovia",
            "ovia/long": "drill",
            "dagster/priority": "-1",
            "dagster/max_runtime": "22500",
        },
    },
    "history_pruning_job": {"assets": set(), "tags": {"ovia/database": "ovia"}},
    "restore_job": {
        "assets": set(),
        "tags": {
            "ovia/database": "ovia",
            "dagster/max_retries": "0",
            "dagster/max_runtime": "0",
            "dagster/priority": "2",
        },
    },
    "kept_databases_job": {"assets": set(), "tags": {"ovia/database": "ovia"}},
}

LAUNCHPAD = {
    "daily_dump": set(),
    "dump_verification": {"backup", "accept"},
    "weekly_promotion": {"backup"},
    "retention_pruning": {"dry_run"},
    "restore_drill": {"backup", "where", "jobs", "keep_copy", "trust_archive"},
    "backup_freshness_alert": {"all_clear", "episode"},
}
#: The defaults of its fields.
RESTORE_LAUNCHPAD = {
    "action": "plan",
    "confirm": "",
    "backup": "latest",
    "to": "",
    "kept": "",
    "mode": "swap",
    "tables": [],
    "into": "",
    "jobs": 0,
    "stop_services_first": False,
    "replicas": {},
    "new_host": False,
    "create_roles": False,
    "privileged_roles": [],
    "even_if_damaged": False,
    "auto_undo": False,
    "without_services": False,
}


def test_the_assets_match_the_public_surface() -> None:
    defs = build_defs(load(HOST))
    found = {}
    for spec in defs.resolve_all_asset_specs():
        asset = defs.resolve_assets_def(spec.key)
        found[spec.key.to_user_string()] = {
            "deps": [dep.asset_key.to_user_string() for dep in spec.deps],
            "group": spec.group_name,
            "kinds": sorted(spec.kinds),
            "owners": list(spec.owners),
            "pool": asset.op.pool,
            "freshness": freshness(spec),
            "checks": {check.name: "blocks" if check.blocking else "warns" for check in asset.check_specs},
        }
        assert spec.description
        assert all(check.description for check in asset.check_specs)
    assert found == ASSETS


def freshness(spec: dg.AssetSpec) -> tuple[timedelta, timedelta] | None:
    policy: Any = spec.freshness_policy
    return policy and (policy.warn_window.to_timedelta(), policy.fail_window.to_timedelta())


def test_each_asset_has_its_launchpad_fields() -> None:
    defs = build_defs(load(HOST))
    found = {}
    for name in LAUNCHPAD:
        config = defs.resolve_assets_def(dg.AssetKey(name)).op.config_field
        found[name] = set(getattr(config.config_type, "fields", {})) if config else set()
    assert found == LAUNCHPAD


def test_the_restores_launchpad_has_its_defaults() -> None:
    (op,) = build_defs(load(HOST)).resolve_job_def("restore_job").graph.node_defs
    assert isinstance(op, dg.OpDefinition)
    assert op.name == "restore"
    assert op.config_field is not None
    fields = getattr(op.config_field.config_type, "fields", {})
    assert {name: field.default_value for name, field in fields.items()} == RESTORE_LAUNCHPAD
    assert all(field.description and not field.is_required for field in fields.values())


def test_the_jobs_match_the_public_surface() -> None:
    defs = build_defs(load(HOST))
    found = {}
    for job in defs.resolve_all_job_defs():
        if job.name.startswith("__"):  # Dagster's implicit job for launches from the asset graph
            continue
        keys = job.asset_layer.selected_asset_keys
        found[job.name] = {"assets": {key.to_user_string() for key in keys}, "tags": dict(job.tags)}
        assert job.executor_def is dg.in_process_executor
        assert job.description
    assert found == JOBS


def test_manual_materialization_runs_in_process() -> None:
    """In a location that has only our definitions."""
    assert defs.resolve_implicit_global_asset_job_def().executor_def is dg.in_process_executor


def test_the_schedules_run_by_default() -> None:
    found = {}
    for schedule in build_defs(load(HOST)).schedules or []:
        assert isinstance(schedule, dg.ScheduleDefinition)
        found[schedule.name] = (schedule.job_name, schedule.cron_schedule)
        assert schedule.execution_timezone == "UTC"
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
        assert schedule.description
    assert found == {
        "daily_backup_schedule": ("daily_backup_job", "0 3 * * *"),
        "restore_drill_schedule": ("restore_drill_job", "0 5 1 * *"),
        "history_pruning_schedule": ("history_pruning_job", "30 6 * * 0"),
        "kept_databases_schedule": ("kept_databases_job", "15 6 * * *"),
    }


def test_the_sensor_runs_by_default() -> None:
    sensors = list(build_defs(load(HOST)).sensors or [])
    assert [sensor.name for sensor in sensors] == ["backup_freshness_sensor"]
    (sensor,) = sensors
    assert sensor.job_name == "freshness_alert_job"
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 300
    assert sensor.description


def test_merged_definitions_get_nothing_global() -> None:
    """Neither resources nor an executor: those of the other definitions must stay."""
    built = build_defs(load(HOST))
    assert not built.resources
    assert built.executor is None


def test_no_secret_is_in_the_definitions() -> None:
    secrets = {
        "POSTGRES_PASSWORD": "the-p4ssword",
        "RESTORE_POSTGRES_PASSWORD": "the-0ther-p4ssword",
        "BACKUP_NOTIFY_URLS": "json://user:the-t0ken@127.0.0.1/",
    }
    defs = build_defs(load({**HOST, **secrets}))
    text = repr(defs.resources) + repr(defs)
    assert "the-p4ssword" not in text
    assert "the-0ther-p4ssword" not in text
    assert "the-t0ken" not in text


# ---------------------------------------------------------------- the settings

BAD = [
    ({"POSTGRES_PORT": "postgres"}, "POSTGRES_PORT: "),
    ({"POSTGRES_PORT": "0"}, "POSTGRES_PORT: 0 is not a port"),
    ({"POSTGRES_DB": "x" * 64}, "POSTGRES_DB: a PostgreSQL name has 1 to 63 bytes"),
    ({"POSTGRES_USER": "ü" * 32}, "POSTGRES_USER: a PostgreSQL name has 1 to 63 bytes"),
    ({"BACKUP_SCHEDULE": "every day"}, "BACKUP_SCHEDULE: 'every day' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "0 3 * *"}, "BACKUP_SCHEDULE: '0 3 * *' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "0 0 3 * * *"}, "BACKUP_SCHEDULE: '0 0 3 * * *' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "a b c d e"}, "BACKUP_SCHEDULE: 'a b c d e' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "99 99 * * *"}, "BACKUP_SCHEDULE: '99 99 * * *' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "0 3 * * 8"}, "BACKUP_SCHEDULE: '0 3 * * 8' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "*/0 * * * *"}, "BACKUP_SCHEDULE: '*/0 * * * *' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "0 3 31 2 *"}, "BACKUP_SCHEDULE: '0 3 31 2 *' is not a cron expression"),
    ({"BACKUP_SCHEDULE": "@reboot"}, "BACKUP_SCHEDULE: '@reboot' is not a cron expression"),
    ({"BACKUP_TIMEZONE": "Mars/Phobos"}, "BACKUP_TIMEZONE: 'Mars/Phobos' is not a time zone"),
    ({"BACKUP_TIMEZONE": "../../etc/passwd"}, "BACKUP_TIMEZONE: '../../etc/passwd' is not a time zone"),
    ({"BACKUP_TIMEZONE": "Europe"}, "BACKUP_TIMEZONE: 'Europe' is not a time zone"),
    ({"BACKUP_WEEKLY_DAY": "someday"}, "BACKUP_WEEKLY_DAY: 'someday' is not a day of the week"),
    ({"BACKUP_DAILY_KEEP": "0"}, "BACKUP_DAILY_KEEP: 0 is too few"),
    ({"BACKUP_WEEKLY_KEEP": "-1"}, "BACKUP_WEEKLY_KEEP: -1 is too few"),
    ({"BACKUP_DAILY_KEEP": "seven"}, "BACKUP_DAILY_KEEP: "),
    ({"BACKUP_MAX_AGE_HOURS": "0"}, "BACKUP_MAX_AGE_HOURS: 0.0 is not a number of hours"),
    ({"BACKUP_MAX_AGE_HOURS": "nan"}, "BACKUP_MAX_AGE_HOURS: nan is not a number of hours"),
    ({"BACKUP_MAX_AGE_HOURS": "1e300"}, "BACKUP_MAX_AGE_HOURS: 1e+300 is not a number of hours"),
    ({"BACKUP_LOCK_WAIT_MINUTES": "inf"}, "BACKUP_LOCK_WAIT_MINUTES: inf is not a number of minutes"),
    ({"BACKUP_REQUIRE_ROWS": "perhaps"}, "BACKUP_REQUIRE_ROWS: "),
    ({"BACKUP_COMPRESSION": "zip"}, "BACKUP_COMPRESSION: 'zip' is neither auto nor pg_dump's spelling"),
    ({"BACKUP_NOTIFY_URLS": "a-t0ken-without-scheme"}, "BACKUP_NOTIFY_URLS: URL number 1 has no scheme"),
    ({"BACKUP_ASSET_PREFIX": "crm/eu"}, "BACKUP_ASSET_PREFIX: 'crm/eu' is not a name"),
    ({"BACKUP_ASSET_PREFIX": "crm eu"}, "BACKUP_ASSET_PREFIX: 'crm eu' is not a name"),
    ({"DRILL_SCHEDULE": "every month"}, "DRILL_SCHEDULE: 'every month' is not a cron expression"),
    ({"DRILL_SCHEDULE": "0 5 31 2 *"}, "DRILL_SCHEDULE: '0 5 31 2 *' is not a cron expression"),
    ({"DRILL_WHERE": "production"}, "DRILL_WHERE: "),
    ({"DRILL_JOBS": "1"}, "DRILL_JOBS: 1 is not a number of jobs"),
    ({"DRILL_DIR": "tmp"}, "DRILL_DIR: 'tmp' is not an absolute path"),
    ({"DRILL_MAX_HOURS": "0"}, "DRILL_MAX_HOURS: 0.0 is not a number of hours"),
    ({"DRILL_MAX_AGE_DAYS": "0"}, "DRILL_MAX_AGE_DAYS: 0.0 is not a number of days"),
    ({"RESTORE_POSTGRES_HOST": "postgres://u:the-t0ken@h/db"}, "RESTORE_POSTGRES_HOST: it must be a host alone"),
    ({"RESTORE_POSTGRES_PORT": "0"}, "RESTORE_POSTGRES_PORT: 0 is not a port"),
    ({"DAGSTER_KEEP_RUNS_DAYS": "29"}, "DAGSTER_KEEP_RUNS_DAYS: 29 is not a number of days"),
    ({"DAGSTER_PUBLIC_URL": "dagster.example.org"}, "DAGSTER_PUBLIC_URL: it must begin with http"),
]


@pytest.mark.parametrize(
    ("change", "words"), sampled(BAD, every=5), ids=[f"{n}={v}" for change, _ in BAD for n, v in change.items()]
)
def test_bad_settings_load_and_the_job_refuses(
    instance: dg.DagsterInstance, volume: Path, change: dict[str, str], words: str
) -> None:
    location = Location(load({**HOST, "BACKUP_DIR": str(volume), **change}), instance)
    dg.Definitions.validate_loadable(location.defs)
    result = location.run()
    assert not result.success
    assert failed_steps(result) == ["daily_dump"]
    said = failure(result)
    assert said.startswith("the settings are not usable: " + words)
    assert "\n" not in said
    assert "t0ken" not in said
    assert materialized(result) == {}
    assert not volume.exists()


@pytest.mark.parametrize("change", [{"BACKUP_SCHEDULE": "a b c d e"}, {"BACKUP_WEEKLY_DAY": "someday"}])
def test_each_asset_refuses_bad_settings(bare: NewLocation, volume: Path, change: dict[str, str]) -> None:
    good: Location = bare()
    good.catalog.prepare()
    verified_backup(good.catalog, datetime.now(UTC))
    before = files_of(volume)
    location: Location = bare(**change)
    for asset in CHAIN:
        result = location.materialize(asset)
        assert failure(result).startswith(f"the settings are not usable: {next(iter(change))}: ")
        assert materialized(result) == {}
        assert files_of(volume) == before


@pytest.mark.parametrize("name", ["a b", "ünï/cödé", "'; rm -rf ~; '", "line\nbreak", "x" * 63, "{{braces}}"])
def test_a_database_of_any_name_loads(name: str) -> None:
    """The names become tags of runs."""
    defs = build_defs(load({**HOST, "POSTGRES_DB": name, "BACKUP_DIR": f"/backups/{name}"}))
    dg.Definitions.validate_loadable(defs)
    tag = defs.resolve_job_def(DAILY_JOB).tags["ovia/database"]
    assert tag.removeprefix("/") == name
    prefixed = build_defs(load({**HOST, "POSTGRES_DB": name, "BACKUP_ASSET_PREFIX": "crm"}))
    assert prefixed.resolve_job_def(DAILY_JOB).tags["ovia/database"] == f"crm/{name}" != tag


def test_no_two_databases_have_the_same_tag() -> None:
    others = [{"POSTGRES_DB": "crm/ovia"}, {"BACKUP_ASSET_PREFIX": "crm"}, {"BACKUP_ASSET_PREFIX": "ovia"}, {}]
    tags = [build_defs(load({**HOST, **other})).resolve_job_def(DAILY_JOB).tags["ovia/database"] for other in others]
    assert tags == ["/crm/ovia", "crm/ovia", "ovia/ovia", "ovia"]


def test_several_bad_settings_are_all_named(instance: dg.DagsterInstance) -> None:
    settings = load({"POSTGRES_PORT": "0", "BACKUP_SCHEDULE": "a b c d e", "BACKUP_WEEKLY_DAY": "x"})
    said = failure(Location(settings, instance).run()).removeprefix("the settings are not usable: ")
    assert [problem.partition(":")[0] for problem in said.split("; ")[:4]] == [
        "POSTGRES_HOST is not set",
        "POSTGRES_PORT",
        "BACKUP_SCHEDULE",
        "BACKUP_WEEKLY_DAY",
    ]


@pytest.mark.parametrize("hours", ["0.001", "0.01", "0.0167", "1", "1.01", "2", "24", "8784"])
def test_every_allowed_age_loads(hours: str) -> None:
    dg.Definitions.validate_loadable(build_defs(load({**HOST, "BACKUP_MAX_AGE_HOURS": hours})))


def test_without_environment_all_loads_and_refuses(volume: Path, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    for settings in ({}, {"BACKUP_DIR": str(volume)}, {"POSTGRES_HOST": "", "BACKUP_DIR": str(volume)}):
        location = Location(load(settings), instance)
        dg.Definitions.validate_loadable(location.defs)
        for result in (location.run(), *(location.materialize(name) for name in (*CHAIN, ALERT))):
            assert not result.success
            assert failure(result).startswith("the settings are not usable: POSTGRES_HOST is not set. Next: ")
            assert materialized(result) == {}
        alert = location.run(ALERT_JOB)
        assert failed_steps(alert) == [ALERT]
    assert not volume.exists()
    assert not Path("/backups").exists()


@pytest.mark.exhaustive
def test_the_job_exits_with_failure_on_a_bad_setting(tmp_path: Path) -> None:
    ended = dagster(
        "job", "execute", "--module-name", "ovia_backup_dagster.definitions", "--job", DAILY_JOB,
        home=tmp_path, BACKUP_DIR=str(tmp_path / "backups"), BACKUP_TIMEZONE="Mars/Phobos",
    )  # fmt: skip
    assert ended.returncode != 0
    assert "the settings are not usable: POSTGRES_HOST is not set; BACKUP_TIMEZONE: 'Mars/Phobos'" in ended.stdout
    assert not (tmp_path / "backups").exists()


def test_build_defs_serves_several_databases(
    new_database: NewDatabase, volume: Path, bin_dir: Path, instance: dg.DagsterInstance
) -> None:
    names = [new_database().database for _ in range(2)]
    database = new_database()
    locations = [
        Location(load(environment(database, volume, bin_dir, POSTGRES_DB=name, BACKUP_MAX_AGE_HOURS=hours)), instance)
        for name, hours in zip(names, ("5", "50"), strict=True)
    ]
    for location, name, hours in zip(locations, names, (5, 50), strict=True):
        spec = next(s for s in location.defs.resolve_all_asset_specs() if s.key == dg.AssetKey("daily_dump"))
        assert freshness(spec) == (timedelta(hours=hours - 1), timedelta(hours=hours))
        dumped = materialized(location.run())["daily_dump"]
        assert str(dumped["backup"]).startswith(f"{name}_daily_")


# ---------------------------------------------------------------- the files that Dagster reads


@pytest.mark.exhaustive
@pytest.mark.parametrize("with_home", thinned([True, False]))
def test_the_workspace_loads_with_plain_dagster(tmp_path: Path, with_home: bool) -> None:
    home = None
    if with_home:
        home = tmp_path
        shutil.copy(REPOSITORY / "dagster.yaml", home)
    ended = dagster("definitions", "validate", "--workspace", "workspace.yaml", home=home)
    assert ended.returncode == 0, ended.stdout
    assert "Validation successful for code location ovia_backup_dagster." in ended.stdout
    assert ended.stdout.count("Validation successful for code location") == 1


@pytest.mark.exhaustive
def test_the_workspace_is_found_without_being_named() -> None:
    """As by `dagster` in a checkout."""
    ended = dagster("definitions", "validate")
    assert ended.returncode == 0, ended.stdout
    assert "Validation successful for code location ovia_backup_dagster." in ended.stdout


def test_both_files_name_the_same_location() -> None:
    """And no third file exists, which would override one of them."""
    [source] = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    project = tools["dg"]["project"]
    assert source["python_module"] == {
        "module_name": project["code_location_target_module"],
        "attribute": "defs",
        "location_name": project["code_location_name"],
    }
    assert "dagster" not in tools
    assert not (REPOSITORY / "dg.toml").exists()


@pytest.mark.exhaustive
def test_dg_finds_the_same_definitions(tmp_path: Path) -> None:
    listed = dg_command("list", "defs", "--json", home=tmp_path)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert {asset["asset_key"] for asset in found["assets"]} == set(ASSETS)
    assert {job["name"] for job in found["jobs"]} == set(JOBS)
    assert [sensor["name"] for sensor in found["sensors"]] == ["backup_freshness_sensor"]


def test_dagster_accepts_dagster_yaml(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_start_timeout_seconds == 120
        assert instance.run_monitoring_max_runtime_seconds == 6 * 3600
        # The assets retry transient failures; a whole run that is retried would dump again.
        assert not instance.run_retries_enabled
        assert instance.freshness_enabled
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.default_pool_limit == 1
        assert concurrency.pool_config.pool_granularity is not None
        assert concurrency.pool_config.pool_granularity.value == "run"
        queue = concurrency.run_queue_config
        assert queue is not None
        assert list(queue.tag_concurrency_limits) == [
            {"key": "ovia/volume", "value": {"applyLimitPerUniqueValue": True}, "limit": 1},
            {"key": "ovia/long", "limit": 7},
        ]
        # The limit is on a tag that the job has.
        job = build_defs(load(HOST)).resolve_job_def(DAILY_JOB)
        assert "ovia/volume" in job.tags
        retention = instance.get_settings("retention")
        assert retention["schedule"]["purge_after_days"] == 90
        assert retention["sensor"]["purge_after_days"] == {
            "skipped": 7,
            "success": 90,
            "failure": 90,
            "started": 90,
        }

"""``PostgresBackup`` as YAML gives it: its fields, its secrets, and values that mean nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import ValidationError

import ovia_backup_dagster
from ovia_backup_dagster.component import PostgresBackup
from ovia_backup_dagster.core.errors import ServiceManagerUnreachableError
from ovia_backup_dagster.settings.model import SETTINGS, Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.defs.support import DAILY_JOB

# Dagster's reader of YAML uses what pydantic will remove.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")

SECRET = "hunter2-in-the-clear"


def component(yaml: str, name: str = "orders") -> PostgresBackup:
    found = PostgresBackup.resolve_from_yaml(f"name: {name}\n{yaml}")
    assert isinstance(found, PostgresBackup)
    return found


def definitions(found: PostgresBackup) -> dg.Definitions:
    return found.build_defs(dg.ComponentTree.for_test().load_context)


def schema() -> dict[str, Any]:
    properties: dict[str, Any] = PostgresBackup.model().model_json_schema()["properties"]
    return properties


def test_the_components_fields_are_the_settings() -> None:
    ours = {setting.field for setting in SETTINGS} - {"backup_asset_prefix"}
    assert set(schema()) == ours | {"name", "libpq"}
    assert all(field["description"] for field in schema().values())
    assert PostgresBackup.model().model_json_schema()["required"] == ["name"]


def test_the_package_exports_the_component() -> None:
    assert ovia_backup_dagster.PostgresBackup is PostgresBackup
    assert {"PostgresBackup", "build_defs", "Settings"} <= set(dir(ovia_backup_dagster))
    with pytest.raises(AttributeError, match="no attribute 'PostgresBackups'"):
        ovia_backup_dagster.PostgresBackups  # noqa: B018


def test_values_come_from_yaml_and_not_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_USER", "somebody_else")
    monkeypatch.setenv("ORDERS_PORT", "5433")
    settings = component("""
postgres_host: db.example.org
postgres_port: "{{ env.ORDERS_PORT }}"
backup_dir: /backups/orders
backup_expected_tables: [orders, lines]
backup_require_rows: true
backup_max_age_hours: 30
drill_where: throwaway
libpq: {PGSSLMODE: verify-full}
""").settings()
    assert settings == Settings.of(
        postgres_host="db.example.org",
        postgres_port=5433,
        backup_dir="/backups/orders",
        backup_expected_tables="orders,lines",
        backup_require_rows=True,
        backup_max_age_hours=30,
        drill_where="throwaway",
        libpq={"PGSSLMODE": "verify-full"},
    )
    assert settings.problems == ()
    assert settings.postgres_user == "ovia"


def test_the_name_is_the_prefix_of_everything() -> None:
    defs = definitions(component("postgres_host: h"))
    assert defs.resolve_job_def(f"orders_{DAILY_JOB}").tags["ovia/database"] == "orders/ovia"
    plain = definitions(component("postgres_host: h", name="''"))
    assert plain.resolve_job_def(DAILY_JOB).tags["ovia/database"] == "ovia"


def test_a_template_gives_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_PASSWORD", SECRET)
    monkeypatch.setenv("ORDERS_URL", f"json://user:{SECRET}@h/")
    found = component("""
postgres_host: h
postgres_password: "{{ env.ORDERS_PASSWORD }}"
backup_notify_urls: ["{{ env.ORDERS_URL }}"]
""")
    settings = found.settings()
    assert settings.problems == ()
    assert settings.postgres_password is not None
    assert settings.postgres_password.get_secret_value() == SECRET
    assert [url.get_secret_value() for url in settings.backup_notify_urls] == [f"json://user:{SECRET}@h/"]
    assert SECRET not in repr(found)
    assert SECRET not in repr(definitions(found))


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        (f"postgres_password: {SECRET}", "postgres_password: the YAML contains a secret"),
        (f"restore_postgres_password: {SECRET}", "restore_postgres_password: the YAML contains a secret"),
        (f"backup_notify_urls: ['json://u:{SECRET}@h/']", "backup_notify_urls: the YAML contains a secret"),
        (f"backup_notify_urls: 'json://u:{SECRET}@h/'", "backup_notify_urls: the YAML contains a secret"),
        (f"health_url: http://u:{SECRET}@h/", "health_url: the YAML contains a password"),
        ("postgres_password: '{{ env.NOT_SET }}'", "postgres_password: a template gives no value: {{ env.NOT_SET }}"),
        ("postgres_port: five", "POSTGRES_PORT: "),
        ("backup_schedule: every day", "BACKUP_SCHEDULE: 'every day' is not a cron expression"),
        ("libpq: {PGHOST: elsewhere}", "libpq: only PGSSL* and PGPASSFILE are passed on to libpq, not PGHOST"),
    ],
)
def test_invalid_values_load_and_refuse(yaml: str, says: str) -> None:
    """One database's mistake does not keep the backups of others from being made; and no secret is repeated."""
    found = component(f"postgres_host: h\n{yaml}")
    (problem,) = found.settings().problems
    assert problem.startswith(says)
    assert SECRET not in problem
    assert SECRET not in repr(found)
    job = definitions(found).resolve_job_def(f"orders_{DAILY_JOB}")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    assert not result.success
    assert not Path("/backups").exists()


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("postgres_host: h\npostgres_prt: 5433", "postgres_prt at <string>:3"),
        ("postgres_host: h\npostgres_port: [5433]", "postgres_port.*int at <string>:3"),
    ],
)
def test_invalid_names_and_types_are_refused(yaml: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        component(yaml)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("postgres_port", ["5433", "{{ env.PORT }}"], ["five", "54 33"]),
        ("backup_max_age_hours", ["26.5", "{{ env.HOURS }}"], ["a day"]),
        ("backup_require_rows", ["true", "{{ env.ROWS }}"], ["perhaps"]),
        ("drill_where", ["throwaway", "{{ env.WHERE }}"], ["nowhere"]),
        ("postgres_password", ["{{ env.PASSWORD }}"], [SECRET]),
    ],
)
def test_dg_validates_texts_before_loading(field: str, good: list[str], bad: list[str]) -> None:
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(PostgresBackup.model().model_json_schema())
    for value in good:
        assert not list(validator.iter_errors({"name": "orders", field: value}))
    for value in bad:
        (error,) = validator.iter_errors({"name": "orders", field: value})
        assert list(error.path) == [field]


def test_without_services_a_restore_needs_no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's client is an extra."""
    monkeypatch.setitem(sys.modules, "docker", None)
    manager = BackupSystem(Settings.of(postgres_host="h")).restorations.manager
    with pytest.raises(ServiceManagerUnreachableError, match=r"not installed.*ovia-backup-dagster\[swarm\]"):
        manager.replicas("app")

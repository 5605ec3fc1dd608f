"""A container's secrets become files; a secret by value is refused."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

import pytest
from psycopg import sql

from ovia_backup_dagster.container import health_checks, swarm_secrets
from ovia_backup_dagster.container.errors import ContainerError
from ovia_backup_dagster.core.errors import SettingsError
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute
from ovia_backup_dagster_tests.container.conftest import write_instance


def test_secrets_become_private_files(private: Path) -> None:
    swarm_secrets.SECRETS.joinpath("postgres_password").write_text("geheim\n")
    swarm_secrets.SECRETS.joinpath("storage_password").write_text("s")
    os.umask(0)
    swarm_secrets.collect_secrets()
    files = {path.name: path.read_text() for path in private.iterdir()}
    assert files == {"postgres_password": "geheim\n", "storage_password": "s", "storage.pgpass": "*:*:*:*:s\n"}
    assert {path.stat().st_mode & 0o777 for path in private.iterdir()} == {0o600}


def test_secrets_are_replaced_when_the_container_restarts(private: Path) -> None:
    for password in ("old", "new"):
        swarm_secrets.SECRETS.joinpath("storage_password").write_text(password)
        swarm_secrets.collect_secrets()
    assert swarm_secrets.PASSFILE.read_text() == "*:*:*:*:new\n"


def test_a_removed_secret_is_removed_from_the_files(private: Path) -> None:
    for name in ("storage_password", "notify_urls"):
        swarm_secrets.SECRETS.joinpath(name).write_text("s")
    swarm_secrets.collect_secrets()
    swarm_secrets.SECRETS.joinpath("notify_urls").unlink()
    swarm_secrets.collect_secrets()
    assert {path.name for path in private.iterdir()} == {"storage_password", "storage.pgpass"}


def test_a_missing_storage_password_is_an_error(private: Path) -> None:
    with pytest.raises(ContainerError, match=r"secrets cannot be collected.*storage_password.*docker secret ls"):
        swarm_secrets.collect_secrets()


def test_a_role_without_storage_needs_no_password_of_it(private: Path) -> None:
    swarm_secrets.SECRETS.joinpath("wal_password").write_text("geheim")
    swarm_secrets.collect_secrets(storage=False)
    assert {path.name for path in private.iterdir()} == {"wal_password"}


@pytest.mark.parametrize("name", sorted(set(swarm_secrets.FILE_VARIABLES.values())))
def test_a_secret_file_that_a_variable_names_must_exist(
    private: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    swarm_secrets.SECRETS.joinpath("storage_password").write_text("s")
    monkeypatch.setenv(name, "/run/ovia-backup/none")
    with pytest.raises(ContainerError, match=rf"{name}=/run/ovia-backup/none cannot be read: No such file"):
        swarm_secrets.collect_secrets()


@pytest.mark.parametrize("name", sorted(swarm_secrets.FILE_VARIABLES))
def test_a_secret_by_value_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{name} is set by value.*{swarm_secrets.FILE_VARIABLES[name]}"
    ) as refused:
        swarm_secrets.refuse_secret_values({name: "geheim"})
    assert "geheim" not in str(refused.value)
    swarm_secrets.refuse_secret_values({name: ""})


@pytest.mark.parametrize("password", ["plain", "with:colon", "back\\slash", "both\\:", "ü ' \" $x %s", ":", "\\"])
def test_libpq_reads_the_password_from_the_passfile(private: Path, server: PortCluster, password: str) -> None:
    """As in Dagster's storage, with the driver's name in the URL."""
    role = f"storage{token_hex(4)}"
    execute(server.connection(), f"CREATE ROLE {role} LOGIN")
    with admin(server) as session:
        session.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), password))
    swarm_secrets.SECRETS.joinpath("storage_password").write_text(password)
    swarm_secrets.collect_secrets()
    write_instance(f"postgresql+psycopg2://{role}@127.0.0.1:{server.port}/postgres?passfile={swarm_secrets.PASSFILE}")
    health_checks.storage_answers()
    swarm_secrets.PASSFILE.write_text("*:*:*:*:wrong\n")
    with pytest.raises(ContainerError, match=r"Dagster's storage does not answer.*password authentication failed"):
        health_checks.storage_answers()

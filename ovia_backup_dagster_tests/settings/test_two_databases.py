"""Two databases in one process at once: each with the server, role, password and volume of its own settings."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.postgres.programs import Connection
from ovia_backup_dagster.settings.model import Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import NewDatabase, PortCluster, execute, quiet

NAMES = ("left", "right")


@pytest.fixture
def settings_of(
    server: PortCluster, new_database: NewDatabase, bin_dir: Path, tmp_path: Path
) -> Callable[..., Settings]:
    def build(name: str, **more: object) -> Settings:
        source: Connection = new_database()
        role = f"{name}_{source.database}"
        execute(source, f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{name}-secret'")
        (tmp_path / name).write_text(f"{name}-secret\n")
        given = {"postgres_password_file": tmp_path / name, **more}
        return Settings.of(
            postgres_host="127.0.0.1",
            postgres_port=server.port,
            postgres_db=source.database,
            postgres_user=role,
            backup_dir=tmp_path / f"{name}-backups",
            pg_bin_dir=bin_dir,
            libpq={"PGSSLMODE": "disable"},
            **given,
        )

    return build


def test_both_are_dumped_and_verified_at_the_same_time(
    settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    systems = {name: BackupSystem(settings_of(name)) for name in NAMES}
    # Variables of the outer environment, which belong to neither.
    for name, value in (("PGHOST", "nowhere.invalid"), ("PGPASSWORD", "wrong"), ("BACKUP_DIR", "/nonexistent")):
        monkeypatch.setenv(name, value)

    def back_up(system: BackupSystem) -> str:
        backup = system.dumper.dump(log=quiet)
        assert system.verifier.verify(backup, log=quiet).judgement.good
        assert backup.manifest is not None
        return backup.manifest.database.name

    with ThreadPoolExecutor() as pool:
        dumped = dict(zip(NAMES, pool.map(back_up, systems.values()), strict=True))

    assert dumped == {name: system.settings.postgres_db for name, system in systems.items()}
    for system in systems.values():
        assert len(system.catalog.backups()) == 1


def test_one_databases_bad_settings_spare_the_others(settings_of: Callable[..., Settings]) -> None:
    good = BackupSystem(settings_of("left"))
    wrong = BackupSystem(settings_of("right", postgres_password_file=None, postgres_password="left-secret"))
    broken = BackupSystem(settings_of("broken", backup_daily_keep=0))

    with pytest.raises(errors.AuthenticationError):
        wrong.dumper.dump(log=quiet)
    with pytest.raises(errors.SettingsError, match="BACKUP_DAILY_KEEP: 0 is too few"):
        _ = broken.dumper
    assert good.dumper.dump(log=quiet).path.is_file()

"""A code location on a temporary volume, and what the tests do with it.

Runs are executed in this process. No test waits for a backup to age: a backup's instant is in its file's name, so tests
rename it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.runs import SqlRunStorage
from dagster._core.storage.runs.schema import RunsTable

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.defs.code_location import definitions_of
from ovia_backup_dagster.defs.database_names import DatabaseNames
from ovia_backup_dagster.defs.schedules import usable_schedules
from ovia_backup_dagster.postgres.dump import Dumper, Log
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verified
from ovia_backup_dagster.restoration.journal import Journal
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.settings.model import PREFIXES, Settings
from ovia_backup_dagster.system import BackupSystem
from ovia_backup_dagster_tests.conftest import REPOSITORY, quiet
from ovia_backup_dagster_tests.support.factories import redated

EXPECTED = "people,identities,person_identity_links"
DAILY_JOB = "daily_backup_job"
ALERT_JOB = "freshness_alert_job"
ALERT = "backup_freshness_alert"
DOCTOR = "backup_doctor"
DRILL_JOB = "restore_drill_job"
DRILL = "restore_drill"
KEPT_JOB = "kept_databases_job"
CHAIN = ("daily_dump", "dump_verification", "weekly_promotion", "retention_pruning")

OURS = (*PREFIXES, "PG", "DAGSTER_")
DG = Path(sys.executable).with_name("dg")


def load(environment: Mapping[str, str]) -> Settings:
    """Load the settings from this environment, with no other variable of ours."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    with mock.patch.dict(os.environ, {**others, **environment}, clear=True):
        return Settings.load()


def environment(connection: Connection, volume: Path, bin_dir: Path, **more: str) -> dict[str, str]:
    """What an operator sets for this database and volume."""
    return {
        "POSTGRES_HOST": connection.host,
        "POSTGRES_PORT": str(connection.port),
        "POSTGRES_DB": connection.database,
        "POSTGRES_USER": connection.user,
        "BACKUP_DIR": str(volume),
        "BACKUP_EXPECTED_TABLES": EXPECTED,
        "BACKUP_REQUIRE_ROWS": "true",
        "BACKUP_LOCK_WAIT_MINUTES": "0",
        "PG_BIN_DIR": str(bin_dir),
        **more,
    }


@dataclass(frozen=True)
class HookedDumper(Dumper):
    """The real dumper, with hooks that are called just before and just after it."""

    before: Callable[[], None] | None = None
    after: Callable[[Backup], None] | None = None

    def dump(self, *, run_id: str | None = None, log: Log, progress_seconds: float = 10.0) -> Backup:
        if self.before is not None:
            self.before()
        backup = super().dump(run_id=run_id, log=log, progress_seconds=progress_seconds)
        # Cache the manifest for the asset, which logs it: the hook acts between the steps.
        backup.manifest  # noqa: B018 - cached by reading
        if self.after is not None:
            self.after(backup)
        return backup


@dataclass(frozen=True)
class HookedSystem(BackupSystem):
    """The real system, with a hooked dumper."""

    before_dump: Callable[[], None] | None = None
    after_dump: Callable[[Backup], None] | None = None
    installed: Callable[[], bool] | None = None

    @property
    def programs(self) -> Programs:
        there = self.installed is None or self.installed()
        return super().programs if there else Programs(Path("/nonexistent"))

    @property
    def dumper(self) -> Dumper:
        real = super().dumper
        return HookedDumper(
            real.catalog,
            real.connection,
            real.programs,
            real.compression,
            published=real.published,
            before=self.before_dump,
            after=self.after_dump,
        )


@dataclass
class Location:
    """A code location with an instance of Dagster.

    Attributes:
        settings: what it was built from.
        instance: where its runs are recorded.
        before_dump, after_dump: hooks; may be changed between runs.
        installed: whether the client programs exist; called whenever they are needed.
        prefix: of all names, as when several databases share the code location.
    """

    settings: Settings
    instance: dg.DagsterInstance
    before_dump: Callable[[], None] | None = None
    after_dump: Callable[[Backup], None] | None = None
    installed: Callable[[], bool] | None = None
    prefix: str = ""

    @property
    def system(self) -> BackupSystem:
        settings = self.settings
        if self.prefix:
            settings = settings.model_copy(update={"backup_asset_prefix": self.prefix})
        return HookedSystem(usable_schedules(settings), 0.0, self.before_dump, self.after_dump, self.installed)

    @property
    def defs(self) -> dg.Definitions:
        return definitions_of(self.system, shares_location=bool(self.prefix))

    @property
    def names(self) -> DatabaseNames:
        return DatabaseNames.of(self.system.settings, shares_location=bool(self.prefix))

    @property
    def catalog(self) -> Catalog:
        return self.system.catalog

    def job(self, name: str = DAILY_JOB) -> dg.JobDefinition:
        return self.defs.resolve_job_def(name)

    def run(
        self,
        name: str = DAILY_JOB,
        *,
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run a whole job."""
        return self.job(name).execute_in_process(
            instance=self.instance, run_config=dict(config or {}), tags=tags, raise_on_error=False
        )

    def materialize(self, *assets: str, **config: Mapping[str, Any]) -> dg.ExecuteInProcessResult:
        """Materialize assets as the UI's button does; ``config`` is each asset's launchpad config."""
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in assets],
            run_config={"ops": {name: {"config": dict(values)} for name, values in config.items()}},
            raise_on_error=False,
        )

    def dump(self) -> Backup:
        """A dump as the command line makes it: without a run, and not verified."""
        return self.system.dumper.dump(log=quiet)

    def verify(self, backup: Backup) -> Verified:
        return self.system.verifier.verify(backup, log=quiet)

    def logs(self, run_id: str) -> str:
        """All messages of a run, from the user code and from events, one a line."""
        return "\n".join(entry.user_message or entry.message for entry in self.instance.all_logs(run_id))


def materialized(result: dg.ExecuteInProcessResult) -> dict[str, Mapping[str, Any]]:
    """Asset -> metadata values, in the order of materialization."""
    return {
        event.step_materialization_data.materialization.asset_key.to_user_string(): {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }


def checks(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dg.AssetCheckSeverity]]:
    """Check -> passed, severity."""
    return {check.check_name: (check.passed, check.severity) for check in result.get_asset_check_evaluations()}


def about(result: dg.ExecuteInProcessResult) -> set[str | None]:
    """The runs of the materializations that the check results belong to; ``None`` if there was none."""
    targets = [check.target_materialization_data for check in result.get_asset_check_evaluations()]
    return {target.run_id if target else None for target in targets}


def records(table: object) -> list[dict[str, Any]]:
    """The records of a table in the metadata, given its ``value``."""
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(record.data) for record in table.records]


Result = dg.ExecuteInProcessResult | dg.JobExecutionResult


def failure(result: Result) -> str:
    """The description of the first failed step's Failure."""
    data = next(event for event in result.all_events if event.is_step_failure).step_failure_data
    assert data.user_failure_data is not None, data.error
    return data.user_failure_data.description or ""


def failed_steps(result: Result) -> list[str]:
    return [event.step_key or "" for event in result.all_events if event.is_step_failure]


def retries(result: Result) -> int:
    """How often a step was put up for a retry."""
    return sum(event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY for event in result.all_events)


def flip_byte(path: Path) -> None:
    """Alter one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def settle(path: Path, age: timedelta = timedelta(hours=1), *, now: datetime | None = None) -> None:
    """Give a file a modification time in the past."""
    at = (now or datetime.now(UTC)) - age
    os.utime(path, (at.timestamp(), at.timestamp()))


def old_dump(
    catalog: Catalog,
    age: timedelta,
    content: bytes = b"PGDMP, no more",
    *,
    tier: Tier = Tier.DAILY,
    now: datetime | None = None,
) -> Path:
    """A dump as the old script leaves it: made ``age`` ago, last written then or an hour ago, without sidecars."""
    folder = catalog.folder(tier)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / BackupName(catalog.database, tier, (now or datetime.now(UTC)) - age).filename
    path.write_bytes(content)
    settle(path, max(age, timedelta(hours=1)), now=now)
    return path


def backdate(catalog: Catalog, backup: Backup, age: timedelta) -> Backup:
    """The same backup, redated as if it had been made ``age`` ago."""
    target = redated(catalog.refresh(backup), datetime.now(UTC) - age).path
    return next(b for b in catalog.backups(backup.tier) if b.path == target)


def age_run(instance: dg.DagsterInstance, run_id: str, age: timedelta, *, ended: bool = True) -> None:
    """Date a run's creation and end to ``age`` ago, in Dagster's storage: Dagster has no API for that."""
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)
    at = datetime.now(UTC) - age
    values: dict[str, object] = {
        "create_timestamp": at.replace(tzinfo=None),
        "update_timestamp": at.replace(tzinfo=None),
    }
    if ended:
        values |= {"start_time": at.timestamp(), "end_time": at.timestamp()}
    with storage.connect() as connection:
        connection.execute(RunsTable.update().where(RunsTable.c.run_id == run_id).values(values))


def begin(location: Location) -> Journal:
    """The journal of a restore that was killed right after it began."""
    settings, folder = location.settings, location.system.restores
    folder.prepare()
    order = Order(
        mode=Mode.SWAP,
        started_at=datetime(2026, 6, 30, 10, tzinfo=UTC),
        database=settings.postgres_db,
        backup="a backup",
        host="db",
        port=5432,
        incoming=f"{settings.postgres_db}_restore_20260630100000",
        launched_by="a test",
        made_by="a test",
    )
    return folder.begin(order)


def frozen(at: datetime) -> type[datetime]:
    """A ``datetime`` whose ``now`` stands still."""

    class Frozen(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Frozen:
            return cls.fromtimestamp(at.timestamp(), tz)

    return Frozen


def set_clock(monkeypatch: pytest.MonkeyPatch, at: datetime) -> None:
    """Set the clock of the sensor and the alert to ``at``."""
    for module in ("sensors", "alert_asset"):
        monkeypatch.setattr(f"ovia_backup_dagster.defs.{module}.datetime", frozen(at))


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def dagster(*arguments: str, home: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run plain Dagster in the checkout."""
    if home is not None:
        variables["DAGSTER_HOME"] = str(home)
    return subprocess.run(
        (sys.executable, "-m", "dagster", *arguments),
        cwd=REPOSITORY,
        env={**surroundings(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def dg_command(
    *arguments: str, home: Path, folder: Path = REPOSITORY, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``dg`` in a project, with our instance's settings: without them it would send telemetry."""
    shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
    return subprocess.run(
        (DG, *arguments),
        cwd=folder,
        env={**surroundings(), "DAGSTER_HOME": str(home), "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def surroundings() -> dict[str, str]:
    """The environment without our variables, and without those that the test runner sets for Python."""
    return {name: value for name, value in os.environ.items() if not name.startswith((*OURS, "PYTHON"))}


TOLD = "the alert run succeeded"


#: Not the present: a test that begins just before midnight must not end on the next day.
NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


@dataclass
class Daemon:
    """Plays Dagster's daemon for the sensor: keeps the cursor, and executes the runs that the sensor requests.

    Attributes:
        location: the sensor's code location.
        clock: the time that the sensor and the alert see; ``None`` is the present.
        cursor: as the last tick left it.
        skipped: why the last tick requested no run.
        requests: all requests so far, except those that only show that all is well.
        shown_well: the run keys of the excepted requests.
    """

    location: Location
    monkeypatch: pytest.MonkeyPatch
    clock: datetime | None = NOON
    cursor: str | None = None
    skipped: str | None = None

    def __post_init__(self) -> None:
        self.requests: list[dg.RunRequest] = []
        self.shown_well: list[str] = []
        if self.clock is not None:
            self.at(self.clock)

    def at(self, instant: datetime) -> Daemon:
        self.clock = instant
        set_clock(self.monkeypatch, instant)
        return self

    def later(self, span: timedelta) -> Daemon:
        assert self.clock is not None
        return self.at(self.clock + span)

    def put(self, age: timedelta) -> Path:
        """Add a dump of that age."""
        return old_dump(self.location.catalog, age, now=self.clock)

    def tick(self) -> dg.RunRequest | None:
        """Evaluate the sensor. A run that only shows that all is well succeeds at once, and the next tick follows."""
        request = self.evaluate()
        if request is None or "/well" not in str(request.run_key):
            return request
        self.requests.remove(request)
        self.shown_well.append(str(request.run_key))
        self.create(request, dg.DagsterRunStatus.SUCCESS)
        return self.tick()

    def evaluate(self) -> dg.RunRequest | None:
        """Evaluate the sensor once."""
        defs = self.location.defs
        instance = self.location.instance
        with dg.build_sensor_context(instance=instance, cursor=self.cursor, definitions=defs) as context:
            data = defs.resolve_sensor_def(self.location.names.in_location("backup_freshness_sensor")).evaluate_tick(
                context
            )
        # A tick that sets no cursor leaves it as it is.
        self.cursor = data.cursor if data.cursor is not None else self.cursor
        self.skipped = data.skip_message
        requests = list(data.run_requests or [])
        assert len(requests) <= 1
        assert bool(requests) != bool(self.skipped)
        # Dagster would silently drop a run whose key it has seen.
        assert not {r.run_key for r in requests} & {r.run_key for r in self.requests}
        self.requests += requests
        return requests[0] if requests else None

    def run(self, request: dg.RunRequest | None) -> bool:
        """Execute the requested run."""
        assert request is not None, self.skipped
        return self.location.run(ALERT_JOB, config=request.run_config, tags=request.tags).success

    def create(self, request: dg.RunRequest | None, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """Create the requested run in the given status."""
        assert request is not None, self.skipped
        job = self.location.job(ALERT_JOB)
        # Only a run of a code location can be queued.
        remote = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("ovia_backup_dagster"), "__repository__")
        python = RepositoryPythonOrigin("python", ModuleCodePointer("ovia_backup_dagster.definitions", "defs"))
        return self.location.instance.create_run_for_job(
            job_def=job,
            run_config=request.run_config,
            tags=dict(request.tags),
            status=status,
            remote_job_origin=RemoteJobOrigin(remote, ALERT_JOB),
            job_code_origin=JobPythonOrigin(ALERT_JOB, python),
        )


def names_of(defs: dg.Definitions) -> dict[str, set[str]]:
    """All names that are global to an instance. Jobs and triggers are not: an instance knows them by location."""
    specs = list(defs.resolve_all_asset_specs())
    assets = [defs.resolve_assets_def(spec.key) for spec in specs]
    checks = {check.key for asset in assets for check in asset.check_specs}
    return {
        "assets": {spec.key.to_user_string() for spec in specs},
        "groups": {str(spec.group_name) for spec in specs},
        "pools": {asset.op.pool for asset in assets if asset.op.pool},
        "checks": {f"{key.asset_key.to_user_string()}:{key.name}" for key in checks},
        "deps": {dep.asset_key.to_user_string() for spec in specs for dep in spec.deps},
    }

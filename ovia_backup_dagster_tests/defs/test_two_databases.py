"""Two databases in one Dagster: each location has its own names for everything that is global to an instance.

One test has two real code servers, a daemon and two databases; the others run in this process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from ovia_backup_dagster.defs.code_location import build_defs
from ovia_backup_dagster.defs.database_names import DatabaseNames
from ovia_backup_dagster.demo.process_groups import end_group
from ovia_backup_dagster_tests.conftest import REPOSITORY, NewDatabase, dump_that_waits, free_port
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.receiver import Receiver, receiver
from ovia_backup_dagster_tests.defs.support import (
    ALERT,
    ALERT_JOB,
    CHAIN,
    DAILY_JOB,
    DOCTOR,
    DRILL,
    OURS,
    Daemon,
    Location,
    age_run,
    dagster,
    environment,
    load,
    materialized,
    names_of,
    old_dump,
)
from ovia_backup_dagster_tests.ui.deployment import until

# Apprise 2.2 imports it while loading its plugins.
pytestmark = pytest.mark.filterwarnings("ignore:.imghdr. is deprecated:DeprecationWarning")

PREFIX = "crm"
#: Dagster's implicit job for launches from the asset graph.
BY_HAND = "__ASSET_JOB"


def test_two_databases_share_no_global_state() -> None:
    first, second = (
        names_of(build_defs(load({"POSTGRES_HOST": "127.0.0.1", "BACKUP_ASSET_PREFIX": prefix})))
        for prefix in ("", PREFIX)
    )
    assert first["assets"] == {*CHAIN, ALERT, DOCTOR, DRILL}
    for kind, names in first.items():
        between = "_" if kind in ("groups", "pools") else "/"
        assert second[kind] == {f"{PREFIX}{between}{name}" for name in names}
        assert not names & second[kind]


def test_jobs_and_triggers_select_only_their_own_assets() -> None:
    first, second = (
        build_defs(load({"POSTGRES_HOST": "127.0.0.1", "BACKUP_ASSET_PREFIX": prefix})) for prefix in ("", PREFIX)
    )
    for job in first.resolve_all_job_defs():
        if not job.name.startswith("__"):
            keys = second.resolve_job_def(job.name).asset_layer.selected_asset_keys
            assert keys == {key.with_prefix(PREFIX) for key in job.asset_layer.selected_asset_keys}
    for kind in ("schedules", "sensors"):
        assert [t.name for t in getattr(first, kind)] == [t.name for t in getattr(second, kind)]


def test_the_chain_runs_under_its_prefixed_names(new_location: NewLocation) -> None:
    location: Location = new_location(BACKUP_ASSET_PREFIX=PREFIX)
    result = location.run()
    assert result.success
    assert list(materialized(result)) == [f"{PREFIX}/{name}" for name in CHAIN]
    # The verification found the dump of its run by the prefixed key.
    assert "this run made no dump" not in location.logs(result.run_id)
    assert {check.asset_key for check in result.get_asset_check_evaluations()} == {
        dg.AssetKey([PREFIX, "dump_verification"])
    }


def test_two_databases_of_one_name_are_both_alerted(
    bare: NewLocation, people: Receiver, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On two servers, each with /backups in its own container: alerts at the same instant differ by their prefix."""
    for prefix in ("", PREFIX):
        daemon = Daemon(bare(BACKUP_NOTIFY_URLS=people.url, BACKUP_ASSET_PREFIX=prefix), monkeypatch)
        assert daemon.run(daemon.tick())
        assert daemon.tick() is None
    assert people.titles == ["[sample] there is no backup", f"[{PREFIX}/sample] there is no backup"]


def test_a_failed_run_of_a_namesake_database_does_not_count(new_location: NewLocation, people: Receiver) -> None:
    theirs: Location = new_location(BACKUP_ASSET_PREFIX=PREFIX, POSTGRES_USER="nobody_of_that_name")
    assert not theirs.run().success
    ours: Location = new_location(BACKUP_NOTIFY_URLS=people.url)
    old_dump(ours.catalog, timedelta(days=2))
    assert ours.run(ALERT_JOB).success
    assert people.titles == [f"[{ours.settings.postgres_db}] the newest backup is too old"]
    assert "ailed run" not in people.messages[0]["message"]


# ---------------------------------------------------------------- real processes


@contextmanager
def started(*arguments: str, log: Path, variables: Mapping[str, str]) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*OURS, "PYTHON"))}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            (sys.executable, "-W", "ignore", "-m", *arguments),
            cwd=REPOSITORY,
            env={**kept, **variables},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield
    finally:
        end_group(process)
        process.wait(0)


class Deployment:
    """One instance on disk with a daemon, and a real code server for each location."""

    def __init__(
        self,
        home: Path,
        locations: Mapping[str, Mapping[str, str]],
        stack: ExitStack,
        before: Callable[[dg.DagsterInstance], None],
    ) -> None:
        self.home = home
        shutil.copyfile(REPOSITORY / "dagster.yaml", home / "dagster.yaml")
        self.instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        # Create SQLite's files here, so that no two processes do so at once.
        assert not (self.instance.get_runs())
        assert not (self.instance.all_asset_keys())
        assert not (self.instance.all_instigator_state())
        before(self.instance)
        self.workspace = home / "workspace.yaml"
        text = "load_from:\n"
        for name, variables in locations.items():
            port = free_port()
            server = ("dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(port))
            module = ("-m", "ovia_backup_dagster.definitions")
            stack.enter_context(started(*server, *module, log=home / f"{name}.log", variables=variables))
            text += f"  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: {name}}}\n"
        self.workspace.write_text(text, "utf-8")
        until(self._serves, 60, "the code servers do not answer")
        daemon = ("dagster._daemon", "run", "-w", str(self.workspace))
        stack.enter_context(started(*daemon, log=home / "daemon.log", variables={"DAGSTER_HOME": str(home)}))

    def _serves(self) -> bool:
        return dagster("definitions", "validate", "-w", str(self.workspace), home=self.home).returncode == 0

    def launch(self, location: str, job: str) -> Callable[[], dg.DagsterRunStatus]:
        """Launch the job; return a function that gives the run's status."""
        before = {run.run_id for run in self.instance.get_runs()}
        where = ("-w", str(self.workspace), "-l", location)
        launched = dagster("job", "launch", *where, "-j", job, home=self.home)
        assert launched.returncode == 0, launched.stdout
        (run_id,) = [r.run_id for r in self.instance.get_runs(dg.RunsFilter(job_name=job)) if r.run_id not in before]

        def status() -> dg.DagsterRunStatus:
            run = self.instance.get_run_by_id(run_id)
            assert run is not None
            return run.status

        return status

    def by_hand(self, location: str, days: int) -> str:
        """A run that was launched from a location's asset graph and succeeded ``days`` ago."""
        repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), "__repository__")
        prefix = PREFIX if location == "second" else ""
        key = DatabaseNames(prefix, Path()).key(ALERT)
        run = self.instance.create_run_for_job(
            build_defs(load({"BACKUP_ASSET_PREFIX": prefix})).resolve_implicit_global_asset_job_def(),
            status=dg.DagsterRunStatus.SUCCESS,
            asset_selection=frozenset({key}),
            remote_job_origin=RemoteJobOrigin(repository, BY_HAND),
            job_code_origin=JobPythonOrigin(
                BY_HAND,
                RepositoryPythonOrigin("python", ModuleCodePointer("ovia_backup_dagster.definitions", "defs")),
            ),
        )
        age_run(self.instance, run.run_id, timedelta(days=days))
        return run.run_id


@pytest.mark.exhaustive
def test_two_code_locations_of_one_dagster_are_independent(
    new_database: NewDatabase, bin_dir: Path, tmp_path: Path
) -> None:
    databases = {"first": new_database(), "second": new_database()}
    home = tmp_path / "home"
    home.mkdir()
    with ExitStack() as stack:
        people = {name: stack.enter_context(receiver()) for name in databases}
        variables = {
            name: environment(
                database,
                tmp_path / f"backups of {name}",
                bin_dir,
                BACKUP_NOTIFY_URLS=people[name].url,
                BACKUP_ASSET_PREFIX=PREFIX if name == "second" else "",
                # The schedule must not launch a run during the test.
                BACKUP_SCHEDULE="0 3 1 1 *",
            )
            for name, database in databases.items()
        }
        Path(variables["first"]["BACKUP_DIR"]).mkdir()

        def history(instance: dg.DagsterInstance) -> None:
            """Give the second database a verified backup, and a later run that failed."""
            location = Location(load(variables["second"]), instance)
            assert location.run().success
            location.installed = lambda: False
            assert not location.run().success

        dagsters = Deployment(home, variables, stack, history)
        # On its first tick, each sensor alerts its own people of its own database.
        until(lambda: all(p.titles for p in people.values()), 90, "no alert arrived")

        # The first database's dump waits; the second's does not wait for it.
        with dump_that_waits(databases["first"]) as waits:
            first = dagsters.launch("first", DAILY_JOB)
            until(waits, 60, "no pg_dump waits")
            second = dagsters.launch("second", DAILY_JOB)
            until(lambda: second().value in ("SUCCESS", "FAILURE"), 60, "the second waits for the first")
            assert second() is dg.DagsterRunStatus.SUCCESS
            assert first() is dg.DagsterRunStatus.STARTED
        until(lambda: first().value in ("SUCCESS", "FAILURE"), 60, "it does not end")
        assert first() is dg.DagsterRunStatus.SUCCESS

        for name, database in databases.items():
            key = dg.AssetKey([PREFIX, "daily_dump"] if name == "second" else ["daily_dump"])
            made = dagsters.instance.fetch_materializations(key, limit=9).records
            folder = tmp_path / f"backups of {name}" / "daily"
            daily = sorted((path.name for path in folder.glob("*.dump")), reverse=True)
            assert len(daily) == (2 if name == "second" else 1)
            assert [str(r.asset_materialization.metadata["backup"].value) for r in made if r.asset_materialization] == (
                daily
            )
            assert daily[0].startswith(f"{database.database}_daily_")
            assert people[name].titles == [
                f"[{PREFIX}/{database.database}] the daily backup failed"
                if name == "second"
                else f"[{database.database}] there is no backup"
            ]
            (other,) = databases.keys() - {name}
            assert databases[other].database not in str(people[name].messages)
        # A manual materialization has no tags of ours, but its origin names the code location.
        by_hand = {name: [dagsters.by_hand(name, days) for days in (600, 500)] for name in databases}
        pruned = dagsters.launch("first", "history_pruning_job")
        until(lambda: pruned().value in ("SUCCESS", "FAILURE"), 60, "it does not end")
        assert pruned() is dg.DagsterRunStatus.SUCCESS
        left = {run.run_id for run in dagsters.instance.get_runs(dg.RunsFilter(job_name=BY_HAND))}
        assert left == {by_hand["first"][1], *by_hand["second"]}

        keys = {key.to_user_string() for key in dagsters.instance.all_asset_keys()}
        assert keys >= {*CHAIN, *(f"{PREFIX}/{name}" for name in CHAIN)}

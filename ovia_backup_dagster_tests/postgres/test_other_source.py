"""Dumps of another cluster, of an empty database and of other tables; and units that were tampered with.

Two real servers: the same settings reach one server on one day and the other on the next, as with a wrong host.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core.archive_header import HEAD_BYTES, parse_header
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.errors import BackupNotFoundError, NotVerifiedError
from ovia_backup_dagster.core.manifest import FileFacts
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.publication import promote_backup
from ovia_backup_dagster.core.sidecars import GLOBALS, HELD, SIDECAR_KINDS, VERIFIED
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import Expectations, HoldCause
from ovia_backup_dagster.postgres import verification
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster.postgres.verification import Verified, Verifier
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.record import Record
from ovia_backup_dagster.restoration.restore_order import Mode, Order
from ovia_backup_dagster.retention import holding, promote_and_prune
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.conftest import NewDatabase, execute, free_port, quiet
from ovia_backup_dagster_tests.support.factories import redated

ONE_DAY = Policy({Tier.DAILY: 1, Tier.WEEKLY: 1}, Weekday.SUNDAY, ZoneInfo("UTC"))
TABLES = ("CREATE TABLE people (id int)", "INSERT INTO people SELECT generate_series(1, 100)")


@dataclass
class Story:
    """A volume, and databases of the same name on two servers."""

    here: Connection
    there: Connection
    catalog: Catalog
    programs: Programs
    day: int = 40

    @property
    def verifier(self) -> Verifier:
        return Verifier(
            self.catalog, self.programs, Expectations(), went_live_on=RestoreFolder(self.catalog).went_live_on
        )

    def dump(self, of: Connection) -> Backup:
        """Dump the database, dated a day after the last dump."""
        self.day -= 1
        made = Dumper(self.catalog, of, self.programs, "gzip:1").dump(log=quiet)
        return redated(made, made.started_at - timedelta(days=self.day))

    def verified(self, of: Connection) -> Verified:
        return self.verifier.verify(self.dump(of), log=quiet)

    def state(self, backup: Backup) -> State:
        return self.catalog.refresh(backup).state(datetime.now(UTC))

    def rejected(self, of: Connection, *words: str) -> Verified:
        verified = self.verified(of)
        assert not verified.judgement.good
        assert [finding.check for finding in verified.judgement.findings if not finding.check.is_odd] == [Check.SOURCE]
        assert all(word in "; ".join(verified.judgement.strange) for word in words)
        assert self.state(verified.backup) is State.BAD
        return verified

    def good(self, of: Connection) -> Backup:
        verified = self.verified(of)
        assert verified.judgement.good, verified.judgement.reasons
        return verified.backup

    def accept(self, backup: Backup) -> Verified:
        return self.verifier.accept(self.catalog.refresh(backup), by="a test", log=quiet)

    def restored(self, system_identifier: str | None, *, mode: Mode = Mode.NEW, takes_name: bool = True) -> None:
        """Write the record of a restore onto a server."""
        folder = RestoreFolder(self.catalog)
        folder.prepare()
        now = folder.free(datetime.now(UTC).replace(microsecond=0))
        order = Order(
            mode=mode,
            started_at=now,
            database=self.catalog.database,
            host="b",
            port=5432,
            system_identifier=system_identifier,
            incoming="x",
            takes_name=takes_name,
            new_host=True,
            launched_by="a test",
            made_by="a test",
        )
        folder.write(Record(order=order, finished_at=now, outcome="done"), "")


@pytest.fixture
def story(
    new_database: NewDatabase, new_full_database: NewDatabase, full_bin_dir: Path, volume: Path
) -> Iterator[Story]:
    with two(new_database, new_full_database) as (here, there):
        yield Story(here, there, Catalog(volume, here.database), Programs(full_bin_dir))


@contextmanager
def two(new_database: NewDatabase, new_full_database: NewDatabase) -> Iterator[tuple[Connection, Connection]]:
    name = f"two{free_port()}"
    here, there = new_database(name, "template0"), new_full_database(name, "template0")
    for connection in (here, there):
        execute(connection, *TABLES)
    yield here, there


def test_another_cluster_is_bad_until_it_is_accepted(story: Story) -> None:
    """Until then it holds the last good dump, however many follow; then it is the new normal, and holds none."""
    last = story.good(story.here)
    identifier = story.catalog.refresh(last).system_identifier
    first = story.rejected(story.there, "of another cluster", last.path.name)
    assert identifier is not None
    assert identifier in first.judgement.strange[0]
    problem = first.judgement.problem(str(first.backup))
    assert problem is not None
    assert f"ovia-backup accept {first.backup}" in problem.fix
    others = [story.rejected(story.there, last.path.name) for _ in range(2)]
    hold = story.catalog.refresh(last).hold
    assert hold is not None
    assert hold.cause is HoldCause.OTHER_SOURCE
    assert str(first.backup) in hold.reason
    with pytest.raises(NotVerifiedError):
        promote_and_prune.prune(story.catalog, ONE_DAY, datetime.now(UTC))

    accepted = story.accept(others[-1].backup)

    assert accepted.judgement.good
    assert story.catalog.held(datetime.now(UTC)) == []
    acceptance = story.catalog.refresh(accepted.backup).acceptance
    assert acceptance is not None
    assert (acceptance.by, acceptance.found) == ("a test", others[-1].judgement.strange)
    story.good(story.there)  # without another acceptance
    assert story.state(first.backup) is State.BAD
    story.rejected(story.here, str(identifier))  # the way back needs its own acceptance


@pytest.mark.exhaustive
def test_a_dump_of_the_right_cluster_needs_no_acceptance(story: Story) -> None:
    story.good(story.here)
    story.rejected(story.there)
    story.good(story.here)


def test_an_accepted_dump_stays_accepted(story: Story) -> None:
    """Also when it is verified again, and when it is promoted and verified there: promotion copies the acceptance."""
    story.good(story.here)
    accepted = story.accept(story.rejected(story.there).backup).backup
    accepted.sidecar(VERIFIED).unlink()
    assert story.verifier.verify(accepted, log=quiet).judgement.good
    weekly = promote_backup(story.catalog, story.catalog.refresh(accepted), Tier.WEEKLY, datetime.now(UTC))
    weekly.sidecar(VERIFIED).unlink()
    assert story.verifier.verify(weekly, log=quiet).judgement.good


@pytest.mark.exhaustive
def test_an_acceptance_of_another_dump_does_not_count(story: Story) -> None:
    story.good(story.here)
    accepted = story.accept(story.rejected(story.there).backup).backup
    other = story.dump(story.here)
    shutil.copyfile(accepted.sidecar(".accepted.json"), other.sidecar(".accepted.json"))
    assert not story.verifier.verify(other, log=quiet).judgement.good


def test_an_empty_database_is_bad_even_as_the_first(story: Story) -> None:
    for connection in (story.here, story.there):
        execute(connection, "DROP TABLE people")
    first = story.rejected(story.here, "it holds no table at all")
    assert story.accept(first.backup).judgement.good
    story.good(story.here)


def test_losing_all_tables_is_reported_and_holds_the_last_dump(story: Story) -> None:
    last = story.good(story.here)
    execute(story.here, "ALTER TABLE people RENAME TO persons")
    gone = story.rejected(story.here, f"none of the tables of {last} is in it")
    assert story.catalog.refresh(last).hold is not None
    execute(story.here, "DROP TABLE persons")
    story.rejected(story.here, "it holds no table at all")
    assert story.accept(gone.backup).judgement.good
    assert story.catalog.held(datetime.now(UTC)) == []


def test_one_shared_table_proves_the_source(story: Story) -> None:
    execute(story.here, "CREATE TABLE second (id int)")
    story.good(story.here)
    execute(story.here, "DROP TABLE people", "CREATE TABLE third (id int)")
    story.good(story.here)


def test_a_restore_that_went_live_accepts_its_cluster(story: Story) -> None:
    story.good(story.here)
    first = story.rejected(story.there)
    identifier = first.backup.system_identifier
    story.restored(identifier, takes_name=False)  # a copy beside the live database
    story.rejected(story.there)
    story.restored(identifier)
    story.good(story.there)
    story.restored(None)
    story.good(story.there)


@pytest.mark.exhaustive
def test_only_the_newest_restore_accepts_its_cluster(story: Story) -> None:
    story.good(story.here)
    story.restored(story.rejected(story.there).backup.system_identifier)
    story.restored("7000000000000000000")
    story.rejected(story.there)


@pytest.mark.exhaustive
def test_dumps_are_compared_with_the_last_known_cluster(story: Story) -> None:
    """A role may lose the right to read the identifier: later dumps are compared with the last that has one."""
    first = story.good(story.here)
    role = f"poor{free_port()}"
    execute(story.here, f"CREATE ROLE {role} LOGIN", f"GRANT pg_read_all_data TO {role}")
    execute(story.here, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        unknown = story.good(replace(story.here, user=role))
        assert unknown.system_identifier is None
        story.rejected(story.there, first.path.name)
    finally:
        execute(story.here, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
        execute(story.here, "GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


def test_a_verified_dump_stays_verified_when_read_again(story: Story) -> None:
    """As a dump whose verdict is older than the check of the source."""
    first = story.dump(story.here)
    second = story.good(story.there)
    story.verifier.verify(first, log=quiet)
    assert story.verifier.verify(second, log=quiet).judgement.good


def test_a_dump_outside_the_volume_cannot_be_accepted(story: Story, tmp_path: Path) -> None:
    story.good(story.here)
    other = story.dump(story.there)
    for suffix in ("", ".json"):  # the roles were left behind
        shutil.move(other.sidecar(suffix), tmp_path / f"theirs.dump{suffix}")
    elsewhere = story.catalog.find(str(tmp_path / "theirs.dump"), datetime.now(UTC))
    assert story.verifier.verify(elsewhere, log=quiet).judgement.good
    with pytest.raises(BackupNotFoundError, match="is not on the volume"):
        story.accept(elsewhere)


def test_a_good_dump_gets_no_acceptance(story: Story) -> None:
    backup = story.good(story.here)
    assert story.accept(backup).judgement.good
    assert not backup.sidecar(".accepted.json").exists()


def test_an_acceptance_does_not_make_a_damaged_dump_good(story: Story) -> None:
    story.good(story.here)
    backup = story.rejected(story.there).backup
    story.catalog.refresh(backup).sidecar(GLOBALS).write_bytes(b"altered")
    assert not story.accept(backup).judgement.good
    assert story.state(backup) is State.BAD
    assert story.catalog.held(datetime.now(UTC)) != []


@pytest.mark.exhaustive
def test_a_hold_that_a_person_released_is_not_made_again(story: Story) -> None:
    last = story.good(story.here)
    story.rejected(story.there)
    holding.release(story.catalog, story.catalog.refresh(last), datetime.now(UTC))
    story.rejected(story.there)
    assert story.catalog.held(datetime.now(UTC)) == []


# --- Units that were tampered with, verified -----------------------------------------------------------------------


def test_the_header_of_a_real_dump_fits_its_manifest(story: Story) -> None:
    backup = Dumper(story.catalog, story.here, story.programs).dump(log=quiet)
    header = parse_header(backup.path.read_bytes()[:HEAD_BYTES])
    assert header is not None
    manifest = backup.manifest
    assert manifest is not None
    assert (header.database, header.server_version) == (story.here.database, manifest.database.server_version)
    assert header.client_version == manifest.client_version
    assert header.created_at is not None
    assert manifest.started_at <= header.created_at <= manifest.finished_at
    assert backup.contradictions == ()
    assert manifest.files == {GLOBALS.suffix: FileFacts.of(backup.sidecar(GLOBALS).read_bytes())}


@pytest.mark.parametrize("how", ["altered", "longer", "missing"])
def test_a_changed_globals_file_makes_the_backup_bad(story: Story, how: str) -> None:
    """An altered line could create a superuser where the file is replayed."""
    backup = story.good(story.here)
    path = backup.sidecar(GLOBALS)
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content.replace(b"NOSUPERUSER", b"SUPERUSER  ", 1) if how == "altered" else content + b"--\n")
    verified = story.verifier.verify(story.catalog.refresh(backup), log=quiet)
    (finding,) = verified.judgement.findings
    assert finding.check is Check.MATCHES_MANIFEST
    assert path.name in finding.text
    assert {"altered": "was altered", "longer": "bytes long", "missing": "is missing"}[how] in finding.text
    assert story.state(backup) is State.BAD


def test_yesterdays_unit_under_todays_name_is_bad_when_verified(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program may open it."""
    backup = story.good(story.here)
    name = BackupName(backup.name.database, backup.tier, backup.started_at + timedelta(days=1))
    for suffix in ("", *(kind.suffix for kind in SIDECAR_KINDS if backup.sidecar(kind).exists())):
        shutil.copy2(backup.sidecar(suffix), backup.path.with_name(f"{name.filename}{suffix}"))
    today = story.catalog.find(name.filename, datetime.now(UTC))
    assert story.state(today) is State.BAD
    monkeypatch.setattr(verification, "read_archive", lambda *_: pytest.fail("it was opened"))
    verified = story.verifier.verify(today, log=quiet)
    assert [finding.check for finding in verified.judgement.findings] == [Check.MATCHES_MANIFEST]


@pytest.mark.exhaustive
def test_lost_rows_hold_again_once_a_source_hold_has_ended(story: Story) -> None:
    """One sidecar serves both reasons; neither hides the other."""
    last = story.good(story.here)
    story.rejected(story.there)
    holding.release(story.catalog, story.catalog.refresh(last), datetime.now(UTC))
    execute(story.here, "DELETE FROM people WHERE id > 10")
    story.good(story.here)
    hold = story.catalog.refresh(last).hold
    assert hold is not None
    assert (hold.cause, hold.tables, hold.released_at) == (HoldCause.LOST_ROWS, {"public.people": 100}, None)
    assert last.sidecar(HELD).exists()

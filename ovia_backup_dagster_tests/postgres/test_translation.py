"""Servers in other languages: each failure has the same diagnosis as in English, and is retried or not.

Tested with the messages of PostgreSQL's catalogues, and with the conditions of ``test_diagnosis`` on a live server in
German: Debian's PostgreSQL 15, because that is built with translations.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.doctor import server_area as doctor
from ovia_backup_dagster.doctor.report import Observation, Severity
from ovia_backup_dagster.postgres import diagnosis, server_language, translation
from ovia_backup_dagster.postgres.archive import contents_list
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.programs import Programs, capture
from ovia_backup_dagster.postgres.translation import _PLACE, _translations, english
from ovia_backup_dagster.proof.pg_restore import Restorer
from ovia_backup_dagster_tests.conftest import PASSWORD, PortCluster, execute, quiet, running_cluster
from ovia_backup_dagster_tests.doctor.support import system_of
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.provocations import (
    CASES,
    FEW,
    NEEDS_ROOT,
    Case,
    Scene,
    doors,
    failed,
    primary_and_standby,
    session,
    to_be_stopped,
)
from tools import translations

DEBIANS = Path("/usr/lib/postgresql/15/bin")
GERMAN = "de_DE.UTF-8"
#: Not these: the client reports them, or there is no server.
NOT_THE_SERVERS = re.compile(
    r"the_hosts_name_.*|nobody_.*|the_socket_.*|there_is_no_route|no_password|the_volume_is_full|.*certificate.*"
    r"|a_server_without_tls|a_mode_that_.*|client_programs_.*|no_version_of_tls_.*|a_client_.*|a_server_newer_.*"
    r"|a_library_.*|an_archive_.*|an_extension_.*|the_authoritys_.*"
)
SERVERS = [case for case in CASES if not NOT_THE_SERVERS.fullmatch(case.provoke.__name__)]


# ------------------------------------------------------------------------------------------ messages of the catalogues


def filled(message: str, places: str) -> str:
    """A message with its placeholders filled, in the order that its language has them."""
    numbers = iter(range(len(places)))
    return _PLACE.sub(lambda place: places[int(place[1]) - 1 if place[1] else next(numbers)], message)


@pytest.mark.parametrize("language", sorted(_translations()))
def test_errors_are_diagnosed_alike_in_all_languages(language: str) -> None:
    said_in = _translations()[language]
    told = 0
    for message in translations.MESSAGES:
        if message not in said_in:
            continue  # not translated yet
        text = "pg_dump: error: query failed: {}:  {}\npg_dump: detail: Query was: SELECT 1"
        severity = "FATAL" if "connection" in message or "does not exist" in message else "ERROR"
        in_english = diagnose(text.format(severity, filled(message, "1234")), what="it failed")
        foreign = text.format(said_in.get(severity, severity), filled(said_in[message], "1234"))
        found = diagnose(foreign, what="it failed")

        assert type(found) is type(in_english), foreign
        assert (found.why, found.fix) == (in_english.why, in_english.fix)
        told += type(found) is not errors.ProgramError
        assert english(foreign).count("\n") == foreign.count("\n")
    assert told > 50


@pytest.mark.parametrize("language", sorted(_translations()))
def test_a_servers_full_disk_is_known_in_all_languages(language: str) -> None:
    said_in = _translations()[language]
    full = said_in.get("No space left on device", "No space left on device")
    said = f"{said_in.get('ERROR', 'ERROR')}:  base/16384/2619: {full}"

    assert type(diagnose(f"pg_restore: error: {said}", what="it failed")) is errors.ServerDiskFullError


def test_an_error_in_another_language_shows_no_data() -> None:
    said = 'pg_restore: error: could not execute query: FEHLER:  ungültige Eingabesyntax für Typ integer: "4111 1111"'

    error = diagnose(said, what="it failed")

    assert type(error) is errors.ProgramError
    assert "4111" not in str(error)


# ------------------------------------------------------------------------------------------ a server in German


@dataclass(frozen=True)
class GermanCluster(PortCluster):
    """A server with a German locale, which need not be installed: messages need only its name."""

    locales: Path = Path()

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "LOCPATH": str(self.locales)}

    def create(self) -> None:
        shutil.copytree("/usr/lib/locale/C.utf8", self.locales / GERMAN)
        self.folder.chmod(0o755)
        super().create()


def german(**settings: str) -> running_cluster:
    if not (DEBIANS / "postgres").exists() and not os.environ.get("CI"):
        pytest.skip("Debian's PostgreSQL 15 is not installed, which .ci/run does: apt-get install postgresql-15")
    new = running_cluster(DEBIANS, tls=True, lc_messages=GERMAN, **settings)
    made = new.cluster
    locales = made.folder / "locales"
    new.cluster = GermanCluster(made.bin_dir, made.folder, settings=made.settings, port=made.port, locales=locales)
    return new


@pytest.fixture(scope="module")
def german_gate() -> Iterator[PortCluster]:
    with doors(german(**FEW)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def german_doomed() -> Iterator[PortCluster]:
    with to_be_stopped(german(restart_after_crash="on")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def german_pair() -> Iterator[tuple[PortCluster, PortCluster]]:
    with primary_and_standby(german(autovacuum="off")) as both:
        yield both


@pytest.fixture(scope="module")
def german_damaged() -> Iterator[PortCluster]:
    with german() as cluster:
        cluster.stop()
        cluster._run("pg_checksums", "--enable", "--no-sync", f"--pgdata={cluster.data}")
        cluster.start()
        yield cluster


@pytest.fixture
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(request, tmp_path, "german_")


@pytest.mark.parametrize("case", thinned(SERVERS), ids=lambda case: case.provoke.__name__)
def test_a_german_servers_failures_are_diagnosed_alike(case: Case, scene: Scene) -> None:
    if case.provoke.__name__ in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")

    outcome = case.provoke(scene)

    names = diagnosis._names(outcome.connection)
    for error in outcome.errors:
        assert type(error) is case.error, error
        assert case.why in error.why
        assert case.fix.format_map(names) in error.fix
        assert error.transient is case.transient
        assert PASSWORD not in str(error)


def test_english_is_requested_or_the_doctor_says_why_not(scene: Scene) -> None:
    connection = scene.new_database("CREATE TABLE t ()")

    def told() -> list[Observation]:
        lines = doctor.server(system_of(connection, scene.volume, DEBIANS))
        return [line for line in lines if "reports errors in the language of de_DE.UTF-8" in line.text]

    (line,) = told()
    assert line.level is Severity.WARN
    assert server_language.in_english(connection, "-c timezone=UTC") == {"PGOPTIONS": "-c timezone=UTC"}
    assert server_language.in_english(connection) == {}
    in_german = scene.dump(connection).said
    assert "keine Berechtigung für Tabelle t" in in_german

    execute(scene.superuser(connection), line.sql[0])

    assert told() == []
    assert server_language.in_english(connection) == {"PGOPTIONS": "-c lc_messages=C"}
    assert "permission denied for table t" in scene.dump(connection).said


@pytest.mark.exhaustive
def test_the_sqlstate_decides_on_an_untranslated_message(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an unknown language, a session asks the server again, and the SQLSTATE decides."""
    monkeypatch.setattr(translation, "_messages", list)
    connection = scene.new_database("CREATE TABLE t ()")

    refused = scene.pg_dump(connection)
    assert type(refused) is errors.PrivilegeError
    assert "doctor" in refused.fix
    assert type(scene.pg_dump(replace(connection, user="no_such_role"))) is errors.RoleMissingError
    assert type(scene.pg_dump(replace(connection, database="no_such_database"))) is errors.DatabaseMissingError
    execute(scene.superuser(connection), "GRANT pg_read_all_data TO " + connection.user)
    with session(scene.superuser(connection)) as other:
        other.execute("BEGIN; LOCK TABLE t")
        command = str(DEBIANS / "pg_dump"), "--no-password", "--file=/dev/null", "--lock-wait-timeout=100"
        held = failed(command, connection)
        assert type(held) is errors.LockTimeoutError
        assert held.transient
    # The obstacle is gone when the session asks again.
    text = "pg_dump: error: query failed: FEHLER:  etwas\npg_dump: detail: Query was: SELECT 1"
    passed = server_language.diagnose_program(text, what="it failed", connection=connection, exit_code=1)
    assert type(passed) is errors.MomentaryError
    assert passed.transient
    # A statement that would change something is not repeated.
    text = "pg_dump: error: query failed: FEHLER:  etwas\npg_dump: detail: Query was: DROP TABLE public.t"
    boss = scene.superuser(connection)
    assert (
        type(server_language.diagnose_program(text, what="it failed", connection=boss, exit_code=1))
        is errors.ProgramError
    )


def test_a_german_server_names_the_violated_constraint(scene: Scene) -> None:
    source = scene.new_database(
        "CREATE FUNCTION fits(a int) RETURNS boolean IMMUTABLE RETURN true",
        "CREATE TABLE t (a int CONSTRAINT that_fits CHECK (fits(a)))",
        "INSERT INTO t VALUES (4111)",
        "CREATE OR REPLACE FUNCTION fits(a int) RETURNS boolean IMMUTABLE RETURN false",
        "ALTER DATABASE {me} OWNER TO {me}",
    )
    path = scene.folder / "violated.dump"
    programs = Programs(DEBIANS)
    command = str(DEBIANS / "pg_dump"), "--format=custom", f"--file={path}"
    code, _, stderr = capture(command, variables=scene.superuser(source).environment())
    assert code == 0, stderr
    target = scene.new_database("ALTER DATABASE {me} OWNER TO {me}")

    restorer = Restorer(programs, target, "database", 1, with_owners=False)
    listing = contents_list(programs, path)
    with pytest.raises(BackupError) as caught:
        restorer.restore(path, listing, None, quiet)

    assert "CHECK that_fits refuses a row of public.t" in caught.value.what
    assert "4111" not in str(caught.value)

"""Every line of the table of diagnoses, matched by the real condition on a real server, with the real programs.

The decorators of ``support.provocations`` show that no line is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace

import pytest
from psycopg import sql

from ovia_backup_dagster.core import errors
from ovia_backup_dagster.core.errors import BackupError
from ovia_backup_dagster.postgres import diagnosis
from ovia_backup_dagster.postgres.diagnosis import diagnose
from ovia_backup_dagster.postgres.dump import Dumper
from ovia_backup_dagster.postgres.programs import start
from ovia_backup_dagster.postgres.quoting import shell_word, sql_identifier
from ovia_backup_dagster_tests.conftest import (
    PASSWORD,
    execute,
    quiet,
)
from ovia_backup_dagster_tests.support.exhaustive import sampled
from ovia_backup_dagster_tests.support.provocations import (
    CASES,
    NEEDS_ROOT,
    NOT_PROVOKED,
    TABLE,
    Case,
    Scene,
    session,
    waiting,
)


@pytest.mark.parametrize("case", sampled(CASES, every=4), ids=lambda case: case.provoke.__name__)
def test_a_provoked_failure_has_its_diagnosis(case: Case, scene: Scene) -> None:
    if case.provoke.__name__ in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("mounting a small filesystem needs root")

    outcome = case.provoke(scene)

    names = diagnosis._names(outcome.connection)
    # An error's message is on one line.
    seen = [hit.replace("\\npg_dump: detail: Query was: LOCK TABLE", "").replace(":  ", ": ") for hit in case.hits]
    for error in outcome.errors:
        assert type(error) is case.error, error
        assert case.why in error.why
        assert case.fix.format_map(names) in error.fix
        assert error.transient is case.transient
        text = str(error)
        assert "\n" not in text
        assert PASSWORD not in text
        assert error.said in text
        assert text.endswith(f". Next: {error.fix}")
        assert any(re.search(hit, error.said) for hit in seen), error
    for hit in seen:
        assert any(re.search(hit, error.said) for error in outcome.errors), hit


def test_every_line_is_provoked_or_excused() -> None:
    provoked = {hit for case in CASES for hit in case.hits}
    assert provoked <= TABLE
    assert set(NOT_PROVOKED) <= TABLE
    assert not provoked & set(NOT_PROVOKED)
    assert provoked | set(NOT_PROVOKED) == TABLE


def test_a_password_equal_to_a_message_word_hides_nothing(scene: Scene) -> None:
    error = scene.dump(scene.tcp(password="authentication"))

    assert type(error) is errors.AuthenticationError
    assert "the password here is not the server's" in error.why
    assert "password ******** failed for user" in error.said


def test_an_unknown_message_is_shown_unchanged(scene: Scene) -> None:
    error = scene.dump(scene.tcp(PGSSLMINPROTOCOLVERSION="TLSv9"))

    assert type(error) is errors.ProgramError
    assert (error.why, error.fix) == ("", "")
    assert error.said == 'connection is bad: invalid "ssl_min_protocol_version" value: "TLSv9"'


def test_a_killed_program_is_reported_with_its_signal(scene: Scene) -> None:
    connection = scene.new_database("CREATE TABLE t ()", "GRANT pg_read_all_data TO {me}")
    command = str(scene.full_bin / "pg_dump"), "--no-password", "--file=/dev/null"
    with session(scene.superuser(connection)) as other, session(scene.superuser(connection)) as watcher:
        other.execute("BEGIN")
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with start(command, variables=connection.environment()) as child:
            waiting(watcher)
            child.process.kill()
            code = child.wait()
    error = diagnose(child.stderr, what="pg_dump failed", connection=connection, exit_code=code)
    assert "ended by signal 9" in error.why


# ------------------------------------------------------------------------------------------ the advice

#: A statement in an error's advice; names may contain anything.
SQL = re.compile(r"""(?:ALTER ROLE|ALTER DATABASE|GRANT) (?:"(?:[^"]|"")*"|[^;"])+""")


@pytest.mark.parametrize("name", ["plain", "'; rm -rf ~; '", 'Quo"te', "two  spaces", "line\nfeed", "back\\slash "])
def test_the_advised_sql_works_for_any_name(name: str, scene: Scene) -> None:
    """Each failure's advice is run as it is printed, one after the other, until the dump succeeds."""
    boss = scene.gate.connection()
    within, quoted = replace(boss, database=name), sql.Identifier(name).as_string(None)
    execute(
        boss,
        f"CREATE DATABASE {quoted} STRATEGY file_copy",
        f"CREATE ROLE {quoted} CONNECTION LIMIT 0",
        f"REVOKE CONNECT ON DATABASE {quoted} FROM PUBLIC",
    )
    execute(within, "CREATE TABLE t (a int)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY", "SELECT lo_create(7)")
    execute(boss, f"ALTER DATABASE {quoted} ALLOW_CONNECTIONS false")
    dumper = scene.dumper(replace(within, user=name))
    met: list[type[BackupError]] = []
    try:
        while (error := _error(dumper)) and len(met) < 10:
            met.append(type(error))
            statements = SQL.findall(error.fix)
            assert statements, error
            execute(within if "LARGE OBJECT" in error.fix else boss, statements[0])
    finally:
        execute(
            boss, f"ALTER DATABASE {quoted} ALLOW_CONNECTIONS true", f"DROP DATABASE {quoted}", f"DROP ROLE {quoted}"
        )
    assert met == [
        errors.RoleMissingError,
        errors.TooManyConnectionsError,
        errors.AccessRefusedError,
        errors.AccessRefusedError,
        errors.PrivilegeError,
        errors.RowSecurityError,
        errors.LargeObjectPrivilegeError,
    ]


def _error(dumper: Dumper) -> BackupError | None:
    try:
        dumper.dump(log=quiet)
    except BackupError as error:
        return error
    return None


HOSTILE = [
    "plain",
    "O'Hara",
    "'; rm -rf ~; '",
    'quo"te',
    "two  spaces",
    "line\nfeed",
    "$(id)",
    "`id`",
    "back\\n",
    "ü é",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_quoted_for_bash_and_sql(name: str, scene: Scene) -> None:
    line = shell_word(name)
    assert "\n" not in line
    assert " ".join(line.split()) == line
    shell = subprocess.run(
        ["bash", "-c", f"printf %s {line}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert shell.stdout.decode() == name
    with session(scene.gate.connection()) as server:
        assert server.execute(f"SELECT 1 AS {sql_identifier(name)}".encode()).description[0].name == name  # type: ignore[index]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_that_sets_a_password_reaches_the_role(name: str, scene: Scene) -> None:
    """The command runs in bash; psql prompts twice for the password, and the test answers."""
    role = '"' + name.replace('"', '""') + '"'
    boss = scene.gate.connection()
    execute(boss, f"CREATE ROLE {role}")
    word = diagnosis._names(replace(boss, user=name))["set_password"]
    try:
        answered = subprocess.run(
            ["setsid", "bash", "-c", f'"$PSQL" -X -c {word}'],
            env={
                **boss.environment(),
                "PSQL": str(scene.full_bin / "psql"),
                "LC_ALL": "C.UTF-8",
                "PATH": os.environ["PATH"],
            },
            input=f"{PASSWORD}\n{PASSWORD}\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert answered.returncode == 0, answered.stderr
        with session(boss) as server:
            query = "SELECT rolpassword IS NOT NULL FROM pg_authid WHERE rolname = %s"
            assert server.execute(query, (name,)).fetchone() == (True,)
    finally:
        execute(boss, f"DROP ROLE {role}")

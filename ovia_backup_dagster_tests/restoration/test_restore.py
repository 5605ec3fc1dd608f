"""Restores on the command line, with a real server: swaps, undos, the other modes, and refusals.

After each test, the live database is intact: it is the old one or the backup's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import RestoreError
from ovia_backup_dagster.core.human_text import human_bytes
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST
from ovia_backup_dagster.drill.placement import needed_bytes
from ovia_backup_dagster.proof.check_results import NO_CODE, Result
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import JournalMark
from ovia_backup_dagster.restoration.request import Wishes
from ovia_backup_dagster.restoration.restore_order import Mode, Step
from ovia_backup_dagster_tests.conftest import PortCluster, admin, execute, running_cluster
from ovia_backup_dagster_tests.faults.harness import a_day_passes
from ovia_backup_dagster_tests.support.drilling import one
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.restoring import SCHEMA, Site, each_step, killed_at, serving, untouched


def value(site: Site, query: str, database: str = "") -> object:
    connection = site.live.to(database or site.live.database)
    with closing(
        psycopg.connect(host=connection.host, port=connection.port, user=connection.user, dbname=connection.database)
    ) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


# ----------------------------------------------------------------------------------------------- swap and undo


def test_a_swap_restores_the_backup_and_undo_restores_today(site: Site) -> None:
    ended = site.restore()
    assert ended.code == 0, ended.output
    assert site.content() == site.then
    record = site.records[0]
    assert record.outcome == "done"
    assert record.order.mode is Mode.SWAP
    assert site.databases == sorted([site.live.database, record.kept])
    assert site.content(record.kept) == site.now
    assert record.proven is not None
    results = {line.check: line.result for line in record.proven.lines}
    assert results.keys() == set(Check.at(Stage.DRILL))
    assert NO_CODE not in {line.text for line in record.proven.lines}
    assert Result.FAILED not in results.values()
    assert results[Check.TABLES] is Result.PASSED
    assert record.proven.rows == value(site, "SELECT 500 + 500 + 166")
    # The database was analyzed before it went live.
    assert value(site, "SELECT count(*) FROM pg_stats WHERE tablename = 'people'") != 0
    # Undo, undo that, and undo again.
    for wanted, other in ((site.now, site.then), (site.then, site.now), (site.now, site.then)):
        ended = site.undo()
        assert ended.code == 0, ended.output
        assert site.content() == wanted
        assert len(site.databases) == 2
        assert site.content(site.records[0].kept) == other


def test_rows_written_since_the_swap_are_counted_and_kept(site: Site) -> None:
    assert site.restore().code == 0
    execute(site.live, "INSERT INTO people (id, name) VALUES (2000, 'after the swap')")
    planned = site.place.run("undo-restore", "--plan")
    assert planned.code == 0, planned.output
    assert "people" in planned.output
    assert "1 inserted" in planned.output
    assert site.undo().code == 0
    assert site.content() == site.now
    kept = site.records[0].kept
    assert value(site, "SELECT count(*) FROM people WHERE id = 2000", kept) == 1


def test_a_swap_keeps_the_live_databases_properties(site: Site) -> None:
    """Owner, privileges, settings, limit and comment are the live database's, not the backup's."""
    name, role = sql.Identifier(site.live.database), sql.Identifier(f"role_{site.live.database}")
    look = """
        SELECT pg_get_userbyid(datdba), datacl::text, datconnlimit, shobj_description(oid, 'pg_database'),
               (SELECT array_agg((setrole::regrole::text, setconfig) ORDER BY 1)::text
                FROM pg_db_role_setting WHERE setdatabase = d.oid)
        FROM pg_database d WHERE datname = %s
    """
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        try:
            for statement in (
                "ALTER DATABASE {0} OWNER TO {1}",
                "REVOKE CONNECT ON DATABASE {0} FROM public",
                "GRANT CONNECT ON DATABASE {0} TO {1}",
                "ALTER DATABASE {0} CONNECTION LIMIT 40",
                "COMMENT ON DATABASE {0} IS 'ours; don''t'",
                "ALTER DATABASE {0} SET timezone = 'Asia/Kolkata'",
                "ALTER ROLE {1} IN DATABASE {0} SET work_mem = '7MB'",
            ):
                session.execute(sql.SQL(statement).format(name, role))
            before = session.execute(look, [site.live.database]).fetchone()
            ended = site.restore()
            assert ended.code == 0, ended.output
            assert session.execute(look, [site.live.database]).fetchone() == before
        finally:
            for database in site.databases:
                session.execute(sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(database)))
                session.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM {}").format(sql.Identifier(database), role))
            for database in site.databases:
                session.execute(
                    sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(role, sql.Identifier(database))
                )
            session.execute(sql.SQL("DROP ROLE {}").format(role))


class PortClusterOf(PortCluster):
    """The server of a site, for ``admin``."""

    def __init__(self, site: Site) -> None:
        self.__dict__.update(_SERVERS[site.live.port].__dict__)


_SERVERS: dict[int, PortCluster] = {}


@pytest.fixture(autouse=True)
def _known(server: PortCluster) -> None:
    _SERVERS[server.connection().port] = server


@pytest.mark.exhaustive
def test_a_kept_database_is_forgotten_only_by_name(site: Site) -> None:
    assert site.restore().code == 0
    kept = site.records[0].kept
    listed = json.loads(site.place.run("undo-restore", "--list", "--json").output)
    assert [each["name"] for each in listed] == [kept]
    for wrong in (
        ("--yes-destroy", site.live.database),
        ("--kept", site.live.database, "--yes-destroy", site.live.database),
        ("--kept", kept, "--yes-destroy", site.live.database),
        ("--kept", kept),
        (),
    ):
        line = site.place.run("undo-restore", "--forget", *wrong).refused()
        assert kept in line, wrong
        assert len(site.databases) == 2
    ended = site.place.run("undo-restore", "--forget", "--yes-destroy", kept)
    assert ended.code == 0, ended.output
    assert site.databases == [site.live.database]
    assert "no database to go back to" in site.undo().refused()
    assert "no database" in site.place.run("undo-restore", "--forget").refused()


def at_a_terminal(site: Site, typed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``ovia-backup`` at a terminal where the operator types ``typed``."""
    ours, theirs = os.openpty()
    try:
        os.write(ours, f"{typed}\n".encode())
        return subprocess.run(
            (Path(sys.executable).with_name("ovia-backup"), *arguments),
            env=site.place.environment,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.exhaustive
def test_a_terminal_confirms_the_drop_of_a_kept_database(site: Site) -> None:
    assert site.restore().code == 0
    kept = site.records[0].kept
    for typed, code, left in (("no", 1, 2), (kept, 0, 1)):
        ended = at_a_terminal(site, typed, "undo-restore", "--forget")
        assert f"type the name of the database ({kept})" in ended.stderr
        assert ended.returncode == code, ended.stderr
        assert len(site.databases) == left


@pytest.mark.exhaustive
def test_an_undo_can_choose_any_kept_database(site: Site) -> None:
    assert site.restore().code == 0
    oldest = site.records[0].kept
    execute(site.live, "INSERT INTO people (id, name) VALUES (2000, 'after the first')")
    assert site.restore().code == 0
    newest = site.records[0].kept
    execute(site.live, "INSERT INTO people (id, name) VALUES (3000, 'after the second'), (3001, 'and another')")
    listed = site.place.run("undo-restore", "--list").output.splitlines()
    at = [f"{record.swapped_at:%Y-%m-%d %H:%M:%S}" for record in site.records]
    assert [line.split()[0] for line in listed] == [newest, oldest]
    assert all(f"live until {when} UTC" in line for line, when in zip(listed, at, strict=True))
    # Without --kept the newest is meant. Rows written since the swap are known only for the newest.
    planned = site.place.run("undo-restore", "--plan").output
    assert f"{newest} becomes {site.live.database}" in planned
    assert "people 2 inserted" in planned
    planned = site.place.run("undo-restore", "--plan", "--kept", oldest).output
    assert f"{oldest} becomes {site.live.database}" in planned
    assert f"live until {at[1]} UTC" in planned
    assert "since the swap is not known" in planned
    line = site.undo("--kept", "nobody").refused()
    assert newest in line
    assert oldest in line
    assert newest in site.place.run("undo-restore", "--forget").refused()
    ended = site.undo("--kept", oldest)
    assert ended.code == 0, ended.output
    assert site.content() == site.now
    assert oldest not in site.databases
    assert value(site, "SELECT count(*) FROM people WHERE id = 3000", site.records[0].kept) == 1


@pytest.mark.exhaustive
def test_the_final_message_names_a_way_back_that_works(site: Site) -> None:
    assert site.restore().code == 0
    assert site.restore().code == 0
    newest, oldest = (record.kept for record in site.records)
    told: dict[str, str] = {}

    def tell(title: str, text: str) -> bool:
        told[title] = text
        return True

    now = datetime.now(UTC)
    site.place.system.restorations.kept_databases.expire(timedelta(days=1), tell, now, lambda _: None)
    assert "go back to it: ovia-backup undo-restore." in told[f"database {newest} will be dropped"]
    assert f"undo-restore --kept {oldest}." in told[f"database {oldest} will be dropped"]
    then = now + timedelta(days=2)
    site.place.system.restorations.kept_databases.expire(timedelta(days=1), tell, then, lambda _: None)
    assert site.databases == [site.live.database]


def test_retention_of_a_replaced_database_starts_at_the_swap(site: Site) -> None:
    """A restore that takes a day: the date in the kept database's name is that of the day before the swap."""
    now, day = datetime.now(UTC), timedelta(days=1)
    restorations = site.place.system.restorations
    planned = restorations.planner.plan(Wishes(), "test", None, now - day)
    assert restorations.run(planned, site.live.database, lambda _: None).error == ""
    told: list[str] = []

    def tell(title: str, _: str) -> bool:
        told.append(title)
        return True

    restorations.kept_databases.expire(3 * day, tell, now, lambda _: None)
    assert told == []
    restorations.kept_databases.expire(3 * day, tell, now + day + timedelta(hours=1), lambda _: None)
    assert told == [f"database {planned.order.kept} will be dropped"]


@pytest.mark.exhaustive
def test_counters_of_another_database_are_not_used(site: Site) -> None:
    """Another database has the same name since then; its counters start at zero, too."""
    assert site.restore().code == 0
    name = sql.Identifier(site.live.database)
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
    planned = site.place.run("undo-restore", "--plan").output
    assert "since the swap is not known" in planned
    assert "nothing was written" not in planned


def test_when_a_database_was_replaced_is_not_guessed(site: Site) -> None:
    kept = f"{site.live.database}_before_20260102030405"
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(kept)))
    for said in (site.place.run("undo-restore", "--list").output, site.place.run("undo-restore", "--plan").output):
        assert "live until" not in said
        assert "named at 2026-01-02 03:04:05 UTC" in said


# ----------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize("resumed", thinned([False, True]))
def test_the_secrets_of_health_url_are_used_and_shown_nowhere(site: Site, resumed: bool) -> None:
    with serving() as application:
        secret, token = "s3cret-password", "s3cret-token"
        url = f"http://someone:{secret}@127.0.0.1:{application.port}/health?token={token}"
        here = site.with_settings(HEALTH_URL=url)
        bare = application.url()
        said = [here.restore(*options, confirm=False).output for options in (("--plan",), ("--plan", "--json"))]
        if resumed:
            # A resume asks the HEALTH_URL of its own settings.
            before = site.with_settings(HEALTH_URL=f"http://someone:an-old-{secret}@127.0.0.1:9/health")
            with killed_at(4, before=False):
                ended = before.restore()
            assert ended.killed
            said.append(ended.output)
            ended = here.place.run("restore", "--resume")
        else:
            ended = here.restore()
        assert ended.code == 0, ended.output
        basic = base64.b64encode(f"someone:{secret}".encode()).decode()
        assert set(application.asked) == {(f"/health?token={token}", f"Basic {basic}")}
        said += [ended.output, *(here.place.run("restore", "--history", *more).output for more in ((), ("--json",)))]
        assert here.undo().code == 0
        files = [path for path in site.place.root.glob("restores/*") if path.is_file()]
        assert {path.suffix for path in files} >= {".journal", ".json", ".md"}
        texts = said + [path.read_text("utf-8") for path in files]
        assert any(bare in text for text in texts)
        for text in texts:
            for hidden in (secret, token, "someone"):
                assert hidden not in text


@pytest.mark.exhaustive
def test_a_resume_without_health_url_skips_the_check(site: Site) -> None:
    with killed_at(4, before=False):
        assert site.with_settings(HEALTH_URL="http://127.0.0.1:9/health").restore().killed
    ended = site.place.run("restore", "--resume")
    assert ended.code == 0, ended.output
    assert "HEALTH_URL is no longer set" in ended.output


# ----------------------------------------------------------------------------------------------- the other modes


def test_into_a_new_database_touches_nothing_else(site: Site) -> None:
    made = f"{site.live.database}_look"
    ended = site.restore("--mode", "new", "--into", made, confirm=False)
    assert ended.code == 0, ended.output
    assert site.content() == site.now
    assert site.content(made) == site.then
    assert "already" in site.restore("--mode", "new", "--into", made, confirm=False).refused()


def test_drop_proves_the_backup_first_and_then_replaces(site: Site) -> None:
    ended = site.restore("--mode", "drop")
    assert ended.code == 0, ended.output
    assert site.databases == [site.live.database]
    assert site.content() == site.then
    assert any(site.place.root.glob("drills/*.json"))


# ----------------------------------------------------------------------------------------------- plan and confirmation


def test_the_plan_says_what_will_be_lost_and_stops_there(site: Site) -> None:
    ended = site.restore("--plan", confirm=False)
    assert ended.code == 0, ended.output
    for words in ("verified", "people.seen", "swap names", "undo-restore", "free on the server"):
        assert words in ended.output, words
    untouched(site)
    assert not list(site.place.root.glob("restores/*"))
    planned = json.loads(site.restore("--plan", "--json", confirm=False).output)
    assert planned["destroys"] == site.live.database
    assert planned["order"]["mode"] == "swap"


@pytest.mark.exhaustive
def test_the_plan_lists_all_that_an_operator_must_know(site: Site) -> None:
    """Age and size of the backup, expected duration, sessions, space and the way back."""
    drilled = site.place.run("drill", site.backup.path.name)
    assert drilled.code == 0, drilled.output
    today = next(site.place.system.drills.newest_first()).started_at
    a_day_passes(site.place)
    site.backup = site.place.catalog.backups()[0]
    live = {"host": site.live.host, "port": site.live.port, "user": site.live.user, "dbname": site.live.database}
    with psycopg.connect(**live, application_name="the night shift"):  # type: ignore[arg-type]
        facts = json.loads(site.restore("--plan", "--json", confirm=False).output)["facts"]
        said = site.restore("--plan", confirm=False).output
    assert re.fullmatch(
        rf"{site.backup} of {site.backup.started_at:%Y-%m-%d %H:%M:%S} UTC, 1 d old "
        r"\(proven, restored by a drill, 1,166 rows, \d+(\.\d)? kB\)",
        facts["restore"],
    ), facts
    assert re.fullmatch(
        rf"database {site.live.database} at {site.live.host}:{site.live.port} \(\d+(\.\d)? MB\)", facts["onto"]
    )
    assert facts["lost"].startswith("what was written since the backup, 1 d ago; newest: public.people.seen 20")
    assert facts["sessions"] == f"1 will be cut: 1 x {site.live.user} (the night shift, idle)"
    assert re.fullmatch(rf"about \d+ (s|min), as the drill of {today:%Y-%m-%d} suggests", facts["time"])
    manifest = site.backup.manifest
    assert manifest is not None
    assert manifest.database.size_bytes is not None
    needed = human_bytes(needed_bytes(manifest.database.size_bytes))
    assert re.fullmatch(rf"about {needed} needed, \d+(\.\d)? [MGT]B free on the server", facts["space"])
    assert facts["undo"].endswith("ovia-backup undo-restore")
    # Between the two plans, the time in the kept database's name and the free space may have changed.
    for title in facts.keys() - {"space", "undo"}:
        assert re.search(rf"^{title} +{re.escape(facts[title])}$", said, re.MULTILINE), title
    for title in ("space", "undo"):
        assert re.search(rf"^{title} +{re.escape(facts[title][:20])}", said, re.MULTILINE), title
    untouched(site)


def test_the_plan_of_a_drop_says_there_is_no_way_back(site: Site) -> None:
    planned = site.restore("--mode", "drop", "--plan", confirm=False)
    assert planned.code == 0, planned.output
    name = site.live.database
    for words in (
        "undo      NONE: the old database is dropped before the backup is restored",
        "1. prove in a throwaway cluster that the backup restores",
        f"2. DROP DATABASE {name}: its data is gone then",
        f"3. restore into {name}_restore_",
        f" to {name}\n",
        f"Mind: database {name} is destroyed; mode swap would keep it",
    ):
        assert words in planned.output, words
    assert "undo-restore" not in planned.output
    assert json.loads(site.restore("--mode", "drop", "--plan", "--json", confirm=False).output)["destroys"] == name
    assert not list(site.place.root.glob("restores/*"))
    assert not list(site.place.root.glob("drills/*.json"))
    untouched(site)


@pytest.mark.exhaustive
def test_a_restore_uses_as_many_jobs_as_cores(site: Site) -> None:
    def jobs(*options: str, **settings: str) -> int:
        planned = site.with_settings(**settings).restore("--plan", "--json", *options, confirm=False)
        return int(json.loads(planned.output)["order"]["jobs"])

    cores = os.sched_getaffinity(0)
    assert jobs() == len(cores)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert jobs() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert jobs(RESTORE_JOBS="5") == 5
    assert jobs("--jobs", "3", RESTORE_JOBS="5") == 3


@pytest.mark.exhaustive
def test_a_terminal_asks_for_the_name_and_goes_on(site: Site) -> None:
    for typed in ("postgres", "y"):
        ended = at_a_terminal(site, typed, "restore", site.backup.path.name)
        assert f"To go on, type the name of the database ({site.live.database})" in ended.stderr
        assert "swap names" in ended.stdout  # the plan was printed before the question
        assert ended.returncode == 1
        assert f"the name that was given to confirm is not {site.live.database}" in ended.stderr
        assert not list(site.place.root.glob("restores/*.journal"))
        untouched(site)
    ended = at_a_terminal(site, site.live.database, "restore", site.backup.path.name)
    assert ended.returncode == 0, ended.stderr
    assert site.content() == site.then


@pytest.mark.parametrize("typed", ["", "postgres", "OVIA"])
def test_a_wrong_confirmation_changes_nothing(site: Site, typed: str) -> None:
    ended = site.place.run("restore", site.backup.path.name, *(("--yes-destroy", typed) if typed else ()))
    assert f"--yes-destroy {site.live.database}" in ended.refused()
    untouched(site)


def test_a_restore_without_a_backup_name_is_refused(site: Site) -> None:
    """The newest backup may contain the damage that is to be undone."""
    ended = site.place.run("restore", "--yes-destroy", site.live.database)
    assert (ended.code, "which backup? Name one of: ovia-backup list" in ended.output) == (2, True), ended.output
    untouched(site)


# ----------------------------------------------------------------------------------------------- refused


@pytest.mark.exhaustive
def test_restore_history_refuses_other_options(site: Site) -> None:
    """An option that means nothing there is an error. It is not ignored."""
    with killed_at(3, before=False):
        assert site.restore().killed
    for instead in ("--resume", "--abort", "--history"):
        for other in (
            ("--plan",),
            ("--yes-destroy", "x"),
            ("--mode", "swap"),
            ("--jobs", "1"),
            (site.backup.path.name,),
        ):
            if (instead, other[0]) == ("--abort", "--yes-destroy"):
                continue  # valid: gives up a restore that cannot be put back
            ended = site.place.run("restore", instead, *other)
            assert ended.code == 2, ended.output
            assert f"cannot be combined with {instead}" in ended.output
    assert site.place.run("restore", "--resume", "--abort").code == 2
    unfinished = RestoreFolder(site.place.catalog).unfinished()
    assert unfinished is not None
    assert unfinished.entries[-1].mark is JournalMark.BEGUN
    assert site.place.run("restore", "--abort", "--json").code == 0
    assert site.restore().code == 0
    kept = site.records[0].kept
    for options in (
        ("--forget", "--plan", "--yes-destroy", kept),
        ("--forget", "--json", "--yes-destroy", kept),
        ("--list", "--plan"),
        ("--list", "--kept", kept),
        ("--list", "--forget"),
    ):
        assert site.place.run("undo-restore", *options).code == 2, options
    assert kept in site.databases


def test_without_any_restore_there_is_nothing_to_resume(site: Site) -> None:
    for verb in ("resume", "abort"):
        assert f"there is nothing to {verb}" in site.place.run("restore", f"--{verb}").refused()


def test_a_second_restore_names_the_next_command(site: Site) -> None:
    folder = RestoreFolder(site.place.catalog)
    folder.prepare()
    with folder.lock("another", datetime.now(UTC)):
        line = site.restore().refused()
    assert "ovia-backup status" in line
    assert "BACKUP_LOCK_WAIT_MINUTES" not in line
    untouched(site)


@pytest.mark.exhaustive
def test_an_error_without_a_fix_prints_no_empty_advice(site: Site) -> None:
    def break_down() -> None:
        raise RestoreError("it broke")

    with each_step(Step.HEALTH, break_down):
        ended = site.with_settings(HEALTH_URL="http://127.0.0.1:9/").restore()
    assert ended.code == 1
    assert "Next: go back: ovia-backup undo-restore\n" in ended.output
    with each_step(Step.RESTORE, break_down):
        line = site.restore("--mode", "drop").refused()
    assert "Next: ovia-backup restore --resume" in line


def test_options_that_contradict_each_other_are_refused(site: Site) -> None:
    for options in (
        ("--even-if-damaged",),
        ("--into", "x"),
        ("--mode", "new", "--auto-undo"),
        ("--scale", "unknown_service=1"),
    ):
        site.restore(*options).refused()
    untouched(site)


@pytest.mark.parametrize("damage", thinned(["truncated", "altered", "empty", "plain", "folder"], daily=2))
def test_a_file_that_is_no_whole_archive_is_refused(site: Site, damage: str) -> None:
    path = site.backup.path
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "altered": content[: len(content) // 2]
                + bytes([content[len(content) // 2] ^ 1])
                + content[len(content) // 2 + 1 :],
                "empty": b"",
                "plain": b"CREATE TABLE people ();\n" * 1000,
            }[damage]
        )
    ended = site.restore()
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    if damage == "altered":
        manifest = site.backup.manifest
        assert manifest is not None
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (
            f"was altered: its SHA-256 is {found[:16]}…, it was {manifest.sha256[:16]}… when it was written"
            in ended.output
        )
    untouched(site)


@pytest.mark.parametrize(
    ("damage", "said"),
    thinned(
        [
            ("truncated", "is damaged: the file is truncated"),
            ("empty", "is damaged: the file is empty"),
            ("plain", "is damaged: the file is not an archive"),
            ("newer", "it was written by a newer pg_dump than this pg_restore can read"),
            ("folder", "is a folder, not a backup"),
        ]
    ),
)
def test_a_broken_archive_from_elsewhere_is_refused(site: Site, tmp_path: Path, damage: str, said: str) -> None:
    """The file has no manifest, so its hash is unknown."""
    path, content = tmp_path / "elsewhere.dump", site.backup.path.read_bytes()
    if damage == "folder":
        path.mkdir()
        (path / "toc.dat").write_bytes(content)
    else:
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "empty": b"",
                "plain": b"CREATE TABLE people ();\n" * 1000,
                # The version follows the magic bytes.
                "newer": content[:6] + bytes([99]) + content[7:],
            }[damage]
        )
    ended = site.place.run("restore", str(path), "--yes-destroy", site.live.database)
    assert ended.code == 1
    assert said in ended.output
    assert "Traceback" not in ended.output
    untouched(site)


def test_a_file_from_elsewhere_is_restored_at_once(site: Site, tmp_path: Path) -> None:
    """A restore does not wait to see whether the file is still being written, and calls its time unknown."""
    path = tmp_path / "found on a laptop.dump"
    path.write_bytes(site.backup.path.read_bytes())
    ended = site.place.run("restore", str(path), "--yes-destroy", site.live.database)
    assert ended.code == 0, ended.output
    assert "found on a laptop.dump of an unknown time; the file is of 20" in ended.output
    assert "(unverified, " in ended.output
    assert "since the backup, whenever that was made; newest: " in ended.output
    assert site.content() == site.then
    assert site.undo().code == 0
    assert site.content() == site.now


def test_a_damaged_archive_is_restored_into_its_own_database(site: Site) -> None:
    content = bytearray(site.backup.path.read_bytes())
    site.backup.path.write_bytes(content[: int(len(content) * 0.6)])
    site.place.run("verify", site.backup.path.name)
    made = f"{site.live.database}_salvaged"
    ended = site.restore("--mode", "new", "--into", made, "--even-if-damaged", confirm=False)
    assert ended.code == 0, ended.output
    assert "lost:" in ended.output
    assert site.content() == site.now
    assert made in site.databases


def test_a_restore_onto_another_server_needs_new_host(site: Site) -> None:
    """The manifest has another system identifier than the server."""
    manifest = site.backup.sidecar(MANIFEST)
    text = manifest.read_text("utf-8")
    system = json.loads(text)["database"]["system_identifier"]
    manifest.chmod(0o600)
    manifest.write_text(text.replace(system, "7000000000000000001"), "utf-8")
    line = site.restore().refused()
    assert "7000000000000000001" in line
    assert "--new-host" in line
    manifest.write_text(text, "utf-8")
    untouched(site)


def test_a_missing_database_is_made_only_when_asked(site: Site) -> None:
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(site.live.database)))
    assert "--new-host" in site.restore().refused()
    ended = site.restore("--new-host", confirm=False)
    assert ended.code == 0, ended.output
    assert site.content() == site.then


PROPERTIES = """
    SELECT concat_ws(' | ', datdba::regrole, datacl, datconnlimit, datistemplate, shobj_description(oid, 'pg_database'),
                     (SELECT string_agg(concat(setrole::regrole, setconfig), ' ' ORDER BY setrole::regrole::text)
                      FROM pg_db_role_setting WHERE setdatabase = d.oid))
    FROM pg_database d WHERE datname = '{}'
"""


def test_a_new_server_gets_the_roles_owner_and_settings(site: Site, bin_dir: Path) -> None:
    """Scenario 2: an empty server with another system identifier."""
    owner, reader = f"owner_{site.live.database}", f"reader_{site.live.database}"
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(sql.Identifier(owner)))
        session.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(reader)))
    try:
        execute(
            site.live,
            f"ALTER TABLE people OWNER TO {owner}",
            f"ALTER DATABASE {site.live.database} OWNER TO {owner}",
            f"ALTER DATABASE {site.live.database} SET timezone = 'Asia/Kolkata'",
            f"ALTER ROLE {owner} IN DATABASE {site.live.database} SET work_mem = '5MB'",
            f"REVOKE CONNECT, TEMPORARY ON DATABASE {site.live.database} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {site.live.database} TO {reader} WITH GRANT OPTION",
            # Granted by a role that is not the owner.
            f"SET ROLE {reader}; GRANT CONNECT ON DATABASE {site.live.database} TO pg_monitor; RESET ROLE",
            f"COMMENT ON DATABASE {site.live.database} IS E'it''s;\nproduction'",
            f"ALTER DATABASE {site.live.database} CONNECTION LIMIT 17",
            f"ALTER DATABASE {site.live.database} IS_TEMPLATE true",
        )
        was = one(site.live.to("postgres"), PROPERTIES.format(site.live.database))
        assert "=c/" in str(was), "the test shows nothing"
        backup = site.place.chain()
        then = site.content()
        with running_cluster(bin_dir) as other:
            there = other.connection(site.live.database)
            elsewhere = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port))
            elsewhere.live = there
            assert "--new-host" in elsewhere.place.run("restore", backup.path.name).refused()
            ended = elsewhere.place.run("restore", backup.path.name, "--new-host")
            assert ended.code == 0, ended.output
            assert elsewhere.content() == then
            assert owner in ended.output  # the role needs a password
            assert "not possible here" not in ended.output
            assert one(there.to("postgres"), PROPERTIES.format(there.database)) == was
            assert value(elsewhere, "SHOW timezone") == "Asia/Kolkata"
            assert (
                value(elsewhere, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
                == owner
            )
            # Into a new database beside the live one: it gets the source's owner and settings, and only the new name.
            taken = elsewhere.place.run("restore", backup.path.name, "--new-host", "--mode", "new", "--into", owner)
            assert taken.code == 0, taken.output
            again = elsewhere.place.run("restore", backup.path.name, "--new-host", "--mode", "new", "--into", owner)
            assert "choose another name: --into" in again.refused()
            assert elsewhere.content(owner) == elsewhere.content() == then
            assert value(elsewhere, "SHOW timezone", owner) == "Asia/Kolkata"
            assert one(there.to("postgres"), PROPERTIES.format(owner)) == was
            # Again, onto the database and the roles that exist now.
            for mode in ("swap", "drop"):
                # A template is neither swapped nor dropped.
                no_template = f"ALTER DATABASE {there.database} IS_TEMPLATE false"
                execute(there, no_template, f"COMMENT ON DATABASE {there.database} IS NULL")
                options = ("--yes-destroy", there.database, "--new-host", "--mode", mode)
                ended = elsewhere.place.run("restore", backup.path.name, *options)
                assert ended.code == 0, ended.output
                assert elsewhere.content() == then
                then_is = was if mode == "drop" else str(was).replace(" | t | ", " | f | ")
                assert one(there.to("postgres"), PROPERTIES.format(there.database)) == then_is
                assert ("the source is a template, and this database is none" in ended.output) is (mode == "swap")
    finally:
        with admin(PortClusterOf(site)) as session:
            session.execute(
                sql.SQL("ALTER DATABASE {} OWNER TO CURRENT_USER").format(sql.Identifier(site.live.database))
            )
        execute(
            site.live,
            f"ALTER DATABASE {site.live.database} IS_TEMPLATE false",
            f"DROP OWNED BY {owner}, {reader} CASCADE",
            f"DROP ROLE {owner}, {reader}",
        )


@pytest.mark.exhaustive
def test_a_new_server_gets_the_encoding_and_locale(site: Site, bin_dir: Path) -> None:
    """The new server has other defaults."""
    name = sql.Identifier(site.live.database)
    with admin(PortClusterOf(site)) as session:
        session.execute(sql.SQL("DROP DATABASE {}").format(name))
        session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").format(name))
    execute(
        site.live,
        SCHEMA,
        "INSERT INTO people (id, name) VALUES (1000, 'Zoë Müßig, 5 µ £'), (1001, 'zoë'), (1002, 'Ångström')",
        """CREATE TABLE "Größe" ("Länge" text PRIMARY KEY); COMMENT ON TABLE "Größe" IS 'größer'""",
        """INSERT INTO "Größe" VALUES ('ÿ'), ('é')""",
    )
    look = """
        SELECT (pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, daticulocale)::text
        FROM pg_database WHERE datname = current_database()
    """
    rows = "SELECT array_agg(name ORDER BY name) FROM people WHERE id >= 1000"
    was = value(site, look)
    assert was == "(LATIN1,C,C,c,)"
    backup, then = site.place.chain(), site.content()
    new = running_cluster(bin_dir)
    new.cluster = replace(new.cluster, locale="C.UTF-8")
    with new as other:
        there = other.connection(site.live.database)
        elsewhere = site.with_settings(POSTGRES_HOST=there.host, POSTGRES_PORT=str(there.port))
        elsewhere.live = there
        assert value(elsewhere, look, "postgres") == "(UTF8,C.UTF-8,C.UTF-8,c,)"
        ended = elsewhere.place.run("restore", backup.path.name, "--new-host")
        assert ended.code == 0, ended.output
        assert value(elsewhere, look) == was
        assert value(elsewhere, rows) == ["Zoë Müßig, 5 µ £", "zoë", "Ångström"]
        assert elsewhere.content() == then


def test_a_missing_role_is_named_and_created_when_asked(site: Site) -> None:
    role = f"lost_{site.live.database}"
    execute(site.live, f"CREATE ROLE {role} NOLOGIN", f"GRANT SELECT ON people TO {role}")
    backup = site.place.chain()
    then = site.content()
    assert role in backup.sidecar(GLOBALS).read_text("utf-8")
    execute(site.live, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    now = site.content()
    arguments = ("restore", backup.path.name, "--yes-destroy", site.live.database)
    line = site.place.run(*arguments).refused()
    assert role in line
    assert "--create-roles" in line
    assert site.content() == now
    try:
        ended = site.place.run(*arguments, "--create-roles")
        assert ended.code == 0, ended.output
        assert site.content() == then
    finally:
        execute(site.live, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.exhaustive
def test_a_created_role_has_no_power_unless_named(site: Site) -> None:
    role = f"lost_{site.live.database}"
    quoted = f'"{role}"'

    def lose() -> None:
        execute(site.live, f"DROP OWNED BY {role}", f"DROP ROLE IF EXISTS {role}")

    execute(
        site.live,
        f"CREATE ROLE {role} LOGIN SUPERUSER BYPASSRLS PASSWORD 'x'",
        f"GRANT pg_write_server_files TO {role}",
        f"GRANT SELECT ON people TO {role}",
    )
    backup = site.place.chain()
    lose()
    try:
        arguments = ("restore", backup.path.name, "--yes-destroy", site.live.database)
        power = f'ALTER ROLE {quoted} SUPERUSER BYPASSRLS; GRANT "pg_write_server_files" TO {quoted}'
        planned = site.place.run(*arguments, "--create-roles", "--plan")
        assert f"{power}); with it: --create-privileged-role {role}" in planned.output
        ended = site.place.run(*arguments, "--create-roles")
        assert ended.code == 0, ended.output
        assert f"to give it: {power}" in "\n".join(site.records[0].notes)
        look = (
            "SELECT (rolsuper, rolbypassrls, rolcanlogin, rolpassword IS NULL, "
            "(SELECT count(*) FROM pg_auth_members WHERE member = a.oid))::text "
            f"FROM pg_authid a WHERE rolname = '{role}'"
        )
        assert value(site, look) == "(f,f,t,t,0)"
        for name in site.databases:
            execute(site.live.to(name), f"DROP OWNED BY {role}")
        lose()
        assert f"no role nobody_{role} was saved" in (
            site.place.run(*arguments, "--create-privileged-role", f"nobody_{role}").refused()
        )
        ended = site.place.run(*arguments, "--create-privileged-role", role)
        assert ended.code == 0, ended.output
        assert value(site, look) == "(t,t,t,t,1)"
    finally:
        for name in site.databases:
            execute(site.live.to(name), f"DROP OWNED BY {role}")
        lose()


# ----------------------------------------------------------------------------------------------- the record


@pytest.mark.exhaustive
def test_the_history_tells_done_from_put_back(site: Site) -> None:
    assert site.place.run("restore", "--history").output == "no restore yet\n"
    assert json.loads(site.place.run("restore", "--history", "--json").output) == []
    assert site.restore("--jobs", "2").code == 0
    kept = site.records[0].kept
    with killed_at(3, before=False):
        assert site.restore().killed
    # An unfinished restore has no outcome yet.
    assert len(json.loads(site.place.run("restore", "--history", "--json").output)) == 1
    assert site.place.run("restore", "--abort").code == 0

    def fail() -> None:
        raise RestoreError("it broke", why="a test breaks it", fix="repair it")

    with each_step(Step.SWAP, fail):
        assert site.restore().code == 1

    told = json.loads(site.place.run("restore", "--history", "--json").output)
    assert [each["outcome"] for each in told] == ["put back", "put back", "done"]
    failed, aborted, done = told
    for each in told:
        assert each["order"]["backup"] == site.backup.path.name
        assert each["order"]["database"] == site.live.database
        assert each["order"]["mode"] == "swap"
        assert " on " in each["order"]["launched_by"]
        assert each["order"]["started_at"] <= each["finished_at"]
        # All of them had proven their copy before they ended.
        assert {t["name"].strip('"'): t["rows"] for t in each["proven"]["tables"]}["public.people"] == 500
        assert each["seconds"]["restore"] > 0
    assert (done["kept"], done["error"], done["order"]["jobs"]) == (kept, "", 2)
    assert done["interruption_seconds"] > 0
    assert datetime.fromisoformat(done["swapped_at"]) <= datetime.fromisoformat(done["finished_at"])
    for each in (failed, aborted):
        assert (each["kept"], each["swapped_at"], each["interruption_seconds"]) == ("", None, None)
    assert (failed["error"], failed["fix"], aborted["error"]) == ("it broke: a test breaks it", "repair it", "")

    head, *lines = site.place.run("restore", "--history").output.splitlines()
    assert head.split("  ")[0] == "begun (UTC)"
    assert len(lines) == 3
    for line, each in zip(lines, told, strict=True):
        begun = datetime.fromisoformat(each["order"]["started_at"])
        launched_by = each["order"]["launched_by"]
        cells = re.split(r"  +", line.strip())
        assert cells == [
            *(f"{begun:%Y-%m-%d %H:%M}", "swap", site.backup.path.name, each["outcome"], "1,166"),
            *filter(None, (each["kept"], launched_by, each["error"])),
        ]

"""The daily backup in Dagster, on a real database: what each asset shows, refuses and leaves unchanged."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.check_registry import Check
from ovia_backup_dagster.core.publication import remove_backup
from ovia_backup_dagster.core.sidecars import HELD, VERIFIED
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.postgres.programs import Connection, Programs
from ovia_backup_dagster_tests.conftest import (
    DROP_ALL_TABLES,
    PASSWORD,
    NewDatabase,
    PortCluster,
    execute,
    free_port,
    running_cluster,
)
from ovia_backup_dagster_tests.conftest import snapshot as files_of
from ovia_backup_dagster_tests.defs import support
from ovia_backup_dagster_tests.defs.conftest import NewLocation
from ovia_backup_dagster_tests.defs.support import (
    CHAIN,
    Location,
    about,
    backdate,
    checks,
    environment,
    failed_steps,
    failure,
    files_below,
    flip_byte,
    load,
    materialized,
    old_dump,
    records,
    retries,
    settle,
)
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import verified_backup
from ovia_backup_dagster_tests.support.signed_logs import key_settings

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
ALL_PASSED = {
    "archive_matches_manifest": (True, ERROR),
    "archive_decodes": (True, ERROR),
    "expected_tables_present": (True, ERROR),
    "expected_tables_hold_rows": (True, ERROR),
    "tables_kept_their_rows": (True, WARN),
    "dump_without_warnings": (True, WARN),
    "source_is_the_one_backed_up": (True, ERROR),
}


def now() -> datetime:
    return datetime.now(UTC)


def states(location: Location) -> dict[str, State]:
    return {f"{b.tier}/{b}": b.state(now()) for b in location.catalog.backups()}


def daily(location: Location) -> Backup:
    """The only daily backup."""
    (backup,) = location.catalog.backups(Tier.DAILY)
    return backup


# ---------------------------------------------------------------- a good day


def test_a_verification_shows_the_head_of_the_signed_log(new_location: NewLocation, tmp_path: Path) -> None:
    """In two parts, because the UI cuts a long word off."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    location = new_location(**key_settings(tmp_path / "keys", key))
    location_log = location.system.required_statement_log
    result = location.materialize("daily_dump", "dump_verification")
    assert result.success
    head = location_log.chain().head
    assert head.sha256 is not None
    assert materialized(result)["dump_verification"]["signed_log_head"] == (
        f"{head.sequence} {head.sha256[:32]} {head.sha256[32:]}"
    )


def test_a_good_day_materializes_all_four_assets(location: Location) -> None:
    result = location.run()
    assert result.success
    shown = materialized(result)
    assert tuple(shown) == CHAIN
    assert checks(result) == ALL_PASSED
    backup = daily(location)
    manifest, witness = backup.manifest, backup.witness
    assert manifest is not None
    assert witness is not None
    assert manifest.run_id == result.run_id
    assert backup.judgement is not None
    assert backup.judgement.run_id == result.run_id
    assert backup.state(now()) is State.VERIFIED

    # In two halves, because the UI would cut it off in one piece.
    dump = {**shown["daily_dump"], "sha256": shown["daily_dump"]["sha256"].replace(" ", "")}
    assert dump == {
        "backup": backup.path.name,
        "path": str(backup.path),
        "size_bytes": backup.path.stat().st_size,
        "seconds": manifest.seconds,
        "compression": "gzip:1",
        "sha256": manifest.sha256,
        "server_version": manifest.database.server_version,
        "client_version": manifest.client_version,
        "warnings": 0,
    }
    verification = shown["dump_verification"]
    assert verification["backup"] == backup.path.name
    assert verification["compared_with"] == "nothing"
    assert verification["rows"] == witness.rows
    assert verification["size_bytes"] == backup.path.stat().st_size
    assert verification["decoded_bytes"] == witness.decoded_bytes > verification["size_bytes"]
    assert verification["ratio"] == round(witness.decoded_bytes / backup.size_bytes, 3)
    assert verification["seconds"] > 0
    assert verification["large_objects"] == witness.large_objects.count > 0
    assert "odd" not in verification
    rows = {row["table"]: (row["rows"], row["change"]) for row in records(verification["tables"])}
    assert rows["public.people"] == (200, "")
    assert rows["public.sync_conflicts"] == (0, "")
    assert sum(count for count, _ in rows.values()) == witness.rows

    (weekly,) = location.catalog.backups(Tier.WEEKLY)
    assert weekly.path.stat().st_ino == backup.path.stat().st_ino
    promotion = shown["weekly_promotion"]
    assert promotion["promoted"] is True
    assert promotion["backup"] == weekly.path.name
    assert promotion["reason"]
    pruning = shown["retention_pruning"]
    assert (pruning["removed"], pruning["kept"], pruning["freed_bytes"]) == (0, 2, 0)
    assert {row["backup"]: (row["state"], row["decision"]) for row in records(pruning["plan"])} == {
        f"daily/{backup}": ("verified", "keep"),
        f"weekly/{weekly}": ("verified", "keep"),
    }
    assert all(row["reason"] for row in records(pruning["plan"]))


def test_the_second_run_shows_what_changed(location: Location, database: Connection) -> None:
    assert location.run().success
    first = daily(location)
    execute(
        database,
        "INSERT INTO people (person_key, given_name, family_name, email, team, hired_on) "
        "SELECT gen_random_uuid(), 'A', 'B', 'new' || i || '@example.org', 't', now() FROM generate_series(1, 1234) i",
        "DELETE FROM text_samples WHERE ctid IN (SELECT ctid FROM text_samples LIMIT 3)",
        "CREATE TABLE brand_new (id int)",
        "DROP TABLE sync_conflicts",
    )
    result = location.run()
    assert result.success
    shown = materialized(result)
    verification = shown["dump_verification"]
    assert verification["compared_with"] == first.path.name
    changes = {row["table"]: (row["rows"], row["change"]) for row in records(verification["tables"])}
    assert changes["public.people"] == (1434, "+1,234")
    assert changes["public.text_samples"][1] == "-3"
    assert changes["public.identities"] == (1800, "0")
    assert changes["public.brand_new"] == (0, "new")
    assert changes["public.sync_conflicts"] == (0, "gone")
    assert shown["weekly_promotion"]["promoted"] is False
    assert "has its weekly backup" in shown["weekly_promotion"]["reason"]
    assert shown["weekly_promotion"]["backup"] == "none"
    assert len(location.catalog.backups(Tier.DAILY)) == 2
    assert len(location.catalog.backups(Tier.WEEKLY)) == 1


def test_nothing_deprecated_is_used(location: Location) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = location.run()
    assert result.success, failure_text(result)


def descriptions(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {check.check_name: check.description or "" for check in result.get_asset_check_evaluations()}


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    return "; ".join(str(e.step_failure_data.error) for e in result.all_events if e.is_step_failure)


def test_missing_roles_are_logged_and_odd(new_location: NewLocation, bin_dir: Path, tmp_path: Path) -> None:
    some = tmp_path / "bin"
    some.mkdir()
    for program in ("pg_dump", "pg_restore"):
        (some / program).symlink_to(bin_dir / program)
    location: Location = new_location(PG_BIN_DIR=str(some))
    result = location.run()
    shown = materialized(result)
    assert tuple(shown) == CHAIN
    assert shown["daily_dump"]["warnings"] == 1
    # Dagster would show a warning as failed.
    assert checks(result) == ALL_PASSED
    assert descriptions(result)["dump_without_warnings"].startswith("Odd, and worth a look: roles are not saved: ")
    assert about(result) == {result.run_id}
    assert r"roles are not saved: pg\_dumpall was not found" in shown["dump_verification"]["odd"]
    assert "roles are not saved: pg_dumpall was not found" in location.logs(result.run_id)
    assert not daily(location).sidecar(".globals.sql").exists()


# ---------------------------------------------------------------- this run's dump, and no other


def test_a_run_ignores_a_newer_dump_of_another_process(location: Location) -> None:
    newer: list[Backup] = []
    location.after_dump = lambda _: newer.append(support.Location.dump(plain(location)))
    result = location.run()
    assert result.success
    ours = materialized(result)["daily_dump"]["backup"]
    assert newer[0].path.name > ours
    shown = materialized(result)
    assert shown["dump_verification"]["backup"] == ours
    assert shown["weekly_promotion"]["backup"] == ours.replace("_daily_", "_weekly_")
    # The other dump has a manifest and no verdict, so it is verified too, for pruning to act behind it.
    assert location.catalog.backups(Tier.DAILY)[0].state(now()) is State.VERIFIED


def plain(location: Location) -> Location:
    """The same location without hooks."""
    return Location(location.settings, location.instance)


def vanish(location: Location, backup: Backup) -> None:
    assert remove_backup(location.catalog, backup)


def test_a_newer_file_that_is_being_written_is_left_alone(location: Location) -> None:
    strangers: list[Path] = []

    def somebody_else_writes(backup: Backup) -> None:
        path = old_dump(location.catalog, timedelta(seconds=-60), b"half a dump")
        settle(path, timedelta(0))
        strangers.append(path)

    location.after_dump = somebody_else_writes
    result = location.run()
    assert result.success
    shown = materialized(result)
    assert shown["dump_verification"]["backup"] == shown["daily_dump"]["backup"] != strangers[0].name
    assert strangers[0].read_bytes() == b"half a dump"
    assert not strangers[0].with_name(f"{strangers[0].name}{VERIFIED}").exists()


def test_a_vanished_dump_is_not_replaced_by_another(location: Location, volume: Path) -> None:
    assert location.run().success
    before = files_of(volume)
    location.after_dump = lambda backup: vanish(location, backup)
    result = location.run()
    assert not result.success
    assert list(materialized(result)) == ["daily_dump"]
    assert failed_steps(result) == ["dump_verification"]
    said = failure(result)
    assert said.startswith("the dump of this run is gone: ")
    assert result.run_id in said
    assert "\n" not in said
    assert files_of(volume) == before


# ---------------------------------------------------------------- one asset alone


def test_verification_alone_reads_the_newest_and_says_so(location: Location) -> None:
    older, newer = location.dump(), location.dump()
    result = location.materialize("dump_verification")
    assert result.success
    shown = materialized(result)
    assert list(shown) == ["dump_verification"]
    assert shown["dump_verification"]["backup"] == newer.path.name
    assert f"this run made no dump; working on the newest, {newer}" in location.logs(result.run_id)
    assert states(location) == {f"daily/{older}": State.VERIFIED, f"daily/{newer}": State.VERIFIED}


@pytest.mark.exhaustive
def test_verification_reads_the_chosen_backup(location: Location) -> None:
    older, newer = location.dump(), location.dump()
    for wanted in (older.path.name, older.path.name.removesuffix(".dump"), str(older.path)):
        result = location.materialize("dump_verification", dump_verification={"backup": wanted})
        assert result.success
        assert materialized(result)["dump_verification"]["backup"] == older.path.name
    latest = location.materialize("dump_verification", dump_verification={"backup": "latest"})
    assert materialized(latest)["dump_verification"]["backup"] == newer.path.name


# The last path exists, but is not a backup: a user of the UI must not be able to open arbitrary files of the host.
@pytest.mark.parametrize(
    "wanted", ["nothing.dump", "../weekly/nothing.dump", "'; rm -rf ~; '.dump", "a\nb", "/etc/passwd"]
)
def test_verification_of_an_unknown_backup_fails(bare: NewLocation, wanted: str) -> None:
    location: Location = bare()
    location.catalog.prepare()
    backup = verified_backup(location.catalog, now())
    result = location.materialize("dump_verification", dump_verification={"backup": wanted})
    assert not result.success
    assert not result.get_asset_check_evaluations()
    assert failure(result).startswith("no backup called ")
    assert str(backup) in failure(result)
    assert "\n" not in failure(result)


@pytest.mark.parametrize("asset", ["dump_verification", "weekly_promotion"])
def test_each_asset_alone_fails_without_any_backup(location: Location, asset: str) -> None:
    location.catalog.prepare()
    result = location.materialize(asset)
    assert not result.success
    assert "there is no backup at all. Next: ovia-backup dump" in failure(result)


def test_verification_alone_skips_a_dump_being_written(location: Location) -> None:
    path = old_dump(location.catalog, timedelta(hours=1))
    settle(path, timedelta(0))
    result = location.materialize("dump_verification", dump_verification={"backup": str(path)})
    assert not result.success
    assert "may still be being written" in failure(result)
    assert not result.get_asset_check_evaluations()


def test_promotion_alone_skips_an_unverified_dump(location: Location) -> None:
    backup = location.dump()
    result = location.materialize("weekly_promotion")
    assert result.success
    assert materialized(result)["weekly_promotion"] == {
        "promoted": False,
        "reason": f"{backup} is unverified; only a verified backup is promoted",
        "backup": "none",
    }
    assert location.catalog.backups(Tier.WEEKLY) == []
    location.verify(backup)
    again = location.materialize("weekly_promotion")
    assert materialized(again)["weekly_promotion"]["promoted"] is True


def test_promotion_happens_on_or_after_the_weekly_day(new_location: NewLocation) -> None:
    today = now()
    for days, day_of_week in ((0, today), (2, today - timedelta(days=2))):
        location: Location = new_location(BACKUP_WEEKLY_DAY=day_of_week.strftime("%A"), BACKUP_TIMEZONE="UTC")
        for weekly in location.catalog.backups(Tier.WEEKLY) if location.settings.backup_dir.exists() else []:
            remove_backup(location.catalog, weekly)
        shown = materialized(location.run())["weekly_promotion"]
        assert shown["promoted"] is True
        words = "first verified dump" if days == 0 else "left no weekly backup: the next verified dump takes its place"
        assert words in shown["reason"]


@pytest.mark.exhaustive
def test_promotion_fills_every_tier_that_is_on(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(BACKUP_MONTHLY_KEEP="12", BACKUP_YEARLY_KEEP="1")
    shown = materialized(location.run())["weekly_promotion"]
    assert shown["promoted"] is True
    assert "monthly: the first verified dump of the month" in shown["reason"]
    made = {tier: location.catalog.backups(tier) for tier in Tier if tier is not Tier.DAILY}
    assert shown["backup"] == ", ".join(str(backup) for backups in made.values() for backup in backups)
    assert [len(backups) for backups in made.values()] == [1, 1, 1]
    # A second run, and one with the tiers off: none is made, and none is removed.
    for settings in ({"BACKUP_MONTHLY_KEEP": "12"}, {}):
        before = files_of(volume / "monthly") | files_of(volume / "yearly")
        assert materialized(new_location(**settings).run())["weekly_promotion"]["promoted"] is False
        assert files_of(volume / "monthly") | files_of(volume / "yearly") == before


def test_pruning_alone_refuses_if_the_newest_is_unverified(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(BACKUP_DAILY_KEEP="1")
    for age in (4, 3, 2):
        location.verify(backdate(location.catalog, location.dump(), timedelta(days=age)))
    newest = location.dump()
    before = files_of(volume)
    result = location.materialize("retention_pruning")
    assert not result.success
    assert failure(result).startswith(f"nothing was removed: the newest backup, daily/{newest}, is unverified")
    assert files_of(volume) == before
    # An empty launchpad and a dry run also change nothing; the dry run says what blocks pruning.
    dry = location.materialize("retention_pruning", retention_pruning={"dry_run": True})
    assert dry.success
    assert materialized(dry)["retention_pruning"]["removed"] == 0
    assert {row["decision"] for row in records(materialized(dry)["retention_pruning"]["plan"])} == {"keep"}
    assert files_of(volume) == before
    location.verify(newest)
    assert location.materialize("retention_pruning").success
    assert [b.path for b in location.catalog.backups()] == [newest.path]


@pytest.mark.exhaustive
def test_pruning_alone_refuses_if_the_newest_is_bad(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(BACKUP_DAILY_KEEP="1")
    for age in (4, 3):
        location.verify(backdate(location.catalog, location.dump(), timedelta(days=age)))
    newest = location.dump()
    flip_byte(newest.path)
    assert not location.verify(newest).judgement.good
    before = files_of(volume)
    result = location.materialize("retention_pruning")
    assert not result.success
    assert f"the newest backup, daily/{newest}, is bad" in failure(result)
    assert files_of(volume) == before


def test_pruning_shows_each_file_with_its_reason(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(BACKUP_DAILY_KEEP="2")
    made = [location.verify(backdate(location.catalog, location.dump(), timedelta(days=age))) for age in (5, 4, 3)]
    oldest, middle, newest = (outcome.backup for outcome in made)
    before = files_of(volume)

    dry = location.materialize("retention_pruning", retention_pruning={"dry_run": True})
    shown = materialized(dry)["retention_pruning"]
    decisions = {row["backup"]: row["decision"] for row in records(shown["plan"])}
    assert decisions == {f"daily/{newest}": "keep", f"daily/{middle}": "keep", f"daily/{oldest}": "remove"}
    assert (shown["removed"], shown["kept"], shown["freed_bytes"]) == (0, 2, 0)
    assert f"would remove daily/{oldest}: " in location.logs(dry.run_id)
    assert files_of(volume) == before

    result = location.materialize("retention_pruning")
    shown = materialized(result)["retention_pruning"]
    assert (shown["removed"], shown["kept"], shown["freed_bytes"]) == (1, 2, oldest.size_bytes)
    assert f"removed daily/{oldest}: not the newest of one of the last 2 days" in location.logs(result.run_id)
    after = files_of(volume)
    assert {name for name in before if name not in after} == {
        f"daily/{oldest}{suffix}" for suffix in ("", ".json", ".globals.sql", VERIFIED)
    }
    assert all(before[name] == content for name, content in after.items())


# ---------------------------------------------------------------- bad and odd dumps


def test_a_damaged_dump_blocks_and_the_next_day_unblocks_itself(new_location: NewLocation, volume: Path) -> None:
    location: Location = new_location(BACKUP_DAILY_KEEP="1")
    for age in (3, 2):
        location.verify(backdate(location.catalog, location.dump(), timedelta(days=age)))
    before = files_of(volume)

    location.after_dump = lambda backup: flip_byte(backup.path)
    result = location.run()
    assert not result.success
    assert list(materialized(result)) == ["daily_dump"]
    assert failed_steps(result) == ["dump_verification"]
    # Assets after a blocking check are not materialized, and their checks are not called passed.
    unmade = dict.fromkeys(ALL_PASSED, (False, WARN))
    assert checks(result) == {**unmade, "archive_matches_manifest": (False, ERROR)}
    check, *others = result.get_asset_check_evaluations()
    bad = location.catalog.backups(Tier.DAILY)[0]
    assert check.metadata["backup"].value == bad.path.name
    assert {other.description for other in others} == {f"not checked, because {check.description}"}
    assert "was altered: its SHA-256 is" in (check.description or "")
    assert failure(result).startswith(f"{bad} is bad: {bad} was altered")
    assert "\n" not in failure(result)
    assert bad.state(now()) is State.BAD
    assert retries(result) == 0
    assert {name: content for name, content in files_of(volume).items() if str(bad) not in name} == before
    keys = [dg.AssetKey(name) for name in CHAIN]
    events = {key.to_user_string(): location.instance.get_latest_materialization_event(key) for key in keys}
    assert [name for name, event in events.items() if event] == ["daily_dump"]

    location.after_dump = None
    next_day = location.run()
    assert next_day.success
    assert tuple(materialized(next_day)) == CHAIN
    assert checks(next_day) == ALL_PASSED
    plan = {row["backup"]: row for row in records(materialized(next_day)["retention_pruning"]["plan"])}
    assert plan[f"daily/{bad}"]["decision"] == "keep"
    assert materialized(next_day)["retention_pruning"]["removed"] == 2


def test_a_truncated_dump_is_bad(location: Location) -> None:
    location.after_dump = lambda backup: os.truncate(backup.path, backup.size_bytes - 100)
    result = location.run()
    unmade = dict.fromkeys(ALL_PASSED, (False, WARN))
    assert checks(result) == {**unmade, "archive_matches_manifest": (False, ERROR)}
    assert "bytes long; it was" in failure(result)


def test_an_expected_table_that_is_gone_blocks(location: Location, database: Connection) -> None:
    assert location.run().success
    execute(database, "DROP TABLE person_identity_links CASCADE")
    result = location.run()
    assert list(materialized(result)) == ["daily_dump"]
    found = checks(result)
    assert {name for name, (passed, _) in found.items() if not passed} == {
        Check.TABLES_PRESENT,
    }
    assert "person_identity_links is gone" in descriptions(result)[Check.ROWS_KEPT]
    assert set(found) == set(ALL_PASSED)
    assert "expected table person_identity_links is not in the dump" in failure(result)
    # A bad dump makes no hold: lost rows are not the question.
    assert not any(b.sidecar(HELD).exists() for b in location.catalog.backups())


def test_an_empty_expected_table_blocks_if_rows_are_required(new_location: NewLocation, database: Connection) -> None:
    execute(database, "TRUNCATE person_identity_links")
    strict: Location = new_location()
    assert checks(strict.run())["expected_tables_hold_rows"] == (False, ERROR)
    easy: Location = new_location(BACKUP_REQUIRE_ROWS="false")
    assert easy.run().success


def test_a_dump_of_another_source_must_be_accepted(new_location: NewLocation, database: Connection) -> None:
    location: Location = new_location(BACKUP_EXPECTED_TABLES="")
    assert location.run().success
    execute(database, DROP_ALL_TABLES)
    result = location.run()
    assert failed_steps(result) == ["dump_verification"]
    assert checks(result)["source_is_the_one_backed_up"] == (False, ERROR)
    assert "it holds no table at all" in failure(result)
    assert "ovia-backup accept " in failure(result)
    assert len(location.catalog.held(now())) > 0
    accepted = location.run(config={"ops": {"dump_verification": {"config": {"accept": True}}}})
    assert accepted.success, failure_text(accepted)
    assert checks(accepted)["source_is_the_one_backed_up"] == (True, ERROR)
    assert location.catalog.held(now()) == []
    later = location.run()
    assert later.success, failure_text(later)


def test_an_odd_dump_warns_goes_on_and_holds_the_one_before(new_location: NewLocation, database: Connection) -> None:
    location: Location = new_location(BACKUP_DAILY_KEEP="1", BACKUP_WEEKLY_KEEP="1")
    before = location.verify(backdate(location.catalog, location.dump(), timedelta(days=2))).backup
    execute(
        database,
        "DELETE FROM text_samples WHERE ctid IN (SELECT ctid FROM text_samples LIMIT 9)",
        'DROP TABLE ops."Odd ""Name"" ; drop\nme" CASCADE',
    )
    result = location.run()
    assert result.success
    assert tuple(materialized(result)) == CHAIN
    assert checks(result) == ALL_PASSED
    assert descriptions(result)["tables_kept_their_rows"].startswith("Odd, and worth a look: ")
    shown = materialized(result)["dump_verification"]
    odd = shown["odd"]
    assert r"table public.text\_samples shrank from 14 to 5 rows" in odd
    # A name from the database adds neither lines nor Markdown.
    assert len(odd.splitlines()) == 2
    assert all(line.startswith("* table ") for line in odd.splitlines())
    assert not re.search(r"(?<!\\)[`_<]", odd)
    hold = location.catalog.refresh(before).hold
    assert hold is not None
    assert "text_samples shrank from 14 to 5 rows" in hold.reason
    assert timedelta(days=29) < hold.until - now() <= timedelta(days=30)
    plan = {row["backup"]: row for row in records(materialized(result)["retention_pruning"]["plan"])}
    assert plan[f"daily/{before}"]["decision"] == "keep"
    assert plan[f"daily/{before}"]["reason"].startswith("held: ")


# ---------------------------------------------------------------- the old script's dumps


def archive(programs: Programs, connection: Connection, *options: str) -> bytes:
    """An archive as the old script would have written it."""
    command = (programs.path("pg_dump"), "-Fc", *options)
    return subprocess.run(command, env=connection.environment(), check=True, capture_output=True).stdout


@pytest.mark.exhaustive
def test_old_dumps_are_verified_on_first_sight(location: Location, database: Connection, programs: Programs) -> None:
    whole = archive(programs, database)
    catalog = location.catalog
    # Each on its own day, at any hour: only the newest of a day is kept.
    good = old_dump(catalog, timedelta(days=1, hours=12), whole)
    # Older than a table that is expected today, which is not a fault of the dump.
    early = old_dump(catalog, timedelta(days=3), archive(programs, database, "--exclude-table=identities"))
    cut = old_dump(catalog, timedelta(days=5), whole[: len(whole) // 2])
    weekly = old_dump(catalog, timedelta(days=9), whole, tier=Tier.WEEKLY)
    fresh = old_dump(catalog, timedelta(minutes=10), whole)
    settle(fresh, timedelta(minutes=14))
    result = location.run()
    assert result.success
    found = states(location)
    assert found[f"daily/{good.name}"] is State.VERIFIED
    assert found[f"daily/{early.name}"] is State.VERIFIED
    assert found[f"daily/{cut.name}"] is State.BAD
    assert found[f"weekly/{weekly.name}"] is State.VERIFIED
    assert found[f"daily/{fresh.name}"] is State.BEING_WRITTEN
    assert f"{cut.name} is bad: " in location.logs(result.run_id)
    assert materialized(result)["dump_verification"]["backup"] == materialized(result)["daily_dump"]["backup"]
    # Each is read once: the next run reads only the one that has settled meanwhile.
    settle(fresh, timedelta(minutes=16))
    assert location.run().success
    assert states(location)[f"daily/{fresh.name}"] is State.VERIFIED
    for path in (good, early, cut, weekly):
        tier = Tier.named(path.parent.name)
        backup = next(b for b in catalog.backups(tier) if b.path == path)
        assert backup.verification is not None
        assert len(backup.verification.judgements) == 1


# ---------------------------------------------------------------- transient and permanent failures


def test_a_server_that_does_not_answer_is_tried_four_times(new_location: NewLocation, volume: Path) -> None:
    tries: list[int] = []
    port = free_port()
    location: Location = new_location(POSTGRES_HOST="127.0.0.1", POSTGRES_PORT=str(port))
    location.before_dump = lambda: tries.append(1)
    result = location.run()
    assert not result.success
    assert len(tries) == 4
    assert retries(result) == 3
    said = failure(result)
    assert said.startswith("no connection to database ")
    assert "Connection refused" in said
    assert f"Next: pg_isready -h 127.0.0.1 -p {port}" in said
    assert "\n" not in said
    assert location.logs(result.run_id).count("Trying again in") == 3
    assert materialized(result) == {}
    assert list(files_of(volume)) == []


@pytest.mark.exhaustive
def test_a_server_that_returns_between_tries_is_dumped(
    bin_dir: Path, volume: Path, database: Connection, programs: Programs, instance: dg.DagsterInstance
) -> None:
    with running_cluster(bin_dir) as cluster:
        cluster.stop()
        tries: list[int] = []

        def somebody_starts_the_server() -> None:
            tries.append(1)
            if len(tries) == 3:
                cluster.start()
                execute(cluster.connection(), "CREATE TABLE something (id int)")

        settings = load(environment(cluster.connection(), volume, bin_dir, BACKUP_EXPECTED_TABLES="none"))
        # No table is expected of the database.
        settings = settings.model_copy(update={"backup_expected_tables": ()})
        location = Location(settings, instance, before_dump=somebody_starts_the_server)
        result = location.run()
        assert result.success, failure_text(result)
        assert len(tries) == 3
        assert retries(result) == 2
        assert tuple(materialized(result)) == CHAIN
        assert len(location.catalog.backups(Tier.DAILY)) == 1


@pytest.mark.exhaustive
def test_a_lock_released_between_tries_is_survived(location: Location) -> None:
    location.catalog.prepare()
    with contextlib.ExitStack() as stack:
        stack.enter_context(location.catalog.lock("a test of the lock", now()))
        tries: list[int] = []

        def the_holder_ends() -> None:
            tries.append(1)
            if len(tries) == 2:
                stack.close()

        location.before_dump = the_holder_ends
        result = location.run()
    assert result.success
    assert len(tries) == 2
    logs = location.logs(result.run_id)
    assert "is in use: a test of the lock (process " in logs
    assert logs.count("Trying again in") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"POSTGRES_DB": "no_such_database"}, 'database "no_such_database" does not exist'),
        ({"POSTGRES_USER": "nobody_of_that_name"}, 'role "nobody_of_that_name" does not exist'),
        ({"PG_BIN_DIR": "/nonexistent"}, "was not found in PG_BIN_DIR=/nonexistent"),
        ({"BACKUP_COMPRESSION": "zstd:3"}, "compression zstd:3 is not available here"),
        ({"POSTGRES_PASSWORD_FILE": "/nonexistent/file"}, "POSTGRES_PASSWORD_FILE=/nonexistent/file cannot be read"),
    ],
)
def test_a_permanent_error_fails_at_once(
    new_location: NewLocation, volume: Path, change: dict[str, str], words: str
) -> None:
    location: Location = new_location(**change)
    result = location.run()
    assert failed_steps(result) == ["daily_dump"]
    assert words in failure(result)
    assert " Next: " in failure(result)
    assert retries(result) == 0
    assert list(files_of(volume)) == []


def test_a_wrong_password_fails_at_once(server: PortCluster, new_location: NewLocation, volume: Path) -> None:
    tries: list[int] = []
    location: Location = new_location(
        POSTGRES_HOST="127.0.0.1", POSTGRES_USER="postgres", POSTGRES_PASSWORD="not-the-password"
    )
    location.before_dump = lambda: tries.append(1)
    result = location.run()
    assert len(tries) == 1
    assert retries(result) == 0
    assert "password authentication failed" in failure(result)
    assert "compare POSTGRES_USER=postgres and PGPASSWORD, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" in failure(
        result
    )
    assert list(files_of(volume)) == []


def test_a_failure_has_its_parts_as_metadata(new_location: NewLocation) -> None:
    location: Location = new_location(POSTGRES_DB="no_such_database")
    result = location.run()
    data = next(e for e in result.all_events if e.is_step_failure).step_failure_data.user_failure_data
    assert data is not None
    shown = {name: value.value for name, value in data.metadata.items()}
    assert shown["kind"] == "DatabaseMissingError"
    assert str(shown["what"]).startswith("no connection to database no_such_database")
    assert shown["why"] == "POSTGRES_DB is wrong, or the database was dropped or renamed"
    assert "does not exist" in str(shown["said"])
    assert shown["next"] == (
        f"list the databases: psql -h {location.settings.postgres_host} -p {location.settings.postgres_port} "
        "-U postgres -l; check POSTGRES_DB=no_such_database"
    )


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("how", thinned(["POSTGRES_PASSWORD", "PGPASSWORD", "POSTGRES_PASSWORD_FILE"]))
def test_no_secret_is_recorded_anywhere(
    server: PortCluster,
    database: Connection,
    volume: Path,
    bin_dir: Path,
    tmp_path: Path,
    disk_instance: dg.DagsterInstance,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    wrong = "w0rd-that-is-wrong"
    file = tmp_path / "password"
    tcp = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_USER": "postgres"}
    runs = []
    for secret, good in ((PASSWORD, True), (wrong, False)):
        file.write_text(f"{secret}\nanother line\n", encoding="utf-8")
        value = str(file) if how.endswith("_FILE") else secret
        location = Location(load(environment(database, volume, bin_dir, **tcp, **{how: value})), disk_instance)
        result = location.run()
        assert result.success is good
        told_people = location.run(support.ALERT_JOB)
        assert told_people.success
        runs += [result, told_people]
        assert secret not in repr(location.settings) + repr(location.system) + repr(location.system.dumper)
    told = []
    for result in runs:
        run = disk_instance.get_run_by_id(result.run_id)
        assert run is not None
        told += [repr(run.run_config), repr(run.tags)]
        for entry in disk_instance.all_logs(result.run_id):
            told += [dg.serialize_value(entry), repr(entry)]
    output = capfd.readouterr()
    text = "\n".join((*told, output.out, output.err))
    home = tmp_path / "dagster"
    files = [*files_below(home), *files_below(volume)]
    contents = [path.read_bytes() for path in files]
    # Control: the search finds a text that is there.
    assert "pg_dump of database" in text
    assert any(b"pg_dump of database" in content for content in contents)
    assert any("compute_logs" in str(path) for path in files)
    for secret in (PASSWORD, wrong):
        assert secret not in text
        assert [path for path, content in zip(files, contents, strict=True) if secret.encode() in content] == []


def test_no_password_hash_is_saved_with_the_roles(location: Location) -> None:
    backup = location.dump()
    roles = backup.sidecar(".globals.sql").read_text(encoding="utf-8")
    assert "CREATE ROLE postgres" in roles
    assert "SCRAM-SHA-256" not in roles


# ---------------------------------------------------------------- re-execution

_JOBS: list[dg.JobDefinition] = []


def job_number(number: int) -> dg.JobDefinition:
    """The name under which a run that can be re-executed loads its job."""
    return _JOBS[number]


def execute_again(location: Location, options: dg.ReexecutionOptions | None = None) -> dg.JobExecutionResult:
    """Run the daily job; with options, as a re-execution."""
    _JOBS.append(location.job())
    job = dg.build_reconstructable_job(__name__, "job_number", (len(_JOBS) - 1,))
    return dg.execute_job(job, location.instance, raise_on_error=False, reexecution_options=options)


def from_failure(location: Location, result: dg.JobExecutionResult) -> dg.ReexecutionOptions:
    return dg.ReexecutionOptions.from_failure(result.run_id, location.instance)


def done(result: dg.JobExecutionResult) -> list[str]:
    return [event.step_key or "" for event in result.all_events if event.is_step_success]


def backup_of(location: Location, asset: str) -> object:
    """The backup that the asset's last materialization shows."""
    event = location.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization.metadata["backup"].value


@pytest.fixture
def lasting(location: Location, disk_instance: dg.DagsterInstance) -> Location:
    """The code location on an instance that can re-execute runs."""
    location.instance = disk_instance
    return location


def programs_vanish_after_the_dump(location: Location) -> None:
    there = [True]
    location.after_dump = lambda _: there.clear()
    location.installed = lambda: bool(there)


def test_re_execution_from_failure_works_on_the_parents_dump(lasting: Location) -> None:
    programs_vanish_after_the_dump(lasting)
    first = execute_again(lasting)
    assert not first.success
    assert done(first) == ["daily_dump"]
    backup = daily(lasting)
    assert backup.state(now()) is State.UNVERIFIED
    lasting.after_dump = lasting.installed = None
    # A newer dump of another process: the re-execution must not use it.
    newer = lasting.dump()
    second = execute_again(lasting, from_failure(lasting, first))
    assert second.success, lasting.logs(second.run_id)
    assert done(second) == list(CHAIN[1:])
    assert backup_of(lasting, "dump_verification") == backup.path.name != newer.path.name
    assert backup_of(lasting, "weekly_promotion") == backup.path.name.replace("_daily_", "_weekly_")


@pytest.mark.exhaustive
def test_re_execution_of_a_re_execution_still_knows_the_dump(lasting: Location) -> None:
    """The dump may be of neither the first run nor the parent: first there is no server, then twice no pg_restore."""
    settings = lasting.settings
    lasting.settings = settings.model_copy(update={"postgres_host": "/nonexistent"})
    no_server = execute_again(lasting)
    assert done(no_server) == []
    lasting.settings = settings
    programs_vanish_after_the_dump(lasting)
    dumped = execute_again(lasting, from_failure(lasting, no_server))
    assert done(dumped) == ["daily_dump"]
    lasting.after_dump = None
    lasting.installed = lambda: False
    still_gone = execute_again(lasting, from_failure(lasting, dumped))
    assert done(still_gone) == []
    lasting.installed = None
    last = execute_again(lasting, from_failure(lasting, still_gone))
    assert last.success, lasting.logs(last.run_id)
    assert done(last) == list(CHAIN[1:])
    manifest = daily(lasting).manifest
    assert manifest is not None
    assert manifest.run_id == dumped.run_id


@pytest.mark.exhaustive
def test_a_launched_run_fails_if_its_dump_is_gone(lasting: Location) -> None:
    """As a launcher runs it: without an asset selection, whereas an in-process run has an empty one."""
    assert lasting.run().success
    lasting.after_dump = lambda backup: vanish(lasting, backup)
    result = execute_again(lasting)
    assert done(result) == ["daily_dump"]
    assert failure(result).startswith("the dump of this run is gone: ")


@pytest.mark.exhaustive
def test_a_repeated_whole_run_uses_only_its_own_dump(lasting: Location) -> None:
    """The run makes a new dump. If that vanishes, the parent run's dump does not replace it."""
    lasting.after_dump = lambda backup: flip_byte(backup.path)
    first = execute_again(lasting)
    assert not first.success
    lasting.after_dump = lambda backup: vanish(lasting, backup)
    repeated = execute_again(lasting, dg.ReexecutionOptions(parent_run_id=first.run_id))
    assert done(repeated) == ["daily_dump"]
    assert failed_steps(repeated) == ["dump_verification"]
    assert failure(repeated).startswith("the dump of this run is gone: ")
    parents = daily(lasting)
    assert parents.verification is not None
    assert len(parents.verification.judgements) == 1


# ---------------------------------------------------------------- two databases


@pytest.mark.exhaustive
def test_two_databases_on_one_volume_do_not_interfere(
    new_database: NewDatabase, volume: Path, bin_dir: Path, instance: dg.DagsterInstance
) -> None:
    one, other = (
        Location(load(environment(new_database(), volume, bin_dir, BACKUP_DAILY_KEEP="1")), instance) for _ in range(2)
    )
    old = one.verify(backdate(one.catalog, one.dump(), timedelta(days=3))).backup
    unproven = one.dump()
    result = other.run()
    assert result.success
    assert len(other.catalog.backups()) == 2
    assert {b.path for b in one.catalog.backups()} == {old.path, unproven.path}
    assert states(one)[f"daily/{unproven}"] is State.UNVERIFIED

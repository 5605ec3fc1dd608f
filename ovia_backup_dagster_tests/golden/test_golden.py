"""Every file that ``ovia-backup`` 0.1.0 wrote is still read, with every value.

The files are in ``volume/`` and ``handover/``, and never change. If the program's words on them change on purpose,
``expected`` writes the words again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ovia_backup_dagster.core import takeover, takeover_links
from ovia_backup_dagster.core.archive_header import HEAD_BYTES, parse_header
from ovia_backup_dagster.core.backup import Backup, State
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.check_registry import Check, Stage
from ovia_backup_dagster.core.errors import RestoreRefusedError
from ovia_backup_dagster.core.locking import lock_holder
from ovia_backup_dagster.core.manifest import Manifest, Sidecar, parse_sidecar
from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.sidecars import GLOBALS, MANIFEST
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.core.verdict import (
    Acceptance,
    Drills,
    Hold,
    HoldCause,
    PromotionRecord,
    Verification,
)
from ovia_backup_dagster.drill.evidence import Evidence
from ovia_backup_dagster.drill.folder import DrillFolder
from ovia_backup_dagster.postgres.globals_file import Membership, parse_globals
from ovia_backup_dagster.proof.check_results import Result
from ovia_backup_dagster.restoration.confirmation import LIFETIME, Words
from ovia_backup_dagster.restoration.folder import RestoreFolder
from ovia_backup_dagster.restoration.journal import Journal, JournalMark
from ovia_backup_dagster.restoration.record import Record, record_of
from ovia_backup_dagster.restoration.restore_order import Mode, Order, Step
from ovia_backup_dagster.restoration.step_data import StopData, SwapData
from ovia_backup_dagster.retention import promote_and_prune
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster_tests.golden.expected import (
    COMMANDS,
    HERE,
    MOMENTS,
    NOW,
    commands_at,
    path_of,
    said,
    unpack,
    volume_at,
)

DATABASE = "ovia"
#: The servers' system identifiers.
FIRST_SERVER, SECOND_SERVER, THIRD_SERVER = "7713769895535674628", "7713769905955591744", "7713769912567363553"
#: The models of files below daily/ and weekly/, by suffix; the longest match counts.
SIDECARS: dict[str, type[Sidecar]] = {
    ".verified.json": Verification,
    ".drilled.json": Drills,
    ".held.json": Hold,
    ".accepted.json": Acceptance,
    ".promoted.json": PromotionRecord,
    ".json": Manifest,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of the month, for tests that only read."""
    return unpack("volume", tmp_path_factory.mktemp("month") / "volume")


@pytest.fixture(scope="module")
def catalog(root: Path) -> Catalog:
    return Catalog(root, DATABASE)


@pytest.fixture
def own(tmp_path: Path) -> Catalog:
    """A copy of that volume that a test may change."""
    return Catalog(unpack("volume", tmp_path / "volume"), DATABASE)


def day(catalog: Catalog, date: str, tier: Tier = Tier.DAILY) -> Backup:
    return catalog.find(f"{DATABASE}_{tier}_{date}_030000", NOW)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# ---- Every value of a file is read


def models() -> Iterator[tuple[Path, type[Sidecar]]]:
    for path in sorted((HERE / "volume").rglob("*.json")):
        match path.parent.name:
            case "drills":
                yield path, Evidence
            case "restores":
                yield path, Record
            case _:
                yield path, next(model for suffix, model in SIDECARS.items() if path.name.endswith(suffix))


def lost(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """The values of a file that its model does not return. A new field of the model is not a loss."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif before != after:
        yield f"{where}: {before!r} became {after!r}"


@pytest.mark.parametrize("model", [*SIDECARS.values(), Evidence, Record], ids=lambda model: model.__name__)
def test_every_value_of_a_file_is_read(model: type[Sidecar]) -> None:
    paths = [path for path, of in models() if of is model]
    assert paths
    for path in paths:
        text = path.read_text("utf-8")
        read = parse_sidecar(model, text, path.name)
        assert list(lost(json.loads(text), json.loads(read.to_json()))) == [], path.name


def test_every_value_of_a_journal_is_read() -> None:
    paths = sorted((HERE / "volume" / "restores").glob("*.journal"))
    for path in paths:
        order, *entries = map(json.loads, path.read_text("utf-8").splitlines())
        journal = Journal.read(path)
        assert list(lost(order, json.loads(journal.order.to_json()))) == [], path.name
        assert list(lost(entries, [json.loads(entry.to_json()) for entry in journal.entries])) == [], path.name
    assert len(paths) == 9


def test_a_field_that_is_no_longer_read_is_noticed() -> None:
    """Shows that the tests above can fail."""
    path = next(path for path, model in models() if model is Manifest)
    known = json.loads(path.read_text("utf-8"))
    renamed = {"undone" if name == "undumped" else name: value for name, value in known.items()}
    text = json.dumps(renamed)
    read = json.loads(parse_sidecar(Manifest, text, path.name).to_json())
    assert list(lost(json.loads(text), read)) == [".undone"]


# ---- A backup's unit


def test_the_backups_are_listed_with_their_states(catalog: Catalog) -> None:
    backups = catalog.backups()
    states = {state: [b.path.name for b in backups if b.state(NOW) is state] for state in State}
    assert {state: len(names) for state, names in states.items()} == {
        State.PROVEN: 5,
        State.VERIFIED: 28,
        State.UNVERIFIED: 1,
        State.BAD: 3,
        State.BEING_WRITTEN: 0,
    }
    assert states[State.UNVERIFIED] == ["ovia_daily_2026-02-27_030000.dump"]
    assert [name[11:21] for name in states[State.BAD]] == ["2026-03-13", "2026-03-05", "2026-02-26"]
    assert [b.path.name[11:21] for b in backups if b.drilled] == [
        *("2026-03-29", "2026-03-22", "2026-03-17", "2026-03-08", "2026-03-01")
    ]
    (other,) = Catalog(catalog.root, "Ovia test.2").backups()
    assert other.path.name == "Ovia%20test%2E2_daily_2026-03-01_040008.dump"
    assert other.name.database == "Ovia test.2"


def test_each_manifest_matches_its_archive(catalog: Catalog) -> None:
    with_manifest = [backup for backup in catalog.backups() if backup.sidecar(MANIFEST).exists()]
    assert len(with_manifest) == 34
    for backup in with_manifest:
        manifest, archive = backup.manifest, backup.path.read_bytes()
        assert manifest is not None, backup
        assert manifest.started_at == BackupName.parse(backup.path.name).started_at  # type: ignore[union-attr]
        assert (manifest.size_bytes, backup.contradictions, backup.altered_files()) == (len(archive), (), ())
        rotten = backup.path.name == "ovia_daily_2026-03-13_030000.dump"
        assert (manifest.sha256 == hashlib.sha256(archive).hexdigest()) is not rotten, backup
        header = parse_header(archive[:HEAD_BYTES])
        assert header is not None
        assert (header.database, header.created_at is not None) == (DATABASE, True)


def test_the_manifest_has_every_field(catalog: Catalog) -> None:
    manifest = day(catalog, "2026-03-31").manifest
    assert manifest is not None
    assert manifest.finished_at - manifest.started_at < timedelta(seconds=2)
    assert (manifest.compression, manifest.client_version) == ("gzip:1", "16.14")
    assert manifest.options[:2] == ("--format=custom", "--compress=gzip:1")
    assert manifest.session_options.startswith("-c timezone=UTC -c datestyle=ISO")
    assert (manifest.run_id, manifest.made_by) == (None, "ovia-backup-dagster 0.1.0")
    assert (manifest.warnings, manifest.undumped, manifest.globals_included) == ((), (), True)
    source = manifest.database
    assert (source.name, source.owner, source.bootstrap_superuser) == (DATABASE, "ovia", "postgres")
    assert (source.server_version, source.server_version_num) == ("16.14", 160014)
    assert (source.encoding, source.collate, source.ctype, source.locale_provider) == ("UTF8", "C", "C", "libc")
    assert source.system_identifier == THIRD_SERVER
    assert source.settings == {"": ("TimeZone=America/New_York",)}
    assert source.effective["timezone"] == "America/New_York"
    assert source.extensions == {"plpgsql": "1.0"}
    assert source.size_bytes is not None
    assert manifest.files.keys() == {GLOBALS.suffix}
    assert manifest.computed is not None
    assert manifest.computed.tables["public.people"].rows == 200
    assert manifest.computed.tables["public.people"].key == ("id",)
    assert manifest.computed.tables["public.people"].columns.keys() == {"age"}
    assert manifest.computed.views["public.counted"].rows == 1


def test_the_saved_roles_are_read(catalog: Catalog) -> None:
    saved = day(catalog, "2026-03-31").saved_roles()
    assert saved is not None
    roles = parse_globals(saved)
    assert roles.roles.keys() == {"ovia", "postgres", "readers"}
    assert roles.roles["ovia"].flags == {"INHERIT", "LOGIN"}
    assert roles.members == {("readers", "ovia"): Membership(inherit=True)}
    assert roles.not_understood == []
    assert day(catalog, "2026-02-28").saved_roles() is None  # a dump of the old script


def test_each_verdict_is_read_from_its_file(catalog: Catalog) -> None:
    newest = day(catalog, "2026-03-31")
    assert newest.judgement is not None
    assert newest.judgement.previous == "ovia_daily_2026-03-30_030000.dump"
    assert newest.judgement.findings == ()
    witness = newest.witness
    assert witness is not None
    assert witness.rows_by_table() == {
        "public.people": 200,
        "public.identities": 100,
        "public.person_identity_links": 1,
    }
    assert {table.name: table.columns for table in witness.tables}["public.people"] == "id, name, born"
    assert witness.sequences == {"public.identities_id_seq": "100, true"}
    assert witness.large_objects.count == 1
    assert "TABLE public people ovia" in witness.contents
    assert witness.archive_client == "16.14"

    shrunk = day(catalog, "2026-03-10").judgement
    assert shrunk is not None
    assert [(finding.check, finding.text[:56]) for finding in shrunk.findings] == [
        (Check.ROWS_KEPT, "table public.identities shrank from 100 to 10 rows (comp")
    ]
    lacking = day(catalog, "2026-03-05").judgement
    assert lacking is not None
    assert lacking.reasons == ("expected table person_identity_links is not in the dump",)
    assert lacking.intact


def test_an_altered_dump_has_both_verdicts(catalog: Catalog) -> None:
    altered = day(catalog, "2026-03-13")
    assert altered.verification is not None
    assert [judgement.good for judgement in altered.verification.judgements] == [True, False]
    assert altered.judgement is not None
    assert {finding.check for finding in altered.judgement.findings} == {Check.MATCHES_MANIFEST}
    assert not altered.judgement.intact
    assert altered.verification.witness is not None  # the last good reading
    assert altered.witness is None


def test_a_torn_verdict_was_replaced(catalog: Catalog) -> None:
    repaired = day(catalog, "2026-03-25")
    assert repaired.sidecar(".verified.json.unreadable").stat().st_size == 100
    assert repaired.state(NOW) is State.VERIFIED


def test_holds_and_acceptances_are_read(catalog: Catalog) -> None:
    ((held, hold),) = catalog.held(NOW)
    assert held == day(catalog, "2026-03-09")
    assert (hold.cause, hold.tables, hold.released_at) == (HoldCause.LOST_ROWS, {"public.identities": 100}, None)
    assert f"{hold.until:%Y-%m-%d}" == "2026-04-09"
    assert hold.reason.endswith("table public.identities shrank from 100 to 10 rows")
    other_source, released = day(catalog, "2026-03-11").hold, day(catalog, "2026-03-19").hold
    assert other_source is not None
    assert other_source.cause is HoldCause.OTHER_SOURCE
    assert released is not None
    assert released.released_at is not None
    assert f"{released.released_at:%Y-%m-%d}" == "2026-03-20"

    accepted = day(catalog, "2026-03-12").acceptance
    assert accepted is not None
    assert (accepted.by, accepted.system_identifier) == ("operator on backups-1", SECOND_SERVER)
    (found,) = accepted.found
    assert found.startswith(f"it is of another cluster: system identifier {SECOND_SERVER}, that of ")
    assert FIRST_SERVER in found


def test_each_weekly_backup_names_its_daily_one(catalog: Catalog) -> None:
    weeklies = catalog.backups(Tier.WEEKLY)
    assert len(weeklies) == 5
    for weekly in weeklies:
        assert weekly.promotion is not None
        assert weekly.promotion.promoted_from == weekly.path.name.replace("_weekly_", "_daily_")
        assert weekly.state(NOW) is State.VERIFIED
        assert weekly.system_identifier


def test_pruning_removes_what_it_announced_and_sweeps(own: Catalog) -> None:
    policy = Policy({Tier.DAILY: 7, Tier.WEEKLY: 4}, Weekday.SUNDAY, ZoneInfo("UTC"))
    said_before = [
        decision.candidate.key for decision in promote_and_prune.preview(own.backups(), policy, NOW).removals
    ]
    pruned = promote_and_prune.prune(own, policy, NOW)
    assert list(pruned.removed) == said_before
    assert len(said_before) == 22
    orphan = "ovia_daily_2026-03-03_030000.dump"
    assert sorted(pruned.swept) == sorted(
        [
            ".ovia_daily_2026-03-31_060000.dump.tmp",
            *(f"{orphan}{suffix}" for suffix in (".json", ".globals.sql", ".verified.json")),
        ]
    )


# ---- Drills


def test_each_drill_is_read_from_its_file(catalog: Catalog) -> None:
    folder = DrillFolder(catalog)
    drills = list(folder.newest_first())
    assert [(f"{each.started_at:%m-%d}", each.passed) for each in drills] == [
        ("03-31", True),
        ("03-29", True),
        ("03-22", True),
        ("03-17", True),
        ("03-15", False),
        ("03-08", True),
        ("03-01", True),
    ]
    for each in drills:
        assert {line.check for line in each.lines} == set(Check.at(Stage.DRILL))
        assert (folder.path / f"{each.filename}.md").read_text("utf-8").startswith("# ")
        assert each.backup_sha256 is not None
        assert each.manifest
    passed, failed = drills[0], drills[4]
    assert passed.rows == 301
    assert [(table.name, table.rows) for table in passed.tables] == [
        ("public.people", 200),
        ("public.identities", 100),
        ("public.person_identity_links", 1),
    ]
    assert passed.recovery_seconds is not None
    assert 0 < passed.recovery_seconds <= sum(passed.phases.values())
    assert passed.place == "throwaway cluster"
    assert passed.trouble is None
    (line,) = (line for line in failed.lines if line.result is Result.FAILED)
    assert line.check is Check.OWN_CHECK
    assert failed.trouble is not None
    assert "DRILL_CHECK_COMMAND ended with code 3" in failed.trouble.why

    drilled = day(catalog, "2026-03-29").drills
    assert drilled is not None
    assert [(record.passed, record.evidence) for record in drilled.drills] == [(True, f"{drills[1].filename}.json")]


def test_the_start_of_drills_and_a_killed_drill_are_read(own: Catalog) -> None:
    folder = DrillFolder(own)
    assert folder.since() is not None
    assert f"{folder.since():%Y-%m-%d %H:%M}" == "2026-03-01 03:00"
    # The drill was killed after it wrote its evidence, which says that it passed.
    assert folder.standing(timedelta(days=35), NOW).trouble is None
    for path in folder.path.glob("2026-03-31_*"):
        path.unlink()
    standing = folder.standing(timedelta(days=35), NOW)
    assert standing.trouble is not None
    assert standing.trouble.what == "the restore drill of ovia_daily_2026-03-31_030000.dump did not end"
    assert standing.trouble.why.startswith("it began 2026-03-31T05:00:00.")
    other = DrillFolder(Catalog(own.root, "Ovia test.2"))
    assert f"{other.since():%Y-%m-%d %H}" == "2026-03-01 04"


# ---- Restores

S = Step
FULL = (S.RESTORE, S.STOP, S.SWAP, S.MIGRATE, S.START, S.HEALTH)
#: A restore's beginning -> its mode, steps and outcome.
RESTORES: dict[str, tuple[Mode, tuple[Step, ...], JournalMark | None]] = {
    "2026-03-06 09:00": (Mode.SWAP, FULL, JournalMark.FINISHED),
    "2026-03-06 10:00": (Mode.UNDO, (S.STOP, S.SWAP, S.START, S.HEALTH), JournalMark.FINISHED),
    "2026-03-06 11:00": (Mode.NEW, (S.RESTORE,), JournalMark.FINISHED),
    "2026-03-09 09:00": (Mode.SWAP, FULL, JournalMark.PUT_BACK),
    "2026-03-17 05:00": (Mode.NEW, (S.RESTORE,), JournalMark.FINISHED),
    "2026-03-17 09:00": (Mode.DROP, (S.DRILL, S.DROP, S.RESTORE, S.NAME), JournalMark.FINISHED),
    "2026-03-17 15:00": (Mode.SWAP, (S.RESTORE, S.SWAP), JournalMark.GIVEN_UP),
    "2026-03-17 16:00": (Mode.NEW, (S.RESTORE, S.NAME), JournalMark.FINISHED),
    "2026-03-31 04:30": (Mode.SWAP, FULL, None),
}


def journals(root: Path) -> dict[str, Journal]:
    found = [Journal.read(path) for path in sorted((root / "restores").glob("*.journal"))]
    return {f"{journal.order.started_at:%Y-%m-%d %H:%M}": journal for journal in found}


def test_each_journal_is_read(root: Path) -> None:
    found = journals(root)
    assert {at: (j.order.mode, j.order.steps, j.ended) for at, j in found.items()} == RESTORES
    for at, journal in found.items():
        if journal.ended is JournalMark.FINISHED:
            assert all(map(journal.done, journal.order.steps)), at
    swap = found["2026-03-06 09:00"]
    assert swap.live
    assert swap.data(StopData).replicas == {"api": 2, "ingest": 1}
    assert isinstance(swap.made, int)
    assert swap.made == swap.data(SwapData).incoming_oid == found["2026-03-06 10:00"].order.live_oid
    assert found["2026-03-09 09:00"].putting_back


def test_a_record_equals_what_its_journal_says(catalog: Catalog) -> None:
    """If a process is killed before it writes the record, the next process writes it."""
    records = {f"{record.order.started_at:%Y-%m-%d %H:%M}": record for record in RestoreFolder(catalog).newest_first()}
    ended = {at: journal for at, journal in journals(catalog.root).items() if journal.ended}
    assert records == {at: record_of(journal) for at, journal in ended.items()}


def test_each_record_is_read(catalog: Catalog) -> None:
    folder = RestoreFolder(catalog)
    records = list(folder.newest_first())
    assert [(record.order.mode, record.outcome) for record in records] == [
        (Mode.NEW, "done"),
        (Mode.SWAP, "given up"),
        (Mode.DROP, "done"),
        (Mode.NEW, "done"),
        (Mode.SWAP, "put back"),
        (Mode.NEW, "done"),
        (Mode.UNDO, "done"),
        (Mode.SWAP, "done"),
    ]
    new_host, given_up, _, salvaged, _, _, undo, swap = records
    assert (swap.kept, swap.replicas, swap.sessions_cut) == ("ovia_before_20260306090000", {"api": 2, "ingest": 1}, 0)
    assert swap.seconds.keys() == {step.value for step in FULL}
    assert swap.swapped_at is not None
    assert f"{swap.swapped_at:%Y-%m-%d %H:%M}" == "2026-03-06 09:00"
    assert swap.interruption_seconds is not None
    assert swap.counters["tables"]["public.people"][0] == 200
    assert swap.proven is not None
    assert (swap.proven.rows, swap.proven.versions["copy"]) == (340, "16.14")
    assert undo.order.incoming == swap.kept
    assert folder.swap_that_kept(swap.kept) == swap
    assert new_host.order.new_host
    assert new_host.order.create_roles
    assert new_host.order.takes_name
    assert folder.went_live_on() == THIRD_SERVER
    assert given_up.order.system_identifier == SECOND_SERVER
    assert "is gone, and ovia was not restored" in given_up.error
    assert salvaged.order.even_if_damaged
    assert salvaged.order.becomes == "ovia_salvaged"
    assert salvaged.proven is not None
    assert salvaged.proven.lost != ()
    for record in records:
        assert (folder.path / f"{record.order.filename}.md").read_text("utf-8").startswith("# ")


def test_the_unfinished_restore_is_found(own: Catalog) -> None:
    folder = RestoreFolder(own)
    journal = folder.unfinished()
    assert journal is not None
    done = {step for step in journal.order.steps if journal.done(step)}
    assert done == {Step.RESTORE, Step.STOP}
    assert journal.order.auto_undo
    assert journal.order.services == {"api": None, "ingest": None}
    assert (journal.order.migrate, journal.order.jobs) == ("migrate", 2)
    assert journal.order.kept == "ovia_before_20260331043000"
    assert journal.proven is not None
    assert journal.proven.rows == 301
    assert not journal.live
    standing = folder.standing()
    assert standing.trouble is not None
    assert standing.trouble.why == "the step 'stop services' was done, and then its process ended"
    journal.write(JournalMark.PUT_BACK)
    assert folder.unfinished() is None
    assert Journal.read(journal.path).entries[-1].mark is JournalMark.PUT_BACK


def test_the_notice_of_a_drop_is_read(catalog: Catalog) -> None:
    told = RestoreFolder(catalog).announced("ovia_before_20260306100000")
    assert told is not None
    assert f"{told:%Y-%m-%d %H:%M}" == "2026-03-07 09:00"


def shown(catalog: Catalog) -> tuple[str, Order, Backup, datetime]:
    (path,) = (catalog.root / "restores").glob(".plan-*")
    plan = json.loads(path.read_text("utf-8"))
    order = parse_sidecar(Order, json.dumps(plan["order"]), path.name)
    return path.name.removeprefix(".plan-"), order, day(catalog, "2026-03-31"), utc("2026-03-31T04:00:01")


def test_a_plans_word_is_valid_once(own: Catalog) -> None:
    word, order, backup, at = shown(own)
    assert word == "ovia-20260331T040000Z"
    words = Words(own)
    other = order.model_copy(update={"mode": Mode.DROP})
    refusals: list[tuple[str, Callable[[], None]]] = [
        ("this is not what the plan ", lambda: words.redeem(word, other, backup, at)),
        ("a different one now", lambda: words.redeem(word, order, day(own, "2026-03-30"), at)),
        ("is too old", lambda: words.redeem(word, order, backup, at + LIFETIME)),
    ]
    for why, act in refusals:
        with pytest.raises(RestoreRefusedError, match=why):
            act()
    words.redeem(word, order, backup, at)
    with pytest.raises(RestoreRefusedError, match="is not the word of a pending plan"):
        words.redeem(word, order, backup, at)


# ---- The rest of the volume


@pytest.mark.parametrize(
    ("folder", "purpose"),
    [
        (".", "dumping ovia"),
        ("drills", "the restore drill of ovia_daily_2026-03-31_030000.dump"),
        ("restores", "the swap of ovia_daily_2026-03-31_030000.dump"),
    ],
)
def test_the_lock_holder_is_read_from_its_note(root: Path, folder: str, purpose: str) -> None:
    assert lock_holder(root / folder) is None
    with open(root / folder / ".lock", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        holder = lock_holder(root / folder)
    assert holder is not None
    assert holder.startswith(f"{purpose} (process ")
    assert " on backups-1, since 2026-03-31T0" in holder


def test_a_hand_over_that_is_under_way_is_finished(tmp_path: Path) -> None:
    root = unpack("handover", tmp_path / "handover")
    assert takeover_links.handover_began(root) == utc("2026-03-03T04:00:00")
    names = takeover_links.protected(root, Tier.DAILY)
    assert sorted(name[11:21] for name in names) == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert sorted(path.name[11:21] for path in (root / "daily").iterdir()) == ["2026-03-03", "2026-03-04"]
    owner = takeover.Owner(root.stat().st_uid, root.stat().st_gid)
    done = takeover.finish(root, owner, utc("2026-03-04T05:00:00"))
    assert done.came_back == tuple(f"daily/ovia_daily_{date}_030000.dump" for date in ("2026-03-01", "2026-03-02"))
    assert not (root / ".handover").exists()
    assert done.left_alone == ()


# ---- Texts


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_texts_are_as_expected(tmp_path: Path, moment: str) -> None:
    root, now = volume_at(moment, tmp_path)
    for command in commands_at(moment):
        assert said(root, command, now) == path_of(moment, command).read_text("utf-8"), command


def test_no_expected_text_is_missing() -> None:
    expected = {path_of(moment, command) for moment in MOMENTS for command in commands_at(moment)}
    assert set((HERE / "expected").rglob("*.txt")) == expected
    assert commands_at("as_it_is") == COMMANDS

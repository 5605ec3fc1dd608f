"""Which backups a remote lacks and which it keeps: properties of any history, and of any listing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from hypothesis import example, given
from hypothesis import strategies as st

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier, Weekday
from ovia_backup_dagster.offsite.copies import Copies
from ovia_backup_dagster.offsite.copy_plan import missing_copies
from ovia_backup_dagster.offsite.layout import MARKER, Listing, file_path, receipt_path, statement_path
from ovia_backup_dagster.offsite.receipt import CopiedFile, Marker, Receipt
from ovia_backup_dagster.offsite.remote_retention import plan_remote
from ovia_backup_dagster.retention.policy import Policy
from ovia_backup_dagster.signing.chain import Chain, Head, Known
from ovia_backup_dagster.signing.statement import SignedFile, Standing
from ovia_backup_dagster_tests.support import exhaustive
from ovia_backup_dagster_tests.support.factories import HOUR, NOW

GOOD = (Standing.VERIFIED, Standing.PROVEN)
MARK = Marker(id="1", database="ovia", at=NOW)
#: Few of the days' histories are enough to notice a change of the rules; in the exhaustive mode, many.
often = exhaustive.examples(25, 600)
SUFFIXES = ("", ".json", ".globals.sql", ".verified.json", ".drilled.json")


@dataclass(frozen=True)
class World:
    """A volume and a remote.

    Attributes:
        local: the archives on the volume.
        copies: what the remote has.
        policy: the remote's.
    """

    local: frozenset[BackupName]
    copies: Copies
    policy: Policy

    @property
    def missing(self) -> list[str]:
        return missing_copies(self.local, self.copies, self.policy, NOW)

    @property
    def removed(self) -> set[str]:
        decisions = plan_remote(self.copies.complete, self.policy, NOW)
        return {decision.archive for decision in decisions if not decision.keep}

    def copied(self) -> World:
        return replace(self, copies=with_copies(self.copies, self.missing))

    def pruned(self) -> World:
        gone = {path for archive in self.removed for path in self.copies.listing.files_of(archive)}
        return replace(self, copies=with_sizes(self.copies, without(self.copies.listing.sizes, gone)))


def without(sizes: Mapping[str, int], gone: Iterable[str]) -> dict[str, int]:
    return {path: size for path, size in sizes.items() if path not in set(gone)}


def with_sizes(copies: Copies, sizes: Mapping[str, int]) -> Copies:
    """The same remote with this listing: receipts that are gone do not count."""
    listing = Listing.of(sizes)
    kept = {archive: each for archive, each in copies.receipts.items() if archive in listing.receipts}
    return replace(copies, listing=listing, receipts=kept)


def with_copies(copies: Copies, archives: Iterable[str]) -> Copies:
    """The same remote after these archives were sent, with their sidecars."""
    sizes, receipts = dict(copies.listing.sizes), dict(copies.receipts)
    for archive in archives:
        known = copies.chain.known[archive]
        files = {suffix: copied(archive, suffix, file) for suffix, file in known.files.items()}
        receipt = Receipt(remote=MARK.id, backup=archive, sequence=known.sequence, at=NOW, files=files)
        receipts[archive] = [*receipts.get(archive, ()), receipt]
        place = receipt_path(archive, known.sequence)
        sizes |= {place: 500, f"{place}.sig": 300, **{file.path: file.size_bytes for file in files.values()}}
    return replace(copies, listing=Listing.of(sizes), receipts=receipts)


def copied(archive: str, suffix: str, file: SignedFile) -> CopiedFile:
    path = file_path(archive, suffix, file.sha256)
    return CopiedFile(path=path, size_bytes=file.size_bytes + 216, sha256=file.sha256, md5="0")


def stated(text: str) -> SignedFile:
    return SignedFile(size_bytes=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())


@st.composite
def worlds(draw: st.DrawFn) -> World:
    counts = st.integers(1, 4)
    keep = {Tier.DAILY: draw(counts), Tier.WEEKLY: draw(counts), Tier.MONTHLY: draw(st.integers(0, 3))}
    policy = Policy(keep, draw(st.sampled_from(Weekday)), ZoneInfo("Europe/Berlin"))
    known: dict[str, Known] = {}
    local, remote, older = set(), [], []
    hours = draw(st.lists(st.integers(-30, 24 * 60), max_size=25, unique=True))
    for sequence, hour in enumerate(sorted(hours, reverse=True), 1):
        for tier in draw(st.sets(st.sampled_from([Tier.DAILY, Tier.WEEKLY, Tier.MONTHLY]), min_size=1, max_size=2)):
            name = BackupName("ovia", tier, NOW - hour * HOUR)
            until = draw(st.sampled_from((None, None, NOW + HOUR, NOW - HOUR)))
            # An archive of several tiers is one file.
            files = {suffix: stated(f"{hour}{suffix}") for suffix in SUFFIXES}
            known[name.filename] = Known(sequence, files, draw(st.sampled_from(Standing)), until)
            if draw(st.booleans()) and known[name.filename].standing in GOOD:
                local.add(name)
            match draw(st.integers(0, 3)):
                case 1:
                    remote.append(name.filename)
                case 2:
                    older.append(name.filename)
    chain = Chain("ovia", "key", head=Head(len(hours)), known=known)
    copies = with_copies(Copies(MARK, Listing.of({MARKER: 100}), chain), [*remote, *older])
    later = {
        archive: replace(each, files={**each.files, ".drilled.json": stated("a later drill")})
        for archive, each in known.items()
        if archive in older
    }
    copies = replace(copies, chain=replace(chain, known={**known, **later}))
    paths = sorted(copies.listing.sizes)
    damaged = draw(st.sets(st.sampled_from(paths), max_size=3)) - {MARKER}
    sizes = {path: size - (path in damaged) for path, size in copies.listing.sizes.items()}
    lost = draw(st.sets(st.sampled_from(paths), max_size=3)) - {MARKER}
    return World(frozenset(local), with_sizes(copies, without(sizes, lost)), policy)


@often
@given(worlds())
def test_copy_and_prune_reach_a_fixed_point(world: World) -> None:
    once = world.copied()
    assert not once.removed & set(world.missing), "it was sent, and would be removed at once"
    assert once.missing == []
    pruned = once.pruned()
    assert (pruned.missing, pruned.removed) == ([], set())


@often
@given(worlds())
def test_the_newest_good_ones_and_the_held_stay(world: World) -> None:
    complete = [(name, known) for name, known in world.copies.complete if name.started_at <= NOW]
    stay = {name.filename for name, known in complete if known.held_until and known.held_until > NOW}
    for standings in (GOOD, (Standing.PROVEN,)):
        times = [name.started_at for name, known in complete if known.standing in standings]
        newest = [each.filename for each, known in complete if known.standing in standings][:1] if times else []
        stay |= set(newest)
    assert not stay & world.removed
    left = {name.filename for name, _ in world.pruned().copies.complete}
    assert left == {name.filename for name, _ in world.copies.complete} - world.removed


@often
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_changes_nothing(world: World, random: object) -> None:
    def shuffled(items: Iterable[object]) -> list:  # type: ignore[type-arg]
        found = list(items)
        random.shuffle(found)  # type: ignore[attr-defined]
        return found

    sizes = dict(shuffled(world.copies.listing.sizes.items()))
    other = replace(world.copies, listing=Listing.of(sizes), receipts=dict(shuffled(world.copies.receipts.items())))
    assert missing_copies(shuffled(world.local), other, world.policy, NOW) == world.missing
    assert plan_remote(shuffled(other.complete), world.policy, NOW) == plan_remote(
        world.copies.complete, world.policy, NOW
    )


@often
@given(worlds())
def test_there_is_one_decision_for_each_complete_copy(world: World) -> None:
    decisions = [decision.archive for decision in plan_remote(world.copies.complete, world.policy, NOW)]
    assert decisions == [name.filename for name, _ in world.copies.complete]
    assert len(decisions) == len(set(decisions))
    assert all(decision in world.copies.listing.receipts for decision in decisions), "of what is not listed"


@often
@given(worlds())
def test_one_archive_of_several_tiers_is_sent_once(world: World) -> None:
    sent = [BackupName.parse(archive) for archive in world.missing]
    new = [name for name in sent if name and name.filename not in world.copies.receipts]
    assert len({name.started_at for name in new}) == len(new)


TODAY = "ovia_daily_2026-06-14_120000.dump"
_words = (
    "statements",
    "backups",
    "canary",
    "ovia_daily_2026-06-14_120000.dump",
    "..",
    ".",
    "",
    "receipt-",
    ".sig",
    " ",
)
_pieces = st.one_of(
    st.sampled_from((*_words, "00000005", ".json", ".age", "/", "9" * 30, "٠٠٠٠٠٠٠٥", "\n", "\x00", MARKER)),
    st.text(max_size=4),
    st.integers(0, 10**9).map(str),
)
paths = st.one_of(
    st.lists(_pieces, max_size=7).map("".join),
    st.lists(_pieces, max_size=5).map("/".join),
    st.integers(1, 40).map(statement_path),
    st.integers(1, 40).map(lambda number: f"{statement_path(number)}.sig"),
    st.integers(1, 40).map(lambda number: receipt_path(TODAY, number)),
)
listings = st.dictionaries(paths, st.integers(-1, 10**15), max_size=30)


@often
@given(listings)
@example({"statements/" + "9" * 1_000_000 + ".json": 1, "statements/" + "9" * 1_000_000 + ".json.sig": 1})
@example({"statements/٠٠٠٠٠٠٠٥.json": 1, "statements/٠٠٠٠٠٠٠٥.json.sig": 1})
@example({"statements/0000000005.json": 1, "statements/0000000005.json.sig": 1})
@example({"statements/00000000.json": 1, "statements/00000000.json.sig": 1})
def test_any_paths_make_a_listing(sizes: dict[str, int]) -> None:
    listing = Listing.of(sizes)
    if listing.statement:
        path = statement_path(listing.statement)
        assert {path, f"{path}.sig"} <= sizes.keys()
    for archive, sequences in listing.receipts.items():
        assert list(sequences) == sorted(set(sequences))
        assert all({path, f"{path}.sig"} <= sizes.keys() for path in (receipt_path(archive, n) for n in sequences))
    ours = {path for archive in listing.receipts for path in listing.files_of(archive)}
    assert not ours & set(listing.strangers)
    assert all(path.count("/") == 2 and ".." not in path.split("/") for path in ours)


@often
@given(worlds(), listings)
def test_strangers_are_never_counted_or_removed(world: World, more: dict[str, int]) -> None:
    before = world.copies.listing.sizes
    strangers = {path: 7 for path in more if path in Listing.of(more).strangers and path not in before}
    other = replace(world, copies=with_sizes(world.copies, {**before, **strangers}))
    assert (other.missing, other.removed) == (world.missing, world.removed)
    assert strangers.keys() <= other.pruned().copies.listing.sizes.keys()

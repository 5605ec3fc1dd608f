"""What an intruder who can write to a remote achieves: a typed error, or nothing.

The reader is another machine, with the public key and the identity alone; PATH there has no client program of
PostgreSQL.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ovia_backup_dagster.core.errors import (
    BackupError,
    BackupNotFoundError,
    CopyDamagedError,
    NotFreshError,
    RemoteForeignError,
    RemoteMissingError,
    RemoteStalledError,
    SettingsError,
    StatementLogError,
)
from ovia_backup_dagster.offsite.layout import MARKER, statement_path
from ovia_backup_dagster.offsite.transfer import fetch
from ovia_backup_dagster_tests.offsite.intruder import (
    CONTENTS,
    OTHER_KEY,
    TODAY,
    Scene,
    a_far_number,
    a_folder_as_marker,
    a_pipe_as_marker,
    a_replaced_verdict,
    another_databases_remote,
    another_dump_for_another_key,
    another_dump_for_our_key,
    another_history,
    copied_over_another,
    cut_at_its_end,
    flipped,
    for_another_purpose,
    from_the_future,
    grown,
    linked_outside,
    marker_of,
    old_objects_under_a_new_name,
    other_roles,
    random_bytes_and_a_verdict,
    receipt_of,
    receipt_of_another_backup,
    signature_of,
    signed,
    strange_names,
    swapped,
    without,
)
from ovia_backup_dagster_tests.offsite.site import Clock
from ovia_backup_dagster_tests.support.exhaustive import thinned
from ovia_backup_dagster_tests.support.factories import DAY, NOW
from ovia_backup_dagster_tests.support.signed_logs import edit


@dataclass(frozen=True)
class Attack:
    """An attack, and the error in which a fetch of ``wanted`` ends; ``None`` if it gives the right backup.

    Attributes:
        seen: whether the reader has read the log before.
    """

    name: str
    act: Callable[[Scene], object]
    error: type[BackupError] | None
    words: str = ""
    wanted: str = "today"
    seen: bool = False


DAMAGED, LOG = CopyDamagedError, StatementLogError
DAILY = (
    Attack("random bytes and a verdict", random_bytes_and_a_verdict, DAMAGED, "verified.json on nas is"),
    Attack("another dump for our key", another_dump_for_our_key, DAMAGED, "is not what was signed"),
    Attack("an archive cut off", lambda s: os.truncate(s.path(s.today), 70_000), DAMAGED, "cut off there"),
    Attack("a forged receipt", lambda s: receipt_of(s, OTHER_KEY), DAMAGED, "made with another key"),
    Attack("an edited statement", lambda s: edit(s.statement(3), backup=s.yesterday), LOG, "was changed"),
    Attack("a log cut off, seen before", cut_at_its_end, LOG, "was cut off", seen=True),
    Attack("strange names", strange_names, None),
    Attack("a statement of a far number", a_far_number(statement_path), LOG, "00000005.json on remote nas"),
)
FURTHER = (
    Attack("a log cut off, not seen", cut_at_its_end, None, wanted="latest"),
    Attack("another database's remote", another_databases_remote, LOG, "is not of database ovia"),
    Attack("other roles", other_roles, DAMAGED, "globals.sql on nas is not what was signed"),
    Attack("an archive grown by 1 GB", lambda s: grown(s.path(s.today)), DAMAGED, "cut off there"),
    Attack("a receipt of another remote", lambda s: receipt_of(s, remote="0123456789abcdef"), DAMAGED, "and this is"),
    Attack("a statement's other signature", lambda s: signed(s.statement(2), OTHER_KEY), LOG, "statement 2 does not"),
    Attack("another history, seen before", another_history, LOG, "was rewritten", seen=True),
    Attack("a statement of the future", from_the_future, LOG, "from the future"),
    Attack("another dump for another key", another_dump_for_another_key, SettingsError, "or was replaced"),
    Attack("old objects under a new name", old_objects_under_a_new_name, DAMAGED, "is not what was signed"),
    Attack("a replaced verdict", a_replaced_verdict, DAMAGED, "verified.json on nas is not what was signed"),
    Attack("one bit of an archive", lambda s: flipped(s.path(s.today)), DAMAGED, "cannot be decrypted"),
    Attack("one bit of a manifest", lambda s: flipped(s.path(s.today, ".json")), DAMAGED, "cannot be decrypted"),
    Attack("two archives swapped", lambda s: swapped(s.path(s.today), s.path(s.yesterday)), DAMAGED, "not what was"),
    Attack("no archive", lambda s: without(s.path(s.today)), DAMAGED, "was deleted or cut off"),
    Attack("no manifest", lambda s: without(s.path(s.today, ".json")), DAMAGED, "was deleted or cut off"),
    Attack("no roles", lambda s: without(s.path(s.today, ".globals.sql")), DAMAGED, "was deleted or cut off"),
    Attack("no verdict", lambda s: without(s.path(s.today, ".verified.json")), None),
    Attack("an archive linked outside", linked_outside, DAMAGED, "was deleted or cut off"),
    Attack("no receipt", lambda s: without(s.receipt(s.today)), BackupNotFoundError, "the newest is"),
    Attack("no receipt, and the latest", lambda s: without(s.receipt(s.today)), None, wanted="latest"),
    Attack(
        "no receipt's signature",
        lambda s: without(signature_of(s.receipt(s.today))),
        BackupNotFoundError,
        "the newest is",
    ),
    Attack("a receipt of another backup", receipt_of_another_backup, DAMAGED, "it is of"),
    Attack("a receipt that names nothing", lambda s: receipt_of(s, files={}), DAMAGED, "do not name its archive"),
    Attack("a receipt of a far number", a_far_number(lambda n: f"backups/{TODAY}/receipt-{n}.json"), None),
    Attack("a huge receipt", lambda s: grown(s.receipt(s.today)), DAMAGED, "too large"),
    Attack("no statement 2", lambda s: without(s.statement(2)), LOG, "00000002.json on remote nas"),
    Attack("no signature of statement 2", lambda s: without(signature_of(s.statement(2))), LOG, "it is missing"),
    Attack("no signature of the last", lambda s: without(signature_of(s.statement(4))), DAMAGED, "not made"),
    Attack("a huge statement", lambda s: grown(s.statement(3)), LOG, "larger than"),
    Attack("a statement over another", copied_over_another, LOG, "statement 4"),
    Attack("a statement signed by another key", lambda s: signed(s.statement(4), OTHER_KEY), LOG, "another key"),
    Attack("a signature for another purpose", for_another_purpose, LOG, "for another purpose"),
    Attack("marker of another database", lambda s: marker_of(s, database="sales"), RemoteForeignError, "of database"),
    Attack("marker by another key", lambda s: marker_of(s, OTHER_KEY), RemoteForeignError, "another key"),
    Attack("marker of another id", lambda s: marker_of(s, id="0123456789abcdef"), DAMAGED, "on remote"),
    Attack(
        "marker without a signature",
        lambda s: without(signature_of(s.site.folder / MARKER)),
        RemoteForeignError,
        "not an SSH",
    ),
    Attack("no marker", lambda s: without(s.site.folder / MARKER), RemoteMissingError, "has no marker"),
    Attack("a folder as marker", a_folder_as_marker, RemoteMissingError, "has no marker"),
    Attack("a huge marker", lambda s: grown(s.site.folder / MARKER), DAMAGED, "larger than"),
    Attack("another history, not seen", another_history, DAMAGED, "is not what was signed", wanted="latest"),
)


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.dump")) + sorted(path.name for path in folder.glob(".*"))


@pytest.mark.parametrize("attack", thinned([pytest.param(a, id=a.name) for a in (*DAILY, *FURTHER)], daily=len(DAILY)))
def test_a_reader_gets_the_right_backup_or_an_error(attack: Attack, scene: Scene) -> None:
    if attack.seen:
        scene.seen()
    attack.act(scene)
    if attack.error is None:
        got = scene.fetch(attack.wanted)
        assert got.read_bytes() in CONTENTS.values()
        assert attack.wanted == "latest" or got.read_bytes() == CONTENTS[attack.wanted]
        return
    with pytest.raises(attack.error, match=attack.words) as refused:
        scene.fetch(attack.wanted)
    assert refused.value.fix
    assert left_behind(scene.reader / "fetched") == []


# ------------------------------------------------------------------------------------------------------ other readers


@pytest.mark.exhaustive
def test_a_cut_log_is_refused_once_it_has_expired(scene: Scene) -> None:
    """A new machine cannot see that the end is missing; but a host that still signs would have written more."""
    cut_at_its_end(scene)
    Clock.at = NOW + 4 * DAY
    with pytest.raises(NotFreshError, match="was cut off to hide later backups"):
        scene.fetch("latest")
    assert scene.fetch("latest", allow_expired=True).read_bytes() == CONTENTS["yesterday"]


@pytest.mark.exhaustive
def test_an_older_state_of_a_remote_is_noticed(scene: Scene) -> None:
    scene.seen()
    shutil.rmtree(scene.site.folder)
    shutil.copytree(scene.before, scene.site.folder)
    with pytest.raises(StatementLogError, match="has 2 statements, and this machine has read 4"):
        scene.fetch("latest")


@pytest.mark.exhaustive
def test_without_its_newest_copy_latest_says_so(scene: Scene) -> None:
    without(scene.receipt(scene.today))
    assert scene.fetch("latest").read_bytes() == CONTENTS["yesterday"]
    assert f"{scene.today} is newer, and has no complete copy on nas" in scene.site.said[0]


def test_an_object_that_grows_is_not_read_whole(scene: Scene) -> None:
    """It grows after it was listed."""
    grown(scene.path(scene.today))
    stated = scene.site.log.chain().known[scene.today].files[""]
    scene.reader.mkdir()
    path, target = scene.site.object(scene.today), scene.reader / "got"
    with pytest.raises(CopyDamagedError, match="is larger than"):
        fetch(scene.site.remote, path, scene.site.age, target, stated, log=scene.site.said.append)
    assert left_behind(scene.reader) == []


@pytest.mark.exhaustive
def test_a_pipe_as_marker_does_not_hang_forever(scene: Scene) -> None:
    program = replace(scene.site.remote.program, stall_seconds=2)
    scene = replace(scene, site=replace(scene.site, remote=replace(scene.site.remote, program=program)))
    a_pipe_as_marker(scene)
    with pytest.raises(RemoteStalledError, match="has not answered for 2 s"):
        scene.fetch()

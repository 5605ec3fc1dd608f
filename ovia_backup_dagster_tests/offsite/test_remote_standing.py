"""What this host says of a remote without asking it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ovia_backup_dagster.core.naming import BackupName
from ovia_backup_dagster.core.tiers import Tier
from ovia_backup_dagster.health.condition import ConditionLevel, Question, about_copies
from ovia_backup_dagster.offsite.remote_record import RemoteRecord, RemoteRecords
from ovia_backup_dagster.offsite.remote_standing import judge_remote
from ovia_backup_dagster_tests.support.factories import DAY, HOUR, NOW, make_catalog

MOST = timedelta(hours=50)


def copies(*ages: timedelta) -> tuple[str, ...]:
    return tuple(BackupName("ovia", Tier.DAILY, NOW - age).filename for age in ages)


def test_fresh_and_whole_copies_are_no_trouble() -> None:
    found = judge_remote("nas", RemoteRecord(copies=copies(DAY, 9 * DAY), verified_at=NOW - 7 * DAY), MOST, NOW)
    assert (found.trouble, found.text) == (None, "2 copies on nas, the newest 1 d old")
    # At the limit, it is still fresh.
    assert judge_remote("nas", RemoteRecord(copies=copies(MOST)), MOST, NOW).trouble is None


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (RemoteRecord(), "there is no copy on remote nas: none was made yet"),
        (RemoteRecord(copies=copies(MOST + HOUR)), "the newest copy on remote nas is too old: it is 2 d 3 h old"),
        (RemoteRecord(copies=copies(DAY), failure="no route"), "nothing can be copied to remote nas: no route"),
        (RemoteRecord(copies=copies(DAY), findings=("a is gone", "b")), "damaged or gone: a is gone and 1 more"),
        (RemoteRecord(copies=copies(DAY), verified_at=NOW - 17 * DAY), "were not verified for 17 d"),
    ],
)
def test_each_trouble_names_the_remote_and_the_command(record: RemoteRecord, said: str) -> None:
    trouble = judge_remote("nas", record, MOST, NOW).trouble
    assert trouble is not None
    assert said in trouble.account
    assert "ovia-backup offsite" in trouble.fix
    assert "nas" in trouble.fix


def test_a_damaged_copy_is_said_before_a_failed_run() -> None:
    found = judge_remote("nas", RemoteRecord(failure="no route", findings=("a is gone",)), MOST, NOW)
    assert "damaged or gone" in found.text


def test_one_answer_covers_every_remote() -> None:
    good = judge_remote("good", RemoteRecord(copies=copies(DAY)), MOST, NOW)
    bad = [judge_remote(name, RemoteRecord(), MOST, NOW) for name in ("one", "two")]
    assert about_copies([good]).text == "1 copy on good, the newest 1 d old"
    answer = about_copies([good, *bad])
    assert (answer.question, answer.level) == (Question.COPIES, ConditionLevel.WARNING)
    assert "one" in answer.text
    assert "two" in answer.text
    assert answer.fix.count("ovia-backup offsite copy") == 2


def test_a_record_is_kept_and_a_strange_file_replaced(tmp_path: Path) -> None:
    records = RemoteRecords(make_catalog(tmp_path))
    assert records.read("nas") == RemoteRecord()
    records.update("nas", copies=copies(DAY))
    assert records.update("nas", failure="no route").copies == copies(DAY)
    [file] = (tmp_path / "offsite").glob("*/nas.json")
    file.write_text("{")
    assert records.update("nas", failure="").copies == ()

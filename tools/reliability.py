"""Writes docs/reliability.md from the outcomes of the fault tests: ``make test-faults``.

It refuses if a test failed or did not run in full: the page lists only faults that were survived.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ovia_backup_dagster import __version__
from ovia_backup_dagster.demo import embedded_server
from ovia_backup_dagster.postgres.programs import Programs
from tools.pages import DOCS

PAGE = DOCS / "reliability.md"
FAMILIES = {
    "test_killed": "Killed processes",
    "test_disk": "The volume",
    "test_server": "The server",
    "test_concurrency": "Several at once",
    "test_dagster": "Dagster",
    "test_months": "Months",
}
INTRODUCTION = """\
# Reliability

Faults that tests provoke, and their outcomes. `make test-faults` provokes them all and writes this page; a fault that
is not survived fails the run, and leaves the page unchanged. `make test` does a few rounds of each.

After every fault, a test checks the same three claims:

1. **A reader never sees a broken backup.** Another process lists the volume all the time, before, during and after the
   fault, and reads each backup that it finds: it has a manifest, and is, by size and SHA-256, what that says.
2. **The newest verified backup is there**: the same bytes, the same modification time, the same verdict.
3. **The next run recovers by itself.** Dump, verify, promote and prune succeed with nothing done by hand, except to
   bring back what the fault took away (a server is started, a disk mounted); what the fault left is swept; the lock
   is free.

## What is not guaranteed

* **Rot after the verdict.** A verdict is valid while size and modification time are unchanged. A disk that alters
  a file later, and keeps both, is found by the next `ovia-backup verify` of that backup, not before.
* **A disk that lies about fsync.** The program believes the disk. The tests cut the power in the kernel, so they do not
  cover a drive's own cache.
* **A volume that is not mounted when the run begins.** `BACKUP_DIR` is created when it is missing, so a run may make
  its backup on the disk under the mount point. One that is unmounted in the middle is noticed. Mount the volume so that
  its absence is an error (in a container, as a volume; on a host, `chattr +i` on the empty mount point).
* **A server that hangs** for less than `BACKUP_STALL_MINUTES`, without breaking its connections. Until then the dump
  waits for it and holds the lock; then the dump is ended, and the error says what it was doing last. The alert is sent
  in any case.
* **All of Dagster killed at once**, as in a power cut. Its default run launcher does not check whether a run's process
  lives: the run counts as running until `max_runtime_seconds` has passed, and later launches wait. Terminate it in the
  UI, or use `ovia-backup` meanwhile; the alert is sent when the newest dump is too old.
* **The one volume.** If it is removed, or its disk fails, all backups on it are lost, unless they are copied to
  [remotes](offsite.md).
* **What was written since the last dump**, unless WAL is received: see [Point-in-time recovery](pitr.md).
* **NFS and other network filesystems** were not tested.
"""


def page(folder: Path) -> str:
    """The page, from the outcomes in ``folder``.

    Raises:
        SystemExit: a test failed, or the outcomes are not of a full run.
    """
    outcomes = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    failed = [outcome["test"] for outcome in outcomes if outcome["outcome"] not in ("teardown", "skipped")]
    if failed:
        sys.exit(f"not survived, so nothing is written: {', '.join(failed)}")
    if not outcomes or not all(outcome["full"] for outcome in outcomes):
        sys.exit("these are not the outcomes of a full run: make test-faults")
    lines = [INTRODUCTION, _facts(outcomes)]
    for module, title in FAMILIES.items():
        of_it = [outcome for outcome in outcomes if f"/{module}.py" in outcome["test"]]
        if not of_it:
            sys.exit(f"{module}.py was not run")
        lines += [
            "",
            f"## {title}",
            "",
            "| fault | how it is provoked | times | where it hit | a reader | the next run |",
        ]
        lines += ["|---|---|---|---|---|---|"]
        lines += [_row(entry) for outcome in of_it if outcome["outcome"] != "skipped" for entry in outcome["entries"]]
        lines += [_not_tried(outcome) for outcome in of_it if outcome["outcome"] == "skipped"]
    return "\n".join(lines) + "\n"


def _facts(outcomes: list[dict[str, Any]]) -> str:
    seeds = ", ".join(sorted({outcome["seed"] for outcome in outcomes}))
    versions = (
        f"ovia-backup-dagster {__version__}, PostgreSQL {Programs(embedded_server.bin_dir()).version('pg_dump')}, "
        f"Dagster {version('dagster')}, Python {platform.python_version()}, Linux {platform.release().split('-')[0]}"
    )
    return (
        f"## What was tried\n\nOn {datetime.now(UTC):%Y-%m-%d}, with {versions}.\nThe random moments are those of "
        f"`make test-faults FAULTS_SEED={seeds}`; the machine's own timing adds to them."
    )


def _row(entry: dict[str, Any]) -> str:
    cells = (entry[name] for name in ("fault", "how", "times", "where", "saw", "then"))
    return (
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell.replace("|", "\\|") for cell in cells) + " |"
    )


def _not_tried(outcome: dict[str, Any]) -> str:
    name = outcome["test"].rpartition("::test_")[2].replace("_", " ")
    return f"| {name} | not on this machine: {outcome['reason']} | 0 | | | |"


if __name__ == "__main__":
    PAGE.write_text(page(Path(os.environ["FAULTS_RECORD"])), "utf-8")

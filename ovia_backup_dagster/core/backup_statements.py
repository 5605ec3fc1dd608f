"""Writes statements about a finished backup, each in its sidecar: verdicts, drills, holds, acceptances.

The archive and its manifest never change. Higher layers decide what to state, and why. ``statement_coverage`` defines
what a statement covers, ``verdict`` its content.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.catalog import Catalog
from ovia_backup_dagster.core.files import as_volume_error, sync_folder
from ovia_backup_dagster.core.manifest import Sidecar
from ovia_backup_dagster.core.sidecars import ACCEPTED, DRILLED, HELD, UNREADABLE, VERIFIED, SidecarKind
from ovia_backup_dagster.core.verdict import Acceptance, DrillRecord, Drills, Hold, Judgement, Verification, Witness


def record_judgement(catalog: Catalog, backup: Backup, judgement: Judgement, witness: Witness | None) -> Backup:
    """Append a judgement to the backup's verified sidecar; returns the backup in its new state.

    If this reading found damage, the last good reading stays: it records what the archive held.
    """
    catalog.ledger.require_key()
    known = backup.verification
    if known is None:
        with as_volume_error(f"cannot set aside {backup.sidecar(VERIFIED)}"), contextlib.suppress(FileNotFoundError):
            # Keep even an unreadable verdict, under another name.
            os.rename(backup.sidecar(VERIFIED), backup.sidecar(UNREADABLE))
    verification = Verification(
        judgements=(*(known.judgements if known else ()), judgement),
        witness=witness or (known.witness if known else None),
    )
    with as_volume_error(f"cannot write the verdict on {backup}"):
        _write(catalog, backup, VERIFIED, verification)
    return catalog.refresh(backup)


def record_drill(catalog: Catalog, backup: Backup, record: DrillRecord, folder: Path) -> Backup:
    """Append a drill to the backup's drilled sidecar; returns the backup in its new state.

    It does not take the volume's lock, which a dump may hold for hours: only one process drills at a time, and its
    ``reading`` lock protects the backup from removal. In ``folder``, no sweep removes the unfinished sidecar.
    """
    if not catalog.ledger.can_record:
        return catalog.refresh(backup)  # its evidence is in the drills' folder
    known = catalog.refresh(backup).drills
    drills = Drills(drills=(*(known.drills if known else ()), record))
    with as_volume_error(f"cannot write the outcome of the drill of {backup}"):
        _write(catalog, backup, DRILLED, drills, folder)
    return catalog.refresh(backup)


def record_hold(catalog: Catalog, backup: Backup, hold: Hold) -> None:
    """Write a hold, which keeps a backup regardless of the counts; with ``released_at``, the hold has ended."""
    covered = backup.unit.covered if backup.unit else None
    with as_volume_error(f"cannot write the hold on {backup}"):
        _write(catalog, backup, HELD, hold.model_copy(update={"covered": covered}))


def record_acceptance(catalog: Catalog, backup: Backup, acceptance: Acceptance) -> Backup:
    """Record that a backup is intentionally of another source; returns the backup in its new state."""
    with as_volume_error(f"cannot write the acceptance of {backup}"):
        _write(catalog, backup, ACCEPTED, acceptance)
    return catalog.refresh(backup)


def _write(
    catalog: Catalog, backup: Backup, kind: SidecarKind[Any], statement: Sidecar, folder: Path | None = None
) -> None:
    """Write a sidecar, and report it to the ledger: until then it does not count."""
    catalog.ledger.require_key()
    content = statement.to_json().encode()
    catalog.write(backup.sidecar(kind), content, folder)
    sync_folder(backup.path.parent)
    catalog.ledger.wrote(backup.path.name, kind.suffix, content)

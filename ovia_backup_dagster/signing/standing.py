"""What a new sidecar says about a backup's standing and hold, for readers who have only the log. Pure."""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from ovia_backup_dagster.core.sidecars import DRILLED, HELD, VERIFIED
from ovia_backup_dagster.core.verdict import Drills, Hold, Verification
from ovia_backup_dagster.signing.chain import Known
from ovia_backup_dagster.signing.statement import Standing


def with_sidecar(known: Known, suffix: str, content: bytes) -> Known:
    """What is known of a backup once this process has written a sidecar of it.

    The sidecar was written by this version of the program. Another kind, or one that cannot be read, changes nothing.
    """
    try:
        if suffix == VERIFIED.suffix:
            good = Verification.model_validate_json(content).judgements[-1].good
            proven = known.standing is Standing.PROVEN
            return replace(known, standing=(Standing.PROVEN if proven else Standing.VERIFIED) if good else Standing.BAD)
        if suffix == DRILLED.suffix and known.standing is not Standing.BAD:
            passed = Drills.model_validate_json(content).drills[-1].passed
            return replace(known, standing=Standing.PROVEN if passed else Standing.VERIFIED)
        if suffix == HELD.suffix:
            hold = Hold.model_validate_json(content)
            return replace(known, held_until=None if hold.released_at else hold.until)
    except ValidationError:
        pass
    return known

"""The body of the loop of the old ``backup.sh``, after its runbook: it shares a volume with our dumps for a day."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path

#: It dumps to the final name, as root, with root's umask; keeps a fixed count of each tier; knows no sidecars.
SCRIPT = """
set -euo pipefail
umask 022
stamp=$(date -u -d "$AT" +%Y-%m-%d_%H%M%S)
mkdir -p "$BACKUP_DIR/daily" "$BACKUP_DIR/weekly"
daily="$BACKUP_DIR/daily/${POSTGRES_DB}_daily_$stamp.dump"
$DUMP > "$daily"
touch -d "$AT" "$daily"
if [ "$(date -u -d "$AT" +%u)" = 7 ]; then
    cp -p "$daily" "$BACKUP_DIR/weekly/${POSTGRES_DB}_weekly_$stamp.dump"
fi
ls -1t "$BACKUP_DIR"/daily/*.dump | tail -n +$((DAILY_KEEP + 1)) | xargs -r rm -f
(ls -1t "$BACKUP_DIR"/weekly/*.dump 2>/dev/null || true) | tail -n +$((WEEKLY_KEEP + 1)) | xargs -r rm -f
"""


def old_script(
    volume: Path,
    at: datetime,
    *,
    dump: str = "echo PGDMP by the old script",
    database: str = "ovia",
    daily_keep: int = 7,
    weekly_keep: int = 4,
    **environment: str,
) -> None:
    """Run one round of the script at ``at`` (UTC), without the sleep."""
    variables = {
        "AT": at.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "BACKUP_DIR": str(volume),
        "POSTGRES_DB": database,
        "DUMP": dump,
        "DAILY_KEEP": str(daily_keep),
        "WEEKLY_KEEP": str(weekly_keep),
    }
    subprocess.run(
        ["bash", "-c", SCRIPT], env={"PATH": os.environ["PATH"], **variables, **environment}, check=True, timeout=60
    )

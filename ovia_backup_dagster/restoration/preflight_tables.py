"""Checks early, before hours of restoring, that chosen tables can be copied into the live database.

``preflight`` finds all other obstacles; ``table_copy`` copies.
"""

from __future__ import annotations

import re

from ovia_backup_dagster.core.backup import Backup
from ovia_backup_dagster.core.errors import RestoreRefusedError
from ovia_backup_dagster.postgres import archive as archives
from ovia_backup_dagster.postgres.quoting import sql_identifier
from ovia_backup_dagster.postgres.session import connect
from ovia_backup_dagster.restoration.preflight import Preflight
from ovia_backup_dagster.restoration.restore_order import Order
from ovia_backup_dagster.restoration.swap import DatabaseState
from ovia_backup_dagster.restoration.table_copy import no_table, parts_of

_KINDS = ("TABLE ", "MATERIALIZED VIEW ")
_MAY_CREATE = "SELECT current_user AS role, has_database_privilege(current_database(), 'CREATE') AS may"


def check_tables(found: Preflight, order: Order, backup: Backup, live: DatabaseState) -> None:
    """Whether the backup has the tables, and the role may create a schema for them in the live database."""
    if not order.tables:
        return
    if not live.exists:
        found.obstacles.append(found.nothing_to_replace("restore all of it: ovia-backup restore --help"))
        return
    with found.collecting(), connect(found.target) as session:
        row = session.execute(_MAY_CREATE).fetchone()
        if row and not row["may"]:
            raise RestoreRefusedError(
                f"{row['role']} may not create a schema in {order.database}",
                why="the tables are copied into a schema of their own",
                fix=f"GRANT CREATE ON DATABASE {sql_identifier(order.database)} TO {sql_identifier(row['role'])}",
            )
    with found.collecting():
        entries = archives.entries(archives.contents_list(found.programs, backup.path))
        for given in order.tables:
            with found.collecting():
                _require_listed(given, [text for text in entries if text.startswith(_KINDS)], str(backup))


def _require_listed(given: str, tables: list[str], backup: str) -> None:
    """Refuse a name that no entry can be: ``TABLE public people ovia``. Spaces in names leave that open."""
    # pg_dump lists names without quotes, and with spaces for line breaks.
    listed = re.sub(r"[\r\n]", " ", " ".join(filter(None, parts_of(given))))
    if not any(f" {listed} " in f"{text} " for text in tables):
        raise no_table(given, backup)

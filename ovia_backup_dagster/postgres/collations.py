"""By which version of the C library or of ICU a database sorts text, and whether its indexes were built by that one.

A library's new version may sort differently: an index that an older one has built is then wrong, silently, until it is
built again. PostgreSQL writes down the version that each collation had when it was made or refreshed.
"""

from __future__ import annotations

from typing import Any

import psycopg

Session = psycopg.Connection[dict[str, Any]]

#: What is said of the collation that all have that name none.
DEFAULT = "default"
_KNOWS_VERSIONS = 150000
_DATABASE = """
    SELECT datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
    FROM pg_database WHERE datname = current_database()
"""
#: Collations that a column or an index of the database uses, its own and the system's.
_USED = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) AS name, c.collversion AS recorded,
           pg_collation_actual_version(c.oid) AS actual
    FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
    WHERE c.collprovider <> 'd' AND c.oid IN (
        SELECT a.attcollation FROM pg_attribute a WHERE a.attrelid >= 16384
        UNION SELECT unnest(i.indcollation) FROM pg_index i WHERE i.indexrelid >= 16384
        UNION SELECT unnest(p.partcollation) FROM pg_partitioned_table p
    ) ORDER BY 1
"""


def versions(session: Session) -> dict[str, str]:
    """Collation -> the version that it has now, of all that are used here; :data:`DEFAULT` is the database's own.

    C and POSIX have none. A server before PostgreSQL 15 says nothing.
    """
    return {name: actual for name, (_, actual) in _found(session).items() if actual}


def outdated(session: Session) -> dict[str, tuple[str, str]]:
    """Collation -> the version that its indexes were built by, and the one of now, where these differ."""
    return {
        name: (recorded, actual)
        for name, (recorded, actual) in _found(session).items()
        if recorded and actual and recorded != actual
    }


def _found(session: Session) -> dict[str, tuple[str | None, str | None]]:
    if session.info.server_version < _KNOWS_VERSIONS:
        return {}
    row = session.execute(_DATABASE).fetchone()
    found = {DEFAULT: (row["recorded"], row["actual"])} if row else {}
    return found | {row["name"]: (row["recorded"], row["actual"]) for row in session.execute(_USED)}

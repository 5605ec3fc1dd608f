"""Which version of the C library or ICU sorts a database's text, and whether the indexes were built with it.

A new version of the library may sort differently. An index built with an older version is then silently wrong until it
is rebuilt. PostgreSQL records the version of each collation when the collation is created or refreshed.
"""

from __future__ import annotations

from typing import Any

import psycopg

Session = psycopg.Connection[dict[str, Any]]

#: Stands for the database's own collation, which columns without an explicit collation use.
DEFAULT = "default"
_KNOWS_VERSIONS = 150000
_DATABASE = """
    SELECT datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual
    FROM pg_database WHERE datname = current_database()
"""
#: The collations, user-defined and built-in, that a column or an index of the database uses.
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
    """Collation -> its current version, for all collations in use; :data:`DEFAULT` is the database's own.

    C and POSIX have no version. Servers before PostgreSQL 15 report none.
    """
    return {name: actual for name, (_, actual) in _found(session).items() if actual}


def outdated(session: Session) -> dict[str, tuple[str, str]]:
    """Collation -> (the version its indexes were built with, the current version), where the two differ."""
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

"""Functions that depend on the session's ``search_path``, which pg_restore empties.

Finds them for messages. During a salvage, it sets a ``search_path`` for each of them (lends it), and resets it later.
``load_order`` finds the functions that the archive's own text shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from ovia_backup_dagster.proof.load_order import LoadOrder
from ovia_backup_dagster.proof.routine_text import quote_ident
from ovia_backup_dagster.proof.unqualified_functions import Leaning

#: The name that a function did not find, and the function's name; the innermost function comes first.
_MISSING = re.compile(
    r"\b(?:function|relation|type|operator|dictionary|configuration|collation) \"?([^\s\"(]+)[^\n]* does not exist"
)
_IN = re.compile(r'SQL function "((?:[^"]|"")*)"|PL/pgSQL function (?:inline_code_block|([^\s(]+)\()')
#: Functions that can depend on it: their body is a string, in a language that looks names up at run time.
_ABLE = """
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE p.oid >= 16384 AND p.prokind <> 'a' AND p.prosqlbody IS NULL AND l.lanname NOT IN ('c', 'internal')
        AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                        AND d.deptype = 'e')
        AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c ILIKE 'search_path=%%')
"""
_FOUND: LiteralString = "SELECT p.oid::regprocedure::text AS signature, n.nspname AS schema" + _ABLE
_WHERE: LiteralString = """
    SELECT n.nspname AS schema FROM (
        SELECT pronamespace AS oid FROM pg_proc WHERE proname = %(name)s
        UNION SELECT relnamespace FROM pg_class WHERE relname = %(name)s
        UNION SELECT typnamespace FROM pg_type WHERE typname = %(name)s
        UNION SELECT oprnamespace FROM pg_operator WHERE oprname = %(name)s
        UNION SELECT dictnamespace FROM pg_ts_dict WHERE dictname = %(name)s
        UNION SELECT cfgnamespace FROM pg_ts_config WHERE cfgname = %(name)s
        UNION SELECT collnamespace FROM pg_collation WHERE collname = %(name)s
    ) AS found JOIN pg_namespace n USING (oid) WHERE n.nspname !~ '^pg_' ORDER BY 1
"""
_OF_EXTENSIONS: LiteralString = """
    SELECT DISTINCT n.nspname AS schema
    FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e' AND p.proname = ANY(%(names)s)
        AND n.nspname <> 'pg_catalog'
        AND NOT EXISTS (SELECT FROM pg_proc b
                        WHERE b.proname = p.proname AND b.pronamespace = 'pg_catalog'::regnamespace)
    ORDER BY 1
"""
_SCHEMAS: LiteralString = """
    SELECT nspname AS name FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    ORDER BY nspname <> 'public', 1
"""
_SET: LiteralString = """
    SELECT substr(c, length('search_path=') + 1) AS path
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) AS c
    WHERE d.datname = current_database() AND s.setrole = 0 AND c ILIKE 'search_path=%'
"""

Session = psycopg.Connection[dict[str, Any]]


def missed(message: str) -> tuple[str, str] | None:
    """The function and the name that it did not find, from a pg_restore message; ``None`` for another message.

    A name with a schema is missing whatever the ``search_path`` is, so it does not count.
    """
    missing, function = _MISSING.search(message), _IN.search(message)
    if missing is None or function is None or "." in missing[1]:
        return None
    name = function[1].replace('""', '"') if function[1] else (function[2] or "").rpartition(".")[2].strip('"')
    return (name, missing[1]) if name else None


def leaning(session: Session, order: LoadOrder, messages: Iterable[str]) -> list[Leaning]:
    """The functions that depend on ``search_path``, with the SQL that makes them independent.

    Args:
        session: in the database that has the functions.
        order: has the functions that the archive's own text shows, and calls by others of possible extension functions.
        messages: pg_restore's messages, which may show more functions.
    """
    found: dict[str, list[str]] = {each.signature: list(each.schemas) for each in order.leaning}
    for signature, names in order.calls.items():
        for row in session.execute(_OF_EXTENSIONS, {"names": sorted(names)}):
            found.setdefault(signature, [signature.partition(".")[0]]).append(quote_ident(row["schema"]))
    for function, missing in filter(None, map(missed, messages)):
        rows = session.execute(_WHERE, {"name": missing}).fetchall()
        for row in session.execute(_FOUND + " AND p.proname = %(name)s ORDER BY 1", {"name": function}).fetchall():
            schemas = (row["schema"], *(each["schema"] for each in rows))
            found.setdefault(row["signature"], []).extend(map(quote_ident, schemas))
    return [Leaning(signature, tuple(dict.fromkeys(schemas))) for signature, schemas in found.items()]


def lend(session: Session) -> list[str]:
    """Set a ``search_path`` for each function that can depend on one; returns their signatures.

    The path has the schemas of the database's own setting first, then the function's schema, then all others. Functions
    of other owners are left unchanged.
    """
    set_to = _own_path(session)
    schemas = [row["name"] for row in session.execute(_SCHEMAS)]
    lent = []
    for row in session.execute(_FOUND + " ORDER BY 1").fetchall():
        path = [*dict.fromkeys((*set_to, row["schema"], *schemas)), "pg_temp"]
        if _alter(
            session,
            row["signature"],
            sql.SQL("SET search_path = {}").format(sql.SQL(", ").join(map(sql.Identifier, path))),
        ):
            lent.append(row["signature"])
    return lent


def _own_path(session: Session) -> list[str]:
    """The schemas that the database's own ``search_path`` names."""
    row = session.execute(_SET).fetchone()
    if row is None:
        return []
    with session.transaction():
        session.execute("SELECT set_config('search_path', %s, true)", [row["path"]])
        found = session.execute("SELECT pg_catalog.current_schemas(false)::text[] AS names").fetchone()
        assert found is not None
        return [name for name in found["names"] if name != "pg_catalog"]


def give_back(session: Session, lent: Iterable[str]) -> list[str]:
    """Reset the lent ``search_path``; returns the functions that kept it."""
    return [signature for signature in lent if not _alter(session, signature, sql.SQL("RESET search_path"))]


def _alter(session: Session, signature: str, how: sql.Composable) -> bool:
    try:
        # The signature is safe: the server wrote it.
        session.execute(b"ALTER ROUTINE " + signature.encode() + b" " + how.as_bytes(session))
    except psycopg.Error:
        if session.closed:
            raise
        return False
    return True

"""Removes the rules of a table that refuse its rows, and puts them back after the load.

Only for ``salvage``, which restores the rest of a damaged backup (``--even-if-damaged``). A rule that rows break is NOT
VALID afterwards, or missing, and is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

from ovia_backup_dagster.postgres.quoting import sql_identifier, sql_string

Session = psycopg.Connection[dict[str, Any]]
_TABLE: LiteralString = "SELECT to_regclass(quote_ident(%s) || '.' || quote_ident(%s))::oid::bigint AS oid"
#: The table and its ancestors, from which it inherits rules; the most distant first.
_UP: LiteralString = """
    WITH RECURSIVE up AS (
        SELECT %s::oid AS oid, 0 AS depth
        UNION SELECT inhparent, depth + 1 FROM up JOIN pg_inherits ON inhrelid = up.oid
    )
"""
_CHECKS: LiteralString = (
    _UP  # noqa: S608 - ours
    + """
    SELECT c.conrelid::regclass::text AS owner, c.conname AS name, pg_get_constraintdef(c.oid) AS definition,
           obj_description(c.oid, 'pg_constraint') AS comment
    FROM up JOIN pg_constraint c ON c.conrelid = up.oid WHERE c.contype = 'c' AND c.conislocal
    ORDER BY up.depth DESC, up.oid, c.conname
"""
)
_NOT_NULL: LiteralString = (
    _UP  # noqa: S608 - ours
    + """
    SELECT a.attrelid::regclass::text AS owner, a.attname AS name
    FROM up JOIN pg_attribute a ON a.attrelid = up.oid
    WHERE a.attnum > 0 AND a.attnotnull AND NOT a.attisdropped AND a.attidentity = ''
    ORDER BY up.depth DESC, up.oid, a.attnum
"""
)
_GENERATED: LiteralString = (
    _UP  # noqa: S608 - ours
    + """
    SELECT a.attrelid::regclass::text AS owner, a.attname AS name
    FROM up JOIN pg_attribute a ON a.attrelid = up.oid
    WHERE a.attgenerated <> '' AND NOT a.attisdropped ORDER BY up.depth DESC, up.oid, a.attnum
"""
)
#: Domains of its columns: used directly, or within arrays, rows, ranges and other domains.
_DOMAINS: LiteralString = """
    WITH RECURSIVE types AS (
        SELECT atttypid AS oid FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped
        UNION
        SELECT more.oid FROM types JOIN pg_type t ON t.oid = types.oid CROSS JOIN LATERAL (
            SELECT t.typelem WHERE t.typelem <> 0
            UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
            UNION ALL SELECT atttypid FROM pg_attribute
                WHERE t.typrelid <> 0 AND attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped
            UNION ALL SELECT rngsubtype FROM pg_range WHERE t.oid IN (rngtypid, rngmultitypid)
        ) AS more(oid)
    )
    SELECT t.oid::regtype::text AS owner, t.typnotnull AS not_null, c.conname AS name,
           pg_get_constraintdef(c.oid) AS definition, obj_description(c.oid, 'pg_constraint') AS comment
    FROM types JOIN pg_type t ON t.oid = types.oid LEFT JOIN pg_constraint c ON c.contypid = t.oid
    WHERE t.typtype = 'd' AND t.oid >= 16384 ORDER BY 1, c.conname
"""


@dataclass(frozen=True, slots=True)
class RelaxedConstraint:
    """A rule that was removed.

    Attributes:
        name: for people.
        back: the SQL that puts it back.
        unproven: the SQL that puts it back for new rows only; empty if there is no such SQL.
        comment: the SQL that restores its comment.
    """

    name: str
    back: str
    unproven: str = ""
    comment: str = ""


def relax(session: Session, schema: str, table: str) -> list[RelaxedConstraint]:
    """Remove the rules that may refuse a table's rows: CHECKs, NOT NULL, the rules of its columns' domains."""
    row = session.execute(_TABLE, [schema, table]).fetchone()
    if row is None or row["oid"] is None:
        return []
    oid = row["oid"]
    rules: list[RelaxedConstraint] = []

    def take(command: str, rule: RelaxedConstraint) -> None:
        if _done(session, command) is None:
            rules.append(rule)

    for row in session.execute(_DOMAINS, [oid]).fetchall():
        domain = row["owner"]
        if row["not_null"] and f"NOT NULL of domain {domain}" not in {rule.name for rule in rules}:
            back = f"ALTER DOMAIN {domain} SET NOT NULL"
            take(f"ALTER DOMAIN {domain} DROP NOT NULL", RelaxedConstraint(f"NOT NULL of domain {domain}", back))
        if row["name"]:
            take(*_constraint("DOMAIN", domain, row, f"CHECK {row['name']} of domain {domain}"))
    for row in session.execute(_CHECKS, [oid]).fetchall():
        take(*_constraint("TABLE", row["owner"], row, f"CHECK {row['name']} of {row['owner']}"))
    for row in session.execute(_NOT_NULL, [oid]).fetchall():
        column = f"ALTER TABLE {row['owner']} ALTER COLUMN {sql_identifier(row['name'])}"
        take(
            f"{column} DROP NOT NULL",
            RelaxedConstraint(f"NOT NULL of {row['owner']}.{row['name']}", f"{column} SET NOT NULL"),
        )
    return rules


def tighten(session: Session, rules: list[RelaxedConstraint]) -> list[str]:
    """Put rules back; returns a line for each rule that the rows break."""
    broken = []
    for rule in reversed(rules):
        said = _done(session, rule.back)
        if said is None:
            pass
        elif rule.unproven and _done(session, rule.unproven) is None:
            broken.append(f"{rule.name} is NOT VALID now, as it could not be put back ({said}); every row is there")
        else:
            broken.append(f"{rule.name} is gone, as it could not be put back ({said}); every row is there")
            continue
        if rule.comment:
            _done(session, rule.comment)
    return broken


def uncompute(session: Session, schema: str, table: str) -> list[str]:
    """Turn a table's generated columns into ordinary, empty ones; returns a line for each."""
    row = session.execute(_TABLE, [schema, table]).fetchone()
    if row is None or row["oid"] is None:
        return []
    found = session.execute(_GENERATED, [row["oid"]]).fetchall()
    return [
        f"generated column {row['owner']}.{row['name']} cannot be computed: it is an ordinary column now, and empty"
        for row in found
        if _done(session, f"ALTER TABLE {row['owner']} ALTER COLUMN {sql_identifier(row['name'])} DROP EXPRESSION")
        is None
    ]


def _constraint(kind: str, owner: str, row: dict[str, Any], name: str) -> tuple[str, RelaxedConstraint]:
    quoted = sql_identifier(row["name"])
    back = f"ALTER {kind} {owner} ADD CONSTRAINT {quoted} {row['definition']}"
    on = f"{owner}" if kind == "TABLE" else f"DOMAIN {owner}"
    comment = f"COMMENT ON CONSTRAINT {quoted} ON {on} IS {sql_string(row['comment'])}" if row["comment"] else ""
    unproven = "" if back.endswith(" NOT VALID") else f"{back} NOT VALID"
    return f"ALTER {kind} {owner} DROP CONSTRAINT {quoted}", RelaxedConstraint(name, back, unproven, comment)


def _done(session: Session, command: str) -> str | None:
    """Run a command; returns ``None``, or the error's SQLSTATE: the message may hold values from a function."""
    try:
        session.execute(command.encode())
    except psycopg.Error as error:
        if session.closed:
            raise
        return f"SQLSTATE {error.sqlstate}"
    return None

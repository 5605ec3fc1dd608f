"""Finds the privileges that a role lacks to dump all of a database, with the SQL that grants them.

The queries read the catalogs, as the role itself; they lock no table and read no table's data. ``diagnosis`` explains
the errors of a dump that was refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg

from ovia_backup_dagster.postgres.quoting import sql_identifier, sql_string

Session = psycopg.Connection[dict[str, Any]]

_SHOWN = 3
#: What pg_dump reads: tables and sequences, except those of an extension that it has not registered as configuration
#: tables: CREATE EXTENSION brings their data. pg_dump locks a table, for which any privilege on it suffices, and copies
#: it, for which every column must be readable. Of a partitioned table it copies only the partitions, which have their
#: own row security.
_RELATIONS = """
    SELECT n.nspname AS schema, c.relname AS name, c.relkind = 'S' AS sequence,
           pg_has_role(c.relowner, 'USAGE') AS owned, has_schema_privilege(n.oid, 'USAGE') AS usage,
           has_table_privilege(c.oid, 'SELECT')
           OR c.relkind <> 'S' AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
              AND (c.relkind = 'p' OR coalesce(
                  (SELECT bool_and(has_column_privilege(c.oid, a.attnum, 'SELECT')) FROM pg_attribute a
                   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), false)
              ) AS readable,
           c.relkind = 'r' AND row_security_active(c.oid) AS row_security
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't'
      AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                       AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e')
           OR EXISTS (SELECT FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))
    ORDER BY 1, 2
"""
#: Ownership is not enough: owners can revoke their own privileges.
_LARGE_OBJECTS = """
    SELECT count(*) AS total, count(*) FILTER (WHERE NOT readable) AS missing
    FROM (SELECT current_setting('lo_compat_privileges')::bool OR EXISTS (
                     SELECT FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a
                     WHERE a.privilege_type = 'SELECT'
                     AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))) AS readable
          FROM pg_largeobject_metadata m) AS objects
"""
_ROLE = """
    SELECT r.rolsuper AS superuser, r.rolinherit AS inherits,
           pg_has_role('pg_read_all_data', 'MEMBER') AS member, pg_has_role('pg_read_all_data', 'USAGE') AS reads_all
    FROM pg_roles r WHERE r.rolname = current_user
"""
_GRANT_LARGE_OBJECTS = (
    "DO {quote} DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE "
    "format('GRANT SELECT ON LARGE OBJECT %s TO %I', o, {role}); END LOOP; END {quote};"
)


@dataclass(frozen=True, slots=True)
class Missing:
    """A privilege that a dump needs and the role does not have.

    Attributes:
        what: the problem in words, naming the first few objects.
        sql: the statement that grants the privilege, for a superuser connected to the same database.
        later: whether the next dump still succeeds, but one after a change of the schema would fail.
    """

    what: str
    sql: str
    later: bool = False


def missing_rights(session: Session, user: str) -> list[Missing]:
    """The privileges that the session's role lacks for a complete dump; empty for a superuser.

    Args:
        session: connected to the database as that role.
        user: the role's name.
    """
    role = session.execute(_ROLE).fetchone()
    assert role is not None  # a session always has a role
    if role["superuser"]:
        return []
    found: list[Missing] = []
    # A member that does not inherit has the privilege only after SET ROLE, which pg_dump does not run.
    inherit = " WITH INHERIT TRUE" if role["member"] or not role["inherits"] else ""
    read_all = f"GRANT pg_read_all_data TO {sql_identifier(user)}{inherit};"
    relations = session.execute(_RELATIONS).fetchall()
    unreadable = [r for r in relations if not (r["usage"] and r["readable"])]
    if unreadable:
        tables = [r for r in unreadable if not r["sequence"]]
        sequences = [r for r in unreadable if r["sequence"]]
        words = [text for text in (_some(tables, "table"), _some(sequences, "sequence")) if text]
        found.append(Missing(f"{' and '.join(words)} cannot be read", read_all))
    elif not role["reads_all"] and not all(r["owned"] for r in relations):
        found.append(
            Missing("tables are granted one by one: the next new table will not be readable", read_all, later=True)
        )
    hidden = [r for r in relations if r["row_security"]]
    if hidden:
        found.append(
            Missing(f"{_some(hidden, 'table')} hidden by row security", f"ALTER ROLE {sql_identifier(user)} BYPASSRLS;")
        )
    objects = session.execute(_LARGE_OBJECTS).fetchone()
    if objects is not None and objects["missing"]:
        # Quoted as a string, because format() turns it into an identifier.
        name = sql_string(user)
        quote = next(q for n in count() if (q := f"$do{n or ''}$") not in name)
        grant = _GRANT_LARGE_OBJECTS.format(role=name, quote=quote)
        what = f"{objects['missing']:,} of {objects['total']:,} large objects cannot be read"
        later = "new ones will need the same grant; if new ones appear daily, dump as their owner"
        found.append(Missing(f"{what} ({later})", grant))
    return found


def _some(relations: list[dict[str, Any]], kind: str) -> str:
    if not relations:
        return ""
    names = ", ".join(f"{r['schema']}.{r['name']}" for r in relations[:_SHOWN])
    more = f" and {len(relations) - _SHOWN:,} more" if len(relations) > _SHOWN else ""
    return f"{kind if len(relations) == 1 else kind + 's'} {names}{more}"

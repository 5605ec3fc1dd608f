"""What a role needs to dump all of a database, and what of it is missing, with the SQL that gives it.

Asked of the catalogs, as the role itself; nothing is locked and nothing is read. What a refused dump says
afterwards is ``diagnosis``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg

from ovia_backup_dagster.postgres.quoting import sql_identifier, sql_string

Session = psycopg.Connection[dict[str, Any]]

_SHOWN = 3
#: What pg_dump reads: tables and sequences, but not those of an extension, whose data comes with it, unless the
#: extension says that people change them. A table it locks, for which any right on the table will do, and copies,
#: for which each column must be readable; of a partitioned one it copies the partitions alone, whose row security
#: is their own.
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
#: An owner may have taken the right from himself.
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
    """A right that a dump needs and the role does not have.

    Attributes:
        what: in words, naming the first few objects, and what to know about it.
        sql: the statement that gives it, for a superuser in the same database.
        later: the next dump succeeds; one after a change of the schema would not.
    """

    what: str
    sql: str
    later: bool = False


def missing_rights(session: Session, user: str) -> list[Missing]:
    """What the session's role lacks for a whole dump; empty for a superuser.

    Args:
        session: connected to the database, as that role.
        user: the role's name.
    """
    role = session.execute(_ROLE).fetchone()
    assert role is not None  # a session always has a role
    if role["superuser"]:
        return []
    found: list[Missing] = []
    # As a member who does not inherit, the role has the right only after SET ROLE, which pg_dump does not do.
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
        found.append(Missing("tables are granted one by one: the next new one will be missing", read_all, later=True))
    hidden = [r for r in relations if r["row_security"]]
    if hidden:
        found.append(
            Missing(f"{_some(hidden, 'table')} hidden by row security", f"ALTER ROLE {sql_identifier(user)} BYPASSRLS;")
        )
    objects = session.execute(_LARGE_OBJECTS).fetchone()
    if objects is not None and objects["missing"]:
        # Quoted as a string: format() makes an identifier of it.
        name = sql_string(user)
        quote = next(q for n in count() if (q := f"$do{n or ''}$") not in name)
        grant = _GRANT_LARGE_OBJECTS.format(role=name, quote=quote)
        what = f"{objects['missing']:,} of {objects['total']:,} large objects cannot be read"
        later = "new ones will need it again; where there are new ones every day, dump as their owner"
        found.append(Missing(f"{what} ({later})", grant))
    return found


def _some(relations: list[dict[str, Any]], kind: str) -> str:
    if not relations:
        return ""
    names = ", ".join(f"{r['schema']}.{r['name']}" for r in relations[:_SHOWN])
    more = f" and {len(relations) - _SHOWN:,} more" if len(relations) > _SHOWN else ""
    return f"{kind if len(relations) == 1 else kind + 's'} {names}{more}"

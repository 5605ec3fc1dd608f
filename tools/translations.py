"""postgres/translations.json: the messages of the table of diagnoses in the languages of PostgreSQL's catalogues.

``python -m tools.translations`` writes it from Debian's catalogues (packages postgresql-15 and
locales). Run it again when the table of diagnoses gets another message of the server.
"""

from __future__ import annotations

import json
from gettext import GNUTranslations, NullTranslations
from pathlib import Path

import ovia_backup_dagster.postgres
from ovia_backup_dagster.postgres.translation import PARTS

TARGET = Path(ovia_backup_dagster.postgres.__file__).with_name("translations.json")
_CATALOGUES = Path("/usr/share/locale")

#: ``elog.c``: what begins each message.
SEVERITIES = ("ERROR", "FATAL", "PANIC", "WARNING", "NOTICE", "LOG", "INFO", "DEBUG", "DETAIL", "HINT", "CONTEXT")
#: The messages that the table of diagnoses looks for, without those that PostgreSQL never translates
#: (``errmsg_internal``).
MESSAGES = (
    # ---- access
    'password authentication failed for user "%s"',
    *(f'{how} authentication failed for user "%s"' for how in ("Peer", "Ident", "GSSAPI", "LDAP", "PAM", "RADIUS")),
    'certificate authentication failed for user "%s"',
    'authentication failed for user "%s": host rejected',
    "connection requires a valid client certificate",
    'no pg_hba.conf entry for host "%s", user "%s", database "%s", %s',
    'pg_hba.conf rejects connection for host "%s", user "%s", database "%s", %s',
    'role "%s" does not exist',
    'role "%s" is not permitted to log in',
    'database "%s" does not exist',
    'database "%s" is not currently accepting connections',
    'permission denied for database "%s"',
    # ---- resources
    'too many connections for role "%s"',
    'too many connections for database "%s"',
    "sorry, too many clients already",
    "remaining connection slots are reserved for non-replication superuser connections",
    "out of shared memory",
    "out of memory",
    'could not extend file "%s": wrote only %d of %d bytes at block %u',
    'could not resize shared memory segment "%s" to %zu bytes: %m',
    # ---- rights
    *(
        f"permission denied for {what} %s"
        for what in ("table", "sequence", "schema", "view", "materialized view", "function", "foreign table", "type")
    ),
    "permission denied for foreign server %s",
    "permission denied for tablespace %s",
    "permission denied for large object %u",
    "permission denied to create database",
    'query would be affected by row-level security policy for table "%s"',
    # ---- time
    "canceling statement due to lock timeout",
    "canceling statement due to statement timeout",
    "canceling statement due to user request",
    "canceling statement due to conflict with recovery",
    "deadlock detected",
    # ---- a server that stops or starts
    "terminating connection due to administrator command",
    "terminating connection due to conflict with recovery",
    "terminating connection because of crash of another server process",
    "terminating connection due to immediate shutdown command",
    "terminating connection due to unexpected postmaster exit",
    "terminating connection due to idle-in-transaction timeout",
    "terminating connection due to idle-session timeout",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is in recovery mode",
    "the database system is not accepting connections",
    "the database system is not yet accepting connections",
    # ---- data and installation
    "invalid page in block %u of relation %s",
    'could not read block %u in file "%s": %m',
    'could not read block %u in file "%s": read only %d of %d bytes',
    "could not access status of transaction %u",
    'extension "%s" is not available',
    'could not open extension control file "%s": %m',
    # ---- failures of an archive's entries: violations, search_path, roles
    'insert or update on table "%s" violates foreign key constraint "%s"',
    'could not create unique index "%s"',
    'could not create exclusion constraint "%s"',
    'conflicting key value violates exclusion constraint "%s"',
    'duplicate key value violates unique constraint "%s"',
    'value for domain %s violates check constraint "%s"',
    'new row for relation "%s" violates check constraint "%s"',
    'check constraint "%s" of relation "%s" is violated by some row',
    'null value in column "%s" of relation "%s" violates not-null constraint',
    'column "%s" of relation "%s" contains null values',
    'relation "%s" does not exist',
    "function %s does not exist",
    'type "%s" does not exist',
    "operator does not exist: %s",
    'text search configuration "%s" does not exist',
    'text search dictionary "%s" does not exist',
    'collation "%s" for encoding "%s" does not exist',
    'schema "%s" does not exist',
    'SQL function "%s" statement %d',
    'SQL function "%s" during startup',
    'SQL function "%s" during inlining',
)


def written() -> dict[str, dict[str, str]]:
    """Language -> message in English -> message in that language."""
    found = {}
    for path in sorted(_CATALOGUES.glob("*/LC_MESSAGES/postgres-15.mo")):
        server, system = _catalogue(path), _catalogue(path.with_name("libc.mo"))
        wanted = [(server, text) for text in (*SEVERITIES, *PARTS, *MESSAGES)] + [(system, text) for text in PARTS]
        found[path.parts[-3]] = {
            text: said for catalogue, text in wanted if (said := catalogue.gettext(text)) and said != text
        }
    return found


def _catalogue(path: Path) -> NullTranslations:
    if not path.exists():
        return NullTranslations()
    with open(path, "rb") as file:
        return GNUTranslations(file)


if __name__ == "__main__":
    TARGET.write_text(json.dumps(written(), ensure_ascii=False, indent=0) + "\n", "utf-8")

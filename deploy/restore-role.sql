-- Creates the role that restores one database, with the rights that a restore needs and no others. It is not a superuser,
-- so that a restored function cannot become one. Run this as a superuser, with psql 14 or newer, and again when other
-- roles own objects in the database:
--
--     RESTORE_PASSWORD=... psql -q -U ovia -d ovia < restore-role.sql
--
-- -v database=... -v password=... work, too, but the list of processes then shows the password. An existing role is
-- changed, not created again. Afterwards, set RESTORE_POSTGRES_USER=ovia_restore.
--
-- Its rights, and why:
--   CREATEDB                        to create the copy, and to rename databases
--   member of all owners in it      to give restored objects to their owners, and to swap, drop and forget the database
--   pg_signal_backend               to end other roles' sessions in a database that is renamed or dropped
--   BYPASSRLS                       only if a table forces row security on its owner: to read it back
-- Rights that it does not get, and what it therefore cannot do: pg_execute_server_program (a plan cannot show the server's
-- free space), pg_read_all_stats (a plan cannot name other roles' sessions), and a superuser's rights (objects of a
-- superuser, event triggers, untrusted extensions, subscriptions, privileges granted by a role that is not the owner, and
-- settings that require a superuser). A restore that needs these is refused before anything is replaced, or its record has
-- a note.
--
-- Beware: code in a backup runs as this role while it is restored. It has the rights of all the owners, can end sessions,
-- and can set this role's password: let pg_hba.conf accept this role only from where restores run.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?database}
    \connect :"database"
\endif
\if :{?password}
\else
    \getenv password RESTORE_PASSWORD
\endif
\if :{?password}
\else
    \set password ''
\endif

-- Keep the password out of the server's log.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_duration_sample = -1;
SET log_transaction_sample_rate = 0;
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
-- Run no function or operator of another role.
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = 'warning';

BEGIN;

SELECT :'password' = '' AS password_is_missing \gset
\if :password_is_missing
    DO $$ BEGIN RAISE EXCEPTION 'no password: set RESTORE_PASSWORD'; END $$;
\endif

-- A member of a superuser can become one.
SELECT format('DO %L', format('BEGIN RAISE EXCEPTION %L; END', format(
    'database %s belongs to %s, a superuser, in whose place no other role can restore it: give the database and what '
    'is in it to a role that is none, or let %s restore, and trust all functions in the backup',
    replace(d.datname, '%', '%%'), replace(r.rolname, '%', '%%'), replace(r.rolname, '%', '%%'))))
FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba
WHERE d.datname = current_database() AND r.rolsuper \gexec

SELECT 'CREATE ROLE ovia_restore' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ovia_restore') \gexec
SELECT format('ALTER ROLE ovia_restore LOGIN INHERIT CREATEDB %s NOSUPERUSER NOCREATEROLE NOREPLICATION',
    CASE WHEN EXISTS (SELECT FROM pg_class WHERE relforcerowsecurity) THEN 'BYPASSRLS' ELSE 'NOBYPASSRLS' END) \gexec
ALTER ROLE ovia_restore PASSWORD :'password';

-- The roles that own the database or an object in it and are not superusers. An existing membership is sufficient only
-- with these options.
CREATE TEMPORARY TABLE owners ON COMMIT DROP AS
SELECT r.oid, r.rolname, r.rolsuper FROM pg_roles r
WHERE r.rolname <> 'ovia_restore' AND NOT starts_with(r.rolname, 'pg_') AND (
    r.oid IN (SELECT s.refobjid FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
              WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND d.datname = current_database())
    OR r.oid IN (SELECT datdba FROM pg_database WHERE datname = current_database()));
SELECT format('GRANT %I TO ovia_restore WITH INHERIT TRUE, SET TRUE', rolname) FROM owners WHERE NOT rolsuper \gexec
GRANT pg_signal_backend TO ovia_restore WITH INHERIT TRUE;

-- Its system identifier tells one cluster from another, so that no restore overwrites the wrong one. Granted only where
-- PUBLIC has lost it: every dump from then on contains a grant on a system function.
SELECT 'GRANT EXECUTE ON FUNCTION pg_control_system() TO ovia_restore'
WHERE NOT has_function_privilege('ovia_restore', 'pg_control_system()', 'EXECUTE') \gexec

-- Print what the role cannot restore, and what it may do beyond that, if anything.
SELECT format('%s objects belong to %I, a superuser: ovia_restore cannot restore them', count(*), r.rolname) AS beware
FROM (
    SELECT 'pg_class'::regclass AS class, oid, relowner AS owner FROM pg_class WHERE relkind NOT IN ('t', 'i', 'I')
    UNION ALL SELECT 'pg_proc'::regclass, oid, proowner FROM pg_proc
    UNION ALL SELECT 'pg_type'::regclass, oid, typowner FROM pg_type WHERE typrelid = 0 AND typelem = 0
    UNION ALL SELECT 'pg_namespace'::regclass, oid, nspowner FROM pg_namespace WHERE nspname !~ '^pg_'
    UNION ALL SELECT 'pg_largeobject'::regclass, oid, lomowner FROM pg_largeobject_metadata
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid, evtowner FROM pg_event_trigger
) o JOIN pg_roles r ON r.oid = o.owner
WHERE r.rolsuper AND o.oid >= 16384 AND o.oid <> 'owners'::regclass
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
GROUP BY r.rolname \g (format=unaligned tuples_only=on)
SELECT format('ovia_restore is also a member of %I', r.rolname) AS beware
FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
WHERE m.member = 'ovia_restore'::regrole AND r.rolname <> 'pg_signal_backend'
AND r.oid NOT IN (SELECT oid FROM owners WHERE NOT rolsuper) \g (format=unaligned tuples_only=on)

COMMIT;

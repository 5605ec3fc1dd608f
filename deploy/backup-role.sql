-- Creates the role that backs up one database, with the rights that a backup needs and no others. Run it as a superuser,
-- with psql 14 or newer, and again whenever the doctor reports a missing right:
--
--     BACKUP_PASSWORD=... psql -q -U ovia -d ovia < backup-role.sql
--
-- -v database=... -v password=... work, too, but the list of processes then shows the password. An existing role is
-- changed, not created again.
-- The role may do whatever PUBLIC may: by default, create temporary tables and its own large objects. pg_read_all_data
-- also reads the system tables with the hashes of all passwords: protect its password like a superuser's.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?database}
    \connect :"database"
\endif
\if :{?password}
\else
    \getenv password BACKUP_PASSWORD
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
    DO $$ BEGIN RAISE EXCEPTION 'no password: set BACKUP_PASSWORD'; END $$;
\endif

SELECT 'CREATE ROLE ovia_backup' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ovia_backup') \gexec
-- BYPASSRLS, because row security would leave rows out of a dump, which pg_dump refuses.
ALTER ROLE ovia_backup LOGIN INHERIT BYPASSRLS
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
-- Not a barrier, since a session may change it: it prevents accidental writes where PUBLIC may write.
ALTER ROLE ovia_backup SET default_transaction_read_only = on;
SELECT format('GRANT CONNECT ON DATABASE %I TO ovia_backup', current_database()) \gexec
GRANT pg_read_all_data TO ovia_backup WITH INHERIT TRUE;

-- Its system identifier tells one cluster from another, so that no restore overwrites the source. Granted only where
-- PUBLIC has lost it: every dump from then on contains a grant on a system function.
SELECT 'GRANT EXECUTE ON FUNCTION pg_control_system() TO ovia_backup'
WHERE NOT has_function_privilege('ovia_backup', 'pg_control_system()', 'EXECUTE') \gexec

-- pg_read_all_data does not cover large objects. Run this script again for those that are created later. A GRANT to
-- another role does not change the owner's rights.
SELECT format('GRANT SELECT ON LARGE OBJECT %s TO ovia_backup', m.oid)
FROM pg_largeobject_metadata m
WHERE NOT EXISTS (
    SELECT FROM aclexplode(m.lomacl) a
    WHERE a.privilege_type = 'SELECT' AND a.grantee IN (0, 'ovia_backup'::regrole)
) \gexec

COMMIT;

-- Print the role's other memberships.
SELECT format('ovia_backup is also a member of %I', r.rolname) AS beware
FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
WHERE m.member = 'ovia_backup'::regrole AND r.rolname <> 'pg_read_all_data' \g (format=unaligned tuples_only=on)

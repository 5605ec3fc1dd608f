-- Creates the role that receives the server's WAL and makes base backups, with the rights that these need and no others,
-- and limits the WAL that the server keeps for it. Run it as a superuser, with psql 14 or newer, and again whenever the
-- doctor reports a missing right:
--
--     WAL_PASSWORD=... psql -q -U ovia -d ovia < wal-role.sql
--
-- -v database=... -v password=... work, too, but the list of processes then shows the password. An existing role is
-- changed, not created again. What is left to do is printed: the line for pg_hba.conf, which no role can add by SQL.
--
-- Beware: REPLICATION copies the whole cluster, all databases and the hashes of all passwords. Protect its password like a
-- superuser's, and let pg_hba.conf accept this role only from where WAL is received.
--
-- If the receiver stops, the server keeps its WAL until the receiver is back. Without a limit this fills the disk of the
-- database. So max_slot_wal_keep_size, if it has no limit yet, becomes 4GB, or MAX_SLOT_WAL_KEEP_SIZE (or
-- -v max_slot_wal_keep_size=...). Beyond it the server drops the WAL, and the recovery window gets a hole.

\set ON_ERROR_STOP on
\set QUIET on
\if :{?database}
    \connect :"database"
\endif
\if :{?password}
\else
    \getenv password WAL_PASSWORD
\endif
\if :{?password}
\else
    \set password ''
\endif
\if :{?max_slot_wal_keep_size}
\else
    \getenv max_slot_wal_keep_size MAX_SLOT_WAL_KEEP_SIZE
\endif
\if :{?max_slot_wal_keep_size}
\else
    \set max_slot_wal_keep_size '4GB'
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
    DO $$ BEGIN RAISE EXCEPTION 'no password: set WAL_PASSWORD'; END $$;
\endif

SELECT 'CREATE ROLE ovia_wal' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ovia_wal') \gexec
ALTER ROLE ovia_wal LOGIN INHERIT REPLICATION
    NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD :'password';
-- Not a barrier, since a session may change it: it prevents accidental writes where PUBLIC may write.
ALTER ROLE ovia_wal SET default_transaction_read_only = on;
-- It asks for the state of its slot, and commits a message into the WAL, which any role may.
SELECT format('GRANT CONNECT ON DATABASE %I TO ovia_wal', current_database()) \gexec

-- Its system identifier tells one cluster from another, so that their WAL is never mixed. Granted only where PUBLIC has
-- lost it: every dump from then on contains a grant on a system function.
SELECT 'GRANT EXECUTE ON FUNCTION pg_control_system() TO ovia_wal'
WHERE NOT has_function_privilege('ovia_wal', 'pg_control_system()', 'EXECUTE') \gexec

COMMIT;

-- Not in a transaction, which PostgreSQL refuses. An existing limit stays.
SELECT format('ALTER SYSTEM SET max_slot_wal_keep_size = %L', :'max_slot_wal_keep_size')
FROM pg_settings WHERE name = 'max_slot_wal_keep_size' AND setting = '-1' \gexec
SELECT pg_reload_conf() AS reloaded \gset

-- Print what is left to do. A rule for the database all does not match replication.
WITH rules AS (
    SELECT rule_number, file_name, line_number, auth_method FROM pg_hba_file_rules
    -- A line with an error has no type.
    WHERE type <> 'local' AND 'replication' = ANY (database)
    AND NOT (address IN ('::1', 'localhost', 'samehost') OR starts_with(address, '127.'))
    AND EXISTS (
        SELECT FROM unnest(user_name) u WHERE u IN ('all', 'ovia_wal')
        OR CASE left(u, 1)
            WHEN '/' THEN 'ovia_wal' ~ substr(u, 2)
            WHEN '+' THEN EXISTS (
                SELECT FROM pg_roles r WHERE r.rolname = substr(u, 2) AND pg_has_role('ovia_wal', r.oid, 'MEMBER'))
        END)
    ORDER BY rule_number LIMIT 1)
SELECT concat(
    'WAL can be received only on the server itself: add this line to ', current_setting('hba_file'),
    (SELECT format(', above line %s of %s, which rejects', line_number, file_name) FROM rules),
    ', then SELECT pg_reload_conf(): host replication ovia_wal all scram-sha-256') AS left_to_do
WHERE NOT EXISTS (SELECT FROM rules WHERE auth_method <> 'reject') \g (format=unaligned tuples_only=on)
-- With some of these the server goes on with the rules that it had before.
SELECT format('%s, line %s: %s', file_name, line_number, error) AS beware
FROM pg_hba_file_rules WHERE error IS NOT NULL \g (format=unaligned tuples_only=on)
SELECT format('%1$s is %2$s: ALTER SYSTEM SET %1$s = %3$s, then restart the server', name, setting, needed) AS left_to_do
FROM pg_settings JOIN (VALUES ('wal_level', 'minimal', 'replica'), ('max_wal_senders', '0', '10'),
    ('max_replication_slots', '0', '10')) v (name, lacking, needed) USING (name)
WHERE setting = lacking \g (format=unaligned tuples_only=on)

-- Print the role's memberships.
SELECT format('ovia_wal is also a member of %I', r.rolname) AS beware
FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
WHERE m.member = 'ovia_wal'::regrole \g (format=unaligned tuples_only=on)

-- Rows of the Ovia demo and test database; see schema.sql.
--
-- The variable "scale" multiplies the row counts: 1 gives about 300,000 rows, 0.02 suits
-- fast tests. All values follow from row numbers, neither from the clock nor from chance,
-- so the same scale gives the same bytes. (The partitions that rows of sync_batches fall
-- into, and so their order in a dump, also depend on OIDs the server chose.)

\set ON_ERROR_STOP on
\set QUIET on

\if :{?scale}
\else
    \set scale 1
\endif

-- The database's own time zone must not shift the rows.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
SET timezone = 'UTC';
SET synchronous_commit = off;

BEGIN;

SET ROLE ovia;

\set base 'TIMESTAMPTZ ''2026-01-01 00:00:00+00'''

SELECT greatest(20, (:scale * 10000)::int)  AS n_people,
       greatest(60, (:scale * 90000)::int)  AS n_identities,
       greatest(4,  (:scale * 40)::int)     AS n_shards,
       greatest(24, (:scale * 4000)::int)   AS n_batches,
       greatest(60, (:scale * 110000)::int) AS n_events,
       greatest(30, (:scale * 8000)::int)   AS n_kpis,
       greatest(10, (:scale * 5000)::int)   AS n_sessions,
       greatest(5,  (:scale * 1000)::int)   AS n_notes,
       greatest(5,  (:scale * 500)::int)    AS n_cached
\gset

-- ---------------------------------------------------------------- people

-- Eight reports a manager; the first person has none.
INSERT INTO people (id, person_key, given_name, family_name, email, team, employment_status,
                    manager_id, skills, attributes, badge, hired_on, created_at, updated_at)
SELECT i,
       md5('person:' || i)::uuid,
       (ARRAY['Ada', 'José', 'Zoë', 'Łukasz', 'Mei', 'Søren', 'Amara', 'Nikos',
              '美咲', 'Oluwaseun', 'Chloé', 'Ivan'])[1 + i % 12],
       (ARRAY['Lovelace', 'Núñez', 'O''Brien', 'Kowalski', 'Chen', 'Åberg', 'Okafor',
              'Παπαδόπουλος', '田中', 'van der Berg', 'Smith-Jones'])[1 + i % 11],
       'person' || i || '@example.com',
       (ARRAY['engineering', 'sales', 'support', 'finance', 'people'])[1 + i % 5],
       CASE WHEN i % 17 = 0 THEN 'left' WHEN i % 9 = 0 THEN 'contractor' ELSE 'active' END,
       CASE WHEN i > 1 THEN (i - 2) / 8 + 1 END,
       (ARRAY['sql', 'python', 'go', 'writing', 'law', 'design'])[1 + i % 4 : 2 + i % 5],
       jsonb_build_object('office', (ARRAY['Berlin', 'New York', 'São Paulo'])[1 + i % 3],
                          'level', i % 7, 'badge', substr(md5('level:' || i), 1, 8)),
       CASE WHEN i % 10 <> 0 THEN decode(md5('badge:' || i), 'hex') END,
       DATE '2025-12-31' - (i * 37 % 4000),
       :base - make_interval(hours => i * 37 % 96000),
       :base + make_interval(secs => i * 211 % 15552000)
FROM generate_series(1, :n_people) AS i;

SELECT setval(pg_get_serial_sequence('people', 'id'), :n_people) AS ignored \gset

-- ---------------------------------------------------------------- identities

INSERT INTO identities (id, provider, external_id, handle, email, profile, fingerprint,
                        is_active, first_seen_at, last_seen_at)
OVERRIDING SYSTEM VALUE
SELECT i,
       (enum_range(NULL::identity_provider))[1 + i % 6],
       upper(substr(md5('external:' || i), 1, 12)),
       'User.' || substr(md5('handle:' || i), 1, 7),
       CASE WHEN i % 4 <> 0 THEN 'person' || 1 + i % :n_people || '@example.com' END,
       jsonb_build_object('locale', (ARRAY['en', 'de', 'pt', 'ja'])[1 + i % 4],
                          'bot', i % 50 = 0, 'groups', i % 13),
       decode(md5('fingerprint:' || i), 'hex'),
       i % 12 <> 0,
       :base - make_interval(mins => i * 17 % 500000),
       :base + make_interval(secs => i * 173 % 15552000)
FROM generate_series(1, :n_identities) AS i;

SELECT setval(pg_get_serial_sequence('identities', 'id'), :n_identities) AS ignored \gset

-- One identity in ten belongs to no person yet.
INSERT INTO person_identity_links (person_id, identity_id, method, confidence, evidence, linked_at)
SELECT 1 + i % :n_people,
       i,
       (ARRAY['email', 'rule', 'manual'])[1 + i % 3],
       CASE WHEN i = 7 THEN 1.5 ELSE (500 + i % 501) / 1000.0 END,
       CASE i % 3
           WHEN 0 THEN ARRAY['email:exact']
           WHEN 1 THEN ARRAY['name:"close"', NULL, 'team, same']
           ELSE '{}'
       END,
       :base + make_interval(secs => i * 131 % 15552000)
FROM generate_series(1, :n_identities) AS i
WHERE i % 10 <> 0;

-- The deferred foreign key is due now: no table can be altered while checks are pending.
SET CONSTRAINTS ALL IMMEDIATE;

-- Case: a NOT VALID constraint that one row breaks; it must be restored after the rows.
ALTER TABLE person_identity_links
    ADD CONSTRAINT person_identity_links_confidence_range
    CHECK (confidence BETWEEN 0 AND 1) NOT VALID;

-- ---------------------------------------------------------------- synchronisation

INSERT INTO sync_watermarks (provider, stream, shard, cursor_token, synced_at)
SELECT provider,
       stream,
       shard,
       CASE WHEN shard % 7 <> 3 THEN md5(concat_ws(':', provider, stream, shard)) END,
       :base + make_interval(mins => shard * 61)
FROM unnest(enum_range(NULL::identity_provider)) WITH ORDINALITY AS p (provider, provider_no)
CROSS JOIN unnest(ARRAY['members', 'groups']) WITH ORDINALITY AS s (stream, stream_no)
CROSS JOIN generate_series(0, :n_shards - 1) AS shard
ORDER BY provider_no, stream_no, shard;

INSERT INTO sync_batches (provider, batch_no, row_count, checksum, finished_at)
SELECT (enum_range(NULL::identity_provider))[1 + i % 6],
       i,
       i * 7 % 5000,
       decode(md5('batch:' || i), 'hex'),
       CASE WHEN i % 20 <> 0 THEN :base + make_interval(mins => i * 13) END
FROM generate_series(1, :n_batches) AS i;

-- ---------------------------------------------------------------- audit

-- In order over the first half of 2026, but for old events that go to the default partition.
INSERT INTO audit_events (id, occurred_at, actor_id, action, payload)
SELECT i,
       CASE WHEN i % 50 = 0 THEN :base - make_interval(mins => i)
            ELSE :base + make_interval(secs => i::bigint * 15638399 / :n_events) END,
       CASE WHEN i % 25 <> 0 THEN 1 + i % :n_people END,
       (ARRAY['identity.linked', 'identity.unlinked', 'person.updated', 'sync.finished',
              'ask.started', 'login'])[1 + i * 7 % 6],
       jsonb_build_object('request', md5('request:' || i),
                          'outcome', CASE WHEN i % 40 = 0 THEN 'failed' ELSE 'ok' END,
                          'ip', '10.' || i % 4 || '.' || i % 200 || '.7',
                          'note', CASE WHEN i % 100 = 0 THEN E'line one\n\\.\n"quoted"\t–' END)
FROM generate_series(1, :n_events) AS i;

SELECT setval('audit_event_number', :n_events + 41) AS ignored \gset

-- ---------------------------------------------------------------- key figures

INSERT INTO kpi_snapshots (id, kpi, period, value, target, percentiles, dimensions, captured_at)
OVERRIDING SYSTEM VALUE
SELECT i,
       (ARRAY['linked_share', 'sync_lag_seconds', 'ask_sessions', 'stale_people'])[1 + i % 4],
       daterange(DATE '2026-01-01' + i / 40, DATE '2026-01-02' + i / 40),
       (i * 7919 % 1000003) / 100.0,
       CASE i % 11 WHEN 0 THEN NULL WHEN 1 THEN 0 ELSE 5000 + i % 300 END,
       ARRAY[i / 3.0::float8, i * 0.1::float8,
             CASE WHEN i % 500 = 0 THEN 'NaN' WHEN i % 700 = 0 THEN '-Infinity'
                  ELSE i * 1e-9 END::float8],
       jsonb_build_object('team', (ARRAY['engineering', 'sales', 'support'])[1 + i % 3],
                          'region', (ARRAY['emea', 'amer', 'apac'])[1 + i % 3]),
       :base + make_interval(mins => i * 36)
FROM generate_series(1, :n_kpis) AS i;

SELECT setval(pg_get_serial_sequence('kpi_snapshots', 'id'), :n_kpis) AS ignored \gset

-- ---------------------------------------------------------------- large objects

-- Case: two large objects, one of them empty, with fixed numbers and the owner ovia.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = 900001) THEN
        PERFORM lo_from_bytea(900001, '');
    END IF;
    IF NOT EXISTS (SELECT FROM pg_largeobject_metadata WHERE oid = 900002) THEN
        PERFORM lo_from_bytea(
            900002, string_agg(decode(md5('transcript:' || i), 'hex'), '' ORDER BY i))
        FROM generate_series(1, 6400) AS i;
    END IF;
END
$$;

GRANT SELECT ON LARGE OBJECT 900002 TO ovia_readonly;
COMMENT ON LARGE OBJECT 900002 IS 'Transcript of the second ask session.';

-- ---------------------------------------------------------------- ask

INSERT INTO ask_sessions (id, person_id, question, answer, tags, is_private, transcript,
                          started_at, ended_at)
SELECT md5('session:' || i)::uuid,
       1 + i * 31 % :n_people,
       (ARRAY['Who owns ', 'Which accounts has ', 'Who reports to ', 'Où travaille '])[1 + i % 4]
           || 'person' || i % :n_people || '?',
       CASE WHEN i % 6 <> 0 THEN
           E'Found ' || i % 9 || E' records.\n\n\t- see "people" \\ identities\n\\.\nDone – 完了 🎉' END,
       CASE WHEN i % 3 = 0 THEN ARRAY['org', 'chart'] ELSE '{}' END,
       i % 5 = 0,
       CASE i WHEN 1 THEN 900001 WHEN 2 THEN 900002 END,
       :base + make_interval(mins => i * 47),
       CASE WHEN i % 8 <> 0 THEN :base + make_interval(mins => i * 47 + i % 30) END
FROM generate_series(1, :n_sessions) AS i;

INSERT INTO ask_cache (question_hash, answer, cached_at)
SELECT md5('question:' || i), 'answer ' || i, :base + make_interval(mins => i)
FROM generate_series(1, :n_cached) AS i;

INSERT INTO notes (id, body, written_at)
SELECT i, 'note ' || i, CASE WHEN i % 3 <> 0 THEN :base + make_interval(hours => i) END
FROM generate_series(1, :n_notes) AS i;

INSERT INTO ask_notes (id, body, session_id, rating, written_at)
SELECT :n_notes + i,
       E'note\ton session ' || i,
       md5('session:' || 1 + i % :n_sessions)::uuid,
       CASE WHEN i % 4 <> 0 THEN 1 + i % 5 END,
       CASE WHEN i % 3 <> 0 THEN :base + make_interval(hours => i) END
FROM generate_series(1, :n_notes) AS i;

-- ---------------------------------------------------------------- text that looks like a dump

INSERT INTO text_samples (id, label, body, extra) VALUES
    (1,  'end of data',        E'before\n\\.\nafter',                        E'\\.'),
    (2,  'only end of data',   E'\n\\.\n',                                   NULL),
    (3,  'null and empty',     NULL,                                         ''),
    (4,  'the word for null',  E'\\N',                                       'NULL'),
    (5,  'newlines',           E'unix\nwindows\r\nold mac\rend',             E'\n'),
    (6,  'tabs and controls',  E'a\tb\vc\fd\be\x01f\x7f',                    E'\t'),
    (7,  'backslashes',        E'C:\\new\\table \\\\ \\',                    E'\\'),
    (8,  'quotes',             E'it''s "quoted" $$dollar$$ `tick`',          ''''),
    -- The bytes are a combining accent and a zero-width space.
    (9,  'unicode',            E'naïve – 日本語 العربية 🎉 e\xcc\x81',        E'\xe2\x80\x8b'),
    (10, 'blanks',             '  leading and trailing  ',                   ' '),
    (11, 'copy block',         E'COPY ghost (a) FROM stdin;\n1\n\\.\n',      E'--\n-- Data for Name: ghost'),
    (12, 'psql command',       E'\\connect other\n\\! true',                 E'\\restrict x'),
    (13, 'almost a number',    '007',                                        '1e5'),
    (14, 'long line',          repeat('ovia ', 100),                         repeat(E'\\.\n', 20));

INSERT INTO ops."Odd ""Name"" ; drop
me" (id, "value) FROM stdin;") VALUES
    (1, 'plain'),
    (2, E'COPY ops."Odd" (id) FROM stdin;\n\\.'),
    (3, NULL);

INSERT INTO ops.heartbeats DEFAULT VALUES;
INSERT INTO ops.heartbeats DEFAULT VALUES;

-- ---------------------------------------------------------------- views

REFRESH MATERIALIZED VIEW identity_coverage;

RESET ROLE;

COMMIT;

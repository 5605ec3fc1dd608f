-- Conversations: prose beside the demo's tables, which are mostly keys, hashes and JSON.
--
--     psql -X -v messages=100000 -v repeats=1 -f data.sql
--
-- A row is six of 200,000 sentences, each of twelve words drawn as a language does: few of them often. So many
-- sentences do not fit a compressor's window; it must work on words, as with real text. "repeats" multiplies the rows
-- without composing them again, which is quick, for databases whose ratio of compression is not looked at.

\set ON_ERROR_STOP on
\set QUIET on

SET client_min_messages = warning;
SET timezone = 'UTC';
SET work_mem = '256MB';
-- The random numbers come in one order.
SET max_parallel_workers_per_gather = 0;
SELECT setseed(0.42) AS ignored \gset

-- One transaction: what is filled where it was created needs no WAL.
BEGIN;

CREATE TABLE ask_messages (
    id         bigint NOT NULL,
    session_no bigint NOT NULL,
    author     text NOT NULL,
    body       text NOT NULL,
    tokens     integer NOT NULL,
    sent_at    timestamptz NOT NULL
);
ALTER TABLE ask_messages OWNER TO ovia;

CREATE TEMPORARY TABLE words ON COMMIT DROP AS
    SELECT no, translate(substr(md5('word:' || no), 1, 2 + (no * 7919 % 9)::int), '0123456789', 'aeioustnrl') AS word
    FROM generate_series(0, 7999) AS no;

CREATE TEMPORARY TABLE sentences ON COMMIT DROP AS
    SELECT places.sentence, string_agg(words.word, ' ' ORDER BY places.place) || '. ' AS text
    FROM (SELECT sentence, place, floor(8000 * power(random(), 4))::int AS no
          FROM generate_series(0, 199999) AS sentence, generate_series(1, 12) AS place) AS places
    JOIN words USING (no)
    GROUP BY places.sentence;

INSERT INTO ask_messages
    SELECT parts.id,
           1 + parts.id / 8,
           CASE WHEN parts.id % 2 = 0 THEN 'person' || parts.id * 31 % 10007 ELSE 'assistant' END,
           string_agg(sentences.text, ''),
           sum(length(sentences.text)) / 4,
           TIMESTAMPTZ '2026-01-01 00:00:00+00' + make_interval(secs => parts.id * 13)
    FROM (SELECT id, floor(200000 * random())::int AS sentence
          FROM generate_series(1, :messages) AS id, generate_series(1, 6)) AS parts
    JOIN sentences USING (sentence)
    GROUP BY parts.id;

INSERT INTO ask_messages
    SELECT id + :messages * repeat, session_no + :messages * repeat, author, body, tokens,
           sent_at + make_interval(days => repeat)
    FROM generate_series(1, :repeats - 1) AS repeat, ask_messages;

ALTER TABLE ask_messages ADD PRIMARY KEY (id);

COMMIT;

-- As a database that has been in use: nothing is left to be written while it is read.
VACUUM ANALYZE;
CHECKPOINT;

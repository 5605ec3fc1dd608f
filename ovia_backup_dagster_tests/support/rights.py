"""A schema with every kind of object that a dump needs a right on."""

from __future__ import annotations

#: One object of each kind that pg_dump reads, or must not need to read.
SCHEMA = """
    CREATE SCHEMA a;
    CREATE SCHEMA pgx;
    CREATE TABLE a.plain (x int, y text, z int GENERATED ALWAYS AS (x) STORED);
    CREATE TABLE a.whole (x int PRIMARY KEY) PARTITION BY RANGE (x);
    CREATE TABLE pgx.part PARTITION OF a.whole FOR VALUES FROM (0) TO (9);
    CREATE UNLOGGED TABLE pgx.bare ();
    CREATE SEQUENCE a.numbers;
    CREATE TABLE a.members (x int GENERATED ALWAYS AS IDENTITY);
    CREATE VIEW a.seen AS SELECT x FROM a.plain;
    CREATE MATERIALIZED VIEW a.kept AS SELECT x FROM a.plain;
    CREATE FOREIGN DATA WRAPPER nothing;
    CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
    CREATE FOREIGN TABLE a.far (x int) SERVER nowhere;
    SELECT lo_create(101);
    SELECT lo_create(102);
"""

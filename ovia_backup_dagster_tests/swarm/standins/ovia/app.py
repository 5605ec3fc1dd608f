"""A stack like Ovia's, in one file: an API whose /health reads the database, two services that write, migrations."""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg
from psycopg.conninfo import make_conninfo

DATABASE = make_conninfo(
    host=os.environ["POSTGRES_HOST"],
    dbname=os.environ["POSTGRES_DB"],
    user=os.environ["POSTGRES_USER"],
    password=os.environ["POSTGRES_PASSWORD"],
    connect_timeout=5,
)
MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS people (id bigserial PRIMARY KEY, name text NOT NULL);
    CREATE TABLE IF NOT EXISTS identities (id bigserial PRIMARY KEY, source text, external_id text);
    CREATE TABLE IF NOT EXISTS person_identity_links (
        person_id bigint REFERENCES people, identity_id bigint REFERENCES identities);
    CREATE TABLE IF NOT EXISTS sync_watermarks (source text PRIMARY KEY, at timestamptz);
    CREATE TABLE IF NOT EXISTS audit_events (id bigserial PRIMARY KEY, at timestamptz DEFAULT now(), what text);
"""
SAMPLE = """
    INSERT INTO people (name) SELECT 'person ' || n FROM generate_series(1, 20000) n;
    INSERT INTO identities (source, external_id) SELECT 'crm', md5(n::text) FROM generate_series(1, 60000) n;
    INSERT INTO person_identity_links SELECT 1 + n % 20000, n FROM generate_series(1, 60000) n;
"""
STATEMENTS = {
    "ingest": "INSERT INTO audit_events (what) VALUES ('tick')",
    "metrics": "INSERT INTO sync_watermarks VALUES ('crm', now()) ON CONFLICT (source) DO UPDATE SET at = excluded.at",
}


def migrate() -> None:
    with psycopg.connect(DATABASE) as session:
        session.execute(MIGRATIONS)
        row = session.execute("SELECT count(*) FROM people").fetchone()
        if row == (0,):
            session.execute(SAMPLE)
    print("migrated", flush=True)


def write(service: str) -> None:
    statement = STATEMENTS[service]
    while True:
        try:
            with psycopg.connect(DATABASE, autocommit=True) as session:
                while True:
                    session.execute(statement)
                    time.sleep(1)
        except psycopg.Error as error:
            print(error, flush=True)
            time.sleep(1)


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            with psycopg.connect(DATABASE) as session:
                row = session.execute("SELECT count(*) FROM people").fetchone()
            code, text = (200, f"ok, {row[0]} people\n") if row else (503, "no people\n")
        except psycopg.Error as error:
            code, text = 503, f"{error}\n"
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    match sys.argv[1]:
        case "api":
            ThreadingHTTPServer(("0.0.0.0", 8080), Health).serve_forever()
        case "ingest":
            write("ingest")
        case "metrics":
            write("metrics")
        case "migrate":
            migrate()

"""Finds the SQLSTATE with which a server refused a connection, whatever language the server speaks.

While connecting, libpq reports only ``PQerrorMessage``, without the SQLSTATE. And before a session has a database, the
server has no encoding for it, so that ``Passwort-Authentifizierung f?r Benutzer`` arrives. The trace that libpq 18
writes contains the server's complete answer, however. So after a refusal this module connects again with tracing on,
and reads the trace.
"""

from __future__ import annotations

import os
import re
import select
import time
from dataclasses import dataclass

from psycopg import pq

#: The format of ``pqTraceOutputMessage`` in libpq's fe-trace.c: one message a line, each field after its letter.
_ANSWER = re.compile(
    r'^B\t\d+\tErrorResponse\t S "[^"]*" V "[A-Z]+" C "(?P<sqlstate>[0-9A-Z]{5})" (?s:.*?) R "(?P<routine>\w*)" \\x00$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's answer to a connection attempt."""

    sqlstate: str
    routine: str


#: The server accepted the connection.
LET_IN = Refusal("00000", "")


def refusal(conninfo: str, seconds: float) -> Refusal | None:
    """What the server answers to one more attempt; ``None`` if no answer comes or it cannot be parsed.

    Args:
        conninfo: as for ``psycopg.connect``; libpq reads its environment variables, too.
        seconds: the time limit.
    """
    deadline = time.monotonic() + seconds
    # In memory, not in a file: the trace contains what libpq sends, too.
    trace = os.memfd_create("libpq")
    try:
        session = pq.PGconn.connect_start(conninfo.encode())
        try:
            session.trace(trace)
            session.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
            while (status := session.connect_poll()) not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
                writes = status == pq.PollingStatus.WRITING
                left = deadline - time.monotonic()
                if left <= 0 or not any(select.select([session.socket], [session.socket] * writes, [], left)):
                    return None
            if status == pq.PollingStatus.OK:
                return LET_IN
        finally:
            session.untrace()  # flushes the trace
            session.finish()
        text = os.pread(trace, os.fstat(trace).st_size, 0).decode("utf-8", "replace")
    finally:
        os.close(trace)
    # libpq may have tried several ways, with TLS and without, each refused: the last refusal counts.
    found = list(_ANSWER.finditer(text))
    return Refusal(found[-1]["sqlstate"], found[-1]["routine"]) if found else None

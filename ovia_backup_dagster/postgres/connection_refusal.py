"""Why a server turns a session away, as its SQLSTATE, in whatever language it speaks.

libpq keeps that to itself while it connects (``PQerrorMessage`` is all that it gives out), and before a session has a
database, the server has no encoding either: ``Passwort-Authentifizierung f?r Benutzer`` is what arrives. But what libpq
18 traces holds the server's answer whole. So one that was turned away tries once more, and reads the trace.
"""

from __future__ import annotations

import os
import re
import select
import time
from dataclasses import dataclass

from psycopg import pq

#: ``pqTraceOutputMessage`` in libpq's fe-trace.c: a message a line, its fields by their letters.
_ANSWER = re.compile(
    r'^B\t\d+\tErrorResponse\t S "[^"]*" V "[A-Z]+" C "(?P<sqlstate>[0-9A-Z]{5})" (?s:.*?) R "(?P<routine>\w*)" \\x00$',
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server's answer to who wants to come in."""

    sqlstate: str
    routine: str


#: No refusal at all.
LET_IN = Refusal("00000", "")


def refusal(conninfo: str, seconds: float) -> Refusal | None:
    """What a server answers to one more try; ``None`` where that cannot be understood, or does not come.

    Args:
        conninfo: as for ``psycopg.connect``; libpq's environment is read, too.
        seconds: how long it may take.
    """
    deadline = time.monotonic() + seconds
    # In memory: libpq traces what it sends, too.
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
            session.untrace()  # writes what is left of it
            session.finish()
        text = os.pread(trace, os.fstat(trace).st_size, 0).decode("utf-8", "replace")
    finally:
        os.close(trace)
    # Before TLS, or the password, there may be others: the last one counts.
    found = list(_ANSWER.finditer(text))
    return Refusal(found[-1]["sqlstate"], found[-1]["routine"]) if found else None

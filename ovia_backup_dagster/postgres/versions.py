"""PostgreSQL's releases: the majors, which may dump which, and the minors that mend known vulnerabilities.

Of vulnerabilities only what a dump, its reading back and a restore meet: pg_dump, pg_restore, psql and libpq. Kept by
hand, with the day of the last look; a newer program is never called old. For a new major look at the newest
archive format in ``core.archive_header`` as well, at new settings in ``session_settings``, and whether the messages in
``known_messages`` read as before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta

#: When the list was last compared with https://www.postgresql.org/support/security/ (or, as on this day, with the same
#: in the CVE records that PostgreSQL publishes: https://github.com/CVEProject/cvelistV5).
AS_OF = date(2026, 11, 29)
#: PostgreSQL has a release with repairs each quarter: an older list lacks one.
MAX_AGE = timedelta(days=90)


#: The major that is promised: all tests run with it. The others are understood, where their programs are at hand.
PROMISED = 16


@dataclass(frozen=True, slots=True)
class Major:
    """One major version, as a source and as the version of the client programs.

    Attributes:
        number: e.g. 16.
        last_release: the day of its last release (https://www.postgresql.org/support/versioning/).
    """

    number: int
    last_release: date


#: A new major is a line here.
MAJORS = {
    major.number: major
    for major in (
        Major(13, date(2025, 11, 13)),
        Major(14, date(2026, 11, 12)),
        Major(15, date(2027, 11, 11)),
        Major(16, date(2028, 11, 9)),
        Major(17, date(2029, 11, 8)),
        Major(18, date(2030, 11, 14)),
    )
}


def may_dump(client: int, server: int) -> bool:
    """Whether a major of pg_dump dumps a server: one of its own alone.

    pg_dump would dump earlier ones as well. Such a dump restores to pg_dump's major and not to the server it is of: on
    the day, it could not come back.
    """
    return client == server


def is_without_repairs(major: int, today: date) -> bool:
    """Whether a major gets no further releases, so that what is found in it is never fixed."""
    return major in MAJORS and MAJORS[major].last_release < today


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One vulnerability.

    Attributes:
        cve: its number.
        what: what an attacker gains, in a few words.
        fixed: major -> the first minor without it.
        executes: whether the attacker's code runs as the user of pg_dump or pg_restore, where we run them. What psql
            alone would do is no such: we give it no dump.
    """

    cve: str
    what: str
    fixed: dict[int, int]
    executes: bool = False


#: Newest first.
VULNERABILITIES = (
    Vulnerability(
        "CVE-2026-116314",
        "a crafted archive can run code as the user who runs pg_restore",
        {18: 7, 17: 12, 16: 16, 15: 20, 14: 25},
        executes=True,
    ),
    Vulnerability(
        "CVE-2026-19385",
        "who may create functions can run code as the user who runs pg_dump",
        {18: 6, 17: 11, 16: 15, 15: 19, 14: 24},
        executes=True,
    ),
    Vulnerability(
        "CVE-2026-18408",
        "a hostile server's superuser can put commands into a plain dump that psql restores",
        {18: 6, 17: 11, 16: 15, 15: 19, 14: 24},
    ),
    Vulnerability(
        "CVE-2026-6464",
        "after an error that a server brings about, psql takes the rows of a plain dump for commands",
        {18: 6, 17: 11, 16: 15, 15: 19, 14: 24},
    ),
    Vulnerability(
        "CVE-2026-6477",
        "a hostile server can overwrite pg_dump's memory when it reads large objects",
        {18: 4, 17: 10, 16: 14, 15: 18, 14: 23},
        executes=True,
    ),
    Vulnerability(
        "CVE-2025-12818", "libpq can be made to write past its buffers", {18: 1, 17: 7, 16: 11, 15: 15, 14: 20}
    ),
    Vulnerability(
        "CVE-2025-8714", "a hostile server's superuser can put commands into a dump", {17: 6, 16: 10, 15: 14, 14: 19}
    ),
    Vulnerability(
        "CVE-2025-8715",
        "an object's name with a line feed can put commands into a dump",
        {17: 6, 16: 10, 15: 14, 14: 19},
    ),
    Vulnerability("CVE-2025-1094", "quoted text can break out of its quotes in psql", {17: 3, 16: 7, 15: 11, 14: 16}),
    Vulnerability(
        "CVE-2024-10977", "a man in the middle can put words into libpq's errors", {17: 1, 16: 5, 15: 9, 14: 14}
    ),
    Vulnerability("CVE-2024-7348", "who may create tables can run SQL as the role that dumps", {16: 4, 15: 8, 14: 13}),
)


def parse_release(version: str) -> tuple[int, int] | None:
    """``16.15 (Debian 16.15-1)`` -> (16, 15); ``None`` for what is no release (``17beta1``)."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def known_vulnerabilities(version: str) -> tuple[Vulnerability, ...]:
    """Those that a client program of this version has; none for a version that is not understood."""
    parsed = parse_release(version)
    if parsed is None:
        return ()
    major, minor = parsed
    return tuple(v for v in VULNERABILITIES if minor < v.fixed.get(major, 0))


def newest_minor(major: int) -> int:
    """The newest minor release of a major that the list knows of; 0 for a major that it does not know."""
    return max((v.fixed.get(major, 0) for v in VULNERABILITIES), default=0)

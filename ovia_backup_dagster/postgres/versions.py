"""PostgreSQL's releases: the major versions, which may dump which, and the minors that fix known vulnerabilities.

The list contains only vulnerabilities that affect a dump, its verification or a restore: those of pg_dump, pg_restore,
psql and libpq. It is maintained by hand, with the date of the last update; a program newer than the list is never
reported as old. When you add a major version, also check the newest archive format in ``core.archive_header``, new
settings for ``session_settings``, and whether the messages in ``known_messages`` are unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta

#: When the list was last compared with https://www.postgresql.org/support/security/ (or, as on this date, with the
#: same data in the CVE records that PostgreSQL publishes: https://github.com/CVEProject/cvelistV5).
AS_OF = date(2026, 11, 29)
#: PostgreSQL publishes fixes each quarter, so an older list lacks a release.
MAX_AGE = timedelta(days=90)


#: The supported major version: all tests run with it. Other majors work if their client programs are installed.
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
    """Whether a major version of pg_dump may dump a server: only one of the same major version.

    pg_dump can dump older servers, too. But such a dump restores into pg_dump's major version, and not into the
    server that it was taken from: in an emergency, it could not be restored there.
    """
    return client == server


def is_without_repairs(major: int, today: date) -> bool:
    """Whether a major gets no further releases, so that new vulnerabilities in it are never fixed."""
    return major in MAJORS and MAJORS[major].last_release < today


@dataclass(frozen=True, slots=True)
class Vulnerability:
    """One vulnerability.

    Attributes:
        cve: its number.
        what: what an attacker gains, in a few words.
        fixed: major -> the first minor without it.
        executes: whether the attacker's code runs as the user of pg_dump or pg_restore, which this system runs. Code in
            psql does not count: this system gives psql no dump.
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
        "a role that may create functions can run code as the user who runs pg_dump",
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
        "after an error that a server provokes, psql executes the rows of a plain dump as commands",
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
    Vulnerability(
        "CVE-2024-7348", "a role that may create tables can run SQL as the role that dumps", {16: 4, 15: 8, 14: 13}
    ),
)


def parse_release(version: str) -> tuple[int, int] | None:
    """``16.15 (Debian 16.15-1)`` -> (16, 15); ``None`` for versions that are not releases (``17beta1``)."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else None


def known_vulnerabilities(version: str) -> tuple[Vulnerability, ...]:
    """The vulnerabilities of a client program of this version; none for a version that cannot be parsed."""
    parsed = parse_release(version)
    if parsed is None:
        return ()
    major, minor = parsed
    return tuple(v for v in VULNERABILITIES if minor < v.fixed.get(major, 0))


def newest_minor(major: int) -> int:
    """The newest minor release of a major version in the list; 0 if the list does not have that major."""
    return max((v.fixed.get(major, 0) for v in VULNERABILITIES), default=0)
